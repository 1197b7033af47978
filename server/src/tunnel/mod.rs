//! The far end of the agents' tunnels: sessions by node, and byte streams to a node's loopback ports through them.

use std::future::Future;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream in both directions. There is no half-close through a tunnel: the end of one direction ends both.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A boxed future that may borrow.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

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
    /// Too many streams at once.
    #[error("too many streams to node {node}")]
    Busy {
        /// Node name.
        node: String,
    },
}
