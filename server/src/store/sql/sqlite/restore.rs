//! Puts a backup in the place of a log, whether a server has it open or not.
//!
//! The old file is kept aside. Revisions go on far past everything that was ever handed out from either of them, and
//! nothing from before goes on: watchers and lists of old revisions are told to begin anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::units::Revision;
use bytes::Bytes;

use super::super::super::StoreError;
use super::OpenError;
use super::fault::open_error;
use super::floor;
use super::log::{JUMP, Log};
use super::place::{self, Aside, Unplaced};
use super::snapshot::{self, Backup};
use super::table::{Mark, Table};

/// What is there after a restore.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Restored {
    /// The backup's state.
    pub revision: Revision,
    /// Keys in it.
    pub keys: usize,
    /// Revisions go on from here.
    pub goes_on: Revision,
    /// Where the old file is.
    pub aside: Option<PathBuf>,
}

/// Why the present state stays.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup, or the log's own file.
    #[error(transparent)]
    File(#[from] OpenError),
    /// There is nothing in it.
    #[error("{} holds no cluster", .0.display())]
    Empty(PathBuf),
    /// The disk of the log.
    #[error("cannot put the backup in place: {0}")]
    Disk(#[from] io::Error),
    /// The copy of the backup, where its revisions are to go on.
    #[error("cannot prepare the backup: {0}")]
    Marks(StoreError),
    /// The log that is open could not be brought to its end.
    #[error("the present state cannot be put on the disk, and stays: {0}")]
    Log(StoreError),
    /// The disk failed behind the point of no return.
    #[error("the backup is what counts from the next start on, and the disk failed while it was put in place: {0}")]
    HalfPlaced(io::Error),
}

/// A backup that has been copied beside the log and checked whole. Dropping it removes the copy.
#[derive(Debug)]
pub struct Staged {
    copy: PathBuf,
    /// The backup's state.
    pub revision: Revision,
    /// Keys in it.
    pub keys: usize,
}

impl Staged {
    /// Key and value of what it holds under a prefix, in order of keys. Blocks.
    ///
    /// # Errors
    /// What SQLite says of the copy.
    pub fn under(&self, prefix: &str) -> Result<Vec<(Arc<str>, Bytes)>, StoreError> {
        let unreadable = |error: OpenError| StoreError::Unavailable(error.to_string());
        let table = Table::look(&self.copy).map_err(unreadable)?;
        let found = table.state(prefix, Revision::new(i64::MAX.unsigned_abs()))?;
        Ok(found.into_iter().map(|entry| (entry.key, entry.value)).collect())
    }

    /// Lets its revisions go on after `newest`, and nothing from before.
    fn begin_after(&self, newest: Revision) -> Result<Revision, RestoreError> {
        let goes_on = Revision::new(self.revision.max(newest).get().saturating_add(JUMP));
        let mut table = Table::open(&self.copy)?;
        table.begin_after(goes_on).map_err(RestoreError::Marks)?;
        Ok(goes_on)
    }

    /// Puts it in the place of the file that nobody has open.
    fn place(&self, path: &Path, goes_on: Revision) -> Result<Restored, RestoreError> {
        let aside = place::replace(path, &self.copy, Aside::Replaced).map_err(|unplaced| match unplaced {
            Unplaced::Old(error) => RestoreError::Disk(error),
            Unplaced::New(error) => RestoreError::HalfPlaced(error),
        })?;
        Ok(Restored {
            revision: self.revision,
            keys: self.keys,
            goes_on,
            aside,
        })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = remove_copy(&self.copy);
    }
}

/// Removes what a restore that was killed has left beside the log at `path`.
pub fn clean(path: &Path) -> io::Result<()> {
    remove_copy(&place::beside(path, "restore"))
}

/// Its own name is gone once it is in place.
fn remove_copy(copy: &Path) -> io::Result<()> {
    let names = ["", "-wal", "-shm"];
    names
        .into_iter()
        .try_for_each(|name| place::remove(&place::with(copy, name)))
}

/// Restores from `file` to the log at `path`, which nobody has open. `file` may be a backup, or a copy of a stopped server's
/// file with what lies beside it under the same name and `-wal`.
///
/// # Errors
/// [`RestoreError`]; except after [`RestoreError::HalfPlaced`] what was there is as it was. [`OpenError::InUse`]: a server
/// has it open.
pub fn restore(path: &Path, file: &Path) -> Result<Restored, RestoreError> {
    let _lock = place::lock(path)?;
    place::finish(path)?;
    let staged = stage(path, file)?;
    let goes_on = staged.begin_after(handed_out(path))?;
    staged.place(path, goes_on)
}

/// Copies a backup beside the log at `path` and checks the copy whole. The caller sees to it that there is one at a time.
pub fn stage(path: &Path, file: &Path) -> Result<Staged, RestoreError> {
    let bytes = fs::metadata(file).map_err(|source| OpenError::File {
        path: file.to_owned(),
        source,
    });
    if bytes?.len() == 0 {
        return Err(RestoreError::Empty(file.to_owned()));
    }
    let mut staged = Staged {
        copy: place::beside(path, "restore"),
        revision: Revision::ZERO,
        keys: 0,
    };
    let (_, found) = copy_and_check(file, &staged.copy)?;
    (staged.revision, staged.keys) = (found.revision, found.keys);
    Ok(staged)
}

/// What has become of a log that was to be restored while it was open.
pub enum Exchanged {
    /// The backup is what is served now.
    New(Log, Restored),
    /// It is served on as it was.
    Old(Log, RestoreError),
    /// It cannot be served: what counts is what the next start finds.
    Ended(RestoreError),
}

/// Puts a backup in the place of a log that is open. Until the new file counts, an error leaves the old one served;
/// afterwards the log ends rather than serve what the next start will not find.
pub fn exchange(mut log: Log, staged: &Staged) -> Exchanged {
    // While it is still served: what was volatile goes into the file that is kept.
    let prepared = log.close().map_err(RestoreError::Log);
    let goes_on = match prepared.and_then(|()| staged.begin_after(log.handed_out())) {
        Ok(goes_on) => goes_on,
        Err(error) => return Exchanged::Old(log, error),
    };
    let path = log.path().to_owned();
    drop(log);
    let placed = staged.place(&path, goes_on);
    if let Err(error @ RestoreError::HalfPlaced(_)) = placed {
        return Exchanged::Ended(error);
    }
    let rest = super::wal::examine(&place::with(&path, "-wal")).map_err(RestoreError::from);
    match (
        placed,
        rest.and_then(|rest| Log::open(&path, rest).map_err(RestoreError::from)),
    ) {
        (Ok(restored), Ok(log)) => Exchanged::New(log, restored),
        (Err(error), Ok(log)) => Exchanged::Old(log, error),
        (_, Err(error)) => Exchanged::Ended(error),
    }
}

/// Copies a backup beside the log and checks the copy whole.
fn copy_and_check(file: &Path, copy: &Path) -> Result<(Table, Backup), RestoreError> {
    place::fresh(copy)?;
    fs::copy(file, copy)?;
    let log = place::with(file, "-wal");
    if log.try_exists()? {
        fs::copy(log, place::with(copy, "-wal"))?;
    }
    // Of the file that was named, not of the copy.
    let named = |error| match error {
        OpenError::Damaged { detail, .. } => RestoreError::File(OpenError::Damaged {
            path: file.to_owned(),
            detail,
        }),
        OpenError::Foreign { detail, .. } => RestoreError::File(OpenError::Foreign {
            path: file.to_owned(),
            detail,
        }),
        other => RestoreError::File(other),
    };
    if super::wal::examine(&place::with(copy, "-wal"))? == super::wal::Rest::Lost {
        return Err(named(OpenError::Damaged {
            path: file.to_owned(),
            detail: "the write-ahead log beside it is broken".to_owned(),
        }));
    }
    let table = Table::open(copy).map_err(named)?;
    let found = describe(&table, copy).map_err(named)?;
    match found.keys {
        0 => Err(RestoreError::Empty(file.to_owned())),
        _ => Ok((table, found)),
    }
}

fn describe(table: &Table, path: &Path) -> Result<Backup, OpenError> {
    let (mut live, mut newest) = (std::collections::BTreeSet::new(), Revision::ZERO);
    let error = |error: rusqlite::Error| open_error(path, &error);
    let lines = table.lines(|line| {
        newest = line.revision;
        match line.deleted {
            true => live.remove(&line.key),
            false => live.insert(line.key),
        };
    });
    lines.map_err(error)?;
    let reserved = table.mark(Mark::Reserved).map_err(error)?;
    Ok(Backup {
        path: path.to_owned(),
        revision: newest.max(reserved),
        keys: live.len(),
        bytes: 0,
    })
}

/// The newest revision that a file can have handed out, as far as it can be read. Else its snapshots, and the last jump, are
/// nearer to it than another jump.
fn handed_out(path: &Path) -> Revision {
    let in_snapshots = snapshot::list(path).first().map(|found| found.revision);
    let in_file = || {
        let there = path.try_exists().ok()?;
        let table = there.then(|| Table::open(path).ok()).flatten()?;
        // It may be what counts further on, with what cannot be read of its log.
        table.keep_log(true).ok()?;
        Some(describe(&table, path).ok()?.revision)
    };
    let seen = in_file().max(in_snapshots).unwrap_or(Revision::ZERO);
    seen.max(floor::read(path))
}
