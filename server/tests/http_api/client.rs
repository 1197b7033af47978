//! A small HTTP client over TLS, as one user.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::rig::Rig;

/// One user's client.
pub struct User<'r> {
    rig: &'r Rig,
    tls: Arc<ClientConfig>,
    pub headers: Vec<(String, String)>,
    pub second_version: bool,
}

/// An answer, read to its end.
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Code and message of a `Status`, with its reason and kind checked.
    pub fn refusal(&self) -> (u16, String, String) {
        let status = self.json();
        assert_eq!(status["kind"], "Status", "{status}");
        assert_eq!(status["code"], self.code, "{status}");
        let part = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
        (self.code, part("reason"), part("message"))
    }
}

impl Rig {
    /// A user with a client certificate, or nobody.
    pub fn user(&self, certificate: Option<(String, String)>) -> User<'_> {
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(self.pki.server_ca_pem().as_bytes()) {
            roots.add(der.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let tls = match certificate {
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
                    .map(Result::unwrap)
                    .collect();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        User {
            rig: self,
            tls: Arc::new(tls),
            headers: Vec::new(),
            second_version: false,
        }
    }

    /// The administrator.
    pub fn administrator(&self) -> User<'_> {
        self.user(Some(self.admin()))
    }

    /// Somebody by name.
    pub fn named(&self, name: &str, groups: &[&str]) -> User<'_> {
        self.user(Some(self.certificate(name, groups)))
    }

    /// The bearer of a token.
    pub fn bearer(&self, token: &str) -> User<'_> {
        let mut user = self.user(None);
        user.headers
            .push(("authorization".to_owned(), format!("Bearer {token}")));
        user
    }
}

impl User<'_> {
    /// A connection that no request has been sent on.
    pub async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.rig.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut config = (*self.tls).clone();
        config.alpn_protocols = vec![if self.second_version {
            b"h2".to_vec()
        } else {
            b"http/1.1".to_vec()
        }];
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.unwrap()
    }

    /// Sends one request on a connection of its own; the connection lives in `tasks`.
    pub async fn send(
        &self,
        tasks: &mut JoinSet<()>,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let tls = self.connect().await;
        let mut request = Request::builder().method(method).header("host", "localhost");
        request = match self.second_version {
            true => request.uri(format!("https://localhost{path}")),
            false => request.uri(path),
        };
        let mut request = request.body(Full::new(body.into())).unwrap();
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in own.chain(headers.iter().copied()) {
            let name: HeaderName = name.parse().unwrap();
            request
                .headers_mut()
                .append(name, HeaderValue::from_str(value).unwrap());
        }
        if self.second_version {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
            tasks.spawn(async move { connection.await.unwrap_or_default() });
            return sender.send_request(request).await.unwrap();
        }
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await.unwrap();
        tasks.spawn(async move { connection.with_upgrades().await.unwrap_or_default() });
        sender.send_request(request).await.unwrap()
    }

    /// Sends one request and reads all of its answer.
    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut tasks = JoinSet::new();
        let response = self.send(&mut tasks, method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, &[("content-type", "application/json")], body.to_string())
            .await
    }
}
