//! What every backend must do, as checks that run against each of them.
//!
//! A backend's file says how a store is opened ([`Backend`]) and which groups of checks it must pass: [`of_all`],
//! [`of_lasting`] (there is something to open anew) and [`of_shared`] (several servers at once). Each check gets a
//! backend of its own, empty.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use server::store::{Change, Durability, Entry, Event, Expect, Range, Store, StoreError, Tail, Write};
use tokio::task::JoinSet;

pub use crate::guards::{
    a_write_under_a_guard_happens_only_while_that_is_as_it_was, nothing_of_a_term_happens_after_the_next_one_began,
};
pub use crate::moves::{
    a_key_becomes_another_one_in_one_transaction, a_move_that_lost_the_race_for_either_key_changes_nothing, moved,
    of_servers_that_move_one_key_at_once_one_does,
};

/// Longer than anything here takes; what never comes fails the test instead of the run.
const PATIENCE: Duration = Duration::from_secs(30);

/// A place where a log lies.
pub trait Backend: Send + Sync {
    /// A handle on the log. A second one while the first is open is a second server; only shared backends have that.
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>>;
}

/// One test of the file it stands in for each check.
macro_rules! checks {
    ($backend:expr; $($check:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                crate::contract::$check(&$backend).await;
            }
        )*
    };
}
pub(crate) use checks;

/// What every store does.
macro_rules! of_all {
    ($backend:expr) => {
        crate::contract::checks!($backend;
            writes_are_compared_and_swapped,
            a_key_becomes_another_one_in_one_transaction,
            a_move_that_lost_the_race_for_either_key_changes_nothing,
            a_write_under_a_guard_happens_only_while_that_is_as_it_was,
            the_past_can_be_listed,
            a_watch_misses_and_repeats_nothing,
            what_is_compacted_is_said_to_be,
            keys_expire_by_a_write_of_their_own,
            a_key_written_again_lives_as_long_as_its_last_write,
            a_closed_store_says_so_and_ends_its_watches,
        );
    };
}
pub(crate) use of_all;

/// What a store does that outlives its handle.
macro_rules! of_lasting {
    ($backend:expr) => {
        crate::contract::checks!($backend; a_clean_stop_and_a_start_change_nothing);
    };
}
pub(crate) use of_lasting;

/// What a store does that several servers have open.
macro_rules! of_shared {
    ($backend:expr) => {
        crate::contract::checks!($backend;
            what_one_server_wrote_the_other_reads_at_once,
            servers_that_write_at_once_lose_no_update,
            of_servers_that_move_one_key_at_once_one_does,
            nothing_of_a_term_happens_after_the_next_one_began,
            every_watch_shows_the_writes_of_all_servers,
            a_key_expires_once_whoever_sees_it,
            what_one_server_compacted_is_gone_for_the_other,
        );
    };
}
pub(crate) use of_shared;

pub fn put(key: &str, expect: Expect, value: &str) -> Write {
    Write::new(key, expect, Change::Put(Bytes::copy_from_slice(value.as_bytes())))
}

pub fn delete(key: &str, expect: Expect) -> Write {
    Write {
        change: Change::Delete,
        ..put(key, expect, "")
    }
}

pub fn volatile(write: Write) -> Write {
    Write {
        durability: Durability::Volatile,
        ..write
    }
}

pub async fn state(store: &dyn Store, prefix: &str, at: Option<Revision>) -> Result<Vec<String>, StoreError> {
    let range = Range {
        prefix: prefix.to_owned(),
        ..Range::default()
    };
    let snapshot = store.list(range, at).await?;
    let shown = |entry: &Entry| {
        format!(
            "{}={}@{}",
            entry.key,
            String::from_utf8_lossy(&entry.value),
            entry.revision
        )
    };
    Ok(snapshot.entries.iter().map(shown).collect())
}

/// What is in a tail now, as `key=value@revision` (`-` for a deletion).
pub async fn drained(tail: &mut Tail, count: usize) -> Vec<String> {
    let mut shown = Vec::new();
    while shown.len() < count {
        let batch = tokio::time::timeout(Duration::from_secs(10), tail.recv())
            .await
            .unwrap()
            .unwrap();
        shown.extend(batch.iter().map(show));
    }
    shown
}

pub fn show(event: &Event) -> String {
    let value = event
        .value
        .as_ref()
        .map_or("-".into(), |value| String::from_utf8_lossy(value).into_owned());
    format!("{}={value}@{}", event.key, event.revision)
}

pub async fn writes_are_compared_and_swapped(backend: &dyn Backend) {
    let store = &*backend.open().await;
    let one = store.write(put("/a", Expect::Absent, "1")).await.unwrap();
    let conflict = store.write(put("/a", Expect::Absent, "x")).await.unwrap_err();
    assert!(matches!(conflict, StoreError::Conflict { current } if current == Some(one)));
    let two = store.write(put("/a", Expect::At(one), "2")).await.unwrap();
    assert!(store.write(put("/a", Expect::At(one), "x")).await.is_err());
    assert!(store.write(delete("/a", Expect::At(one))).await.is_err());
    assert!(matches!(
        store.write(delete("/none", Expect::Any)).await,
        Err(StoreError::Conflict { current: None })
    ));
    assert_eq!(two.get(), one.get() + 1, "refused writes use no revision");
    let found = store.get("/a").await.unwrap().unwrap();
    assert_eq!(
        (found.revision, found.created, &*found.value),
        (two, one, b"2".as_slice())
    );
    store.write(delete("/a", Expect::At(two))).await.unwrap();
    assert_eq!(store.get("/a").await.unwrap(), None);
    let again = store.write(put("/a", Expect::Absent, "3")).await.unwrap();
    assert_eq!(store.get("/a").await.unwrap().unwrap().created, again, "a new life");
    assert_eq!(store.revision().await.unwrap(), again);
}

pub async fn the_past_can_be_listed(backend: &dyn Backend) {
    let store = &*backend.open().await;
    let mut revisions = Vec::new();
    for write in [
        put("/l/p/a", Expect::Any, "1"),
        put("/l/p/b", Expect::Any, "1"),
        put("/l/p/a", Expect::Any, "2"),
        delete("/l/p/b", Expect::Any),
        put("/l/q/c", Expect::Any, "1"),
    ] {
        revisions.push(store.write(write).await.unwrap());
    }
    let [first, second, third, fourth, fifth] = revisions.as_slice() else {
        panic!()
    };
    assert_eq!(
        state(store, "/l/p/", Some(*second)).await.unwrap(),
        [format!("/l/p/a=1@{first}"), format!("/l/p/b=1@{second}")]
    );
    assert_eq!(
        state(store, "/l/p/", Some(*third)).await.unwrap(),
        [format!("/l/p/a=2@{third}"), format!("/l/p/b=1@{second}")]
    );
    assert_eq!(
        state(store, "/l/p/", Some(*fourth)).await.unwrap(),
        [format!("/l/p/a=2@{third}")]
    );
    assert_eq!(
        state(store, "/l/", None).await.unwrap(),
        [format!("/l/p/a=2@{third}"), format!("/l/q/c=1@{fifth}")]
    );
    let range = Range {
        prefix: "/l/".into(),
        after: None,
        limit: Some(1),
    };
    let page = store.list(range.clone(), None).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (1, true));
    let after = Some(page.entries[0].key.to_string());
    let rest = store.list(Range { after, ..range }, Some(page.revision)).await.unwrap();
    assert_eq!((&*rest.entries[0].key, rest.more), ("/l/q/c", false));
}

pub async fn a_watch_misses_and_repeats_nothing(backend: &dyn Backend) {
    let store = backend.open().await;
    let from = store.write(put("/w/0", Expect::Any, "x")).await.unwrap();
    let before = store.write(put("/w/1", Expect::Any, "x")).await.unwrap();
    let mut tail = store.watch(from).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for number in 0..50 {
                let write = put(&format!("/w/{writer}"), Expect::Any, &number.to_string());
                let write = if number % 3 == 0 { volatile(write) } else { write };
                store.write(write).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let shown = drained(&mut tail, 401).await;
    let numbers: Vec<u64> = shown
        .iter()
        .filter_map(|event| event.rsplit('@').next()?.parse().ok())
        .collect();
    let wanted: Vec<u64> = (before.get()..=before.get() + 400).collect();
    assert_eq!(numbers, wanted, "dense, in order, each once");
    let mut late = store.watch(from).await.unwrap();
    let last = shown.last().unwrap();
    loop {
        // What the log holds is there without waiting.
        let batch = late.try_recv().unwrap();
        if batch.last().map(show).as_ref() == Some(last) {
            break;
        }
    }
}

pub async fn what_is_compacted_is_said_to_be(backend: &dyn Backend) {
    let store = &*backend.open().await;
    let mut revisions = Vec::new();
    for number in 0..10 {
        revisions.push(
            store
                .write(put("/c/a", Expect::Any, &number.to_string()))
                .await
                .unwrap(),
        );
    }
    let gone = store.write(put("/c/b", Expect::Any, "x")).await.unwrap();
    store.write(delete("/c/b", Expect::At(gone))).await.unwrap();
    let oldest = revisions[5];
    store.compact(oldest).await.unwrap();
    let early = state(store, "/c/", Some(revisions[4])).await;
    assert!(
        matches!(early, Err(StoreError::Compacted { oldest: kept, .. }) if kept == oldest),
        "{early:?}"
    );
    assert!(matches!(
        store.watch(revisions[4]).await,
        Err(StoreError::Compacted { .. })
    ));
    assert_eq!(
        state(store, "/c/", Some(oldest)).await.unwrap(),
        [format!("/c/a=5@{oldest}")]
    );
    let mut tail = store.watch(oldest).await.unwrap();
    assert_eq!(drained(&mut tail, 6).await.len(), 6);
    let ahead = Revision::new(store.revision().await.unwrap().get() + 1);
    assert!(matches!(store.watch(ahead).await, Err(StoreError::Future { .. })));
    assert!(matches!(store.compact(ahead).await, Err(StoreError::Future { .. })));
    let newest = store.revision().await.unwrap();
    store.compact(newest).await.unwrap();
    assert_eq!(state(store, "/c/", None).await.unwrap().len(), 1);
}

pub async fn keys_expire_by_a_write_of_their_own(backend: &dyn Backend) {
    let store = backend.open().await;
    let from = store.revision().await.unwrap();
    let mut tail = store.watch(from).await.unwrap();
    let begun = Instant::now();
    for (key, ttl, durable) in [("/e/a", 1, true), ("/e/b", 1, false), ("/e/c", 600, true)] {
        let mut write = put(key, Expect::Any, "x");
        write.ttl = Some(Duration::from_secs(ttl));
        store
            .write(if durable { write } else { volatile(write) })
            .await
            .unwrap();
    }
    gone(&*store, "/e/", 1).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "before its time");
    let shown = drained(&mut tail, 5).await;
    let deleted = shown.iter().filter(|event| event.contains("=-@")).count();
    assert_eq!((shown.len(), deleted), (5, 2), "{shown:?}");
}

pub async fn a_key_written_again_lives_as_long_as_its_last_write(backend: &dyn Backend) {
    let store = backend.open().await;
    let begun = Instant::now();
    for (key, first, second) in [
        ("/t/stays", Some(1), None),
        ("/t/goes", Some(600), Some(1)),
        ("/t/long", Some(1), Some(600)),
    ] {
        for ttl in [first, second] {
            let ttl = ttl.map(Duration::from_secs);
            store
                .write(Write {
                    ttl,
                    ..put(key, Expect::Any, "x")
                })
                .await
                .unwrap();
        }
    }
    gone(&*store, "/t/", 2).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "before its time");
    // Expiry of the others would be due by now, and is looked for by this write, too.
    store.write(put("/t/stays", Expect::Any, "y")).await.unwrap();
    let keys: Vec<_> = state(&*store, "/t/", None).await.unwrap();
    assert!(
        keys[0].starts_with("/t/long=") && keys[1].starts_with("/t/stays="),
        "{keys:?}"
    );
}

/// Waits until so many keys are left.
async fn gone(store: &dyn Store, prefix: &str, left: usize) {
    let all_gone = async {
        while state(store, prefix, None).await.unwrap().len() > left {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_gone).await.unwrap();
    assert_eq!(state(store, prefix, None).await.unwrap().len(), left);
}

pub async fn a_closed_store_says_so_and_ends_its_watches(backend: &dyn Backend) {
    let store = backend.open().await;
    let from = store.write(put("/a", Expect::Any, "x")).await.unwrap();
    let mut tail = store.watch(from).await.unwrap();
    store.close().await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, tail.recv()).await.unwrap().is_none());
    let write = store.write(put("/a", Expect::Any, "y")).await;
    assert!(matches!(write, Err(StoreError::Unavailable(_))), "{write:?}");
    assert!(matches!(store.get("/a").await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.watch(from).await, Err(StoreError::Unavailable(_))));
    let again = store.close().await;
    assert!(matches!(again, Err(StoreError::Unavailable(_))), "{again:?}");
}

pub async fn a_clean_stop_and_a_start_change_nothing(backend: &dyn Backend) {
    let store = backend.open().await;
    let first = store.write(put("/r/a", Expect::Absent, "1")).await.unwrap();
    let second = store.write(put("/r/b", Expect::Absent, "1")).await.unwrap();
    let third = store.write(put("/r/a", Expect::At(first), "2")).await.unwrap();
    let fourth = store.write(delete("/r/b", Expect::At(second))).await.unwrap();
    let before = state(&*store, "/", None).await.unwrap();
    assert_eq!(before, [format!("/r/a=2@{third}")]);
    store.close().await.unwrap();
    drop(store);
    let store = backend.open().await;
    assert_eq!(state(&*store, "/", None).await.unwrap(), before);
    assert_eq!(store.revision().await.unwrap(), fourth, "no hole in the revisions");
    let mut tail = store.watch(second).await.unwrap();
    assert_eq!(
        drained(&mut tail, 2).await,
        [format!("/r/a=2@{third}"), format!("/r/b=-@{fourth}")]
    );
    let conflict = store.write(put("/r/a", Expect::At(first), "3")).await.unwrap_err();
    assert!(matches!(conflict, StoreError::Conflict { current } if current == Some(third)));
    let next = store.write(put("/r/a", Expect::At(third), "3")).await.unwrap();
    assert_eq!(next, fourth.next());
    let moved = store
        .write(moved("/r/c", Expect::Absent, "4", "/r/a", next))
        .await
        .unwrap();
    let newest = store.revision().await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let store = backend.open().await;
    assert_eq!(state(&*store, "/", None).await.unwrap(), [format!("/r/c=4@{moved}")]);
    assert_eq!(store.revision().await.unwrap(), newest);
    assert_eq!(
        store.write(put("/r/d", Expect::Absent, "5")).await.unwrap(),
        newest.next()
    );
}

pub async fn what_one_server_wrote_the_other_reads_at_once(backend: &dyn Backend) {
    let (one, two) = (backend.open().await, backend.open().await);
    let mut expect = Expect::Absent;
    for number in 0..20 {
        let (writer, reader) = if number % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let revision = writer.write(put("/o/a", expect, &number.to_string())).await.unwrap();
        expect = Expect::At(revision);
        assert_eq!(reader.revision().await.unwrap(), revision);
        let found = reader.get("/o/a").await.unwrap().unwrap();
        assert_eq!(
            (found.revision, &*found.value),
            (revision, number.to_string().as_bytes())
        );
        let listed = state(&**reader, "/o/", None).await.unwrap();
        assert_eq!(listed, [format!("/o/a={number}@{revision}")]);
        assert!(reader.watch(revision).await.is_ok());
    }
}

/// Counts a key up by compare-and-swap until `times` writes of its own have gone ahead.
async fn count_up(store: Arc<dyn Store>, key: String, times: usize) -> Vec<Revision> {
    let mut own = Vec::new();
    while own.len() < times {
        let now = store.get(&key).await.unwrap();
        let (expect, number) = match &now {
            None => (Expect::Absent, 0),
            Some(entry) => (
                Expect::At(entry.revision),
                String::from_utf8_lossy(&entry.value).parse::<usize>().unwrap(),
            ),
        };
        match store.write(put(&key, expect, &(number + 1).to_string())).await {
            Ok(revision) => own.push(revision),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    own
}

pub async fn servers_that_write_at_once_lose_no_update(backend: &dyn Backend) {
    let stores = [backend.open().await, backend.open().await];
    let from = stores[0].revision().await.unwrap();
    let mut writers = JoinSet::new();
    for number in 0..12 {
        let store = Arc::clone(&stores[number % 2]);
        writers.spawn(count_up(store, format!("/u/{}", number % 3), 15));
    }
    let mut all: Vec<Revision> = writers.join_all().await.concat();
    all.sort();
    let dense: Vec<Revision> = (1..=180).map(|number| Revision::new(from.get() + number)).collect();
    assert_eq!(all, dense, "each write a revision of its own, and none between");
    for key in 0..3 {
        let entry = stores[key % 2].get(&format!("/u/{key}")).await.unwrap().unwrap();
        assert_eq!(&*entry.value, b"60", "every update of /u/{key} is in it");
    }
}

pub async fn every_watch_shows_the_writes_of_all_servers(backend: &dyn Backend) {
    let stores = [backend.open().await, backend.open().await];
    let from = stores[0].revision().await.unwrap();
    let early = [
        stores[0].watch(from).await.unwrap(),
        stores[1].watch(from).await.unwrap(),
    ];
    let mut writers = JoinSet::new();
    for number in 0..16 {
        let store = Arc::clone(&stores[number % 2]);
        writers.spawn(async move {
            let mut own = BTreeMap::new();
            for round in 0..40 {
                let (key, value) = (format!("/v/{number}"), round.to_string());
                let revision = store.write(put(&key, Expect::Any, &value)).await.unwrap();
                own.insert(revision, format!("{key}={value}@{revision}"));
            }
            own
        });
    }
    // These begin in the middle of it.
    tokio::time::sleep(Duration::from_millis(30)).await;
    let late = [
        stores[0].watch(from).await.unwrap(),
        stores[1].watch(from).await.unwrap(),
    ];
    let wanted: BTreeMap<Revision, String> = writers.join_all().await.into_iter().flatten().collect();
    let wanted: Vec<String> = wanted.into_values().collect();
    assert_eq!(wanted.len(), 640);
    for mut tail in early.into_iter().chain(late) {
        assert_eq!(drained(&mut tail, 640).await, wanted);
    }
}

pub async fn a_key_expires_once_whoever_sees_it(backend: &dyn Backend) {
    let stores = [backend.open().await, backend.open().await];
    let mut tail = stores[1].watch(stores[0].revision().await.unwrap()).await.unwrap();
    for number in 0..20 {
        let ttl = Some(Duration::from_secs(1));
        let write = Write {
            ttl,
            ..put(&format!("/x/{number}"), Expect::Absent, "x")
        };
        stores[number % 2].write(write).await.unwrap();
    }
    gone(&*stores[0], "/x/", 0).await;
    let shown = drained(&mut tail, 40).await;
    let deleted = shown.iter().filter(|event| event.contains("=-@")).count();
    assert_eq!((shown.len(), deleted), (40, 20), "{shown:?}");
    let next = stores[0].write(put("/x/next", Expect::Absent, "x")).await.unwrap();
    assert_eq!(
        drained(&mut tail, 1).await,
        [format!("/x/next=x@{next}")],
        "nothing was deleted twice"
    );
}

pub async fn what_one_server_compacted_is_gone_for_the_other(backend: &dyn Backend) {
    let (one, two) = (backend.open().await, backend.open().await);
    let first = one.write(put("/k/a", Expect::Any, "1")).await.unwrap();
    let mut last = first;
    for number in 2..10 {
        last = two.write(put("/k/a", Expect::Any, &number.to_string())).await.unwrap();
    }
    let mut tail = two.watch(first).await.unwrap();
    assert_eq!(drained(&mut tail, 8).await.len(), 8);
    one.compact(last).await.unwrap();
    let early = state(&*two, "/k/", Some(first)).await;
    assert!(
        matches!(early, Err(StoreError::Compacted { oldest, .. }) if oldest == last),
        "{early:?}"
    );
    assert!(matches!(two.watch(first).await, Err(StoreError::Compacted { .. })));
    let next = two.write(put("/k/a", Expect::At(last), "x")).await.unwrap();
    assert_eq!(
        drained(&mut tail, 1).await,
        [format!("/k/a=x@{next}")],
        "who was there goes on"
    );
}
