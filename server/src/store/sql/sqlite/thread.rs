//! The thread that owns the file: plans a batch against the heads, commits it, then tells writers and watchers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use agent::units::Revision;
use tracing::{error, warn};

use super::super::super::heads::{Head, Heads, Planned, ttl_seconds};
use super::super::super::tails::Tails;
use super::super::super::{Change, Durability, Entry, Event, Expect, Range, Snapshot, StoreError, Tail, Write};
use super::table::{self, Mark, NewLine, Table};
use super::{OpenError, Queued, Reply, Request};

/// Requests taken together: more would let the first wait for long.
const BATCH: usize = 512;
/// Revisions that volatile writes may use between two writes of the mark.
const BLOCK: u64 = 1000;
/// Volatile state reaches the disk this often, and sooner when it grows. A box's flash is worth more than a heartbeat.
const FLUSH_EVERY: Duration = Duration::from_secs(30 * 60);
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
}

impl Log {
    /// Opens the file and loads the heads.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let mut table = Table::open(path)?;
        let error = |error: rusqlite::Error| OpenError::Sql {
            path: path.to_owned(),
            detail: error.to_string(),
        };
        let (mut lines, mut rows, mut newest) = (BTreeMap::new(), 0_usize, Revision::ZERO);
        table
            .lines(|line| {
                rows += 1;
                newest = line.revision;
                if line.deleted {
                    lines.remove(&line.key);
                } else {
                    lines.insert(Arc::clone(&line.key), line);
                }
            })
            .map_err(error)?;
        let compacted = table.mark(Mark::Compacted).map_err(error)?;
        let reserved = table.mark(Mark::Reserved).map_err(error)?;
        let revision = newest.max(reserved);
        if table.mark(Mark::Closed).map_err(error)? < reserved {
            warn!(%revision, "the last stop was not clean: watches begin anew");
            // Somebody may have seen volatile writes that are lost: no watch may go on from before as if nothing were.
            let forget = |transaction: &rusqlite::Transaction<'_>| {
                table::set_mark(transaction, Mark::Oldest, revision)?;
                table::set_mark(transaction, Mark::Closed, revision)
            };
            table.commit(forget).map_err(|problem| OpenError::Sql {
                path: path.to_owned(),
                detail: problem.to_string(),
            })?;
        }
        let oldest = compacted.max(table.mark(Mark::Oldest).map_err(error)?);
        let surplus = rows.saturating_sub(lines.len());
        let (mut heads, now) = (Heads::default(), Instant::now());
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
            pending: BTreeMap::new(),
            pending_size: 0,
            flush_at: None,
            surplus,
            target: compacted,
            hold: None,
        })
    }

    /// Decides on the writes of a batch, commits those that may go ahead, and answers all. Returns the commit's error.
    fn write(&mut self, writes: Vec<(Write, Option<Reply<Revision>>)>) -> Result<(), StoreError> {
        let now = Instant::now();
        let mut going: Vec<Going> = Vec::with_capacity(writes.len());
        let mut newest = self.revision;
        for (write, reply) in writes {
            match self.heads.plan(&write, newest.next(), now) {
                Ok(planned) => {
                    newest = newest.next();
                    let leaves_row = write.change == Change::Delete && planned.previous != Revision::ZERO;
                    going.push(Going {
                        durable: write.durability == Durability::Durable || leaves_row,
                        ttl: ttl_seconds(write.ttl),
                        planned,
                        reply,
                    });
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
        self.table.commit(|transaction| {
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
        Ok(())
    }

    /// Keeps account of a write that has happened.
    fn settle(&mut self, planned: Planned, ttl: Option<i64>, durable: bool, now: Instant) {
        let Planned { event, previous, .. } = planned;
        if let Some(old) = self.pending.remove(&event.key) {
            self.pending_size = self.pending_size.saturating_sub(size(&old.event));
        }
        if durable {
            self.surplus += usize::from(previous != Revision::ZERO) + usize::from(event.value.is_none());
            return;
        }
        self.pending_size += size(&event);
        self.pending.insert(Arc::clone(&event.key), Pending { event, ttl });
        self.flush_at.get_or_insert(now + FLUSH_EVERY);
    }

    /// Puts what is volatile on disk: of each key only the last state. A key that came and went meanwhile gets its
    /// tombstone: somebody may have seen it.
    fn flush(&mut self) -> Result<(), StoreError> {
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
            let superseded = self.heads.stored(&key, one.event.revision);
            let surplus = superseded != Revision::ZERO || one.event.value.is_none();
            self.surplus += usize::from(surplus && one.event.revision > self.compacted);
        }
        self.pending_size = 0;
        self.flush_at = None;
        Ok(())
    }

    fn reachable(&self, asked: Revision) -> Result<(), StoreError> {
        let (oldest, current) = (self.oldest, self.revision);
        if asked < oldest {
            return Err(StoreError::Compacted { asked, oldest });
        }
        if asked > current {
            return Err(StoreError::Future { asked, current });
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let Some(head) = self.heads.get(key) else {
            return Ok(None);
        };
        let value = match self.pending.get(key) {
            Some(one) => one.event.value.clone(),
            None => self.table.value(head.revision)?,
        };
        Ok(value.map(|value| Entry {
            key: Arc::clone(&head.key),
            revision: head.revision,
            created: head.created,
            value,
        }))
    }

    fn list(&self, range: &Range, at: Option<Revision>) -> Result<Snapshot, StoreError> {
        let revision = at.unwrap_or(self.revision);
        self.reachable(revision)?;
        let mut state = BTreeMap::new();
        for entry in self.table.state(&range.prefix, revision)? {
            let key = self
                .heads
                .get(&entry.key)
                .map_or(entry.key, |head| Arc::clone(&head.key));
            state.insert(Arc::clone(&key), Entry { key, ..entry });
        }
        let volatile = self.pending.range(Arc::from(range.prefix.as_str())..);
        for (key, one) in volatile.take_while(|(key, _)| key.starts_with(&range.prefix)) {
            let event = &one.event;
            match &event.value {
                _ if event.revision > revision => {}
                Some(value) => {
                    let entry = Entry {
                        key: Arc::clone(key),
                        revision: event.revision,
                        created: event.created,
                        value: value.clone(),
                    };
                    state.insert(Arc::clone(key), entry);
                }
                None => {
                    state.remove(key);
                }
            }
        }
        let limit = range.limit.unwrap_or(usize::MAX);
        let wanted = |entry: &Entry| range.after.as_deref().is_none_or(|after| &*entry.key > after);
        let mut entries: Vec<Entry> = state.into_values().filter(wanted).collect();
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok(Snapshot {
            revision,
            entries,
            more,
        })
    }

    fn watch(&mut self, from: Revision) -> Result<Tail, StoreError> {
        self.reachable(from)?;
        let mut backlog = self.table.events(from)?;
        let volatile = self.pending.values().map(|one| &one.event);
        backlog.extend(volatile.filter(|event| event.revision > from).cloned());
        backlog.sort_by_key(|event| event.revision);
        Ok(self.tails.add(backlog))
    }

    fn compact(&mut self, oldest: Revision) -> Result<(), StoreError> {
        if oldest > self.revision {
            let current = self.revision;
            return Err(StoreError::Future { asked: oldest, current });
        }
        self.target = self.target.max(oldest);
        while self.compacted < self.target {
            self.compact_step()?;
        }
        Ok(())
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
        Ok(())
    }

    /// What is due by itself: expiry, flush, a step of compaction. A failure is tried again later.
    fn keep_house(&mut self) {
        let now = Instant::now();
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
        if self.compacted < self.target {
            self.compact_step()?;
        }
        Ok(())
    }

    /// How long there is nothing to do.
    fn idle(&self) -> Duration {
        let now = Instant::now();
        let compacts = (self.compacted < self.target).then_some(now);
        let due = [self.heads.next_expiry(), self.flush_at, compacts];
        match (due.into_iter().flatten().min(), self.hold) {
            (Some(at), hold) => at.max(hold.unwrap_or(at)).saturating_duration_since(now),
            (None, _) => FLUSH_EVERY,
        }
    }

    /// Flushes, gives back the revisions that were reserved and not used, and notes that nothing is lost.
    fn close(&mut self) -> Result<(), StoreError> {
        self.flush()?;
        let (revision, reserved) = (self.revision, self.reserved.min(self.revision));
        self.table.commit(|transaction| {
            table::set_mark(transaction, Mark::Reserved, reserved)?;
            table::set_mark(transaction, Mark::Closed, revision)
        })?;
        self.reserved = reserved;
        Ok(())
    }
}

/// Serves requests until the handle is gone or one of them closes the log.
pub fn run(mut log: Log, requests: &Receiver<Queued>) {
    loop {
        let first = match requests.recv_timeout(log.idle()) {
            Ok(queued) => Some(queued),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let mut writes = Vec::new();
        let mut places = Vec::new();
        for queued in first.into_iter().chain(requests.try_iter().take(BATCH)) {
            places.push(queued.place);
            match queued.request {
                Request::Write(write, reply) => writes.push((write, Some(reply))),
                other => {
                    // Each writer has been told.
                    let _ = log.write(std::mem::take(&mut writes));
                    if let Request::Close(reply) = other {
                        let closed = log.close();
                        // Whoever is told that it is closed may open the file anew.
                        drop(log);
                        answer(Some(reply), closed);
                        return;
                    }
                    serve(&mut log, other);
                }
            }
        }
        let _ = log.write(writes);
        drop(places);
        log.keep_house();
    }
    if let Err(problem) = log.close() {
        error!(
            error = &problem as &dyn std::error::Error,
            "volatile state could not be written"
        );
    }
}

fn serve(log: &mut Log, request: Request) {
    match request {
        Request::Get(key, reply) => answer(Some(reply), log.get(&key)),
        Request::List(range, at, reply) => answer(Some(reply), log.list(&range, at)),
        Request::Watch(from, reply) => answer(Some(reply), log.watch(from)),
        Request::Compact(oldest, reply) => answer(Some(reply), log.compact(oldest)),
        Request::Revision(reply) => answer(Some(reply), Ok(log.revision)),
        Request::Write(write, reply) => drop(log.write(vec![(write, Some(reply))])),
        Request::Close(reply) => answer(Some(reply), log.close()),
    }
}

/// Nobody waits any more if that fails.
fn answer<T>(reply: Option<Reply<T>>, result: Result<T, StoreError>) {
    let _ = reply.map(|reply| reply.send(result));
}

fn expiry(key: Arc<str>, at: Revision) -> Write {
    Write {
        key,
        expect: Expect::At(at),
        change: Change::Delete,
        ttl: None,
        durability: Durability::Volatile,
    }
}

fn size(event: &Event) -> usize {
    event.key.len() + event.value.as_ref().map_or(0, bytes::Bytes::len)
}
