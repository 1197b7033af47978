//! Byte streams through a tunnel: `AsyncRead` and `AsyncWrite` over the shared [`Session`].
//!
//! The session is behind a lock that is never held over a wait; this file only borrows it and keeps the wakers.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::masks::{Masks, NoMask};
use super::session::{Busy, Event, Read, Role, Session, Violation, Write};
use super::websocket::{self, AWAY, Kind, Side};
use crate::wire::frame::{EOF, Frame};

/// One end of a tunnel, as its streams and its link share it. Clones are the same end.
#[derive(Clone)]
pub struct Tunnel(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    output: Notify,
    /// Anything was heard.
    heard: Notify,
}

struct Inner {
    session: Session,
    wakers: BTreeMap<i64, Wakers>,
    masks: Masks,
    over: bool,
    /// To be said with the next ping.
    word: Option<Bytes>,
    /// The last ping's that is not answered.
    pinged: Option<Bytes>,
    leaving: bool,
}

#[derive(Default)]
struct Wakers {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Why a stream could not be opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// Too many at once.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The tunnel is down.
    #[error("the tunnel is down")]
    Over,
}

/// A stream that the peer opened.
#[derive(Debug)]
pub struct Opened {
    /// Its bytes.
    pub stream: Stream,
    /// `tcp`.
    pub protocol: String,
    /// `host:port`.
    pub address: String,
}

impl Tunnel {
    /// A new end; see [`Session::new`].
    pub fn new(role: Role, first_frame: i64) -> Self {
        let inner = Mutex::new(Inner {
            session: Session::new(role, first_frame, now()),
            wakers: BTreeMap::new(),
            masks: Masks::new(role.side()),
            over: false,
            word: None,
            pinged: None,
            leaving: false,
        });
        Self(Arc::new(Shared {
            inner,
            output: Notify::new(),
            heard: Notify::new(),
        }))
    }

    /// Which end of the websocket it is.
    pub(super) fn side(&self) -> Side {
        self.lock().masks.side()
    }

    /// Opens a stream to `host:port` at the far end.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn dial(&self, address: &str) -> Result<Stream, OpenError> {
        let mut inner = self.lock();
        if inner.over {
            return Err(OpenError::Over);
        }
        let connection = inner.session.dial(address)?;
        drop(inner);
        self.0.output.notify_one();
        Ok(self.stream(connection))
    }

    /// Sends a ping with this payload, at most 125 bytes; one that has not gone out yet is replaced.
    pub fn say(&self, word: impl Into<Bytes>) {
        self.lock().word = Some(word.into());
        self.0.output.notify_one();
    }

    /// Pings the peer and resolves at the first sign of life from then on; never, if the tunnel ends before.
    pub async fn answers(&self) {
        let heard = self.0.heard.notified();
        self.say(Bytes::new());
        heard.await;
    }

    /// Ends the tunnel with a close frame, once what waits to be sent is.
    pub fn leave(&self) {
        self.lock().leaving = true;
        self.0.output.notify_one();
    }

    /// Whether no stream goes through it.
    pub fn is_idle(&self) -> bool {
        self.lock().session.open_streams() == 0
    }

    /// Answers a ping; older ones that wait need no answer then. Source: RFC 6455, section 5.5.3.
    pub(super) fn answer(&self, word: Bytes) {
        self.lock().pinged = Some(word);
        self.0.output.notify_one();
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.lock().leaving
    }

    /// Whether it is down.
    pub fn is_over(&self) -> bool {
        self.lock().over
    }

    /// When the tunnel was last heard of.
    pub fn last_heard(&self) -> Instant {
        self.lock().session.last_heard()
    }

    /// Takes a frame; returns what the peer wants opened.
    pub(super) fn receive(&self, frame: Frame) -> Result<Vec<Opened>, Violation> {
        let mut inner = self.lock();
        let events = inner.session.receive(frame, now())?;
        let mut opened = Vec::new();
        for event in events {
            match event {
                Event::Touched(connection) => inner.wake(connection),
                Event::Open {
                    connection,
                    protocol,
                    address,
                } => opened.push(Opened {
                    stream: self.stream(connection),
                    protocol,
                    address,
                }),
            }
        }
        self.notify(&inner);
        drop(inner);
        self.0.heard.notify_waiters();
        Ok(opened)
    }

    pub(super) fn heard(&self) {
        self.lock().session.heard(now());
        self.0.heard.notify_waiters();
    }

    /// Puts what is to be sent now into `wire`, which is empty; `ping`: one is due.
    pub(super) fn fill(&self, ping: bool, wire: &mut Vec<u8>) -> Result<(), NoMask> {
        let mut inner = self.lock();
        // First of all: by them the peer sees that this end lives, however much of the streams is on its way.
        if let Some(word) = inner.pinged.take() {
            let mask = inner.masks.next()?;
            websocket::put(wire, Kind::Pong, [&word, &[]], mask);
        }
        if let Some(word) = inner.word.take().or_else(|| ping.then(Bytes::new)) {
            let mask = inner.masks.next()?;
            websocket::put(wire, Kind::Ping, [&word, &[]], mask);
        }
        let Inner { session, masks, .. } = &mut *inner;
        for connection in session.output(wire, || masks.next())? {
            inner.wake(connection);
        }
        Ok(())
    }

    /// The frame that ends the websocket.
    pub(super) fn good_bye(&self, wire: &mut Vec<u8>) -> Result<(), NoMask> {
        let mask = self.lock().masks.next()?;
        websocket::put(wire, Kind::Close, [&AWAY.to_be_bytes(), &[]], mask);
        Ok(())
    }

    /// Lets the next writer go on that waits for its turn; whether there was one.
    pub(super) fn pass_over(&self) -> bool {
        let mut inner = self.lock();
        let next = inner.session.pass_over();
        if let Some(connection) = next {
            inner.wake(connection);
        }
        next.is_some()
    }

    /// Does what is due; returns whether to ping and when to come again.
    pub(super) fn tick(&self) -> Result<(bool, Instant), Violation> {
        let mut inner = self.lock();
        let due = inner.session.tick(now())?;
        Ok((due.ping, inner.session.next_tick()))
    }

    /// Resolves once there may be something to send.
    pub(super) async fn output(&self) {
        self.0.output.notified().await;
    }

    /// Ends every stream.
    pub(super) fn break_off(&self) {
        let mut inner = self.lock();
        inner.over = true;
        for connection in inner.session.break_off() {
            inner.wake(connection);
        }
    }

    fn stream(&self, connection: i64) -> Stream {
        Stream {
            tunnel: self.clone(),
            connection,
        }
    }

    fn notify(&self, inner: &Inner) {
        if inner.session.has_output() {
            self.0.output.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn wake(&mut self, connection: i64) {
        if let Some(wakers) = self.wakers.get_mut(&connection) {
            wakers
                .reader
                .take()
                .into_iter()
                .chain(wakers.writer.take())
                .for_each(Waker::wake);
        }
    }
}

/// tokio's clock, so that tests can turn it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A byte stream through a tunnel. It has no half-close: shutting it down, or dropping it, ends both directions once
/// what was written is on its way.
pub struct Stream {
    tunnel: Tunnel,
    connection: i64,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").field(&self.connection).finish()
    }
}

impl Stream {
    /// Ends it with a reason that the peer is told.
    pub fn fail(self, reason: &str) {
        self.close(reason);
    }

    fn close(&self, reason: &str) {
        let mut inner = self.tunnel.lock();
        inner.session.close(self.connection, reason, now());
        self.tunnel.notify(&inner);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut inner = self.tunnel.lock();
        inner.wakers.remove(&self.connection);
        inner.session.release(self.connection, now());
        self.tunnel.notify(&inner);
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.tunnel.lock();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match inner.session.read(self.connection, buffer.remaining()) {
            Read::Data(bytes) => {
                self.tunnel.notify(&inner);
                drop(inner);
                buffer.put_slice(&bytes);
                Poll::Ready(Ok(()))
            }
            Read::End => Poll::Ready(Ok(())),
            Read::Failed(reason) => Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, reason))),
            Read::Pending => {
                inner.wakers.entry(self.connection).or_default().reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.tunnel.lock();
        let mask = inner.masks.next().map_err(io::Error::other)?;
        match inner.session.write(self.connection, bytes, mask) {
            Write::Taken(count) => {
                self.tunnel.notify(&inner);
                Poll::Ready(Ok(count))
            }
            Write::Closed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Write::Pending => {
                inner.wakers.entry(self.connection).or_default().writer = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close(EOF);
        Poll::Ready(Ok(()))
    }
}
