//! Calls to whichever member serves: one task keeps a connection open, all others wait for it and use it.
//!
//! What can be asked twice without harm is asked until its time is up. What cannot is tried once, and says whether it
//! may have been carried out; the rest is for who knows what it was ([`super::write`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent::config::Secret;
use prost::Message;
use rustls::ClientConfig;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{timeout, timeout_at};
use tracing::{info, warn};

use super::endpoints::{Choice, Endpoints};
use super::grpc::{Meaning, frame};
use super::link::{Answers, Failure, Link, dial};
use super::message::{AuthenticateRequest, AuthenticateResponse, Headed};

/// TCP, TLS, HTTP/2 and login together.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// A member that does not answer within this is not asked again first. Longer than an election (1 s by default).
const ANSWER_PATIENCE: Duration = Duration::from_secs(4);
/// Between two attempts at the same thing.
const PAUSE: Duration = Duration::from_millis(50);
/// Calls on their way at once; more wait. etcd takes any number, but each holds its message in memory on both sides.
const IN_FLIGHT: usize = 1024;

/// Where, as whom, and whom to trust.
pub struct Settings {
    /// The members, and the user.
    pub endpoints: Endpoints,
    /// For `https`: the CA, and a certificate of our own if the members ask for one.
    pub tls: Option<Arc<ClientConfig>>,
    /// How often history older than that is forgotten.
    pub compaction: Duration,
}

/// The connection in use.
#[derive(Clone)]
struct Current {
    link: Link,
    /// Grows with each connection, and with each login.
    number: u64,
}

/// What the keeper knows.
#[derive(Clone)]
enum State {
    /// Ask here.
    Open(Current),
    /// Not now; why.
    Away(Arc<str>),
}

/// What a caller found out about a connection.
enum Fault {
    /// The connection is of no use.
    Silent(u64),
    /// The member cannot serve now; another may.
    Elsewhere(u64),
    /// The token is no longer good.
    Token(u64),
}

/// Asks etcd.
pub struct Client {
    state: watch::Receiver<State>,
    faults: mpsc::Sender<Fault>,
    in_flight: Semaphore,
    /// The newest revision any answer told.
    newest: AtomicU64,
}

/// Keeps a connection open; see [`Keeper::run`].
pub struct Keeper {
    settings: Settings,
    state: watch::Sender<State>,
    faults: mpsc::Receiver<Fault>,
}

/// A client, and what must run for it to work.
pub fn new(settings: Settings) -> (Client, Keeper) {
    let (sender, state) = watch::channel(State::Away("not connected yet".into()));
    // One that does not fit is a repetition of those that wait.
    let (faults, found) = mpsc::channel(16);
    let client = Client {
        state,
        faults,
        in_flight: Semaphore::new(IN_FLIGHT),
        newest: AtomicU64::new(0),
    };
    let keeper = Keeper {
        settings,
        state: sender,
        faults: found,
    };
    (client, keeper)
}

impl Client {
    /// The newest revision that was seen. Every write that is sent after this is later.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    /// Asks once, and not at all if it is too late.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn try_call<A: Headed>(
        &self,
        method: &str,
        request: &impl Message,
        until: Instant,
    ) -> Result<A, Failure> {
        let current = self.open(until).await?;
        let late = || Failure::Unsent("too many requests wait for etcd".to_owned());
        let permit = timeout_at(until.into(), self.in_flight.acquire()).await;
        let _permit = permit.ok().and_then(Result::ok).ok_or_else(late)?;
        let patience = until.saturating_duration_since(Instant::now()).min(ANSWER_PATIENCE);
        if patience.is_zero() {
            // Sent, it would be given up at once, and nobody would know what became of it.
            return Err(Failure::Unsent(format!("{method}: it is too late to ask")));
        }
        let call = current.link.call(method, frame(request), patience);
        let Ok(answer) = timeout(patience, call).await else {
            if patience == ANSWER_PATIENCE {
                self.tell(Fault::Silent(current.number));
            }
            let late = format!("{method}: no answer within {} ms", patience.as_millis());
            return Err(Failure::Broken(late));
        };
        let answer = answer.and_then(|answer| {
            A::decode(answer).map_err(|error| Failure::Broken(format!("{method}: the answer cannot be read: {error}")))
        });
        match &answer {
            Ok(answer) => {
                self.newest.fetch_max(answer.revision(), Ordering::AcqRel);
            }
            Err(failure) => self.blame(current.number, failure),
        }
        answer
    }

    /// Asks until there is an answer, the answer is a refusal, or the time is up. For what can be carried out twice.
    ///
    /// # Errors
    /// [`Failure`]: the last one.
    pub async fn call<A: Headed>(&self, method: &str, request: &impl Message, until: Instant) -> Result<A, Failure> {
        // What etcd said last says more than that there was no time left.
        let mut said = None;
        loop {
            let failure = match self.try_call(method, request, until).await {
                Err(failure) if passes(&failure) => failure,
                answer => return answer,
            };
            if matches!(failure, Failure::Said(_)) {
                said = Some(failure.clone());
            }
            if Instant::now() + PAUSE >= until {
                return Err(said.unwrap_or(failure));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Opens a stream. The sender keeps it open.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn stream(
        &self,
        method: &str,
        first: &impl Message,
        until: Instant,
    ) -> Result<(mpsc::Sender<bytes::Bytes>, Answers), Failure> {
        let current = self.open(until).await?;
        let opening = timeout_at(until.into(), current.link.stream(method, frame(first))).await;
        let opened = opening.unwrap_or_else(|_| Err(Failure::Broken(format!("{method}: no answer in time"))));
        if let Err(failure) = &opened {
            self.blame(current.number, failure);
        }
        opened
    }

    /// The connection, once there is one.
    async fn open(&self, until: Instant) -> Result<Current, Failure> {
        let mut state = self.state.clone();
        let found = timeout_at(until.into(), state.wait_for(|state| matches!(state, State::Open(_)))).await;
        match found {
            Ok(Ok(found)) => match &*found {
                State::Open(current) => Ok(current.clone()),
                State::Away(why) => Err(Failure::Unsent(why.to_string())),
            },
            Ok(Err(_)) => Err(Failure::Closed),
            Err(_) => {
                let why = match &*self.state.borrow() {
                    State::Open(_) => "not connected in time".into(),
                    State::Away(why) => Arc::clone(why),
                };
                Err(Failure::Unsent(why.to_string()))
            }
        }
    }

    /// Tells the keeper, if this says something about the member.
    fn blame(&self, number: u64, failure: &Failure) {
        let fault = match failure {
            Failure::Closed => return,
            Failure::Unsent(_) | Failure::Broken(_) => Fault::Silent(number),
            Failure::Said(status) => match status.meaning() {
                Meaning::StaleToken => Fault::Token(number),
                Meaning::Elsewhere | Meaning::Unclear => Fault::Elsewhere(number),
                Meaning::Compacted
                | Meaning::Future
                | Meaning::Full
                | Meaning::TooLarge
                | Meaning::NoAuth
                | Meaning::NoLease
                | Meaning::Refused => return,
            },
        };
        self.tell(fault);
    }

    fn tell(&self, fault: Fault) {
        // Full: the keeper is told already.
        let _ = self.faults.try_send(fault);
    }
}

/// Whether asking again can help.
pub fn passes(failure: &Failure) -> bool {
    match failure {
        Failure::Closed => false,
        Failure::Unsent(_) | Failure::Broken(_) => true,
        Failure::Said(status) => {
            matches!(
                status.meaning(),
                Meaning::Elsewhere | Meaning::StaleToken | Meaning::Unclear
            )
        }
    }
}

impl Keeper {
    /// Connects, again and again, for ever.
    pub async fn run(mut self) {
        let mut choice = Choice::new(self.settings.endpoints.list.len());
        let mut number = 0;
        loop {
            let (member, wait) = choice.next(Instant::now());
            tokio::time::sleep(wait).await;
            match timeout(CONNECT_PATIENCE, self.connect(member)).await {
                Ok(Ok((link, connection))) => {
                    choice.works(member);
                    self.serve(link, connection, &mut number).await;
                    self.away("the connection broke");
                }
                Ok(Err(why)) => self.away(&why),
                Err(_) => self.away("no connection in time"),
            }
            choice.failed(member, Instant::now());
        }
    }

    /// Says why there is no connection; logs it once.
    fn away(&self, why: &str) {
        let news = match &*self.state.borrow() {
            State::Open(_) => true,
            State::Away(known) => &**known != why,
        };
        if news {
            warn!(error = why, "no connection to etcd");
            self.state.send_replace(State::Away(why.into()));
        }
    }

    async fn connect(&self, member: usize) -> Result<(Link, impl Future<Output = ()> + Send + use<>), String> {
        let endpoint = self.settings.endpoints.list.get(member).ok_or("no endpoint")?;
        let (link, connection) = dial(endpoint, self.settings.tls.as_ref()).await?;
        let mut connection = Box::pin(connection);
        let logged_in = tokio::select! {
            () = &mut connection => return Err(format!("{endpoint} ends the connection at once")),
            logged_in = self.log_in(link) => logged_in,
        };
        let link = logged_in.map_err(|failure| format!("cannot log in to {endpoint}: {failure}"))?;
        info!(peer = %endpoint, "connected to etcd");
        Ok((link, connection))
    }

    /// Gets a token, if there is a user and etcd cares.
    async fn log_in(&self, link: Link) -> Result<Link, Failure> {
        let Some((name, password)) = &self.settings.endpoints.user else {
            return Ok(link);
        };
        let request = AuthenticateRequest {
            name: name.clone(),
            password: Secret::expose(password).to_owned(),
        };
        match link.call("Auth/Authenticate", frame(&request), CONNECT_PATIENCE).await {
            Ok(answer) => match AuthenticateResponse::decode(answer) {
                Ok(answer) => Ok(link.with_token(&answer.token)),
                Err(error) => Err(Failure::Broken(error.to_string())),
            },
            Err(Failure::Said(status)) if status.meaning() == Meaning::NoAuth => Ok(link),
            Err(failure) => Err(failure),
        }
    }

    /// Lets everybody use a connection until it ends or its member is found not to serve.
    async fn serve(&mut self, mut link: Link, connection: impl Future<Output = ()>, number: &mut u64) {
        let mut connection = std::pin::pin!(connection);
        let alone = self.settings.endpoints.list.len() == 1;
        loop {
            *number += 1;
            let current = Current {
                link: link.clone(),
                number: *number,
            };
            self.state.send_replace(State::Open(current));
            let stale = loop {
                tokio::select! {
                    () = &mut connection => return,
                    fault = self.faults.recv() => match fault {
                        Some(Fault::Silent(seen)) if seen == *number => return,
                        // Going nowhere else would only break what is on its way.
                        Some(Fault::Elsewhere(seen)) if seen == *number && !alone => return,
                        Some(Fault::Token(seen)) if seen == *number => break link,
                        Some(Fault::Silent(_) | Fault::Elsewhere(_) | Fault::Token(_)) => {}
                        // Every caller is gone; the store closes.
                        None => return,
                    },
                }
            };
            let renewed = tokio::select! {
                () = &mut connection => return,
                renewed = timeout(CONNECT_PATIENCE, self.log_in(stale)) => renewed,
            };
            match renewed {
                Ok(Ok(renewed)) => link = renewed,
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}
