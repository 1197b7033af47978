//! A backup is put in the place of a log that is served: under writers, on a failing disk, and killed at any moment.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use std::{fs, thread};

use agent::units::Revision;
use server::store::sql::sqlite::{RestoreError, Sqlite};
use server::store::{Expect, Store, StoreError};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::contract::{put, volatile};
use crate::damage::{Folder, state};

/// Ends a hopeless wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// A log with a backup of it, and a write since.
async fn begun(folder: &Folder) -> Arc<Sqlite> {
    let store = Arc::new(Sqlite::open(&folder.log()).unwrap());
    store.write(put("/registry/old", Expect::Absent, "1")).await.unwrap();
    store.back_up(folder.0.join("backup.db"), Arc::default()).await.unwrap();
    store.write(put("/registry/new", Expect::Absent, "2")).await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_in_use_is_restored_and_every_writer_and_watcher_is_told() {
    let folder = Folder::new();
    let store = begun(&folder).await;
    let over = Arc::new(AtomicBool::new(false));
    // What each has written last.
    let newest: Arc<[AtomicU64; 4]> = Arc::default();
    let all_are_past = async |revision: Revision| {
        let is_past = |own: &AtomicU64| own.load(Ordering::Relaxed) > revision.get();
        let waiting = async {
            while !newest.iter().all(is_past) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap();
    };
    let mut writers = JoinSet::new();
    for number in 0..4 {
        let (store, over, newest) = (Arc::clone(&store), Arc::clone(&over), Arc::clone(&newest));
        writers.spawn(async move {
            let key = format!("/registry/w{number}");
            let (mut expect, mut conflicts, mut written) = (Expect::Absent, 0, Vec::new());
            while !over.load(Ordering::Relaxed) {
                match store.write(put(&key, expect, "x")).await {
                    Ok(revision) => {
                        newest[number].store(revision.get(), Ordering::Relaxed);
                        written.push(revision);
                        expect = Expect::At(revision);
                    }
                    // What it saw is not there any more.
                    Err(StoreError::Conflict { current: None }) => {
                        conflicts += 1;
                        expect = Expect::Absent;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            (key, conflicts, written)
        });
    }
    store
        .write(volatile(put("/registry/beat", Expect::Absent, "1")))
        .await
        .unwrap();
    all_are_past(Revision::ZERO).await;
    let before = store.revision().await.unwrap();
    let mut tail = store.watch(before).await.unwrap();
    let staged = store.stage(folder.0.join("backup.db")).await.unwrap();
    assert_eq!(staged.keys, 1);
    assert_eq!(
        staged.under("/registry/o").unwrap(),
        [("/registry/old".into(), "1".into())]
    );
    let restored = store.restore(staged).await.unwrap();
    let mut last = Revision::ZERO;
    while let Some(batch) = tail.recv().await {
        last = batch.last().unwrap().revision;
    }
    assert!(last < restored.goes_on, "a watch went on into another history: {last}");
    let old = store.watch(last).await;
    assert!(
        matches!(old, Err(StoreError::Compacted { oldest, .. }) if oldest == restored.goes_on),
        "{old:?}"
    );
    all_are_past(restored.goes_on).await;
    over.store(true, Ordering::Relaxed);
    let mut wanted: std::collections::BTreeMap<String, String> = [("/registry/old".to_owned(), "1".to_owned())].into();
    for (key, conflicts, written) in writers.join_all().await {
        assert_eq!(conflicts, 1, "{key} was told once");
        assert!(written.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(*written.last().unwrap() > restored.goes_on);
        wanted.insert(key, "x".to_owned());
    }
    assert_eq!(state(&*store).await, wanted);
    // The state before is kept whole, what was volatile too.
    let kept = restored.aside.unwrap().join("state.db");
    let kept = state(&Sqlite::open(&kept).unwrap()).await;
    assert_eq!(kept.get("/registry/new").map(String::as_str), Some("2"));
    assert_eq!(kept.get("/registry/beat").map(String::as_str), Some("1"));
    store.close().await.unwrap();
    drop(store);
    assert_eq!(state(&Sqlite::open(&folder.log()).unwrap()).await, wanted);
}

#[tokio::test]
async fn a_disk_that_fails_before_the_new_file_counts_leaves_the_old_one_served() {
    let folder = Folder::new();
    let store = begun(&folder).await;
    let was = state(&*store).await;
    // Where the new file would get its first name.
    fs::create_dir(folder.0.join("state.db.ready")).unwrap();
    let staged = store.stage(folder.0.join("backup.db")).await.unwrap();
    let error = store.restore(staged).await.unwrap_err();
    assert!(matches!(error, RestoreError::Disk(_)), "{error}");
    fs::remove_dir(folder.0.join("state.db.ready")).unwrap();
    store.write(put("/registry/after", Expect::Absent, "3")).await.unwrap();
    assert!(!folder.0.join(".state.db.restore").exists());
    store.close().await.unwrap();
    drop(store);
    let mut wanted = was;
    wanted.insert("/registry/after".to_owned(), "3".to_owned());
    assert_eq!(state(&Sqlite::open(&folder.log()).unwrap()).await, wanted);
}

#[tokio::test]
async fn a_disk_that_fails_once_the_new_file_counts_ends_the_log_rather_than_serve_the_old_one() {
    let folder = Folder::new();
    let store = begun(&folder).await;
    // What the last steps have to take away, and cannot.
    fs::create_dir_all(folder.0.join("state.db-shm/x")).unwrap();
    let staged = store.stage(folder.0.join("backup.db")).await.unwrap();
    let error = store.restore(staged).await.unwrap_err();
    assert!(matches!(error, RestoreError::HalfPlaced(_)), "{error}");
    assert!(store.lost().await.contains("from the next start on"));
    let refused = store.write(put("/registry/after", Expect::Absent, "3")).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    drop(store);
    fs::remove_dir_all(folder.0.join("state.db-shm")).unwrap();
    let found = state(&Sqlite::open(&folder.log()).unwrap()).await;
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["/registry/old"]);
}

/// Tells the child what it is, and the folder.
const CHILD: &str = "AMPHIPOD_STORE_RESTORE_FOLDER";
const KILLS: u64 = 25;

#[test]
#[expect(clippy::disallowed_methods, reason = "the test's own child is told apart by it")]
fn killed_while_it_restores_a_log_is_the_old_one_or_the_new_one() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        return runtime.block_on(restore_for_ever(Path::new(&folder)));
    }
    let folder = Folder::new();
    let (mut number, mut revision, mut restores, mut caught) = (0, 0, 0, 0);
    // Restored or not, when it was killed: nobody was told.
    let mut open = false;
    for round in 0..KILLS {
        // Every other one dies as soon as it has begun, which on no machine is done by then.
        let wait = if round % 2 == 0 { 0 } else { round * 13 % 90 };
        for line in one_life(&folder.0, 1 + round % 3, wait) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["found", at, found] => {
                    let (at, found): (u64, u64) = (at.parse().unwrap(), found.parse().unwrap());
                    assert!(at >= revision, "went back from {revision} to {at}");
                    let kept = (number..=number + 1).contains(&found);
                    assert!(
                        kept || (open && found == 0),
                        "found {found} after {number}, restoring: {open}"
                    );
                    caught += u32::from(open);
                    (number, open) = (found, false);
                }
                ["ack", at, written] => {
                    let at: u64 = at.parse().unwrap();
                    assert!(at > revision, "{at} after {revision}");
                    (revision, number) = (at, written.parse().unwrap());
                }
                ["restoring"] => open = true,
                ["restored", at] => {
                    (revision, number, open) = (at.parse().unwrap(), 0, false);
                    restores += 1;
                }
                _ => {}
            }
        }
    }
    assert!(
        restores > KILLS / 2 && caught > 5,
        "{restores} restores were told of, {caught} caught by a kill"
    );
}

/// Starts a child, kills it so many milliseconds after it has begun so many restores, and returns the whole lines it wrote.
fn one_life(folder: &Path, restores: u64, wait: u64) -> Vec<String> {
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("restoring::killed_while_it_restores_a_log_is_the_old_one_or_the_new_one")
        .env(CHILD, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut lines = Vec::new();
    let mut begun = 0;
    while begun < restores {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "it ended: {lines:?}");
        begun += u64::from(line.starts_with("restoring"));
        lines.push(line);
    }
    thread::sleep(Duration::from_millis(wait));
    child.kill().unwrap();
    child.wait().unwrap();
    loop {
        let mut line = String::new();
        // Cut off in the middle by the kill: not said.
        if output.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
            return lines;
        }
        lines.push(line);
    }
}

fn say(line: &str) {
    let _ = std::io::stdout().lock().write_all(format!("{line}\n").as_bytes());
}

/// Counts a key up, and every few writes restores a backup in which it is zero.
async fn restore_for_ever(folder: &Path) {
    let key = "/registry/n";
    let store = Sqlite::open(&folder.join("state.db")).unwrap();
    let backup = folder.join("backup.db");
    if !backup.exists() {
        store.write(put(key, Expect::Any, "0")).await.unwrap();
        store.back_up(backup.clone(), Arc::default()).await.unwrap();
    }
    let found = store.get(key).await.unwrap().unwrap();
    let mut number: u64 = String::from_utf8(found.value.to_vec()).unwrap().parse().unwrap();
    say(&format!("\nfound {} {number}", store.revision().await.unwrap()));
    loop {
        for _ in 0..3 {
            number += 1;
            let revision = store.write(put(key, Expect::Any, &number.to_string())).await.unwrap();
            say(&format!("ack {revision} {number}"));
        }
        let staged = store.stage(backup.clone()).await.unwrap();
        say("restoring");
        let restored = store.restore(staged).await.unwrap();
        say(&format!("restored {}", restored.goes_on));
        number = 0;
    }
}
