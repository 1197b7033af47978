//! No revision is given twice, however often a log is restored and repaired, and however little of it can be read then.

use std::fs;
use std::sync::Arc;

use agent::units::Revision;
use server::store::sql::sqlite::{self, Sqlite};
use server::store::{Expect, Store};

use crate::contract::put;
use crate::damage::Folder;

/// Nothing of it can be read, nor of what lies beside it.
fn destroy(folder: &Folder) {
    fs::write(folder.log(), vec![0x5a; 40_000]).unwrap();
    let _ = fs::remove_file(folder.0.join("state.db-wal"));
}

async fn write_some(store: &Sqlite) -> (Revision, Revision) {
    let first = store.write(put("/registry/a", Expect::Any, "1")).await.unwrap();
    let last = store.write(put("/registry/b", Expect::Any, "1")).await.unwrap();
    (first, last)
}

#[tokio::test]
async fn a_backup_restored_again_over_a_destroyed_file_goes_on_after_the_last_time() {
    let folder = Folder::new();
    let backup = folder.0.join("backup.db");
    let store = Sqlite::open(&folder.log()).unwrap();
    write_some(&store).await;
    store.back_up(backup.clone(), Arc::default()).await.unwrap();
    let (_, mut before) = write_some(&store).await;
    store.close().await.unwrap();
    drop(store);
    for round in 0..4 {
        if round > 0 {
            destroy(&folder);
        }
        sqlite::restore(&folder.log(), &backup).unwrap();
        let store = Sqlite::open(&folder.log()).unwrap();
        let (first, last) = write_some(&store).await;
        assert!(first > before, "round {round}: {first} after {before}");
        before = last;
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_that_takes_the_place_again_goes_on_after_the_last_time() {
    let folder = Folder::new();
    let store = Sqlite::open(&folder.log()).unwrap();
    let (_, at) = write_some(&store).await;
    let snapshots = sqlite::snapshots(&folder.log());
    fs::create_dir_all(&snapshots).unwrap();
    store
        .back_up(snapshots.join(format!("{at}.db")), Arc::default())
        .await
        .unwrap();
    let (_, mut before) = write_some(&store).await;
    store.close().await.unwrap();
    drop(store);
    for round in 0..4 {
        destroy(&folder);
        if round == 3 {
            // What else says how far it went: a newer snapshot, which cannot be read, by its name.
            fs::remove_file(folder.0.join("state.db.floor")).unwrap();
            fs::write(snapshots.join(format!("{before}.db")), "x").unwrap();
        }
        let store = Sqlite::open(&folder.log()).unwrap();
        assert!(store.repair().is_some());
        let (first, last) = write_some(&store).await;
        assert!(first > before, "round {round}: {first} after {before}");
        before = last;
        store.close().await.unwrap();
    }
}
