//! One HTTP/2 connection to a member of etcd: calls with one answer, and streams.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::endpoints::Endpoint;
use super::grpc::{Frames, Status};

/// A peer that does not answer a ping is gone. etcd takes pings no closer than 5 s (`--grpc-keepalive-min-time`).
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_PATIENCE: Duration = Duration::from_secs(5);
/// What may be on its way before it is read: a watch must not fill up behind a long list.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Why a call has no good answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// It was not sent.
    #[error("{0}")]
    Unsent(String),
    /// It was not sent and never will be.
    #[error("the store is closed")]
    Closed,
    /// It was sent, and the connection broke or the time was up before the answer: nobody knows.
    #[error("{0}")]
    Broken(String),
    /// etcd said so.
    #[error("{}", _0.message)]
    Said(Status),
}

/// What a request has for a body: one message, or those that come.
pub enum Messages {
    /// One.
    One(Option<Bytes>),
    /// A stream's.
    Many(mpsc::Receiver<Bytes>),
}

impl Body for Messages {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let message = match &mut *self {
            Self::One(message) => Poll::Ready(message.take()),
            Self::Many(messages) => messages.poll_recv(cx),
        };
        message.map(|message| message.map(|message| Ok(Frame::data(message))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::One(None))
    }
}

/// The tasks of a connection; they end with it.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

/// Ends the tasks. Dropping the set would not do: its tasks hold it, too.
struct EndsTasks(Tasks);

impl Drop for EndsTasks {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A connection that can be asked. Clones share it.
#[derive(Clone)]
pub struct Link {
    sender: SendRequest<Messages>,
    /// `http://host:port`.
    base: Arc<str>,
    token: Option<HeaderValue>,
}

/// Opens a connection. What is returned beside it must be polled for as long as it is to live.
///
/// # Errors
/// What failed, for people.
pub async fn dial(
    endpoint: &Endpoint,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<(Link, impl Future<Output = ()> + Send + use<>), String> {
    let socket = connect(endpoint, tls)
        .await
        .map_err(|error| format!("cannot connect to {endpoint}: {error}"))?;
    let tasks = Tasks::default();
    let ends = EndsTasks(tasks.clone());
    let mut builder = http2::Builder::new(tasks);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let handshake = builder.handshake(TokioIo::new(socket)).await;
    let (sender, connection) = handshake.map_err(|error| format!("no HTTP/2 with {endpoint}: {}", chain(&error)))?;
    let link = Link {
        sender,
        base: endpoint.to_string().into(),
        token: None,
    };
    let connection = async move {
        // Why it ended is told to whoever waits for an answer.
        let _ = connection.await;
        drop(ends);
    };
    Ok((link, connection))
}

async fn connect(endpoint: &Endpoint, tls: Option<&Arc<ClientConfig>>) -> io::Result<Box<dyn Socket>> {
    let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    tcp.set_nodelay(true)?;
    if !endpoint.tls {
        return Ok(Box::new(tcp));
    }
    let config = tls.ok_or_else(|| io::Error::other("https needs a CA to check etcd's certificate with"))?;
    let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
    let tls = TlsConnector::from(Arc::clone(config)).connect(name, tcp).await?;
    Ok(Box::new(tls))
}

impl Link {
    /// The same connection with a token in each call.
    pub fn with_token(self, token: &str) -> Self {
        let token = HeaderValue::from_str(token).ok().map(|mut token| {
            token.set_sensitive(true);
            token
        });
        Self { token, ..self }
    }

    /// A call with one answer. `patience`: told to etcd, which gives up by then; the caller must, too.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn call(&self, method: &str, message: Bytes, patience: Duration) -> Result<Bytes, Failure> {
        let mut answers = self.send(method, Messages::One(Some(message)), Some(patience)).await?;
        let answer = answers.next().await?;
        let rest = answers.next().await?;
        match (answer, rest) {
            (Some(answer), None) => Ok(answer),
            (None, _) | (_, Some(_)) => Err(Failure::Broken(format!("{method} was not answered with one message"))),
        }
    }

    /// Opens a stream with a first message. It is open to both sides until either end is dropped.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn stream(&self, method: &str, first: Bytes) -> Result<(mpsc::Sender<Bytes>, Answers), Failure> {
        let (sender, messages) = mpsc::channel(1);
        // The channel is empty: there is room.
        let _ = sender.try_send(first);
        let answers = self.send(method, Messages::Many(messages), None).await?;
        Ok((sender, answers))
    }

    async fn send(&self, method: &str, body: Messages, patience: Option<Duration>) -> Result<Answers, Failure> {
        let mut sender = self.sender.clone();
        let unsent = |error: hyper::Error| Failure::Unsent(format!("{}: {}", self.base, chain(&error)));
        sender.ready().await.map_err(unsent)?;
        let request = self.request(method, body, patience)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(&error))?;
        let (head, body) = response.into_parts();
        if head.status != hyper::StatusCode::OK {
            return Err(Failure::Broken(format!(
                "{} answered {method} with {}",
                self.base, head.status
            )));
        }
        // An answer without a body has its status among the headers.
        if let Some(status) = Status::of(&head.headers)
            && !status.is_ok()
        {
            return Err(Failure::Said(status));
        }
        Ok(Answers {
            body,
            frames: Frames::default(),
            base: Arc::clone(&self.base),
        })
    }

    fn request(&self, method: &str, body: Messages, patience: Option<Duration>) -> Result<Request<Messages>, Failure> {
        let mut request = Request::post(format!("{}/etcdserverpb.{method}", self.base))
            .body(body)
            .map_err(|error| Failure::Unsent(error.to_string()))?;
        let headers: &mut HeaderMap = request.headers_mut();
        let mut set = |name, value| headers.insert(HeaderName::from_static(name), value);
        set("content-type", HeaderValue::from_static("application/grpc"));
        set("te", HeaderValue::from_static("trailers"));
        // A member that has no leader says so at once, and ends its watches: another one may have.
        set("hasleader", HeaderValue::from_static("true"));
        if let Some(patience) = patience
            && let Ok(value) = HeaderValue::from_str(&format!("{}m", patience.as_millis().clamp(1, 99_999_999)))
        {
            set("grpc-timeout", value);
        }
        if let Some(token) = &self.token {
            set("token", token.clone());
        }
        Ok(request)
    }

    fn broken(&self, error: &hyper::Error) -> Failure {
        Failure::Broken(format!("{}: {}", self.base, chain(error)))
    }
}

/// What comes back on a call.
pub struct Answers {
    body: Incoming,
    frames: Frames,
    base: Arc<str>,
}

impl Answers {
    /// The next message; `None` when the call ended well. Can be dropped and called again without losing one.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(message) = self.ready()? {
                return Ok(Some(message));
            }
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            let broken = |why: &str| Failure::Broken(format!("{}: {why}", self.base));
            let frame = frame.ok_or_else(|| broken("ended without a status"))?;
            match frame.map_err(|error| broken(&chain(&error)))?.into_data() {
                Ok(data) => self.frames.push(&data),
                Err(trailers) => {
                    let trailers = trailers.into_trailers().unwrap_or_default();
                    let status = Status::of(&trailers).ok_or_else(|| broken("ended without a status"))?;
                    return if status.is_ok() {
                        Ok(None)
                    } else {
                        Err(Failure::Said(status))
                    };
                }
            }
        }
    }

    /// The next message if it is here already.
    ///
    /// # Errors
    /// [`Failure::Broken`]: what came is no gRPC.
    pub fn ready(&mut self) -> Result<Option<Bytes>, Failure> {
        let next = self.frames.next();
        next.map_err(|error| Failure::Broken(format!("{}: {error}", self.base)))
    }
}

/// An error and what caused it: hyper's own text says only that something did.
fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
