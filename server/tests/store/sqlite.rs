//! SQLite: the contract, and what is true of the file.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use server::store::Expect;
use server::store::Store;
use server::store::sql::sqlite::{OpenError, Sqlite};

use crate::contract::{self, Backend, delete, drained, put, state, volatile};

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

impl Backend for File {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        let store: Arc<dyn Store> = Arc::new(File::open(self));
        async { store }.boxed()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

contract::of_all!(File::new());
contract::of_lasting!(File::new());

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

#[test]
fn no_file_is_made_beside_the_embedded_etcd_of_k3s() {
    let file = File::new();
    let etcd = file.0.join("etcd/member/wal");
    std::fs::create_dir_all(&etcd).unwrap();
    let problem = file.try_open().unwrap_err();
    assert!(matches!(problem, OpenError::Foreign { .. }), "{problem}");
    assert!(problem.to_string().contains("etcd holds something else"), "{problem}");
    assert!(!file.path().exists());
    // What is ours already goes on.
    std::fs::remove_dir(&etcd).unwrap();
    drop(file.open());
    std::fs::create_dir(&etcd).unwrap();
    drop(file.open());
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
