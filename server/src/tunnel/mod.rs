//! The far end of the agents' tunnels: sessions by node, and byte streams to a node's loopback ports through them.
//!
//! Frames and streams are `agent::tunnel`'s; this file knows which node has which sessions. A node may have several for a
//! while (it came back over another way before the old one was found dead): the newest is used, unlike in K3s, where
//! dials go to the oldest and hang.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::tunnel::session::Role;
use agent::tunnel::{OpenError, Tunnel, link};
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol;
use tracing::info;

/// A node that opens more at once is broken: the oldest go.
const SESSIONS_OF_A_NODE: usize = 4;

/// A byte stream in both directions. There is no half-close through a tunnel: the end of one direction ends both.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// Reaches ports on the loopback of nodes.
pub trait NodeDialer: Send + Sync {
    /// A byte stream to `127.0.0.1:port` on `node`. The node does not acknowledge: that nobody listens there shows as
    /// an error of the first read.
    fn dial<'a>(&'a self, node: &'a str, port: u16) -> BoxFuture<'a, Result<Box<dyn Duplex>, DialError>>;
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
    /// Too many streams at once.
    #[error("too many streams to node {node}")]
    Busy {
        /// Node name.
        node: String,
    },
}

/// The sessions of all nodes connected to this server.
#[derive(Default)]
pub struct Sessions {
    nodes: Mutex<HashMap<String, Vec<Session>>>,
}

/// Newest last in its list.
struct Session {
    tunnel: Tunnel,
    end: Arc<Notify>,
}

impl Sessions {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Runs a tunnel of `node` until it ends. `socket` is the connection after the answer 101. Dropping the future ends
    /// the tunnel.
    pub async fn accept<S>(self: Arc<Self>, node: String, socket: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let socket =
            WebSocketStream::from_raw_socket(socket, protocol::Role::Server, Some(link::websocket_config())).await;
        let tunnel = Tunnel::new(Role::Dialer, 1);
        let end = Arc::new(Notify::new());
        let _entry = self.enter(&node, &tunnel, &end);
        info!(node, "tunnel open");
        let error = tokio::select! {
            error = link::run(socket, &tunnel, drop) => error.to_string(),
            () = end.notified() => "the node has opened newer ones".to_owned(),
        };
        info!(node, error, "tunnel closed");
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
            tunnel: tunnel.clone(),
            end: Arc::clone(end),
        });
        Entry {
            sessions: Arc::clone(self),
            node: node.to_owned(),
            end: Arc::clone(end),
        }
    }

    /// A stream through one of this server's own sessions.
    ///
    /// # Errors
    /// [`DialError::NoSession`] and [`DialError::Busy`].
    pub fn open(&self, node: &str, port: u16) -> Result<Box<dyn Duplex>, DialError> {
        let nodes = self.lock();
        let sessions = nodes.get(node).map(Vec::as_slice).unwrap_or_default();
        let mut error = DialError::NoSession { node: node.to_owned() };
        for session in sessions.iter().rev() {
            match session.tunnel.dial(&format!("127.0.0.1:{port}")) {
                Ok(stream) => return Ok(Box::new(stream)),
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

impl NodeDialer for Sessions {
    fn dial<'a>(&'a self, node: &'a str, port: u16) -> BoxFuture<'a, Result<Box<dyn Duplex>, DialError>> {
        ready(self.open(node, port)).boxed()
    }
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
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::task::JoinSet;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// An agent at the far end that gives back, on every stream, what it gets, with a byte for itself before it.
    async fn echo_agent(sessions: &Arc<Sessions>, name: u8, tasks: &mut JoinSet<()>) {
        let (near, far) = duplex(4096);
        tasks.spawn(Arc::clone(sessions).accept("pi".into(), near));
        let socket =
            WebSocketStream::from_raw_socket(far, protocol::Role::Client, Some(link::websocket_config())).await;
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
            sessions.dial("pi", 10250).await,
            Err(DialError::NoSession { .. })
        ));
        for name in [1, 2] {
            echo_agent(&sessions, name, &mut tasks).await;
            let stream = sessions.dial("pi", 10250).await.unwrap();
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

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_given_up_after_a_minute_and_its_streams_fail() {
        let (sessions, mut tasks) = (Sessions::new(), JoinSet::new());
        let (near, _far) = duplex(4096);
        tasks.spawn(Arc::clone(&sessions).accept("pi".into(), near));
        sleep(Duration::from_millis(1)).await;
        let mut stream = sessions.dial("pi", 10250).await.unwrap();
        let read = timeout(Duration::from_secs(61), stream.read_u8()).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        tasks.join_next().await;
        assert!(!sessions.is_connected("pi"));
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
