//! One HTTP/1.1 connection over TCP and TLS, driven by whoever waits for it.
//!
//! There is no task and no pool in here: a connection is polled while a request or a watch of it is waited for, and an
//! idle one costs a socket and its buffers. Cancelling a request drops the connection with it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper::http::header::DATE;
use hyper::http::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::dial;

/// TCP and TLS handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer taken: a list of a node's pods is far below it.
const MAX_BODY: usize = 32 << 20;
/// Buffer of a connection; hyper's default of 400 kB is for servers.
const BUFFER: usize = 64 << 10;

/// Where to connect to, and as whom.
#[derive(Clone)]
pub struct Endpoint {
    /// Host name or address; resolved on each connect.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `None`: plain HTTP, for tests.
    pub tls: Option<Arc<ClientConfig>>,
}

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nobody listens there, or no way leads there.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// `host:port`.
        to: String,
        /// Why.
        source: io::Error,
    },
    /// The TLS handshake failed: wrong CA, wrong name, certificate refused or out of date.
    #[error("TLS with {to} failed: {source}")]
    Tls {
        /// `host:port`.
        to: String,
        /// Why.
        source: io::Error,
    },
    /// The name cannot stand in a certificate.
    #[error("{0:?} is no server name")]
    Name(String),
    /// It broke while a request was on its way.
    #[error("connection failed: {0}")]
    Http(#[from] hyper::Error),
    /// No answer in time.
    #[error("no answer from {to} within {seconds} s")]
    Timeout {
        /// `host:port`.
        to: String,
        /// The limit.
        seconds: u64,
    },
    /// More than the bound.
    #[error("answer is longer than {MAX_BODY} bytes")]
    TooLong,
}

trait Socket: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Socket for S {}

type Stream = TokioIo<Box<dyn Socket>>;

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Status code and headers.
    pub head: hyper::http::response::Parts,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// When the server sent it, by its clock, in seconds since 1970.
    pub fn date(&self) -> Option<u64> {
        let text = self.head.headers.get(DATE)?.to_str().ok()?;
        let date = httpdate::parse_http_date(text).ok()?;
        date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
    }
}

/// An open connection with at most one request on its way.
pub struct Link {
    sender: SendRequest<Full<Bytes>>,
    connection: Connection<Stream, Full<Bytes>>,
    over: bool,
}

impl Endpoint {
    /// `host:port` for messages and the `Host` header.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn connect(&self) -> Result<Link, TransportError> {
        let opening = async {
            let socket = self.socket().await?;
            let mut builder = http1::Builder::new();
            builder.max_buf_size(BUFFER);
            let (sender, connection) = builder.handshake(TokioIo::new(socket)).await?;
            Ok(Link {
                sender,
                connection,
                over: false,
            })
        };
        let late = |_| TransportError::Timeout {
            to: self.authority(),
            seconds: CONNECT_TIMEOUT.as_secs(),
        };
        timeout(CONNECT_TIMEOUT, opening).await.map_err(late)?
    }

    async fn socket(&self) -> Result<Box<dyn Socket>, TransportError> {
        let to = self.authority();
        let tcp = dial::connect(&to).await;
        let tcp = tcp.map_err(|source| TransportError::Connect { to: to.clone(), source })?;
        let _ = tcp.set_nodelay(true);
        let Some(tls) = &self.tls else { return Ok(Box::new(tcp)) };
        let name = ServerName::try_from(self.host.clone()).map_err(|_| TransportError::Name(self.host.clone()))?;
        let tls = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await;
        tls.map(|tls| Box::new(tls) as Box<dyn Socket>)
            .map_err(|source| TransportError::Tls { to, source })
    }

    /// Opens a connection, asks once and closes it.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn ask(&self, request: Request<Full<Bytes>>, limit: Duration) -> Result<Answer, TransportError> {
        let asking = async {
            self.connect()
                .await?
                .ask(request)
                .await
                .map_err(|failure| failure.error)
        };
        let late = |_| TransportError::Timeout {
            to: self.authority(),
            seconds: limit.as_secs(),
        };
        timeout(limit, asking).await.map_err(late)?
    }

    /// The address if the host is one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.host.parse().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

/// An endpoint that is asked several things in a row, on one connection as long as the other side keeps it: a handshake costs
/// both ends more than what is asked in a join.
pub struct Kept {
    endpoint: Endpoint,
    link: Mutex<Option<Link>>,
}

impl Kept {
    /// Nothing is connected yet.
    pub const fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            link: Mutex::new(None),
        }
    }

    /// Where it leads.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Asks what may be asked twice: when the kept connection breaks, it is asked again on a new one, once.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn ask(&self, request: Request<Full<Bytes>>, limit: Duration) -> Result<Answer, TransportError> {
        let asking = async {
            if let Some(mut link) = self.take()
                && let Ok(answer) = link.ask(request.clone()).await
            {
                self.keep(link);
                return Ok(answer);
            }
            let mut link = self.endpoint.connect().await?;
            let answer = link.ask(request).await.map_err(|failure| failure.error)?;
            self.keep(link);
            Ok(answer)
        };
        let late = |_| TransportError::Timeout {
            to: self.endpoint.authority(),
            seconds: limit.as_secs(),
        };
        timeout(limit, asking).await.map_err(late)?
    }

    fn take(&self) -> Option<Link> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner).take();
        link.and_then(|mut link| link.is_usable().then_some(link))
    }

    fn keep(&self, link: Link) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
    }
}

/// A request that failed.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub error: TransportError,
    /// The request, when not a byte of it was sent: it may go out again on another connection.
    pub unsent: Option<Request<Full<Bytes>>>,
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        Self { error, unsent: None }
    }
}

impl Link {
    /// Whether another request can go out; notices that the other side has closed it in the meantime.
    pub fn is_usable(&mut self) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        if !self.over {
            self.over = Pin::new(&mut self.connection).poll(&mut context).is_ready();
        }
        !self.over && self.sender.is_ready()
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let (head, mut body) = self.send(request).await?.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk(&mut body).await? {
            if bytes.len() + chunk.len() > MAX_BODY {
                return Err(TransportError::TooLong.into());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Answer {
            head,
            body: bytes.freeze(),
        })
    }

    /// Sends a request; the body of the answer is then read with [`Link::chunk`].
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        let mut answer = std::pin::pin!(self.sender.try_send_request(request));
        let (connection, over) = (&mut self.connection, &mut self.over);
        let result = poll_fn(|context| {
            drive(connection, over, context);
            answer.as_mut().poll(context)
        });
        result.await.map_err(|mut failed| {
            let unsent = failed.take_message();
            Failure {
                error: TransportError::Http(failed.into_error()),
                unsent,
            }
        })
    }

    /// The next piece of a body; `None` at its end.
    ///
    /// # Errors
    /// [`TransportError::Http`].
    pub async fn chunk(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, TransportError> {
        let (connection, over) = (&mut self.connection, &mut self.over);
        poll_fn(|context| {
            drive(connection, over, context);
            loop {
                return match Pin::new(&mut *body).poll_frame(context) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => Poll::Ready(Ok(Some(data))),
                        Err(_trailers) => continue,
                    },
                    Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error.into())),
                    Poll::Ready(None) => Poll::Ready(Ok(None)),
                    Poll::Pending => Poll::Pending,
                };
            }
        })
        .await
    }
}

/// Moves bytes. How the connection ended shows in the request or the body.
fn drive(connection: &mut Connection<Stream, Full<Bytes>>, over: &mut bool, context: &mut Context<'_>) {
    if !*over {
        *over = Pin::new(connection).poll(context).is_ready();
    }
}
