//! The log itself: plans a batch against the heads, commits it, then tells writers and watchers; keeps its own house.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use agent::units::Revision;
use tracing::{error, info, warn};

use super::super::super::heads::{Head, Heads, Planned, ttl_seconds};
use super::super::super::tails::Tails;
use super::super::super::{
    Change, Durability, Entry, Event, Expect, Range, Snapshot, StoreError, Tail, Write, reachable,
};
use super::copying::{Copying, UNDER_WAY};
use super::growth::Growth;
use super::snapshot::{self, Backup, BackupError, Copied};
use super::table::{self, Mark, NewLine, Table, open_error};
use super::wal::Rest;
use super::{OpenError, Reply, place, schedule};

/// Revisions that volatile writes may use between two writes of the mark; more than one commit has.
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
/// What a row takes beside its key and value, roughly.
const ROW: usize = 100;
/// How far revisions jump when nobody knows which ones were handed out: more than the fastest server does in days, and
/// little of 2^53.
pub const JUMP: u64 = 10_000_000_000;

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
    /// Opens the file, checks it whole and loads the heads. `rest`: what [`wal::examine`](super::wal::examine) found beside
    /// it; that is gone afterwards.
    pub fn open(path: &Path, rest: Rest) -> Result<Self, OpenError> {
        let mut table = Table::open(path)?;
        let error = |error: rusqlite::Error| open_error(path, &error);
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
        let jump = match rest {
            Rest::Nothing => 0,
            // That commit was never acknowledged, or it is lost: either way its revisions are not handed out again.
            Rest::Begun => BLOCK,
            // Writes up to who knows where have been acknowledged.
            Rest::Lost => JUMP,
        };
        if jump > 0 {
            revision = Revision::new(revision.get().saturating_add(jump));
            reserved = revision;
            table.begin_after(revision).map_err(|problem| OpenError::Sql {
                path: path.to_owned(),
                detail: problem.to_string(),
            })?;
            if let Err(problem) = table.empty_log() {
                warn!(error = %problem, "what cannot be read of the datastore's log is found again at the next start");
            }
        }
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
        let snapshots = snapshot::list(path);
        let age = snapshots.first().map(|found| {
            let age = found.made.and_then(|made| SystemTime::now().duration_since(made).ok());
            (age, found.bytes)
        });
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
            path: path.to_owned(),
            growth,
            tidying: true,
            copying: None,
            durable: newest,
            snapshotted: snapshots.first().map_or(Revision::ZERO, |found| found.revision),
            snapshot_at: now + schedule::first(age),
        })
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
            self.durable = event.revision;
            self.growth.add(event.revision, size(&event) + ROW);
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

    pub fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
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

    pub fn list(&self, range: &Range, at: Option<Revision>) -> Result<Snapshot, StoreError> {
        let revision = at.unwrap_or(self.revision);
        reachable(revision, self.oldest, self.revision)?;
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
        let wanted = |entry: &Entry| range.after.as_deref().is_none_or(|after| &*entry.key > after);
        let entries: Vec<Entry> = state.into_values().filter(wanted).collect();
        Ok(Snapshot::first(revision, entries, range.limit))
    }

    pub fn watch(&mut self, from: Revision) -> Result<Tail, StoreError> {
        reachable(from, self.oldest, self.revision)?;
        let mut backlog = self.table.events(from)?;
        let volatile = self.pending.values().map(|one| &one.event);
        backlog.extend(volatile.filter(|event| event.revision > from).cloned());
        backlog.sort_by_key(|event| event.revision);
        Ok(self.tails.add(backlog))
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

    /// Begins to copy the present state to a new file. `done` hears what came of it, on a thread of its own; what it
    /// returns is the revision of a snapshot that the log may count on.
    pub fn copy(
        &mut self,
        path: PathBuf,
        done: impl FnOnce(Result<Backup, BackupError>) -> Option<Revision> + Send + 'static,
    ) {
        self.copy_on(Instant::now());
        if self.copying.is_some() {
            let why = "another one is under way, try again when it is over".to_owned();
            done(Err(BackupError::Log(StoreError::Unavailable(why))));
            return;
        }
        let on_disk = self.heads.all().filter(|head| !self.pending.contains_key(&head.key));
        let rows: Vec<Revision> = on_disk.map(|head| head.revision).collect();
        let volatile = self.pending.values().filter(|one| one.event.value.is_some());
        let copied = |one: &Pending| Copied {
            event: one.event.clone(),
            ttl: one.ttl,
        };
        let volatile: Vec<Copied> = volatile.map(copied).collect();
        let (to, pieces) = mpsc::sync_channel(UNDER_WAY);
        let written = Arc::new(AtomicBool::new(false));
        let writer = std::thread::Builder::new().name("backup".to_owned()).spawn({
            let written = Arc::clone(&written);
            move || {
                let outcome = snapshot::write(&path, &pieces);
                written.store(true, Ordering::Release);
                done(outcome)
            }
        });
        match writer {
            Ok(writer) => self.copying = Some(Copying::begin(self.revision, rows, volatile, to, writer, written)),
            Err(problem) => error!(error = &problem as &dyn std::error::Error, "no thread to copy the log"),
        }
    }

    /// Copies the log beside itself, unless there is no room.
    fn snapshot(&mut self, now: Instant) {
        self.snapshot_at = now + schedule::AGAIN;
        let folder = snapshot::folder(&self.path);
        let room = place::folder(&folder).and_then(|()| Ok(nix::sys::statvfs::statvfs(&folder)?));
        let size = std::fs::metadata(&self.path).map_or(0, |about| about.len());
        match room {
            Ok(room) if !schedule::fits(room.blocks_available().saturating_mul(room.fragment_size()), size) => {
                warn!(folder = %folder.display(), "no room for a snapshot of the datastore: free some");
            }
            Ok(_) => {
                let path = snapshot::named(&self.path, self.revision);
                self.copy(path, |made| match made {
                    Ok(made) => {
                        info!(revision = %made.revision, bytes = made.bytes, "made a snapshot of the datastore");
                        Some(made.revision)
                    }
                    Err(problem) => {
                        let problem = &problem as &dyn std::error::Error;
                        warn!(error = problem, "cannot make a snapshot of the datastore, trying again");
                        None
                    }
                });
            }
            Err(problem) => warn!(error = %problem, "cannot make a snapshot of the datastore, trying again"),
        }
    }

    /// Goes on with a copy, and ends it.
    fn copy_on(&mut self, now: Instant) {
        if let Some(copying) = &mut self.copying {
            copying.step(&self.table, self.growth.bytes());
        }
        let Some(over) = self.copying.take_if(|copying| copying.is_over()) else {
            return;
        };
        let Some(revision) = over.end() else {
            return;
        };
        self.snapshotted = self.snapshotted.max(revision);
        let found = snapshot::list(&self.path);
        self.snapshot_at = now + schedule::interval(found.first().map_or(0, |newest| newest.bytes));
        let sizes: Vec<(Revision, u64)> = found.iter().map(|one| (one.revision, one.bytes)).collect();
        for gone in schedule::surplus(&sizes) {
            if let Err(problem) = place::remove(&snapshot::named(&self.path, gone)) {
                warn!(error = %problem, "cannot remove an old snapshot of the datastore");
            }
        }
    }

    /// When a snapshot is due, if there is anything new for it.
    fn snapshot_due(&self) -> Option<Instant> {
        (self.durable > self.snapshotted && self.copying.is_none()).then_some(self.snapshot_at)
    }

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

    /// Flushes, gives back the revisions that were reserved and not used, and notes that nothing is lost.
    pub fn close(&mut self) -> Result<(), StoreError> {
        if let Some(copying) = self.copying.take() {
            copying.end();
        }
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

/// Nobody waits any more if that fails.
pub fn answer<T>(reply: Option<Reply<T>>, result: Result<T, StoreError>) {
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
