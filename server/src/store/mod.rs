//! The append-only log that holds the cluster: compare-and-swap, list at a revision, watch from a revision, compaction.
//!
//! One contract ([`Store`], held against every backend by `tests/store/`) and one module per backend; [`open`] tells from
//! an [`endpoint`] which. A store knows keys and bytes, nothing of
//! Kubernetes. Keys follow upstream's layout (`/registry/pods/default/web`), values are JSON without `resourceVersion`.
//! Revisions are dense, in commit order, and never handed out twice: also not after a crash (`docs/decisions/`).

#[cfg(test)]
pub mod altered;
mod compaction;
pub mod endpoint;
pub mod etcd;
mod heads;
pub mod memory;
mod open;
#[cfg(test)]
pub mod refusing;
pub mod sql;
mod tails;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use agent::units::Revision;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

pub use open::{OpenError, open};

/// What must be so for a write to happen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    /// No such key.
    Absent,
    /// The key's last write is this one.
    At(Revision),
    /// Whatever is there.
    Any,
}

impl Expect {
    /// Whether a key whose last write is `current` (`None`: no such key) is as expected.
    fn holds(self, current: Option<Revision>) -> bool {
        match self {
            Self::Absent => current.is_none(),
            Self::At(revision) => current == Some(revision),
            Self::Any => true,
        }
    }
}

/// What a write does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Sets the value.
    Put(Bytes),
    /// Removes the key.
    Delete,
    /// Sets the value, and removes another key in the same transaction: both happen or neither, and always durably.
    /// Watchers see the value set, then the other key removed: with the same revision (etcd) or the next one (all others).
    Move {
        /// The other key.
        from: Arc<str>,
        /// Its last write must be this one.
        at: Revision,
        /// What is set.
        value: Bytes,
    },
}

/// When a write reaches the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Durability {
    /// Before it is acknowledged.
    Durable,
    /// Later, coalesced with later writes of the same key: heartbeats and Events. Lost by a crash, kept by a clean stop.
    Volatile,
}

/// Another key that must be as it was for a write to happen, whatever that expects of its own: what a leader of before wrote
/// does not happen once the next one has written there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Guard {
    /// The other key.
    pub key: Arc<str>,
    /// Its last write.
    pub at: Revision,
}

impl Guard {
    /// Whether a key whose last write is `current` (`None`: no such key) is as it was.
    fn holds(&self, current: Option<Revision>) -> bool {
        current == Some(self.at)
    }
}

/// One write.
#[derive(Clone, Debug)]
pub struct Write {
    /// Where.
    pub key: Arc<str>,
    /// On which condition.
    pub expect: Expect,
    /// What.
    pub change: Change,
    /// The key is deleted (by a write of its own) this long after this write.
    pub ttl: Option<Duration>,
    /// How soon on disk.
    pub durability: Durability,
    /// Looked at in the same transaction.
    pub guard: Option<Guard>,
}

impl Write {
    /// A durable one, for good and without a guard.
    pub fn new(key: impl Into<Arc<str>>, expect: Expect, change: Change) -> Self {
        Self {
            key: key.into(),
            expect,
            change,
            ttl: None,
            durability: Durability::Durable,
            guard: None,
        }
    }

    /// Bytes of the value that it sets.
    fn size(&self) -> usize {
        match &self.change {
            Change::Put(value) | Change::Move { value, .. } => value.len(),
            Change::Delete => 0,
        }
    }

    /// Whether it is on disk before it is acknowledged, where a store tells the two apart.
    fn is_durable(&self) -> bool {
        self.durability == Durability::Durable || matches!(self.change, Change::Move { .. })
    }
}

/// A key's state.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Where.
    pub key: Arc<str>,
    /// Of its last write.
    pub revision: Revision,
    /// Of the write that created it.
    pub created: Revision,
    /// JSON, without `resourceVersion`.
    pub value: Bytes,
}

/// One write as a watcher sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// Where.
    pub key: Arc<str>,
    /// Of this write.
    pub revision: Revision,
    /// Of the write that created the key; zero where the datastore does not say it of a deletion.
    pub created: Revision,
    /// The new value; `None` once deleted.
    pub value: Option<Bytes>,
}

/// Which keys a list wants.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// Keys that begin so.
    pub prefix: String,
    /// Only keys after this one, in byte order.
    pub after: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
}

/// What a list saw: every write up to `revision`, none after it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The state it shows.
    pub revision: Revision,
    /// In byte order of keys.
    pub entries: Vec<Entry>,
    /// There were more than `limit`.
    pub more: bool,
}

impl Snapshot {
    /// Of the entries that there are the first `limit`.
    fn first(revision: Revision, mut entries: Vec<Entry>, limit: Option<usize>) -> Self {
        let limit = limit.unwrap_or(usize::MAX);
        let more = entries.len() > limit;
        entries.truncate(limit);
        Self {
            revision,
            entries,
            more,
        }
    }
}

/// Why the store did not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Read again, then decide.
    #[error("the key is at another revision")]
    Conflict {
        /// The key's last write, if it exists; of [`Change::Move`]'s other key, if the first one is as expected.
        current: Option<Revision>,
    },
    /// The write's [`Guard`] holds no longer: begin another term.
    #[error("another server has taken over")]
    Overtaken,
    /// Begin anew from the present state.
    #[error("revision {asked} is compacted; the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// The oldest that can be had.
        oldest: Revision,
    },
    /// Nothing there yet.
    #[error("revision {asked} is ahead of the newest, {current}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// The newest.
        current: Revision,
    },
    /// Try again later: reads go on, writes do not.
    #[error("the datastore does not answer: {0}")]
    Unavailable(String),
    /// More than the datastore takes in one write.
    #[error("too large for the datastore: {0}")]
    TooLarge(String),
    /// Nothing helps but room on the disk.
    #[error("the disk that holds the datastore is full")]
    Full,
}

/// Whether a log that reaches from `oldest` to `current` can say anything of this revision.
fn reachable(asked: Revision, oldest: Revision, current: Revision) -> Result<(), StoreError> {
    if asked < oldest {
        return Err(StoreError::Compacted { asked, oldest });
    }
    if asked > current {
        return Err(StoreError::Future { asked, current });
    }
    Ok(())
}

/// Batches of events in revision order, without gap or repeat, no revision split between two; ends when the store closes. A receiver that falls too
/// far behind is cut off (the channel closes) and begins anew.
pub type Tail = mpsc::Receiver<Arc<[Event]>>;

/// The contract. All methods can be called from any task; dropping a future before it is ready may or may not have
/// written, and never leaves the store half done.
pub trait Store: Send + Sync + 'static {
    /// Writes, and answers with the key's new revision once it is as durable as asked.
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// One key, as of now.
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>>;

    /// A range, as of now or as of `at`.
    fn list(&self, range: Range, at: Option<Revision>) -> BoxFuture<'_, Result<Snapshot, StoreError>>;

    /// Every event after `from`, from the log and then live. What the log holds when this is asked is in the tail when
    /// it is answered, to be had without waiting: who has taken that is as new as the log was.
    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Tail, StoreError>>;

    /// Forgets what only revisions before `oldest` could show.
    fn compact(&self, oldest: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The newest committed revision: every write acknowledged before this call, on any server, is at most this.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// The newest revision committed by this server, for it to tell the others, as far as the datastore does not do that;
    /// `None` where it always does.
    fn commits(&self) -> Option<watch::Receiver<Revision>> {
        None
    }

    /// Another server says that it has committed up to here: a reason to look now, and no more than that.
    fn hint(&self, _revision: Revision) {}

    /// The embedded datastore, for what only a file can: copies of itself, and a restore while it is served.
    fn embedded(&self) -> Option<&sql::sqlite::Sqlite> {
        None
    }

    /// Flushes what is volatile and ends; later calls are [`StoreError::Unavailable`].
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}
