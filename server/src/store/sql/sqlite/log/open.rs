//! From the file to the log: checks what the file says, and goes on where it ends.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use agent::units::Revision;
use tracing::warn;

use super::super::fault::open_error;
use super::super::growth::Growth;
use super::super::table::{Mark, Table};
use super::super::wal::Rest;
use super::super::{OpenError, floor, schedule, snapshot};
use super::{BLOCK, Log, ROW};
use crate::store::StoreError;
use crate::store::heads::{Head, Heads};
use crate::store::tails::Tails;

/// How far revisions jump when nobody knows which ones were handed out: more than the fastest server does in days, and
/// little of 2^53.
pub const JUMP: u64 = 10_000_000_000;

impl Log {
    /// Opens the file, checks it whole and loads the heads. `rest`: what [`wal::examine`](super::wal::examine) found beside
    /// it; that is gone afterwards.
    pub fn open(path: &Path, rest: Rest) -> Result<Self, OpenError> {
        let mut table = Table::open(path)?;
        let error = |error: rusqlite::Error| open_error(path, &error);
        // Whatever fails before the jump is made, the next start has to find what this one found.
        table.keep_log(rest != Rest::Nothing).map_err(error)?;
        let (mut lines, mut rows, mut newest) = (BTreeMap::new(), 0_usize, Revision::ZERO);
        let (mut growth, compacted) = (Growth::default(), table.mark(Mark::Compacted).map_err(error)?);
        table
            .lines(|line| {
                rows += 1;
                newest = line.revision;
                if line.revision > compacted {
                    growth.add(line.revision, line.size + ROW);
                }
                if line.deleted {
                    lines.remove(&line.key);
                } else {
                    lines.insert(Arc::clone(&line.key), line);
                }
            })
            .map_err(error)?;
        let mut reserved = table.mark(Mark::Reserved).map_err(error)?;
        let mut revision = newest.max(reserved);
        let disk = |source| OpenError::File {
            path: path.to_owned(),
            source,
        };
        let floor = floor::read(path);
        let jump = match rest {
            Rest::Nothing => 0,
            // That commit was never acknowledged, or it is lost: either way its revisions are not handed out again.
            Rest::Begun => BLOCK,
            // Writes up to who knows where have been acknowledged.
            Rest::Lost => JUMP,
        };
        let after = |revision: Revision, jump| Revision::new(revision.get().saturating_add(jump));
        let mut goes_on = after(revision, jump);
        let sql = |problem: StoreError| OpenError::Sql {
            path: path.to_owned(),
            detail: problem.to_string(),
        };
        // What a full disk has no room for. Reads are served all the same; until it is noted, the next start finds what this
        // one found.
        let mut begins = None;
        // This is a log from before that jump, and what followed the jump may have been handed out.
        if floor > revision {
            goes_on = goes_on.max(after(floor, JUMP));
        }
        if goes_on > revision {
            // First: what is written into the log then may cover what could not be read of it, and be cut off in its turn.
            match (floor::raise(path, goes_on), rest) {
                // On a full disk the log itself has room for its mark over what was begun there.
                (Err(problem), Rest::Begun) => warn!(error = %problem, "cannot note how far revisions have jumped"),
                (raised, _) => raised.map_err(disk)?,
            }
            (revision, reserved) = (goes_on, goes_on);
            match (table.begin_after(revision), rest) {
                (Err(StoreError::Full), Rest::Begun) => begins = Some(revision),
                (made, _) => {
                    made.map_err(sql)?;
                    table.keep_log(false).map_err(error)?;
                    if let Err(problem) = table.empty_log() {
                        warn!(error = %problem, "what cannot be read of the datastore's log is found again at the next start");
                    }
                }
            }
        }
        if begins.is_none() && table.mark(Mark::Closed).map_err(error)? < reserved {
            warn!(%revision, "the last stop was not clean: watches begin anew");
            // Somebody may have seen volatile writes that are lost: no watch may go on from before as if nothing were.
            match table.begin_after(revision) {
                Err(StoreError::Full) => begins = Some(revision),
                made => made.map_err(sql)?,
            }
            reserved = revision;
        }
        if revision.get().saturating_sub(floor.get()) >= JUMP
            && let Err(problem) = floor::raise(path, revision)
        {
            warn!(error = %problem, "cannot note how far revisions have jumped; trying again at the next start");
        }
        let oldest = compacted
            .max(table.mark(Mark::Oldest).map_err(error)?)
            .max(begins.unwrap_or(Revision::ZERO));
        let surplus = rows.saturating_sub(lines.len());
        let (mut heads, now) = (Heads::default(), Instant::now());
        let snapshots = snapshot::list(path);
        let age = snapshots.first().map(|found| {
            let age = found.made.and_then(|made| SystemTime::now().duration_since(made).ok());
            (age, found.bytes)
        });
        let snapshotted = snapshots.first().map_or(Revision::ZERO, |found| found.revision);
        // They are of another history than the file, which was restored or repaired: none of them is a way back to it.
        let strange = revision.get().saturating_sub(snapshotted.get()) >= JUMP;
        for (key, line) in lines {
            // The clock may lie, and nobody knows how long we were away: what expires gets its full time again.
            let ttl = line
                .ttl
                .and_then(|ttl| u64::try_from(ttl).ok())
                .map(Duration::from_secs);
            heads.load(Head {
                key,
                revision: line.revision,
                created: line.created,
                stored: line.revision,
                expires: ttl.and_then(|ttl| now.checked_add(ttl)),
            });
        }
        Ok(Self {
            table,
            heads,
            tails: Tails::default(),
            revision,
            oldest,
            compacted,
            reserved,
            begins,
            pending: BTreeMap::new(),
            pending_size: 0,
            flush_at: None,
            surplus,
            target: compacted,
            hold: None,
            path: path.to_owned(),
            growth,
            tidying: true,
            copying: None,
            durable: if strange { revision } else { newest },
            snapshotted,
            snapshot_at: now + schedule::first(age.filter(|_| !strange)),
        })
    }
}
