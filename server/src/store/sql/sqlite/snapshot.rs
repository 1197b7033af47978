//! A copy of the log's present state in a file of its own: what a backup is, and what damage is made good from.
//!
//! It is a database of the same form with the live rows only, so it can take the place of the log's file as it is. The
//! log's thread hands out rows (`copying.rs`); here they are written by another thread, verified, put on the disk, and
//! only then given their name.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;

use agent::units::Revision;

use super::super::super::{Event, StoreError};
use super::fault::open_error;
use super::table::{self, Mark, NewLine, Table};
use super::{OpenError, place};

/// A copy that is there, whole and verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Backup {
    /// Where.
    pub path: PathBuf,
    /// The state it holds.
    pub revision: Revision,
    /// Keys in it.
    pub keys: usize,
    /// Its size.
    pub bytes: u64,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Name another one.
    #[error("{} is there already: name another file, or remove it first", .0.display())]
    Exists(PathBuf),
    /// The disk that it was to be on.
    #[error("cannot write the backup {}: {detail}", path.display())]
    Disk {
        /// Which file.
        path: PathBuf,
        /// What went wrong.
        detail: String,
    },
    /// What was written cannot be read back.
    #[error("the backup was written and cannot be read back: is the disk worn out? {0}")]
    Unreadable(OpenError),
    /// Ask again later.
    #[error(
        "another copy of the datastore is being made, perhaps one of those that the server makes by itself: try again later"
    )]
    Busy,
    /// The log's side.
    #[error("the backup was cut short: {0}")]
    Log(StoreError),
}

/// How far a copy is.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicUsize,
    of: AtomicUsize,
}

impl Progress {
    /// Keys written, and keys in all.
    pub fn now(&self) -> (usize, usize) {
        (self.done.load(Ordering::Relaxed), self.of.load(Ordering::Relaxed))
    }

    pub(super) fn expect(&self, keys: usize) {
        self.of.store(keys, Ordering::Relaxed);
    }
}

/// A row on its way.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Key, revision, value.
    pub event: Event,
    /// Seconds.
    pub ttl: Option<i64>,
}

/// What comes from the log.
#[derive(Debug)]
pub enum Piece {
    /// The next rows.
    Rows(Vec<Copied>),
    /// That was all: the state at this revision.
    End(Revision),
    /// There will be no more.
    Cut(StoreError),
}

/// Writes what comes to a new file. Returns when it is on the disk, verified, under its name.
pub fn write(path: &Path, pieces: &Receiver<Piece>, progress: &Progress) -> Result<Backup, BackupError> {
    let failed = |detail: String| BackupError::Disk {
        path: path.to_owned(),
        detail,
    };
    if fs::symlink_metadata(path).is_ok() {
        return Err(BackupError::Exists(path.to_owned()));
    }
    let beside = place::beside(path, "new");
    let written = fill(&beside, pieces, progress, &failed).and_then(|()| {
        let found = verify(&beside).map_err(BackupError::Unreadable)?;
        let on_disk = || {
            File::open(&beside)?.sync_all()?;
            fs::rename(&beside, path)?;
            place::sync_folder(path)
        };
        on_disk().map_err(|error: std::io::Error| failed(error.to_string()))?;
        Ok(Backup {
            path: path.to_owned(),
            ..found
        })
    });
    if written.is_err() {
        let _ = place::remove(&beside);
    }
    written
}

fn fill(
    beside: &Path,
    pieces: &Receiver<Piece>,
    progress: &Progress,
    failed: &impl Fn(String) -> BackupError,
) -> Result<(), BackupError> {
    place::fresh(beside).map_err(|error| failed(error.to_string()))?;
    let mut table = Table::create(beside).map_err(|error| failed(error.to_string()))?;
    let refused = |error: StoreError| failed(error.to_string());
    loop {
        match pieces.recv() {
            Ok(Piece::Rows(rows)) => {
                let insert = |transaction: &rusqlite::Transaction<'_>| {
                    for row in &rows {
                        let line = NewLine {
                            event: &row.event,
                            previous: Revision::ZERO,
                            ttl: row.ttl,
                        };
                        table::insert(transaction, &line)?;
                    }
                    Ok(())
                };
                table.commit(insert).map_err(refused)?;
                progress.done.fetch_add(rows.len(), Ordering::Relaxed);
            }
            Ok(Piece::End(at)) => return seal(&mut table, at).map_err(refused),
            Ok(Piece::Cut(why)) => return Err(BackupError::Log(why)),
            Err(_) => return Err(BackupError::Log(super::closed())),
        }
    }
}

/// Marks the whole file as the state at `at`, with nothing before it.
pub fn seal(table: &mut Table, at: Revision) -> Result<(), StoreError> {
    table.commit(|transaction| table::set_mark(transaction, Mark::Compacted, at))?;
    table.begin_after(at)
}

/// Reads a copy from one end to the other: pages, rows, index, marks.
///
/// # Errors
/// What is wrong with it.
pub fn verify(path: &Path) -> Result<Backup, OpenError> {
    let table = Table::look(path)?;
    let (mut keys, mut newest) = (0, Revision::ZERO);
    let lines = table.lines(|line| {
        keys += usize::from(!line.deleted);
        newest = line.revision;
    });
    lines.map_err(|error| open_error(path, &error))?;
    let reserved = table.mark(Mark::Reserved).map_err(|error| open_error(path, &error))?;
    let bytes = fs::metadata(path).map_err(|source| OpenError::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(Backup {
        path: path.to_owned(),
        revision: newest.max(reserved),
        keys,
        bytes: bytes.len(),
    })
}

/// Snapshots that the log made of itself.
#[derive(Debug)]
pub struct Found {
    /// Where.
    pub path: PathBuf,
    /// By its name.
    pub revision: Revision,
    /// Its size.
    pub bytes: u64,
    /// When it was made, by the clock of then.
    pub made: Option<std::time::SystemTime>,
}

/// Where the log puts snapshots of itself.
pub fn folder(log: &Path) -> PathBuf {
    log.with_file_name("snapshots")
}

/// The name of the one of this revision.
pub fn named(log: &Path, revision: Revision) -> PathBuf {
    folder(log).join(format!("{revision}.db"))
}

/// All there are, the newest first; nothing has been read of them.
pub fn list(log: &Path) -> Vec<Found> {
    let entries = fs::read_dir(folder(log)).into_iter().flatten();
    let look = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        let revision = Revision::parse(path.file_name()?.to_str()?.strip_suffix(".db")?)?;
        let about = fs::metadata(&path).ok()?;
        Some(Found {
            path,
            revision,
            bytes: about.len(),
            made: about.modified().ok(),
        })
    };
    let mut found: Vec<Found> = entries.filter_map(look).collect();
    found.sort_by_key(|one| std::cmp::Reverse(one.revision));
    found
}
