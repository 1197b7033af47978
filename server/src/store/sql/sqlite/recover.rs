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

use super::OpenError;
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
        return repaired(path, damage);
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
        Err(OpenError::Damaged { path: _, detail }) => repaired(path, detail),
        Err(other) => Err(other),
    }
}

fn repaired(path: &Path, damage: String) -> Result<(Log, Option<Repair>), OpenError> {
    error!(file = %path.display(), damage, "the datastore is damaged, looking for what can be put in its place");
    let next = place::beside(path, "next");
    let Some(now) = build(path, &next) else {
        let _ = place::remove(&next);
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            detail: damage,
        });
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

/// Makes the file that is to take the damaged one's place.
fn build(path: &Path, next: &Path) -> Option<Now> {
    let (whole, seen) = from_itself(path, next);
    if whole {
        return Some(Now::Whole);
    }
    for found in snapshot::list(path) {
        let made = snapshot::verify(&found.path).map_err(|error| error.to_string());
        let made = made.and_then(|made| {
            let revision = made.revision;
            let newest = Revision::new(revision.max(seen.unwrap_or(revision)).get().saturating_add(JUMP));
            let copy = || {
                place::fresh(next)?;
                fs::copy(&found.path, next)
            };
            copy().map_err(|error: io::Error| error.to_string())?;
            let mut table = Table::open(next).map_err(|error| error.to_string())?;
            table.begin_after(newest).map_err(|error| error.to_string())?;
            Ok(revision)
        });
        match made {
            Ok(revision) => return Some(Now::UpTo { revision, seen }),
            Err(why) => warn!(snapshot = %found.path.display(), error = why, "cannot use a snapshot of the datastore"),
        }
    }
    None
}

/// Reads the damaged file back. Returns whether that is all of it, and the newest write that was seen.
fn from_itself(path: &Path, next: &Path) -> (bool, Option<Revision>) {
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
    let whole = match copied() {
        Ok(rest) => match read_back(&copy, next, &mut seen) {
            Ok(true) => rest != Rest::Lost,
            Ok(false) => false,
            Err(problem) => {
                warn!(error = %problem, "not every row of the damaged datastore can be read");
                false
            }
        },
        Err(problem) => {
            warn!(error = %problem, "the damaged datastore cannot be copied to be read");
            false
        }
    };
    for name in ["", "-wal", "-shm", "-journal"] {
        let _ = place::remove(&place::with(&copy, name));
    }
    (whole, seen)
}

fn read_back(copy: &Path, next: &Path, seen: &mut Option<Revision>) -> rusqlite::Result<bool> {
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
    let refused = |_| rusqlite::Error::InvalidQuery;
    place::fresh(next).map_err(refused)?;
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
    into.commit(copy_all).map_err(|_| rusqlite::Error::InvalidQuery)?;
    let goes_on = Revision::new(newest.get().saturating_add(JUMP));
    snapshot::seal(&mut into, newest).map_err(|_| rusqlite::Error::InvalidQuery)?;
    into.begin_after(goes_on).map_err(|_| rusqlite::Error::InvalidQuery)?;
    Ok(!live.is_empty())
}
