//! Files that are whole or not there, whenever the power fails: temporary file, fsync, rename, fsync of the folder.
//!
//! K3s writes its node password in place, and a box that loses power then loses its identity. Every file of a join goes
//! through here, step by step over a [`Disk`], so that a simulation can lose the power between any two.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What can be done to a disk, each a step of its own: between any two the power may fail.
///
/// Errors are the disk's.
pub trait Disk: Sync {
    /// The content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Makes a file, or empties it.
    fn create(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Fills a file that was just made.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Makes the content of a file durable.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Puts a file in the place of another.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Takes a file away.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder in one that is there; that it is there already is no error.
    fn create_folder(&self, folder: &Path, mode: u32) -> io::Result<()>;
    /// Who may do what with a file, such as `0o600`.
    fn mode(&self, path: &Path) -> io::Result<u32>;
    /// Sets that.
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()>;

    /// Whether there is such a file or folder.
    fn has(&self, path: &Path) -> bool {
        self.mode(path).is_ok()
    }
}

/// The machine's own.
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        // One that lay about keeps its old mode.
        options.open(path)?.set_permissions(Permissions::from_mode(mode))
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        OpenOptions::new().append(true).open(path)?.write_all(content)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.sync(folder)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_folder(&self, folder: &Path, mode: u32) -> io::Result<()> {
        match DirBuilder::new().mode(mode).create(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
            made => made,
        }
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        Ok(fs::metadata(path)?.permissions().mode() & 0o777)
    }

    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        fs::set_permissions(path, Permissions::from_mode(mode))
    }
}

/// Replaces (or makes) a file of this machine, as [`replace_on`].
///
/// # Errors
/// The disk's.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_on(&SystemDisk, path, content, mode)
}

/// Replaces (or makes) a file; readers and a later start find the old content or the new, never a part.
///
/// The folder must exist. `mode` such as `0o600`.
///
/// # Errors
/// The disk's. The old file is untouched unless only the last step failed.
pub fn replace_on(disk: &dyn Disk, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary(path);
    let put = || {
        disk.create(&temporary, mode)?;
        disk.write(&temporary, content)?;
        disk.sync(&temporary)?;
        disk.rename(&temporary, path)
    };
    if let Err(error) = put() {
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    match path.parent() {
        Some(folder) => disk.sync_folder(folder),
        None => Ok(()),
    }
}

/// Makes a folder and those above it, for good: a file that is durable in a folder that is not is lost with it.
///
/// `mode` such as `0o755`, of each folder that was not there.
///
/// # Errors
/// The disk's.
pub fn create_folder_on(disk: &dyn Disk, folder: &Path, mode: u32) -> io::Result<()> {
    let named = folder.ancestors().filter(|above| !above.as_os_str().is_empty());
    let missing: Vec<&Path> = named.take_while(|above| !disk.has(above)).collect();
    for made in missing.into_iter().rev() {
        disk.create_folder(made, mode)?;
        match made.parent() {
            Some(above) if above.as_os_str().is_empty() => disk.sync_folder(Path::new("."))?,
            Some(above) => disk.sync_folder(above)?,
            None => {}
        }
    }
    Ok(())
}

/// Renames within a folder, for good.
///
/// # Errors
/// The disk's. The new name is there unless the first step failed.
pub fn rename_on(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<()> {
    disk.rename(from, to)?;
    match to.parent() {
        Some(folder) => disk.sync_folder(folder),
        None => Ok(()),
    }
}

/// The same for each write, so that an interrupted one leaves nothing behind for ever.
fn temporary(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::TempDir;

    #[test]
    fn a_write_leaves_one_file_whatever_lay_about() {
        let scratch = TempDir::new("durable");
        let folder = scratch.path();
        let path = folder.join("password");
        for (litter, content) in [(None, "first"), (Some("half of something longer"), "second")] {
            if let Some(litter) = litter {
                fs::write(temporary(&path), litter).unwrap();
            }
            replace(&path, content.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(SystemDisk.mode(&path).unwrap(), 0o600);
            assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "{content}");
        }
    }

    #[test]
    fn folders_are_made_where_they_are_missing() {
        let scratch = TempDir::new("durable");
        let folder = scratch.path().join("rancher/node");
        for mode in [0o700, 0o755] {
            create_folder_on(&SystemDisk, &folder, mode).unwrap();
            assert_eq!(
                SystemDisk.mode(&folder).unwrap(),
                0o700,
                "one that is there stays as it is"
            );
            assert_eq!(SystemDisk.mode(folder.parent().unwrap()).unwrap(), 0o700);
        }
        fs::write(folder.join("file"), "").unwrap();
        create_folder_on(&SystemDisk, &folder.join("file/below"), 0o755).unwrap_err();
    }

    #[test]
    fn a_failed_write_leaves_no_litter() {
        let scratch = TempDir::new("durable");
        let folder = scratch.path();
        let path = folder.join("taken");
        fs::create_dir_all(path.join("not-empty")).unwrap();
        replace(&path, b"x", 0o600).unwrap_err();
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    }
}
