//! Sockets: accept, TLS, HTTP/1.1 or HTTP/2 by ALPN, and an orderly end. Decides nothing about requests.
//!
//! Every task lives in a [`JoinSet`] of this file: one per connection, and for HTTP/2 one per stream inside its
//! connection. What goes on over a connection after a 101 runs in that connection's own task ([`Upgrades`]).

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::dial;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

use super::gather::Gather;
use super::{ApiHttp, Body, Peer, Stranger, Strangers, stopped};
use crate::join::caller::{Caller, Judge};
use crate::join::tls::Entrance;

/// Who needs longer is not a client.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection without a request is closed after so long (upstream's idle timeout).
const IDLE: Duration = Duration::from_secs(90);
/// Request line and headers together: a certificate chain never travels here, a token does. There may be a hundred of
/// them (hyper's own bound).
const HEADER_BYTES: u32 = 64 * 1024;
/// Concurrent requests of one HTTP/2 connection: a kubelet watches hundreds of secrets over one.
const STREAMS: u32 = 1000;
/// What one HTTP/2 stream buffers for a slow reader.
const SEND_BUFFER: usize = 128 * 1024;
/// A peer that does not answer a ping is gone.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_WAIT: Duration = Duration::from_secs(20);
/// When the process is out of file descriptors, others must close first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// So long may requests, and what goes on after a 101, go on after the server was asked to stop. Tunnels close by
/// themselves before (`tunnel`), so that what goes through them has ended then.
const DRAIN: Duration = Duration::from_secs(6);

/// What goes on over a connection once HTTP is over on it: after a 101. Found in the extensions of every request.
///
/// The job typically awaits `hyper::upgrade::on(request)` and then copies bytes. When the server stops it may come to its end for a while.
#[derive(Clone, Default)]
pub struct Upgrades(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl Upgrades {
    /// Sets the job. The connection's task runs it after the 101 is sent; a later job replaces an earlier one.
    pub fn run(&self, job: impl Future<Output = ()> + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(job.boxed());
    }

    fn take(&self) -> Option<BoxFuture<'static, ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Serves until `shutdown` becomes true, then lets requests finish for a while.
pub async fn serve(listener: TcpListener, entrance: Entrance, api: Arc<ApiHttp>, mut shutdown: Receiver<bool>) {
    let Entrance { config, judge } = entrance;
    let (tls, strangers) = (config, Strangers::new(api.parts.limits.strangers));
    let mut connections = JoinSet::new();
    let stop = shutdown.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let stranger = Arc::new(strangers.admit());
                    let come = Come { address, stranger: Arc::clone(&stranger), judge: judge.clone() };
                    let task = connection(stream, come, Arc::clone(&tls), Arc::clone(&api), stop.clone());
                    connections.spawn(async move {
                        tokio::select! {
                            () = task => {}
                            () = stranger.has_to_go() => debug!(peer = %address, "closed for others: it never said who it is"),
                        }
                    });
                }
                Err(error) => {
                    warn!(error = %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stopped(&mut shutdown) => break,
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        debug!(connections = connections.len(), "cutting connections that did not end");
    }
}

/// Whoever has connected.
struct Come {
    address: SocketAddr,
    stranger: Arc<Stranger>,
    judge: Judge,
}

async fn connection(stream: TcpStream, come: Come, tls: Arc<ServerConfig>, api: Arc<ApiHttp>, stop: Receiver<bool>) {
    let Come {
        address,
        stranger,
        judge,
    } = come;
    // Watch events are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    // Who is gone without a word must not keep a command running, and his place, for ever.
    let _ = dial::probe(&stream);
    // Boxes, so that a connection costs what it is now and not the sum of all it may be: there are thousands.
    let handshake = Box::pin(tokio::time::timeout(HANDSHAKE, handshake(stream, tls, &api)));
    let tls = match handshake.await {
        Ok(Ok(tls)) => Box::new(tls),
        Ok(Err(error)) => return debug!(peer = %address, error = %error, "TLS handshake failed"),
        Err(_) => return debug!(peer = %address, "TLS handshake took too long"),
    };
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let caller = judge.caller(chain, Timestamp::now());
    match &caller {
        Caller::Known(_) => stranger.is_known(),
        Caller::Refused(why) => debug!(peer = %address, why, "a client certificate names nobody"),
        Caller::Nobody => {}
    }
    let refused = match caller {
        Caller::Refused(_) => chain.to_vec(),
        Caller::Known(_) | Caller::Nobody => Vec::new(),
    };
    let peer = Arc::new(Peer {
        address,
        caller,
        stranger,
    });
    let upgrades = Upgrades::default();
    let second = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = {
        let (upgrades, stop) = (upgrades.clone(), stop.clone());
        service_fn(move |mut request: Request<Incoming>| {
            let (api, peer, stop) = (Arc::clone(&api), again(&peer, &judge, &refused), stop.clone());
            request.extensions_mut().insert(upgrades.clone());
            // On the heap only as long as it runs: hyper keeps room for it as long as the connection lives, which for a
            // watch is hours.
            async move { Ok::<Response<Body>, Infallible>(api.answer(request, &peer, stop).await) }.boxed()
        })
    };
    let mut stopping = stop;
    if second {
        let io = TokioIo::new(Gather::new(tls));
        let mut serving = Box::pin(second_version().serve_connection(io, service));
        tokio::select! {
            _ = &mut serving => return,
            () = stopped(&mut stopping) => {}
        }
        serving.as_mut().graceful_shutdown();
        let _ = serving.await;
        return;
    }
    let io = TokioIo::new(tls);
    let mut serving = Box::pin(first_version().serve_connection(io, service).with_upgrades());
    tokio::select! {
        _ = &mut serving => {}
        () = stopped(&mut stopping) => {
            serving.as_mut().graceful_shutdown();
            let _ = (&mut serving).await;
        }
    }
    drop(serving);
    if let Some(job) = upgrades.take() {
        job.await;
    }
}

/// Whoever has connected, judged anew by a chain that did not count: the clock may have been wrong, and a busy connection is
/// never opened anew.
fn again(peer: &Arc<Peer>, judge: &Judge, refused: &[CertificateDer<'static>]) -> Arc<Peer> {
    if refused.is_empty() {
        return Arc::clone(peer);
    }
    match judge.caller(refused, Timestamp::now()) {
        caller @ Caller::Known(_) => {
            peer.stranger.is_known();
            Arc::new(Peer {
                address: peer.address,
                caller,
                stranger: Arc::clone(&peer.stranger),
            })
        }
        Caller::Refused(_) | Caller::Nobody => Arc::clone(peer),
    }
}

/// The TLS handshake, with a certificate for what the client came to.
async fn handshake(stream: TcpStream, tls: Arc<ServerConfig>, api: &ApiHttp) -> io::Result<TlsStream<TcpStream>> {
    let local = stream.local_addr()?;
    let started = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    if let Some(pki) = &api.parts.serving {
        let lacking = pki.lacks(local.ip(), started.client_hello().server_name());
        if !lacking.is_empty() {
            let (pki, names) = (Arc::clone(pki), lacking.join(","));
            let met = tokio::task::spawn_blocking(move || pki.meet(lacking, Timestamp::now())).await;
            match met {
                Ok(Ok(renewed)) if renewed.is_empty() => {}
                Ok(Ok(_)) => info!(names, "the serving certificate has new names, which clients have used"),
                Ok(Err(error)) => warn!(
                    names,
                    error = &error as &dyn Error,
                    "cannot make a certificate for this name"
                ),
                Err(error) => warn!(names, error = %error, "the making of a certificate was cut off"),
            }
        }
    }
    started.into_stream(tls).await
}

fn first_version() -> http1::Builder {
    let bytes = usize::try_from(HEADER_BYTES).unwrap_or(usize::MAX);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_header_size(bytes)
        .max_buf_size(bytes);
    builder
}

fn second_version() -> http2::Builder<Tasks> {
    let mut builder = http2::Builder::new(Tasks::default());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WAIT);
    builder
}

/// Runs the streams of one HTTP/2 connection; they end with it.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, stream: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(stream);
    }
}
