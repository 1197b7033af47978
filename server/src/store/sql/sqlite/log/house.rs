//! What the log does by itself: keys expire, what is volatile reaches the disk, what is old goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;
use tracing::error;

use super::super::copying::Copying;
use super::super::table::{self, NewLine};
use super::{FLUSH_EVERY, Log, ROW, size};
use crate::store::{Change, Durability, Expect, StoreError, Write, reachable};

/// And sooner, when it has grown to so much.
const FLUSH_SIZE: usize = 4 << 20;
/// After a write of the log's own failed, it writes nothing of its own for so long.
const AGAIN: Duration = Duration::from_secs(10);
/// Rows that could go, before some do.
const SURPLUS: usize = 10_000;
/// What compaction leaves for those who were away for a moment, in revisions.
const HISTORY: u64 = 1000;
/// Revisions compacted between two batches.
const STEP: u64 = 2000;
/// Keys expired between two batches.
const EXPIRE: usize = 256;

impl Log {
    /// What is due by itself: expiry, flush, a step of compaction. A failure is tried again later.
    pub fn keep_house(&mut self) {
        let now = Instant::now();
        self.copy_on(now);
        if self.snapshot_due().is_some_and(|at| at <= now) {
            self.snapshot(now);
        }
        if self.hold.is_some_and(|until| now < until) {
            return;
        }
        self.hold = None;
        if let Err(problem) = self.do_what_is_due(now) {
            let problem = &problem as &dyn std::error::Error;
            error!(error = problem, "the log could not be tidied up, trying again");
            self.hold = Some(now + AGAIN);
        }
    }

    fn do_what_is_due(&mut self, now: Instant) -> Result<(), StoreError> {
        let expired = self.heads.expired(now, EXPIRE);
        if !expired.is_empty() {
            self.write(expired.into_iter().map(|(key, at)| (expiry(key, at), None)).collect())?;
        }
        if self.flush_at.is_some_and(|at| at <= now) || self.pending_size > FLUSH_SIZE {
            self.flush()?;
        }
        if self.surplus > SURPLUS {
            let target = Revision::new(self.revision.get().saturating_sub(HISTORY));
            self.target = self.target.max(target);
        }
        self.target = self.target.max(self.growth.target().unwrap_or(self.target));
        if self.compacts() {
            self.compact_step()?;
        } else if self.tidying {
            self.tidying = self.table.tidy()?;
        }
        Ok(())
    }

    /// How long there is nothing to do.
    pub fn idle(&self) -> Duration {
        let now = Instant::now();
        let tidies = (self.compacts() || self.tidying).then_some(now);
        let due = [self.heads.next_expiry(), self.flush_at, tidies];
        let due = due.into_iter().flatten().min();
        let due = due.map(|at| at.max(self.hold.unwrap_or(at)));
        let copies = self.copying.as_ref().map(|copying| copying.next_step(now));
        let all = [due, copies, self.snapshot_due()];
        all.into_iter()
            .flatten()
            .min()
            .map_or(FLUSH_EVERY, |at| at.saturating_duration_since(now))
    }

    /// Puts what is volatile on disk: of each key only the last state. A key that came and went meanwhile gets its
    /// tombstone: somebody may have seen it.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        if !self.pending.is_empty() {
            let (pending, heads, compacted) = (&self.pending, &self.heads, self.compacted);
            self.table.commit(|transaction| {
                for (key, one) in pending {
                    let line = NewLine {
                        event: &one.event,
                        previous: heads.get(key).map_or(Revision::ZERO, |head| head.stored),
                        ttl: one.ttl,
                    };
                    let late = one.event.revision <= compacted;
                    if late {
                        // Compaction has been here and will not come again.
                        table::remove(transaction, line.previous)?;
                    }
                    if !late || one.event.value.is_some() {
                        table::insert(transaction, &line)?;
                    }
                }
                Ok(())
            })?;
        }
        for (key, one) in std::mem::take(&mut self.pending) {
            if one.event.revision > self.compacted {
                self.growth.add(one.event.revision, size(&one.event) + ROW);
            }
            let superseded = self.heads.stored(&key, one.event.revision);
            let surplus = superseded != Revision::ZERO || one.event.value.is_none();
            self.surplus += usize::from(surplus && one.event.revision > self.compacted);
        }
        self.pending_size = 0;
        self.flush_at = None;
        Ok(())
    }

    pub fn compact(&mut self, oldest: Revision) -> Result<(), StoreError> {
        reachable(oldest, Revision::ZERO, self.revision)?;
        self.target = self.target.max(oldest);
        self.oldest = self.oldest.max(oldest);
        // A copy needs the rows: they go when it is over.
        while self.compacts() {
            self.compact_step()?;
        }
        Ok(())
    }

    /// Whether compaction has something to do, and may.
    fn compacts(&self) -> bool {
        self.compacted < self.target && !self.copying.as_ref().is_some_and(Copying::needs_rows)
    }

    fn compact_step(&mut self) -> Result<(), StoreError> {
        let to = self
            .target
            .min(Revision::new(self.compacted.get().saturating_add(STEP)));
        let (from, mut gone) = (self.compacted, 0);
        self.table.commit(|transaction| {
            gone = table::compact(transaction, from, to)?;
            Ok(())
        })?;
        self.compacted = to;
        self.oldest = self.oldest.max(to);
        self.surplus = self.surplus.saturating_sub(gone);
        self.growth.compacted(to);
        self.tidying = true;
        Ok(())
    }
}

fn expiry(key: Arc<str>, at: Revision) -> Write {
    Write {
        durability: Durability::Volatile,
        ..Write::new(key, Expect::At(at), Change::Delete)
    }
}
