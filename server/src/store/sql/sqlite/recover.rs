//! Opens the log whatever has become of its file.
//!
//! A file that is damaged is kept aside, and another takes its place: what the file itself says, if every row of it can be
//! read back and proves to be what was written, else the newest good snapshot. Nothing is guessed: rows of a file that is
//! not whole are not mixed with a snapshot's, for a deletion that cannot be read would bring back what was deleted.
//! Revisions then jump past everything that was handed out, so no history is continued that is not the old one's.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::units::Revision;
use tracing::{error, warn};

use super::super::super::StoreError;
use super::OpenError;
use super::floor;
use super::log::{JUMP, Log};
use super::place::{self, Aside};
use super::restore;
use super::snapshot;
use super::sum::Fields;
use super::table::{self, Mark, Table};
use super::wal::{self, Rest};

/// What is said of a file whose log goes on behind the place where it can be read.
pub const LOST: &str = "what was written last, in the file with -wal, cannot be read";

/// What was damaged, and what was done about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Repair {
    /// What was found, in SQLite's words or ours.
    pub damage: String,
    /// What is there now.
    pub now: Now,
    /// Where the damaged file is kept.
    pub kept: Option<PathBuf>,
}

/// What is there after a repair.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Now {
    /// All that the file held.
    Whole,
    /// Everything up to a revision; what came after it is lost.
    UpTo {
        /// The newest write that is there.
        revision: Revision,
        /// The newest write that was seen in the damaged file, if any could be.
        seen: Option<Revision>,
    },
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the datastore was damaged ({}). ", self.damage)?;
        match &self.now {
            Now::Whole => write!(f, "Everything in it could be read back, nothing is lost.")?,
            Now::UpTo { revision, seen } => {
                write!(f, "The state at revision {revision} is in its place. LOST: ")?;
                match seen.filter(|seen| seen > revision) {
                    Some(seen) => write!(f, "revisions {} to {seen}, and perhaps later ones.", revision.next())?,
                    None => write!(f, "whatever was written after it.")?,
                }
            }
        }
        match &self.kept {
            Some(kept) => write!(
                f,
                " The damaged file is kept in {}. Is the card or disk worn out?",
                kept.display()
            ),
            None => write!(f, " Is the card or disk worn out?"),
        }
    }
}

/// Opens the log, and repairs it if need be. The caller has the lock.
pub fn open(path: &Path) -> Result<(Log, Option<Repair>), OpenError> {
    let disk = |source| OpenError::File {
        path: path.to_owned(),
        source,
    };
    place::finish(path).map_err(disk)?;
    if let Err(problem) = restore::clean(path) {
        warn!(error = %problem, "what a restore has left beside the datastore stays there");
    }
    let empty = fs::metadata(path).map_or(true, |about| about.len() == 0);
    if empty && !snapshot::list(path).is_empty() {
        let damage = "it is empty or gone, and snapshots of it are there".to_owned();
        return repaired(path, damage, Rest::Nothing);
    }
    let rest = wal::examine(&place::with(path, "-wal")).map_err(disk)?;
    let kept = match rest {
        Rest::Nothing | Rest::Begun => None,
        // SQLite writes over what it does not take from its own log.
        Rest::Lost => Some(place::copy_log_aside(path).map_err(disk)?),
    };
    match Log::open(path, rest) {
        Ok(log) => {
            let repair = (rest == Rest::Lost).then(|| Repair {
                damage: LOST.to_owned(),
                now: Now::UpTo {
                    revision: Revision::new(log.revision().get().saturating_sub(JUMP)),
                    seen: None,
                },
                kept,
            });
            if let Some(repair) = &repair {
                error!("{repair}");
            }
            Ok((log, repair))
        }
        Err(OpenError::Damaged { path: _, detail }) => repaired(path, detail, rest),
        Err(other) => Err(other),
    }
}

/// `rest`: what was found behind the end of SQLite's own log.
fn repaired(path: &Path, damage: String, rest: Rest) -> Result<(Log, Option<Repair>), OpenError> {
    error!(file = %path.display(), damage, "the datastore is damaged, looking for what can be put in its place");
    let next = place::beside(path, "next");
    let built = build(path, &next, rest);
    if !matches!(built, Ok(Some(_))) {
        let _ = place::remove(&next);
    }
    let now = match built {
        Ok(Some(now)) => now,
        Ok(None) => {
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                detail: damage,
            });
        }
        Err(NoRoom) => {
            let why =
                format!("it is damaged ({damage}), and the disk has no room to repair it: make room, and start again");
            return Err(OpenError::File {
                path: path.to_owned(),
                source: io::Error::new(io::ErrorKind::StorageFull, why),
            });
        }
    };
    let kept = place::replace(path, &next, Aside::Damaged).map_err(|unplaced| OpenError::File {
        path: path.to_owned(),
        source: unplaced.into(),
    })?;
    let log = Log::open(path, Rest::Nothing)?;
    let repair = Repair { damage, now, kept };
    error!("{repair}");
    Ok((log, Some(repair)))
}

/// There is no room for what is to be made. An older state may be smaller, and is no way out: with room nothing may be lost.
#[derive(Debug)]
struct NoRoom;

/// Why a file cannot be used.
enum Useless {
    NoRoom,
    Because(String),
}

impl From<io::Error> for Useless {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoRoom,
            _ => Self::Because(error.to_string()),
        }
    }
}

impl From<rusqlite::Error> for Useless {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::NoRoom,
            _ => Self::Because(error.to_string()),
        }
    }
}

impl From<StoreError> for Useless {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::NoRoom,
            other => Self::Because(other.to_string()),
        }
    }
}

impl From<OpenError> for Useless {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::File { source, .. } => source.into(),
            other => Self::Because(other.to_string()),
        }
    }
}

/// Makes the file that is to take the damaged one's place.
fn build(path: &Path, next: &Path, rest: Rest) -> Result<Option<Now>, NoRoom> {
    let (whole, seen) = from_itself(path, next)?;
    if whole && rest != Rest::Lost {
        return Ok(Some(Now::Whole));
    }
    let snapshots = snapshot::list(path);
    // The newest one says by its name what was handed out, also if it cannot be used.
    let named = snapshots.first().map(|found| found.revision);
    let floor = floor::read(path);
    for found in snapshots {
        let used = || {
            let revision = snapshot::verify(&found.path)?.revision;
            let newest = [named, seen]
                .into_iter()
                .flatten()
                .fold(revision.max(floor), Revision::max);
            place::fresh(next)?;
            fs::copy(&found.path, next)?;
            let mut table = Table::open(next)?;
            table.begin_after(Revision::new(newest.get().saturating_add(JUMP)))?;
            Ok(revision)
        };
        match used() {
            Ok(revision) => return Ok(Some(Now::UpTo { revision, seen })),
            Err(Useless::NoRoom) => return Err(NoRoom),
            Err(Useless::Because(why)) => {
                warn!(snapshot = %found.path.display(), error = why, "cannot use a snapshot of the datastore");
            }
        }
    }
    Ok(None)
}

/// Reads the damaged file back. Returns whether that is all of it, and the newest write that was seen.
fn from_itself(path: &Path, next: &Path) -> Result<(bool, Option<Revision>), NoRoom> {
    // Reading it would change it.
    let copy = place::beside(path, "salvage");
    let copied = || {
        place::fresh(&copy)?;
        fs::copy(path, &copy)?;
        let log = place::with(path, "-wal");
        if log.try_exists()? {
            fs::copy(log, place::with(&copy, "-wal"))?;
        }
        wal::examine(&place::with(&copy, "-wal"))
    };
    let mut seen = None;
    let whole = match copied().map_err(Useless::from) {
        Ok(rest) => read_back(&copy, next, &mut seen).map(|whole| whole && rest != Rest::Lost),
        Err(useless) => Err(useless),
    };
    for name in ["", "-wal", "-shm", "-journal"] {
        let _ = place::remove(&place::with(&copy, name));
    }
    match whole {
        Ok(whole) => Ok((whole, seen)),
        Err(Useless::NoRoom) => Err(NoRoom),
        Err(Useless::Because(problem)) => {
            warn!(error = problem, "not every row of the damaged datastore can be read");
            Ok((false, seen))
        }
    }
}

fn read_back(copy: &Path, next: &Path, seen: &mut Option<Revision>) -> Result<bool, Useless> {
    let mut from = Table::salvage(copy)?;
    let mut live: BTreeMap<Arc<str>, Revision> = BTreeMap::new();
    from.rows(|row| {
        *seen = Some(row.revision).max(*seen);
        match row.value {
            Some(_) => live.insert(row.key.into(), row.revision),
            None => live.remove(row.key),
        };
        Ok(())
    })?;
    // That rows follow each other says nothing of those that are missing. The index knows them all; if that is what is
    // broken, the pages of the rows must be without fault.
    if from.lines(|_| ()).is_err() {
        from = from.forget_index(copy)?;
        let harmless =
            |line: &String| line.starts_with("Page ") && line.ends_with(": never used") || line.starts_with("Freelist");
        if !from.complaints()?.iter().all(harmless) {
            return Ok(false);
        }
    }
    let newest = (*seen)
        .unwrap_or(Revision::ZERO)
        .max(from.mark(Mark::Reserved).unwrap_or(Revision::ZERO));
    place::fresh(next)?;
    let mut into = Table::create(next)?;
    let copy_all = |transaction: &rusqlite::Transaction<'_>| {
        let copy_live = |row: Fields<'_>| match live.get(row.key) == Some(&row.revision) {
            true => table::insert_row(
                transaction,
                &Fields {
                    previous: Revision::ZERO,
                    ..row
                },
            ),
            false => Ok(()),
        };
        from.rows(copy_live).map(drop)
    };
    into.commit(copy_all)?;
    let goes_on = Revision::new(newest.get().saturating_add(JUMP));
    snapshot::seal(&mut into, newest)?;
    into.begin_after(goes_on)?;
    Ok(!live.is_empty())
}
