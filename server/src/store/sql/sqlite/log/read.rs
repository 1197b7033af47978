//! What the log says: a key, a range at a revision, and what follows.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent::units::Revision;

use super::Log;
use crate::store::{Entry, Range, Snapshot, StoreError, Tail, reachable};

impl Log {
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
}
