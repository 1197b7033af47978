//! The K3s supervisor: the routes by which a machine becomes a node and stays connected (2, 3 and 6 of the protocol).
//!
//! Sits before the API on the same port. What a path is and who may use it is `route`'s, what a certificate says is
//! `issue`'s, who may be which node is `register`'s; this folder reads requests and writes answers: `node` for certificates,
//! `upgrade` for what goes on after a 101. Before changing a code: agents tell "come again" (503) from "wrong token" (401)
//! and "not this node" (403), and never give up on any of them.

mod node;
mod upgrade;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent::units::Revision;
use agent::wire::status::{Reason, Status};
use agent::wire::token::Secret;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch::Receiver;
use tokio::time::timeout;
use tracing::{info, warn};

use super::caller::Caller;
use super::pki::{Pki, SUPERVISOR};
use super::register::Register;
use super::rotation::Rotation;
use super::route::{self, Route};
use super::static_files;
use crate::auth::who::NotTaken;
use crate::http::{Body, Front, Peer, empty, encode, full};
use crate::peers::{self, Place};
use crate::request::{Client, User};
use crate::tunnel::Sessions;

/// A certificate request is a few hundred bytes; RSA keys and long subjects a few thousand.
const MAX_REQUEST: usize = 64 * 1024;
/// A node that takes longer to send it is gone.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Who the `Authorization` header says it is: password, bootstrap token, service account. `Ok(None)`: there is none; an
/// error may say why a bootstrap token is not taken.
pub type ByHeader = Arc<dyn Fn(&HeaderMap) -> Result<Option<User>, Option<NotTaken>> + Send + Sync>;

/// Takes a node's websocket, already upgraded, and returns when it has ended.
pub type Tunnels = Arc<dyn Fn(String, TokioIo<Upgraded>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Is told of a revision that another server has committed.
pub type Hint = Arc<dyn Fn(Revision) + Send + Sync>;

/// What the supervisor works with.
pub struct Parts {
    /// Certificates.
    pub pki: Arc<Pki>,
    /// Who has which credential.
    pub by_header: ByHeader,
    /// Which node is whose.
    pub register: Arc<Register>,
    /// How the token becomes another one.
    pub rotation: Rotation,
    /// The API, as the supervisor.
    pub client: Client,
    /// Whether the server has started: `/v1-k3s/readyz`.
    pub ready: Receiver<bool>,
    /// `<data>/server/static`: anyone may have what lies in it.
    pub files: PathBuf,
    /// Body of `/v1-k3s/config`.
    pub settings: Value,
    /// Where agents reach this server.
    pub place: Receiver<Place>,
    /// The far end of tunnels.
    pub tunnels: Tunnels,
    /// The nodes that have one.
    pub sessions: Arc<Sessions>,
    /// Who wants to know what other servers have committed.
    pub hint: Hint,
}

/// The supervisor.
pub struct Supervisor {
    parts: Parts,
    settings: Bytes,
}

impl Front for Supervisor {
    fn handle<'a>(
        &'a self,
        request: Request<Incoming>,
        peer: &'a Peer,
    ) -> BoxFuture<'a, Result<Response<Body>, Request<Incoming>>> {
        match route::find(request.method(), request.uri().path()) {
            None => ready(Err(request)).boxed(),
            Some(route) => self.answer(route, request, peer).map(Ok).boxed(),
        }
    }
}

impl Supervisor {
    /// A supervisor; its tunnels end with their connections.
    pub fn new(parts: Parts) -> Self {
        Self {
            settings: Bytes::from(parts.settings.to_string()),
            parts,
        }
    }

    async fn answer(&self, route: Route, request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match self.serve(route, request, peer).await {
            Ok(response) => response,
            // Every server that has no session of a node says so, each time it is asked.
            Err(status) if route.is_for_servers() && status.code == 404 => encode::status(&status),
            Err(status) => {
                warn!(peer = %peer.address, path, code = status.code, error = status.message, "refused a node's request");
                encode::status(&status)
            }
        }
    }

    async fn serve(&self, route: Route, request: Request<Incoming>, peer: &Peer) -> Result<Response<Body>, Status> {
        let user = match route.groups() {
            None => None,
            Some(groups) => Some(self.member(route, groups, request.headers(), peer)?),
        };
        if !route.takes(request.method()) {
            let why = format!("{} is not allowed on {}", request.method(), request.uri().path());
            return Err(Status::failure(Reason::MethodNotAllowed, why));
        }
        let Some(user) = user else {
            return match route {
                Route::Static => static_files::answer(&self.parts.files, request.uri().path()).await,
                Route::CaCerts => Ok(plain(self.parts.pki.server_ca_pem().to_owned())),
                _ => Ok(plain("pong")),
            };
        };
        if let Some(status) = route.declined() {
            return Err(status);
        }
        match route {
            Route::ServerCa => Ok(plain(self.parts.pki.server_ca_pem().to_owned())),
            Route::ClientCa => Ok(plain(self.parts.pki.client_ca_pem().to_owned())),
            Route::Ready => readiness(*self.parts.ready.borrow()),
            Route::Config => Ok(json(self.settings.clone())),
            Route::Servers => Ok(json(
                serde_json::to_vec(&self.servers().await).map_err(Status::internal)?,
            )),
            Route::Issue(which) => self.issue(which, request, &user, peer).await,
            Route::Connect => self.connect(request, &user),
            Route::Dial => self.dial(request),
            Route::Hints => self.hints(request),
            Route::Token => self.rotate(request, peer).await,
            Route::EncryptionStatus => Ok(json(route::NOT_ENCRYPTED)),
            Route::CaCerts
            | Route::Ping
            | Route::Static
            | Route::EncryptionConfig
            | Route::ReplaceAuthorities
            | Route::ServerBootstrap
            | Route::Proxy
            | Route::Unknown => Err(Status::failure(
                Reason::NotFound,
                format!("this server does not offer {}", request.uri().path()),
            )),
        }
    }

    /// The caller, if it is in one of the groups.
    fn member(&self, route: Route, groups: &[&str], headers: &HeaderMap, peer: &Peer) -> Result<User, Status> {
        let certificate = peer.caller.at(Timestamp::now()).map_err(|_| refused(&peer.caller));
        let certificate = certificate.map(|holder| holder.map(|holder| &holder.user));
        let user = match route.is_for_servers() {
            true => server_of(certificate?)?,
            false => self.who(headers, certificate)?,
        };
        peer.stranger.is_known();
        if user.groups.iter().any(|group| groups.contains(&group.as_str())) {
            return Ok(user);
        }
        let why = format!(
            "forbidden: {:?} is in none of the groups {}",
            user.name,
            groups.join(", ")
        );
        Err(Status::failure(Reason::Forbidden, why))
    }

    /// A right password goes before a certificate; a wrong one beside a good certificate does no harm (1.5, 1.6).
    fn who(&self, headers: &HeaderMap, certificate: Result<Option<&User>, Status>) -> Result<User, Status> {
        match ((self.parts.by_header)(headers), certificate) {
            (Ok(Some(user)), _) => Ok(user),
            (_, Ok(Some(user))) => Ok(user.clone()),
            (Err(Some(why)), _) => Err(not_taken(&why)),
            (Err(None), _) if self.parts.rotation.is_behind() => Err(Status::unavailable(
                "the cluster's token was rotated on another server; this one takes no machine in by it until it is restarted \
                 with the new token",
            )),
            (Err(None), _) => Err(Status::failure(
                Reason::Unauthorized,
                "not authorized: the token does not belong to this cluster, or has expired. The one to use is in \
                 server/node-token below the data directory of a server (/var/lib/rancher/k3s)",
            )),
            (Ok(None), Err(refused)) => Err(refused),
            (Ok(None), Ok(None)) => Err(Status::failure(
                Reason::Forbidden,
                "forbidden: neither a token nor a client certificate was sent",
            )),
        }
    }

    /// `host:port` of all servers, from the endpoints of `default/kubernetes`; ourselves while there are none, and while
    /// nobody but this machine's own agent can ask.
    async fn servers(&self) -> Vec<String> {
        let Place { address, reachable } = *self.parts.place.borrow();
        if !reachable {
            return vec![address.to_string()];
        }
        let found = peers::present_endpoints(&self.parts.client).await.unwrap_or_default();
        match found.is_empty() {
            true => vec![address.to_string()],
            false => found.iter().map(ToString::to_string).collect(),
        }
    }

    /// Makes the token another one: JSON in, nothing out (1.7).
    async fn rotate(&self, request: Request<Incoming>, peer: &Peer) -> Result<Response<Body>, Status> {
        let body = body_of(request.into_body()).await?;
        let wanted: NewToken = serde_json::from_slice(&body).map_err(|error| {
            // Neither the text nor serde's words about it, which may repeat a secret.
            let place = (error.line(), error.column());
            let why = format!("not {{\"newToken\": \"…\"}}: at line {}, column {}", place.0, place.1);
            Status::failure(Reason::BadRequest, why)
        })?;
        let wanted = Secret::new(wanted.new_token.unwrap_or_default());
        self.parts.rotation.to(wanted.expose()).await?;
        info!(peer = %peer.address, "rotated the token");
        Ok(Response::new(empty()))
    }
}

/// Source: K3s v1.36 `pkg/server/handlers` (`Readyz`).
fn readiness(ready: bool) -> Result<Response<Body>, Status> {
    match ready {
        true => Ok(plain("ok")),
        false => Err(Status::unavailable("this server has not started yet")),
    }
}

/// What is said of a certificate that names nobody.
fn refused(caller: &Caller) -> Status {
    let why = match caller {
        Caller::Refused(why) => why,
        Caller::Known(_) | Caller::Nobody => "it has run out while the connection was open",
    };
    let why = format!("not authorized: the client certificate does not count ({why}); join again with a token");
    Status::failure(Reason::Unauthorized, why)
}

/// The caller if it is a server: by its certificate and by nothing else.
fn server_of(certificate: Option<&User>) -> Result<User, Status> {
    let server = certificate.filter(|user| user.name == SUPERVISOR);
    server.cloned().ok_or_else(|| {
        Status::failure(
            Reason::Forbidden,
            "forbidden: this is between the servers of the cluster",
        )
    })
}

/// The body of a rotation.
#[derive(Deserialize)]
struct NewToken {
    #[serde(rename = "newToken")]
    new_token: Option<String>,
}

fn not_taken(why: &NotTaken) -> Status {
    match why {
        NotTaken::Over { id, end } => {
            let why = format!(
                "not authorized: bootstrap token {id} expired at {end:.0}; \"k3s token create\" on a server makes another, \
                 and server/node-token below its data directory has one that does not expire"
            );
            Status::failure(Reason::Unauthorized, why)
        }
        NotTaken::Unknowable { id } => Status::unavailable(format!(
            "bootstrap token {id} expires, and this server's clock is behind its own certificates, so nobody knows whether \
             it has; set the clock, or join with server/node-token below its data directory, which does not expire (if \
             the clock is right, the certificates are of one that was ahead: run \"k3s certificate rotate\")"
        )),
    }
}

/// The body of a request, which is small.
async fn body_of(body: Incoming) -> Result<Bytes, Status> {
    let body = timeout(BODY_TIMEOUT, Limited::new(body, MAX_REQUEST).collect()).await;
    let body = body.map_err(|_| Status::failure(Reason::Timeout, "the request did not arrive in time"))?;
    let unreadable = |error| {
        let why = format!("cannot read the request: {error}");
        Status::failure(Reason::BadRequest, why)
    };
    Ok(body.map_err(unreadable)?.to_bytes())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then_some(value)
}

fn plain(text: impl Into<Bytes>) -> Response<Body> {
    with_type(text, "text/plain")
}

fn json(bytes: impl Into<Bytes>) -> Response<Body> {
    with_type(bytes, "application/json")
}

fn with_type(bytes: impl Into<Bytes>, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(full(bytes.into()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |&(name, value)| {
            (
                hyper::header::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn an_expired_token_is_named_by_its_id_with_its_end_and_the_cure() {
        let (id, end) = ("abcdef".to_owned(), "2026-11-27T00:00:00Z".parse().unwrap());
        let status = not_taken(&NotTaken::Over { id, end });
        assert_eq!(status.code, 401);
        for part in [
            "token abcdef expired at 2026-11-27T00:00:00Z",
            "k3s token create",
            "node-token",
        ] {
            assert!(status.message.contains(part), "{part}: {}", status.message);
        }
    }

    #[test]
    fn a_token_that_a_clock_behind_cannot_judge_is_for_later_and_the_cures_are_named() {
        let status = not_taken(&NotTaken::Unknowable {
            id: "abcdef".to_owned(),
        });
        assert_eq!(status.code, 503);
        assert!(
            status
                .details
                .as_ref()
                .is_some_and(|details| details.retry_after_seconds > 0)
        );
        for part in [
            "token abcdef expires",
            "set the clock",
            "node-token",
            "certificate rotate",
        ] {
            assert!(status.message.contains(part), "{part}: {}", status.message);
        }
    }

    #[test]
    fn a_server_is_ready_once_it_has_started() {
        assert_eq!(readiness(false).unwrap_err().code, 503);
        assert_eq!(readiness(true).unwrap().status(), 200);
    }

    #[test]
    fn only_the_certificate_of_a_server_is_a_server() {
        for (name, groups, is) in [
            ("system:k3s-supervisor", &["system:masters"][..], true),
            ("system:admin", &["system:masters"], false),
            ("system:apiserver", &["system:masters"], false),
            ("system:node:pi", &["system:nodes"], false),
        ] {
            assert_eq!(server_of(Some(&User::new(name, groups))).is_ok(), is, "{name}");
        }
        assert_eq!(server_of(None).unwrap_err().code, 403);
    }
}
