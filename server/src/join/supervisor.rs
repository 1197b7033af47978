//! The K3s supervisor: the routes by which a machine becomes a node and stays connected (2, 3 and 6 of the protocol).
//!
//! Sits before the API on the same port. What a path is and who may use it is `route`'s, what a certificate says is
//! `issue`'s, who may be which node is `register`'s; this file reads requests and writes answers. Before changing a code:
//! agents tell "come again" (503) from "wrong token" (401) and "not this node" (403), and never give up on any of them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent::units::Revision;
use agent::wire::join::{NODE_IP, NODE_NAME, NODE_PASSWORD};
use agent::wire::selector::is_dns_subdomain;
use agent::wire::status::{Reason, Status};
use agent::wire::token::Secret;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rcgen::PublicKeyData as _;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::sync::watch::Receiver;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::{debug, info, warn};

use super::certificate::{key_hash, requested_key};
use super::issue::{Node, issue};
use super::pki::{Pki, SUPERVISOR};
use super::register::{Claim, Refusal, Register};
use super::rotation::Rotation;
use super::route::{self, Certificate, NODES_GROUP, Route};
use super::static_files;
use crate::http::query::Query;
use crate::http::{Body, Front, Peer, Upgrades, empty, encode, full};
use crate::peers;
use crate::request::{Client, User};
use crate::tunnel::{DialError, Sessions};

/// A certificate request is a few hundred bytes; RSA keys and long subjects a few thousand.
const MAX_REQUEST: usize = 64 * 1024;
/// A node that takes longer to send it is gone.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Who the `Authorization` header says it is: password, bootstrap token, service account. `Ok(None)`: there is none; an
/// error may name a bootstrap token, by its id, and when its end was.
pub type ByHeader = Arc<dyn Fn(&HeaderMap) -> Result<Option<User>, Option<(String, Timestamp)>> + Send + Sync>;

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
    /// `host:port` under which agents reach this server.
    pub advertised: String,
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
        let user = match route.is_for_servers() {
            true => server_of(peer)?,
            false => self.who(headers, peer)?,
        };
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
    fn who(&self, headers: &HeaderMap, peer: &Peer) -> Result<User, Status> {
        match ((self.parts.by_header)(headers), &peer.certificate) {
            (Ok(Some(user)), _) => Ok(user),
            (_, Some(user)) => Ok(user.clone()),
            (Err(Some((id, end))), None) => Err(expired(&id, end)),
            (Err(None), None) if self.parts.rotation.is_behind() => Err(Status::unavailable(
                "the cluster's token was rotated on another server; this one takes no machine in by it until it is restarted \
                 with the new token",
            )),
            (Err(None), None) => Err(Status::failure(
                Reason::Unauthorized,
                "not authorized: the token does not belong to this cluster, or has expired. The one to use is in \
                 server/node-token below the data directory of a server (/var/lib/rancher/k3s)",
            )),
            (Ok(None), None) => Err(Status::failure(
                Reason::Forbidden,
                "forbidden: neither a token nor a client certificate was sent",
            )),
        }
    }

    /// `host:port` of all servers, from the endpoints of `default/kubernetes`; ourselves while there are none.
    async fn servers(&self) -> Vec<String> {
        let found = peers::present_endpoints(&self.parts.client).await.unwrap_or_default();
        match found.is_empty() {
            true => vec![self.parts.advertised.clone()],
            false => found.iter().map(ToString::to_string).collect(),
        }
    }

    async fn issue(
        &self,
        which: Certificate,
        request: Request<Incoming>,
        user: &User,
        peer: &Peer,
    ) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let now = Timestamp::now();
        let body = body_of(body).await?;
        let node = match which {
            Certificate::ClientKubelet | Certificate::ServingKubelet => {
                let node = node_of(&head.headers, user)?;
                // A key that is shared with others, as old agents', proves nothing later.
                let key = requested_key(&body).filter(|_| which == Certificate::ClientKubelet);
                let key = key.map(|key| key_hash(&key.subject_public_key_info()));
                self.admit(&node, &head.headers, user, peer, key.as_deref(), now)
                    .await?;
                node
            }
            Certificate::KubeProxy | Certificate::K3sController => Node {
                name: String::new(),
                addresses: Vec::new(),
            },
        };
        let signed = issue(&self.parts.pki, which, &node, &body, now).map_err(Status::internal)?;
        info!(node = node.name, certificate = ?which, peer = %peer.address, user = user.name, "signed a certificate");
        Ok(plain(signed))
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

    /// Whether this caller may be this node (3.4).
    async fn admit(
        &self,
        node: &Node,
        headers: &HeaderMap,
        user: &User,
        peer: &Peer,
        key: Option<&str>,
        now: Timestamp,
    ) -> Result<(), Status> {
        let register = &self.parts.register;
        if own_name(user).is_some() && !register.exists(&node.name).await? {
            let why = format!(
                "unable to verify node identity: node {:?} does not exist any more, so its certificate counts no longer; \
                 join again with a token",
                node.name
            );
            return Err(Status::failure(Reason::Unauthorized, why));
        }
        let password = header(headers, NODE_PASSWORD)
            .ok_or_else(|| Status::failure(Reason::BadRequest, "node password not set"))?;
        // Whatever the token says, the handshake has proved this.
        let holds = |user: &User| own_name(user) == Some(&node.name);
        let claim = Claim {
            node: &node.name,
            password,
            proof: peer
                .key
                .as_deref()
                .filter(|_| peer.certificate.as_ref().is_some_and(holds)),
            key,
        };
        register.admit(claim, now).await.map_err(|refusal| match &refusal {
            Refusal::Taken { .. } => Status::failure(Reason::Forbidden, refusal.to_string()),
            Refusal::Later { .. } => Status::unavailable(refusal.to_string()),
        })
    }

    /// Turns the connection into a tunnel of the node whose certificate it has.
    fn connect(&self, mut request: Request<Incoming>, user: &User) -> Result<Response<Body>, Status> {
        let node = own_name(user)
            .ok_or_else(|| Status::failure(Reason::Forbidden, "forbidden: only a node opens a tunnel"))?
            .to_owned();
        let accept = websocket(&request)?;
        let tunnels = Arc::clone(&self.parts.tunnels);
        let mut response = switch(&mut request, "websocket", move |stream| tunnels(node, stream))?;
        response.headers_mut().insert("sec-websocket-accept", accept);
        Ok(response)
    }

    /// Turns the connection of another server into one that tells of its commits.
    fn hints(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Status> {
        asks_for_bytes(&request)?;
        let (hint, sessions) = (Arc::clone(&self.parts.hint), Arc::clone(&self.parts.sessions));
        switch(&mut request, peers::PROTOCOL, move |stream| async move {
            tokio::select! {
                () = peers::take_hints(stream, |revision| hint(revision)) => {}
                () = sessions.stopped() => {}
            }
        })
    }

    /// Turns the connection of another server into a stream to a node that has a tunnel to this one.
    fn dial(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Status> {
        let bad = |why: &str| Status::failure(Reason::BadRequest, why);
        let query = Query::parse(request.uri().query().unwrap_or_default())?;
        let node = query.get("node").filter(|node| is_dns_subdomain(node));
        let node = node.ok_or_else(|| bad("node: not the name of a node"))?.to_owned();
        let port = query.get("port").and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| bad("port: not a port"))?;
        asks_for_bytes(&request)?;
        let opened = self.parts.sessions.open(&node, port, None);
        let (far, _) = opened.map_err(|error| match error {
            DialError::NoSession { .. } | DialError::Nowhere { .. } | DialError::Silent { .. } => {
                Status::failure(Reason::NotFound, error.to_string())
            }
            DialError::Busy { .. } => Status::unavailable(error.to_string()),
        })?;
        switch(&mut request, peers::PROTOCOL, move |near| async move {
            let (mut near, mut far) = (near, far);
            if let Err(error) = copy_bidirectional(&mut near, &mut far).await {
                debug!(node, error = %error, "a stream between another server and a node broke off");
            }
        })
    }
}

/// Source: K3s v1.36 `pkg/server/handlers` (`Readyz`).
fn readiness(ready: bool) -> Result<Response<Body>, Status> {
    match ready {
        true => Ok(plain("ok")),
        false => Err(Status::unavailable("this server has not started yet")),
    }
}

/// Answers with 101 and gives the connection to `job`.
fn switch<F: Future<Output = ()> + Send + 'static>(
    request: &mut Request<Incoming>,
    protocol: &'static str,
    job: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
) -> Result<Response<Body>, Status> {
    let upgrades = request.extensions_mut().remove::<Upgrades>();
    let upgrades = upgrades.ok_or_else(|| Status::internal("this connection cannot be upgraded"))?;
    let upgrade = hyper::upgrade::on(request);
    upgrades.run(async move {
        match upgrade.await {
            Ok(upgraded) => job(TokioIo::new(upgraded)).await,
            Err(error) => debug!(protocol, error = %error, "a connection was given up before it was upgraded"),
        }
    });
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(response)
}

/// The caller if it is a server: by its certificate and by nothing else.
fn server_of(peer: &Peer) -> Result<User, Status> {
    let server = peer.certificate.clone().filter(|user| user.name == SUPERVISOR);
    server.ok_or_else(|| {
        Status::failure(
            Reason::Forbidden,
            "forbidden: this is between the servers of the cluster",
        )
    })
}

/// What is between servers is a stream of bytes.
fn asks_for_bytes<B>(request: &Request<B>) -> Result<(), Status> {
    match header(request.headers(), "upgrade") {
        Some(peers::PROTOCOL) => Ok(()),
        _ => Err(Status::failure(Reason::BadRequest, "this is asked for with Upgrade")),
    }
}

/// The body of a rotation.
#[derive(Deserialize)]
struct NewToken {
    #[serde(rename = "newToken")]
    new_token: Option<String>,
}

fn expired(id: &str, end: Timestamp) -> Status {
    let why = format!(
        "not authorized: bootstrap token {id} expired at {end:.0}; \"k3s token create\" on a server makes another, and \
         server/node-token below its data directory has one that does not expire"
    );
    Status::failure(Reason::Unauthorized, why)
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

/// The name in a kubelet's identity.
fn own_name(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:")?;
    user.groups.iter().any(|group| group == NODES_GROUP).then_some(name)
}

/// Which node the headers name; a node cannot name another.
fn node_of(headers: &HeaderMap, user: &User) -> Result<Node, Status> {
    let bad = |why: String| Status::failure(Reason::BadRequest, why);
    let name = header(headers, NODE_NAME).ok_or_else(|| bad("node name not set".to_owned()))?;
    if !is_dns_subdomain(name) {
        return Err(bad(format!(
            "node name {name:?} is not valid: use lower-case letters, digits, '-' and '.', or set --node-name"
        )));
    }
    if own_name(user).is_some_and(|own| own != name) {
        return Err(bad(format!("header node name {name:?} does not match {:?}", user.name)));
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for part in header(headers, NODE_IP).unwrap_or_default().split(',') {
        let part = part.trim();
        match part.parse() {
            Ok(address) => addresses.push(address),
            Err(_) if part.is_empty() => {}
            Err(_) => return Err(Status::internal(format!("invalid node IP address {part:?}"))),
        }
    }
    Ok(Node {
        name: name.to_owned(),
        addresses,
    })
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then_some(value)
}

/// Checks the opening handshake (RFC 6455, 4.2.1); answers with the value of `Sec-WebSocket-Accept`.
fn websocket<B>(request: &Request<B>) -> Result<HeaderValue, Status> {
    let bad = |why: &str| Status::failure(Reason::BadRequest, why);
    let has = |name: &str, token: &str| {
        request
            .headers()
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    if request.version() != Version::HTTP_11 {
        return Err(bad("a tunnel is opened over HTTP/1.1"));
    }
    if !has("connection", "upgrade") || !has("upgrade", "websocket") || !has("sec-websocket-version", "13") {
        return Err(bad("not a websocket handshake of version 13"));
    }
    let key = header(request.headers(), "sec-websocket-key").ok_or_else(|| bad("Sec-WebSocket-Key is missing"))?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(Status::internal)
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

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |&(name, value)| {
            (
                hyper::header::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_node_is_whom_its_headers_name_and_no_other() {
        let token = User::new("node", &["k3s:agent"]);
        let pi = User::new("system:node:pi", &["system:nodes"]);
        let node = node_of(&headers(&[(NODE_NAME, "pi"), (NODE_IP, "192.0.2.1, fd00::1,")]), &token).unwrap();
        assert_eq!((node.name.as_str(), node.addresses.len()), ("pi", 2));
        for (user, pairs, code, hint) in [
            (&token, vec![], 400, "node name not set"),
            (&token, vec![(NODE_NAME, " ")], 400, "node name not set"),
            (&token, vec![(NODE_NAME, "Pi")], 400, "lower-case"),
            (&token, vec![(NODE_NAME, "../x")], 400, "not valid"),
            (&token, vec![(NODE_NAME, "pi"), (NODE_IP, "1.2.3")], 500, "1.2.3"),
            (&pi, vec![(NODE_NAME, "other")], 400, "does not match"),
        ] {
            let status = node_of(&headers(&pairs), user).unwrap_err();
            assert_eq!(status.code, code, "{pairs:?}");
            assert!(status.message.contains(hint), "{pairs:?}: {}", status.message);
        }
        assert!(node_of(&headers(&[(NODE_NAME, "pi")]), &pi).is_ok());
    }

    #[test]
    fn an_expired_token_is_named_by_its_id_with_its_end_and_the_cure() {
        let status = expired("abcdef", "2026-11-27T00:00:00Z".parse().unwrap());
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
    fn a_server_is_ready_once_it_has_started() {
        assert_eq!(readiness(false).unwrap_err().code, 503);
        assert_eq!(readiness(true).unwrap().status(), 200);
    }

    #[test]
    fn only_the_certificate_of_a_server_is_a_server() {
        let peer = |user: Option<User>| Peer {
            address: "192.0.2.1:1".parse().unwrap(),
            certificate: user,
            key: None,
        };
        for (name, groups, is) in [
            ("system:k3s-supervisor", &["system:masters"][..], true),
            ("system:admin", &["system:masters"], false),
            ("system:apiserver", &["system:masters"], false),
            ("system:node:pi", &["system:nodes"], false),
        ] {
            assert_eq!(server_of(&peer(Some(User::new(name, groups)))).is_ok(), is, "{name}");
        }
        assert_eq!(server_of(&peer(None)).unwrap_err().code, 403);
    }

    #[test]
    fn only_a_certificate_of_a_node_has_a_node_name() {
        assert_eq!(own_name(&User::new("system:node:pi", &["system:nodes"])), Some("pi"));
        assert_eq!(own_name(&User::new("system:node:pi", &[])), None, "not in the group");
        assert_eq!(own_name(&User::new("node", &["k3s:agent"])), None);
    }

    #[test]
    fn a_handshake_is_checked_before_the_connection_is_given_away() {
        let request = |version, pairs: &[(&'static str, &'static str)]| {
            let mut request = Request::new(());
            *request.version_mut() = version;
            *request.headers_mut() = headers(pairs);
            request
        };
        let good = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let accept = websocket(&request(Version::HTTP_11, &good)).unwrap();
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "the example of RFC 6455");
        assert!(websocket(&request(Version::HTTP_2, &good)).is_err());
        for missing in 0..good.len() {
            let mut pairs = good.to_vec();
            pairs.remove(missing);
            assert!(
                websocket(&request(Version::HTTP_11, &pairs)).is_err(),
                "without {:?}",
                good[missing]
            );
        }
    }
}
