//! The log in a database that several servers share: the handle, and the tasks behind it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::units::Revision;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::super::{Entry, OpenError, Range, Snapshot, Store, StoreError, Tail, Write, reachable};
use super::closed;
use super::compaction;
use super::connector::{Common, within_time};
use super::database::{Database, Fault, Identity, Link, Marks, PrepareError};
use super::follower::{Follower, Watch};
use super::readers::Readers;
use super::record::{self, Record};
use super::writer::{Queued, Writer};

/// Writes on their way: enough for a few batches, little memory while the database stalls.
const WRITES: usize = 4096;
/// Batches of our own on their way to the follower; what it has no room for it reads.
const OWN: usize = 64;
/// Those who wait to follow are few: one cache a server.
const WATCHES: usize = 64;
/// For a list: the first is of the whole cluster, and may come over a slow link.
const LIST: Duration = Duration::from_secs(60);
/// For a database and its tables to be made; they are found in no time.
const PREPARE: Duration = Duration::from_secs(30);
/// Starts of a list that were overtaken by a compaction.
const RESTARTS: usize = 3;
/// A stop waits so long for writes that are on their way.
const STOP: Duration = Duration::from_secs(20);

/// The handle. Dropping it ends its tasks at once; writes on their way may or may not happen.
#[derive(Debug)]
pub struct Shared<D: Database> {
    writes: mpsc::Sender<Queued>,
    watches: mpsc::Sender<Watch>,
    readers: Arc<Readers<D>>,
    common: Arc<Common>,
    record: Arc<Record>,
    closed: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl<D: Database> Shared<D> {
    /// Makes the tables if need be, and starts to follow the log. Tries once, for a bounded time.
    ///
    /// `folder`: where this server keeps what it has seen of the log. If that is no longer in it, the log has lost it.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::Away`] when it may help to wait.
    pub async fn open(database: D, folder: &Path) -> Result<Self, OpenError> {
        let (mut server, mut identity) = ([0; 4], [0; 8]);
        let random = SystemRandom::new();
        random.fill(&mut server).map_err(|_| OpenError::CutShort)?;
        random.fill(&mut identity).map_err(|_| OpenError::CutShort)?;
        let identity = Identity(i64::from_ne_bytes(identity));
        let common = Arc::new(Common::new(u32::from_ne_bytes(server)));
        let database = Arc::new(database);
        let (writes, queue) = mpsc::channel(WRITES);
        let away = |fault: Fault| OpenError::Away {
            detail: fault.to_string(),
        };
        let prepared = within_time(PREPARE, async { Ok(database.prepare(identity).await) });
        let identity = prepared.await.map_err(away)?.map_err(|error| match error {
            PrepareError::Later(fault) => away(fault),
            PrepareError::Never(problem) => problem,
        })?;
        let record = Arc::new(Record::new(folder, identity));
        if let Some(seen) = record.load() {
            // The first connection looks for it.
            common.begin_anew(seen);
        }
        let follower = Follower::begin(Arc::clone(&database), Arc::clone(&common), writes.clone()).await;
        let follower = follower.map_err(away)?;
        let (closed, closing) = watch::channel(false);
        let (watches, waiting) = mpsc::channel(WATCHES);
        let (own, committed) = mpsc::channel(OWN);
        let readers = Arc::new(Readers::new(&database, &common));
        let mut tasks = JoinSet::new();
        tasks.spawn(Writer::new(database, Arc::clone(&common), own).run(queue, closing.clone()));
        tasks.spawn(follower.run(waiting, committed, closing.clone()));
        tasks.spawn(compaction::run(Arc::clone(&readers), closing.clone()));
        tasks.spawn(record::run(Arc::clone(&record), Arc::clone(&common), closing));
        Ok(Self {
            writes,
            watches,
            readers,
            common,
            record,
            closed,
            tasks: Mutex::new(tasks),
        })
    }

    fn still_open(&self) -> Result<(), StoreError> {
        if *self.closed.borrow() { Err(closed()) } else { Ok(()) }
    }

    async fn ask_writer(&self, write: Write) -> Result<Revision, StoreError> {
        self.still_open()?;
        let (reply, answer) = oneshot::channel();
        let queued = Queued {
            write,
            reply: Some(reply),
        };
        self.writes.send(queued).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    async fn ask_follower(&self, from: Revision) -> Result<Tail, StoreError> {
        self.still_open()?;
        let (reply, answer) = oneshot::channel();
        self.watches.send(Watch { from, reply }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    async fn state(&self, range: Range, at: Option<Revision>) -> Result<Snapshot, StoreError> {
        self.still_open()?;
        let limit = range.limit;
        for _ in 0..RESTARTS {
            // One more than asked for tells whether there are more.
            let range = Range {
                limit: limit.map(|limit| limit.saturating_add(1)),
                ..range.clone()
            };
            let read = self.readers.read_within(LIST, move |link| {
                let range = range.clone();
                async move {
                    let marks = link.marks().await?;
                    let revision = at.unwrap_or(marks.newest);
                    if revision > marks.newest || revision < marks.floor() {
                        return Ok((marks, revision, Vec::new(), marks));
                    }
                    let entries = link.state(&range, revision).await?;
                    Ok((marks, revision, entries, link.marks().await?))
                }
                .boxed()
            });
            let (marks, revision, entries, after): (Marks, Revision, Vec<Entry>, Marks) = read.await?;
            // It was current when the list began, and compaction has gone past it meanwhile.
            if at.is_none() && revision < after.floor() {
                continue;
            }
            reachable(revision, after.floor(), marks.newest)?;
            return Ok(Snapshot::first(revision, entries, limit));
        }
        Err(StoreError::Unavailable(
            "the list is overtaken by compactions again and again".to_owned(),
        ))
    }
}

impl<D: Database> Store for Shared<D> {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.ask_writer(write).boxed()
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key: Arc<str> = key.into();
        async move {
            self.still_open()?;
            let read = self.readers.read(move |link| {
                let key = Arc::clone(&key);
                async move { link.get(&key).await }.boxed()
            });
            read.await
        }
        .boxed()
    }

    fn list(&self, range: Range, at: Option<Revision>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.state(range, at).boxed()
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Tail, StoreError>> {
        self.ask_follower(from).boxed()
    }

    fn compact(&self, oldest: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.still_open()?;
            compaction::compact(&self.readers, oldest).await
        }
        .boxed()
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move {
            self.still_open()?;
            let marks = self.readers.read(|link| async move { link.marks().await }.boxed());
            Ok(marks.await?.newest)
        }
        .boxed()
    }

    fn commits(&self) -> Option<watch::Receiver<Revision>> {
        Some(self.common.commits())
    }

    fn hint(&self, revision: Revision) {
        self.common.hint(revision);
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            if self.closed.send_replace(true) {
                return Err(closed());
            }
            let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
            let ended = async { while tasks.join_next().await.is_some() {} };
            let ended = tokio::time::timeout(STOP, ended).await;
            record::note(&self.record, self.common.seen()).await;
            ended.map_err(|_| StoreError::Unavailable("the database does not answer; writes may be lost".to_owned()))
        }
        .boxed()
    }
}
