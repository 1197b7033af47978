//! The websocket below a tunnel, after the handshake: frames of RFC 6455, as much of it as tunnels use. Pure.
//!
//! Here and not from a crate because every byte of `kubectl logs`, `exec` and `cp` goes through: what is sent is copied and
//! masked once, into the buffer that is written; what comes is read into the message's own buffer. Messages may be in
//! fragments, as K3s' agents send long ones: their library sends what fits in its buffer of 4 KiB on.
//!
//! Source: RFC 6455, sections 5 and 7.4; gorilla/websocket, `conn.go`.

use bytes::buf::Limit;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::wire::frame::MAX_FRAME;

/// So much at least is left of a message for its bytes to be read where they belong, past the common buffer.
const DIRECT_MIN: usize = 1 << 10;
/// Room made for a message before its bytes have come: more than real ones have.
const TRUSTED: usize = 64 << 10;
/// The longest payload of a control frame.
const CONTROL_MAX: usize = 125;
/// What is copied before it is masked: small enough to be in the processor's first cache still.
const BLOCK: usize = 4 << 10;

/// Which end of the websocket this is. A client masks what it sends, a server does not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// Whoever asked for it: an agent.
    Client,
    /// Whoever was asked.
    Server,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The next part of a message.
    Continuation,
    /// A message of text.
    Text,
    /// A message of bytes.
    Binary,
    /// The end; a code of two bytes, and a reason, or nothing.
    Close,
    /// To be answered.
    Ping,
    /// An answer.
    Pong,
}

/// The code of an end that stops, RFC 6455, section 7.4.1.
pub const AWAY: u16 = 1001;

/// What came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Incoming {
    /// A whole message.
    Binary(Bytes),
    /// To be answered with the same bytes.
    Ping(Bytes),
    /// An answer to a ping.
    Pong,
    /// The other side ends it, with this code.
    Close(Option<u16>),
}

/// Why bytes are no websocket of a tunnel. It cannot go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WebsocketError {
    /// A message longer than any of a tunnel.
    #[error("the peer sent a message of more than {MAX_FRAME} bytes")]
    TooLong,
    /// Masked by a server, or not masked by a client.
    #[error("the peer sent a frame that is masked where it must not be, or the other way round")]
    Mask,
    /// Reserved bits or a kind that nobody agreed on.
    #[error("the peer sent a frame of an unknown kind")]
    Kind,
    /// A control frame that is long or in parts.
    #[error("the peer sent a control frame that is too long, or in parts")]
    Control,
    /// A part of no message, or a message within another one.
    #[error("the peer sent a part of a message where none was expected")]
    Part,
    /// A close frame with half a code.
    #[error("the peer sent a close frame with a broken code")]
    Code,
    /// Text.
    #[error("the peer sent text")]
    Text,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    const fn of(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Appends a frame; its payload is `parts`, one after the other. `mask`: a client's, fresh for each frame.
pub fn put(out: &mut Vec<u8>, kind: Kind, parts: [&[u8]; 2], mask: Option<[u8; 4]>) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let masked = if mask.is_some() { 0x80 } else { 0 };
    out.reserve(14 + length);
    out.push(0x80 | kind.code());
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => out.push(masked | short),
        (_, Ok(medium)) => {
            out.push(masked | 126);
            out.put_u16(medium);
        }
        _ => {
            out.push(masked | 127);
            out.put_u64(length as u64);
        }
    }
    let Some(mut mask) = mask else {
        parts.iter().for_each(|part| out.extend_from_slice(part));
        return;
    };
    out.extend_from_slice(&mask);
    for block in parts.iter().flat_map(|part| part.chunks(BLOCK)) {
        let from = out.len();
        out.extend_from_slice(block);
        apply(out.get_mut(from..).unwrap_or_default(), mask);
        mask.rotate_left(block.len() % 4);
    }
}

/// Masks, or takes the mask off: `bytes` begin at the mask's first byte.
fn apply(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// The frame that is being read.
#[derive(Clone, Copy, Debug)]
struct Current {
    kind: Kind,
    last: bool,
    /// Turned, so that it begins with the byte for what comes next.
    mask: Option<[u8; 4]>,
    /// Bytes of the payload that have not come.
    left: usize,
}

/// Reads frames of the other side. What it holds is one message and one control frame at most, as far as they have come.
#[derive(Debug)]
pub struct Reader {
    /// This end.
    side: Side,
    current: Option<Current>,
    /// A message has begun, and its last part has not come.
    open: bool,
    message: BytesMut,
    control: BytesMut,
}

impl Reader {
    /// At the start of a frame.
    pub fn new(side: Side) -> Self {
        Self {
            side,
            current: None,
            open: false,
            message: BytesMut::new(),
            control: BytesMut::new(),
        }
    }

    /// Takes what has come off `wire`. `None`: all of it that can be was taken, and more is needed.
    ///
    /// # Errors
    /// [`WebsocketError`].
    pub fn next(&mut self, wire: &mut BytesMut) -> Result<Option<Incoming>, WebsocketError> {
        loop {
            let current = match &mut self.current {
                Some(current) => current,
                None => match self.begin(wire)? {
                    true => continue,
                    false => return Ok(None),
                },
            };
            let payload = match current.kind.is_control() {
                true => &mut self.control,
                false => &mut self.message,
            };
            let (came, from) = (wire.len().min(current.left), payload.len());
            payload.extend_from_slice(wire.get(..came).unwrap_or_default());
            wire.advance(came);
            current.unmask(payload.get_mut(from..).unwrap_or_default());
            if current.left > 0 {
                return Ok(None);
            }
            if let Some(incoming) = self.end()? {
                return Ok(Some(incoming));
            }
        }
    }

    /// Where the next bytes of the peer belong if there are many of one message to come, and no others: then they need not go
    /// through [`Reader::next`]; [`Reader::put`] is told how many there were.
    pub fn direct(&mut self) -> Option<Limit<&mut BytesMut>> {
        let current = self.current.filter(|current| !current.kind.is_control())?;
        if current.left < DIRECT_MIN {
            return None;
        }
        let room = self.message.capacity() - self.message.len();
        if room == 0 {
            self.message.reserve(current.left.min(TRUSTED));
        }
        let room = self.message.capacity() - self.message.len();
        Some((&mut self.message).limit(room.min(current.left)))
    }

    /// So many bytes have been put where [`Reader::direct`] said.
    pub fn put(&mut self, count: usize) {
        if let Some(current) = &mut self.current {
            let from = self.message.len().saturating_sub(count);
            current.unmask(self.message.get_mut(from..).unwrap_or_default());
        }
    }

    /// Takes the head of a frame, if it is all there.
    fn begin(&mut self, wire: &mut BytesMut) -> Result<bool, WebsocketError> {
        let (Some(&first), Some(&second)) = (wire.first(), wire.get(1)) else {
            return Ok(false);
        };
        let masked = second & 0x80 != 0;
        let (wide, masks) = match second & 0x7f {
            126 => (2, 4 * usize::from(masked)),
            127 => (8, 4 * usize::from(masked)),
            _ => (0, 4 * usize::from(masked)),
        };
        let kind = Kind::of(first & 0x0f).filter(|_| first & 0x70 == 0);
        let kind = kind.ok_or(WebsocketError::Kind)?;
        if masked != (self.side == Side::Server) {
            return Err(WebsocketError::Mask);
        }
        if wire.len() < 2 + wide + masks {
            return Ok(false);
        }
        wire.advance(2);
        let length = match wide {
            0 => u64::from(second & 0x7f),
            2 => u64::from(wire.get_u16()),
            _ => wire.get_u64(),
        };
        let mask = masked.then(|| wire.get_u32().to_be_bytes());
        let last = first & 0x80 != 0;
        let left = usize::try_from(length).map_err(|_| WebsocketError::TooLong)?;
        match kind {
            Kind::Text => return Err(WebsocketError::Text),
            Kind::Close | Kind::Ping | Kind::Pong if !last || left > CONTROL_MAX => {
                return Err(WebsocketError::Control);
            }
            Kind::Close | Kind::Ping | Kind::Pong => self.control.reserve(left),
            Kind::Binary | Kind::Continuation if (kind == Kind::Continuation) != self.open => {
                return Err(WebsocketError::Part);
            }
            Kind::Binary | Kind::Continuation => {
                if left > MAX_FRAME.saturating_sub(self.message.len()) {
                    return Err(WebsocketError::TooLong);
                }
                self.open = true;
                self.message.reserve(left.min(TRUSTED));
            }
        }
        self.current = Some(Current { kind, last, mask, left });
        Ok(true)
    }

    /// The frame is whole.
    fn end(&mut self) -> Result<Option<Incoming>, WebsocketError> {
        let Some(current) = self.current.take() else {
            return Ok(None);
        };
        Ok(match current.kind {
            Kind::Binary | Kind::Continuation | Kind::Text if !current.last => None,
            Kind::Binary | Kind::Continuation | Kind::Text => {
                self.open = false;
                Some(Incoming::Binary(std::mem::take(&mut self.message).freeze()))
            }
            Kind::Ping => Some(Incoming::Ping(std::mem::take(&mut self.control).freeze())),
            Kind::Pong => {
                self.control = BytesMut::new();
                Some(Incoming::Pong)
            }
            Kind::Close => match std::mem::take(&mut self.control) {
                none if none.is_empty() => Some(Incoming::Close(None)),
                mut some if some.len() >= 2 => Some(Incoming::Close(Some(some.get_u16()))),
                _ => return Err(WebsocketError::Code),
            },
        })
    }
}

impl Current {
    /// These are the next bytes.
    fn unmask(&mut self, bytes: &mut [u8]) {
        self.left = self.left.saturating_sub(bytes.len());
        if let Some(mask) = &mut self.mask {
            apply(bytes, *mask);
            mask.rotate_left(bytes.len() % 4);
        }
    }
}

#[cfg(test)]
mod tests;
