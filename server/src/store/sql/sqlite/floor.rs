//! How far revisions have jumped, kept in a file of its own beside the log.
//!
//! A log that is restored or repaired goes on far past every revision that may have been handed out ([`JUMP`](super::log::JUMP)),
//! as far as files say which. A file that cannot be read says nothing, not even of the jumps that led to it: a backup from
//! before them would jump to where it jumped the last time, and revisions would be given twice. So each jump is noted here.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use agent::units::Revision;
use tracing::warn;

use super::place;

/// Where the last jump of the log at `path` led; zero if there was none, or if the file cannot be read: the log itself, which may
/// be whole, is not refused for that. No revision has been handed out that is further from it than a jump.
pub fn read(path: &Path) -> Revision {
    let file = place::with(path, ".floor");
    let passed_over = |why: &dyn std::fmt::Display| {
        warn!(file = %file.display(), error = %why, "what it says of revisions cannot be read, and is passed over");
        Revision::ZERO
    };
    match fs::read(&file) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            Revision::parse(text.trim()).unwrap_or_else(|| passed_over(&"it is no number"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Revision::ZERO,
        Err(error) => passed_over(&error),
    }
}

/// Notes a jump to `to`, which is on the disk then.
///
/// # Errors
/// The disk's; what was noted before stays.
pub fn raise(path: &Path, to: Revision) -> io::Result<()> {
    if read(path) >= to {
        return Ok(());
    }
    let next = place::with(path, ".floor.new");
    let written = || {
        place::remove(&next)?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&next)?;
        file.write_all(format!("{to}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, place::with(path, ".floor"))?;
        place::sync_folder(path)
    };
    written().inspect_err(|_| drop(place::remove(&next)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_jump_is_kept_until_a_further_one() {
        let folder = Scratch::new("floor");
        let path = folder.0.join("state.db");
        assert_eq!(read(&path), Revision::ZERO);
        for (to, kept) in [(5, 5), (90, 90), (7, 90)] {
            raise(&path, Revision::new(to)).unwrap();
            assert_eq!(read(&path), Revision::new(kept));
        }
        fs::write(folder.0.join("state.db.floor"), b"\xff\n").unwrap();
        assert_eq!(read(&path), Revision::ZERO);
    }
}
