//! The last write of every key, in memory: what a compare-and-swap is decided against, and which keys expire when.
//!
//! Pure. A batch of writes is planned against it before anything is stored; a batch that could not be stored is undone.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;

use super::{Change, Event, Expect, StoreError, Write};

/// The last write of a key.
#[derive(Clone, Debug)]
pub struct Head {
    /// The key, shared by all who hold it.
    pub key: Arc<str>,
    /// Of the last write.
    pub revision: Revision,
    /// Of the write that created the key.
    pub created: Revision,
    /// Of the key's newest row on disk, or the row that this batch puts there; zero when it has none.
    pub stored: Revision,
    /// When it is to be deleted.
    pub expires: Option<Instant>,
}

/// A write that may go ahead, and how to take it back.
#[derive(Debug)]
pub struct Planned {
    /// What watchers will see.
    pub event: Event,
    /// The newest row of this key on disk, which this write supersedes.
    pub previous: Revision,
    undo: Undo,
}

/// What a write comes to: one change, or two that belong together.
#[derive(Debug)]
pub struct Plan {
    /// Of the write's own key.
    pub first: Planned,
    /// Of the other key.
    pub second: Option<Planned>,
}

impl Plan {
    /// The newest revision then.
    pub fn newest(&self) -> Revision {
        self.second.as_ref().unwrap_or(&self.first).event.revision
    }
}

#[derive(Debug)]
struct Undo {
    key: Arc<str>,
    before: Option<Head>,
}

/// All heads.
#[derive(Debug, Default)]
pub struct Heads {
    by_key: HashMap<Arc<str>, Head>,
    /// When which key expires.
    expiry: BTreeSet<(Instant, Arc<str>)>,
}

impl Heads {
    /// A key's last write.
    pub fn get(&self, key: &str) -> Option<&Head> {
        self.by_key.get(key)
    }

    /// Every key that is there.
    pub fn all(&self) -> impl Iterator<Item = &Head> {
        self.by_key.values()
    }

    /// How many keys there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Takes in a head found on disk.
    pub fn load(&mut self, head: Head) {
        self.replace(Arc::clone(&head.key), Some(head));
    }

    /// Decides on a write and applies it as the revisions after `newest`: one, and of a [`Change::Move`] two.
    ///
    /// # Errors
    /// [`StoreError::Overtaken`] when its guard does not hold, [`StoreError::Conflict`] when what it expects is not so;
    /// nothing has changed then.
    pub fn plan(&mut self, write: &Write, newest: Revision, now: Instant) -> Result<Plan, StoreError> {
        let last_write = |key: &str| self.by_key.get(key).map(|head| head.revision);
        if let Some(guard) = &write.guard
            && !guard.holds(last_write(&guard.key))
        {
            return Err(StoreError::Overtaken);
        }
        let first = self.plan_key(write, newest.next(), now)?;
        let Change::Move { from, at, .. } = &write.change else {
            return Ok(Plan { first, second: None });
        };
        let removal = Write::new(Arc::clone(from), Expect::At(*at), Change::Delete);
        match self.plan_key(&removal, newest.next().next(), now) {
            Ok(second) => Ok(Plan {
                first,
                second: Some(second),
            }),
            Err(error) => {
                self.undo(vec![first]);
                Err(error)
            }
        }
    }

    /// Decides on one key.
    fn plan_key(&mut self, write: &Write, revision: Revision, now: Instant) -> Result<Planned, StoreError> {
        let before = self.by_key.get(&*write.key).cloned();
        let current = before.as_ref().map(|head| head.revision);
        let nothing_to_delete = write.change == Change::Delete && current.is_none();
        if !write.expect.holds(current) || nothing_to_delete {
            return Err(StoreError::Conflict { current });
        }
        let key = before
            .as_ref()
            .map_or_else(|| Arc::clone(&write.key), |head| Arc::clone(&head.key));
        let created = before.as_ref().map_or(revision, |head| head.created);
        let previous = before.as_ref().map_or(Revision::ZERO, |head| head.stored);
        let (value, after) = match &write.change {
            Change::Put(value) | Change::Move { value, .. } => {
                let head = Head {
                    key: Arc::clone(&key),
                    revision,
                    created,
                    stored: match write.is_durable() {
                        true => revision,
                        false => previous,
                    },
                    expires: write.ttl.and_then(|ttl| now.checked_add(ttl)),
                };
                (Some(value.clone()), Some(head))
            }
            Change::Delete => (None, None),
        };
        self.replace(Arc::clone(&key), after);
        let event = Event {
            key: Arc::clone(&key),
            revision,
            created,
            value,
        };
        let undo = Undo { key, before };
        Ok(Planned { event, previous, undo })
    }

    /// The write is on disk now. Returns the row it superseded; zero if there was none.
    pub fn stored(&mut self, key: &str, revision: Revision) -> Revision {
        let head = self.by_key.get_mut(key);
        head.map_or(Revision::ZERO, |head| std::mem::replace(&mut head.stored, revision))
    }

    /// Takes planned writes back, the last one first.
    pub fn undo(&mut self, planned: Vec<Planned>) {
        for Planned { undo, .. } in planned.into_iter().rev() {
            self.replace(undo.key, undo.before);
        }
    }

    /// The next expiry.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// The keys that have expired, at most `limit`, with the revision they expired at.
    pub fn expired(&self, now: Instant, limit: usize) -> Vec<(Arc<str>, Revision)> {
        let due = self.expiry.iter().take_while(|(at, _)| *at <= now).take(limit);
        let head = |(_, key): &(Instant, Arc<str>)| Some((Arc::clone(key), self.by_key.get(key)?.revision));
        due.filter_map(head).collect()
    }

    fn replace(&mut self, key: Arc<str>, head: Option<Head>) {
        let expires = head.as_ref().and_then(|head| head.expires);
        let old = match head {
            Some(head) => self.by_key.insert(Arc::clone(&key), head),
            None => self.by_key.remove(&key),
        };
        if let Some(at) = old.and_then(|head| head.expires) {
            self.expiry.remove(&(at, Arc::clone(&key)));
        }
        if let Some(at) = expires {
            self.expiry.insert((at, key));
        }
    }
}

/// A time to live as it is kept on disk: whole seconds, at least one.
pub fn ttl_seconds(ttl: Option<Duration>) -> Option<i64> {
    ttl.map(|ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::Durability;
    use super::*;

    fn write(key: &str, expect: Expect, value: Option<&'static str>) -> Write {
        Write::new(
            key,
            expect,
            value.map_or(Change::Delete, |text| Change::Put(Bytes::from_static(text.as_bytes()))),
        )
    }

    fn moved(key: &str, expect: Expect, from: &str, at: Revision) -> Write {
        Write {
            change: Change::Move {
                from: from.into(),
                at,
                value: Bytes::from_static(b"m"),
            },
            durability: Durability::Volatile,
            ..write(key, expect, None)
        }
    }

    #[test]
    fn a_batch_taken_back_leaves_everything_as_it_was() {
        let (mut heads, now) = (Heads::default(), Instant::now());
        let one = Revision::new(1);
        heads
            .plan(&write("a", Expect::Absent, Some("1")), Revision::ZERO, now)
            .unwrap();
        let mut with_ttl = write("a", Expect::At(one), Some("2"));
        with_ttl.ttl = Some(Duration::from_secs(5));
        let mut batch = Vec::new();
        for (write, newest) in [
            (with_ttl, 1),
            (write("b", Expect::Absent, Some("x")), 2),
            (moved("c", Expect::Absent, "b", Revision::new(3)), 3),
            (write("a", Expect::Any, None), 5),
        ] {
            let plan = heads.plan(&write, Revision::new(newest), now).unwrap();
            batch.push(plan.first);
            batch.extend(plan.second);
        }
        assert_eq!((batch.len(), heads.len(), heads.get("c").is_some()), (5, 1, true));
        heads.undo(batch);
        assert_eq!(heads.len(), 1);
        assert_eq!(heads.get("a").map(|head| head.revision), Some(one));
        assert_eq!(heads.next_expiry(), None);
    }

    #[test]
    fn a_move_is_two_changes_or_none() {
        let (mut heads, now, revision) = (Heads::default(), Instant::now(), Revision::new);
        for (key, newest) in [("a", 0), ("b", 1)] {
            heads
                .plan(&write(key, Expect::Absent, Some("1")), revision(newest), now)
                .unwrap();
        }
        for (refused, current) in [
            (moved("b", Expect::Absent, "a", revision(1)), Some(revision(2))),
            (moved("c", Expect::At(revision(2)), "a", revision(1)), None),
            (moved("c", Expect::Absent, "a", revision(2)), Some(revision(1))),
            (moved("c", Expect::Absent, "none", revision(1)), None),
        ] {
            let error = heads.plan(&refused, revision(2), now).unwrap_err();
            assert!(
                matches!(error, StoreError::Conflict { current: seen } if seen == current),
                "{error:?}"
            );
            assert_eq!((heads.len(), heads.get("c").is_none()), (2, true), "{refused:?}");
        }
        let plan = heads
            .plan(&moved("c", Expect::Absent, "a", revision(1)), revision(2), now)
            .unwrap();
        let second = plan.second.as_ref().unwrap();
        assert_eq!((&*plan.first.event.key, plan.first.event.revision), ("c", revision(3)));
        assert_eq!((&*second.event.key, second.event.revision), ("a", revision(4)));
        assert_eq!((second.previous, plan.newest()), (revision(1), revision(4)));
        assert!(heads.get("a").is_none() && heads.get("c").is_some_and(|head| head.stored == revision(3)));
    }

    #[test]
    fn a_key_written_again_expires_by_its_last_write() {
        let (mut heads, now) = (Heads::default(), Instant::now());
        for (revision, ttl) in [(1, 10), (2, 60)] {
            let mut write = write("a", Expect::Any, Some("1"));
            write.ttl = Some(Duration::from_secs(ttl));
            heads.plan(&write, Revision::new(revision - 1), now).unwrap();
        }
        assert!(heads.expired(now + Duration::from_secs(59), 9).is_empty());
        assert_eq!(heads.expired(now + Duration::from_secs(60), 9).len(), 1);
    }
}
