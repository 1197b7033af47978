//! One connection that is made anew whenever it is lost, and what all connections of a server know together.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent::units::Revision;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::database::{Database, Fault, Link, Row, Stamp};
use super::history::{Seen, is_broken, jump};

/// A database that has not answered for so long is not there.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Between attempts to connect.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(2);

/// What a server knows of the log, whichever of its connections found it out.
#[derive(Debug)]
pub struct Common {
    seen: Mutex<Seen>,
    server: u32,
    batches: AtomicU32,
    /// The newest revision that this server has committed without the database's telling others.
    commits: watch::Sender<Revision>,
    /// The newest one that another server has told of.
    hints: watch::Sender<Revision>,
    /// Counts how often the way to the database has led to another server of it.
    places: AtomicU64,
}

impl Common {
    /// `server`: a random number that tells this server's rows from others'.
    pub fn new(server: u32) -> Self {
        Self {
            seen: Mutex::default(),
            server,
            batches: AtomicU32::new(0),
            commits: watch::Sender::default(),
            hints: watch::Sender::default(),
            places: AtomicU64::new(0),
        }
    }

    /// The newest row seen.
    pub fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These rows are committed.
    pub fn saw(&self, rows: &[Row]) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = rows.iter().fold(*seen, Seen::after);
    }

    /// This server's own commits that others are to be told of, as they come.
    pub fn commits(&self) -> watch::Receiver<Revision> {
        self.commits.subscribe()
    }

    /// This server has committed up to here, and the database does not tell others.
    pub fn committed(&self, newest: Revision) {
        self.commits.send_replace(newest);
    }

    /// What other servers tell, as it comes.
    pub fn hints(&self) -> watch::Receiver<Revision> {
        self.hints.subscribe()
    }

    /// Another server has committed up to here.
    pub fn hint(&self, newest: Revision) {
        self.hints.send_replace(newest);
    }

    /// Another server of the database takes writes now, or may: connections of before lead to one that is behind, and are
    /// made anew when they are next used.
    pub fn moved(&self) {
        self.places.fetch_add(1, Ordering::AcqRel);
    }

    /// A number that changes with that.
    fn place(&self) -> u64 {
        self.places.load(Ordering::Acquire)
    }

    /// What was seen before is void: the log goes on after this.
    pub fn begin_anew(&self, after: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = after;
    }

    /// A stamp for the next batch.
    pub fn stamp(&self) -> Stamp {
        let batch = self.batches.fetch_add(1, Ordering::Relaxed);
        Stamp((u64::from(self.server) << 32 | u64::from(batch)).cast_signed())
    }

    /// This server wrote it.
    pub fn is_own(&self, stamp: Stamp) -> bool {
        stamp.0.cast_unsigned() >> 32 == u64::from(self.server)
    }
}

/// Lets an operation take so long and no longer. What was cut off may have happened: the connection is lost.
pub async fn within<T>(operation: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    within_time(PATIENCE, operation).await
}

/// As [`within`], for what may take another time.
pub async fn within_time<T>(patience: Duration, operation: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let text = || format!("the database has not answered for {} s", patience.as_secs());
    let done = tokio::time::timeout(patience, operation).await;
    done.unwrap_or_else(|_| Err(Fault::Lost(text())))
}

/// A connection, when there is one.
#[derive(Debug)]
pub struct Connector<D: Database> {
    database: Arc<D>,
    common: Arc<Common>,
    link: Option<D::Link>,
    /// The attempt to connect, if there is one: it goes on although nobody waits for it any more. Some who ask wait for less
    /// time than it takes on a slow way, and would begin it again and again.
    attempt: JoinSet<Result<D::Link, Fault>>,
    /// Not before then, and why the last attempt failed.
    failed: Option<(Instant, Fault)>,
    delay: Duration,
    /// The last connection led to a server that takes no writes.
    is_refused: bool,
    /// Where the connection leads to: see [`Common::moved`].
    place: u64,
}

impl<D: Database> Connector<D> {
    /// Connects when asked to.
    pub fn new(database: Arc<D>, common: Arc<Common>) -> Self {
        Self {
            database,
            common,
            link: None,
            attempt: JoinSet::new(),
            failed: None,
            delay: RETRY_FIRST,
            is_refused: false,
            place: 0,
        }
    }

    /// Whether there is one now. One that leads to a server of before is dropped: see [`Common::moved`].
    pub fn is_open(&mut self) -> bool {
        if self.place != self.common.place() {
            self.link = None;
        }
        self.link.is_some()
    }

    /// The one that there is now.
    pub fn open(&mut self) -> Option<&mut D::Link> {
        self.link.as_mut()
    }

    /// The connection, made if need be. May be dropped at any time. After a failure the same is answered at once for a while,
    /// longer each time.
    pub async fn link(&mut self) -> Result<&mut D::Link, Fault> {
        let link = match self.link.take() {
            Some(link) => link,
            None => self.connect().await?,
        };
        Ok(self.link.insert(link))
    }

    /// Drops the connection if `why` says that it is of no use any more.
    pub fn lose(&mut self, why: &Fault) {
        if matches!(why, Fault::Lost(_)) && self.link.take().is_some() {
            warn!(
                error = why as &dyn std::error::Error,
                "lost a connection to the database"
            );
        }
    }

    /// Drops the connection, because the server at its end takes no writes. True the first time: a new connection may lead
    /// to another one, at once. After that nobody is asked for a while, longer each time, until [`wrote`](Self::wrote).
    pub fn refused(&mut self, why: &Fault) -> bool {
        self.link = None;
        if std::mem::replace(&mut self.is_refused, true) {
            self.postpone(why.clone());
            return false;
        }
        warn!(
            error = why as &dyn std::error::Error,
            "the database takes no writes, trying on"
        );
        true
    }

    /// Something was written by this connection.
    pub fn wrote(&mut self) {
        if std::mem::take(&mut self.is_refused) {
            self.delay = RETRY_FIRST;
            self.common.moved();
            self.place = self.common.place();
            info!("the database takes writes again");
        }
    }

    /// Drops the connection: nobody knows what it is in the middle of.
    pub fn discard(&mut self) {
        self.link = None;
    }

    /// When [`link`](Self::link) would try again.
    pub fn retry_at(&self) -> Option<Instant> {
        self.failed.as_ref().map(|(at, _)| *at)
    }

    async fn connect(&mut self) -> Result<D::Link, Fault> {
        if let Some((at, fault)) = &self.failed
            && Instant::now() < *at
        {
            return Err(fault.clone());
        }
        if self.attempt.is_empty() {
            self.place = self.common.place();
            let (database, common) = (Arc::clone(&self.database), Arc::clone(&self.common));
            self.attempt.spawn(within(async move {
                let mut link = database.connect().await?;
                heal(&mut link, &common).await?;
                Ok(link)
            }));
        }
        let cut_short = || Err(Fault::Lost("the attempt to connect was cut short".to_owned()));
        match self
            .attempt
            .join_next()
            .await
            .and_then(Result::ok)
            .unwrap_or_else(cut_short)
        {
            Ok(link) => {
                if self.failed.take().is_some() && !self.is_refused {
                    info!("connected to the database again");
                    self.delay = RETRY_FIRST;
                }
                Ok(link)
            }
            Err(fault) => {
                if self.failed.is_none() {
                    warn!(
                        error = &fault as &dyn std::error::Error,
                        "cannot connect to the database, trying on"
                    );
                }
                self.postpone(fault.clone());
                Err(fault)
            }
        }
    }

    fn postpone(&mut self, why: Fault) {
        self.failed = Some((Instant::now() + self.delay, why));
        self.delay = (self.delay * 2).min(RETRY_LONGEST);
    }
}

/// Makes the counter jump if what this server has seen is not in the database's history (`history.rs`).
pub async fn heal<L: Link>(link: &mut L, common: &Common) -> Result<(), Fault> {
    let seen = common.seen();
    let found = link.stamp(seen.revision).await?;
    if !is_broken(&seen, &link.marks().await?, found) {
        return Ok(());
    }
    // Once more where nobody else can repair it meanwhile.
    link.lock(&[]).await?;
    let seen = common.seen();
    let found = link.stamp(seen.revision).await?;
    let marks = link.marks().await?;
    if !is_broken(&seen, &marks, found) {
        return link.release().await;
    }
    let to = jump(&seen, &marks);
    link.jump(to).await?;
    common.begin_anew(Seen {
        revision: to,
        stamp: None,
    });
    error!(seen = %seen.revision, found = %marks.newest, next = %to,
        "the database has lost writes that it had acknowledged, perhaps in a fail-over: all clients begin anew");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::AtomicUsize;

    use super::super::super::{Entry, Range};
    use super::super::database::{Identity, Locked, Marks, Mortal, Page, Polling, PrepareError};
    use super::*;

    /// Counts connections, which take so long to be made. They do what a new one is asked for, and nothing else.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize, Duration);

    #[derive(Debug)]
    struct Bare;

    impl Database for Counting {
        type Link = Bare;

        async fn connect(&self) -> Result<Bare, Fault> {
            self.0.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.1).await;
            Ok(Bare)
        }

        async fn prepare(&self, new: Identity) -> Result<Identity, PrepareError> {
            Ok(new)
        }
    }

    impl Link for Bare {
        async fn marks(&mut self) -> Result<Marks, Fault> {
            Ok(Marks::default())
        }
        async fn stamp(&mut self, _: Revision) -> Result<Option<Stamp>, Fault> {
            Ok(None)
        }
        async fn lock(&mut self, _: &[Arc<str>]) -> Result<Locked, Fault> {
            pending().await
        }
        async fn commit(&mut self, _: &[Row], _: Revision) -> Result<(), Fault> {
            pending().await
        }
        async fn jump(&mut self, _: Revision) -> Result<(), Fault> {
            pending().await
        }
        async fn release(&mut self) -> Result<(), Fault> {
            pending().await
        }
        async fn get(&mut self, _: &str) -> Result<Option<Entry>, Fault> {
            pending().await
        }
        async fn state(&mut self, _: &Range, _: Revision) -> Result<Vec<Entry>, Fault> {
            pending().await
        }
        async fn page(&mut self, _: Revision, _: u32) -> Result<Page, Fault> {
            pending().await
        }
        async fn mortals(&mut self) -> Result<Vec<Mortal>, Fault> {
            pending().await
        }
        async fn compact(&mut self, _: Revision, _: Revision) -> Result<bool, Fault> {
            pending().await
        }
        async fn listen(&mut self) -> Result<Polling, Fault> {
            pending().await
        }
        fn tells(&self) -> bool {
            false
        }
        async fn told(&mut self) {
            pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_made_although_nobody_waits_for_so_long() {
        let (takes, waits) = (Duration::from_secs(1), Duration::from_millis(300));
        let database = Arc::new(Counting(AtomicUsize::new(0), takes));
        let mut connector = Connector::new(Arc::clone(&database), Arc::new(Common::new(1)));
        for _ in 0..2 {
            let early = tokio::time::timeout(waits, connector.link()).await;
            assert!(early.is_err());
        }
        // Nor does anybody ask meanwhile.
        tokio::time::sleep(takes).await;
        let link = tokio::time::timeout(waits, connector.link()).await;
        link.unwrap().unwrap();
        assert_eq!(database.0.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_server_that_takes_no_writes_is_left_at_once_and_then_asked_seldom() {
        let (database, common) = (Arc::new(Counting::default()), Arc::new(Common::new(1)));
        let made = || database.0.load(Ordering::Relaxed);
        let mut writer = Connector::new(Arc::clone(&database), Arc::clone(&common));
        let mut reader = Connector::new(Arc::clone(&database), Arc::clone(&common));
        writer.link().await.unwrap();
        reader.link().await.unwrap();
        let refusal = Fault::ReadOnly("standby".to_owned());
        assert!(writer.refused(&refusal), "another connection may lead elsewhere");
        writer.link().await.unwrap();
        assert_eq!(made(), 3);
        assert!(!writer.refused(&refusal));
        let told = writer.link().await;
        assert!(matches!(told, Err(Fault::ReadOnly(_))), "{told:?}");
        assert_eq!(made(), 3, "not again yet");
        for doubled in [100, 200, 400, 800, 1600, 2000, 2000] {
            writer.failed = None;
            writer.link().await.unwrap();
            assert!(!writer.refused(&refusal));
            assert_eq!(writer.delay.as_millis().min(2000), (2 * doubled).min(2000));
        }

        writer.failed = None;
        writer.link().await.unwrap();
        assert!(reader.is_open());
        writer.wrote();
        assert!(writer.is_open());
        assert!(!reader.is_open(), "it may lead to the server of before");
        assert_eq!(writer.delay, RETRY_FIRST);
        reader.link().await.unwrap();
        assert!(reader.is_open());
        writer.wrote();
        assert!(reader.is_open(), "nothing has changed since");
    }
}
