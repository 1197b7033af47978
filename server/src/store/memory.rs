//! The log in memory: for tests, and to say in few lines what a store does.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use agent::units::Revision;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::heads::Heads;
use super::tails::Tails;
use super::{Change, Durability, Entry, Event, Expect, Range, Snapshot, Store, StoreError, Tail, Write, reachable};

/// A store that forgets all when it is dropped. Keys expire when somebody next writes or reads.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Log>);

#[derive(Debug, Default)]
struct Log {
    heads: Heads,
    events: BTreeMap<Revision, Event>,
    revision: Revision,
    oldest: Revision,
    tails: Tails,
    closed: bool,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn log(&self) -> Result<MutexGuard<'_, Log>, StoreError> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if log.closed {
            return Err(StoreError::Unavailable("the store is closed".to_owned()));
        }
        log.expire(Instant::now());
        Ok(log)
    }
}

impl Log {
    fn write(&mut self, write: &Write, now: Instant) -> Result<Revision, StoreError> {
        let plan = self.heads.plan(write, self.revision, now)?;
        self.revision = plan.newest();
        let revision = plan.first.event.revision;
        let events = [Some(plan.first), plan.second].into_iter().flatten();
        let events: Vec<Event> = events.map(|planned| planned.event).collect();
        self.events
            .extend(events.iter().map(|event| (event.revision, event.clone())));
        self.tails.send(events);
        Ok(revision)
    }

    fn expire(&mut self, now: Instant) {
        for (key, revision) in self.heads.expired(now, usize::MAX) {
            let write = Write {
                durability: Durability::Volatile,
                ..Write::new(key, Expect::At(revision), Change::Delete)
            };
            // It is as it was seen a moment ago, under this lock.
            let _ = self.write(&write, now);
        }
    }

    /// The state at a revision.
    fn state(&self, at: Revision) -> BTreeMap<&str, Entry> {
        let mut state = BTreeMap::new();
        for event in self.events.range(..=at).map(|(_, event)| event) {
            match &event.value {
                Some(value) => {
                    let entry = Entry {
                        key: event.key.clone(),
                        revision: event.revision,
                        created: event.created,
                        value: value.clone(),
                    };
                    state.insert(&*event.key, entry);
                }
                None => {
                    state.remove(&*event.key);
                }
            }
        }
        state
    }

    fn list(&self, range: &Range, at: Option<Revision>) -> Result<Snapshot, StoreError> {
        let revision = at.unwrap_or(self.revision);
        reachable(revision, self.oldest, self.revision)?;
        let wanted = |entry: &Entry| {
            entry.key.starts_with(&range.prefix) && range.after.as_deref().is_none_or(|after| &*entry.key > after)
        };
        let entries: Vec<Entry> = self.state(revision).into_values().filter(wanted).collect();
        Ok(Snapshot::first(revision, entries, range.limit))
    }

    fn watch(&mut self, from: Revision) -> Result<Tail, StoreError> {
        reachable(from, self.oldest, self.revision)?;
        let backlog = self.events.range(from.next()..).map(|(_, event)| event.clone());
        Ok(self.tails.add(backlog.collect()))
    }

    fn compact(&mut self, oldest: Revision) -> Result<(), StoreError> {
        reachable(oldest, Revision::ZERO, self.revision)?;
        let shown: Vec<Revision> = self.state(oldest).into_values().map(|entry| entry.revision).collect();
        self.events
            .retain(|revision, _| *revision > oldest || shown.contains(revision));
        self.oldest = self.oldest.max(oldest);
        Ok(())
    }
}

impl Store for Memory {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>> {
        ready(self.log().and_then(|mut log| log.write(&write, Instant::now()))).boxed()
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let found = self.log().map(|log| log.state(log.revision).remove(key));
        ready(found).boxed()
    }

    fn list(&self, range: Range, at: Option<Revision>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        ready(self.log().and_then(|log| log.list(&range, at))).boxed()
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Tail, StoreError>> {
        ready(self.log().and_then(|mut log| log.watch(from))).boxed()
    }

    fn compact(&self, oldest: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(self.log().and_then(|mut log| log.compact(oldest))).boxed()
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        ready(self.log().map(|log| log.revision)).boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let closed = self.log().map(|mut log| {
            log.closed = true;
            log.tails = Tails::default();
        });
        ready(closed).boxed()
    }
}
