//! What a store must hold to while its servers are killed, paused and cut off, whatever they are.
//!
//! Writers go on through the faults, each on a key of its own and all on one they share. A watcher sees everything. In the
//! end what was acknowledged must be what the watcher saw: nothing lost, nothing twice, no revision left out. And there must
//! be one order of all writes and reads that explains every answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use agent::units::Revision;
use bytes::Bytes;
use server::store::{Change, Event, Expect, Store, StoreError, Write};
use tests::history::{self, Operation, Record, Seen};
use tokio::task::JoinSet;

use crate::contract::{delete, put};

const SHARED: &str = "/f/shared";
const MARK: &str = "/f/mark";
/// Longer than a store takes to come back; what never does fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a writer did.
#[derive(Default)]
struct Deeds {
    /// Key, value (`None`: deleted) and revision of each acknowledged write.
    acknowledged: Vec<(String, Option<u64>, Revision)>,
    /// Writes that may have happened.
    doubts: usize,
    /// All of it, reads too.
    history: Vec<Record>,
}

/// What a writer works with.
#[derive(Clone)]
struct Desk {
    store: Arc<dyn Store>,
    /// Counts calls and returns, so that their order is known.
    clock: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

/// What a run was, for its test to judge whether it meant anything.
#[derive(Debug)]
pub struct Run {
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Writes of which the store said that it does not know.
    pub doubts: usize,
}

/// Lets `writers` per store write until `faults` is over, then judges. The last store's watch is the witness.
pub async fn bear(stores: Vec<Arc<dyn Store>>, writers: usize, faults: impl Future<Output = ()>) -> Run {
    let witness = Arc::clone(stores.last().unwrap());
    let from = witness.revision().await.unwrap();
    let mut tail = witness.watch(from).await.unwrap();
    let watching = async move {
        let mut seen: Vec<Event> = Vec::new();
        while seen.last().is_none_or(|event| &*event.key != MARK) {
            let Some(batch) = tail.recv().await else {
                panic!("a watch ended for a fault");
            };
            seen.extend(batch.iter().cloned());
        }
        seen
    };
    let mut watcher = JoinSet::new();
    watcher.spawn(watching);

    let over = Arc::new(AtomicBool::new(false));
    let clock = Arc::new(AtomicU64::new(1));
    let mut tasks = JoinSet::new();
    for (number, store) in stores.iter().enumerate() {
        for writer in 0..writers {
            let key = format!("/f/own/{number}-{writer}");
            let desk = Desk {
                store: Arc::clone(store),
                clock: Arc::clone(&clock),
                over: Arc::clone(&over),
            };
            tasks.spawn(write(desk, key));
        }
    }
    faults.await;
    over.store(true, Ordering::Relaxed);
    let deeds = tokio::time::timeout(PATIENCE, tasks.join_all()).await.unwrap();
    let mark = witness.write(put(MARK, Expect::Any, "x")).await.unwrap();
    let seen = tokio::time::timeout(PATIENCE, watcher.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    judge(&deeds, &seen, from, mark)
}

/// Creates, changes and deletes its own key by turns, and adds one to the shared one between.
async fn write(desk: Desk, key: String) -> Deeds {
    let (mut deeds, mut state) = (Deeds::default(), None);
    for number in 0.. {
        if desk.over.load(Ordering::Relaxed) {
            break;
        }
        let (write, value) = match state {
            None => (put(&key, Expect::Absent, &number.to_string()), Some(number)),
            Some(revision) if number % 3 == 2 => (delete(&key, Expect::At(revision)), None),
            Some(revision) => (put(&key, Expect::At(revision), &number.to_string()), Some(number)),
        };
        match desk.write(write, &mut deeds).await {
            Ok(revision) => state = value.is_some().then_some(revision),
            Err(StoreError::Unavailable(_)) => state = desk.read(&key, &mut deeds).await.map(|(_, revision)| revision),
            Err(error) => panic!("nobody else writes {key}: {error}"),
        }
        if number % 4 == 0 {
            let (count, expect) = match desk.read(SHARED, &mut deeds).await {
                Some((count, revision)) => (count + 1, Expect::At(revision)),
                None => (1, Expect::Absent),
            };
            // Somebody else may be first.
            let _ = desk.write(put(SHARED, expect, &count.to_string()), &mut deeds).await;
        }
    }
    deeds
}

impl Desk {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes, and notes what came of it.
    async fn write(&self, write: Write, deeds: &mut Deeds) -> Result<Revision, StoreError> {
        let key = write.key.to_string();
        let value = match &write.change {
            Change::Put(value) | Change::Move { value, .. } => Some(number(value)),
            Change::Delete => None,
        };
        let change = value.map_or(history::Change::Delete, history::Change::Put);
        let expect = match write.expect {
            Expect::Absent => history::Expect::Absent,
            Expect::At(revision) => history::Expect::At(revision.get()),
            Expect::Any => history::Expect::Any,
        };
        let called = self.now();
        let answer = self.store.write(write).await;
        let operation = match &answer {
            Ok(revision) => {
                deeds.acknowledged.push((key.clone(), value, *revision));
                let revision = revision.get();
                Operation::Written {
                    expect,
                    change,
                    revision,
                }
            }
            Err(StoreError::Conflict { current }) => {
                let current = current.map(Revision::get);
                Operation::Refused {
                    expect,
                    change,
                    current,
                }
            }
            Err(StoreError::Unavailable(_)) => {
                deeds.doubts += 1;
                Operation::Unknown { expect, change }
            }
            Err(error) => panic!("{key}: {error}"),
        };
        let returned = self.now();
        deeds.history.push(Record {
            key,
            called,
            returned,
            operation,
        });
        answer
    }

    /// A key's number and revision, as soon as the store answers.
    async fn read(&self, key: &str, deeds: &mut Deeds) -> Option<(u64, Revision)> {
        let asking = async {
            loop {
                let called = self.now();
                match self.store.get(key).await {
                    Ok(entry) => return (called, entry.map(|entry| (number(&entry.value), entry.revision))),
                    Err(StoreError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let (called, found) = tokio::time::timeout(PATIENCE, asking).await.unwrap();
        let seen = found.map(|(value, revision)| Seen {
            value,
            revision: revision.get(),
        });
        let (key, returned, operation) = (key.to_owned(), self.now(), Operation::Read(seen));
        deeds.history.push(Record {
            key,
            called,
            returned,
            operation,
        });
        found
    }
}

fn number(value: &Bytes) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

fn judge(deeds: &[Deeds], seen: &[Event], from: Revision, mark: Revision) -> Run {
    let revisions: Vec<u64> = seen.iter().map(|event| event.revision.get()).collect();
    let wanted: Vec<u64> = (from.get() + 1..=mark.get()).collect();
    assert_eq!(revisions, wanted, "each revision once, in order");

    let by_revision: BTreeMap<Revision, &Event> = seen.iter().map(|event| (event.revision, event)).collect();
    for (key, value, revision) in deeds.iter().flat_map(|deeds| &deeds.acknowledged) {
        let event = by_revision[revision];
        let shown = event.value.as_ref().map(number);
        assert_eq!((&*event.key, shown), (&**key, *value), "at {revision}");
    }

    let whole: Vec<Record> = deeds.iter().flat_map(|deeds| deeds.history.iter().cloned()).collect();
    history::check(&whole).unwrap();

    let doubts: usize = deeds.iter().map(|deeds| deeds.doubts).sum();
    let acknowledged: usize = deeds.iter().map(|deeds| deeds.acknowledged.len()).sum();
    let ours: Vec<&Event> = seen
        .iter()
        .filter(|event| &*event.key != MARK && event.key.starts_with("/f/"))
        .collect();
    assert!(
        (acknowledged..=acknowledged + doubts).contains(&ours.len()),
        "{} events of {acknowledged} acknowledged writes and {doubts} in doubt",
        ours.len()
    );
    let values: Vec<(&str, u64)> = ours
        .iter()
        .filter_map(|event| Some((&*event.key, number(event.value.as_ref()?))))
        .collect();
    let distinct: BTreeSet<_> = values.iter().collect();
    assert_eq!(distinct.len(), values.len(), "no write happened twice");
    let shared: Vec<u64> = values
        .iter()
        .filter(|(key, _)| *key == SHARED)
        .map(|(_, count)| *count)
        .collect();
    assert_eq!(
        shared,
        (1..=shared.len() as u64).collect::<Vec<_>>(),
        "no update was lost"
    );
    Run { acknowledged, doubts }
}
