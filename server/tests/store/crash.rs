//! A server is killed in the middle of its writes, again and again, and its datastore opened anew.
//!
//! The test runs itself as a child that writes and says what it was told; the parent kills it (SIGKILL, so nothing is
//! flushed or closed) and holds the next child to what earlier ones said. What the kernel had is not lost by that: power
//! failure is the disk's side of `synchronous=FULL`, and not tested here.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use agent::units::Revision;
use bytes::Bytes;
use server::store::sql::sqlite::Sqlite;
use server::store::{Change, Durability, Expect, Range, Store, StoreError, Write};
use tokio::task::JoinSet;

const KILLS: u64 = 50;
const WRITERS: u64 = 16;
/// Acknowledged in each life but the short ones, at least.
const DURABLE: usize = 30;
const VOLATILE: usize = 10;
/// Tells the child what it is, and the file.
const CHILD: &str = "AMPHIPOD_STORE_CRASH_FILE";

#[test]
#[expect(clippy::disallowed_methods, reason = "the test's own child is told apart by it")]
fn fifty_kills_lose_no_durable_write_and_repeat_no_revision() {
    if let Some(file) = std::env::var_os(CHILD) {
        return child(Path::new(&file));
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("store-crash-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("state.db");
    let mut witness = Witness::default();
    for round in 0..KILLS {
        let lines = one_life(&file, round);
        witness.begin_life();
        for line in &lines {
            witness.hear(line);
        }
    }
    assert!(
        witness.durable_acks > 1000,
        "too little was written to mean anything: {witness:?}"
    );
    assert!(
        witness.volatile_acks > 300,
        "too little was written to mean anything: {witness:?}"
    );
    old_watches_begin_anew(&file, &witness);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A start on a slow, busy machine; it only ends a hopeless wait.
const OPENING: Duration = Duration::from_secs(60);

/// Starts a child, kills it after a while that differs from round to round, and returns the whole lines it wrote.
fn one_life(file: &Path, round: u64) -> Vec<String> {
    let mut child = Running(
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "crash::fifty_kills_lose_no_durable_write_and_repeat_no_revision",
            ])
            .env(CHILD, file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut output = BufReader::new(child.0.stdout.take().unwrap());
    let (told, hears) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            // Cut off in the middle by the kill: not said.
            if output.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
                return lines;
            }
            if line.starts_with("ack ") {
                // Nobody waits for that of one that dies early.
                let _ = told.send(line.contains(" /durable/"));
            }
            lines.push(line);
        }
    });
    // Every fifth dies early, perhaps while it opens the file; the others when they have written, however long that took.
    if round % 5 == 4 {
        thread::sleep(Duration::from_millis(round * 7 % 60));
    } else {
        let (mut durable, mut volatile) = (0, 0);
        while durable < DURABLE || volatile < VOLATILE {
            let is_durable = hears.recv_timeout(OPENING).unwrap();
            *(if is_durable { &mut durable } else { &mut volatile }) += 1;
        }
        thread::sleep(Duration::from_millis(round * 37 % 150));
    }
    drop(child);
    reader.join().unwrap()
}

/// Killed when it goes out of scope, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All that was said in all lives.
#[derive(Debug, Default)]
struct Witness {
    /// By durable key: the newest acknowledged number.
    durable: BTreeMap<String, u64>,
    /// What was acknowledged or seen by a watch under which revision.
    writes: BTreeMap<u64, String>,
    before: u64,
    durable_acks: usize,
    volatile_acks: usize,
}

impl Witness {
    fn begin_life(&mut self) {
        self.before = self.writes.last_key_value().map_or(0, |(revision, _)| *revision);
    }

    /// `open REVISION`, `found KEY NUMBER`, `ack REVISION KEY NUMBER` or `saw REVISION KEY NUMBER`; else the harness's.
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["open", revision] => {
                let revision: u64 = revision.parse().unwrap();
                assert!(revision >= self.before, "went back from {} to {revision}", self.before);
            }
            ["found", key, number] if key.starts_with("/durable/") => {
                let number: u64 = number.parse().unwrap();
                let acknowledged = self.durable.get(*key).copied().unwrap_or(0);
                // One may have been on its way when the kill came.
                let expected = acknowledged..=acknowledged + 1;
                assert!(
                    expected.contains(&number),
                    "{key}: found {number}, acknowledged {acknowledged}"
                );
                self.durable.insert((*key).to_owned(), number);
            }
            [said @ ("ack" | "saw"), revision, key, number] => {
                let revision: u64 = revision.parse().unwrap();
                assert!(revision > self.before, "handed out again: {line}");
                let write = format!("{key} {number}");
                let first = self.writes.entry(revision).or_insert_with(|| write.clone());
                assert_eq!(*first, write, "two writes of revision {revision}");
                if *said == "ack" && key.starts_with("/durable/") {
                    self.durable.insert((*key).to_owned(), number.parse().unwrap());
                    self.durable_acks += 1;
                } else if *said == "ack" {
                    self.volatile_acks += 1;
                }
            }
            _ => {}
        }
    }
}

/// The last life may have lost volatile writes that somebody saw.
fn old_watches_begin_anew(file: &Path, witness: &Witness) {
    let store = Sqlite::open(file).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let newest = store.revision().await.unwrap();
        let (seen, _) = witness.writes.last_key_value().unwrap();
        assert!(newest.get() >= *seen);
        let old = store.watch(Revision::new(seen - 1)).await;
        assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
        assert!(store.watch(newest).await.is_ok());
    });
}

fn say(line: &str) {
    // The parent may be gone: then so are we, soon.
    let _ = std::io::stdout().lock().write_all(format!("{line}\n").as_bytes());
}

fn child(file: &Path) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(file).unwrap());
        let newest = store.revision().await.unwrap();
        say(&format!("\nopen {newest}"));
        let mut tail = store.watch(newest).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some(batch) = tail.recv().await {
                for event in batch.iter() {
                    let value = String::from_utf8(event.value.clone().unwrap().to_vec()).unwrap();
                    let number = value.split_whitespace().next().unwrap();
                    say(&format!("saw {} {} {number}", event.revision, event.key));
                }
            }
        });
        for writer in 0..WRITERS {
            tasks.spawn(write_for_ever(Arc::clone(&store), writer));
        }
        tasks.join_all().await;
    });
}

/// Counts a key up, each write on condition of the one before.
async fn write_for_ever(store: Arc<dyn Store>, writer: u64) {
    let (kind, durability) = match writer % 4 {
        0 => ("volatile", Durability::Volatile),
        _ => ("durable", Durability::Durable),
    };
    let key: Arc<str> = format!("/{kind}/{writer}").into();
    let range = Range {
        prefix: key.to_string(),
        ..Range::default()
    };
    let mut found = store.list(range, None).await.unwrap().entries.into_iter();
    let found = found.rfind(|entry| entry.key == key);
    let (mut number, mut expect) = (0, Expect::Absent);
    if let Some(entry) = found {
        let text = String::from_utf8(entry.value.to_vec()).unwrap();
        number = text.split_whitespace().next().unwrap().parse().unwrap();
        expect = Expect::At(entry.revision);
    }
    say(&format!("found {key} {number}"));
    loop {
        number += 1;
        let revision = store
            .write(Write {
                durability,
                ..Write::new(
                    Arc::clone(&key),
                    expect,
                    Change::Put(Bytes::from(format!("{number} {}", "x".repeat(500)))),
                )
            })
            .await
            .unwrap();
        say(&format!("ack {revision} {key} {number}"));
        expect = Expect::At(revision);
        if durability == Durability::Volatile {
            // Else there would be nothing but these.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
