//! The one listener: TLS, HTTP/1.1 and HTTP/2, the supervisor's paths and the Kubernetes API.
//!
//! Decisions are pure (`path`, `negotiate`, `query`, `table`, `discovery`); `handler` strings them together; `listen`
//! is the shell around sockets.

mod body;
mod connect;
mod discovery;
pub mod encode;
mod gather;
mod handler;
mod listen;
mod meta;
pub mod negotiate;
pub mod path;
pub mod query;
mod resource;
mod review;
mod strangers;
mod stream;
pub mod table;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::sync::watch::Receiver;

use crate::join::caller::Caller;

pub use connect::Kubelets;
pub use handler::{ApiHttp, Limits, Parts};
pub use listen::{Upgrades, serve};
pub use strangers::{Stranger, Strangers};

/// A response body.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Who is at the other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Whom its client certificate names.
    pub caller: Caller,
    /// That nobody knew it at first.
    pub stranger: Arc<Stranger>,
}

/// Who sees a request before the API: the K3s supervisor.
pub trait Front: Send + Sync {
    /// Answers, or gives the request back: not one of its own.
    fn handle<'a>(
        &'a self,
        request: Request<Incoming>,
        peer: &'a Peer,
    ) -> BoxFuture<'a, Result<Response<Body>, Request<Incoming>>>;
}

/// A body that is all there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// Resolves once the server is asked to stop, or nobody is left to ask.
async fn stopped(stop: &mut Receiver<bool>) {
    // The guard that comes with the value must not be held.
    let _ = stop.wait_for(|stopping| *stopping).await;
}
