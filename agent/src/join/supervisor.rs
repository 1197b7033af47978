//! Questions to the supervisor: the few requests of a join. What is asked with one credential goes over one connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::http::header::{AUTHORIZATION, HOST, RETRY_AFTER};
use hyper::http::{Method, Request, StatusCode};
use rustls::ClientConfig;

use super::authority;
use super::clock::{Clock, Window};
use super::durable::{Disk, SystemDisk};
use super::enrol::{Ground, Who};
use super::error::JoinError;
use super::files::Certificate;
use super::key::{Key, KeyError};
use super::renewal;
use super::trust::{self, Shown, TrustError};
use crate::api::Endpoint;
use crate::api::request::status_of;
use crate::api::transport::{Answer, Kept};
use crate::wire::join::{CACERTS, NODE_IP, NODE_NAME, NODE_PASSWORD, PREFIX, certificates};

/// Any of them; K3s' own limit.
const LIMIT: Duration = Duration::from_secs(10);

/// Where the supervisor is, and how messages call it.
#[derive(Clone, Debug)]
pub struct Address {
    /// To connect to: the balancer, or the server itself.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// As the operator wrote it.
    pub shown: String,
}

/// The servers at an address, over TLS as of the time that the clock says.
pub struct Network<'a> {
    /// Where.
    pub address: &'a Address,
    /// By which their certificates are judged.
    pub clock: &'a Arc<Clock>,
    /// The node's name, for messages.
    pub node: &'a str,
}

/// The supervisor, trusted and with a credential.
pub struct Link {
    server: Kept,
    authorization: Option<String>,
}

/// Fetches the CA bundle, judges it by the token's hash, and sees that the server has a certificate of it.
///
/// # Errors
/// [`JoinError`].
pub async fn fetch_ca(address: &Address, expected: Option<&str>, clock: &Arc<Clock>) -> Result<Bytes, JoinError> {
    let node = "";
    authority::fetch(&Network { address, clock, node }, expected).await
}

impl Address {
    fn endpoint(&self, tls: Arc<ClientConfig>) -> Endpoint {
        Endpoint {
            host: self.host.clone(),
            port: self.port,
            tls: Some(tls),
        }
    }
}

impl Ground for Network<'_> {
    type Link = Link;

    fn disk(&self) -> &dyn Disk {
        &SystemDisk
    }

    async fn ca(&self, by: Option<&[u8]>) -> Result<Bytes, JoinError> {
        let tls = match by {
            Some(ca) => trust::bundle(ca, None, self.clock)?,
            None => trust::anyone()?,
        };
        let link = Link {
            server: Kept::new(self.address.endpoint(tls)),
            authorization: None,
        };
        let answer = self.ask(&link, Method::GET, CACERTS, &[], Bytes::new()).await?;
        self.judged(CACERTS, answer)
    }

    fn link(&self, ca: &[u8], shown: Option<Shown<'_>>, authorization: Option<String>) -> Result<Link, TrustError> {
        Ok(Link {
            server: Kept::new(self.address.endpoint(trust::bundle(ca, shown, self.clock)?)),
            authorization,
        })
    }

    async fn get(&self, link: &Link, route: &str) -> Result<Bytes, JoinError> {
        self.told(link, Method::GET, route, &[], Bytes::new()).await
    }

    async fn sign(&self, link: &Link, which: Certificate, request: Vec<u8>, who: &Who<'_>) -> Result<Bytes, JoinError> {
        let route = format!("{}.crt", which.stem());
        let (name, password) = (who.identity.node_name.as_str(), who.identity.password.expose());
        let headers: &[(&str, &str)] = match which {
            Certificate::ServingKubelet | Certificate::ClientKubelet => {
                &[(NODE_NAME, name), (NODE_PASSWORD, password), (NODE_IP, who.ips)]
            }
            Certificate::ClientKubeProxy | Certificate::ClientK3sController => &[],
        };
        self.told(link, Method::POST, &route, headers, request.into()).await
    }

    fn window(&self, chain: &[u8]) -> Option<Window> {
        certificates(chain).first().and_then(|der| Window::of(der))
    }

    fn is_over(&self, window: Window) -> bool {
        renewal::is_over(window, self.clock.now(), self.clock.floor())
    }

    fn key(&self, kept: Option<&[u8]>) -> Result<(String, Vec<u8>), KeyError> {
        let key = match kept.and_then(Key::read) {
            Some(key) => key,
            None => Key::generate()?,
        };
        Ok((key.to_pem().to_owned(), key.request()?))
    }
}

impl Network<'_> {
    /// Asks a trusted server, whose answers also say what time it is.
    async fn told(
        &self,
        link: &Link,
        method: Method,
        route: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Bytes, JoinError> {
        let path = format!("{PREFIX}/{route}");
        let authorization = link
            .authorization
            .as_deref()
            .map(|value| (AUTHORIZATION.as_str(), value));
        let headers: Vec<_> = headers.iter().copied().chain(authorization).collect();
        let answer = self.ask(link, method, &path, &headers, body).await?;
        if answer.head.status.is_success() {
            self.clock.told(answer.date().unwrap_or(0));
        }
        if answer.head.status == StatusCode::UNAUTHORIZED && link.authorization.is_none() {
            let status = status_of(answer.head.status.as_u16(), None, &answer.body);
            return Err(JoinError::Certificate(status.message));
        }
        self.judged(&path, answer)
    }

    async fn ask(
        &self,
        link: &Link,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, JoinError> {
        let request = request(link.server.endpoint(), method, path, headers, body)?;
        let answer = link.server.ask(request, LIMIT).await;
        answer.map_err(|error| JoinError::of_transport(&error, &self.address.shown))
    }

    fn judged(&self, path: &str, answer: Answer) -> Result<Bytes, JoinError> {
        if answer.head.status.is_success() {
            return Ok(answer.body);
        }
        let wait = answer
            .head
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok());
        let status = status_of(answer.head.status.as_u16(), wait, &answer.body);
        Err(JoinError::of_status(&status, path, self.node))
    }
}

fn request(
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<Request<Full<Bytes>>, JoinError> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, endpoint.authority());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body)).map_err(|error| JoinError::Odd {
        path: path.into(),
        reason: error.to_string(),
    })
}
