//! A store in memory that can be away, each time in another way.

use std::sync::{Arc, Mutex};

use agent::units::Revision;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use server::store::memory::Memory;
use server::store::{Entry, Range, Snapshot, Store, StoreError, Tail, Write};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// What it is like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    Works,
    /// Nothing is answered, nothing is told.
    Stalls,
    /// Connections are refused, and tails end.
    Gone,
    /// Reads go on.
    ReadOnly,
    /// Reads go on.
    Full,
    /// All is done, but nobody is told of it.
    Silent,
    /// Writes are done, but nobody learns how far the log is.
    Vague,
}

pub struct Faulty {
    /// What other servers see, whom it does not fail.
    pub inner: Arc<Memory>,
    mode: watch::Sender<Mode>,
    tails: Mutex<JoinSet<()>>,
}

impl Faulty {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::new(Memory::new()),
            mode: watch::Sender::new(Mode::Works),
            tails: Mutex::default(),
        })
    }

    pub fn be(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Waits as long as it stalls; an error when it is gone.
    async fn answers(&self) -> Result<Mode, StoreError> {
        let mode = *self
            .mode
            .subscribe()
            .wait_for(|mode| *mode != Mode::Stalls)
            .await
            .unwrap();
        match mode {
            Mode::Gone => Err(StoreError::Unavailable("connection refused".to_owned())),
            mode => Ok(mode),
        }
    }
}

impl Store for Faulty {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move {
            match self.answers().await? {
                Mode::ReadOnly => Err(StoreError::Unavailable(
                    "attempt to write a readonly database".to_owned(),
                )),
                Mode::Full => Err(StoreError::Full),
                Mode::Works | Mode::Silent | Mode::Vague | Mode::Stalls | Mode::Gone => self.inner.write(write).await,
            }
        }
        .boxed()
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        async move {
            self.answers().await?;
            self.inner.get(&key).await
        }
        .boxed()
    }

    fn list(&self, range: Range, at: Option<Revision>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        async move {
            self.answers().await?;
            self.inner.list(range, at).await
        }
        .boxed()
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Tail, StoreError>> {
        async move {
            self.answers().await?;
            let mut tail = self.inner.watch(from).await?;
            let (send, receive) = mpsc::channel(1024);
            // What the log holds is to be had without waiting.
            while let Ok(batch) = tail.try_recv() {
                send.try_send(batch).unwrap();
            }
            let mut mode = self.mode.subscribe();
            self.tails.lock().unwrap().spawn(async move {
                loop {
                    let tells = |mode: &Mode| !matches!(mode, Mode::Stalls | Mode::Silent);
                    if *mode.wait_for(tells).await.unwrap() == Mode::Gone {
                        return;
                    }
                    tokio::select! {
                        biased;
                        _ = mode.changed() => {}
                        batch = tail.recv() => match batch {
                            Some(batch) => send.send(batch).await.unwrap_or_default(),
                            None => return,
                        },
                    }
                }
            });
            Ok(receive)
        }
        .boxed()
    }

    fn compact(&self, oldest: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.compact(oldest)
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move {
            match self.answers().await? {
                Mode::Vague => Err(StoreError::Unavailable("no answer".to_owned())),
                Mode::Works | Mode::Silent | Mode::ReadOnly | Mode::Full | Mode::Stalls | Mode::Gone => {
                    self.inner.revision().await
                }
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.close()
    }
}
