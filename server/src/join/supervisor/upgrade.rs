//! Connections that go on after HTTP: a node's tunnel, and what servers open to each other (4.1 of the protocol, decision 7).

use std::future::Future;
use std::sync::Arc;

use agent::wire::selector::is_dns_subdomain;
use agent::wire::status::{Reason, Status};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::debug;

use super::node::own_name;
use super::{Supervisor, header};
use crate::http::query::Query;
use crate::http::{Body, Upgrades, empty};
use crate::peers;
use crate::request::User;
use crate::tunnel::DialError;

impl Supervisor {
    /// Turns the connection into a tunnel of the node whose certificate it has.
    pub(super) fn connect(&self, mut request: Request<Incoming>, user: &User) -> Result<Response<Body>, Status> {
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
    pub(super) fn hints(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Status> {
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
    pub(super) fn dial(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Status> {
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

/// What is between servers is a stream of bytes.
fn asks_for_bytes<B>(request: &Request<B>) -> Result<(), Status> {
    match header(request.headers(), "upgrade") {
        Some(peers::PROTOCOL) => Ok(()),
        _ => Err(Status::failure(Reason::BadRequest, "this is asked for with Upgrade")),
    }
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

#[cfg(test)]
mod tests {
    use super::super::tests::headers;
    use super::*;

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
