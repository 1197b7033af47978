//! SQLite's file, damaged in every way that cards and power cuts know: the server starts, or says why not, and never
//! serves a history that was not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use agent::units::Revision;
use server::store::sql::sqlite::{self, BackupError, OpenError, RestoreError, Sqlite};
use server::store::{Expect, Range, Store, StoreError};

use crate::contract::{delete, put, volatile};

/// A folder of a test's own, removed at its end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("store-damage-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn log(&self) -> PathBuf {
        self.0.join("state.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// What every revision's state was: key and value.
type History = BTreeMap<u64, BTreeMap<String, String>>;

/// Writes, changes and deletes keys, and notes each state.
async fn write(store: &Sqlite, history: &mut History, count: usize) {
    let mut state = history
        .last_key_value()
        .map(|(_, state)| state.clone())
        .unwrap_or_default();
    for number in 0..count {
        let key = format!("/registry/k/{}", number * 7 % 40);
        let revision = if number % 5 == 4 && state.contains_key(&key) {
            state.remove(&key);
            store.write(delete(&key, Expect::Any)).await.unwrap()
        } else {
            let value = format!("{number}-{}", "x".repeat(number * 37 % 900));
            state.insert(key.clone(), value.clone());
            store.write(put(&key, Expect::Any, &value)).await.unwrap()
        };
        history.insert(revision.get(), state.clone());
    }
}

pub async fn state(store: &dyn Store) -> BTreeMap<String, String> {
    let snapshot = store.list(Range::default(), None).await.unwrap();
    let pair = |entry: &server::store::Entry| {
        (
            entry.key.to_string(),
            String::from_utf8_lossy(&entry.value).into_owned(),
        )
    };
    snapshot.entries.iter().map(pair).collect()
}

fn snapshot_name(log: &Path, revision: Revision) -> PathBuf {
    let folder = sqlite::snapshots(log);
    fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{revision}.db"))
}

/// What a killed server leaves: part of its writes in the file, part in the log beside it, a snapshot of before.
async fn killed(folder: &Folder) -> History {
    let mut history = History::new();
    let store = Sqlite::open(&folder.log()).unwrap();
    write(&store, &mut history, 120).await;
    let at = store.revision().await.unwrap();
    store
        .back_up(snapshot_name(&folder.log(), at), Arc::default())
        .await
        .unwrap();
    write(&store, &mut history, 60).await;
    drop(store);
    let store = Sqlite::open(&folder.log()).unwrap();
    write(&store, &mut history, 60).await;
    kill(folder, store);
    history
}

/// Ends it, and leaves its files as they are on the disk now: a kill leaves no more.
fn kill(folder: &Folder, store: Sqlite) {
    let left = Folder::new();
    for name in ["state.db", "state.db-wal"] {
        fs::copy(folder.0.join(name), left.0.join(name)).unwrap();
    }
    drop(store);
    for name in ["state.db", "state.db-wal"] {
        fs::copy(left.0.join(name), folder.0.join(name)).unwrap();
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_tree(&path, &target),
            false => drop(fs::copy(&path, &target).unwrap()),
        }
    }
}

/// A small generator (xorshift): the same seed, the same damage.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// Flips bytes, wipes blocks or cuts, in the file or its log; returns what it did.
fn damage(folder: &Path, seed: u64) -> String {
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let name = if seed % 3 == 2 { "state.db-wal" } else { "state.db" };
    let path = folder.join(name);
    let mut bytes = fs::read(&path).unwrap();
    let length = bytes.len();
    let what = match seed % 8 {
        0 => {
            let at = chance.below(100);
            bytes[at] ^= 1 << chance.below(8);
            format!("a bit of the header's byte {at}")
        }
        1 | 2 => {
            let at = chance.below(length);
            bytes[at] ^= 1 << chance.below(8);
            format!("a bit of byte {at}")
        }
        3 | 4 => {
            for _ in 0..20 {
                let at = chance.below(length);
                bytes[at] = bytes[at].wrapping_add(1 + u8::try_from(chance.below(255)).unwrap());
            }
            "twenty bytes".to_owned()
        }
        5 => {
            let at = chance.below(length / 512) * 512;
            bytes[at..at + 512].fill(0xff);
            format!("the block at {at}")
        }
        6 => {
            let at = chance.below(length / 4096) * 4096;
            let end = (at + 4096).min(length);
            bytes[at..end].fill(0);
            format!("the page at {at}")
        }
        _ => {
            bytes.truncate(chance.below(length));
            format!("cut to {}", bytes.len())
        }
    };
    fs::write(&path, bytes).unwrap();
    format!("seed {seed}: {name}, {what}")
}

#[tokio::test]
async fn whatever_is_damaged_the_state_is_one_that_was_and_no_revision_comes_twice() {
    let template = Folder::new();
    let history = killed(&template).await;
    let newest = *history.last_key_value().unwrap().0;
    let snapshot = sqlite::verify(
        &fs::read_dir(sqlite::snapshots(&template.log()))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path(),
    );
    let snapshot = snapshot.unwrap().revision.get();
    let (mut repaired, mut whole, mut refused) = (0, 0, Vec::new());
    for seed in 0..160 {
        let copy = Folder::new();
        copy_tree(&template.0, &copy.0);
        let what = damage(&copy.0, seed);
        let store = match Sqlite::open(&copy.log()) {
            Ok(store) => store,
            Err(problem) => {
                refused.push(format!("{what}: {problem}"));
                continue;
            }
        };
        let found = state(&store).await;
        let was = history.iter().rev().find(|(_, state)| **state == found);
        let (at, _) = was.unwrap_or_else(|| panic!("{what}: a state that never was: {:?}", store.repair()));
        assert!(*at >= snapshot, "{what}: went behind the snapshot, to {at}");
        match store.repair() {
            // What is there says where it ends, and what was lost is said to be.
            Some(repair) => {
                repaired += 1;
                whole += usize::from(repair.to_string().contains("nothing is lost"));
                let said = repair.to_string().contains("nothing is lost");
                assert!(!said || *at == newest, "{what}: {repair}, at {at}");
                let kept = repair.kept.as_ref().unwrap();
                assert!(fs::read_dir(kept).unwrap().count() > 0, "{what}");
            }
            // A cut between two commits shows nowhere; else nothing may be missing.
            None => assert!(
                *at == newest || what.contains("state.db-wal, cut"),
                "{what}: silently at {at}"
            ),
        }
        let cut = store.repair().is_none() && what.contains("state.db-wal, cut");
        let next = store.write(put("/registry/new", Expect::Absent, "1")).await.unwrap();
        assert!(next.get() > newest || cut, "{what}: {next} was handed out before");
        let old = store.watch(Revision::new(newest)).await;
        let goes_on = store.repair().is_none();
        assert!(
            goes_on || matches!(old, Err(StoreError::Compacted { .. })),
            "{what}: {old:?}"
        );
        drop(store);
        let again = Sqlite::open(&copy.log()).unwrap();
        assert!(again.repair().is_none(), "{what}: a repair lasts");
    }
    // The file's own name for itself is in its header: another one is another program's.
    assert!(
        refused
            .iter()
            .all(|why| why.contains("header") && why.contains("holds something else")),
        "{refused:#?}"
    );
    assert!(refused.len() < 8, "{refused:#?}");
    assert!(
        repaired > 80 && whole > 5,
        "too little was damaged to mean anything: {repaired} {whole}"
    );
}

/// A value that takes many pages, so its commit takes many frames of SQLite's own log.
fn large() -> String {
    "y".repeat(100_000)
}

#[tokio::test]
async fn kills_in_the_middle_of_commits_are_no_damage_however_many() {
    let folder = Folder::new();
    let (mut expected, mut newest) = (BTreeMap::new(), Revision::ZERO);
    for life in 0..5 {
        let store = Sqlite::open(&folder.log()).unwrap();
        assert_eq!(store.repair(), None, "life {life}");
        assert_eq!(state(&store).await, expected, "life {life}");
        let key = format!("/registry/{life}");
        let revision = store.write(put(&key, Expect::Absent, "1")).await.unwrap();
        assert!(revision > newest, "life {life}");
        expected.insert(key, "1".to_owned());
        newest = revision;
        if life % 2 == 1 {
            // Frames of the life before lie behind the end.
            kill(&folder, store);
            continue;
        }
        newest = store.write(put("/registry/cut", Expect::Any, &large())).await.unwrap();
        kill(&folder, store);
        // All but the end of the last commit.
        let log = folder.0.join("state.db-wal");
        let length = fs::metadata(&log).unwrap().len();
        let log = fs::File::options().write(true).open(&log).unwrap();
        log.set_len(length - 3 * 4120).unwrap();
    }
}

#[tokio::test]
async fn a_damaged_log_is_told_once_also_when_a_kill_follows() {
    let folder = Folder::new();
    killed(&folder).await;
    let log = folder.0.join("state.db-wal");
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&log, &bytes).unwrap();
    let refused = Sqlite::open_whole(&folder.log()).unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
    assert_eq!(fs::read(&log).unwrap(), bytes, "who only reads leaves it to the server");
    let store = Sqlite::open(&folder.log()).unwrap();
    assert!(store.repair().unwrap().to_string().contains("LOST"));
    let newest = store.write(put("/registry/new", Expect::Absent, "1")).await.unwrap();
    kill(&folder, store);
    let store = Sqlite::open(&folder.log()).unwrap();
    assert_eq!(store.repair(), None);
    assert_eq!(store.revision().await.unwrap(), newest);
}

/// The format before checksums, as a server left it after a clean stop: one key that lives, one that was deleted.
fn write_first_format(path: &Path) {
    let file = rusqlite::Connection::open(path).unwrap();
    let text = "
        PRAGMA journal_mode = WAL;
        CREATE TABLE log (
            revision INTEGER PRIMARY KEY,
            key      TEXT    NOT NULL,
            created  INTEGER NOT NULL,
            previous INTEGER NOT NULL,
            ttl      INTEGER,
            value    BLOB
        );
        CREATE INDEX log_by_key ON log (key, revision);
        CREATE TABLE mark (name TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
        PRAGMA user_version = 1;
        INSERT INTO log VALUES
            (1, '/registry/a', 1, 0, NULL, x'31'),
            (2, '/registry/b', 2, 0, NULL, x'31'),
            (3, '/registry/a', 1, 1, NULL, x'32'),
            (4, '/registry/b', 2, 2, NULL, NULL);
        INSERT INTO mark VALUES ('reserved', 4), ('closed', 4);
    ";
    file.execute_batch(text).unwrap();
}

#[tokio::test]
async fn a_file_of_the_format_before_checksums_goes_on_and_what_is_written_to_it_is_held_to_them() {
    let folder = Folder::new();
    write_first_format(&folder.log());
    let was: BTreeMap<_, _> = [("/registry/a".to_owned(), "2".to_owned())].into();
    let store = Sqlite::open(&folder.log()).unwrap();
    assert_eq!(store.repair(), None);
    assert_eq!(state(&store).await, was);
    let mut tail = store.watch(Revision::new(2)).await.unwrap();
    let backlog: Vec<u64> = tail
        .try_recv()
        .unwrap()
        .iter()
        .map(|event| event.revision.get())
        .collect();
    assert_eq!(backlog, [3, 4], "a watch goes on across the upgrade");
    let next = store.write(put("/registry/c", Expect::Absent, "1")).await.unwrap();
    assert_eq!(next, Revision::new(5));
    store.back_up(folder.0.join("backup.db"), Arc::default()).await.unwrap();
    drop(store);
    let store = Sqlite::open(&folder.log()).unwrap();
    let mut now = was.clone();
    now.insert("/registry/c".to_owned(), "1".to_owned());
    assert_eq!(state(&store).await, now, "and once more");
    drop(store);
    sqlite::verify(&folder.0.join("backup.db")).unwrap();

    let file = rusqlite::Connection::open(folder.log()).unwrap();
    file.execute("UPDATE log SET value = x'39' WHERE revision = 5", [])
        .unwrap();
    drop(file);
    let refused = Sqlite::open(&folder.log()).unwrap_err();
    assert!(
        matches!(&refused, OpenError::Damaged { detail, .. } if detail.contains("row 5")),
        "{refused}"
    );

    let old = folder.0.join("old.db");
    write_first_format(&old);
    let restored = sqlite::restore(&folder.log(), &old).unwrap();
    assert_eq!((restored.revision, restored.keys), (Revision::new(4), 1));
    assert_eq!(state(&Sqlite::open(&folder.log()).unwrap()).await, was);
}

#[tokio::test]
async fn a_file_that_is_gone_or_empty_comes_back_from_the_snapshot() {
    for gone in [true, false] {
        let folder = Folder::new();
        let history = killed(&folder).await;
        fs::remove_file(folder.0.join("state.db-wal")).unwrap();
        match gone {
            true => fs::remove_file(folder.log()).unwrap(),
            false => fs::write(folder.log(), "").unwrap(),
        }
        let store = Sqlite::open(&folder.log()).unwrap();
        let found = state(&store).await;
        assert_eq!(found, history[&120]);
        assert!(
            store
                .repair()
                .unwrap()
                .to_string()
                .contains("LOST: whatever was written after it")
        );
    }
}

#[tokio::test]
async fn without_a_snapshot_damage_is_told_with_the_cure_and_nothing_is_touched() {
    let folder = Folder::new();
    let mut history = History::new();
    let store = Sqlite::open(&folder.log()).unwrap();
    write(&store, &mut history, 100).await;
    store.close().await.unwrap();
    drop(store);
    let mut bytes = fs::read(folder.log()).unwrap();
    for page in bytes.chunks_mut(4096).skip(1) {
        page[..100].fill(0x5a);
    }
    fs::write(folder.log(), &bytes).unwrap();
    let problem = Sqlite::open(&folder.log()).unwrap_err();
    assert!(matches!(problem, OpenError::Damaged { .. }), "{problem}");
    assert!(problem.to_string().contains("k3s restore"), "{problem}");
    assert_eq!(fs::read(folder.log()).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_made_while_others_write_is_one_state_and_a_restore_brings_it_back() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    let store = Arc::new(Sqlite::open(&folder.log()).unwrap());
    let mut history = History::new();
    write(&store, &mut history, 200).await;
    store
        .write(volatile(put("/registry/beat", Expect::Absent, "1")))
        .await
        .unwrap();
    let backup = folder.0.join("backup.db");
    let (made, ()) = tokio::join!(store.back_up(backup.clone(), Arc::default()), async {
        // Pairs: a state between two of the same pair never was one.
        for number in 0..200 {
            store
                .write(put("/registry/a", Expect::Any, &number.to_string()))
                .await
                .unwrap();
        }
    });
    let made = made.unwrap();
    assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(sqlite::verify(&backup).unwrap(), made);
    let again = store.back_up(backup.clone(), Arc::default()).await.unwrap_err();
    assert!(matches!(again, BackupError::Exists(_)), "{again}");
    let nowhere = store.back_up(folder.0.join("no/such/../file.db"), Arc::default()).await;
    assert!(nowhere.is_ok() || matches!(nowhere, Err(BackupError::Disk { .. })));

    let restoring = sqlite::restore(&folder.log(), &backup).unwrap_err();
    assert!(
        matches!(restoring, RestoreError::File(OpenError::InUse { .. })),
        "{restoring}"
    );
    let newest = store.revision().await.unwrap();
    store.close().await.unwrap();
    let restored = sqlite::restore(&folder.log(), &backup).unwrap();
    assert_eq!((restored.revision, restored.keys), (made.revision, made.keys));
    assert!(restored.goes_on > newest && restored.aside.as_ref().unwrap().join("state.db").exists());
    let store = Sqlite::open(&folder.log()).unwrap();
    let old = store.watch(newest).await;
    assert!(
        matches!(old, Err(StoreError::Compacted { oldest, .. }) if oldest == restored.goes_on),
        "{old:?}"
    );
    let mut found = state(&store).await;
    assert_eq!(
        found.remove("/registry/beat").as_deref(),
        Some("1"),
        "what was not on disk yet is in it, too"
    );
    found.remove("/registry/a");
    let mut before = history.last_key_value().unwrap().1.clone();
    before.remove("/registry/a");
    assert_eq!(found, before);
    let next = store.write(put("/registry/z", Expect::Absent, "1")).await.unwrap();
    assert_eq!(next, restored.goes_on.next());
}

#[tokio::test]
async fn what_is_no_good_backup_is_refused_and_the_present_state_stays() {
    let folder = Folder::new();
    let store = Sqlite::open(&folder.log()).unwrap();
    let mut history = History::new();
    write(&store, &mut history, 100).await;
    let good = folder.0.join("good.db");
    store.back_up(good.clone(), Arc::default()).await.unwrap();
    drop(store);
    let file = folder.0.join("file.db");
    let mut flipped = fs::read(&good).unwrap();
    // Wherever a value lies, also where pages keep remains; nothing but values has two in a row.
    for at in (1..flipped.len()).rev() {
        if flipped[at - 1..=at] == *b"xx" {
            flipped[at] = b'y';
        }
    }
    let newer = |format: i32| {
        fs::copy(&good, &file).unwrap();
        let other = rusqlite::Connection::open(&file).unwrap();
        other.pragma_update(None, "user_version", format).unwrap();
        drop(other);
        fs::read(&file).unwrap()
    };
    let (newer, kine) = (newer(3), newer(0));
    for (content, hint) in [
        (flipped, "is not what was written"),
        (newer, "format 3"),
        (kine, "another program"),
        (b"no database".to_vec(), "file is not a database"),
        (Vec::new(), "holds no cluster"),
    ] {
        fs::write(&file, content).unwrap();
        let problem = sqlite::restore(&folder.log(), &file).unwrap_err().to_string();
        assert!(problem.contains(hint) && problem.contains("file.db"), "{problem}");
        let store = Sqlite::open(&folder.log()).unwrap();
        assert_eq!(&state(&store).await, history.last_key_value().unwrap().1);
    }
    let gone = sqlite::restore(&folder.log(), &folder.0.join("gone.db"))
        .unwrap_err()
        .to_string();
    assert!(gone.contains("gone.db"), "{gone}");
    assert!(
        !folder.0.join(".state.db.restore").exists(),
        "nothing is left of what was refused"
    );
}
