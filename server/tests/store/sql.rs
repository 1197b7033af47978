//! A SQL database server behind the contract and behind the fault checks, whichever it is.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use server::store::endpoint::{Tls, parse};
use server::store::{Expect, OpenError, Store, open};
use tests::database::SqlServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::contract::{Backend, put};
use crate::trouble;

/// A server for all tests that leave it alone; it ends with the last of them.
pub type Common<S> = Mutex<Weak<S>>;

/// A database of a test's own. Opening it makes it.
pub struct Database<S> {
    pub server: Arc<S>,
    name: String,
}

impl<S: SqlServer> Database<S> {
    pub fn new(common: &Common<S>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut server = common.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            server: server.upgrade().unwrap_or_else(|| {
                let started = Arc::new(S::start());
                *server = Arc::downgrade(&started);
                started
            }),
            name: format!("of test {}", COUNT.fetch_add(1, Ordering::Relaxed)),
        }
    }

    pub fn endpoint(&self, parameters: &str) -> String {
        self.server.endpoint(&self.name, parameters)
    }

    pub fn sql(&self, text: &str) -> String {
        self.server.sql(&self.name, text)
    }
}

/// A server that listens may still be coming up.
const UP: Duration = Duration::from_secs(60);

/// Opens it as a start of the program does: it waits while the database is away.
pub async fn try_open(endpoint: &str, tls: &Tls) -> Result<Arc<dyn Store>, OpenError> {
    try_open_with(endpoint, tls, Path::new("/nonexistent")).await
}

/// The same for a server that keeps what it has seen in `folder`.
async fn try_open_with(endpoint: &str, tls: &Tls, folder: &Path) -> Result<Arc<dyn Store>, OpenError> {
    let endpoint = parse(endpoint, !tls.is_empty()).unwrap();
    let begun = Instant::now();
    loop {
        match open(&endpoint, tls, &folder.join("state.db")).await {
            Err(OpenError::Away { .. }) if begun.elapsed() < UP => sleep(Duration::from_millis(100)).await,
            opened => return opened,
        }
    }
}

/// It is refused for good, in words of which one is `says`, and without the password.
pub async fn is_refused(endpoint: &str, says: &str) {
    let problem = try_open(endpoint, &Tls::default()).await.map(drop).unwrap_err();
    assert!(matches!(problem, OpenError::Refused { .. }), "{problem}");
    let text = format!("{problem} {problem:?}");
    assert!(
        text.contains(says) && !text.contains("s3cret") && !text.contains("wrong"),
        "{text}"
    );
}

/// A database in which K3s keeps a cluster is left alone; one that was ours before goes on. `tables`: lists the tables, one a
/// line.
pub async fn clusters_of_k3s_are_refused<S: SqlServer>(database: Database<S>, tables: &str) {
    database.open().await.close().await.unwrap();
    database.sql("CREATE TABLE kine (id BIGINT PRIMARY KEY, name VARCHAR(630), deleted INTEGER)");
    database.open().await.close().await.unwrap();
    database.sql("DROP TABLE amphipod_log");
    database.sql("DROP TABLE amphipod_mark");
    is_refused(&database.endpoint(""), "table kine").await;
    assert_eq!(database.sql(tables).trim(), "kine");
}

/// A way to the database on which a client is stopped once it has sent `word`: it sends nothing more, and does not go.
/// `stopped` is told of it.
async fn stopping_at(
    word: &'static [u8],
    target: SocketAddr,
    stopped: Arc<Notify>,
    tasks: &mut JoinSet<()>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut ways = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(target).await.unwrap();
            let stopped = Arc::clone(&stopped);
            ways.spawn(async move {
                let ((mut asks, mut told), (mut answers, mut asked)) = (client.into_split(), server.into_split());
                let mut buffer = vec![0; 64 << 10];
                let asking = async {
                    while let Ok(count @ 1..) = asks.read(&mut buffer).await {
                        asked.write_all(&buffer[..count]).await.unwrap_or_default();
                        if buffer[..count].windows(word.len()).any(|part| part == word) {
                            stopped.notify_one();
                            return std::future::pending().await;
                        }
                    }
                };
                tokio::join!(asking, async {
                    copy(&mut answers, &mut told).await.map(drop).unwrap_or_default()
                });
            });
        }
    });
    address
}

/// A server that is stopped, or cut off, while it holds the lock of all writers holds up the others for less time than they wait
/// for it. `own`: where the database listens; `through`: its endpoint by another way; `word`: what a writer sends first once it
/// has, or asks for, the lock.
pub async fn who_is_stopped_holds_nobody_up_for_long<S: SqlServer>(
    database: &Database<S>,
    own: SocketAddr,
    through: impl Fn(SocketAddr) -> String,
    word: &'static [u8],
) {
    let mut tasks = JoinSet::new();
    let asked = Arc::new(Notify::new());
    let way = stopping_at(word, own, Arc::clone(&asked), &mut tasks).await;
    let other = try_open(&database.endpoint(""), &Tls::default()).await.unwrap();
    let stopped = try_open(&through(way), &Tls::default()).await.unwrap();
    tasks.spawn(async move { drop(stopped.write(put("/stopped", Expect::Absent, "1")).await) });
    timeout(Duration::from_secs(30), asked.notified()).await.unwrap();
    let free = "SELECT name FROM amphipod_mark WHERE name = 'newest' FOR UPDATE SKIP LOCKED";
    let begun = Instant::now();
    while !database.sql(free).trim().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(3), "it does not hold the lock");
        sleep(Duration::from_millis(20)).await;
    }
    let written = other.write(put("/b", Expect::Absent, "1")).await;
    assert!(written.is_ok(), "{written:?}");
}

impl<S: SqlServer> Backend for Database<S> {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        async { try_open(&self.endpoint(""), &Tls::default()).await.unwrap() }.boxed()
    }
}

/// A server of a test's own, which ends and comes back.
pub struct Fragile<S> {
    server: Mutex<S>,
    parameters: &'static str,
}

impl<S: SqlServer> Fragile<S> {
    /// `parameters`: of the endpoint by which it is opened.
    pub fn new(parameters: &'static str) -> Self {
        let server = Mutex::new(S::start());
        Self { server, parameters }
    }

    fn server(&self) -> MutexGuard<'_, S> {
        self.server.lock().unwrap()
    }
}

impl<S: SqlServer> Backend for Fragile<S> {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        let endpoint = self.server().endpoint("kubernetes", self.parameters);
        async move { try_open(&endpoint, &Tls::default()).await.unwrap() }.boxed()
    }
}

impl<S: SqlServer> trouble::Fragile for Fragile<S> {
    fn kill(&self) {
        self.server().kill();
    }

    fn start_again(&self) {
        self.server().start_again();
    }

    fn pause(&self) {
        self.server().pause();
    }

    fn resume(&self) {
        self.server().resume();
    }

    fn cut_connections(&self) {
        self.server().cut_connections("kubernetes");
    }

    fn open_with<'a>(&'a self, folder: &'a Path) -> BoxFuture<'a, Arc<dyn Store>> {
        let endpoint = self.server().endpoint("kubernetes", self.parameters);
        async move { try_open_with(&endpoint, &Tls::default(), folder).await.unwrap() }.boxed()
    }

    fn lose_writes_after(&self, revision: u64) {
        let text = format!(
            "DELETE FROM amphipod_log WHERE revision > {revision};
             UPDATE amphipod_mark SET revision = {revision} WHERE name = 'newest'"
        );
        self.server().sql("kubernetes", &text);
    }
}
