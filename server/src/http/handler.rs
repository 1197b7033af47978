//! One request from its head to its response: who, in whose name, may they, how long, what.
//!
//! The order is upstream's (Kubernetes v1.36, `apiserver/pkg/server/config.go`, `DefaultBuildHandlerChain`), as far as
//! we have its links.

use std::sync::Arc;
use std::time::Duration;

use agent::wire::status::{Reason, Status};
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response};
use jiff::Timestamp;
use tokio::sync::watch::Receiver;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::connect::Kubelets;
use super::encode::{self, Style};
use super::negotiate::Media;
use super::path::{self, Route};
use super::query::Query;
use super::table::Include;
use super::{Body, Front, Peer, empty};
use crate::auth::impersonate::impersonate;
use crate::auth::may::Attributes;
use crate::auth::token::uuid;
use crate::auth::who::{Anonymous, Who, anonymous};
use crate::cache::Fresh;
use crate::join::pki::Pki;
use crate::request::{Api, Target, User};

/// Upstream's `RequestTimeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// How many requests are worked on at once, and how long others wait for that (watches and streams do not count); and how many
/// connections there may be of clients that have not said who they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Requests that only read.
    pub reads: usize,
    /// Others. Apart from the former: writes that wait for a datastore keep no reader waiting.
    pub writes: usize,
    /// Who has waited so long for its turn is sent away to come again.
    pub wait: Duration,
    /// Connections without a certificate, token or password that counts; the oldest is closed for one more.
    pub strangers: usize,
}

impl Default for Limits {
    /// Upstream's `MaxRequestsInFlight` and `MaxMutatingRequestsInFlight`, and its longest wait in a queue; of strangers it
    /// knows no bound.
    fn default() -> Self {
        Self {
            reads: 400,
            writes: 200,
            wait: Duration::from_secs(15),
            // A few tens of kilobytes each, and more than a fleet has under way at once (`docs/budgets.md`).
            strangers: 512,
        }
    }
}

/// What the API over HTTP is made of.
pub struct Parts {
    /// Authorization and the registry.
    pub api: Arc<Api>,
    /// The authenticators.
    pub who: Who,
    /// The supervisor: sees every request first.
    pub front: Option<Arc<dyn Front>>,
    /// The way to the nodes.
    pub kubelets: Option<Kubelets>,
    /// Where other servers write, too: what makes reads see that.
    pub fresh: Option<Fresh>,
    /// Whether the server has started: `/readyz`.
    pub ready: Receiver<bool>,
    /// `HOST:PORT` that clients inside the cluster use now, for discovery.
    pub address: Arc<dyn Fn() -> String + Send + Sync>,
    /// Whose serving certificate grows with what clients come to.
    pub serving: Option<Arc<Pki>>,
    /// Against overload.
    pub limits: Limits,
}

/// The API over HTTP.
pub struct ApiHttp {
    pub(super) parts: Parts,
    reads: Semaphore,
    writes: Semaphore,
}

/// One request, understood.
pub(super) struct Ask {
    pub user: Arc<User>,
    pub method: Method,
    pub path: String,
    pub query: Query,
    pub headers: HeaderMap,
    /// Large bodies may be compressed.
    pub gzip: bool,
    pub now: Timestamp,
    pub stop: Receiver<bool>,
}

impl Ask {
    /// One header as text, empty without it.
    pub fn header(&self, name: &HeaderName) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// How the answer is to look, for what has (or has not) a table form and a protobuf form.
    pub fn style(&self, convertible: bool, protobuf: bool) -> Result<Style, Status> {
        Ok(Style {
            wanted: super::negotiate::accept(self.header(&header::ACCEPT), convertible, protobuf)?,
            include: Include::read(self.query.get("includeObject")),
            gzip: self.gzip,
            now: self.now,
        })
    }

    /// Reading is all that is wanted.
    pub fn reads(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }
}

impl ApiHttp {
    /// The API over HTTP.
    pub fn new(parts: Parts) -> Arc<Self> {
        let (reads, writes) = (parts.limits.reads, parts.limits.writes);
        Arc::new(Self {
            parts,
            reads: Semaphore::new(reads),
            writes: Semaphore::new(writes),
        })
    }

    /// Answers one request of a connection; `stop`: becomes true when the server stops.
    pub async fn answer(&self, request: Request<Incoming>, peer: &Peer, stop: Receiver<bool>) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        let response = self.whole(request, peer, stop).await;
        if head { headers_of(response) } else { response }
    }

    async fn whole(&self, request: Request<Incoming>, peer: &Peer, stop: Receiver<bool>) -> Response<Body> {
        let request = match &self.parts.front {
            Some(front) => match front.handle(request, peer).await {
                Ok(response) => return response,
                Err(request) => request,
            },
            None => request,
        };
        let audit = match request.headers().get(AUDIT_ID) {
            Some(id) if id.len() <= 64 => Some(id.clone()),
            _ => HeaderValue::from_str(&uuid()).ok(),
        };
        let accept = request.headers().get(header::ACCEPT).cloned();
        let mut response = match self.attempt(request, peer, stop).await {
            Ok(response) => response,
            Err(status) => {
                let accept = accept
                    .as_ref()
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default();
                // Who takes nothing that we have gets to know of it in JSON.
                let media = super::negotiate::accept(accept, false, true).map_or(Media::Json, |wanted| wanted.media);
                encode::status_as(&status, media)
            }
        };
        if let Some(id) = audit {
            response.headers_mut().insert(AUDIT_ID, id);
        }
        response
    }

    async fn attempt(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        stop: Receiver<bool>,
    ) -> Result<Response<Body>, Status> {
        let now = Timestamp::now();
        let find = |group: &str, version: &str, plural: &str| self.parts.api.find(group, version, plural);
        let path = request.uri().path().to_owned();
        let route = path::route(&path, &find);
        let user = self.user(request.headers(), peer, &route, now)?;
        let ask = Ask {
            user: Arc::new(user),
            method: request.method().clone(),
            query: Query::parse(request.uri().query().unwrap_or_default())?,
            gzip: accepts_gzip(request.headers()),
            headers: request.headers().clone(),
            path,
            now,
            stop,
        };
        let long = self.lasts(&ask, &route)?;
        if long {
            return self.dispatch(ask, route, request).await;
        }
        let limit = match ask.query.get("timeout") {
            Some(text) => duration(text)?.min(REQUEST_TIMEOUT),
            None => REQUEST_TIMEOUT,
        };
        let _slot = match exempt(&ask.user, &route) {
            true => None,
            false => Some(self.turn(ask.reads()).await?),
        };
        let answer = tokio::time::timeout(limit, self.dispatch(ask, route, request)).await;
        answer.unwrap_or_else(|_| {
            let text = "Timeout: request did not complete within requested timeout";
            Err(Status::failure(Reason::Timeout, text))
        })
    }

    /// Who asks, or in whose name.
    fn user(&self, headers: &HeaderMap, peer: &Peer, route: &Route, now: Timestamp) -> Result<User, Status> {
        let unauthorized = || Status::failure(Reason::Unauthorized, "Unauthorized");
        let certificate = peer.caller.at(now).map(|holder| holder.map(|holder| &holder.user));
        let user = match self.parts.who.ask(headers, certificate, now) {
            Ok(Some(user)) => {
                peer.stranger.is_known();
                user
            }
            Ok(None) => match self.parts.who.anonymous {
                Anonymous::Refused => return Err(unauthorized()),
                Anonymous::HealthOnly if !matches!(route, Route::Health(..) | Route::ServerVersion) => {
                    return Err(unauthorized());
                }
                Anonymous::HealthOnly | Anonymous::Allowed => anonymous(),
            },
            Err(_) => return Err(unauthorized()),
        };
        let authorizer = self.parts.api.authorizer();
        Ok(impersonate(headers, &user, authorizer)?.unwrap_or(user))
    }

    async fn turn(&self, reads: bool) -> Result<SemaphorePermit<'_>, Status> {
        let slots = if reads { &self.reads } else { &self.writes };
        match tokio::time::timeout(self.parts.limits.wait, slots.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => {
                let text = "Too many requests, please try again later.";
                Err(Status::failure(Reason::TooManyRequests, text).retry_after(1))
            }
        }
    }

    /// Whether the request has no deadline.
    fn lasts(&self, ask: &Ask, route: &Route) -> Result<bool, Status> {
        let Route::Resource { target, watch, .. } = route else {
            return Ok(false);
        };
        match target.subresource.as_deref() {
            Some("exec" | "attach" | "portforward" | "proxy") => Ok(true),
            Some("log") => ask.query.flag("follow"),
            Some(_) => Ok(false),
            None => Ok(ask.reads() && (*watch || ask.query.flag("watch")?)),
        }
    }

    async fn dispatch(&self, ask: Ask, route: Route, request: Request<Incoming>) -> Result<Response<Body>, Status> {
        if let Route::Resource { target, rest, watch } = route {
            return self.resource(ask, target, &rest, watch, request).await;
        }
        let verb = ask.method.as_str().to_ascii_lowercase();
        let asked = Attributes::Path {
            verb: &verb,
            path: &ask.path,
        };
        self.parts.api.authorizer().demand(&ask.user, &asked)?;
        if matches!(route, Route::Unknown) {
            return Err(Status::no_such_route());
        }
        if !ask.reads() {
            let text = "the server does not allow this method on the requested resource";
            return Err(Status::failure(Reason::MethodNotAllowed, text));
        }
        self.meta(&ask, &route)
    }
}

/// The answer to HEAD. HTTP/1.1 would leave the body out by itself, HTTP/2 would not.
fn headers_of(mut response: Response<Body>) -> Response<Body> {
    let length = response.body().size_hint().exact().filter(|length| *length > 0);
    if let Some(length) = length {
        response
            .headers_mut()
            .entry(header::CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
    *response.body_mut() = empty();
    response
}

/// Who is never made to wait: administrators, the server itself, whoever asks whether it lives, and nodes that say that
/// they do: a server with too much to do must not lose its nodes over it.
fn exempt(user: &User, route: &Route) -> bool {
    let member = |wanted: &str| user.groups.iter().any(|group| group == wanted);
    match route {
        Route::Health(..) => true,
        _ if member("system:masters") => true,
        Route::Resource { target, .. } => member("system:nodes") && is_heartbeat(target),
        _ => false,
    }
}

fn is_heartbeat(target: &Target) -> bool {
    let row = (target.resource.group, target.resource.plural);
    match (row, target.subresource.as_deref()) {
        (("coordination.k8s.io", "leases"), None) => target.namespace.as_deref() == Some("kube-node-lease"),
        (("", "nodes"), Some("status")) => true,
        _ => false,
    }
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    let mut codings = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    codings.any(|coding| coding.trim() == "gzip")
}

/// A duration as Go writes it: `32s`, `1m30s`, `500ms`, `0`.
fn duration(text: &str) -> Result<Duration, Status> {
    let bad = || {
        let text = format!("invalid value for timeout: time: invalid duration {text:?}");
        Status::failure(Reason::BadRequest, text)
    };
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() && rest != "0" {
        let digits = rest
            .find(|character: char| !character.is_ascii_digit())
            .ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let number: u32 = number.parse().map_err(|_| bad())?;
        let (unit, tail) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)]
            .into_iter()
            .find_map(|(name, millis)| Some((millis, tail.strip_prefix(name)?)))
            .ok_or_else(bad)?;
        total += Duration::from_millis(unit) * number;
        rest = tail;
    }
    match total {
        Duration::ZERO => Ok(REQUEST_TIMEOUT),
        total => Ok(total),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_those_of_go() {
        for (text, expected) in [
            ("32s", Some(32_000)),
            ("1m30s", Some(90_000)),
            ("500ms", Some(500)),
            ("0", Some(60_000)),
            ("0s", Some(60_000)),
            ("x", None),
            ("5", None),
            ("5d", None),
            ("99999999999s", None),
        ] {
            let got = duration(text).ok();
            assert_eq!(got, expected.map(Duration::from_millis), "{text}");
        }
    }
}
