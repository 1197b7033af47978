//! Questions to the supervisor: the few requests of a join, each on its own connection.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::http::header::{AUTHORIZATION, HOST, RETRY_AFTER};
use hyper::http::{Method, Request, StatusCode};
use rustls::ClientConfig;

use super::clock::Clock;
use super::error::JoinError;
use super::files::Certificate;
use super::identity::Identity;
use super::trust;
use crate::api::Endpoint;
use crate::api::request::status_of;
use crate::wire::join::{CACERTS, NODE_IP, NODE_NAME, NODE_PASSWORD, PREFIX, ca_hash};

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

/// The supervisor, trusted and with a credential.
pub struct Supervisor<'a> {
    endpoint: Endpoint,
    shown: String,
    authorization: Option<String>,
    identity: &'a Identity,
    clock: &'a Clock,
}

/// Fetches the CA bundle, judges it by the token's hash, and sees that the server has a certificate of it.
///
/// # Errors
/// [`JoinError`].
pub async fn fetch_ca(address: &Address, expected: Option<&str>, clock: &Arc<Clock>) -> Result<Bytes, JoinError> {
    let ca = get_ca(address, trust::anyone()?).await?;
    let served = ca_hash(&ca);
    if let Some(expected) = expected
        && expected != served
    {
        return Err(JoinError::CaHash {
            expected: expected.into(),
            served,
        });
    }
    get_ca(address, trust::bundle(&ca, None, clock)?).await?;
    Ok(ca)
}

/// Sees that the server is of the cluster that this machine knows, by the CA bundle `kept` (PEM) of an earlier join in the
/// file `path`.
///
/// # Errors
/// [`JoinError::OtherCa`] when the server's CA is another one.
pub async fn recognize(address: &Address, kept: &[u8], path: &Path, clock: &Arc<Clock>) -> Result<(), JoinError> {
    let Err(refused) = get_ca(address, trust::bundle(kept, None, clock)?).await else {
        return Ok(());
    };
    if !matches!(refused, JoinError::Untrusted { .. }) {
        return Err(refused);
    }
    let (kept, served) = (ca_hash(kept), ca_hash(&get_ca(address, trust::anyone()?).await?));
    match kept == served {
        true => Err(refused),
        false => Err(JoinError::OtherCa {
            kept,
            served,
            path: path.to_owned(),
        }),
    }
}

async fn get_ca(address: &Address, tls: Arc<ClientConfig>) -> Result<Bytes, JoinError> {
    let endpoint = address.endpoint(tls);
    let request = request(&endpoint, Method::GET, CACERTS, &[], Bytes::new())?;
    let answer = endpoint.ask(request, LIMIT).await;
    let answer = answer.map_err(|error| JoinError::of_transport(&error, &address.shown))?;
    match answer.head.status {
        StatusCode::OK => Ok(answer.body),
        code => Err(JoinError::of_status(
            &status_of(code.as_u16(), None, &answer.body),
            CACERTS,
            "",
        )),
    }
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

impl<'a> Supervisor<'a> {
    /// `authorization`: the header made of the token; `None` leaves it to the client certificate in `tls`.
    pub fn new(
        address: &Address,
        tls: Arc<ClientConfig>,
        authorization: Option<String>,
        identity: &'a Identity,
        clock: &'a Clock,
    ) -> Self {
        Self {
            endpoint: address.endpoint(tls),
            shown: address.shown.clone(),
            authorization,
            identity,
            clock,
        }
    }

    /// Reads a route such as `config`.
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn get(&self, route: &str) -> Result<Bytes, JoinError> {
        self.ask(Method::GET, route, &[], Bytes::new()).await
    }

    /// Has a certificate request (DER) signed; answers PEM. `ips` are told for the kubelet's certificates.
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn sign(&self, which: Certificate, request: Vec<u8>, ips: &str) -> Result<Bytes, JoinError> {
        let route = format!("{}.crt", which.stem());
        let (name, password) = (self.identity.node_name.as_str(), self.identity.password.expose());
        let headers: &[(&str, &str)] = match which {
            Certificate::ServingKubelet | Certificate::ClientKubelet => {
                &[(NODE_NAME, name), (NODE_PASSWORD, password), (NODE_IP, ips)]
            }
            Certificate::ClientKubeProxy | Certificate::ClientK3sController => &[],
        };
        self.ask(Method::POST, &route, headers, request.into()).await
    }

    async fn ask(
        &self,
        method: Method,
        route: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Bytes, JoinError> {
        let path = format!("{PREFIX}/{route}");
        let authorization = self
            .authorization
            .as_deref()
            .map(|value| (AUTHORIZATION.as_str(), value));
        let headers: Vec<_> = headers.iter().copied().chain(authorization).collect();
        let request = request(&self.endpoint, method, &path, &headers, body)?;
        let answer = self.endpoint.ask(request, LIMIT).await;
        let answer = answer.map_err(|error| JoinError::of_transport(&error, &self.shown))?;
        if answer.head.status.is_success() {
            self.clock.told(answer.date().unwrap_or(0));
            return Ok(answer.body);
        }
        let wait = answer
            .head
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok());
        let status = status_of(answer.head.status.as_u16(), wait, &answer.body);
        Err(JoinError::of_status(&status, &path, &self.identity.node_name))
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
