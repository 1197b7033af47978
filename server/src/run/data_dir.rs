//! The data directory is one server's at a time.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::join::files::{self, PRIVATE_FOLDER};

/// Held as long as the server runs; the kernel lets go of it whatever way that ends.
pub struct Lock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

/// Why the directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Stop the other one.
    #[error("another server runs on {}; stop it first, or give this one a --data-dir of its own", .0.display())]
    Taken(PathBuf),
    /// Look at the disk and its permissions.
    #[error("cannot use the data directory: {0}")]
    Disk(#[from] io::Error),
}

/// Makes `<data>/server` and takes it.
///
/// # Errors
/// [`DataDirError`] says what to do.
pub fn take(data_dir: &Path) -> Result<Lock, DataDirError> {
    let server = data_dir.join("server");
    files::folder(&server, PRIVATE_FOLDER)?;
    let path = server.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Lock(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(DataDirError::Taken(data_dir.to_owned())),
        Err((_, error)) => Err(io::Error::from(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_second_server_is_turned_away_until_the_first_is_gone() {
        let scratch = Scratch::new("data-dir");
        let first = take(&scratch.0).unwrap();
        assert!(matches!(take(&scratch.0), Err(DataDirError::Taken(_))));
        drop(first);
        take(&scratch.0).unwrap();
    }
}
