//! The recent past: what happened, in order, for watches to resume from and for lists of a past revision to undo.
//!
//! One shelf per resource (`/registry/pods/`), so that a flood of heartbeats neither pushes out the history of pods nor
//! wakes their watchers. A cursor is a revision. Bounded in bytes over all shelves, and in age.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use agent::units::{Bytes as Size, Revision};
use tokio::sync::watch as signal;

use super::{ChangeKind, Filter, Item, body};

/// Resumes need 100 s at least; conformance expects expiry within ten minutes.
pub(super) const MAX_AGE: Duration = Duration::from_secs(300);

/// What only the history keeps alive: superseded and deleted bodies.
pub(super) const MAX_SIZE: Size = Size::mib(16);

/// The records themselves, keys and indexes, roughly.
const OVERHEAD: u64 = 256;

/// One write, with what it replaced.
pub(super) struct Past {
    /// The new state; for a deletion the last state under the deletion's revision.
    pub item: Arc<Item>,
    pub deleted: bool,
    pub previous: Option<Arc<Item>>,
    at: Instant,
    /// `previous` under this write's revision: for watchers whose selector it ceased to match. Made once for all.
    left: OnceLock<Arc<Item>>,
}

/// One resource's past.
struct Shelf {
    entries: VecDeque<Past>,
    size: u64,
    /// Of the newest entry no longer kept.
    dropped: Revision,
    /// Wakes the watchers of this resource.
    wake: signal::Sender<Revision>,
}

/// All shelves.
#[derive(Default)]
pub(super) struct History {
    shelves: HashMap<Box<str>, Shelf>,
    size: u64,
    /// Nothing at or before this was ever here.
    base: Revision,
    max_size: Option<Size>,
}

impl Past {
    pub fn new(item: Arc<Item>, deleted: bool, previous: Option<Arc<Item>>, at: Instant) -> Self {
        let left = OnceLock::new();
        Self {
            item,
            deleted,
            previous,
            at,
            left,
        }
    }

    /// What this write is to someone who wants only what `filter` matches.
    ///
    /// Source: Kubernetes v1.36, apiserver `cacher.cacheWatcher.convertToWatchEvent`.
    pub fn seen_through(&self, filter: &Filter) -> Option<(ChangeKind, Arc<Item>)> {
        let before = self.previous.as_ref().is_some_and(|item| filter.matches(item));
        let after = !self.deleted && filter.matches(&self.item);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some((ChangeKind::Added, Arc::clone(&self.item))),
            (true, true) => Some((ChangeKind::Modified, Arc::clone(&self.item))),
            (true, false) if self.deleted => Some((ChangeKind::Deleted, Arc::clone(&self.item))),
            (true, false) => self.left().map(|item| (ChangeKind::Deleted, item)),
        }
    }

    fn left(&self) -> Option<Arc<Item>> {
        let previous = self.previous.as_ref()?;
        let left = self.left.get_or_init(|| Arc::new(previous.under(self.item.revision)));
        Some(Arc::clone(left))
    }

    fn size(&self) -> u64 {
        let previous = self.previous.as_ref().map_or(0, |item| item.body.len() as u64);
        let own = if self.deleted { self.item.body.len() as u64 } else { 0 };
        OVERHEAD + previous + own
    }
}

impl Item {
    /// The same content under another revision.
    pub(super) fn under(&self, revision: Revision) -> Self {
        Self {
            key: Arc::clone(&self.key),
            revision,
            body: body::resplice(&self.body, revision),
            index: self.index.clone(),
        }
    }
}

impl Shelf {
    fn new(base: Revision) -> Self {
        let wake = signal::Sender::new(base);
        Self {
            entries: VecDeque::new(),
            size: 0,
            dropped: Revision::ZERO,
            wake,
        }
    }

    fn drop_oldest(&mut self) -> u64 {
        let Some(past) = self.entries.pop_front() else { return 0 };
        self.dropped = past.item.revision;
        let size = past.size();
        self.size = self.size.saturating_sub(size);
        size
    }

    fn after(&self, revision: Revision) -> impl Iterator<Item = &Past> {
        let start = self.entries.partition_point(|past| past.item.revision <= revision);
        self.entries.range(start..)
    }
}

/// The shelf's name for a key or prefix: `/registry/pods/`. `None` for a prefix that spans shelves.
pub(super) fn shelf_of(key: &str) -> Option<&str> {
    let (end, _) = key.match_indices('/').nth(2)?;
    key.get(..=end)
}

impl History {
    /// Forgets everything; what follows comes after `base`. Sleeping watchers are woken to find out.
    pub fn restart(&mut self, base: Revision) {
        for shelf in self.shelves.values_mut() {
            shelf.entries.clear();
            shelf.size = 0;
            shelf.dropped = base;
        }
        self.size = 0;
        self.base = base;
    }

    /// Takes the next write in; older ones may go for it.
    pub fn push(&mut self, past: Past) {
        let name = shelf_of(&past.item.key).unwrap_or("");
        if !self.shelves.contains_key(name) {
            self.shelves.insert(name.into(), Shelf::new(self.base));
        }
        let (size, now) = (past.size(), past.at);
        if let Some(shelf) = self.shelves.get_mut(name) {
            shelf.entries.push_back(past);
            shelf.size += size;
            self.size += size;
        }
        self.trim(now);
    }

    /// Drops what is too old, then the oldest of the fullest shelf until the rest fits.
    pub fn trim(&mut self, now: Instant) {
        let too_old = |past: &Past| now.saturating_duration_since(past.at) > MAX_AGE;
        for shelf in self.shelves.values_mut() {
            while shelf.entries.front().is_some_and(too_old) {
                self.size = self.size.saturating_sub(shelf.drop_oldest());
            }
        }
        let max = self.max_size.unwrap_or(MAX_SIZE).get();
        while self.size > max {
            let Some(fullest) = self.shelves.values_mut().max_by_key(|shelf| shelf.size) else {
                return;
            };
            let freed = fullest.drop_oldest();
            if freed == 0 {
                return;
            }
            self.size = self.size.saturating_sub(freed);
        }
    }

    /// The oldest revision after which nothing under `prefix` is missing.
    pub fn floor(&self, prefix: &str) -> Revision {
        self.under(prefix)
            .map(|shelf| shelf.dropped)
            .fold(self.base, Revision::max)
    }

    /// The writes under `prefix` after `revision`, in order.
    pub fn after<'a>(&'a self, prefix: &'a str, revision: Revision) -> Box<dyn Iterator<Item = &'a Past> + 'a> {
        let wanted = move |past: &&Past| past.item.key.starts_with(prefix);
        if shelf_of(prefix).is_some() {
            return Box::new(
                self.under(prefix)
                    .flat_map(move |shelf| shelf.after(revision))
                    .filter(wanted),
            );
        }
        // Rare: a prefix that spans resources. Collected in reverse, so that the oldest is popped first.
        let mut all: Vec<&Past> = self
            .under(prefix)
            .flat_map(|shelf| shelf.after(revision))
            .filter(wanted)
            .collect();
        all.sort_unstable_by_key(|past| Reverse(past.item.revision));
        Box::new(std::iter::from_fn(move || all.pop()))
    }

    /// What wakes a watcher of this shelf.
    pub fn waker(&mut self, shelf: &str) -> signal::Receiver<Revision> {
        let base = self.base;
        let shelf = self.shelves.entry(shelf.into()).or_insert_with(|| Shelf::new(base));
        shelf.wake.subscribe()
    }

    /// Wakes the watchers of shelves that got something since they were last woken, or all.
    pub fn wake(&self, all: bool) {
        for shelf in self.shelves.values() {
            let newest = shelf.entries.back().map_or(shelf.dropped, |past| past.item.revision);
            if all {
                shelf.wake.send_replace(newest);
            } else {
                shelf.wake.send_if_modified(|seen| {
                    let news = newest > *seen;
                    *seen = newest;
                    news
                });
            }
        }
    }

    fn under(&self, prefix: &str) -> impl Iterator<Item = &Shelf> {
        let one = shelf_of(prefix);
        let named = one.and_then(|name| self.shelves.get(name));
        let spanned = one.is_none().then(|| self.shelves.values());
        named.into_iter().chain(spanned.into_iter().flatten())
    }

    /// Another bound than [`MAX_SIZE`].
    #[cfg(test)]
    pub fn bound(&mut self, size: Size) {
        self.max_size = Some(size);
    }
}
