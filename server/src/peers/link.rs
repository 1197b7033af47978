//! A byte stream to another server: TLS with this server's own certificate, and a request that the other one answers
//! with 101.
//!
//! Who is asked shows a serving certificate of the cluster for the address that he announced, and lets in nobody but the
//! supervisor of a server (`join/supervisor.rs`). No credential of a client goes along.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use agent::dial;
use agent::wire::object::text;

/// What the stream is called in `Upgrade`.
pub const PROTOCOL: &str = "amphipod-bytes";

/// A server that lives answers in a round trip or three.
const PATIENCE: Duration = Duration::from_secs(4);
/// Of a refusal so much is read.
const REFUSAL: usize = 4096;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It takes no connection, or is not of this cluster.
    #[error("{0}")]
    Connection(#[from] io::Error),
    /// It does not speak as expected.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// For people.
        message: String,
    },
    /// It said nothing.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Silent,
}

/// Connects to other servers as this one.
#[derive(Clone)]
pub struct Link(TlsConnector);

impl Link {
    /// `tls`: shows the supervisor's certificate, trusts the cluster's serving certificates.
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self(tls.into())
    }

    /// Asks the server at `to` for the stream at `uri` (path and query).
    ///
    /// # Errors
    /// [`LinkError`]; within [`PATIENCE`].
    pub async fn open(&self, to: SocketAddr, uri: &str) -> Result<TokioIo<Upgraded>, LinkError> {
        timeout(PATIENCE, self.ask(to, uri))
            .await
            .map_err(|_| LinkError::Silent)?
    }

    async fn ask(&self, to: SocketAddr, uri: &str) -> Result<TokioIo<Upgraded>, LinkError> {
        let tcp = TcpStream::connect(to).await?;
        // Keystrokes of a terminal, and revisions, must not wait for each other.
        let _ = tcp.set_nodelay(true);
        // A log that is followed through a server whose machine is gone has to end.
        let _ = dial::probe(&tcp);
        let tls = self.0.connect(ServerName::IpAddress(to.ip().into()), tcp).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        let request = Request::get(uri)
            .header(HOST, to.to_string())
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, PROTOCOL)
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let exchange = async move {
            let answer = sender.send_request(request).await?;
            match answer.status() {
                StatusCode::SWITCHING_PROTOCOLS => Ok(TokioIo::new(hyper::upgrade::on(answer).await?)),
                _ => Err(refusal(answer).await),
            }
        };
        // The connection ends with the upgrade, or once the exchange has let go of it.
        let (stream, _) = tokio::join!(exchange, connection.with_upgrades());
        stream
    }
}

async fn refusal(answer: Response<hyper::body::Incoming>) -> LinkError {
    let code = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), REFUSAL).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = match text(&status, &["message"]) {
        "" => format!("it answers {code}"),
        message => message.to_owned(),
    };
    LinkError::Refused { code, message }
}
