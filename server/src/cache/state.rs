//! The present state, and how an event changes it. No I/O, no waiting: the time is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use agent::units::Revision;

use super::history::{History, Past};
use super::{Expired, Filter, Indexer, Item, Page, body};
use crate::store::{Entry, Event};

/// Everything behind the cache's lock.
#[derive(Default)]
pub(super) struct State {
    items: BTreeMap<Arc<str>, Arc<Item>>,
    owners: HashMap<Box<str>, BTreeSet<Arc<str>>>,
    pub history: History,
    pub revision: Revision,
    /// Grows when events may have been missed: watches of an older generation end.
    pub generation: u64,
    /// Nobody follows the store any more: watches end.
    pub closed: bool,
}

/// Keys written since, with what they were before.
type Undo<'a> = BTreeMap<&'a str, Option<&'a Arc<Item>>>;

/// Makes the item of a stored value.
pub(super) fn item(indexer: &Indexer, key: &Arc<str>, revision: Revision, value: &[u8]) -> Item {
    Item {
        key: Arc::clone(key),
        revision,
        body: body::splice(value, revision),
        index: indexer(key, value),
    }
}

impl State {
    /// Begins anew from a snapshot; all watches end.
    pub fn load(&mut self, revision: Revision, entries: &[Entry], indexer: &Indexer) {
        self.items.clear();
        self.owners.clear();
        for entry in entries {
            let item = Arc::new(item(indexer, &entry.key, entry.revision, &entry.value));
            self.own(&item);
            self.items.insert(Arc::clone(&entry.key), item);
        }
        self.history.restart(revision);
        self.revision = revision;
        self.generation += 1;
    }

    /// Applies the events of whole revisions, each with its item, made outside the lock. What is applied already is passed
    /// over.
    ///
    /// Our own writes change one key a revision; in etcd whoever has access may change several (`etcdctl del --prefix`).
    /// Cursors and resource versions name one change, and cannot stop between two of one revision: such a revision is
    /// applied whole, history begins behind it, and watches end.
    pub fn apply<'e>(&mut self, events: impl IntoIterator<Item = (&'e Event, Option<Item>)>, now: Instant) {
        let applied = self.revision;
        let (mut last, mut several) = (applied, applied);
        for (event, new) in events {
            if event.revision <= applied {
                continue;
            }
            self.revision = event.revision;
            let Some(past) = self.change(event, new, now) else {
                continue;
            };
            if event.revision > last {
                last = event.revision;
                self.history.push(past);
            } else if event.revision > several {
                several = event.revision;
                self.history.restart(event.revision);
                self.generation += 1;
            }
        }
    }

    /// The key's new state; `None` if there is nothing now and was nothing before.
    fn change(&mut self, event: &Event, new: Option<Item>, now: Instant) -> Option<Past> {
        let previous = self.items.remove(&event.key);
        if let Some(previous) = &previous {
            self.disown(previous);
        }
        match (new.map(Arc::new), previous) {
            (Some(item), previous) => {
                self.own(&item);
                self.items.insert(Arc::clone(&event.key), Arc::clone(&item));
                Some(Past::new(item, false, previous, now))
            }
            (None, Some(previous)) => {
                let deleted = Arc::new(previous.under(event.revision));
                Some(Past::new(deleted, true, Some(previous), now))
            }
            (None, None) => None,
        }
    }

    pub fn get(&self, key: &str) -> Option<Arc<Item>> {
        self.items.get(key).cloned()
    }

    pub fn by_owner(&self, uid: &str) -> Vec<Arc<Item>> {
        let keys = self.owners.get(uid).into_iter().flatten();
        keys.filter_map(|key| self.get(key)).collect()
    }

    pub fn list(
        &self,
        prefix: &str,
        filter: &Filter,
        after: Option<&str>,
        limit: Option<usize>,
        at: Option<Revision>,
    ) -> Result<Page, Expired> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            Some(_) | None => Bound::Included(prefix),
        };
        let range = self.items.range::<str, _>((start, Bound::Unbounded));
        let present = range
            .map(|(_, item)| item)
            .take_while(|item| item.key.starts_with(prefix));
        match at.filter(|at| *at < self.revision) {
            None => Ok(page(self.revision, present, filter, limit)),
            Some(at) => {
                let undo = self.undo(prefix, at)?;
                let mut past: BTreeMap<&str, &Arc<Item>> = present.map(|item| (&*item.key, item)).collect();
                for (key, item) in &undo {
                    match item {
                        Some(item) if after.is_none_or(|after| *key > after) => past.insert(key, item),
                        Some(_) | None => past.remove(key),
                    };
                }
                Ok(page(at, past.into_values(), filter, limit))
            }
        }
    }

    /// The state at `at` of every key under `prefix` that was written since.
    fn undo<'a>(&'a self, prefix: &'a str, at: Revision) -> Result<Undo<'a>, Expired> {
        self.reachable(prefix, at)?;
        let mut undo = BTreeMap::new();
        for past in self.history.after(prefix, at) {
            undo.entry(&*past.item.key).or_insert(past.previous.as_ref());
        }
        Ok(undo)
    }

    /// Whether the history has everything under `prefix` after `asked`.
    pub fn reachable(&self, prefix: &str, asked: Revision) -> Result<(), Expired> {
        let oldest = self.history.floor(prefix);
        if asked < oldest {
            Err(Expired { asked, oldest })
        } else {
            Ok(())
        }
    }

    fn own(&mut self, item: &Arc<Item>) {
        for owner in &item.index.owners {
            self.owners
                .entry(owner.clone())
                .or_default()
                .insert(Arc::clone(&item.key));
        }
    }

    fn disown(&mut self, item: &Item) {
        for owner in &item.index.owners {
            if let Some(keys) = self.owners.get_mut(owner) {
                keys.remove(&item.key);
                if keys.is_empty() {
                    self.owners.remove(owner);
                }
            }
        }
    }
}

fn page<'a>(
    revision: Revision,
    items: impl Iterator<Item = &'a Arc<Item>>,
    filter: &Filter,
    limit: Option<usize>,
) -> Page {
    let everything = filter.is_everything();
    let mut wanted = items.filter(|item| everything || filter.matches(item));
    let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let items: Vec<Arc<Item>> = wanted.by_ref().take(limit).cloned().collect();
    let more = items.len() == limit && wanted.next().is_some();
    let next = items.last().filter(|_| more).map(|item| Arc::clone(&item.key));
    let remaining = match (more, everything) {
        (false, _) => Some(0),
        (true, true) => Some(1 + wanted.count() as u64),
        (true, false) => None,
    };
    Page {
        revision,
        items,
        next,
        remaining,
    }
}
