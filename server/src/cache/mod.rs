//! The present state in memory, and the recent past: what every read and every watch is served from.
//!
//! Follows the store's log; holds each object as its JSON bytes (with `resourceVersion` spliced in) and a small index, never
//! as a tree. A watch event is those same bytes for every watcher. History is bounded in bytes and in age.
//!
//! One writer (`follow.rs`) applies events to [`State`] under a lock held for microseconds; watchers are cursors into
//! the history (`history.rs`), woken per resource. No lock is held over an `.await`.

mod body;
mod follow;
mod fresh;
mod history;
mod state;
mod watch;

#[cfg(test)]
mod model;

use std::sync::{Arc, PoisonError, RwLock};

use agent::units::Revision;
use agent::wire::selector::{Fields, Labels};
use bytes::Bytes;
use tokio::sync::watch as signal;
use tokio::task::JoinSet;

use crate::store::{Store, StoreError};

use state::State;

pub use follow::OBJECTS;
pub use fresh::Fresh;
pub use watch::Watch;

/// One object at one revision. Immutable and shared.
#[derive(Debug)]
pub struct Item {
    /// Store key, `/registry/…`.
    pub key: Arc<str>,
    /// Of the write that made it so; for a deletion, of the deletion.
    pub revision: Revision,
    /// JSON with `metadata.resourceVersion`.
    pub body: Bytes,
    /// What lists and watches select by.
    pub index: Index,
}

/// What is known of an object without parsing it again.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// Label pairs, sorted by key.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Selectable fields, path and text.
    pub fields: Box<[(&'static str, Box<str>)]>,
    /// Uids of `ownerReferences`.
    pub owners: Box<[Box<str>]>,
}

/// Makes the index of a stored value; the registry knows which fields a key's kind has.
pub type Indexer = Arc<dyn Fn(&str, &[u8]) -> Index + Send + Sync>;

/// What a list or a watch wants of a prefix.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// By label.
    pub labels: Labels,
    /// By field.
    pub fields: Fields,
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    /// The state it shows.
    pub revision: Revision,
    /// In key order.
    pub items: Vec<Arc<Item>>,
    /// Where the next page begins: the last key returned, when more remain.
    pub next: Option<Arc<str>>,
    /// How many remain after this page; `None` when a filter makes that unknown.
    pub remaining: Option<u64>,
}

/// What happened to an object in the eyes of one watcher.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChangeKind {
    /// It came to be, or came to match.
    Added,
    /// It changed.
    Modified,
    /// It went, or ceased to match.
    Deleted,
}

/// One event of a watch.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// An object changed.
    Change(ChangeKind, Arc<Item>),
    /// All events up to this revision have been delivered.
    Bookmark {
        /// Up to here.
        revision: Revision,
        /// The initial state is complete (`k8s.io/initial-events-end`).
        initial_events_end: bool,
    },
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum From {
    /// Every match as `Added`, then what follows; `bookmark` marks the end of the initial state.
    State {
        /// Send the initial-events-end bookmark.
        bookmark: bool,
    },
    /// Every event after this revision.
    After(Revision),
    /// Only what comes from now on.
    Now,
}

/// The asked-for past is no longer kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct Expired {
    /// What was asked for.
    pub asked: Revision,
    /// The oldest kept.
    pub oldest: Revision,
}

impl Item {
    /// The object as a tree. It was valid when it was stored; should it not parse, it is `null`.
    pub fn value(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// One label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.index.labels.binary_search_by(|(name, _)| (**name).cmp(key)).ok()?;
        self.index.labels.get(at).map(|(_, value)| &**value)
    }

    /// One selectable field as text; absent is empty.
    pub fn field(&self, path: &str) -> &str {
        self.index
            .fields
            .iter()
            .find(|(name, _)| *name == path)
            .map_or("", |(_, value)| &**value)
    }
}

impl Filter {
    /// Whether the object is wanted.
    pub fn matches(&self, item: &Item) -> bool {
        self.labels.matches(|key| item.label(key)) && self.fields.matches(|path| item.field(path))
    }

    /// Wants everything.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }
}

/// A place in the log. A datastore that was restored goes back, and may never come to a revision that it had; who waits for
/// that is told by `returns` that there is nothing left to wait for. Ordered as a server comes past them.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Mark {
    /// How often the log went back until then, as this cache has noticed.
    pub returns: u64,
    /// The revision.
    pub revision: Revision,
}

/// The cache's handle; clones share one state.
#[derive(Clone)]
pub struct Cache(Arc<Shared>);

/// What the follower writes and everybody else reads.
struct Shared {
    state: RwLock<State>,
    /// The newest applied revision; wakes whoever waits for one.
    tip: signal::Sender<Revision>,
    /// How often the log went back.
    returns: signal::Sender<u64>,
    indexer: Indexer,
}

impl Cache {
    /// Loads the present state and as much of the recent past as the log still has, then follows the store in a task
    /// of `tasks` until that is aborted. Cut off by the store, it takes up again where it was, or lists anew.
    ///
    /// # Errors
    /// Those of the store's `list` and `watch`; nothing runs then.
    pub async fn start(store: Arc<dyn Store>, indexer: Indexer, tasks: &mut JoinSet<()>) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            state: RwLock::new(State::default()),
            tip: signal::Sender::new(Revision::ZERO),
            returns: signal::Sender::new(0),
            indexer,
        });
        let tail = follow::load(&store, &shared).await?;
        let ends = follow::EndsWatches(Arc::clone(&shared));
        tasks.spawn(follow::follow(store, ends, tail));
        Ok(Self(shared))
    }

    /// The newest applied revision.
    pub fn revision(&self) -> Revision {
        *self.0.tip.borrow()
    }

    /// A revision of the log as it is now, or was just now.
    pub fn mark(&self, revision: Revision) -> Mark {
        let returns = *self.0.returns.borrow();
        Mark { returns, revision }
    }

    /// Resolves once every event up to `mark` is applied, or the log went back since and the state was loaded anew.
    pub async fn passed(&self, mark: Mark) {
        let mut returns = self.0.returns.subscribe();
        tokio::select! {
            () = self.reached(mark.revision) => {}
            // The sender lives as long as `self`.
            _ = returns.wait_for(|returns| *returns > mark.returns) => {}
        }
    }

    /// Resolves once every event up to `revision` is applied. Waits for ever for one that never comes: bound it.
    pub async fn reached(&self, revision: Revision) {
        let mut tip = self.0.tip.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        let _ = tip.wait_for(|newest| *newest >= revision).await;
    }

    /// One object, as of now.
    pub fn get(&self, key: &str) -> Option<Arc<Item>> {
        self.0.read(|state| state.get(key))
    }

    /// The objects under `prefix` that match, in key order: those after the key `after`, at most `limit`, as of now or
    /// exactly as of `at`. An `at` that is not applied yet shows the present: wait with [`Cache::reached`].
    ///
    /// # Errors
    /// [`Expired`] when the history no longer reaches back to `at`.
    pub fn list(
        &self,
        prefix: &str,
        filter: &Filter,
        after: Option<&str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> Result<Page, Expired> {
        self.0.read(|state| state.list(prefix, filter, after, limit, at))
    }

    /// All objects under `prefix`, in key order, as of now.
    pub fn all(&self, prefix: &str) -> Vec<Arc<Item>> {
        // Only a past revision can be out of reach.
        let page = self.list(prefix, &Filter::default(), None, None, None);
        page.map(|page| page.items).unwrap_or_default()
    }

    /// Follows the objects under `prefix` that match.
    ///
    /// # Errors
    /// [`Expired`] when the history no longer reaches back to where the watch is to begin.
    pub fn watch(&self, prefix: &str, filter: Filter, from: From) -> Result<Watch, Expired> {
        Watch::begin(Arc::clone(&self.0), prefix, filter, from)
    }

    /// The objects that name `uid` in their `ownerReferences`.
    pub fn by_owner(&self, uid: &str) -> Vec<Arc<Item>> {
        self.0.read(|state| state.by_owner(uid))
    }
}

impl Shared {
    /// A panic elsewhere cannot leave the state half applied in a way worse than not answering at all.
    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}
