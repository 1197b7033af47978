//! Which keys expire when, as this server has seen it. Pure.
//!
//! Every server keeps the account and may delete; compare-and-swap lets one succeed. The server that wrote a key begins,
//! so that the others have nothing left to do as long as it lives.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;

use super::database::{Mortal, Row};

/// How long the others wait for the server that wrote the key.
const OTHERS: Duration = Duration::from_secs(2);
/// Until a deletion that was asked for is asked for again.
const AGAIN: Duration = Duration::from_secs(10);

/// The account.
#[derive(Debug, Default)]
pub struct Expiry {
    due: BTreeSet<(Instant, Arc<str>)>,
    by_key: HashMap<Arc<str>, (Instant, Revision)>,
}

impl Expiry {
    /// Takes in a write.
    pub fn note(&mut self, row: &Row, own: bool, now: Instant) {
        self.forget(&row.event.key);
        let (Some(ttl), Some(_)) = (row.ttl, &row.event.value) else {
            return;
        };
        let wait = if own { Duration::ZERO } else { OTHERS };
        self.add(Arc::clone(&row.event.key), row.event.revision, ttl, wait, now);
    }

    /// Takes in what was there before. The clock may lie, and nobody knows how long we were away: each key gets its full
    /// time again.
    pub fn load(&mut self, mortals: Vec<Mortal>, now: Instant) {
        *self = Self::default();
        for Mortal { key, revision, ttl } in mortals {
            self.add(key, revision, ttl, OTHERS, now);
        }
    }

    /// When something is due.
    pub fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// What is to be deleted now, at most `limit`. It stays on the account until it is seen to be gone.
    pub fn take(&mut self, now: Instant, limit: usize) -> Vec<(Arc<str>, Revision)> {
        let due = self.due.iter().take_while(|(at, _)| *at <= now).take(limit);
        let keys: Vec<Arc<str>> = due.map(|(_, key)| Arc::clone(key)).collect();
        let mut taken = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some((at, revision)) = self.by_key.get_mut(&key) {
                taken.push((Arc::clone(&key), *revision));
                let again = now + AGAIN;
                self.due.remove(&(*at, Arc::clone(&key)));
                self.due.insert((again, key));
                *at = again;
            }
        }
        taken
    }

    fn add(&mut self, key: Arc<str>, revision: Revision, ttl: i64, wait: Duration, now: Instant) {
        let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
        if let Some(at) = now.checked_add(ttl).and_then(|at| at.checked_add(wait)) {
            self.due.insert((at, Arc::clone(&key)));
            self.by_key.insert(key, (at, revision));
        }
    }

    fn forget(&mut self, key: &Arc<str>) {
        if let Some((at, _)) = self.by_key.remove(key) {
            self.due.remove(&(at, Arc::clone(key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::super::Event;
    use super::super::database::Stamp;
    use super::*;

    fn row(revision: u64, ttl: Option<i64>, live: bool) -> Row {
        Row {
            event: Event {
                key: "k".into(),
                revision: Revision::new(revision),
                created: Revision::new(1),
                value: live.then(Bytes::new),
            },
            previous: Revision::ZERO,
            ttl,
            stamp: Stamp(1),
        }
    }

    #[test]
    fn the_last_write_decides_and_its_writer_comes_first() {
        let (mut expiry, now) = (Expiry::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        expiry.note(&row(1, Some(5), true), true, now);
        assert_eq!(expiry.next(), Some(at(5)));
        expiry.note(&row(2, Some(60), true), false, now);
        assert_eq!(expiry.next(), Some(at(60) + OTHERS));
        assert!(expiry.take(at(61), 9).is_empty());
        assert_eq!(expiry.take(at(62), 9), [("k".into(), Revision::new(2))]);
        assert!(expiry.take(at(62), 9).is_empty(), "asked for once");
        assert_eq!(expiry.take(at(72), 9).len(), 1, "and again when nothing came of it");
        expiry.note(&row(3, None, true), true, now);
        assert_eq!(expiry.next(), None);
        expiry.note(&row(4, Some(5), true), true, now);
        expiry.note(&row(5, None, false), false, now);
        assert_eq!(expiry.next(), None);
    }
}
