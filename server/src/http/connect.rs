//! The way to a node: logs, exec, attach, port-forward and the node's own API.
//!
//! The request goes on to the kubelet as it is (websocket or SPDY, which one is between client and kubelet), over a byte
//! stream that a [`NodeDialer`] opens, in TLS with the server's own client certificate. After a 101 bytes are copied; any
//! other answer is handed back as it comes.
//!
//! Source: Kubernetes v1.36 `pkg/registry/core/pod/strategy.go` (`LogLocation`, `streamLocation`) and `.../node/strategy.go`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use agent::wire::object::{at, integer, list, text};
use agent::wire::status::{Reason, Status};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{self, BoxFuture, Either};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::debug;

use super::handler::Ask;
use super::query::Query;
use super::{ApiHttp, Body, Upgrades, encode};
use crate::auth::may::Attributes;
use crate::request::Target;
use crate::tunnel::{Duplex, NodeDialer};

/// Where a kubelet listens unless its node says otherwise.
const KUBELET_PORT: u16 = 10250;
/// A kubelet that does not take a connection and show its certificate in this time is not there.
const CONNECT: Duration = Duration::from_secs(10);
/// Through a tunnel that lives its certificate is there within a second or two; after this another way is tried beside the
/// first one, which may only be slow.
const ONE_WAY: Duration = Duration::from_secs(4);
/// Of a kubelet's refusal so much is passed on.
const REFUSAL: usize = 4096;
/// Of this connection only, or a credential of the client's: not passed on.
const NOT_FORWARDED: [HeaderName; 9] = [
    header::AUTHORIZATION,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
];

/// The way to the nodes' kubelets.
pub struct Kubelets {
    dialer: Arc<dyn NodeDialer>,
    tls: TlsConnector,
}

/// Where on a node a request goes.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Place {
    node: String,
    port: u16,
    /// Path and query.
    uri: String,
}

/// Whether a subresource is answered by a node.
pub(super) fn is_stream(subresource: &str) -> bool {
    matches!(subresource, "log" | "exec" | "attach" | "portforward" | "proxy")
}

impl Kubelets {
    /// `tls`: presents the server's client certificate, trusts the authority of the kubelets' serving certificates.
    pub fn new(dialer: Arc<dyn NodeDialer>, tls: Arc<ClientConfig>) -> Self {
        let tls = TlsConnector::from(tls);
        Self { dialer, tls }
    }

    /// Sends a request to a node's kubelet. The connection lives in the response's body, or in its upgrade.
    async fn send(&self, place: &Place, request: Request<Body>) -> Result<Response<Driven>, String> {
        let attempt = tokio::time::timeout(CONNECT, self.reach(place)).await;
        let tls = attempt.map_err(|_| "timed out".to_owned())??;
        let handshake = http1::handshake(TokioIo::new(tls)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        let connection = connection.with_upgrades().map(|_| ()).boxed();
        let response = sender.send_request(request).boxed();
        match future::select(response, connection).await {
            Either::Left((response, connection)) => {
                let response = response.map_err(|error| error.to_string())?;
                Ok(response.map(|body| Driven {
                    body,
                    connection: Some(connection),
                }))
            }
            Either::Right(((), response)) => {
                // The connection ended: with the response already in, or without one.
                let response = response.await.map_err(|error| error.to_string())?;
                Ok(response.map(|body| Driven { body, connection: None }))
            }
        }
    }
}

impl Kubelets {
    /// A TLS connection to a node's kubelet. When nothing comes back by the first way, or it breaks, it is gone around.
    async fn reach(&self, place: &Place) -> Result<TlsStream<Box<dyn Duplex>>, String> {
        let dial = async |around| {
            let dialed = self.dialer.dial(&place.node, place.port, around).await;
            dialed.map_err(|error| error.to_string())
        };
        let name = ServerName::try_from(place.node.clone()).map_err(|error| error.to_string())?;
        let tls = async |stream| {
            let connected = self.tls.connect(name.clone(), stream).await;
            connected.map_err(|error| error.to_string())
        };
        let (stream, way) = dial(None).await?;
        let mut first = Box::pin(tls(stream));
        let broken = match tokio::time::timeout(ONE_WAY, &mut first).await {
            Ok(Ok(tls)) => return Ok(tls),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        debug!(
            node = place.node,
            ?way,
            error = broken,
            "nothing comes back from a kubelet this way"
        );
        let second = async {
            let (stream, _) = dial(Some(way)).await?;
            tls(stream).await
        };
        match broken {
            // What this way said is the better reason if there is no other one.
            Some(error) => second.await.map_err(|_| error),
            None => {
                let both = future::select_ok([first.boxed(), second.boxed()]);
                both.await.map(|(tls, _)| tls)
            }
        }
    }
}

/// A response body that keeps its connection going while it is read.
struct Driven {
    body: Incoming,
    connection: Option<BoxFuture<'static, ()>>,
}

impl HttpBody for Driven {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if let Some(connection) = &mut this.connection
            && connection.as_mut().poll(context).is_ready()
        {
            this.connection = None;
        }
        Pin::new(&mut this.body).poll_frame(context).map_err(io::Error::other)
    }
}

impl ApiHttp {
    /// Takes a request to the node it is for.
    pub(super) async fn connect(
        &self,
        ask: Ask,
        target: Target,
        rest: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Status> {
        let subresource = target.subresource.as_deref().unwrap_or_default();
        if matches!(subresource, "exec" | "attach" | "portforward") && ask.method != Method::POST {
            // A websocket arrives as GET, yet it is no reading.
            let asked = Attributes::on("create", &target, None);
            self.parts.api.authorizer().demand(&ask.user, &asked)?;
        }
        let place = self.place(&ask, &target, subresource, rest)?;
        let kubelets = self
            .parts
            .kubelets
            .as_ref()
            .ok_or_else(|| Status::failure(Reason::ServiceUnavailable, "this server has no way to its nodes"))?;
        let streaming = subresource == "log" && !ask.headers.contains_key(header::UPGRADE);
        forward(kubelets, place, &ask.headers, request, streaming).await
    }

    /// Where the request goes.
    fn place(&self, ask: &Ask, target: &Target, subresource: &str, rest: &str) -> Result<Place, Status> {
        let name = target.name.as_deref().unwrap_or_default();
        let namespace = target.namespace.as_deref().unwrap_or_default();
        match (target.resource.plural, subresource) {
            ("nodes", "proxy") => {
                let (node, port) = node_and_port(name)?;
                let found = self.parts.who.cache.get(&format!("/registry/minions/{node}"));
                found.ok_or_else(|| Status::not_found("", "nodes", node))?;
                let own = self.kubelet_port(node);
                let port = match port {
                    "" => own,
                    text => text.parse().map_err(|_| bad(format!("invalid port {text:?}")))?,
                };
                // An agent of K3s ends its whole tunnel when it is asked for another one.
                if port != own {
                    return Err(bad(format!(
                        "port {port} of node {node} is not reached through the API, only its kubelet's ({own})"
                    )));
                }
                let path = if rest.is_empty() { "/" } else { rest };
                let query = ask.query.encode(|_| true);
                Ok(Place {
                    node: node.to_owned(),
                    port,
                    uri: joined(path, &query),
                })
            }
            ("pods", "log" | "exec" | "attach" | "portforward") => {
                let pod = self.parts.who.cache.get(&format!("/registry/pods/{namespace}/{name}"));
                let pod = pod.ok_or_else(|| Status::not_found("", "pods", name))?.value();
                let node = text(&pod, &["spec", "nodeName"]).to_owned();
                if node.is_empty() {
                    return Err(bad(format!("pod {name} does not have a host assigned")));
                }
                let uri = pod_uri(&pod, subresource, &ask.query)?;
                let port = self.kubelet_port(&node);
                Ok(Place { node, port, uri })
            }
            (plural, _) => {
                let text = format!("{plural}/{subresource} is not offered by this server yet");
                Err(Status::failure(Reason::ServiceUnavailable, text))
            }
        }
    }

    fn kubelet_port(&self, node: &str) -> u16 {
        let node = self.parts.who.cache.get(&format!("/registry/minions/{node}"));
        let node = node.map(|item| item.value()).unwrap_or_default();
        let port = integer(&node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
        port.and_then(|port| u16::try_from(port).ok())
            .filter(|&port| port != 0)
            .unwrap_or(KUBELET_PORT)
    }
}

/// The node that `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT` means, and the port if one is named. Everything on a node is reached
/// in TLS, as it is in Kubernetes at the kubelet's own port whatever the scheme.
///
/// Source: Kubernetes v1.36 apimachinery `pkg/util/net/port_split.go` (`SplitSchemeNamePort`).
fn node_and_port(text: &str) -> Result<(&str, &str), Status> {
    let mut parts = text.split(':');
    let found = match [(); 4].map(|()| parts.next()) {
        [Some(name), None, ..] => Some((name, "")),
        [Some(name), Some(port), None, _] => Some((name, port)),
        [Some("http" | "https"), Some(name), Some(port), None] => Some((name, port)),
        _ => None,
    };
    let found = found.filter(|(name, _)| !name.is_empty());
    found.ok_or_else(|| bad(format!("invalid node request {text:?}")))
}

/// The kubelet's path and query for a stream of a pod.
fn pod_uri(pod: &Value, subresource: &str, query: &Query) -> Result<String, Status> {
    let place = format!(
        "{}/{}",
        text(pod, &["metadata", "namespace"]),
        text(pod, &["metadata", "name"])
    );
    if subresource == "portforward" {
        let ports: Vec<&str> = query.all("ports").collect();
        return Ok(match ports.is_empty() {
            true => format!("/portForward/{place}"),
            false => format!("/portForward/{place}?port={}", ports.join(",")),
        });
    }
    let container = container(pod, query.get("container"))?;
    if subresource == "log" {
        const KNOWN: [&str; 8] = [
            "follow",
            "previous",
            "sinceSeconds",
            "sinceTime",
            "timestamps",
            "tailLines",
            "limitBytes",
            "stream",
        ];
        let query = query.encode(|key| KNOWN.contains(&key));
        return Ok(joined(&format!("/containerLogs/{place}/{container}"), &query));
    }
    let flag = |ours: &str, absent: bool| match query.get(ours) {
        None => Ok(absent),
        Some(_) => query.flag(ours),
    };
    let attach = subresource == "attach";
    let tty = flag("tty", false)?;
    let mut parts = Vec::new();
    for (wanted, theirs) in [
        (flag("stdin", false)?, "input=1"),
        (flag("stdout", attach)?, "output=1"),
        (flag("stderr", attach && !tty)? && !tty, "error=1"),
        (tty, "tty=1"),
    ] {
        if wanted {
            parts.push(theirs.to_owned());
        }
    }
    if !parts.iter().any(|part| part != "tty=1") {
        return Err(bad("you must specify at least 1 of stdin, stdout, stderr"));
    }
    if !attach {
        let command = query.encode(|key| key == "command");
        if command.is_empty() {
            return Err(bad("you must specify at least one command for the container"));
        }
        parts.push(command);
    }
    Ok(joined(&format!("/{subresource}/{place}/{container}"), &parts.join("&")))
}

fn joined(path: &str, query: &str) -> String {
    match query {
        "" => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

/// The container meant: the one named, the annotated one, or the only one.
fn container(pod: &Value, named: Option<&str>) -> Result<String, Status> {
    const DEFAULT: &str = "kubectl.kubernetes.io/default-container";
    let names = |field: &str| -> Vec<String> {
        let containers = list(pod, &["spec", field]).iter();
        containers.map(|one| text(one, &["name"]).to_owned()).collect()
    };
    let (ordinary, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    let pod_name = text(pod, &["metadata", "name"]);
    let annotated = at(pod, &["metadata", "annotations", DEFAULT]).and_then(Value::as_str);
    if let Some(name) = named {
        let mut all = ordinary.iter().chain(&init).chain(&ephemeral);
        return match all.any(|one| one == name) {
            true => Ok(name.to_owned()),
            false => Err(bad(format!("container {name} is not valid for pod {pod_name}"))),
        };
    }
    match ordinary.as_slice() {
        [only] => Ok(only.clone()),
        several => match annotated.filter(|name| several.iter().any(|one| one == name)) {
            Some(name) => Ok(name.to_owned()),
            None => {
                let mut text = format!(
                    "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                    several.join(" ")
                );
                if !init.is_empty() {
                    text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                }
                Err(bad(text))
            }
        },
    }
}

async fn forward(
    kubelets: &Kubelets,
    place: Place,
    headers: &HeaderMap,
    mut request: Request<Incoming>,
    streaming: bool,
) -> Result<Response<Body>, Status> {
    let upgrade = headers.contains_key(header::UPGRADE) && request.version() == Version::HTTP_11;
    let job = request.extensions().get::<Upgrades>().cloned().filter(|_| upgrade);
    let client = upgrade.then(|| hyper::upgrade::on(&mut request));
    let onward = onward(&place, headers, request, upgrade)?;
    let answer = kubelets.send(&place, onward).await;
    let mut answer = answer.map_err(|error| {
        debug!(node = place.node, error, "cannot reach a kubelet");
        let text = format!("error dialing backend: node {}: {error}", place.node);
        Status::failure(Reason::ServiceUnavailable, text)
    })?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(job), Some(client)) = (job, client) else {
            return Err(Status::internal("the node switched protocols unasked"));
        };
        let node = hyper::upgrade::on(&mut answer);
        let connection = answer.body_mut().connection.take();
        job.run(async move {
            // The connection hands its stream over once it is driven to its end.
            let driven = async {
                if let Some(connection) = connection {
                    connection.await;
                }
            };
            let (client, node, ()) = tokio::join!(client, node, driven);
            if let (Ok(client), Ok(node)) = (client, node) {
                let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
                let copied = tokio::io::copy_bidirectional(&mut client, &mut node).await;
                if let Err(error) = copied {
                    debug!(error = %error, "a stream to a node broke off");
                }
            }
        });
        let mut response = Response::new(super::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        return Ok(response);
    }
    if streaming && !answer.status().is_success() {
        return Err(refusal(answer).await);
    }
    let (mut parts, body) = answer.into_parts();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        parts.headers.remove(name);
    }
    let mut response = encode::respond(parts.status, "text/plain", body.boxed_unsync());
    for (name, value) in &parts.headers {
        response.headers_mut().insert(name, value.clone());
    }
    Ok(response)
}

/// The request as the kubelet gets it.
fn onward(
    place: &Place,
    headers: &HeaderMap,
    request: Request<Incoming>,
    upgrade: bool,
) -> Result<Request<Body>, Status> {
    let uri: Uri = place
        .uri
        .parse()
        .map_err(|_| bad("the request makes no path on the node"))?;
    let (method, length) = (request.method().clone(), headers.get(header::CONTENT_LENGTH).cloned());
    let body = match upgrade {
        true => super::empty(),
        false => request.into_body().map_err(io::Error::other).boxed_unsync(),
    };
    let mut onward = Request::new(body);
    *onward.method_mut() = method;
    *onward.uri_mut() = uri;
    let mut connection_only = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        let names = value.to_str().unwrap_or_default().split(',');
        connection_only.extend(names.map(|name| name.trim().to_ascii_lowercase()));
    }
    for (name, value) in headers {
        let credential = name.as_str().starts_with("impersonate-") || name.as_str().starts_with("x-remote-");
        let hop = *name == header::CONNECTION
            || *name == header::UPGRADE
            || connection_only.iter().any(|one| one == name.as_str());
        if NOT_FORWARDED.contains(name) || credential || (hop && !upgrade) {
            continue;
        }
        onward.headers_mut().append(name, value.clone());
    }
    if let Some(length) = length.filter(|_| !upgrade) {
        onward.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    let host = HeaderValue::from_str(&format!("{}:{}", place.node, place.port)).map_err(Status::internal)?;
    onward.headers_mut().insert(header::HOST, host);
    Ok(onward)
}

/// A kubelet's refusal, which is text, as a status.
async fn refusal(answer: Response<Driven>) -> Status {
    let code = answer.status().as_u16();
    let mut body = answer.into_body();
    let mut text = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        text.extend_from_slice(frame.data_ref().map(AsRef::as_ref).unwrap_or_default());
        if text.len() >= REFUSAL {
            text.truncate(REFUSAL);
            break;
        }
    }
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    if let Ok(status) = serde_json::from_str::<Status>(&text)
        && status.kind == "Status"
    {
        return status;
    }
    let reason = match code {
        400 => Reason::BadRequest,
        401 => Reason::Unauthorized,
        403 => Reason::Forbidden,
        404 => Reason::NotFound,
        503 => Reason::ServiceUnavailable,
        _ => Reason::InternalError,
    };
    Status::failure(reason, text)
}

fn bad(text: impl Into<String>) -> Status {
    Status::failure(Reason::BadRequest, text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({
            "metadata": {"name": "web", "namespace": "x"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
        })
    }

    #[test]
    fn streams_find_their_place_on_the_kubelet() {
        for (subresource, query, expected) in [
            (
                "log",
                "container=a&follow=true&tailLines=5&pretty=1",
                Ok("/containerLogs/x/web/a?follow=true&tailLines=5"),
            ),
            ("log", "container=i", Ok("/containerLogs/x/web/i")),
            (
                "exec",
                "container=a&command=sh&command=-c&command=a%20b&stdin=true&stdout=true&tty=true",
                Ok("/exec/x/web/a?input=1&output=1&tty=1&command=sh&command=-c&command=a%20b"),
            ),
            (
                "exec",
                "container=a&command=ls&stdout=true&stderr=true",
                Ok("/exec/x/web/a?output=1&error=1&command=ls"),
            ),
            ("exec", "container=a&command=ls", Err(400)),
            ("exec", "container=a&stdout=true", Err(400)),
            ("attach", "container=a", Ok("/attach/x/web/a?output=1&error=1")),
            ("portforward", "", Ok("/portForward/x/web")),
            ("portforward", "ports=80&ports=81", Ok("/portForward/x/web?port=80,81")),
            ("log", "", Err(400)),
            ("log", "container=z", Err(400)),
        ] {
            let query = Query::parse(query).unwrap();
            let got = pod_uri(&pod(), subresource, &query).map_err(|status| status.code);
            assert_eq!(
                got.as_deref().map_err(|code| *code),
                expected,
                "{subresource} {query:?}"
            );
        }
    }

    #[test]
    fn a_node_is_named_alone_with_its_port_and_with_a_scheme() {
        for (text, expected) in [
            ("box", Some(("box", ""))),
            ("box:10250", Some(("box", "10250"))),
            ("https:box:10250", Some(("box", "10250"))),
            ("https:box:", Some(("box", ""))),
            ("ftp:box:21", None),
            (":10250", None),
            ("https::10250", None),
            ("https:box:10250:x", None),
        ] {
            assert_eq!(node_and_port(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn the_container_is_the_named_the_annotated_or_the_only_one() {
        let mut one = pod();
        assert_eq!(
            container(&one, None).unwrap_err().message,
            "a container name must be specified for pod web, choose one of: [a b] or one of the init containers: [i]"
        );
        one["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "b"});
        assert_eq!(container(&one, None).unwrap(), "b");
        one["spec"]["containers"] = json!([{"name": "only"}]);
        assert_eq!(container(&one, None).unwrap(), "only");
    }
}
