//! SQLite on a disk that is full, and on one that has become read-only: real ones, in a mount namespace of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use server::store::sql::sqlite::{self, Now, OpenError, Sqlite};
use server::store::{Expect, Store, StoreError};
use tests::{in_own_namespaces, run};

use crate::contract::{put, state, volatile};

/// A small file system in memory, which goes with the test's namespace.
fn small_disk() -> PathBuf {
    let path = std::env::temp_dir().join(format!("store-full-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    run("mount", &["--make-rprivate", "/"]);
    run(
        "mount",
        &["-t", "tmpfs", "-o", "size=6m", "tmpfs", path.to_str().unwrap()],
    );
    path
}

fn remove(path: &Path) {
    run("umount", &[path.to_str().unwrap()]);
    fs::remove_dir(path).unwrap();
}

/// Takes all the room there is but for so many bytes.
fn fill(path: &Path, room: usize) -> PathBuf {
    let (ballast, spare) = (path.join("ballast"), path.join("spare"));
    fs::write(&spare, vec![1; room]).unwrap();
    let mut size = 8 << 20;
    let mut bytes = Vec::new();
    while size > 0 {
        bytes.resize(bytes.len() + size, 1);
        if fs::write(&ballast, &bytes).is_err() {
            bytes.truncate(bytes.len() - size);
            size /= 2;
        }
    }
    // The last try was cut off where the room ended.
    fs::remove_file(spare).unwrap();
    ballast
}

#[tokio::test]
async fn on_a_full_disk_reads_go_on_writes_are_refused_and_nothing_is_lost() {
    if !in_own_namespaces("full::on_a_full_disk_reads_go_on_writes_are_refused_and_nothing_is_lost") {
        return;
    }
    let disk = small_disk();
    let file = disk.join("state.db");
    let store = Sqlite::open(&file).unwrap();
    let mut written = Vec::new();
    let ballast = fill(&disk, 0);
    let mut number = 0;
    let refusal = loop {
        let key = format!("/k/{number:05}");
        match store.write(put(&key, Expect::Absent, &"x".repeat(2000))).await {
            Ok(revision) => written.push(format!("{key}@{revision}")),
            Err(refusal) => break refusal,
        }
        number += 1;
        assert!(number < 5000, "the disk never fills");
    };
    assert!(matches!(refusal, StoreError::Full), "{refusal}");
    let shown = |lines: Vec<String>| -> Vec<String> {
        let short = |line: &String| format!("{}@{}", &line[..8], line.rsplit_once('@').unwrap().1);
        lines.iter().map(short).collect()
    };
    assert_eq!(shown(state(&store, "/", None).await.unwrap()), written, "reads go on");
    for _ in 0..20 {
        let again = store.write(put("/again", Expect::Absent, &"x".repeat(2000))).await;
        assert!(matches!(again, Err(StoreError::Full)), "{again:?}");
    }
    fs::remove_file(ballast).unwrap();
    let revision = store.write(put("/k/99999", Expect::Absent, "1")).await.unwrap();
    written.push(format!("/k/99999@{revision}"));
    drop(store);
    let store = Sqlite::open(&file).unwrap();
    assert!(store.repair().is_none());
    assert_eq!(
        shown(state(&store, "/", None).await.unwrap()),
        written,
        "nothing acknowledged is lost, nothing refused is there"
    );
    drop(store);
    remove(&disk);
}

#[tokio::test]
async fn a_start_on_a_full_disk_serves_reads_and_nothing_goes_on_from_what_is_lost() {
    if !in_own_namespaces("full::a_start_on_a_full_disk_serves_reads_and_nothing_goes_on_from_what_is_lost") {
        return;
    }
    let disk = small_disk();
    let file = disk.join("state.db");
    let store = Sqlite::open(&file).unwrap();
    let first = store.write(put("/k", Expect::Absent, "1")).await.unwrap();
    let seen = store.write(volatile(put("/beat", Expect::Any, "1"))).await.unwrap();
    let was = state(&store, "/k", None).await.unwrap();
    let ballast = fill(&disk, 0);
    let mut number = 0;
    while store
        .write(put(&format!("/fill/{number}"), Expect::Any, &"x".repeat(2000)))
        .await
        .is_ok()
    {
        number += 1;
        assert!(number < 5000, "the disk never fills");
    }
    // Stopped in order and not; whatever was done, the next start finds the same.
    let stopped = store.close().await;
    assert!(matches!(stopped, Err(StoreError::Full)), "{stopped:?}");
    drop(store);
    for _ in 0..3 {
        let store = Sqlite::open(&file).unwrap();
        assert!(store.repair().is_none());
        assert_eq!(state(&store, "/k", None).await.unwrap(), was, "reads go on");
        let refusal = store.write(put("/more", Expect::Any, &"x".repeat(2000))).await;
        assert!(matches!(refusal, Err(StoreError::Full)), "{refusal:?}");
        let refusal = store.write(volatile(put("/beat", Expect::Any, "2"))).await;
        assert!(
            matches!(refusal, Err(StoreError::Full)),
            "no revision for it: {refusal:?}"
        );
        for from in [first, seen] {
            let watch = store.watch(from).await;
            assert!(matches!(watch, Err(StoreError::Compacted { .. })), "from {from}");
        }
    }
    fs::remove_file(ballast).unwrap();
    let store = Sqlite::open(&file).unwrap();
    let next = store.write(put("/next", Expect::Absent, "1")).await.unwrap();
    assert!(next > seen, "{next}");
    drop(store);
    let store = Sqlite::open(&file).unwrap();
    assert!(store.watch(seen).await.is_err(), "noted with that write");
    assert_eq!(state(&store, "/k", None).await.unwrap(), was);
    drop(store);
    remove(&disk);
}

#[tokio::test]
async fn on_a_disk_that_became_read_only_reads_go_on_and_writes_say_why() {
    if !in_own_namespaces("full::on_a_disk_that_became_read_only_reads_go_on_and_writes_say_why") {
        return;
    }
    let disk = small_disk();
    let image = disk.join("image");
    fs::File::create(&image).unwrap().set_len(5 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
    let card = disk.join("card");
    fs::create_dir(&card).unwrap();
    run(
        "mount",
        &["-o", "loop", image.to_str().unwrap(), card.to_str().unwrap()],
    );
    let file = card.join("state.db");
    let store = Sqlite::open(&file).unwrap();
    let first = store.write(put("/k", Expect::Absent, "1")).await.unwrap();
    // As ext4 does on an error (errors=remount-ro): files that are open for writing do not hold it up.
    run("mount", &["-o", "remount,abort", card.to_str().unwrap()]);
    let mut said = String::new();
    for _ in 0..500 {
        match store.write(put("/k", Expect::Any, "2")).await {
            Err(StoreError::Unavailable(why)) => {
                said = why;
                break;
            }
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(said.contains("read-only") && said.contains("kernel's log"), "{said}");
    assert!(
        store
            .get("/k")
            .await
            .unwrap()
            .is_some_and(|entry| entry.revision >= first),
        "reads go on"
    );
    drop(store);
    run("umount", &[card.to_str().unwrap()]);
    remove(&disk);
}

#[tokio::test]
async fn a_damaged_file_waits_for_room_rather_than_give_way_to_an_older_snapshot() {
    if !in_own_namespaces("full::a_damaged_file_waits_for_room_rather_than_give_way_to_an_older_snapshot") {
        return;
    }
    let disk = small_disk();
    let file = disk.join("state.db");
    let store = Sqlite::open(&file).unwrap();
    store.write(put("/old", Expect::Absent, "1")).await.unwrap();
    let snapshot = sqlite::snapshots(&file).join(format!("{}.db", store.revision().await.unwrap()));
    fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
    store.back_up(snapshot, Arc::default()).await.unwrap();
    for number in 0..300 {
        let key = format!("/k/{number:05}");
        store.write(put(&key, Expect::Absent, &"x".repeat(3000))).await.unwrap();
    }
    let was = state(&store, "/", None).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    // The index is broken, every row is there.
    break_the_index(&file);
    // Enough for the snapshot, and not for the rows.
    fill(&disk, 200 << 10);
    for _ in 0..5 {
        let error = Sqlite::open(&file).unwrap_err();
        assert!(matches!(error, OpenError::File { .. }), "{error:?}");
        assert!(format!("{:#}", anyhow::Error::from(error)).contains("make room"));
    }
    assert!(!disk.join("damaged").exists(), "nothing was put aside");
    fs::remove_file(disk.join("ballast")).unwrap();
    let store = Sqlite::open(&file).unwrap();
    assert_eq!(store.repair().unwrap().now, Now::Whole);
    let keys = |lines: &[String]| -> Vec<String> { lines.iter().map(|line| line[..6].to_owned()).collect() };
    let found = state(&store, "/", None).await.unwrap();
    assert_eq!(keys(&found), keys(&was));
    drop(store);
    remove(&disk);
}

/// Points the index by keys to a page that is no index.
fn break_the_index(file: &Path) {
    let connection = rusqlite::Connection::open(file).unwrap();
    let root: i64 = connection
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'log_by_key'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    drop(connection);
    let mut bytes = fs::read(file).unwrap();
    let root = usize::try_from(root - 1).unwrap();
    bytes[root * 4096..][..4096].fill(0x5a);
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_torn_log_on_a_full_disk_is_found_again_when_there_is_room() {
    if !in_own_namespaces("full::a_torn_log_on_a_full_disk_is_found_again_when_there_is_room") {
        return;
    }
    let disk = small_disk();
    let file = disk.join("state.db");
    let store = Sqlite::open(&file).unwrap();
    let mut last = store.revision().await.unwrap();
    for number in 0..30 {
        let key = format!("/k/{number:05}");
        last = store.write(put(&key, Expect::Absent, &"x".repeat(3000))).await.unwrap();
    }
    let (log, left) = (disk.join("state.db-wal"), fs::read(disk.join("state.db-wal")).unwrap());
    let file_then = fs::read(&file).unwrap();
    drop(store);
    fs::write(&file, file_then).unwrap();
    // In the middle: what comes behind it was acknowledged.
    let mut torn = left;
    let middle = torn.len() / 2;
    torn[middle] ^= 0x10;
    fs::write(&log, &torn).unwrap();
    // No room to keep a copy of it; room for that, and none to note how far revisions jump.
    for room in [0, torn.len().next_multiple_of(4096)] {
        fill(&disk, room);
        for _ in 0..6 {
            let error = Sqlite::open(&file).unwrap_err();
            assert!(
                matches!(error, OpenError::File { .. } | OpenError::Sql { .. }),
                "{room}: {error:?}"
            );
        }
        assert_eq!(fs::read(&log).unwrap(), torn, "{room}: as it was");
        let kept = fs::read_dir(disk.join("damaged")).map_or(0, |entries| entries.count());
        assert!(kept <= 3, "{room}: {kept}");
        fs::remove_file(disk.join("ballast")).unwrap();
    }
    let store = Sqlite::open(&file).unwrap();
    assert!(matches!(store.repair().unwrap().now, Now::UpTo { .. }));
    let next = store.write(put("/next", Expect::Absent, "1")).await.unwrap();
    assert!(next.get() > last.get() + 1_000_000_000, "{next}");
    drop(store);
    remove(&disk);
}
