//! Histories that are good, histories that are not, and made-up stores that do wrong on purpose.

use super::Operation::{Read, Refused, Unknown, Written};
use super::{Change, Expect, Operation, Record, Seen, Violation, check};

fn record(called: u64, returned: u64, operation: Operation) -> Record {
    Record {
        key: "/a".to_owned(),
        called,
        returned,
        operation,
    }
}

fn put(expect: Expect, value: u64, revision: u64) -> Operation {
    Written {
        expect,
        change: Change::Put(value),
        revision,
    }
}

fn saw(value: u64, revision: u64) -> Operation {
    Read(Some(Seen { value, revision }))
}

fn lost(expect: Expect, value: u64) -> Operation {
    Unknown {
        expect,
        change: Change::Put(value),
    }
}

fn delete(expect: Expect, revision: u64) -> Operation {
    Written {
        expect,
        change: Change::Delete,
        revision,
    }
}

fn is_good(history: &[(u64, u64, Operation)]) -> bool {
    let records: Vec<Record> = history
        .iter()
        .map(|(called, returned, operation)| record(*called, *returned, *operation))
        .collect();
    match check(&records) {
        Ok(()) => true,
        Err(Violation::NotLinearizable { .. }) => false,
        Err(undecided @ Violation::Undecided { .. }) => panic!("{undecided}"),
    }
}

#[test]
fn what_an_order_explains_is_good() {
    let absent = Expect::Absent;
    for history in [
        vec![],
        vec![(1, 2, Read(None)), (3, 4, put(absent, 7, 1)), (5, 6, saw(7, 1))],
        // At the same time: either may be first.
        vec![(1, 9, put(absent, 7, 1)), (2, 3, Read(None)), (4, 5, saw(7, 1))],
        vec![
            (1, 9, put(Expect::Any, 7, 2)),
            (1, 9, put(absent, 8, 1)),
            (10, 11, saw(7, 2)),
        ],
        // Nobody knows: never, in time, or much later.
        vec![(1, 2, lost(absent, 7)), (3, 4, Read(None))],
        vec![(1, 2, lost(absent, 7)), (3, 4, saw(7, 5))],
        vec![(1, 2, lost(absent, 7)), (3, 4, Read(None)), (5, 6, saw(7, 5))],
        vec![
            (1, 2, lost(absent, 7)),
            (3, 4, put(Expect::At(5), 8, 6)),
            (5, 6, saw(8, 6)),
        ],
        vec![
            (1, 2, put(absent, 7, 1)),
            (3, 4, delete(Expect::At(1), 2)),
            (5, 6, put(absent, 8, 3)),
            (
                7,
                8,
                Refused {
                    expect: Expect::At(1),
                    change: Change::Put(9),
                    current: Some(3),
                },
            ),
        ],
        vec![(
            1,
            2,
            Refused {
                expect: Expect::Any,
                change: Change::Delete,
                current: None,
            },
        )],
    ] {
        assert!(is_good(&history), "{history:?}");
    }
}

#[test]
fn what_no_order_explains_is_not() {
    let absent = Expect::Absent;
    for (history, why) in [
        (vec![(1, 2, put(absent, 7, 1)), (3, 4, Read(None))], "a lost write"),
        (
            vec![(1, 2, saw(7, 1)), (3, 4, put(absent, 7, 1))],
            "a read of what is to come",
        ),
        (
            vec![
                (1, 2, put(absent, 7, 1)),
                (3, 4, put(Expect::At(1), 8, 2)),
                (5, 6, saw(7, 1)),
            ],
            "a stale read",
        ),
        (
            vec![
                (1, 2, put(absent, 7, 1)),
                (3, 9, put(Expect::At(1), 8, 2)),
                (3, 9, put(Expect::At(1), 9, 3)),
            ],
            "two updates of one state",
        ),
        (
            vec![(1, 9, put(absent, 7, 1)), (2, 3, saw(7, 1)), (4, 5, Read(None))],
            "two reads that see it come and go",
        ),
        (
            vec![
                (1, 2, put(absent, 7, 1)),
                (3, 4, delete(Expect::Any, 2)),
                (5, 6, delete(Expect::Any, 3)),
            ],
            "a deletion of nothing",
        ),
        (
            vec![(
                1,
                2,
                Refused {
                    expect: absent,
                    change: Change::Put(7),
                    current: None,
                },
            )],
            "a refusal without a cause",
        ),
        (
            vec![
                (1, 2, lost(absent, 7)),
                (3, 4, saw(7, 1)),
                (5, 6, delete(Expect::At(1), 2)),
                (7, 8, saw(7, 3)),
            ],
            "a write of unknown outcome that happens twice",
        ),
        (
            vec![(3, 4, lost(absent, 7)), (1, 2, saw(7, 1))],
            "and one that is seen before it is asked for",
        ),
    ] {
        assert!(!is_good(&history), "{why}: {history:?}");
    }
}

#[test]
fn keys_are_judged_each_by_itself() {
    let mut wrong = record(3, 4, Read(None));
    wrong.key = "/b".to_owned();
    let mut write = record(1, 2, put(Expect::Absent, 7, 1));
    write.key = "/b".to_owned();
    let good = record(1, 2, put(Expect::Absent, 7, 1));
    let found = check(&[good, write, wrong]);
    assert!(
        matches!(&found, Err(Violation::NotLinearizable { key, .. }) if key == "/b"),
        "{found:?}"
    );
}

/// How a made-up store is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    None,
    /// Acknowledges a write and forgets it.
    Loses,
    /// Does a write of unknown outcome twice, the second time whatever there is then.
    Repeats,
    /// Reads what was.
    Stale,
    /// Does not look at what a write expects.
    Blind,
}

/// Numbers that look like chance and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// What clients see of a register that is wrong now and then. Each operation takes effect at one moment between call and
/// return, so without a fault the history is good.
fn made_up(seed: u64, fault: Fault) -> Vec<Record> {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut now, mut revision) = (0_u64, 0_u64);
    let (mut state, mut before): (Option<Seen>, Option<Seen>) = (None, None);
    let mut repeats: Option<(u64, u64)> = None;
    let mut records = Vec::new();
    for number in 0..60 {
        // Calls begin up to three operations early and end up to three late.
        now += 10;
        let (called, returned) = (now - dice.roll(30).min(now), now + dice.roll(30));
        let wrong = dice.roll(6) == 0;
        if let Some((at, value)) = repeats
            && number == at
        {
            revision += 1;
            state = Some(Seen { value, revision });
            repeats = None;
        }
        if dice.roll(2) == 0 {
            let stale = fault == Fault::Stale && wrong;
            records.push(record(called, returned, Read(if stale { before } else { state })));
            continue;
        }
        let current = state.map(|seen| seen.revision);
        let expect = match (dice.roll(4), current) {
            (0, _) => Expect::Any,
            (1, _) | (_, None) => Expect::Absent,
            (2, Some(current)) => Expect::At(current.saturating_sub(dice.roll(2))),
            (_, Some(current)) => Expect::At(current),
        };
        let change = if dice.roll(4) == 0 {
            Change::Delete
        } else {
            Change::Put(number)
        };
        let met = match expect {
            Expect::Any => true,
            Expect::Absent => state.is_none(),
            Expect::At(wanted) => current == Some(wanted),
        };
        let met = (met || (fault == Fault::Blind && wrong)) && (state.is_some() || change != Change::Delete);
        let unknown = dice.roll(8) == 0;
        if unknown && dice.roll(2) == 0 {
            records.push(record(called, returned, Unknown { expect, change }));
            continue;
        }
        if !met {
            records.push(record(
                called,
                returned,
                Refused {
                    expect,
                    change,
                    current,
                },
            ));
            continue;
        }
        revision += 1;
        let after = match change {
            Change::Put(value) => Some(Seen { value, revision }),
            Change::Delete => None,
        };
        if !(fault == Fault::Loses && wrong && !unknown) {
            before = state;
            state = after;
        }
        if unknown {
            if let (Fault::Repeats, Change::Put(value)) = (fault, change) {
                repeats = Some((number + 6, value));
            }
            records.push(record(called, returned, Unknown { expect, change }));
        } else {
            records.push(record(
                called,
                returned,
                Written {
                    expect,
                    change,
                    revision,
                },
            ));
        }
    }
    records
}

#[test]
fn a_store_without_a_fault_is_never_accused() {
    for seed in 0..400 {
        let history = made_up(seed, Fault::None);
        assert_eq!(check(&history), Ok(()), "seed {seed}");
    }
}

#[test]
fn a_store_with_a_fault_is_found_out() {
    for (fault, least) in [
        (Fault::Loses, 60),
        (Fault::Stale, 50),
        (Fault::Blind, 50),
        (Fault::Repeats, 20),
    ] {
        let found = (0..100)
            .filter(|seed| matches!(check(&made_up(*seed, fault)), Err(Violation::NotLinearizable { .. })))
            .count();
        // Some never get to do wrong, and some wrongs can be explained.
        assert!(found >= least, "{fault:?}: only {found} of 100");
    }
}
