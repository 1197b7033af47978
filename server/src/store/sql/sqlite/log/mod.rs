//! The log itself: plans a batch against the heads, commits it, then tells writers and watchers.
//!
//! `open.rs` is its beginning, `read.rs` what it says, `house.rs` what it does by itself, `copy.rs` its copies.

mod copy;
mod house;
mod open;
mod read;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;
use tracing::warn;

use super::Reply;
use super::copying::Copying;
use super::growth::Growth;
use super::table::{self, Mark, NewLine, Table};
use crate::store::heads::{Heads, Planned, ttl_seconds};
use crate::store::tails::Tails;
use crate::store::{Change, Event, StoreError, Write};
pub use open::JUMP;

/// Revisions that volatile writes may use between two writes of the mark; more than one commit has.
const BLOCK: u64 = 1000;
/// Volatile state reaches the disk this often. A box's flash is worth more than a heartbeat.
const FLUSH_EVERY: Duration = Duration::from_secs(30 * 60);
/// What a row takes beside its key and value, roughly.
const ROW: usize = 100;
/// For a copy under way to clear away what it has begun, when the log closes.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// A volatile write that is not on disk.
#[derive(Debug)]
struct Pending {
    event: Event,
    ttl: Option<i64>,
}

/// A write that goes ahead.
struct Going {
    planned: Planned,
    ttl: Option<i64>,
    durable: bool,
    reply: Option<Reply<Revision>>,
}

/// The log: the file and what is known of it in memory.
pub struct Log {
    table: Table,
    heads: Heads,
    tails: Tails,
    revision: Revision,
    /// Nothing before it can be listed or watched.
    oldest: Revision,
    /// Up to here superseded rows are gone.
    compacted: Revision,
    reserved: Revision,
    /// From here everything begins anew, and the disk had no room yet to note it: the first commit does.
    begins: Option<Revision>,
    /// By key: what is not on disk yet.
    pending: BTreeMap<Arc<str>, Pending>,
    pending_size: usize,
    flush_at: Option<Instant>,
    /// Rows that are superseded or tombstones.
    surplus: usize,
    /// Where compaction is going.
    target: Revision,
    /// The disk would not: expiry, flush and compaction wait until then.
    hold: Option<Instant>,
    path: PathBuf,
    growth: Growth,
    /// Pages may lie free.
    tidying: bool,
    copying: Option<Copying>,
    /// The newest durable write, and the newest one that a snapshot has.
    durable: Revision,
    snapshotted: Revision,
    snapshot_at: Instant,
}

impl Log {
    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// No revision above it has been handed out, nor will be without being reserved.
    pub fn handed_out(&self) -> Revision {
        self.revision.max(self.reserved)
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Decides on the writes of a batch, commits those that may go ahead, and answers all. Returns the commit's error.
    pub fn write(&mut self, writes: Vec<(Write, Option<Reply<Revision>>)>) -> Result<(), StoreError> {
        let now = Instant::now();
        let mut going: Vec<Going> = Vec::with_capacity(writes.len());
        let mut newest = self.revision;
        for (write, reply) in writes {
            match self.heads.plan(&write, newest, now) {
                Ok(plan) => {
                    newest = plan.newest();
                    let leaves_row = write.change == Change::Delete && plan.first.previous != Revision::ZERO;
                    going.push(Going {
                        durable: write.is_durable() || leaves_row,
                        ttl: ttl_seconds(write.ttl),
                        planned: plan.first,
                        reply,
                    });
                    going.extend(plan.second.map(|planned| Going {
                        durable: true,
                        ttl: None,
                        planned,
                        reply: None,
                    }));
                }
                Err(error) => answer(reply, Err(error)),
            }
        }
        if going.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.commit(&going, newest) {
            let mut planned = Vec::with_capacity(going.len());
            for one in going {
                answer(one.reply, Err(error.clone()));
                planned.push(one.planned);
            }
            self.heads.undo(planned);
            return Err(error);
        }
        self.revision = newest;
        self.tails
            .send(going.iter().map(|one| one.planned.event.clone()).collect());
        for one in going {
            let revision = one.planned.event.revision;
            self.settle(one.planned, one.ttl, one.durable, now);
            answer(one.reply, Ok(revision));
        }
        Ok(())
    }

    /// Puts the durable ones on disk, and the mark when volatile ones need more revisions than are reserved.
    fn commit(&mut self, going: &[Going], newest: Revision) -> Result<(), StoreError> {
        let volatile = going.iter().any(|one| !one.durable);
        let reserve = (volatile && newest > self.reserved).then(|| Revision::new(newest.get().saturating_add(BLOCK)));
        if reserve.is_none() && going.iter().all(|one| !one.durable) {
            return Ok(());
        }
        let begins = self.begins;
        self.table.commit(|transaction| {
            begins.map_or(Ok(()), |at| table::begin_after(transaction, at))?;
            for one in going.iter().filter(|one| one.durable) {
                let line = NewLine {
                    event: &one.planned.event,
                    previous: one.planned.previous,
                    ttl: one.ttl,
                };
                table::insert(transaction, &line)?;
            }
            reserve.map_or(Ok(()), |to| table::set_mark(transaction, Mark::Reserved, to))
        })?;
        self.reserved = reserve.unwrap_or(self.reserved);
        self.has_begun();
        Ok(())
    }

    /// After a commit: what a full disk had no room for is noted with it.
    fn has_begun(&mut self) {
        if self.begins.take().is_some()
            && let Err(problem) = self.table.keep_log(false)
        {
            warn!(error = %problem, "SQLite's own log stays beside the datastore at the next stop");
        }
    }

    /// Keeps account of a write that has happened.
    fn settle(&mut self, planned: Planned, ttl: Option<i64>, durable: bool, now: Instant) {
        let Planned { event, previous, .. } = planned;
        if let Some(old) = self.pending.remove(&event.key) {
            self.pending_size = self.pending_size.saturating_sub(size(&old.event));
        }
        if durable {
            self.durable = event.revision;
            self.growth.add(event.revision, size(&event) + ROW);
            self.surplus += usize::from(previous != Revision::ZERO) + usize::from(event.value.is_none());
            return;
        }
        self.pending_size += size(&event);
        self.pending.insert(Arc::clone(&event.key), Pending { event, ttl });
        self.flush_at.get_or_insert(now + FLUSH_EVERY);
    }

    /// Flushes, gives back the revisions that were reserved and not used, and notes that nothing is lost.
    pub fn close(&mut self) -> Result<(), StoreError> {
        let copying = self.copying.take();
        self.flush()?;
        let (revision, reserved, begins) = (self.revision, self.reserved.min(self.revision), self.begins);
        self.table.commit(|transaction| {
            begins.map_or(Ok(()), |at| table::begin_after(transaction, at))?;
            table::set_mark(transaction, Mark::Reserved, reserved)?;
            table::set_mark(transaction, Mark::Closed, revision)
        })?;
        self.reserved = reserved;
        self.has_begun();
        // Last: the disk that it is written to may be one that stands still.
        if let Some(copying) = copying {
            copying.cut(LAST_WAIT);
        }
        Ok(())
    }
}

/// Nobody waits any more if that fails.
pub fn answer<T>(reply: Option<Reply<T>>, result: Result<T, StoreError>) {
    let _ = reply.map(|reply| reply.send(result));
}

fn size(event: &Event) -> usize {
    event.key.len() + event.value.as_ref().map_or(0, bytes::Bytes::len)
}
