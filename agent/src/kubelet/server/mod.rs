//! The kubelet's HTTPS port (10250): logs, exec, attach, port-forward, and what else the API server asks a node for.
//!
//! `route.rs` and `admit.rs` decide and are pure; `identity.rs` has the certificate; this file has the sockets. It listens
//! where K3s' kubelet does, on all addresses (the tunnel comes to loopback), and lets in nobody but the control plane.
//! What goes on over a connection after a 101 runs in that connection's own task.

mod admit;
mod channel;
mod exec;
mod identity;
mod log_reader;
mod logs;
mod patient;
mod pods;
mod portforward;
mod route;
mod spdy;
mod spdy_exec;
mod stream;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod upgrade;
mod websocket;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use self::admit::{Admission, Caller, admit};
use self::identity::Identity;
use self::patient::{Patience, Patient};
use self::route::{Asked, Place, Refusal, route};
use self::upgrade::{Answer, Job, Upgrades};
use super::adapt::chain;
use super::host::Host;
use super::ports::Containers;
use super::roll::{Known, Roll};
use super::settings::Settings;

/// More at once is no user: each may hold some hundred kilobytes.
const CONNECTIONS: usize = 128;
/// Who needs longer is not a server of ours.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection without a request is closed after so long.
const BETWEEN_REQUESTS: Duration = Duration::from_secs(90);
/// Request line and headers together: commands of exec are in the line. The API server takes no more either.
const HEADER_BYTES: usize = 64 << 10;
/// A pager that is paused takes nothing; the idle time is a Go kubelet's `streamingConnectionIdleTimeout`.
const PATIENCE: Patience = Patience {
    write: Duration::from_secs(15 * 60),
    idle: Duration::from_secs(4 * 3600),
};
/// When the process is out of file descriptors, or the port is taken, something else must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const LISTEN_PAUSE: Duration = Duration::from_secs(5);

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What the port needs of its kubelet.
pub struct Port {
    settings: Settings,
    containers: Arc<dyn Containers>,
    roll: Arc<Roll>,
    kept_pods: PathBuf,
}

impl Port {
    /// Of this kubelet.
    pub fn of(host: &Host) -> Arc<Self> {
        Arc::new(Self {
            settings: host.settings.clone(),
            containers: host.containers.clone(),
            roll: host.roll.clone(),
            kept_pods: host.kept_pods(),
        })
    }
}

/// Serves until it is dropped; all connections end then.
pub async fn serve(port: Arc<Port>) {
    let address = SocketAddr::new(port.settings.bind, port.settings.port);
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if told => debug!(%address, %error, "the kubelet's port is still taken"),
            Err(error) => {
                warn!(%address, %error, "cannot listen on the kubelet's port: logs and exec have to wait; does another kubelet run?");
                told = true;
            }
        }
        sleep(LISTEN_PAUSE).await;
    };
    info!(%address, "the kubelet's port is open");
    accept(listener, port).await;
}

async fn accept(listener: TcpListener, port: Arc<Port>) {
    let mut identity = Identity::new(&port.settings);
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        if connections.len() >= CONNECTIONS {
            debug!(%peer, "too many connections to the kubelet's port");
            continue;
        }
        match identity.config() {
            Ok(tls) => drop(connections.spawn(connection(stream, peer, tls, port.clone()))),
            Err(error) => warn!(error = chain(&error), "the kubelet's port has no certificate"),
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, tls: Arc<ServerConfig>, port: Arc<Port>) {
    let _ = stream.set_nodelay(true);
    let handshake = Box::pin(timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)));
    let tls = match handshake.await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return debug!(%peer, "TLS handshake took too long"),
    };
    let leaf = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let caller = Arc::new(leaf.and_then(|leaf| Caller::of(leaf)));
    let upgrades = Upgrades::default();
    let after = upgrades.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (port, caller) = (port.clone(), caller.clone());
        // On the heap, and only as long as it runs.
        let upgrades = upgrades.clone();
        async move {
            let (response, job) = answer(&port, caller.as_ref().as_ref(), request).await;
            upgrades.set(job);
            Ok::<_, Infallible>(response)
        }
        .boxed()
    });
    let io = TokioIo::new(Patient::new(tls, PATIENCE));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(BETWEEN_REQUESTS)
        .max_header_size(HEADER_BYTES)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(io, service)
        .with_upgrades();
    if let Err(error) = Box::pin(served).await {
        return debug!(%peer, error = chain(&error), "a connection to the kubelet's port breaks off");
    }
    if let Some(job) = after.take() {
        job.await;
    }
}

/// Answers one request; what goes on over the connection after that comes with it.
async fn answer(
    port: &Arc<Port>,
    caller: Option<&Caller>,
    mut request: Request<Incoming>,
) -> (Response<Body>, Option<Job>) {
    let (method, uri) = (request.method().as_str(), request.uri());
    let asked = match admit(caller) {
        Admission::Admitted => route(method, uri.path(), uri.query().unwrap_or_default()),
        Admission::Unknown => Err(Refusal::new(401, "Unauthorized")),
        Admission::Forbidden => {
            let name = caller.map(|caller| caller.name.as_str()).unwrap_or_default();
            let text = format!("Forbidden (user={name}): this port is the API server's");
            Err(Refusal::new(403, text))
        }
    };
    let answered = match asked {
        Ok(Asked::Health) => Ok(full("text/plain", "ok").into()),
        Ok(Asked::Pods) => Ok(full("application/json", pods::list(port).await).into()),
        Ok(Asked::Logs(place, options)) => logs::logs(port, &place, options)
            .await
            .map(|body| with_type("text/plain", body).into()),
        Ok(Asked::Exec(place, streams, command)) => {
            let joining = exec::prepare(port, &place, streams, Some(command)).await;
            joining.and_then(|joining| upgrade::join(port, joining, &mut request))
        }
        Ok(Asked::Attach(place, streams)) => {
            let joining = exec::prepare(port, &place, streams, None).await;
            joining.and_then(|joining| upgrade::join(port, joining, &mut request))
        }
        Ok(Asked::PortForward(place)) => {
            let forwarding = portforward::prepare(port, &place).await;
            forwarding.and_then(|forwarding| upgrade::forward(forwarding, &mut request))
        }
        Err(refusal) => Err(refusal),
    };
    let Answer { response, job } = answered.unwrap_or_else(|refusal| refused(&refusal).into());
    (response, job)
}

/// The pod meant, which must have the container named, if one is.
///
/// Source: Kubernetes v1.36, `pkg/kubelet/server/server.go` (`getContainerLogs`).
fn find(roll: &Roll, place: &Place) -> Result<Known, Refusal> {
    let pod = &place.pod;
    let known = roll.find(&place.namespace, pod);
    let known = known.filter(|known| place.uid.as_ref().is_none_or(|uid| *uid == known.pod.meta.uid));
    let known = known.ok_or_else(|| Refusal::new(404, format!("pod {pod:?} does not exist")))?;
    let container = &place.container;
    match container.is_empty() || known.pod.all_containers().any(|one| one.name == *container) {
        true => Ok(known),
        false => Err(Refusal::new(
            404,
            format!("container {container:?} not found in pod {pod:?}"),
        )),
    }
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = full("text/plain; charset=utf-8", refusal.text.clone());
    *response.status_mut() = StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn full(kind: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync();
    with_type(kind, body)
}

fn with_type(kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
