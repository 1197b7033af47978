//! SQLite on a disk that is full, and on one that has become read-only: real ones, in a mount namespace of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use server::store::sql::sqlite::Sqlite;
use server::store::{Expect, Store, StoreError};
use tests::{in_own_namespaces, run};

use crate::contract::{put, state};

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

/// Takes all the room there is.
fn fill(path: &Path) -> PathBuf {
    let ballast = path.join("ballast");
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
    let ballast = fill(&disk);
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
    for _ in 0..50 {
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
