//! What holds a former leader back: a pipeline that writes only while the lead is certain, over a store that writes only
//! what is still of its term.
//!
//! A process may stand still between a decision and its write, longer than its lead lasts: before the last look at a clock,
//! or after it, with the write half sent. So the clock here only spares the work. What decides is the datastore: with every
//! write of a leader it looks, in the same transaction, at a record that each leader writes before it acts
//! (`leader.rs`, `docs/decisions/0010-a-former-leaders-writes.md`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::units::Revision;
use agent::wire::status::Status;
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::registry::resource::Resource;
use crate::request::{Answer, Call, Pipeline};
use crate::store::sql::sqlite::Sqlite;
use crate::store::{Entry, Guard, Range, Snapshot, Store, StoreError, Tail, Write};

/// Whether this server leads; shared by whoever finds out and whoever asks.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Lead>>);

#[derive(Debug, Default)]
struct Lead {
    /// The lead is certain until then.
    until: Option<Instant>,
    /// What the datastore has of it.
    term: Option<Guard>,
}

impl Fence {
    /// The lead lasts until then.
    pub fn set(&self, until: Option<Instant>) {
        self.lead().until = until;
    }

    /// A term begins: what is written counts while that is so.
    pub fn begin(&self, term: Guard) {
        self.lead().term = Some(term);
    }

    /// The term is over.
    pub fn end(&self) {
        self.lead().term = None;
    }

    /// Whether a term has begun, and the datastore has not said that it is over.
    pub fn is_begun(&self) -> bool {
        self.lead().term.is_some()
    }

    /// Whether the lead lasts.
    pub fn is_open(&self, now: Instant) -> bool {
        self.lead().until.is_some_and(|until| now < until)
    }

    /// The same pipeline, for as long as the lead lasts.
    pub fn around(&self, inner: Arc<dyn Pipeline>) -> Arc<dyn Pipeline> {
        let fence = self.clone();
        Arc::new(Fenced { inner, fence })
    }

    /// The same store, for as long as the datastore knows of no later term.
    pub fn over(&self, inner: Arc<dyn Store>) -> Arc<dyn Store> {
        let fence = self.clone();
        Arc::new(Led { inner, fence })
    }

    fn lead(&self) -> MutexGuard<'_, Lead> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Led {
    inner: Arc<dyn Store>,
    fence: Fence,
}

impl Store for Led {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>> {
        let Some(term) = self.fence.lead().term.clone() else {
            return ready(Err(StoreError::Overtaken)).boxed();
        };
        let guarded = Write {
            guard: Some(term.clone()),
            ..write
        };
        async move {
            let written = self.inner.write(guarded).await;
            if matches!(written, Err(StoreError::Overtaken)) {
                // Another one leads, or the datastore went back to before this term: begun anew if it is still ours.
                self.fence.lead().term.take_if(|now| *now == term);
            }
            written
        }
        .boxed()
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        self.inner.get(key)
    }

    fn list(&self, range: Range, at: Option<Revision>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.inner.list(range, at)
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Tail, StoreError>> {
        self.inner.watch(from)
    }

    fn compact(&self, oldest: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.compact(oldest)
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.revision()
    }

    fn commits(&self) -> Option<watch::Receiver<Revision>> {
        self.inner.commits()
    }

    fn hint(&self, revision: Revision) {
        self.inner.hint(revision);
    }

    fn embedded(&self) -> Option<&Sqlite> {
        self.inner.embedded()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.close()
    }
}

struct Fenced {
    inner: Arc<dyn Pipeline>,
    fence: Fence,
}

impl Pipeline for Fenced {
    fn run(&self, call: Call) -> BoxFuture<'_, Result<Answer, Status>> {
        if call.operation.reads() || self.fence.is_open(Instant::now()) {
            return self.inner.run(call);
        }
        ready(Err(Status::unavailable("this server leads no longer"))).boxed()
    }

    fn settled(&self) -> BoxFuture<'_, ()> {
        self.inner.settled()
    }

    fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.inner.find(group, version, plural)
    }

    fn rows(&self) -> Vec<Arc<Resource>> {
        self.inner.rows()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_lead_that_was_not_extended_ends_by_itself() {
        let (fence, now) = (Fence::default(), Instant::now());
        assert!(!fence.is_open(now), "nobody leads before he was elected");
        fence.set(Some(now + Duration::from_secs(7)));
        assert!(fence.clone().is_open(now + Duration::from_secs(6)));
        assert!(!fence.is_open(now + Duration::from_secs(7)));
        fence.set(None);
        assert!(!fence.is_open(now));
    }
}
