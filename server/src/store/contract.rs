//! What every backend must do, as tests that run against each of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent::units::Revision;
use bytes::Bytes;

use super::memory::Memory;
use super::sql::sqlite::{OpenError, Sqlite};
use super::{Change, Durability, Event, Expect, Range, Store, StoreError, Tail, Write};

/// A file of a test's own, removed at its end.
struct File(PathBuf);

impl File {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("store-contract-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn open(&self) -> Sqlite {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Sqlite, OpenError> {
        Sqlite::open(&self.path())
    }

    fn path(&self) -> PathBuf {
        self.0.join("state.db")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn put(key: &str, expect: Expect, value: &str) -> Write {
    Write {
        key: key.into(),
        expect,
        change: Change::Put(Bytes::copy_from_slice(value.as_bytes())),
        ttl: None,
        durability: Durability::Durable,
    }
}

fn delete(key: &str, expect: Expect) -> Write {
    Write {
        change: Change::Delete,
        ..put(key, expect, "")
    }
}

fn volatile(write: Write) -> Write {
    Write {
        durability: Durability::Volatile,
        ..write
    }
}

async fn state(store: &dyn Store, prefix: &str, at: Option<Revision>) -> Result<Vec<String>, StoreError> {
    let range = Range {
        prefix: prefix.to_owned(),
        ..Range::default()
    };
    let snapshot = store.list(range, at).await?;
    let shown = |entry: &super::Entry| {
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
async fn drained(tail: &mut Tail, count: usize) -> Vec<String> {
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

fn show(event: &Event) -> String {
    let value = event
        .value
        .as_ref()
        .map_or("-".into(), |value| String::from_utf8_lossy(value).into_owned());
    format!("{}={value}@{}", event.key, event.revision)
}

async fn writes_are_compared_and_swapped(store: &dyn Store) {
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

async fn the_past_can_be_listed(store: &dyn Store) {
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

async fn a_watch_misses_and_repeats_nothing(store: Arc<dyn Store>) {
    let from = store.write(put("/w/0", Expect::Any, "x")).await.unwrap();
    let before = store.write(put("/w/1", Expect::Any, "x")).await.unwrap();
    let mut tail = store.watch(from).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
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
        let batch = late.recv().await.unwrap();
        if batch.last().map(show).as_ref() == Some(last) {
            break;
        }
    }
}

async fn what_is_compacted_is_said_to_be(store: &dyn Store) {
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

async fn keys_expire_by_a_write_of_their_own(store: &dyn Store) {
    let from = store.revision().await.unwrap();
    let mut tail = store.watch(from).await.unwrap();
    for (key, ttl, durable) in [("/e/a", 40, true), ("/e/b", 40, false), ("/e/c", 60_000, true)] {
        let mut write = put(key, Expect::Any, "x");
        write.ttl = Some(Duration::from_millis(ttl));
        store
            .write(if durable { write } else { volatile(write) })
            .await
            .unwrap();
    }
    tokio::time::sleep(Duration::from_millis(80)).await;
    assert_eq!(state(store, "/e/", None).await.unwrap().len(), 1);
    let shown = drained(&mut tail, 5).await;
    assert!(
        shown.iter().filter(|event| event.contains("=-@")).count() == 2,
        "{shown:?}"
    );
}

async fn all(store: Arc<dyn Store>) {
    writes_are_compared_and_swapped(&*store).await;
    the_past_can_be_listed(&*store).await;
    a_watch_misses_and_repeats_nothing(Arc::clone(&store)).await;
    what_is_compacted_is_said_to_be(&*store).await;
    keys_expire_by_a_write_of_their_own(&*store).await;
    store.close().await.unwrap();
    assert!(matches!(
        store.write(put("/a", Expect::Any, "x")).await,
        Err(StoreError::Unavailable(_))
    ));
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    for check in 0..5 {
        let store = Memory::new();
        match check {
            0 => writes_are_compared_and_swapped(&store).await,
            1 => the_past_can_be_listed(&store).await,
            2 => a_watch_misses_and_repeats_nothing(Arc::new(store)).await,
            3 => what_is_compacted_is_said_to_be(&store).await,
            _ => all(Arc::new(Memory::new())).await,
        }
    }
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    for check in 0..5 {
        let file = File::new();
        let store = file.open();
        match check {
            0 => writes_are_compared_and_swapped(&store).await,
            1 => the_past_can_be_listed(&store).await,
            2 => a_watch_misses_and_repeats_nothing(Arc::new(store)).await,
            3 => what_is_compacted_is_said_to_be(&store).await,
            _ => all(Arc::new(store)).await,
        }
    }
}

#[tokio::test]
async fn sqlite_is_the_same_after_a_restart() {
    let file = File::new();
    let store = file.open();
    let first = store.write(put("/a", Expect::Absent, "1")).await.unwrap();
    let second = store.write(volatile(put("/beat", Expect::Absent, "1"))).await.unwrap();
    let third = store
        .write(volatile(put("/beat", Expect::At(second), "2")))
        .await
        .unwrap();
    let fourth = store.write(put("/a", Expect::At(first), "2")).await.unwrap();
    let before = state(&store, "/", None).await.unwrap();
    assert_eq!(before, [format!("/a=2@{fourth}"), format!("/beat=2@{third}")]);
    drop(store);
    let store = file.open();
    assert_eq!(
        state(&store, "/", None).await.unwrap(),
        before,
        "volatile state survives a clean stop"
    );
    assert_eq!(
        store.revision().await.unwrap(),
        fourth,
        "and leaves no hole in the revisions"
    );
    let mut tail = store.watch(first).await.unwrap();
    assert_eq!(
        drained(&mut tail, 2).await,
        [format!("/beat=2@{third}"), format!("/a=2@{fourth}")]
    );
    assert_eq!(
        store.write(put("/a", Expect::At(fourth), "3")).await.unwrap(),
        fourth.next()
    );
}

#[tokio::test]
async fn a_volatile_key_can_be_written_durably_and_deleted() {
    let file = File::new();
    let store = file.open();
    let one = store.write(volatile(put("/k", Expect::Absent, "1"))).await.unwrap();
    let two = store.write(put("/k", Expect::At(one), "2")).await.unwrap();
    let three = store.write(volatile(put("/k", Expect::At(two), "3"))).await.unwrap();
    store.write(volatile(delete("/k", Expect::At(three)))).await.unwrap();
    store.write(volatile(put("/short", Expect::Absent, "1"))).await.unwrap();
    store.write(volatile(delete("/short", Expect::Any))).await.unwrap();
    assert!(state(&store, "/", None).await.unwrap().is_empty());
    drop(store);
    assert!(
        state(&file.open(), "/", None).await.unwrap().is_empty(),
        "what was deleted stays so"
    );
}

#[tokio::test]
async fn a_clean_stop_hides_no_deletion_from_a_watch_that_goes_on() {
    let file = File::new();
    let store = file.open();
    let seen = store.write(volatile(put("/short", Expect::Absent, "1"))).await.unwrap();
    let gone = store.write(volatile(delete("/short", Expect::Any))).await.unwrap();
    store.close().await.unwrap();
    let store = file.open();
    let mut tail = store.watch(seen).await.unwrap();
    assert_eq!(drained(&mut tail, 1).await, [format!("/short=-@{gone}")]);
}

#[tokio::test]
async fn a_key_written_volatile_stays_visible_in_the_past() {
    let file = File::new();
    let store = file.open();
    let first = store.write(put("/k", Expect::Absent, "1")).await.unwrap();
    let other = store.write(put("/other", Expect::Absent, "1")).await.unwrap();
    store.write(volatile(put("/k", Expect::Any, "2"))).await.unwrap();
    store.close().await.unwrap();
    let store = file.open();
    assert_eq!(
        state(&store, "/", Some(other)).await.unwrap(),
        [format!("/k=1@{first}"), format!("/other=1@{other}")]
    );
}

#[tokio::test]
async fn compaction_leaves_one_row_per_key_also_of_keys_flushed_late() {
    let file = File::new();
    let store = file.open();
    store.write(put("/k", Expect::Absent, "1")).await.unwrap();
    store.write(volatile(put("/k", Expect::Any, "2"))).await.unwrap();
    store.write(volatile(put("/short", Expect::Any, "1"))).await.unwrap();
    store.write(volatile(delete("/short", Expect::Any))).await.unwrap();
    let newest = store.write(put("/other", Expect::Any, "1")).await.unwrap();
    store.compact(newest).await.unwrap();
    store.close().await.unwrap();
    let file_itself = rusqlite::Connection::open(file.path()).unwrap();
    let rows: i64 = file_itself
        .query_row("SELECT count(*) FROM log", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 2);
}

#[tokio::test]
async fn a_second_server_is_told_that_the_file_is_in_use() {
    let file = File::new();
    let store = file.open();
    let problem = file.try_open().unwrap_err();
    assert!(matches!(problem, OpenError::InUse { .. }), "{problem}");
    drop(store);
    assert!(file.try_open().is_ok());
}

#[test]
fn a_file_that_is_damaged_or_not_ours_is_refused_and_left_alone() {
    for (content, damaged) in [
        (
            b"this is no database at all, but long enough to be looked at".as_slice(),
            true,
        ),
        (b"".as_slice(), false),
    ] {
        let file = File::new();
        std::fs::write(file.path(), content).unwrap();
        if !damaged {
            let other = rusqlite::Connection::open(file.path()).unwrap();
            other.execute_batch("CREATE TABLE kine (id INTEGER)").unwrap();
        }
        let before = std::fs::read(file.path()).unwrap();
        let problem = file.try_open().unwrap_err();
        match damaged {
            true => assert!(matches!(problem, OpenError::Damaged { .. }), "{problem}"),
            false => assert!(matches!(problem, OpenError::Foreign { .. }), "{problem}"),
        }
        if damaged {
            assert_eq!(std::fs::read(file.path()).unwrap(), before);
        }
    }
}

#[tokio::test]
async fn the_file_is_for_its_owner_and_stays_small() {
    use std::os::unix::fs::PermissionsExt;
    let file = File::new();
    let store = Arc::new(file.open());
    for path in [file.path(), file.0.join("state.db-wal")] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..64 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for _ in 0..400 {
                store
                    .write(put(&format!("/{writer}"), Expect::Any, &"x".repeat(1000)))
                    .await
                    .unwrap();
            }
        });
    }
    writers.join_all().await;
    let size = |name: &str| std::fs::metadata(file.0.join(name)).map_or(0, |found| found.len());
    let total = size("state.db") + size("state.db-wal");
    assert!(total < 40 << 20, "25,600 writes of 64 keys took {total} bytes");
}
