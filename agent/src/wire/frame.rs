//! Frames of the node tunnel: one binary websocket message each, as remotedialer (K3s' tunnel library) writes them.
//!
//! Text of the protocol only; what a frame does to a stream is `tunnel::session`'s. Integers are Go's signed varints
//! (zig-zag, then base 128). The deadline that `Data` and `Connect` carry is a relic: written as 15 s, never read.

use bytes::{BufMut, Bytes, BytesMut};

/// The address part of a `Connect` that a receiver reads; the rest is dropped. Source: remotedialer v0.6, `serveMessage`.
pub const MAX_ADDRESS: usize = 266;
/// The error text that a receiver reads; the rest is dropped.
pub const MAX_REASON: usize = 100;
/// The error text of a connection that ended well.
pub const EOF: &str = "EOF";
/// The longest message taken from a peer: 1 MiB of data and the numbers before it. Real ones are at most 32 KiB.
pub const MAX_FRAME: usize = (1 << 20) + 64;

const LEGACY_DEADLINE_MS: i64 = 15_000;
const MAX_VARINT: usize = 10;

/// One message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Counts the sender's messages; only for its logs.
    pub id: i64,
    /// The connection it is about; 0 for the session itself.
    pub connection: i64,
    /// What it says.
    pub message: Message,
}

/// What a frame says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// Bytes of a connection.
    Data(Bytes),
    /// Open this connection: protocol (`tcp`) and address (`host:port`).
    Connect {
        /// `tcp`.
        protocol: String,
        /// `host:port`.
        address: String,
    },
    /// The connection is over; [`EOF`] when it ended well.
    Error(String),
    /// Hold data of this connection back.
    Pause,
    /// Send again.
    Resume,
    /// All connections that the sender still knows.
    Sync(Vec<i64>),
    /// A type this program does not know, or one for peers of a kind K3s does not use: to be ignored.
    Unknown(i64),
}

/// Why bytes are no frame. The session cannot go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// It ends inside a number.
    #[error("tunnel message ends too early")]
    Short,
    /// A number of more than 64 bits.
    #[error("number in a tunnel message is too long")]
    Overflow,
    /// More than [`MAX_FRAME`] bytes.
    #[error("tunnel message is longer than {MAX_FRAME} bytes")]
    TooLong,
    /// A list of connections that is no list of 64-bit numbers.
    #[error("list of connections is no multiple of 8 bytes")]
    Sync,
}

impl Frame {
    /// Reads one websocket message.
    ///
    /// # Errors
    /// [`FrameError`]; no input panics. Texts beyond their bound are cut and made valid UTF-8, as upstream's reader does.
    pub fn decode(bytes: &Bytes) -> Result<Self, FrameError> {
        if bytes.len() > MAX_FRAME {
            return Err(FrameError::TooLong);
        }
        let mut rest = Reader { bytes, at: 0 };
        let id = rest.varint()?;
        let connection = rest.varint()?;
        let kind = rest.varint()?;
        let message = match kind {
            1 => {
                rest.varint()?;
                Message::Data(rest.remaining())
            }
            2 => {
                rest.varint()?;
                let text = rest.text(MAX_ADDRESS);
                let (protocol, address) = text.split_once('/').unwrap_or((&text, ""));
                Message::Connect {
                    protocol: protocol.to_owned(),
                    address: address.to_owned(),
                }
            }
            3 => Message::Error(rest.text(MAX_REASON)),
            6 => Message::Pause,
            7 => Message::Resume,
            8 => Message::Sync(connections(&rest.remaining())?),
            other => Message::Unknown(other),
        };
        Ok(Self {
            id,
            connection,
            message,
        })
    }

    /// Writes one websocket message. An error text is cut to [`MAX_REASON`] bytes.
    pub fn encode(&self) -> Bytes {
        let (head, data) = self.parts();
        if data.is_empty() {
            return head;
        }
        [&head, data].concat().into()
    }

    /// The same in two parts, so that a connection's bytes need not be copied: what is before them, and they.
    pub fn parts(&self) -> (Bytes, &[u8]) {
        let payload = match &self.message {
            Message::Data(_) | Message::Pause | Message::Resume | Message::Unknown(_) => 0,
            Message::Connect { protocol, address } => protocol.len() + address.len() + 1,
            Message::Error(reason) => reason.len().min(MAX_REASON),
            Message::Sync(ids) => ids.len() * 8,
        };
        let mut out = BytesMut::with_capacity(4 * MAX_VARINT + payload);
        put_varint(&mut out, self.id);
        put_varint(&mut out, self.connection);
        put_varint(&mut out, self.message.kind());
        let mut rest: &[u8] = &[];
        match &self.message {
            Message::Data(data) => {
                put_varint(&mut out, LEGACY_DEADLINE_MS);
                rest = data;
            }
            Message::Connect { protocol, address } => {
                put_varint(&mut out, LEGACY_DEADLINE_MS);
                out.put_slice(protocol.as_bytes());
                out.put_u8(b'/');
                out.put_slice(address.as_bytes());
            }
            Message::Error(reason) => out.put_slice(reason.get(..cut(reason, MAX_REASON)).unwrap_or("").as_bytes()),
            Message::Sync(ids) => ids.iter().for_each(|id| out.put_i64_le(*id)),
            Message::Pause | Message::Resume | Message::Unknown(_) => {}
        }
        (out.freeze(), rest)
    }
}

impl Message {
    const fn kind(&self) -> i64 {
        match self {
            Self::Data(_) => 1,
            Self::Connect { .. } => 2,
            Self::Error(_) => 3,
            Self::Pause => 6,
            Self::Resume => 7,
            Self::Sync(_) => 8,
            Self::Unknown(kind) => *kind,
        }
    }
}

/// The largest length up to `most` that ends on a character.
fn cut(text: &str, most: usize) -> usize {
    if text.len() <= most {
        return text.len();
    }
    (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

fn connections(bytes: &[u8]) -> Result<Vec<i64>, FrameError> {
    let (ids, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(FrameError::Sync);
    }
    Ok(ids.iter().map(|id| i64::from_le_bytes(*id)).collect())
}

fn put_varint(out: &mut BytesMut, number: i64) {
    let mut zigzag = (number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned();
    loop {
        let [low, ..] = zigzag.to_le_bytes();
        zigzag >>= 7;
        if zigzag == 0 {
            out.put_u8(low & 0x7f);
            return;
        }
        out.put_u8(low | 0x80);
    }
}

struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn varint(&mut self) -> Result<i64, FrameError> {
        let mut zigzag = 0u64;
        for place in 0..MAX_VARINT {
            let byte = *self.bytes.get(self.at).ok_or(FrameError::Short)?;
            self.at += 1;
            if place == MAX_VARINT - 1 && byte > 1 {
                return Err(FrameError::Overflow);
            }
            zigzag |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok((zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed()));
            }
        }
        Err(FrameError::Overflow)
    }

    fn remaining(&self) -> Bytes {
        self.bytes.slice(self.at..)
    }

    fn text(&self, most: usize) -> String {
        let rest = self.remaining();
        String::from_utf8_lossy(rest.get(..most).unwrap_or(&rest)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Bytes {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn frame(id: i64, connection: i64, message: Message) -> Frame {
        Frame {
            id,
            connection,
            message,
        }
    }

    #[test]
    fn frames_are_the_ones_k3s_writes() {
        let connect = Message::Connect {
            protocol: "tcp".into(),
            address: "127.0.0.1:10250".into(),
        };
        for (expected, bytes) in [
            (
                frame(1, 2, connect),
                "02 04 04 b0ea01 7463702f3132372e302e302e313a3130323530",
            ),
            (frame(3, 2, Message::Data("hi".into())), "06 04 02 b0ea01 6869"),
            (frame(4, 2, Message::Error(EOF.into())), "08 04 06 454f46"),
            (frame(5, 2, Message::Pause), "0a 04 0c"),
            (frame(6, 2, Message::Resume), "0c 04 0e"),
            (
                frame(7, 0, Message::Sync(vec![2, 3])),
                "0e 00 10 0200000000000000 0300000000000000",
            ),
        ] {
            assert_eq!(Frame::decode(&hex(bytes)).as_ref(), Ok(&expected), "{bytes}");
            assert_eq!(expected.encode(), hex(bytes), "{bytes}");
        }
    }

    #[test]
    fn broken_frames_are_refused() {
        for (bytes, error) in [
            ("", FrameError::Short),
            ("02", FrameError::Short),
            ("02 04 02", FrameError::Short),
            ("ff ff ff ff ff ff ff ff ff 02", FrameError::Overflow),
            ("0e 00 10 02", FrameError::Sync),
        ] {
            assert_eq!(Frame::decode(&hex(bytes)), Err(error), "{bytes}");
        }
        assert_eq!(Frame::decode(&vec![0; MAX_FRAME + 1].into()), Err(FrameError::TooLong));
    }

    #[test]
    fn types_of_other_peers_are_read_and_left() {
        for kind in [4, 5, 9, 1000] {
            let unknown = frame(1, 0, Message::Unknown(kind));
            assert_eq!(Frame::decode(&unknown.encode()), Ok(unknown));
        }
    }

    #[test]
    fn long_texts_are_cut_on_a_character() {
        let long = frame(1, 2, Message::Error("ä".repeat(80)));
        assert_eq!(
            Frame::decode(&long.encode()),
            Ok(frame(1, 2, Message::Error("ä".repeat(50))))
        );
    }

    fn any_message() -> impl Strategy<Value = Message> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200).prop_map(|data| Message::Data(data.into())),
            ("[a-z0-9]{1,5}", "[a-z0-9.:/]{0,200}")
                .prop_map(|(protocol, address)| Message::Connect { protocol, address }),
            "[ -~]{0,100}".prop_map(Message::Error),
            Just(Message::Pause),
            Just(Message::Resume),
            proptest::collection::vec(any::<i64>(), 0..20).prop_map(Message::Sync),
        ]
    }

    proptest! {
        #[test]
        fn every_frame_survives_the_round_trip(id: i64, connection: i64, message in any_message()) {
            let frame = frame(id, connection, message);
            prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frame::decode(&bytes.into());
        }
    }
}
