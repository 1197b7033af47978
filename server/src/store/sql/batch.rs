//! Which writes of a batch go ahead, and as what. Pure.

use std::sync::Arc;
use std::time::Instant;

use agent::units::Revision;

use super::super::heads::{Head, Heads, Planned, ttl_seconds};
use super::super::{Change, Durability, StoreError, Write};
use super::database::{Locked, Row, Stamp};

/// A batch, decided.
#[derive(Debug, Default)]
pub struct Decided {
    /// The counter before.
    pub before: Revision,
    /// The counter after.
    pub newest: Revision,
    /// Rows for those that go ahead, dense from `before`.
    pub rows: Vec<Row>,
    /// What each is told once the rows are committed.
    pub answers: Vec<Result<Revision, StoreError>>,
    /// On every row.
    pub stamp: Stamp,
}

/// The keys that a batch is decided by, each once.
pub fn keys(writes: &[Write]) -> Vec<Arc<str>> {
    let mut keys: Vec<Arc<str>> = writes.iter().map(|write| Arc::clone(&write.key)).collect();
    keys.extend(writes.iter().filter_map(|write| match &write.change {
        Change::Move { from, .. } => Some(Arc::clone(from)),
        Change::Put(_) | Change::Delete => None,
    }));
    let guards = writes.iter().filter_map(|write| write.guard.as_ref());
    keys.extend(guards.map(|guard| Arc::clone(&guard.key)));
    keys.sort();
    keys.dedup();
    keys
}

/// Decides on writes, in their order, each against what those before it leave.
///
/// There is no volatile write here: other servers must see leases, so all of them are rows.
pub fn decide(writes: &[Write], locked: &Locked, stamp: Stamp, now: Instant) -> Decided {
    let mut heads = Heads::default();
    for live in &locked.live {
        heads.load(Head {
            key: Arc::clone(&live.key),
            revision: live.revision,
            created: live.created,
            stored: live.revision,
            expires: None,
        });
    }
    let before = locked.newest;
    let (mut newest, mut rows, mut answers) = (before, Vec::new(), Vec::with_capacity(writes.len()));
    for write in writes {
        let durable = Write {
            durability: Durability::Durable,
            ..write.clone()
        };
        answers.push(heads.plan(&durable, newest, now).map(|plan| {
            newest = plan.newest();
            let revision = plan.first.event.revision;
            let row = |planned: Planned, ttl| Row {
                event: planned.event,
                previous: planned.previous,
                ttl,
                stamp,
            };
            rows.push(row(plan.first, ttl_seconds(write.ttl)));
            rows.extend(plan.second.map(|planned| row(planned, None)));
            revision
        }));
    }
    Decided {
        before,
        newest,
        rows,
        answers,
        stamp,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::super::Expect;
    use super::super::database::Live;
    use super::*;

    fn write(key: &str, expect: Expect, change: Change) -> Write {
        Write {
            durability: Durability::Volatile,
            ..Write::new(key, expect, change)
        }
    }

    #[test]
    fn a_batch_is_decided_in_order_and_dense_against_what_is_there() {
        let put = || Change::Put(Bytes::from_static(b"x"));
        let moved = |from: &str, at| Change::Move {
            from: from.into(),
            at: Revision::new(at),
            value: Bytes::from_static(b"x"),
        };
        let seven = Revision::new(7);
        let locked = Locked {
            newest: Revision::new(100),
            live: vec![Live {
                key: "a".into(),
                revision: seven,
                created: Revision::new(3),
            }],
        };
        let writes = [
            write("a", Expect::At(seven), put()),
            write("a", Expect::At(seven), put()),
            write("a", Expect::At(Revision::new(101)), Change::Delete),
            write("b", Expect::Absent, put()),
            write("a", Expect::Absent, put()),
            write("c", Expect::Any, Change::Delete),
            write("d", Expect::Absent, moved("b", 103)),
            write("e", Expect::Absent, moved("b", 103)),
        ];
        assert_eq!(keys(&writes), ["a", "b", "c", "d", "e"].map(Arc::<str>::from));
        assert_eq!(keys(&writes[6..7]), ["b", "d"].map(Arc::<str>::from));
        let decided = decide(&writes, &locked, Stamp(1), Instant::now());
        let rows: Vec<_> = decided
            .rows
            .iter()
            .map(|row| {
                (
                    &*row.event.key,
                    row.event.revision.get(),
                    row.event.created.get(),
                    row.previous.get(),
                )
            })
            .collect();
        assert_eq!(
            rows,
            [
                ("a", 101, 3, 7),
                ("a", 102, 3, 101),
                ("b", 103, 103, 0),
                ("a", 104, 104, 0),
                ("d", 105, 105, 0),
                ("b", 106, 103, 103),
            ]
        );
        assert_eq!((decided.before.get(), decided.newest.get()), (100, 106));
        let told = decided
            .answers
            .iter()
            .map(|answer| answer.as_ref().map_or(0, |at| at.get()));
        assert_eq!(told.collect::<Vec<u64>>(), [101, 0, 102, 103, 104, 0, 105, 0]);
    }
}
