//! Datastores that servers share: durable creates a second, of 1 kB, through one handle and through two, and how long after
//! its acknowledgement a write reaches the watch of the other. And what a read costs that shows all that was acknowledged
//! before it: a question to the datastore, shared by those who ask at once.
//!
//! `tests/bench/run shared`. It starts the databases itself. Limits: 3,000 creates a second with 256 clients over two handles
//! on PostgreSQL; from commit to watch 5 ms at the median and 20 ms at the 99th percentile on PostgreSQL and etcd, 60 ms on
//! MariaDB. Names behind `--` choose among the databases.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a figure that cannot be taken ends the run"
)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;
use server::cache::{Cache, Fresh, Index};
use server::store::endpoint::{self, Tls};
use server::store::{Change, Expect, Store, Write, open};
use tests::database::etcd::Etcd;
use tests::database::{MariaDb, Postgres, SqlServer as _};
use tokio::task::JoinSet;

const LASTS: Duration = Duration::from_secs(5);
const SIZE: usize = 1000;
/// The last key written: its event ends the watch.
const END: &str = "/registry/end";

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("this is a benchmark: tests/bench/run shared");
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

/// A database server, one member, as its package configures it.
enum Database {
    Etcd(Etcd),
    Postgres(Postgres),
    MariaDb(MariaDb),
}

impl Database {
    const NAMES: [&str; 3] = ["etcd", "PostgreSQL", "MariaDB"];

    fn start(name: &str) -> Self {
        match name {
            "etcd" => Self::Etcd(Etcd::start().unwrap()),
            "PostgreSQL" => Self::Postgres(Postgres::start()),
            _ => Self::MariaDb(MariaDb::start()),
        }
    }

    fn endpoint(&self) -> String {
        match self {
            Self::Etcd(etcd) => etcd.endpoint(),
            Self::Postgres(postgres) => postgres.endpoint("k3s", ""),
            Self::MariaDb(mariadb) => mariadb.endpoint("k3s", ""),
        }
    }

    /// A handle of its own, as another server has one.
    async fn open(&self) -> Arc<dyn Store> {
        let endpoint = endpoint::parse(&self.endpoint(), false).unwrap();
        open(&endpoint, &Tls::default(), Path::new("/nonexistent/file"))
            .await
            .unwrap()
    }
}

async fn run() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with("--")).collect();
    for name in Database::NAMES {
        if !chosen.is_empty() && !chosen.iter().any(|it| it.eq_ignore_ascii_case(name)) {
            continue;
        }
        for (handles, clients) in [(1, 1), (1, 256), (2, 2), (2, 256)] {
            let database = Database::start(name);
            let mut stores = Vec::new();
            for _ in 0..handles {
                stores.push(database.open().await);
            }
            measure(name, &stores, clients).await;
        }
        for (writers, readers) in [(0, 1), (0, 64), (16, 1), (16, 64)] {
            reads(name, writers, readers).await;
        }
    }
}

/// Readers of one server, while clients of another write.
async fn reads(name: &str, writers: usize, readers: usize) {
    let database = Database::start(name);
    let (here, there) = (database.open().await, database.open().await);
    let mut following = JoinSet::new();
    let cache = Cache::start(Arc::clone(&here), Arc::new(|_, _| Index::default()), &mut following);
    let fresh = Arc::new(Fresh::new(Arc::clone(&here), cache.await.unwrap()));
    let begun = Instant::now();
    let mut writing = JoinSet::new();
    for client in 0..writers {
        let there = Arc::clone(&there);
        writing.spawn(async move {
            let mut number = 0;
            while begun.elapsed() < LASTS {
                let key = format!("/registry/configmaps/default/c{client}-{number}");
                there.write(create(&key)).await.unwrap();
                number += 1;
            }
            number
        });
    }
    let mut reading = JoinSet::new();
    for _ in 0..readers {
        let fresh = Arc::clone(&fresh);
        reading.spawn(async move {
            let mut times = Vec::new();
            while begun.elapsed() < LASTS {
                let one = Instant::now();
                assert!(fresh.catch_up().await);
                times.push(one.elapsed());
            }
            times
        });
    }
    let mut times = reading.join_all().await.concat();
    let written: usize = writing.join_all().await.into_iter().sum();
    times.sort_unstable();
    println!(
        "| {name}: a read's question and wait, {readers} readers, {} writes a second through another handle | {} a second; p50 {}, \
         p99 {} |",
        a_second(written),
        a_second(times.len()),
        at(&times, 50),
        at(&times, 99),
    );
    following.shutdown().await;
    here.close().await.unwrap();
    there.close().await.unwrap();
}

fn a_second(count: usize) -> usize {
    count / usize::try_from(LASTS.as_secs()).unwrap()
}

/// Clients of all handles create keys; the last handle's watch says when it saw them.
async fn measure(what: &str, stores: &[Arc<dyn Store>], clients: usize) {
    let witness = stores.last().unwrap();
    let mut tail = witness.watch(witness.revision().await.unwrap()).await.unwrap();
    let mut watching = JoinSet::new();
    watching.spawn(async move {
        let mut seen = HashMap::new();
        while let Some(batch) = tail.recv().await {
            let now = Instant::now();
            seen.extend(batch.iter().map(|event| (event.revision, now)));
            if batch.iter().any(|event| &*event.key == END) {
                break;
            }
        }
        seen
    });
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for client in 0..clients {
        let store = Arc::clone(&stores[client % stores.len()]);
        running.spawn(async move {
            let mut done: Vec<(Revision, Instant, Duration)> = Vec::new();
            while begun.elapsed() < LASTS {
                let one = Instant::now();
                let key = format!("/registry/configmaps/default/c{client}-{}", done.len());
                let revision = store.write(create(&key)).await.unwrap();
                done.push((revision, Instant::now(), one.elapsed()));
            }
            done
        });
    }
    let done = running.join_all().await.concat();
    witness.write(create(END)).await.unwrap();
    let seen = watching.join_all().await.remove(0);
    let mut answers: Vec<Duration> = done.iter().map(|(_, _, took)| *took).collect();
    // An event may come before the answer does.
    let late = |(revision, acknowledged, _): &(Revision, Instant, Duration)| {
        seen[revision].saturating_duration_since(*acknowledged)
    };
    let mut lags: Vec<Duration> = done.iter().map(late).collect();
    answers.sort_unstable();
    lags.sort_unstable();
    println!(
        "| {what}: creates of {SIZE} bytes, {} handles, {clients} clients | {} a second; answered p50 {}, p99 {}; seen after the \
         answer p50 {}, p99 {} |",
        stores.len(),
        a_second(done.len()),
        at(&answers, 50),
        at(&answers, 99),
        at(&lags, 50),
        at(&lags, 99),
    );
    for store in stores {
        store.close().await.unwrap();
    }
}

fn create(key: &str) -> Write {
    Write::new(key, Expect::Absent, Change::Put(vec![b'x'; SIZE].into()))
}

fn at(times: &[Duration], percent: usize) -> String {
    let time = times[(times.len() * percent / 100).min(times.len() - 1)];
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}
