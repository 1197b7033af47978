//! Which writes of a batch go ahead, and as what. Pure.

use std::sync::Arc;
use std::time::Instant;

use agent::units::Revision;

use super::super::heads::{Head, Heads, ttl_seconds};
use super::super::{Durability, StoreError, Write};
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

/// The keys of a batch, each once.
pub fn keys(writes: &[Write]) -> Vec<Arc<str>> {
    let mut keys: Vec<Arc<str>> = writes.iter().map(|write| Arc::clone(&write.key)).collect();
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
        answers.push(heads.plan(&durable, newest.next(), now).map(|planned| {
            newest = newest.next();
            rows.push(Row {
                event: planned.event,
                previous: planned.previous,
                ttl: ttl_seconds(write.ttl),
                stamp,
            });
            newest
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

    use super::super::super::{Change, Expect};
    use super::super::database::Live;
    use super::*;

    fn write(key: &str, expect: Expect, change: Change) -> Write {
        Write {
            key: key.into(),
            expect,
            change,
            ttl: None,
            durability: Durability::Volatile,
        }
    }

    #[test]
    fn a_batch_is_decided_in_order_and_dense_against_what_is_there() {
        let put = || Change::Put(Bytes::from_static(b"x"));
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
        ];
        assert_eq!(keys(&writes), ["a".into(), "b".into(), Arc::<str>::from("c")]);
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
                ("a", 104, 104, 0)
            ]
        );
        assert_eq!((decided.before.get(), decided.newest.get()), (100, 104));
        let went: Vec<bool> = decided.answers.iter().map(Result::is_ok).collect();
        assert_eq!(went, [true, false, true, true, true, false]);
    }
}
