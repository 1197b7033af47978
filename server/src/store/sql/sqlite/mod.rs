//! The log in one SQLite file: the embedded default.
//!
//! One thread owns the file (`thread.rs`) and commits what arrived while the last commit was on its way to the disk, so
//! writers share an fsync without waiting for each other. `table.rs` has all SQL. Nothing is acknowledged before it is as
//! durable as asked; what that means for volatile writes is in `docs/decisions/0001-revisions-and-volatile-writes.md`.
//!
//! The file is held to checksums when it is opened (`sum.rs`, `wal.rs`); what is damaged is made good from itself or from
//! the newest snapshot (`recover.rs`), which the log makes of itself (`schedule.rs`, `copying.rs`, `snapshot.rs`).

mod copying;
mod fault;
mod floor;
mod growth;
mod log;
mod place;
mod recover;
mod restore;
mod schedule;
mod snapshot;
mod sum;
mod table;
mod thread;
mod wal;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use agent::units::Revision;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::super::{Entry, Range, Snapshot, Store, StoreError, Tail, Write};
use log::Log;
pub use recover::{Now, Repair};
pub use restore::{RestoreError, Restored, Staged, restore};
pub use snapshot::{Backup, BackupError, Progress, folder as snapshots, verify};
use wal::Rest;

/// Requests on their way to the thread: enough for a few batches, little memory when the disk stalls.
const REQUESTS: usize = 4096;

/// Why a file could not be opened. Nothing in it has been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder or the file itself.
    #[error("cannot open the datastore {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// One server per file.
    #[error("the datastore {} is in use by another process: stop the other server, or give this one its own --data-dir", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// The disk lost or changed something.
    #[error(
        "the datastore {} is damaged ({detail}), and what it says cannot be read back: put a backup in its place with \"k3s restore\"",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What SQLite found.
        detail: String,
    },
    /// It is not ours to write.
    #[error("{} holds something else ({detail}): give the server another --data-dir", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// SQLite would not.
    #[error("cannot read the datastore {}: {detail}", path.display())]
    Sql {
        /// Which file.
        path: PathBuf,
        /// What SQLite said.
        detail: String,
    },
}

/// The handle. Dropping it flushes and closes the file, which blocks for one commit.
#[derive(Debug)]
pub struct Sqlite {
    requests: Option<mpsc::Sender<Queued>>,
    room: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
    path: PathBuf,
    repair: Option<Repair>,
    lost: watch::Receiver<Option<String>>,
}

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the thread is asked.
#[derive(Debug)]
enum Request {
    Write(Write, Reply<Revision>),
    Get(String, Reply<Option<Entry>>),
    List(Range, Option<Revision>, Reply<Snapshot>),
    Watch(Revision, Reply<Tail>),
    Compact(Revision, Reply<()>),
    Revision(Reply<Revision>),
    BackUp(PathBuf, Arc<Progress>, oneshot::Sender<Result<Backup, BackupError>>),
    Restore(Staged, oneshot::Sender<Result<Restored, RestoreError>>),
    Close(Reply<()>),
}

/// A request holds its place until it is answered.
#[derive(Debug)]
struct Queued {
    request: Request,
    place: OwnedSemaphorePermit,
}

impl Sqlite {
    /// Opens the file, or makes it (mode 0600), checks it, repairs it if that is needed and possible, and starts its
    /// thread. Blocks: tens of milliseconds, more with the size of the file.
    ///
    /// # Errors
    /// [`OpenError`]; the file is as it was.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let lock = place::lock(path)?;
        place::is_free(path)?;
        let (log, repair) = recover::open(path)?;
        Self::start(path, log, lock, repair)
    }

    /// As [`open`](Self::open), but a file that is not there or damaged is refused: for who only wants to read.
    ///
    /// # Errors
    /// [`OpenError`]; the file is as it was.
    pub fn open_whole(path: &Path) -> Result<Self, OpenError> {
        let lock = place::lock(path)?;
        let look = || {
            place::finish(path)?;
            std::fs::metadata(path)?;
            wal::examine(&place::with(path, "-wal"))
        };
        let rest = look().map_err(|source| OpenError::File {
            path: path.to_owned(),
            source,
        })?;
        if rest == Rest::Lost {
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                detail: recover::LOST.to_owned(),
            });
        }
        Self::start(path, Log::open(path, rest)?, lock, None)
    }

    fn start(path: &Path, log: Log, lock: place::Lock, repair: Option<Repair>) -> Result<Self, OpenError> {
        let (requests, received) = mpsc::channel();
        let (losing, lost) = watch::channel(None);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || thread::run(log, lock, &received, &losing))
            .map_err(|source| OpenError::File {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            requests: Some(requests),
            room: Arc::new(Semaphore::new(REQUESTS)),
            thread: Mutex::new(Some(thread)),
            path: path.to_owned(),
            repair,
            lost,
        })
    }

    /// Where a backup goes that is given no place.
    pub fn place_for_a_backup(&self, seconds: i64) -> PathBuf {
        self.path.with_file_name("backups").join(format!("{seconds}.db"))
    }

    /// What had to be repaired when it was opened.
    pub fn repair(&self) -> Option<&Repair> {
        self.repair.as_ref()
    }

    /// Copies the state of now to a new file (0600), verifies it and puts it on the disk; writers do not wait for it.
    ///
    /// # Errors
    /// [`BackupError`]; the file is not there then.
    pub async fn back_up(&self, to: PathBuf, progress: Arc<Progress>) -> Result<Backup, BackupError> {
        let (reply, answer) = oneshot::channel();
        let asked = self.queue(Request::BackUp(to, progress, reply)).await;
        asked.map_err(BackupError::Log)?;
        answer.await.map_err(|_| BackupError::Log(closed()))?
    }

    /// Copies a backup beside the file and checks the copy whole, for [`restore`](Self::restore); one at a time.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing has changed.
    pub async fn stage(&self, file: PathBuf) -> Result<Staged, RestoreError> {
        let path = self.path.clone();
        let staged = tokio::task::spawn_blocking(move || restore::stage(&path, &file)).await;
        staged.map_err(|_| RestoreError::Log(closed()))?
    }

    /// Puts what was staged in the place of the present state, which is kept aside. Requests wait meanwhile; every watch
    /// ends, and goes on nowhere.
    ///
    /// # Errors
    /// [`RestoreError`]; the present state is served on, unless [`lost`](Self::lost) says otherwise.
    pub async fn restore(&self, staged: Staged) -> Result<Restored, RestoreError> {
        let (reply, answer) = oneshot::channel();
        let asked = self.queue(Request::Restore(staged, reply)).await;
        asked.map_err(RestoreError::Log)?;
        answer.await.map_err(|_| RestoreError::Log(closed()))?
    }

    /// Ready with the reason if the log can be served no longer, although nobody closed it; else pending for ever.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        let why = lost.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    async fn queue(&self, request: Request) -> Result<(), StoreError> {
        let room = Arc::clone(&self.room);
        let place = room.acquire_owned().await.map_err(|_| closed())?;
        let requests = self.requests.as_ref().ok_or_else(closed)?;
        requests.send(Queued { request, place }).map_err(|_| closed())
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.queue(request(reply)).await?;
        answer.await.map_err(|_| closed())?
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.requests = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic over there has been printed already.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Store for Sqlite {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.ask(|reply| Request::Write(write, reply)).boxed()
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        self.ask(|reply| Request::Get(key, reply)).boxed()
    }

    fn list(&self, range: Range, at: Option<Revision>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.ask(move |reply| Request::List(range, at, reply)).boxed()
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Tail, StoreError>> {
        self.ask(move |reply| Request::Watch(from, reply)).boxed()
    }

    fn compact(&self, oldest: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.ask(move |reply| Request::Compact(oldest, reply)).boxed()
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.ask(Request::Revision).boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.ask(Request::Close).boxed()
    }

    fn embedded(&self) -> Option<&Sqlite> {
        Some(self)
    }
}
