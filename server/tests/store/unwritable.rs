//! Real databases that take no writes, because somebody made them read-only or their disk is full: writes are refused at
//! once and never said to be in doubt, reads go on, watches stay open, and all resumes by itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use server::store::endpoint::Tls;
use server::store::{Expect, Store, StoreError, Tail};
use tests::database::{MariaDb, Postgres, SqlServer as _};
use tests::lab::within;
use tests::{in_own_namespaces, run};
use tokio::sync::mpsc::error::TryRecvError;

use crate::contract::{drained, put, show, state};
use crate::sql::try_open;

/// For a refusal. The database answers within milliseconds; that nobody knows would be said after 5 s.
const AT_ONCE: Duration = Duration::from_secs(4);
/// Until all goes on.
const PATIENCE: Duration = Duration::from_secs(60);
async fn open(endpoint: &str) -> Arc<dyn Store> {
    try_open(endpoint, &Tls::default()).await.unwrap()
}

/// Writes again and again until it goes, and returns what a watch shows of it.
async fn written_at_last(store: &Arc<dyn Store>, key: &str) -> String {
    let writing = async {
        loop {
            match store.write(put(key, Expect::Absent, "1")).await {
                Ok(revision) => return format!("{key}=1@{revision}"),
                Err(StoreError::Unavailable(_) | StoreError::Full) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, writing).await.unwrap()
}

/// A long value that no database makes shorter: PostgreSQL compresses.
fn long(seed: usize, length: usize) -> String {
    let mut state = seed as u64 + 1;
    let letter = |_| {
        // Knuth's constants for a linear congruential generator; its high bits are the good ones.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + (state >> 58) as u8)
    };
    (0..length).map(letter).collect()
}

/// Writes until it is refused. Returns what was acknowledged, and the refusal.
async fn fill(store: &Arc<dyn Store>, length: usize) -> (Vec<String>, StoreError) {
    let mut written = Vec::new();
    loop {
        let key = format!("/f/{:05}", written.len());
        match store
            .write(put(&key, Expect::Absent, &long(written.len(), length)))
            .await
        {
            Ok(revision) => written.push(format!("{key}@{revision}")),
            Err(refusal) => return (written, refusal),
        }
        assert!(written.len() < 5000, "the disk never fills");
    }
}

/// Without the long values.
fn short(shown: &str) -> String {
    let (key, rest) = shown.split_once('=').unwrap();
    format!("{key}@{}", rest.rsplit_once('@').unwrap().1)
}

/// Two servers on a database; `stop` makes it read-only, `go_on` takes that back.
async fn read_only(endpoint: &str, stop: impl FnOnce(), go_on: impl FnOnce()) {
    let stores = [open(endpoint).await, open(endpoint).await];
    let first = stores[0].write(put("/a", Expect::Absent, "1")).await.unwrap();
    let mut tails = [
        stores[0].watch(first).await.unwrap(),
        stores[1].watch(first).await.unwrap(),
    ];
    stop();
    for number in 0..30 {
        let store = &stores[number % 2];
        let begun = Instant::now();
        let write = store.write(put("/a", Expect::At(first), "2")).await;
        let Err(StoreError::Unavailable(why)) = write else {
            panic!("{write:?}")
        };
        assert!(!why.contains("may have happened"), "{number}: {why}");
        assert!(begun.elapsed() < AT_ONCE, "{number}: after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    for store in &stores {
        assert_eq!(
            state(&**store, "/", None).await.unwrap(),
            [format!("/a=1@{first}")],
            "reads go on"
        );
        assert_eq!(store.revision().await.unwrap(), first);
    }
    for tail in &mut tails {
        assert!(matches!(tail.try_recv(), Err(TryRecvError::Empty)), "watches stay open");
    }
    go_on();
    let second = written_at_last(&stores[0], "/b").await;
    let third = written_at_last(&stores[1], "/c").await;
    for tail in &mut tails {
        assert_eq!(drained(tail, 2).await, [second.clone(), third.clone()]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_read_only_refuses_writes_and_serves_reads() {
    let server = Postgres::start();
    let set = |value: &str| {
        server.sql(
            "postgres",
            &format!("ALTER SYSTEM SET default_transaction_read_only = {value}"),
        );
        server.sql("postgres", "SELECT pg_reload_conf()");
        // Once a new session has it all others have been told, and heed it before their next statement.
        within(PATIENCE, "PostgreSQL has read its settings", || {
            server.sql("postgres", "SHOW default_transaction_read_only").trim() == value
        });
    };
    read_only(&server.endpoint("kubernetes", ""), || set("on"), || set("off")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_that_is_read_only_refuses_writes_and_serves_reads() {
    let server = MariaDb::start();
    let endpoint = server.plain_endpoint();
    let connections = || -> u64 {
        let counted = server.sql("mysql", "SHOW GLOBAL STATUS LIKE 'Connections'");
        counted.split_whitespace().last().unwrap().parse().unwrap()
    };
    let set = |value: u8| drop(server.sql("mysql", &format!("SET GLOBAL read_only = {value}")));
    let before = std::cell::Cell::new((0, Instant::now()));
    let stop = || {
        before.set((connections(), Instant::now()));
        set(1);
    };
    let (mut made, mut seconds) = (0, 0);
    let go_on = || {
        let (count, since) = before.get();
        (made, seconds) = (connections() - count, since.elapsed().as_secs());
        set(0);
    };
    read_only(&endpoint, stop, go_on).await;
    // At last each of the two asks once in 2 s.
    assert!(
        made <= 20 + seconds,
        "{made} connections in {seconds} s: a server that takes no writes is not besieged"
    );
    // Each transaction is read-only, though the server is not; the next connections are made so.
    let set = |value: u8| {
        server.sql("mysql", &format!("SET GLOBAL tx_read_only = {value}"));
        server.cut_connections("kubernetes");
    };
    server.sql("mysql", "DROP DATABASE kubernetes");
    read_only(&endpoint, || set(1), || set(0)).await;
}

/// A disk of so many mebibytes for the unprivileged user.
fn small_disk(path: &std::path::Path, mebibytes: u32) {
    let (size, path) = (
        format!("size={mebibytes}m,uid=65534,gid=65534,mode=700"),
        path.to_str().unwrap(),
    );
    run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", path]);
}

/// Holds what is so on a full disk, which is at `disk`. It is filled with values of this `length`, in bytes.
async fn full(endpoint: &str, disk: PathBuf, length: usize) {
    let store = open(endpoint).await;
    let zero = store.revision().await.unwrap();
    let mut tail: Tail = store.watch(zero).await.unwrap();
    let (mut written, refusal) = fill(&store, length).await;
    assert!(matches!(refusal, StoreError::Full), "{refusal}");
    assert!(written.len() > 10, "it was not full before: {}", written.len());
    for number in 0..20 {
        let begun = Instant::now();
        let again = store.write(put("/again", Expect::Absent, &long(number, length))).await;
        assert!(matches!(again, Err(StoreError::Full)), "{number}: {again:?}");
        assert!(begun.elapsed() < AT_ONCE, "{number}: after {:?}", begun.elapsed());
    }
    let listed = state(&*store, "/f/", None).await.unwrap();
    assert_eq!(
        listed.iter().map(|line| short(line)).collect::<Vec<_>>(),
        written,
        "reads go on"
    );
    run("mount", &["-o", "remount,size=200m", disk.to_str().unwrap()]);
    let last = written_at_last(&store, "/z").await;
    written.push(short(&last));
    let mut shown = Vec::new();
    while shown.len() < written.len() {
        // The watch stays open: there is a next batch.
        let batch = tokio::time::timeout(PATIENCE, tail.recv()).await.unwrap().unwrap();
        shown.extend(batch.iter().map(|event| short(&show(event))));
    }
    assert_eq!(
        shown, written,
        "all that was acknowledged, and nothing of what was refused"
    );
}

/// Namespaces of a test's own have a loopback that is down.
fn inside(test: &str) -> bool {
    if !in_own_namespaces(&format!("unwritable::{test}")) {
        return false;
    }
    run("ip", &["link", "set", "lo", "up"]);
    run("mount", &["--make-rprivate", "/"]);
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_whose_disk_is_full_refuses_writes_and_serves_reads() {
    if !inside("a_postgres_whose_disk_is_full_refuses_writes_and_serves_reads") {
        return;
    }
    let mut server = Postgres::start();
    let disk = server.folder().join("small");
    std::fs::create_dir(&disk).unwrap();
    small_disk(&disk, 24);
    // The log of PostgreSQL itself lies elsewhere: without room for that it ends, and is away.
    server.sql(
        "postgres",
        &format!("CREATE TABLESPACE small LOCATION '{}'", disk.display()),
    );
    server.sql("postgres", "CREATE DATABASE kubernetes TABLESPACE small");
    full(&server.endpoint("kubernetes", ""), disk.clone(), 100_000).await;
    server.kill();
    run("umount", &["-l", disk.to_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_whose_disk_is_full_refuses_writes_and_serves_reads() {
    if !inside("a_mariadb_whose_disk_is_full_refuses_writes_and_serves_reads") {
        return;
    }
    let mut server = MariaDb::start();
    server.sql("mysql", "CREATE DATABASE kubernetes");
    // A database is a folder. Rows are short: where it cannot take a long one back for want of room MariaDB 10.11 ends
    // (`[FATAL] InnoDB: Error (Out of disk space) in rollback`), and is away.
    let disk = server.folder().join("data/kubernetes");
    small_disk(&disk, 8);
    full(&server.endpoint("kubernetes", ""), disk.clone(), 6000).await;
    server.kill();
    run("umount", &["-l", disk.to_str().unwrap()]);
}
