//! Writes a volume's files so that a reader sees all the old or all the new ones.
//!
//! A fresh folder `..TIME` is filled, the link `..data` is renamed onto it, and the visible names are links through
//! `..data`. Source: Kubernetes v1.36, `pkg/volume/util/atomic_writer.go`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use super::payload::Payload;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Brings the folder to hold exactly these files; nothing is touched if it does already.
///
/// # Errors
/// The kernel's; the old files are then still whole.
pub fn write(folder: &Path, files: Payload, group: Option<u32>) -> io::Result<()> {
    let old = fs::read_link(folder.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| holds(&folder.join(old), &files)) {
        return Ok(());
    }
    let stamp = (0u32..).map(|n| format!("..{}.{n}", jiff::Timestamp::now().as_millisecond()));
    let name = stamp
        .into_iter()
        .find(|name| !folder.join(name).exists())
        .unwrap_or_default();
    let fresh = folder.join(&name);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in &files {
        write_one(&fresh, path, &file.bytes, file.mode, group)?;
    }
    let new_link = folder.join(DATA_NEW);
    let _ = fs::remove_file(&new_link);
    symlink(&name, &new_link)?;
    fs::rename(&new_link, folder.join(DATA))?;
    link_visible(folder, &files)?;
    match old {
        Some(old) => fs::remove_dir_all(folder.join(old)),
        None => Ok(()),
    }
}

fn write_one(fresh: &Path, path: &str, bytes: &[u8], mode: u32, group: Option<u32>) -> io::Result<()> {
    let place = fresh.join(path);
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&place, bytes)?;
    // With an fsGroup the files are its, and readable for it.
    let mode = if let Some(group) = group {
        chown(&place, None, Some(group))?;
        mode | 0o440
    } else {
        mode
    };
    fs::set_permissions(&place, fs::Permissions::from_mode(mode))
}

/// First components of all paths become links through `..data`; links of names that went away go.
fn link_visible(folder: &Path, files: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = folder.join(name);
        let target = PathBuf::from(DATA).join(name);
        if fs::read_link(&link).ok().as_ref() != Some(&target) {
            symlink(&target, &link)?;
        }
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let stale = name
            .to_str()
            .is_none_or(|name| !name.starts_with("..") && !wanted.contains(name));
        if stale && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn holds(folder: &Path, files: &Payload) -> bool {
    let same = |path: &String, bytes: &[u8]| fs::read(folder.join(path)).is_ok_and(|found| found == bytes);
    count(folder) == Some(files.len()) && files.iter().all(|(path, file)| same(path, &file.bytes))
}

fn count(folder: &Path) -> Option<usize> {
    let mut files = 0;
    for entry in fs::read_dir(folder).ok()? {
        let entry = entry.ok()?;
        files += if entry.file_type().ok()?.is_dir() {
            count(&entry.path())?
        } else {
            1
        };
    }
    Some(files)
}

#[cfg(test)]
mod tests {
    use super::super::payload::File;
    use super::*;
    use crate::scratch::TempDir;

    fn files(list: &[(&str, &str)]) -> Payload {
        let each = list.iter().map(|(path, text)| {
            (
                (*path).to_owned(),
                File {
                    bytes: text.as_bytes().to_vec(),
                    mode: 0o644,
                },
            )
        });
        each.collect()
    }

    #[test]
    fn readers_follow_one_link_that_moves() {
        let dir = TempDir::new("atomic");
        write(dir.path(), files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        let first = fs::read_link(dir.path().join(DATA)).unwrap();
        assert_eq!(fs::read_link(dir.path().join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::read_to_string(dir.path().join("d/b")).unwrap(), "2");
        write(dir.path(), files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        assert_eq!(
            fs::read_link(dir.path().join(DATA)).unwrap(),
            first,
            "nothing changed, nothing moved"
        );
        write(dir.path(), files(&[("a", "3")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(dir.path().join("d")).is_err());
        assert!(!dir.path().join(first).exists());
    }
}
