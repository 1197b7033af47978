//! The files that a server keeps beside its datastore: whole or not there after a crash, as `agent::join::durable` writes them.
//!
//! Nothing here knows what a file holds; an error names the path. Used for keys, certificates, tokens, kubeconfigs and
//! password records.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use agent::join::durable::{self, SystemDisk};

/// Read and written by its owner only.
pub const PRIVATE: u32 = 0o600;

/// A folder for its owner only.
pub const PRIVATE_FOLDER: u32 = 0o700;

/// A folder that is made for another one to be in.
const SHARED_FOLDER: u32 = 0o755;

/// Writes a file so that no crash can leave half of it.
///
/// `mode`: permission bits of the new file, whatever the umask says.
///
/// # Errors
/// The path and what the system said of it.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    durable::replace(path, content, mode).map_err(|error| at(path, &error))
}

/// Writes a private file only when its content differs, so that a start changes nothing on disk that need not change.
///
/// # Errors
/// As [`write`].
pub fn write_if_changed(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    match fs::read(path) {
        Ok(present) if present == content => {
            keep_mode(path, mode).map_err(|error| at(path, &error))?;
            Ok(false)
        }
        _ => write(path, content, mode).map(|()| true),
    }
}

/// To set the mode that a file has would write it to the disk once more.
fn keep_mode(path: &Path, mode: u32) -> io::Result<()> {
    match fs::metadata(path)?.permissions().mode() & 0o7777 == mode {
        true => Ok(()),
        false => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
    }
}

/// Reads a text file; `None` when there is none.
///
/// # Errors
/// The path and what the system said of it.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path, &error)),
    }
}

/// Gives a whole file another name, in one step also when something has it.
///
/// # Errors
/// The path and what the system said of it.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    durable::rename_on(&SystemDisk, from, to).map_err(|error| at(to, &error))
}

/// Removes a file, if it is there.
///
/// # Errors
/// The path and what the system said of it.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => durable::sync_folder_of(&SystemDisk, path).map_err(|error| at(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at(path, &error)),
    }
}

/// Makes a folder and its parents, for good; the folder itself gets the mode.
///
/// # Errors
/// The path and what the system said of it.
pub fn folder(path: &Path, mode: u32) -> io::Result<()> {
    durable::create_folder(path, mode, SHARED_FOLDER).map_err(|error| at(path, &error))
}

/// Makes `path` a symbolic link to `target`, in one step also when something is there.
///
/// # Errors
/// The path and what the system said of it.
pub fn link(path: &Path, target: &str) -> io::Result<()> {
    if fs::read_link(path).is_ok_and(|present| present.as_os_str() == target) {
        return Ok(());
    }
    let beside = beside(path)?;
    let _ = fs::remove_file(&beside);
    std::os::unix::fs::symlink(target, &beside)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|error| at(path, &error))
}

fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| at(path, &io::Error::other("not a file name")))?;
    Ok(path.with_file_name(format!(".{name}.new")))
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::scratch::Scratch;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_crash_while_writing_beside_is_overwritten_by_the_next_write() {
        let scratch = Scratch::new("files-torn");
        let path = scratch.0.join("token");
        fs::write(scratch.0.join(".token.tmp"), "half a fi").unwrap();
        write(&path, b"whole", PRIVATE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn modes_are_set_whatever_was_there() {
        let scratch = Scratch::new("files-mode");
        let path = scratch.0.join("k3s.yaml");
        fs::write(&path, "same").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!write_if_changed(&path, b"same", PRIVATE).unwrap());
        assert_eq!(mode(&path), 0o600);
        let changed = || {
            let about = fs::metadata(&path).unwrap();
            (about.ctime(), about.ctime_nsec())
        };
        let before = changed();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!write_if_changed(&path, b"same", PRIVATE).unwrap());
        assert_eq!(changed(), before, "what is as it should be is left alone");
        assert!(write_if_changed(&path, b"other", 0o640).unwrap());
        assert_eq!(mode(&path), 0o640);
        folder(&scratch.0.join("a/b"), PRIVATE_FOLDER).unwrap();
        assert_eq!(
            [mode(&scratch.0.join("a")), mode(&scratch.0.join("a/b"))],
            [0o755, 0o700]
        );
    }

    #[test]
    fn a_file_where_a_folder_belongs_is_named() {
        let scratch = Scratch::new("files-folder");
        let path = scratch.0.join("tls");
        fs::write(&path, "").unwrap();
        for wanted in [path.clone(), path.join("etcd")] {
            let error = folder(&wanted, PRIVATE_FOLDER).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}: ", wanted.display())), "{error}");
        }
    }

    #[test]
    fn a_link_replaces_what_was_there() {
        let scratch = Scratch::new("files-link");
        let path = scratch.0.join("node-token");
        fs::write(&path, "a file of an older version").unwrap();
        for target in ["token", "token", "other"] {
            link(&path, target).unwrap();
            assert_eq!(fs::read_link(&path).unwrap(), Path::new(target));
        }
    }
}
