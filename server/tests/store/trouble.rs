//! What holds while a shared database dies, hangs, drops its connections or forgets.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::units::Revision;
use futures_util::future::BoxFuture;
use server::store::{Expect, Store, StoreError, Tail};
use tokio::task::JoinSet;

use crate::contract::{Backend, drained, put, show, state};

/// Longer than a database takes to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// A database server that a test may mistreat.
pub trait Fragile: Backend {
    /// As by a power cut.
    fn kill(&self);
    /// On what the kill left.
    fn start_again(&self);
    /// It neither answers nor ends.
    fn pause(&self);
    /// It goes on.
    fn resume(&self);
    /// It ends every connection of ours.
    fn cut_connections(&self);
    /// A server's store that keeps what it has seen in `folder`.
    fn open_with<'a>(&'a self, folder: &'a Path) -> BoxFuture<'a, Arc<dyn Store>>;
    /// As if it had failed over to a replica that was behind.
    fn lose_writes_after(&self, revision: u64);
}

/// One test of the file it stands in for each check.
macro_rules! of_fragile {
    ($backend:expr) => {
        crate::trouble::of_fragile!($backend;
            a_killed_database_loses_no_acknowledged_write,
            cut_connections_lose_and_repeat_nothing,
            a_database_that_hangs_delays_and_loses_nothing,
            a_database_that_is_away_is_said_to_be_and_watches_wait,
            a_database_that_lost_writes_ends_all_watches,
            what_a_database_lost_while_all_servers_were_down_is_noticed,
        );
    };
    ($backend:expr; $($check:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                crate::trouble::$check(&$backend).await;
            }
        )*
    };
}
pub(crate) use of_fragile;

/// Reads a watch as fast as a cache would, for who does not is cut off.
struct Reader {
    shown: Arc<Mutex<Vec<String>>>,
    task: JoinSet<()>,
}

impl Reader {
    fn start(mut tail: Tail) -> Self {
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut task, to) = (JoinSet::new(), Arc::clone(&shown));
        task.spawn(async move {
            while let Some(batch) = tail.recv().await {
                to.lock().unwrap().extend(batch.iter().map(show));
            }
        });
        Self { shown, task }
    }

    /// Waits until there have been so many events, and returns them.
    async fn take(mut self, count: usize) -> Vec<String> {
        let there = async {
            while self.shown.lock().unwrap().len() < count {
                assert!(self.task.try_join_next().is_none(), "the watch has ended");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, there).await.unwrap();
        std::mem::take(&mut *self.shown.lock().unwrap())
    }
}

/// Writers on two servers that count keys up, each its own, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
    writers: JoinSet<(String, usize, Vec<Revision>)>,
    readers: [Reader; 2],
}

impl Load {
    fn start(stores: &[Arc<dyn Store>; 2], tails: [Tail; 2]) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut writers = JoinSet::new();
        for number in 0..8 {
            let store = Arc::clone(&stores[number % 2]);
            writers.spawn(count(
                store,
                format!("/n/{number}"),
                Arc::clone(&stop),
                Arc::clone(&written),
            ));
        }
        let readers = tails.map(Reader::start);
        Self {
            stop,
            written,
            writers,
            readers,
        }
    }

    /// Waits until so many more writes have been acknowledged.
    async fn progress(&self, more: usize) {
        let wanted = self.written.load(Ordering::Relaxed) + more;
        let progress = async {
            while self.written.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, progress).await.unwrap();
    }

    /// Stops, and holds the log to what was acknowledged: every number in it once, in order, and both watches the same.
    async fn verify(self, stores: &[Arc<dyn Store>; 2]) {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for (key, number, revisions) in self.writers.join_all().await {
            let entry = stores[0].get(&key).await.unwrap().unwrap();
            let found: usize = String::from_utf8_lossy(&entry.value).parse().unwrap();
            assert_eq!(found, number, "{key}");
            acknowledged.extend(revisions);
        }
        let newest = stores[1].revision().await.unwrap();
        acknowledged.sort();
        let once = acknowledged.len();
        acknowledged.dedup();
        assert_eq!(once, acknowledged.len(), "no revision twice");
        let count = usize::try_from(newest.get()).unwrap();
        let mut shown = Vec::new();
        for reader in self.readers {
            shown.push(reader.take(count).await);
        }
        assert_eq!(shown[0], shown[1], "both servers tell the same");
        for (event, revision) in shown[0].iter().zip(1..) {
            assert!(event.ends_with(&format!("@{revision}")), "{event} is {revision}.");
        }
        for number in 0..8 {
            let key = format!("/n/{number}=");
            let of_key = shown[0].iter().filter_map(|event| event.strip_prefix(&key));
            let numbers: Vec<usize> = of_key
                .map(|event| event.split('@').next().unwrap().parse().unwrap())
                .collect();
            let wanted: Vec<usize> = (1..=numbers.len()).collect();
            assert_eq!(numbers, wanted, "each update of {key} once and in order");
        }
    }
}

/// Counts a key up. After a failure it looks what is there, as a client would: then its write has happened, or has not.
async fn count(
    store: Arc<dyn Store>,
    key: String,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
) -> (String, usize, Vec<Revision>) {
    let (mut number, mut expect, mut revisions) = (0, Expect::Absent, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        match store.write(put(&key, expect, &(number + 1).to_string())).await {
            Ok(revision) => {
                number += 1;
                expect = Expect::At(revision);
                revisions.push(revision);
                written.fetch_add(1, Ordering::Relaxed);
            }
            Err(StoreError::Unavailable(_)) => {
                let found = loop {
                    match store.get(&key).await {
                        Ok(found) => break found,
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                };
                let there = found
                    .as_ref()
                    .map_or(0, |entry| String::from_utf8_lossy(&entry.value).parse().unwrap());
                assert!(there == number || there == number + 1, "{key}: {there} after {number}");
                number = there;
                expect = found.map_or(Expect::Absent, |entry| Expect::At(entry.revision));
            }
            Err(other) => panic!("{key} has one writer, and yet: {other}"),
        }
    }
    (key, number, revisions)
}

async fn two(backend: &dyn Fragile) -> ([Arc<dyn Store>; 2], [Tail; 2]) {
    let stores = [backend.open().await, backend.open().await];
    let tails = [
        stores[0].watch(Revision::ZERO).await.unwrap(),
        stores[1].watch(Revision::ZERO).await.unwrap(),
    ];
    (stores, tails)
}

pub async fn a_killed_database_loses_no_acknowledged_write(backend: &dyn Fragile) {
    let (stores, tails) = two(backend).await;
    let load = Load::start(&stores, tails);
    for _ in 0..3 {
        load.progress(60).await;
        backend.kill();
        backend.start_again();
    }
    load.progress(60).await;
    load.verify(&stores).await;
}

pub async fn cut_connections_lose_and_repeat_nothing(backend: &dyn Fragile) {
    let (stores, tails) = two(backend).await;
    let load = Load::start(&stores, tails);
    for _ in 0..8 {
        load.progress(40).await;
        backend.cut_connections();
    }
    load.progress(40).await;
    load.verify(&stores).await;
}

pub async fn a_database_that_hangs_delays_and_loses_nothing(backend: &dyn Fragile) {
    let (stores, tails) = two(backend).await;
    let load = Load::start(&stores, tails);
    for _ in 0..2 {
        load.progress(60).await;
        backend.pause();
        tokio::time::sleep(Duration::from_millis(700)).await;
        backend.resume();
    }
    load.progress(60).await;
    load.verify(&stores).await;
}

pub async fn a_database_that_is_away_is_said_to_be_and_watches_wait(backend: &dyn Fragile) {
    let (stores, mut tails) = two(backend).await;
    let first = stores[0].write(put("/a", Expect::Absent, "1")).await.unwrap();
    backend.kill();
    let write = stores[0].write(put("/a", Expect::At(first), "2")).await;
    assert!(matches!(write, Err(StoreError::Unavailable(_))), "{write:?}");
    assert!(matches!(stores[1].get("/a").await, Err(StoreError::Unavailable(_))));
    assert!(matches!(stores[1].watch(first).await, Err(StoreError::Unavailable(_))));
    backend.start_again();
    let again = async {
        loop {
            match stores[1].write(put("/a", Expect::At(first), "2")).await {
                Ok(revision) => return revision,
                Err(StoreError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(other) => panic!("{other}"),
            }
        }
    };
    let second = tokio::time::timeout(PATIENCE, again).await.unwrap();
    for tail in &mut tails {
        assert_eq!(
            drained(tail, 2).await,
            [format!("/a=1@{first}"), format!("/a=2@{second}")]
        );
    }
}

pub async fn a_database_that_lost_writes_ends_all_watches(backend: &dyn Fragile) {
    let (stores, tails) = two(backend).await;
    let mut last = Revision::ZERO;
    for number in 0..10 {
        last = stores[0]
            .write(put("/l/a", Expect::Any, &number.to_string()))
            .await
            .unwrap();
    }
    for mut tail in tails {
        assert_eq!(drained(&mut tail, 10).await.len(), 10);
        // Kept open until here: each has seen all of it.
        drop(tail);
    }
    let mut tails = [
        stores[0].watch(last).await.unwrap(),
        stores[1].watch(last).await.unwrap(),
    ];
    backend.lose_writes_after(6);
    backend.cut_connections();
    let next = async {
        loop {
            match stores[1].write(put("/l/b", Expect::Any, "x")).await {
                Ok(revision) => return revision,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let next = tokio::time::timeout(PATIENCE, next).await.unwrap();
    assert!(
        next > last.next(),
        "{next} was never handed out, nor was what is right after {last}"
    );
    for tail in &mut tails {
        let ended = tokio::time::timeout(PATIENCE, tail.recv()).await.unwrap();
        assert!(ended.is_none(), "{ended:?}");
    }
    for store in &stores {
        let old = store.watch(last).await;
        assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
        let now = state(&**store, "/l/", None).await.unwrap();
        assert_eq!(now, ["/l/a=5@6".to_owned(), format!("/l/b=x@{next}")]);
    }
}

pub async fn what_a_database_lost_while_all_servers_were_down_is_noticed(backend: &dyn Fragile) {
    let folder = tests::database::Folder::new("remembers");
    let server = async || backend.open_with(folder.path()).await;
    // Written past the loss by somebody who does not know of it, before the server is back, or by nobody.
    for (round, others) in [(0, 0), (1, 5)] {
        let store = server().await;
        let key = format!("/r/{round}");
        let mut last = Revision::ZERO;
        for _ in 0..5 {
            last = store.write(put(&key, Expect::Any, "known")).await.unwrap();
        }
        store.close().await.unwrap();
        // What was seen is in the log: a start like any other.
        let store = server().await;
        drop(store.watch(last).await.unwrap());
        store.close().await.unwrap();
        drop(store);

        backend.lose_writes_after(last.get() - 3);
        backend.cut_connections();
        let stranger = backend.open().await;
        for _ in 0..others {
            stranger.write(put("/r/others", Expect::Any, "new")).await.unwrap();
        }
        let store = server().await;
        let old = store.watch(last).await;
        assert!(matches!(old, Err(StoreError::Compacted { .. })), "{round}: {old:?}");
        let listed = state(&*store, "/r/", Some(last)).await;
        assert!(
            matches!(listed, Err(StoreError::Compacted { .. })),
            "{round}: {listed:?}"
        );
        let next = store.write(put("/r/after", Expect::Any, "x")).await.unwrap();
        assert!(next.get() > last.get() + 5, "{next} was never handed out");
        let mut tail = store.watch(next).await.unwrap();
        let later = stranger.write(put("/r/after", Expect::Any, "y")).await.unwrap();
        assert_eq!(drained(&mut tail, 1).await, [format!("/r/after=y@{later}")]);
        store.close().await.unwrap();
    }
}
