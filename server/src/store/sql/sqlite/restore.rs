//! Puts a backup in the place of the log, whether a server has it open or not.
//!
//! The old file is kept aside. Revisions go on far past everything that was ever handed out from either of them, and
//! nothing from before goes on: watchers and lists of old revisions are told to begin anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent::units::Revision;

use super::super::super::StoreError;
use super::OpenError;
use super::log::{JUMP, Log};
use super::place::{self, Aside};
use super::snapshot::{self, Backup};
use super::table::{Mark, Table, open_error};

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
    /// The log that is open.
    #[error(transparent)]
    Log(StoreError),
}

/// Restores from `file` to the log at `path`, which nobody has open.
///
/// # Errors
/// [`RestoreError`]; what was there is as it was. [`OpenError::InUse`]: a server has it open.
pub fn restore(path: &Path, file: &Path) -> Result<Restored, RestoreError> {
    let _lock = place::lock(path)?;
    place::finish(path)?;
    let prepared = prepare(path, file)?;
    // If that cannot be read, the jump is far enough.
    let old = path.try_exists()?.then(|| handed_out(path)).flatten();
    place_it(path, &prepared, old.unwrap_or(Revision::ZERO))
}

/// Restores what has been prepared to a log that is open. The log that is open afterwards comes back, too.
pub fn exchange(mut log: Log, prepared: &Path) -> (Option<Log>, Result<Restored, RestoreError>) {
    let (path, handed_out) = (log.path().to_owned(), log.handed_out());
    // What was volatile goes into the file that is kept; if the disk takes no more, it stays behind.
    let _ = log.close();
    drop(log);
    let outcome = place_it(&path, prepared, handed_out);
    match (Log::open(&path, super::wal::Rest::Nothing), outcome) {
        (Ok(log), outcome) => (Some(log), outcome),
        (Err(problem), Ok(_)) => (None, Err(problem.into())),
        (Err(_), outcome) => (None, outcome),
    }
}

fn place_it(path: &Path, prepared: &Path, old: Revision) -> Result<Restored, RestoreError> {
    let mut table = Table::open(prepared)?;
    let Backup { revision, keys, .. } = describe(&table, prepared)?;
    let goes_on = Revision::new(revision.max(old).get().saturating_add(JUMP));
    table.begin_after(goes_on).map_err(RestoreError::Log)?;
    drop(table);
    let aside = place::replace(path, prepared, Aside::Replaced)?;
    Ok(Restored {
        revision,
        keys,
        goes_on,
        aside,
    })
}

/// Copies a backup beside the log and checks the copy whole. `file` may be one of ours, or a copy of a stopped server's file
/// with what lies beside it under the same name and `-wal`.
pub fn prepare(path: &Path, file: &Path) -> Result<PathBuf, RestoreError> {
    let unreadable = |source| OpenError::File {
        path: file.to_owned(),
        source,
    };
    let bytes = fs::metadata(file).map_err(unreadable)?.len();
    if bytes == 0 {
        return Err(RestoreError::Empty(file.to_owned()));
    }
    let copy = place::beside(path, "restore");
    let prepared = copy_and_check(file, &copy);
    match prepared {
        Ok(()) => Ok(copy),
        Err(error) => {
            for name in ["", "-wal"] {
                let _ = place::remove(&place::with(&copy, name));
            }
            Err(error)
        }
    }
}

fn copy_and_check(file: &Path, copy: &Path) -> Result<(), RestoreError> {
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
        _ => Ok(()),
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

/// The newest revision that a file can have handed out; `None` if it cannot be read, or its snapshots know better.
fn handed_out(path: &Path) -> Option<Revision> {
    let in_snapshots = snapshot::list(path).first().map(|found| found.revision);
    let table = Table::open(path).ok();
    let in_file = table.and_then(|table| Some(describe(&table, path).ok()?.revision));
    in_file.max(in_snapshots)
}
