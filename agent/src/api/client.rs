//! The client: verbs, answers, watches. Keeps one idle connection; a watch has its own.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT, WARNING};
use hyper::http::{Method, Request, StatusCode};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

use super::refused::is_refusal;
use super::request::{PatchType, is_stale, status_of};
use super::transport::{Answer, Endpoint, Link, TransportError};
use super::watch::{Lines, WatchEvent};
use crate::wire::status::{STALE, Status};

/// One request, connecting included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A watch that says nothing for this long is taken for dead: servers send a bookmark each minute to those who ask.
const WATCH_SILENCE: Duration = Duration::from_secs(330);
/// Requests at once; each beyond the first opens a connection for its time.
const PARALLEL: usize = 4;

/// Why a call failed. Whether to retry is the caller's decision.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    /// The server answered, and the answer is no.
    #[error("{0}")]
    Status(Status),
    /// No (usable) answer came: the servers may be away.
    #[error("{0}")]
    Transport(String),
}

impl ApiError {
    /// The status of the server's answer, if there was one.
    pub const fn status(&self) -> Option<&Status> {
        match self {
            Self::Status(status) => Some(status),
            Self::Transport(_) => None,
        }
    }
}

impl From<TransportError> for ApiError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error.to_string())
    }
}

/// The Kubernetes API through the local load balancer. Clones share connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    endpoint: Mutex<Endpoint>,
    authority: String,
    authorization: Option<String>,
    idle: Mutex<VecDeque<Link>>,
    /// What time it was by the server that answered last; 0: none did yet.
    date: AtomicU64,
    refusals: watch::Sender<()>,
    /// The supervisor's, where that has a port of its own.
    supervisor: Option<Client>,
    /// The last request had no answer.
    unheard: AtomicBool,
    returns: watch::Sender<()>,
    permits: tokio::sync::Semaphore,
}

impl Client {
    /// A client of this endpoint; nothing is connected yet.
    pub fn new(endpoint: Endpoint) -> Self {
        Self::with_authorization(endpoint, None)
    }

    /// As [`Client::new`], sending this `Authorization` header with every request.
    pub fn with_authorization(endpoint: Endpoint, authorization: Option<String>) -> Self {
        Self::over(endpoint, authorization, watch::Sender::new(()), None)
    }

    /// A client of the API at another `host` and `port` than its supervisor: TLS that it is given is given to both, and a
    /// refusal of either is one of this one.
    pub fn of_api(supervisor: Self, host: String, port: u16) -> Self {
        let tls = supervisor.endpoint().tls;
        let refusals = supervisor.0.refusals.clone();
        Self::over(Endpoint { host, port, tls }, None, refusals, Some(supervisor))
    }

    fn over(
        endpoint: Endpoint,
        authorization: Option<String>,
        refusals: watch::Sender<()>,
        supervisor: Option<Self>,
    ) -> Self {
        let permits = tokio::sync::Semaphore::new(PARALLEL);
        let authority = endpoint.authority();
        let endpoint = Mutex::new(endpoint);
        Self(Arc::new(Inner {
            endpoint,
            authority,
            authorization,
            idle: Mutex::default(),
            date: AtomicU64::new(0),
            refusals,
            supervisor,
            unheard: AtomicBool::new(false),
            returns: watch::Sender::new(()),
            permits,
        }))
    }

    /// Takes a renewed certificate; connections made before keep theirs until they end.
    pub fn replace_tls(&self, tls: Arc<ClientConfig>) {
        if let Some(supervisor) = &self.0.supervisor {
            supervisor.replace_tls(Arc::clone(&tls));
        }
        self.0.endpoint.lock().unwrap_or_else(PoisonError::into_inner).tls = Some(tls);
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Who asks the supervisor: this one, unless that has a port of its own.
    pub fn supervisor(&self) -> Self {
        self.0.supervisor.as_ref().unwrap_or(self).clone()
    }

    /// What time it was when a server last answered, by its clock, in seconds since 1970.
    pub fn server_date(&self) -> Option<u64> {
        Some(self.0.date.load(Ordering::Relaxed)).filter(|date| *date > 0)
    }

    /// Notices of servers that refuse this client's certificate.
    pub fn refusals(&self) -> watch::Receiver<()> {
        self.0.refusals.subscribe()
    }

    /// Notices of a server that answers, after a request that none has answered.
    pub fn returns(&self) -> watch::Receiver<()> {
        self.0.returns.subscribe()
    }

    /// Where it connects to.
    pub fn endpoint(&self) -> Endpoint {
        self.0.endpoint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads an object or a list. `path` begins with `/` and may hold a query.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.call(Method::GET, path, None).await
    }

    /// Reads as [`Client::get`], and fails where the server warns that this may be the past: for those who act on what is
    /// *not* there any more.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn get_present(&self, path: &str) -> Result<Value, ApiError> {
        let answer = self.exchange(Method::GET, path, None).await?;
        match stale(&answer) {
            true => Err(self.behind()),
            false => json(&answer),
        }
    }

    /// Reads something that need not be JSON.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes, ApiError> {
        Ok(self.exchange(Method::GET, path, None).await?.body)
    }

    /// Creates an object; `path` is that of the collection.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        self.call(Method::POST, path, Some(("application/json", object))).await
    }

    /// Replaces an object.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn update(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        self.call(Method::PUT, path, Some(("application/json", object))).await
    }

    /// Changes parts of an object.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn patch(&self, path: &str, kind: PatchType, patch: &Value) -> Result<Value, ApiError> {
        self.call(Method::PATCH, path, Some((kind.content_type(), patch))).await
    }

    /// Deletes an object; `options` is a `DeleteOptions`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn delete(&self, path: &str, options: Option<&Value>) -> Result<Value, ApiError> {
        self.call(
            Method::DELETE,
            path,
            options.map(|options| ("application/json", options)),
        )
        .await
    }

    /// Watches; `path` holds the query, such as `/api/v1/pods?watch=1&resourceVersion=5&allowWatchBookmarks=true`.
    ///
    /// # Errors
    /// [`ApiError`]; 410 `Expired` asks for a new list.
    pub async fn watch(&self, path: &str) -> Result<WatchStream, ApiError> {
        let endpoint = self.endpoint();
        let opening = async {
            let mut link = endpoint.connect().await.map_err(|error| self.failed(error))?;
            let request = self.request(Method::GET, path, None)?;
            let answer = link.send(request).await.map_err(|failure| self.failed(failure.error))?;
            self.note_answer();
            let (head, mut body) = answer.into_parts();
            if head.status.is_success() {
                return Ok(WatchStream {
                    link,
                    body,
                    lines: Lines::default(),
                    over: false,
                });
            }
            let mut text = Vec::new();
            while let Some(chunk) = link.chunk(&mut body).await?
                && text.len() < (64 << 10)
            {
                text.extend_from_slice(&chunk);
            }
            Err(self.refusal(&head, &text))
        };
        timeout(REQUEST_TIMEOUT, opening).await.map_err(|_| self.late())?
    }

    async fn call(&self, method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<Value, ApiError> {
        json(&self.exchange(method, path, body).await?)
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<Answer, ApiError> {
        let request = self.request(method, path, body)?;
        let asking = async {
            let _permit = self
                .0
                .permits
                .acquire()
                .await
                .map_err(|error| ApiError::Transport(error.to_string()))?;
            self.ask(request).await
        };
        let answer = timeout(REQUEST_TIMEOUT, asking).await.map_err(|_| self.late())??;
        self.note_answer();
        if let Some(date) = answer.date() {
            self.0.date.store(date, Ordering::Relaxed);
        }
        match answer.head.status.is_success() {
            true => Ok(answer),
            // That there is no such object, or another one, may be long past.
            false if stale(&answer) => Err(self.behind()),
            false => Err(self.refusal(&answer.head, &answer.body)),
        }
    }

    /// On the idle connection if it still stands, else on a new one.
    async fn ask(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, ApiError> {
        if let Some(mut link) = self.idle_link() {
            // A read can be repeated even if it was sent: the server may have closed the connection just then.
            let again = (request.method() == Method::GET).then(|| request.clone());
            match link.ask(request).await {
                Ok(answer) => {
                    self.keep(link);
                    return Ok(answer);
                }
                Err(failure) => match failure.unsent.or(again) {
                    Some(unsent) => request = unsent,
                    None => return Err(self.failed(failure.error)),
                },
            }
        }
        let link = self.endpoint().connect().await;
        let mut link = link.map_err(|error| self.failed(error))?;
        let answer = link.ask(request).await.map_err(|failure| self.failed(failure.error))?;
        self.keep(link);
        Ok(answer)
    }

    fn idle_link(&self) -> Option<Link> {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(mut link) = idle.pop_back() {
            if link.is_usable() {
                return Some(link);
            }
        }
        None
    }

    fn keep(&self, mut link: Link) {
        if !link.is_usable() {
            return;
        }
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.clear();
        idle.push_back(link);
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Request<Full<Bytes>>, ApiError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.0.authority)
            .header(
                USER_AGENT,
                concat!("k3s-agent/", env!("CARGO_PKG_VERSION"), " (amphipod)"),
            )
            .header(ACCEPT, "application/json");
        if let Some(authorization) = &self.0.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let bytes = match body {
            Some((content_type, value)) => {
                request = request.header(CONTENT_TYPE, content_type);
                Bytes::from(value.to_string())
            }
            None => Bytes::new(),
        };
        request
            .body(Full::new(bytes))
            .map_err(|error| ApiError::Transport(format!("request {path:?}: {error}")))
    }

    /// A server has refused this client's certificate; whoever waits for [`Client::refusals`] is told.
    pub fn note_refusal(&self) {
        self.0.refusals.send_replace(());
    }

    fn note_answer(&self) {
        if self.0.unheard.swap(false, Ordering::Relaxed) {
            self.0.returns.send_replace(());
        }
    }

    fn failed(&self, error: TransportError) -> ApiError {
        self.0.unheard.store(true, Ordering::Relaxed);
        if is_refusal(&error) {
            self.note_refusal();
        }
        error.into()
    }

    /// Servers that judge certificates only when a request comes (K3s') answer 401, whatever is wrong with one.
    fn refusal(&self, head: &hyper::http::response::Parts, body: &[u8]) -> ApiError {
        if head.status == StatusCode::UNAUTHORIZED && self.0.authorization.is_none() {
            self.note_refusal();
        }
        let wait = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        ApiError::Status(status_of(head.status.as_u16(), wait, body))
    }

    /// The next request goes to the server that is best by then.
    fn behind(&self) -> ApiError {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        ApiError::Transport(format!("the server warns: {STALE}"))
    }

    fn late(&self) -> ApiError {
        self.0.unheard.store(true, Ordering::Relaxed);
        let to = self.0.authority.clone();
        TransportError::Timeout {
            to,
            seconds: REQUEST_TIMEOUT.as_secs(),
        }
        .into()
    }
}

fn stale(answer: &Answer) -> bool {
    is_stale(
        answer
            .head
            .headers
            .get_all(WARNING)
            .iter()
            .map(|value| value.as_bytes()),
    )
}

fn json(answer: &Answer) -> Result<Value, ApiError> {
    serde_json::from_slice(&answer.body).map_err(|error| ApiError::Transport(format!("answer is no JSON: {error}")))
}

/// Events of one watch, in order. Dropping it ends the watch.
pub struct WatchStream {
    link: Link,
    body: Incoming,
    lines: Lines,
    over: bool,
}

impl WatchStream {
    /// The next event; `None` once the server has ended the watch. After an error or `None` there is nothing more:
    /// watch again from the last `resourceVersion` seen. Cancelling loses no event.
    pub async fn next(&mut self) -> Option<Result<WatchEvent, ApiError>> {
        while !self.over {
            match self.lines.next() {
                Ok(Some(event)) => return Some(Ok(event)),
                Ok(None) => {}
                Err(error) => {
                    self.over = true;
                    return Some(Err(ApiError::Transport(error.to_string())));
                }
            }
            match timeout(WATCH_SILENCE, self.link.chunk(&mut self.body)).await {
                Ok(Ok(Some(bytes))) => self.lines.push(&bytes),
                Ok(Ok(None)) => self.over = true,
                Ok(Err(error)) => {
                    self.over = true;
                    return Some(Err(error.into()));
                }
                Err(_) => {
                    self.over = true;
                    return Some(Err(ApiError::Transport("watch has gone silent".into())));
                }
            }
        }
        None
    }
}
