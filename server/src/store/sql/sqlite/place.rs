//! Files around the one in use: its lock, what is built beside it, and putting that in its place without losing the old.
//!
//! A write-ahead log belongs to the file beside it by its name alone: put another file there and SQLite applies the old
//! log to it. So a replacement is first made whole and renamed to `NAME.ready`, from where on it is what counts, whatever
//! happens; then the old log goes, and the file gets its name. A start finishes what a crash cut short ([`finish`]).

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use agent::join::durable;
use nix::fcntl::{Flock, FlockArg};

use super::OpenError;

/// Old files that are kept aside, of each kind: more would fill a small card.
const KEPT: usize = 3;

/// Why a file is put aside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Aside {
    /// It was damaged.
    Damaged,
    /// A backup took its place.
    Replaced,
}

impl Aside {
    fn folder(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Replaced => "replaced",
        }
    }
}

/// Nobody else opens, replaces or copies the file while this lives.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

/// Takes the file, which need not be there.
pub fn lock(path: &Path) -> Result<Lock, OpenError> {
    let failed = |source| OpenError::File {
        path: path.to_owned(),
        source,
    };
    folder(&parent(path)).map_err(failed)?;
    let mut how = OpenOptions::new();
    let file = how.write(true).create(true).truncate(false).mode(0o600);
    let file = file.open(with(path, ".lock")).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Lock(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(OpenError::InUse { path: path.to_owned() }),
        Err((_, error)) => Err(failed(error.into())),
    }
}

/// Whether a new file may be made here: not beside the embedded etcd of a K3s server (`--cluster-init`), whose cluster would
/// seem to be empty.
///
/// Source: K3s v1.36, `pkg/etcd` (`walDir`).
pub fn is_free(path: &Path) -> Result<(), OpenError> {
    let etcd = parent(path).join("etcd");
    let present = |path: &Path| {
        path.try_exists().map_err(|source| OpenError::File {
            path: path.to_owned(),
            source,
        })
    };
    if present(&etcd.join("member/wal"))? && !present(path)? && !present(&with(path, ".ready"))? {
        return Err(OpenError::Foreign {
            path: etcd,
            detail: "the cluster of a K3s server with embedded etcd".to_owned(),
        });
    }
    Ok(())
}

/// Why a replacement did not come to its end.
#[derive(Debug)]
pub enum Unplaced {
    /// The old file is what counts, as if nothing had been tried.
    Old(io::Error),
    /// The new file is what counts, and whoever opens the log next has to [`finish`] first.
    New(io::Error),
}

impl From<io::Error> for Unplaced {
    fn from(error: io::Error) -> Self {
        Self::Old(error)
    }
}

impl From<Unplaced> for io::Error {
    fn from(error: Unplaced) -> Self {
        match error {
            Unplaced::Old(error) | Unplaced::New(error) => error,
        }
    }
}

/// Puts `next` in the place of `path` and returns where the old one is, if there was one. After an error, and after a
/// crash, either the old one or the new one is there, whole.
pub fn replace(path: &Path, next: &Path, why: Aside) -> Result<Option<PathBuf>, Unplaced> {
    // Closing a database tells nobody when it could not take its log over: the marks may be in there.
    if with(next, "-wal").try_exists()? {
        return Err(io::Error::other("the new file could not be written whole").into());
    }
    File::open(next)?.sync_all()?;
    let aside = put_aside(path, why)?;
    fs::rename(next, with(path, ".ready"))?;
    sync_folder(path).and_then(|()| finish(path)).map_err(Unplaced::New)?;
    // Those that were there before: only now that they cannot be needed.
    prune(&parent(path).join(why.folder()));
    Ok(aside)
}

/// Ends a replacement that a crash cut short.
pub fn finish(path: &Path) -> io::Result<()> {
    let ready = with(path, ".ready");
    if !ready.try_exists()? {
        return Ok(());
    }
    for name in ["-wal", "-shm", "-journal"] {
        remove(&with(path, name))?;
    }
    sync_folder(path)?;
    fs::rename(ready, path)?;
    sync_folder(path)
}

/// Gives the file, and its log, a second name.
fn put_aside(path: &Path, why: Aside) -> io::Result<Option<PathBuf>> {
    if !path.try_exists()? {
        return Ok(None);
    }
    let own = new_folder(path, why)?;
    for from in [path.to_owned(), with(path, "-wal")] {
        let name = from.file_name().map_or_else(OsString::new, ToOwned::to_owned);
        let to = own.join(name);
        if from.try_exists()? && fs::hard_link(&from, &to).is_err() {
            // A file system without second names.
            fs::copy(&from, &to)?;
            File::open(&to)?.sync_all()?;
        }
    }
    File::open(&own)?.sync_all()?;
    sync_folder(path)?;
    Ok(Some(own))
}

/// Keeps a copy of the log of a file, which SQLite is about to write over.
pub fn copy_log_aside(path: &Path) -> io::Result<PathBuf> {
    let own = new_folder(path, Aside::Damaged)?;
    let log = with(path, "-wal");
    let to = own.join(log.file_name().unwrap_or_default());
    let copied = fs::copy(&log, &to).and_then(|_| File::open(&to)?.sync_all());
    if let Err(error) = copied {
        // Each start on a full disk would leave another part of one.
        let _ = fs::remove_dir_all(&own);
        return Err(error);
    }
    prune(&parent(path).join(Aside::Damaged.folder()));
    Ok(own)
}

fn new_folder(path: &Path, why: Aside) -> io::Result<PathBuf> {
    let all = parent(path).join(why.folder());
    folder(&all)?;
    let number = numbered(&all)?.last().map_or(1, |(number, _)| number.saturating_add(1));
    let own = all.join(number.to_string());
    folder(&own)?;
    Ok(own)
}

fn prune(folder: &Path) {
    let all = numbered(folder).unwrap_or_default();
    for (_, old) in all.iter().rev().skip(KEPT) {
        if let Err(error) = fs::remove_dir_all(old) {
            tracing::warn!(folder = %old.display(), error = %error, "cannot remove an old datastore that was kept aside");
        }
    }
}

/// Folders by their numbers, the smallest first.
fn numbered(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found)
}

/// A new empty file for its owner only, in place of whatever is there.
pub fn fresh(path: &Path) -> io::Result<()> {
    folder(&parent(path))?;
    for name in ["", "-wal", "-shm", "-journal"] {
        remove(&with(path, name))?;
    }
    let mut how = OpenOptions::new();
    how.write(true).create_new(true).mode(0o600).open(path).map(drop)
}

/// A folder for its owner only, for good, unless it is there. Those above it that are missing are, too, as for K3s.
pub fn folder(path: &Path) -> io::Result<()> {
    durable::create_folder(path, 0o700, 0o700)
}

/// The name is on the disk.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

/// The file's path with something behind its name.
pub fn with(path: &Path, more: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(more);
    name.into()
}

/// A hidden file beside `path`.
pub fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{what}"))
}

/// Removes a file, which need not be there.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    struct Folder(Scratch);

    impl Folder {
        fn new(name: &str) -> Self {
            Self(Scratch::new(&format!("place-{name}")))
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.0.join(name)
        }

        fn write(&self, name: &str, content: &str) -> PathBuf {
            fs::write(self.path(name), content).unwrap();
            self.path(name)
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.path(name)).ok()
        }
    }

    #[test]
    fn a_replacement_keeps_the_old_file_with_its_log_and_takes_the_log_away() {
        let folder = Folder::new("replace");
        let path = folder.write("state.db", "old");
        folder.write("state.db-wal", "old log");
        let next = folder.write("next", "new");
        let aside = replace(&path, &next, Aside::Damaged).unwrap();
        assert_eq!(aside, Some(folder.path("damaged/1")));
        assert_eq!(folder.read("damaged/1/state.db").as_deref(), Some("old"));
        assert_eq!(folder.read("damaged/1/state.db-wal").as_deref(), Some("old log"));
        assert_eq!(folder.read("state.db").as_deref(), Some("new"));
        assert_eq!(folder.read("state.db-wal"), None);
        for number in 2..=5_u8 {
            let next = folder.write("next", &format!("new {number}"));
            replace(&path, &next, Aside::Damaged).unwrap();
        }
        assert_eq!(folder.read("damaged/2/state.db"), None, "only the last few are kept");
        assert_eq!(folder.read("damaged/5/state.db").as_deref(), Some("new 4"));
        let next = folder.write("next", "not all of it");
        folder.write("next-wal", "the rest");
        replace(&path, &next, Aside::Damaged).unwrap_err();
        assert_eq!(folder.read("state.db").as_deref(), Some("new 5"));
    }

    #[test]
    fn a_crash_on_the_way_is_made_good_and_the_old_log_never_meets_the_new_file() {
        let folder = Folder::new("crash");
        let path = folder.write("state.db", "old");
        folder.write("state.db-wal", "old log");
        finish(&path).unwrap();
        assert_eq!(
            folder.read("state.db-wal").as_deref(),
            Some("old log"),
            "nothing to finish"
        );
        folder.write("state.db.ready", "new");
        finish(&path).unwrap();
        assert_eq!(folder.read("state.db").as_deref(), Some("new"));
        assert_eq!(folder.read("state.db-wal"), None);
        // After the log went and before the file had its name.
        folder.write("state.db.ready", "newer");
        finish(&path).unwrap();
        assert_eq!(folder.read("state.db").as_deref(), Some("newer"));
    }

    #[test]
    fn a_file_is_one_process_own() {
        let folder = Folder::new("lock");
        let path = folder.path("state.db");
        let first = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(OpenError::InUse { .. })));
        drop(first);
        lock(&path).unwrap();
    }
}
