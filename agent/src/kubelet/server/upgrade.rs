//! From a request that wants more than an answer to what goes on over its connection: which protocol, in which coat.
//!
//! Websockets are what kubectl speaks; SPDY is what K3s' API server translates them to.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};

use super::channel::Protocol;
use super::exec::{self, Joining};
use super::portforward::{self, Forwarding};
use super::route::Refusal;
use super::spdy::wire::Coat;
use super::{Body, Port, full, spdy_exec, websocket};

const SPDY: &str = "SPDY/3.1";
/// In which SPDY clients name what they speak over it, and are told.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What goes on over a connection once HTTP is over on it.
pub type Job = BoxFuture<'static, ()>;

/// An answer and what follows it.
pub struct Answer {
    pub response: Response<Body>,
    pub job: Option<Job>,
}

impl From<Response<Body>> for Answer {
    fn from(response: Response<Body>) -> Self {
        Self { response, job: None }
    }
}

/// One connection's job, for its task to run after the 101 is sent.
#[derive(Clone, Default)]
pub struct Upgrades(Arc<Mutex<Option<Job>>>);

impl Upgrades {
    /// Sets it, if there is one.
    pub fn set(&self, job: Option<Job>) {
        if job.is_some() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = job;
        }
    }

    /// Takes it away.
    pub fn take(&self) -> Option<Job> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A command or a container joined with this client.
///
/// # Errors
/// [`Refusal`]: it speaks nothing that we do.
pub fn join(port: &Arc<Port>, joining: Joining, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let port = port.clone();
    if websocket::is_wanted(request.headers()) {
        let protocol = Protocol::choose(&websocket::offered(request.headers()));
        let protocol = protocol.ok_or_else(|| unspoken(&[Protocol::V5.name(), Protocol::V4.name()]))?;
        let response = websocket::accept(request.headers(), protocol.name())?;
        return Ok(after(request, response, move |upgraded| {
            exec::by_websocket(port, joining, protocol, upgraded)
        }));
    }
    let response = spdy(request.headers(), spdy_exec::PROTOCOL)?;
    Ok(after(request, response, move |upgraded| {
        spdy_exec::serve(port, joining, upgraded)
    }))
}

/// Ports of a pod for this client.
///
/// # Errors
/// [`Refusal`]: it speaks nothing that we do.
pub fn forward(forwarding: Forwarding, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let (response, coat) = if websocket::is_wanted(request.headers()) {
        let offered = websocket::offered(request.headers());
        if !offered.split(',').any(|name| name.trim() == portforward::WEBSOCKET) {
            return Err(unspoken(&[portforward::WEBSOCKET]));
        }
        (
            websocket::accept(request.headers(), portforward::WEBSOCKET)?,
            Coat::WebSocket,
        )
    } else {
        (spdy(request.headers(), portforward::BARE)?, Coat::Bare)
    };
    Ok(after(request, response, move |upgraded| {
        portforward::serve(forwarding, coat, upgraded)
    }))
}

fn after<F>(
    request: &mut Request<Incoming>,
    response: Response<Body>,
    serve: impl FnOnce(Upgraded) -> F + Send + 'static,
) -> Answer
where
    F: Future<Output = ()> + Send,
{
    let upgrading = hyper::upgrade::on(request);
    let job = async move {
        match upgrading.await {
            Ok(upgraded) => serve(upgraded).await,
            Err(error) => tracing::debug!(%error, "a client is gone before it was served"),
        }
    };
    Answer {
        response,
        job: Some(job.boxed()),
    }
}

/// The answer that opens SPDY with this protocol over it.
///
/// Source: apimachinery v1.36 `pkg/util/httpstream` (`IsUpgradeRequest`, `Handshake`).
fn spdy(headers: &HeaderMap, protocol: &'static str) -> Result<Response<Body>, Refusal> {
    let values = |name: HeaderName| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(str::trim)
    };
    if !values(UPGRADE).any(|value| value.eq_ignore_ascii_case(SPDY)) {
        return Err(Refusal::new(
            400,
            "unable to upgrade: missing upgrade headers in request",
        ));
    }
    if !values(STREAM_PROTOCOL).any(|value| value == protocol) {
        return Err(unspoken(&[protocol]));
    }
    let mut response = full("", "");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.clear();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static(SPDY));
    answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    Ok(response)
}

fn unspoken(ours: &[&str]) -> Refusal {
    Refusal::new(
        403,
        format!("no protocol in common: this kubelet speaks {}", ours.join(", ")),
    )
}
