//! Moves the frames of one tunnel over one websocket, until either ends. It decides nothing: `session.rs` does.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};

use super::masks::NoMask;
use super::session::Violation;
use super::stream::{Opened, Tunnel};
use super::websocket::{AWAY, Incoming, Reader, WebsocketError};
use crate::wire::frame::{Frame, FrameError};

/// A peer that does not take a frame for so long is gone, whatever it may still send.
const SEND_LIMIT: Duration = Duration::from_secs(30);
/// Small frames and the heads of large ones are read through it. Every idle tunnel holds one.
const READ_BUFFER: usize = 4 << 10;
/// After so many bytes those for whom they are may run, before their processor has forgotten them and the peer has to pause.
const TURN: usize = 128 << 10;
/// Who has nothing long to send for so long gives the buffer back.
const IDLE: Duration = Duration::from_secs(1);
/// Who leaves has so long for what its streams still say.
const FAREWELL: Duration = Duration::from_secs(2);
/// Why a tunnel ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed it, or went away.
    #[error("the peer closed it")]
    Closed,
    /// The peer stops, and says so.
    #[error("the peer stops")]
    Away,
    /// This end did.
    #[error("closed here")]
    Left,
    /// The connection broke.
    #[error(transparent)]
    Socket(io::Error),
    /// It does not speak as a websocket should.
    #[error(transparent)]
    Websocket(#[from] WebsocketError),
    /// It no longer takes what it is sent.
    #[error("a frame could not be sent for {} s", SEND_LIMIT.as_secs())]
    Stuck,
    /// It breaks the rules of the session.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// It sends what is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Nothing can be sent.
    #[error(transparent)]
    Mask(#[from] NoMask),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A process that is stopped says no goodbye on the TLS layer.
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Socket(error),
        }
    }
}

/// A websocket after its handshake.
#[derive(Debug)]
pub struct Socket<S> {
    stream: S,
    /// What came together with the handshake's last bytes.
    early: BytesMut,
}

impl<S> Socket<S> {
    /// Nothing has come yet.
    pub fn new(stream: S) -> Self {
        Self::with(stream, BytesMut::new())
    }

    /// `early` came behind the handshake.
    pub const fn with(stream: S, early: BytesMut) -> Self {
        Self { stream, early }
    }
}

/// Runs the tunnel until it ends; all its streams end with it. Dropping the future ends it too.
///
/// `opened` gets each stream that the peer asks for.
pub async fn run<S>(socket: Socket<S>, tunnel: &Tunnel, opened: impl FnMut(Opened)) -> LinkError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    run_hearing(socket, tunnel, opened, |_| {}).await
}

/// As [`run`]; `said` gets what the peer says in its pings ([`Tunnel::say`]).
pub async fn run_hearing<S>(
    socket: Socket<S>,
    tunnel: &Tunnel,
    opened: impl FnMut(Opened),
    said: impl FnMut(&[u8]),
) -> LinkError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _end = End(tunnel);
    let Socket { stream, early } = socket;
    let (from, to) = split(stream);
    let receiving = receive(from, Reader::new(tunnel.side()), early, tunnel, opened, said);
    let error = either(receiving, send(to, tunnel)).await;
    match error {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

enum Never {}

async fn either(
    receiving: impl Future<Output = Result<Never, LinkError>>,
    sending: impl Future<Output = Result<Never, LinkError>>,
) -> Result<Never, LinkError> {
    tokio::select! {
        // A peer that has said why it goes takes nothing any more: what it said counts.
        biased;
        end = receiving => end,
        end = sending => end,
    }
}

struct End<'a>(&'a Tunnel);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.break_off();
    }
}

async fn receive<S: AsyncRead>(
    mut from: ReadHalf<S>,
    mut reader: Reader,
    mut wire: BytesMut,
    tunnel: &Tunnel,
    mut opened: impl FnMut(Opened),
    mut said: impl FnMut(&[u8]),
) -> Result<Never, LinkError> {
    let mut taken = 0;
    loop {
        while let Some(incoming) = reader.next(&mut wire)? {
            match incoming {
                Incoming::Binary(bytes) => {
                    taken += bytes.len();
                    let frame = Frame::decode(&bytes)?;
                    tunnel.receive(frame)?.into_iter().for_each(&mut opened);
                }
                Incoming::Ping(word) => {
                    tunnel.heard();
                    said(&word);
                    tunnel.answer(word);
                }
                Incoming::Pong => tunnel.heard(),
                Incoming::Close(Some(AWAY)) => return Err(LinkError::Away),
                Incoming::Close(_) => return Err(LinkError::Closed),
            }
        }
        if taken >= TURN {
            taken = 0;
            yield_now().await;
        }
        let came = match reader.direct() {
            Some(mut room) => {
                let came = from.read_buf(&mut room).await?;
                reader.put(came);
                came
            }
            None => {
                wire.reserve(READ_BUFFER.saturating_sub(wire.len()));
                from.read_buf(&mut wire).await?
            }
        };
        if came == 0 {
            return Err(LinkError::Closed);
        }
    }
}

async fn send<S: AsyncWrite>(mut to: WriteHalf<S>, tunnel: &Tunnel) -> Result<Never, LinkError> {
    let (mut wire, mut dry) = (Vec::new(), false);
    let (mut long_ago, mut farewell) = (Instant::now() + IDLE, None);
    loop {
        let (ping, again) = tunnel.tick()?;
        if tunnel.is_leaving() && Instant::now() >= *farewell.get_or_insert_with(|| Instant::now() + FAREWELL) {
            return leave(&mut to, tunnel).await;
        }
        tunnel.fill(ping, &mut wire)?;
        if !wire.is_empty() {
            give(&mut to, &wire).await?;
            if wire.len() > READ_BUFFER {
                long_ago = Instant::now() + IDLE;
            }
            wire.clear();
            dry = false;
            continue;
        }
        // Who has the turn may run now. If he has nothing to say, it is another's.
        if !dry {
            dry = true;
            yield_now().await;
            continue;
        }
        if tunnel.pass_over() {
            dry = false;
            continue;
        }
        if farewell.is_some() {
            return leave(&mut to, tunnel).await;
        }
        let mut until = Instant::from_std(again);
        if wire.capacity() > READ_BUFFER {
            match long_ago <= Instant::now() {
                true => wire = Vec::new(),
                false => until = until.min(long_ago),
            }
        }
        tokio::select! {
            () = tunnel.output() => {}
            () = sleep_until(until) => {}
        }
    }
}

async fn leave<S: AsyncWrite>(to: &mut WriteHalf<S>, tunnel: &Tunnel) -> Result<Never, LinkError> {
    let mut wire = Vec::new();
    tunnel.good_bye(&mut wire)?;
    give(to, &wire).await?;
    Err(LinkError::Left)
}

/// Writes all of it; a peer that takes nothing at all for [`SEND_LIMIT`], or not the last of it, is gone.
async fn give<S: AsyncWrite>(to: &mut WriteHalf<S>, mut bytes: &[u8]) -> Result<(), LinkError> {
    while !bytes.is_empty() {
        let taken = in_time(to.write(bytes)).await?;
        bytes = match bytes.get(taken..) {
            Some(rest) if taken > 0 => rest,
            _ => return Err(LinkError::Closed),
        };
    }
    in_time(to.flush()).await
}

async fn in_time<T>(sending: impl Future<Output = io::Result<T>>) -> Result<T, LinkError> {
    Ok(timeout(SEND_LIMIT, sending).await.map_err(|_| LinkError::Stuck)??)
}
