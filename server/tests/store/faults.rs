//! What a store must hold to while its servers are killed, paused and cut off, whatever they are.
//!
//! Writers go on through the faults, each on a key of its own and all on one they share. A watcher sees everything. In the
//! end what was acknowledged must be what the watcher saw: nothing lost, nothing twice, no revision left out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent::units::Revision;
use bytes::Bytes;
use server::store::{Event, Expect, Store, StoreError};
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
    let mut tasks = JoinSet::new();
    for (number, store) in stores.iter().enumerate() {
        for writer in 0..writers {
            let key = format!("/f/own/{number}-{writer}");
            tasks.spawn(write(Arc::clone(store), key, Arc::clone(&over)));
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
async fn write(store: Arc<dyn Store>, key: String, over: Arc<AtomicBool>) -> Deeds {
    let (mut deeds, mut state) = (Deeds::default(), None);
    for number in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let (write, value) = match state {
            None => (put(&key, Expect::Absent, &number.to_string()), Some(number)),
            Some(revision) if number % 3 == 2 => (delete(&key, Expect::At(revision)), None),
            Some(revision) => (put(&key, Expect::At(revision), &number.to_string()), Some(number)),
        };
        match store.write(write).await {
            Ok(revision) => {
                state = value.is_some().then_some(revision);
                deeds.acknowledged.push((key.clone(), value, revision));
            }
            Err(StoreError::Unavailable(_)) => {
                deeds.doubts += 1;
                state = there(&*store, &key).await.map(|(_, revision)| revision);
            }
            Err(error) => panic!("nobody else writes {key}: {error}"),
        }
        if number % 4 == 0 {
            add_one(&*store, &mut deeds).await;
        }
    }
    deeds
}

async fn add_one(store: &dyn Store, deeds: &mut Deeds) {
    let (count, expect) = match there(store, SHARED).await {
        Some((count, revision)) => (count + 1, Expect::At(revision)),
        None => (1, Expect::Absent),
    };
    match store.write(put(SHARED, expect, &count.to_string())).await {
        Ok(revision) => deeds.acknowledged.push((SHARED.to_owned(), Some(count), revision)),
        Err(StoreError::Conflict { .. }) => {}
        Err(StoreError::Unavailable(_)) => deeds.doubts += 1,
        Err(error) => panic!("{error}"),
    }
}

/// A key's number and revision, as soon as the store answers.
async fn there(store: &dyn Store, key: &str) -> Option<(u64, Revision)> {
    let asking = async {
        loop {
            match store.get(key).await {
                Ok(entry) => return entry.map(|entry| (number(&entry.value), entry.revision)),
                Err(StoreError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap()
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
