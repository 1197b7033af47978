//! A client that comes by websocket: the handshake, and messages in both directions.

use std::io;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use super::channel::{Heard, Protocol, Said, hear, say};
use super::route::Refusal;
use super::stream::{Ear, Mouth};
use super::{Body, full};

/// kubectl sends 32 KiB at once; what a person pastes into another client is not longer than this.
const LONGEST_MESSAGE: usize = 1 << 20;
const READ_BUFFER: usize = 8 << 10;

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Whether a request wants a websocket.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let says = |name: &HeaderName, word: &str| {
        let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
    };
    says(&CONNECTION, "upgrade") && says(&UPGRADE, "websocket")
}

/// The protocols that a client offers, comma between them.
pub fn offered(headers: &HeaderMap) -> String {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let values: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    values.join(",")
}

/// The answer that opens a websocket.
///
/// # Errors
/// [`Refusal`]: it is no handshake.
pub fn accept(headers: &HeaderMap, protocol: &'static str) -> Result<Response<Body>, Refusal> {
    let version = headers.get(SEC_WEBSOCKET_VERSION);
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let key = key.filter(|_| version.is_some_and(|version| version == "13"));
    let key = key.ok_or_else(|| Refusal::new(400, "this is no websocket handshake of version 13"))?;
    let proof = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    let proof = proof.map_err(|error| Refusal::new(400, error.to_string()))?;
    let mut response = full("", "");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.clear();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_ACCEPT, proof);
    answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    Ok(response)
}

/// The websocket after its handshake.
pub async fn open(upgraded: Upgraded) -> Socket {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(Some(LONGEST_MESSAGE))
        .max_frame_size(Some(LONGEST_MESSAGE));
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await
}

/// Says that all is told. kubectl takes any other end, even one without a reason, for an accident.
pub async fn close(to: &mut SplitSink<Socket, Message>) {
    let frame = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    let _ = to.send(Message::Close(Some(frame))).await;
}

/// Hears a client of channels.
pub struct Listening {
    pub protocol: Protocol,
    pub from: SplitStream<Socket>,
}

impl Ear for Listening {
    async fn hear(&mut self) -> Option<Heard> {
        match next(&mut self.from).await? {
            Some(bytes) => Some(hear(self.protocol, &bytes)),
            None => Some(Heard::Nothing),
        }
    }
}

/// The bytes of the next message, `Some(None)` if it has none for us; `None` at the end.
pub async fn next(from: &mut SplitStream<Socket>) -> Option<Option<Bytes>> {
    match from.next().await? {
        Ok(Message::Binary(bytes)) => Some(Some(bytes)),
        Ok(Message::Text(text)) => Some(Some(text.into())),
        Ok(Message::Close(_)) => None,
        Ok(_) => Some(None), // pings are answered below us
        Err(error) => {
            tracing::debug!(%error, "a websocket breaks off");
            None
        }
    }
}

/// Tells a client of channels.
pub struct Speaking(pub SplitSink<Socket, Message>);

impl Mouth for Speaking {
    async fn say(&mut self, said: Said) -> io::Result<()> {
        self.0.send(Message::Binary(say(&said))).await.map_err(io::Error::other)
    }
}
