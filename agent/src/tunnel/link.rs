//! Moves the frames of one tunnel over one websocket, until either ends. It decides nothing: `session.rs` does.

use std::future::Future;
use std::io::ErrorKind;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::session::Violation;
use super::stream::{Opened, Tunnel};
use crate::wire::frame::{Frame, FrameError, MAX_FRAME};

/// A peer that does not take a frame for so long is gone, whatever it may still send.
const SEND_LIMIT: Duration = Duration::from_secs(30);
/// Reads go through it; large frames grow it for their time.
const READ_BUFFER: usize = 4 << 10;

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
    #[error("{0}")]
    Socket(Box<tungstenite::Error>),
    /// It no longer takes what it is sent.
    #[error("a frame could not be sent for {} s", SEND_LIMIT.as_secs())]
    Stuck,
    /// It breaks the rules of the session.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// It sends what is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It sends text.
    #[error("the peer sent text")]
    Text,
}

impl From<tungstenite::Error> for LinkError {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => Self::Closed,
            // A process that is stopped says no goodbye on the TLS layer.
            tungstenite::Error::Io(error)
                if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
            {
                Self::Closed
            }
            other => Self::Socket(Box::new(other)),
        }
    }
}

/// The websocket's bounds.
pub fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_FRAME + READ_BUFFER)
        .max_message_size(Some(MAX_FRAME))
        .max_frame_size(Some(MAX_FRAME))
}

/// Runs the tunnel until it ends; all its streams end with it. Dropping the future ends it too.
///
/// `opened` gets each stream that the peer asks for.
pub async fn run<S>(socket: WebSocketStream<S>, tunnel: &Tunnel, opened: impl FnMut(Opened)) -> LinkError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    run_hearing(socket, tunnel, opened, |_| {}).await
}

/// As [`run`]; `said` gets what the peer says in its pings ([`Tunnel::say`]).
pub async fn run_hearing<S>(
    socket: WebSocketStream<S>,
    tunnel: &Tunnel,
    opened: impl FnMut(Opened),
    said: impl FnMut(&[u8]),
) -> LinkError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _end = End(tunnel);
    let (sink, source) = socket.split();
    let error = either(receive(source, tunnel, opened, said), send(sink, tunnel)).await;
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

async fn receive<S>(
    mut source: SplitStream<WebSocketStream<S>>,
    tunnel: &Tunnel,
    mut opened: impl FnMut(Opened),
    mut said: impl FnMut(&[u8]),
) -> Result<Never, LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    use tungstenite::Message;
    loop {
        match source.next().await.ok_or(LinkError::Closed)?? {
            Message::Binary(bytes) => tunnel
                .receive(Frame::decode(&bytes)?)?
                .into_iter()
                .for_each(&mut opened),
            Message::Ping(word) => {
                tunnel.heard();
                said(&word);
            }
            Message::Pong(_) => tunnel.heard(),
            Message::Close(Some(frame)) if frame.code == CloseCode::Away => return Err(LinkError::Away),
            Message::Close(_) => return Err(LinkError::Closed),
            Message::Text(_) => return Err(LinkError::Text),
            Message::Frame(_) => {}
        }
    }
}

async fn send<S>(
    mut sink: SplitSink<WebSocketStream<S>, tungstenite::Message>,
    tunnel: &Tunnel,
) -> Result<Never, LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    use tungstenite::Message;
    loop {
        let (ping, again) = tunnel.tick()?;
        match tunnel.word() {
            Some(word) => give(&mut sink, Message::Ping(word)).await?,
            None if ping => give(&mut sink, Message::Ping(bytes::Bytes::new())).await?,
            None => {}
        }
        match tunnel.transmit() {
            Some(frame) => give(&mut sink, Message::Binary(frame.encode())).await?,
            None if tunnel.is_leaving() => {
                let away = CloseFrame {
                    code: CloseCode::Away,
                    reason: "".into(),
                };
                give(&mut sink, Message::Close(Some(away))).await?;
                return Err(LinkError::Left);
            }
            None => tokio::select! {
                () = tunnel.output() => {}
                () = sleep_until(again.into()) => {}
            },
        }
    }
}

async fn give<S>(
    sink: &mut SplitSink<WebSocketStream<S>, tungstenite::Message>,
    message: tungstenite::Message,
) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    timeout(SEND_LIMIT, sink.send(message))
        .await
        .map_err(|_| LinkError::Stuck)??;
    Ok(())
}
