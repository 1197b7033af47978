//! Files that are whole or not there, whenever the power fails: temporary file, fsync, rename, fsync of the folder.
//!
//! K3s writes its node password in place, and a box that loses power then loses its identity. Every file of a join goes
//! through here. Tests interrupt it at each [`Step`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// What is about to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Make (or empty) the temporary file.
    Create,
    /// Fill it.
    Write,
    /// Make its content durable.
    Sync,
    /// Put it in the place of the old one.
    Rename,
    /// Make the new name durable.
    SyncFolder,
    /// Nothing more.
    Done,
}

/// Replaces (or makes) a file; readers and a later start find the old content or the new, never a part.
///
/// The folder must exist. `mode` such as `0o600`.
///
/// # Errors
/// The disk's. The old file is untouched unless only the last step failed.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let written = replace_watched(path, content, mode, |_| Ok(()));
    if written.is_err() {
        let _ = fs::remove_file(temporary(path));
    }
    written
}

/// As [`replace`]; `before` is asked before each step and ends the work at once with an error.
///
/// # Errors
/// The disk's, or that of `before`.
pub fn replace_watched(
    path: &Path,
    content: &[u8],
    mode: u32,
    mut before: impl FnMut(Step) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary(path);
    before(Step::Create)?;
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    before(Step::Write)?;
    file.write_all(content)?;
    before(Step::Sync)?;
    file.sync_all()?;
    before(Step::Rename)?;
    fs::rename(&temporary, path)?;
    before(Step::SyncFolder)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    before(Step::Done)
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

    const STEPS: [Step; 6] = [
        Step::Create,
        Step::Write,
        Step::Sync,
        Step::Rename,
        Step::SyncFolder,
        Step::Done,
    ];

    #[test]
    fn an_interrupted_write_leaves_the_old_file_or_the_new_one_whole() {
        for old in [None, Some("old")] {
            for stop in STEPS {
                let scratch = TempDir::new("durable");
                let folder = scratch.path();
                let path = folder.join("password");
                if let Some(old) = old {
                    replace(&path, old.as_bytes(), 0o600).unwrap();
                }
                let cut = replace_watched(&path, b"new and longer", 0o600, |step| match step == stop {
                    true => Err(io::ErrorKind::Interrupted.into()),
                    false => Ok(()),
                });
                assert!(cut.is_err());
                let found = fs::read_to_string(&path).ok();
                let renamed = matches!(stop, Step::SyncFolder | Step::Done);
                let expected = if renamed { Some("new and longer") } else { old };
                assert_eq!(found.as_deref(), expected, "stopped before {stop:?}");
                replace(&path, b"next", 0o600).unwrap();
                assert_eq!(
                    fs::read_to_string(&path).unwrap(),
                    "next",
                    "after a stop before {stop:?}"
                );
                assert_eq!(
                    fs::read_dir(folder).unwrap().count(),
                    1,
                    "litter after a stop before {stop:?}"
                );
            }
        }
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
