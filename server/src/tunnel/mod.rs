//! The far end of the agents' tunnels: sessions by node, and byte streams to a node's loopback ports through them.
//!
//! Frames and streams are `agent::tunnel`'s; this file knows which node has which sessions. A node may have several for a
//! while (it came back over another way before the old one was found dead): the newest is used, unlike in K3s, where
//! dials go to the oldest and hang.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent::tunnel::link::Socket;
use agent::tunnel::session::Role;
use agent::tunnel::{OpenError, Tunnel, link};
use agent::wire::standing::Standing;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

/// A node that opens more at once is broken: the oldest go.
const SESSIONS_OF_A_NODE: usize = 4;
/// So long streams may go on when the server stops: an exec comes to its end, a person sees that his connection is lost.
const DRAIN: Duration = Duration::from_secs(4);
/// A tunnel of which nothing was heard for so long is passed over while there is another way: an agent pings every 5 s, so two
/// in a row are missing. It may still come back, so it is given up much later.
const SILENT: Duration = Duration::from_secs(11);
/// How often it is looked whether they have ended.
const LOOK: Duration = Duration::from_millis(50);

/// A byte stream in both directions. There is no half-close through a tunnel: the end of one direction ends both.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// Which way a stream goes to its node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// Through this session of this server.
    Here(u64),
    /// Through another server.
    Through(SocketAddr),
}

/// A stream to a node, and its way.
pub type Dialed = (Box<dyn Duplex>, Way);

/// Reaches ports on the loopback of nodes.
pub trait NodeDialer: Send + Sync {
    /// A byte stream to `127.0.0.1:port` on `node`. The node does not acknowledge: that nobody listens there shows as
    /// an error of the first read, and that the way is dead as silence.
    ///
    /// `around`: a way that is not to be taken, because nothing comes through it.
    fn dial<'a>(&'a self, node: &'a str, port: u16, around: Option<Way>) -> BoxFuture<'a, Result<Dialed, DialError>>;
}

/// Why a node cannot be reached.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DialError {
    /// Its agent is not connected to this server (now): 502 or 503 to the client.
    #[error("no tunnel to node {node}: its agent is not connected to this server")]
    NoSession {
        /// Node name.
        node: String,
    },
    /// Its agent is connected to no server that answers.
    #[error("no tunnel to node {node}: its agent is not connected to this server, nor to the others ({others})")]
    Nowhere {
        /// Node name.
        node: String,
        /// What each of them said.
        others: String,
    },
    /// Its agent was connected to this server, and nothing was heard of it for a while.
    #[error("the tunnel to node {node} is silent: its machine or the network on the way stands still")]
    Silent {
        /// Node name.
        node: String,
    },
    /// Too many streams at once.
    #[error("too many streams to node {node}")]
    Busy {
        /// Node name.
        node: String,
    },
}

/// The sessions of all nodes connected to this server.
pub struct Sessions {
    nodes: Mutex<HashMap<String, Vec<Session>>>,
    /// How many there have been: names the next one.
    count: AtomicU64,
    /// The servers of the cluster, as this one has seen them last.
    servers: Mutex<BTreeSet<SocketAddr>>,
    news: watch::Sender<News>,
}

/// What agents are told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct News {
    standing: Standing,
    stopping: bool,
}

/// Newest last in its list.
struct Session {
    number: u64,
    tunnel: Tunnel,
    end: Arc<Notify>,
}

impl Sessions {
    /// None yet.
    pub fn new() -> Arc<Self> {
        let standing = Standing {
            ready: true,
            servers: 0,
        };
        Arc::new(Self {
            nodes: Mutex::default(),
            count: AtomicU64::new(0),
            servers: Mutex::default(),
            news: watch::Sender::new(News {
                standing,
                stopping: false,
            }),
        })
    }

    /// Tells every agent whether the datastore takes what this server writes; if not, they go to another one.
    pub fn ready(&self, ready: bool) {
        self.news.send_if_modified(|news| {
            let changes = news.standing.ready != ready;
            news.standing.ready = ready;
            changes
        });
    }

    /// Tells every agent when these are not the servers that it was told of last.
    pub fn servers(&self, present: &BTreeSet<SocketAddr>) {
        let mut known = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != *present {
            known.clone_from(present);
            drop(known);
            self.news
                .send_modify(|news| news.standing.servers = news.standing.servers.wrapping_add(1));
        }
    }

    /// The server stops: tunnels end, with a close frame, when no stream goes through them any more, at the latest after
    /// [`DRAIN`].
    pub fn stop(&self) {
        self.news.send_modify(|news| news.stopping = true);
    }

    /// Resolves once the server stops.
    pub async fn stopped(&self) {
        let _ = self.news.subscribe().wait_for(|news| news.stopping).await;
    }

    /// Runs a tunnel of `node` until it ends. `socket` is the connection after the answer 101. Dropping the future ends
    /// the tunnel.
    pub async fn accept<S>(self: Arc<Self>, node: String, socket: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let tunnel = Tunnel::new(Role::Dialer, 1);
        let end = Arc::new(Notify::new());
        let _entry = self.enter(&node, &tunnel, &end);
        info!(node, "tunnel open");
        let error = tokio::select! {
            error = link::run(Socket::new(socket), &tunnel, drop) => error.to_string(),
            () = end.notified() => "the node has opened newer ones".to_owned(),
            never = self.steer(&tunnel) => match never {},
        };
        info!(node, error, "tunnel closed");
    }

    /// Passes news on to one agent.
    async fn steer(&self, tunnel: &Tunnel) -> Infallible {
        let mut news = self.news.subscribe();
        let mut said = News {
            standing: Standing {
                ready: true,
                servers: news.borrow().standing.servers,
            },
            stopping: false,
        };
        loop {
            let now = *news.borrow_and_update();
            if now.stopping {
                let idle = async {
                    while !tunnel.is_idle() {
                        sleep(LOOK).await;
                    }
                };
                let _ = timeout(DRAIN, idle).await;
                tunnel.leave();
                return std::future::pending().await;
            }
            if now != said {
                tunnel.say(now.standing.encode());
                said = now;
            }
            if news.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Whether a node is connected to this server.
    pub fn is_connected(&self, node: &str) -> bool {
        self.lock().contains_key(node)
    }

    fn enter(self: &Arc<Self>, node: &str, tunnel: &Tunnel, end: &Arc<Notify>) -> Entry {
        let mut nodes = self.lock();
        let sessions = nodes.entry(node.to_owned()).or_default();
        if sessions.len() >= SESSIONS_OF_A_NODE {
            sessions.remove(0).end.notify_one();
        }
        sessions.push(Session {
            number: self.count.fetch_add(1, Ordering::Relaxed),
            tunnel: tunnel.clone(),
            end: Arc::clone(end),
        });
        Entry {
            sessions: Arc::clone(self),
            node: node.to_owned(),
            end: Arc::clone(end),
        }
    }

    /// A stream through one of this server's own sessions, the newest that is heard of; not through session `around`.
    ///
    /// # Errors
    /// [`DialError::NoSession`], [`DialError::Silent`] and [`DialError::Busy`].
    pub fn open(&self, node: &str, port: u16, around: Option<u64>) -> Result<Dialed, DialError> {
        let since = Instant::now().into_std();
        self.pick(node, port, |session| match Some(session.number) == around {
            true => Pick::No,
            false if since.saturating_duration_since(session.tunnel.last_heard()) >= SILENT => Pick::Silent,
            false => Pick::Yes,
        })
    }

    /// As [`Sessions::open`], also through one of which nothing is heard: when there is no other way.
    ///
    /// # Errors
    /// [`DialError::NoSession`] and [`DialError::Busy`].
    pub fn open_silent(&self, node: &str, port: u16) -> Result<Dialed, DialError> {
        self.pick(node, port, |_| Pick::Yes)
    }

    fn pick(&self, node: &str, port: u16, pick: impl Fn(&Session) -> Pick) -> Result<Dialed, DialError> {
        let nodes = self.lock();
        let sessions = nodes.get(node).map(Vec::as_slice).unwrap_or_default();
        let mut error = DialError::NoSession { node: node.to_owned() };
        for session in sessions.iter().rev() {
            match pick(session) {
                Pick::No => continue,
                Pick::Silent => {
                    error = DialError::Silent { node: node.to_owned() };
                    continue;
                }
                Pick::Yes => {}
            }
            match session.tunnel.dial(&format!("127.0.0.1:{port}")) {
                Ok(stream) => return Ok((Box::new(stream), Way::Here(session.number))),
                Err(OpenError::Busy(_)) => error = DialError::Busy { node: node.to_owned() },
                Err(OpenError::Over) => {}
            }
        }
        Err(error)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Session>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is thought of a session.
enum Pick {
    Yes,
    No,
    Silent,
}

/// A session's place in the table; leaves it when dropped.
struct Entry {
    sessions: Arc<Sessions>,
    node: String,
    end: Arc<Notify>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut nodes = self.sessions.lock();
        if let Some(sessions) = nodes.get_mut(&self.node) {
            sessions.retain(|session| !Arc::ptr_eq(&session.end, &self.end));
            if sessions.is_empty() {
                nodes.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::task::JoinSet;

    use super::*;

    /// An agent at the far end that gives back, on every stream, what it gets, with a byte for itself before it.
    async fn echo_agent(sessions: &Arc<Sessions>, name: u8, tasks: &mut JoinSet<()>) {
        let (near, far) = duplex(4096);
        tasks.spawn(Arc::clone(sessions).accept("pi".into(), near));
        let socket = Socket::new(far);
        tasks.spawn(async move {
            let mut echoes = JoinSet::new();
            let tunnel = Tunnel::new(Role::Listener, 1);
            link::run(socket, &tunnel, |opened| {
                assert_eq!(opened.address, "127.0.0.1:10250");
                echoes.spawn(async move {
                    let (mut reader, mut writer) = tokio::io::split(opened.stream);
                    writer.write_all(&[name]).await.unwrap();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            })
            .await;
        });
        while sessions
            .lock()
            .get("pi")
            .is_none_or(|list| list.len() < usize::from(name))
        {
            sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn bytes_go_to_the_newest_session_of_a_node_and_back() {
        let (sessions, mut tasks) = (Sessions::new(), JoinSet::new());
        assert!(matches!(
            sessions.open("pi", 10250, None),
            Err(DialError::NoSession { .. })
        ));
        for name in [1, 2] {
            echo_agent(&sessions, name, &mut tasks).await;
            let (stream, _) = sessions.open("pi", 10250, None).unwrap();
            let (mut reader, mut writer) = tokio::io::split(stream);
            let sent: Vec<u8> = (0..3_000_000u32)
                .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
                .collect();
            let mut got = vec![0; sent.len() + 1];
            let (wrote, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut got));
            wrote.unwrap();
            read.unwrap();
            assert_eq!(got[0], name);
            assert_eq!(got.get(1..), Some(sent.as_slice()), "bytes came back changed");
        }
        tasks.shutdown().await;
        assert!(!sessions.is_connected("pi"));
    }

    /// An agent's end of a tunnel: what it is told, and how it ends.
    async fn listener(far: tokio::io::DuplexStream, told: &Mutex<Vec<Standing>>) -> link::LinkError {
        let socket = Socket::new(far);
        let tunnel = Tunnel::new(Role::Listener, 1);
        let mut held = Vec::new();
        let said = |word: &[u8]| told.lock().unwrap().extend(Standing::decode(word));
        link::run_hearing(socket, &tunnel, |opened| held.push(opened), said).await
    }

    #[tokio::test(start_paused = true)]
    async fn agents_are_told_whether_the_server_can_write_and_that_the_servers_changed() {
        let (sessions, mut tasks, told) = (Sessions::new(), JoinSet::new(), Mutex::new(Vec::new()));
        let server = |last: u8| SocketAddr::from(([10, 0, 0, last], 6443));
        sessions.servers(&[server(1)].into());
        let (near, far) = duplex(4096);
        tasks.spawn(Arc::clone(&sessions).accept("pi".into(), near));
        let acting = async {
            let pause = || sleep(Duration::from_millis(10));
            pause().await;
            for act in [
                &(|| sessions.ready(true)) as &dyn Fn(),
                &|| sessions.servers(&[server(1)].into()),
                &|| sessions.servers(&[server(1), server(2)].into()),
                &|| sessions.ready(false),
                &|| sessions.ready(false),
                &|| sessions.ready(true),
            ] {
                act();
                pause().await;
            }
        };
        tokio::select! {
            error = listener(far, &told) => panic!("{error}"),
            () = acting => {}
        }
        let of = |ready, servers| Standing { ready, servers };
        assert_eq!(*told.lock().unwrap(), [of(true, 2), of(false, 2), of(true, 2)]);
        // Who comes while it cannot is told at once.
        sessions.ready(false);
        told.lock().unwrap().clear();
        let (near, far) = duplex(4096);
        tasks.spawn(Arc::clone(&sessions).accept("pi".into(), near));
        let heard = timeout(Duration::from_secs(1), listener(far, &told)).await;
        assert!(heard.is_err(), "the tunnel goes on");
        assert_eq!(*told.lock().unwrap(), [of(false, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stops_says_good_bye_at_once_or_when_the_last_stream_has_ended_and_not_later_than_the_drain()
    {
        for (streams_last, expected) in [(None, 0), (Some(1500), 1500), (Some(60_000), 4000)] {
            let (sessions, mut tasks, told) = (Sessions::new(), JoinSet::new(), Mutex::new(Vec::new()));
            let (near, far) = duplex(4096);
            tasks.spawn(Arc::clone(&sessions).accept("pi".into(), near));
            sleep(Duration::from_millis(1)).await;
            let stream =
                streams_last.map(|lasts| (sessions.open("pi", 10250, None).unwrap(), Duration::from_millis(lasts)));
            tasks.spawn(async move {
                if let Some((_stream, lasts)) = stream {
                    sleep(lasts).await;
                }
            });
            let begun = Instant::now();
            sessions.stop();
            let ended = timeout(Duration::from_secs(60), listener(far, &told)).await.unwrap();
            assert!(matches!(ended, link::LinkError::Away), "{ended}");
            let took = begun.elapsed().as_millis();
            assert!((expected..expected + 300).contains(&took), "{took} ms, not {expected}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_given_up_after_a_minute_and_its_streams_fail() {
        let (sessions, mut tasks) = (Sessions::new(), JoinSet::new());
        let (near, _far) = duplex(4096);
        tasks.spawn(Arc::clone(&sessions).accept("pi".into(), near));
        sleep(Duration::from_millis(1)).await;
        let (mut stream, _) = sessions.open("pi", 10250, None).unwrap();
        let read = timeout(Duration::from_secs(61), stream.read_u8()).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        tasks.join_next().await;
        assert!(!sessions.is_connected("pi"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_tunnel_is_passed_over_while_there_is_another_way() {
        let (sessions, mut tasks) = (Sessions::new(), JoinSet::new());
        echo_agent(&sessions, 1, &mut tasks).await;
        let (near, _far) = duplex(4096);
        tasks.spawn(Arc::clone(&sessions).accept("pi".into(), near));
        sleep(Duration::from_secs(1)).await;
        let (_, newest) = sessions.open("pi", 10250, None).unwrap();
        let Way::Here(number) = newest else {
            panic!("{newest:?}")
        };
        let (mut stream, other) = sessions.open("pi", 10250, Some(number)).unwrap();
        assert_ne!(other, newest, "what is not to be used is not used");
        assert_eq!(stream.read_u8().await.unwrap(), 1);
        sleep(SILENT).await;
        assert_eq!(sessions.open("pi", 10250, None).unwrap().1, other, "it pings");

        let (sessions, mut tasks) = (Sessions::new(), JoinSet::new());
        let (near, _far) = duplex(4096);
        tasks.spawn(Arc::clone(&sessions).accept("pi".into(), near));
        sleep(SILENT + Duration::from_secs(1)).await;
        let refused = sessions.open("pi", 10250, None).err().unwrap();
        assert!(matches!(refused, DialError::Silent { .. }), "{refused}");
        assert!(sessions.open_silent("pi", 10250).is_ok(), "it may come back");
    }

    #[tokio::test]
    async fn a_node_that_opens_ever_more_sessions_loses_the_oldest() {
        let (sessions, mut tasks) = (Sessions::new(), JoinSet::new());
        let mut ends = Vec::new();
        for _ in 0..7 {
            let (near, far) = duplex(4096);
            ends.push(far);
            tasks.spawn(Arc::clone(&sessions).accept("pi".into(), near));
        }
        for _ in 0..3 {
            tasks.join_next().await;
        }
        assert_eq!(sessions.lock().get("pi").map(Vec::len), Some(SESSIONS_OF_A_NODE));
    }
}
