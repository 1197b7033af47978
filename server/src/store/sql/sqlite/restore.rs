//! Puts a backup in the place of a log that no server has open.
//!
//! The old file is kept aside. Revisions go on far past everything that was ever handed out from either of them, and
//! nothing from before goes on: watchers and lists of old revisions are told to begin anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent::units::Revision;

use super::super::super::StoreError;
use super::OpenError;
use super::log::JUMP;
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
    /// The copy of the backup, where its revisions are to go on.
    #[error("cannot prepare the backup: {0}")]
    Marks(StoreError),
}

/// Restores from `file` to the log at `path`, which nobody has open. `file` may be a backup, or a copy of a stopped server's
/// file with what lies beside it under the same name and `-wal`.
///
/// # Errors
/// [`RestoreError`]; what was there is as it was. [`OpenError::InUse`]: a server has it open.
pub fn restore(path: &Path, file: &Path) -> Result<Restored, RestoreError> {
    let _lock = place::lock(path)?;
    place::finish(path)?;
    let bytes = fs::metadata(file).map_err(|source| OpenError::File {
        path: file.to_owned(),
        source,
    });
    if bytes?.len() == 0 {
        return Err(RestoreError::Empty(file.to_owned()));
    }
    let copy = place::beside(path, "restore");
    let restored = place_copy(path, file, &copy);
    if restored.is_err() {
        for name in ["", "-wal"] {
            let _ = place::remove(&place::with(&copy, name));
        }
    }
    restored
}

fn place_copy(path: &Path, file: &Path, copy: &Path) -> Result<Restored, RestoreError> {
    let (mut table, Backup { revision, keys, .. }) = copy_and_check(file, copy)?;
    // If that cannot be read, the jump is far enough.
    let old = path.try_exists()?.then(|| handed_out(path)).flatten();
    let newest = revision.max(old.unwrap_or(Revision::ZERO));
    let goes_on = Revision::new(newest.get().saturating_add(JUMP));
    table.begin_after(goes_on).map_err(RestoreError::Marks)?;
    drop(table);
    let aside = place::replace(path, copy, Aside::Replaced)?;
    Ok(Restored {
        revision,
        keys,
        goes_on,
        aside,
    })
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

/// The newest revision that a file can have handed out; `None` if it cannot be read, or its snapshots know better.
fn handed_out(path: &Path) -> Option<Revision> {
    let in_snapshots = snapshot::list(path).first().map(|found| found.revision);
    let table = Table::open(path).ok();
    let in_file = table.and_then(|table| Some(describe(&table, path).ok()?.revision));
    in_file.max(in_snapshots)
}
