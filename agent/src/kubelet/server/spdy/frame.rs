//! SPDY/3.1 frames, as far as a server of streams needs them: read from bytes as they come, and written. Pure.
//!
//! Not here: windows (Go's `spdystream` keeps none, and neither do we), priorities, pushing. Source: SPDY/3.1 draft, 2.2
//! and 2.6; `kubernetes-api` 23.3.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::header::{BLOCK_MAX, Deflater, Headers, Inflater};

const HEAD: usize = 8;
const VERSION: u16 = 3;
const CONTROL: u16 = 0x8000;
const FIN: u8 = 1;
const STREAM_MASK: u32 = 0x7fff_ffff;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
/// Settings are the longest control frames beside header blocks, and nobody sends many.
const CONTROL_MAX: usize = BLOCK_MAX;
/// The longest piece in which data is handed on: who queues pieces knows then what they may cost.
pub const PIECE: usize = 16 << 10;
/// Of a stream that is refused.
const REFUSED: u32 = 3;

/// What a client sends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Heard {
    /// It opens a stream; `fin`: and will send nothing on it.
    Open { stream: u32, headers: Headers, fin: bool },
    /// Bytes of a stream; `fin`: the last ones.
    Data { stream: u32, bytes: Bytes, fin: bool },
    /// A stream is of no use to it any more.
    Reset { stream: u32 },
    /// It asks for an answer.
    Ping { id: u32 },
    /// It opens no more streams.
    GoAway,
}

/// What no client of the protocol sends; the connection is lost with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    /// Another version of SPDY.
    #[error("not SPDY/3.1")]
    Version,
    /// A control frame of a length that it cannot have.
    #[error("a control frame of {0} bytes")]
    Length(usize),
    /// Headers that cannot be read.
    #[error(transparent)]
    Headers(#[from] super::header::BadBlock),
}

/// Reads frames out of bytes. Data is handed on as it comes, so a frame of any length costs what has arrived of it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// A data frame of which so many bytes are still to come.
    data: Option<Data>,
    inflater: Inflater,
}

#[derive(Clone, Copy, Debug)]
struct Data {
    stream: u32,
    left: usize,
    fin: bool,
}

impl Decoder {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next thing that has come whole; `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn next(&mut self) -> Result<Option<Heard>, Violation> {
        loop {
            if let Some(data) = self.data {
                return Ok(self.data(data));
            }
            let Some(head) = self.buffer.first_chunk::<HEAD>() else {
                return Ok(None);
            };
            let mut head = &head[..];
            let (first, flags_and_length) = (head.get_u32(), head.get_u32());
            let flags = flags_and_length.to_be_bytes()[0];
            let length = usize::try_from(flags_and_length & 0x00ff_ffff).unwrap_or(usize::MAX);
            let [high, low] = [first >> 16, first & 0xffff].map(|half| u16::try_from(half).unwrap_or_default());
            if high & CONTROL == 0 {
                self.buffer.advance(HEAD);
                self.data = Some(Data {
                    stream: first,
                    left: length,
                    fin: flags & FIN != 0,
                });
                continue;
            }
            if high & !CONTROL != VERSION {
                return Err(Violation::Version);
            }
            if length > CONTROL_MAX {
                return Err(Violation::Length(length));
            }
            if self.buffer.len() < HEAD + length {
                return Ok(None);
            }
            self.buffer.advance(HEAD);
            let body = self.buffer.split_to(length).freeze();
            if let Some(heard) = self.control(low, flags, body)? {
                return Ok(Some(heard));
            }
        }
    }

    fn data(&mut self, data: Data) -> Option<Heard> {
        let here = self.buffer.len().min(data.left).min(PIECE);
        if here == 0 && data.left > 0 {
            return None;
        }
        // A copy: a part of the buffer would hold all of it while it waits.
        let bytes = Bytes::copy_from_slice(self.buffer.get(..here).unwrap_or_default());
        self.buffer.advance(here);
        let left = data.left - here;
        self.data = (left > 0).then_some(Data { left, ..data });
        Some(Heard::Data {
            stream: data.stream,
            bytes,
            fin: data.fin && left == 0,
        })
    }

    /// `None`: nothing that means anything here.
    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Option<Heard>, Violation> {
        let length = body.len();
        let least = match kind {
            SYN_STREAM => 10,
            SYN_REPLY | HEADERS | PING => 4,
            RST_STREAM => 8,
            _ => 0,
        };
        if length < least {
            return Err(Violation::Length(length));
        }
        Ok(match kind {
            SYN_STREAM => {
                let stream = body.get_u32() & STREAM_MASK;
                body.advance(6); // the stream it belongs to, its priority
                let headers = self.inflater.read(&body)?;
                Some(Heard::Open {
                    stream,
                    headers,
                    fin: flags & FIN != 0,
                })
            }
            SYN_REPLY | HEADERS => {
                body.advance(4);
                self.inflater.read(&body)?; // the blocks are one stream: none may be left out
                None
            }
            RST_STREAM => Some(Heard::Reset {
                stream: body.get_u32() & STREAM_MASK,
            }),
            PING => Some(Heard::Ping { id: body.get_u32() }),
            GOAWAY => Some(Heard::GoAway),
            _ => None, // settings and windows
        })
    }
}

/// Writes frames.
#[derive(Debug, Default)]
pub struct Encoder(Deflater);

impl Encoder {
    /// Accepts a stream.
    pub fn reply(&mut self, stream: u32) -> Bytes {
        let mut body = stream.to_be_bytes().to_vec();
        body.extend(self.0.write(&[]));
        control(SYN_REPLY, &body)
    }
}

/// Bytes of a stream; `fin`: the last ones. They are no more than a frame can hold: 16 MiB.
pub fn data(stream: u32, bytes: &[u8], fin: bool) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD + bytes.len());
    frame.put_u32(stream & STREAM_MASK);
    frame.put_u8(u8::from(fin) * FIN);
    frame.put_uint(bytes.len() as u64, 3);
    frame.put_slice(bytes);
    frame.freeze()
}

/// Answers a ping.
pub fn ping(id: u32) -> Bytes {
    control(PING, &id.to_be_bytes())
}

/// Refuses a stream, or gives it up.
pub fn reset(stream: u32) -> Bytes {
    control(RST_STREAM, &[stream.to_be_bytes(), REFUSED.to_be_bytes()].concat())
}

fn control(kind: u16, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD + body.len());
    frame.put_u16(CONTROL | VERSION);
    frame.put_u16(kind);
    frame.put_u8(0);
    frame.put_uint(body.len() as u64, 3);
    frame.put_slice(body);
    frame.freeze()
}

#[cfg(test)]
pub mod client {
    //! The other side's frames.

    use super::*;

    /// Opens streams.
    #[derive(Default)]
    pub struct Opener(Deflater);

    impl Opener {
        pub fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Bytes {
            let mut body = stream.to_be_bytes().to_vec();
            body.extend([0; 6]);
            body.extend(self.0.write(headers));
            control(SYN_STREAM, &body)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::header::value;
    use super::client::Opener;
    use super::*;

    fn all(decoder: &mut Decoder) -> Vec<Heard> {
        std::iter::from_fn(|| decoder.next().unwrap()).collect()
    }

    #[test]
    fn frames_are_read_however_their_bytes_arrive() {
        let mut opener = Opener::default();
        let frames = [
            opener.open(1, &[("streamType", "error")]),
            opener.open(3, &[("streamtype", "data")]),
            data(3, b"hello", false),
            data(3, b"", true),
            control(4, &[0; 4]),
            control(9, &[0; 8]),
            ping(7),
            reset(3),
            control(GOAWAY, &[0; 8]),
        ]
        .concat();
        for size in [1, 3, 7, 4096] {
            let mut decoder = Decoder::default();
            let mut heard = Vec::new();
            for chunk in frames.chunks(size) {
                decoder.push(chunk);
                heard.extend(all(&mut decoder));
            }
            let mut bytes = Vec::new();
            heard.retain(|one| match one {
                Heard::Data { bytes: more, .. } => {
                    bytes.extend_from_slice(more);
                    false
                }
                _ => true,
            });
            assert_eq!(bytes, b"hello", "in pieces of {size}");
            let [
                Heard::Open {
                    stream: 1,
                    headers,
                    fin: false,
                },
                Heard::Open { stream: 3, .. },
                Heard::Ping { id: 7 },
                Heard::Reset { stream: 3 },
                Heard::GoAway,
            ] = heard.as_slice()
            else {
                panic!("in pieces of {size}: {heard:?}")
            };
            assert_eq!(value(headers, "streamtype"), "error");
        }
    }

    #[test]
    fn the_last_bytes_of_a_stream_say_so() {
        let mut decoder = Decoder::default();
        let frame = data(5, b"abc", true);
        let of = |bytes: &'static [u8], fin| Heard::Data {
            stream: 5,
            bytes: Bytes::from_static(bytes),
            fin,
        };
        decoder.push(&frame[..10]);
        assert_eq!(all(&mut decoder), [of(b"ab", false)]);
        decoder.push(&frame[10..]);
        assert_eq!(all(&mut decoder), [of(b"c", true)]);
    }

    #[test]
    fn what_comes_at_once_is_handed_on_in_pieces() {
        const LENGTH: usize = 1 << 20;
        let mut decoder = Decoder::default();
        decoder.push(&[data(5, &[b'x'; LENGTH], true), ping(1)].concat());
        let mut heard = all(&mut decoder);
        assert_eq!(heard.pop(), Some(Heard::Ping { id: 1 }));
        let pieces = heard.iter().map(|one| match one {
            Heard::Data { stream: 5, bytes, fin } => (bytes.len(), *fin),
            other => panic!("{other:?}"),
        });
        let pieces: Vec<(usize, bool)> = pieces.collect();
        assert!(pieces.iter().all(|(length, _)| *length <= PIECE));
        assert_eq!(pieces.iter().map(|(length, _)| length).sum::<usize>(), LENGTH);
        let last = pieces.len() - 1;
        assert!(pieces.iter().enumerate().all(|(at, (_, fin))| *fin == (at == last)));
    }

    #[test]
    fn what_is_no_spdy_is_refused() {
        for (bytes, expected) in [
            (control(PING, &[0; 3]), Violation::Length(3)),
            (control(RST_STREAM, &[0; 4]), Violation::Length(4)),
            (Bytes::from_static(b"\x80\x02\0\x01\0\0\0\0"), Violation::Version),
            (
                Bytes::from_static(b"\x80\x03\0\x01\0\xff\0\0"),
                Violation::Length(0x00ff_0000),
            ),
        ] {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            assert_eq!(decoder.next(), Err(expected), "{bytes:?}");
        }
    }

    #[test]
    fn an_answer_is_framed_as_a_client_reads_it() {
        let reply = Encoder::default().reply(1);
        assert_eq!(
            reply[..8],
            [0x80, 3, 0, 2, 0, 0, 0, u8::try_from(reply.len() - 8).unwrap()]
        );
        assert_eq!(reply[8..12], [0, 0, 0, 1]);
        assert_eq!(Inflater::default().read(&reply[12..]).unwrap(), Vec::new());
        assert_eq!(data(1, b"x", true)[..], [0, 0, 0, 1, 1, 0, 0, 1, b'x']);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }
}
