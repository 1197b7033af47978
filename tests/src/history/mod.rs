//! Whether what clients saw of a store can be explained by one order of their operations: linearizability, checked.
//!
//! A store is a set of registers, one per key; linearizability is a matter of each by itself (Herlihy and Wing), so each is
//! checked alone. The search is Wing and Gong's with Lowe's memory of what was tried: an operation may come next if none that
//! is still to come had ended before it began; a set of operations that led to the same state once already is not gone
//! into again. Pure: times are numbers that only have to be in order.

#[cfg(test)]
mod cases;
mod register;

use std::collections::{BTreeMap, HashSet};

use register::State;
pub use register::{Change, Expect, Operation, Seen};

/// What one client did, and what came of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// To which key.
    pub key: String,
    /// When it asked.
    pub called: u64,
    /// When it was answered. For an operation whose outcome is not known this does not matter: it may happen later.
    pub returned: u64,
    /// What it asked, and the answer.
    pub operation: Operation,
}

/// Why a history cannot be explained.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    /// No order explains it.
    #[error("no order explains what was seen of {key}; the longest that does ends before one of {next:#?}")]
    NotLinearizable {
        /// Of which key.
        key: String,
        /// What could have come next, and did not fit.
        next: Vec<Record>,
    },
    /// The search was given up.
    #[error("{key}: not decided after {STEPS} steps: fewer clients, or fewer operations of unknown outcome")]
    Undecided {
        /// Of which key.
        key: String,
    },
}

/// Orders tried for one key before the search is given up: some seconds.
const STEPS: usize = 4_000_000;

/// Checks a whole history. Every key begins without a value.
///
/// # Errors
/// [`Violation`], of the first key that has one.
pub fn check(records: &[Record]) -> Result<(), Violation> {
    let mut keys: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        keys.entry(&record.key).or_default().push(record);
    }
    keys.into_iter().try_for_each(|(key, records)| check_key(key, records))
}

/// A set of operations, by their place in the history.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Set(Vec<u64>);

impl Set {
    fn new(size: usize) -> Self {
        Self(vec![0; size.div_ceil(64)])
    }

    fn has(&self, place: usize) -> bool {
        self.0.get(place / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    fn with(&self, place: usize) -> Self {
        let mut set = self.clone();
        if let Some(word) = set.0.get_mut(place / 64) {
            *word |= 1 << (place % 64);
        }
        set
    }
}

fn check_key(key: &str, mut records: Vec<&Record>) -> Result<(), Violation> {
    records.sort_by_key(|record| record.called);
    let mut tried: HashSet<(Set, State)> = HashSet::new();
    let mut open = vec![(Set::new(records.len()), State::default(), 0)];
    let (mut longest, mut stuck, mut steps) = (0, Vec::new(), 0);
    while let Some((done, state, count)) = open.pop() {
        let left = || records.iter().enumerate().filter(|(place, _)| !done.has(*place));
        let certain = left().filter(|(_, record)| !record.operation.is_unknown());
        // Nothing that begins after this can come before it.
        let Some(first_end) = certain.map(|(_, record)| record.returned).min() else {
            return Ok(());
        };
        let candidates: Vec<_> = left().take_while(|(_, record)| record.called <= first_end).collect();
        if count >= longest {
            longest = count;
            stuck = candidates.iter().map(|(_, record)| Record::clone(record)).collect();
        }
        steps += candidates.len();
        if steps > STEPS {
            return Err(Violation::Undecided { key: key.to_owned() });
        }
        // What fits and changes nothing may as well come now: whatever explains the rest later explains it without, too.
        let idle = |record: &Record| state.after(&record.operation) == Some(state);
        if let Some((place, _)) = candidates.iter().find(|(_, record)| idle(record)) {
            open.push((done.with(*place), state, count + 1));
            continue;
        }
        // The last one pushed is tried first: what is certain, and began early.
        for (place, record) in candidates
            .iter()
            .rev()
            .filter(|(_, record)| record.operation.is_unknown())
        {
            advance(&mut open, &mut tried, &done, state, count, *place, record);
        }
        for (place, record) in candidates
            .iter()
            .rev()
            .filter(|(_, record)| !record.operation.is_unknown())
        {
            advance(&mut open, &mut tried, &done, state, count, *place, record);
        }
    }
    Err(Violation::NotLinearizable {
        key: key.to_owned(),
        next: stuck,
    })
}

/// Goes on with one more operation, if it fits and the outcome is new.
fn advance(
    open: &mut Vec<(Set, State, usize)>,
    tried: &mut HashSet<(Set, State)>,
    done: &Set,
    state: State,
    count: usize,
    place: usize,
    record: &Record,
) {
    let Some(next) = state.after(&record.operation) else {
        return;
    };
    let done = done.with(place);
    if tried.insert((done.clone(), next)) {
        open.push((done, next, count + 1));
    }
}
