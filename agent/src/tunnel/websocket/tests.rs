//! Against tungstenite as the other side, whole and spoiled.

use std::io::{self, Read, Write};

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use super::*;
use crate::chance::{Random, simulate};
use crate::wire::fuzz::spoil;

const SIDES: [Side; 2] = [Side::Client, Side::Server];

/// A connection that holds what is sent, and from which `incoming` comes.
#[derive(Default)]
struct Pipe {
    incoming: io::Cursor<Vec<u8>>,
    sent: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.incoming.read(bytes)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sent.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tungstenite(side: Side, incoming: Vec<u8>) -> WebSocket<Pipe> {
    let role = match side {
        Side::Client => Role::Client,
        Side::Server => Role::Server,
    };
    let pipe = Pipe {
        incoming: io::Cursor::new(incoming),
        sent: Vec::new(),
    };
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_FRAME))
        .max_frame_size(Some(MAX_FRAME));
    WebSocket::from_raw_socket(pipe, role, Some(config))
}

const fn other(side: Side) -> Side {
    match side {
        Side::Client => Side::Server,
        Side::Server => Side::Client,
    }
}

/// All of it, as it comes in pieces of these sizes, again and again; and how it ended.
fn read(side: Side, bytes: &[u8], pieces: &[usize]) -> (Vec<Incoming>, Option<WebsocketError>) {
    let (mut reader, mut wire, mut got, mut rest) = (Reader::new(side), BytesMut::new(), Vec::new(), bytes);
    let mut sizes = pieces.iter().cycle();
    loop {
        loop {
            match reader.next(&mut wire) {
                Ok(Some(incoming)) => got.push(incoming),
                Ok(None) => break,
                Err(error) => return (got, Some(error)),
            }
        }
        assert!(wire.len() < 14, "{} bytes wait, a head has at most 14", wire.len());
        let held = reader.message.capacity() + reader.control.capacity();
        assert!(
            held <= 2 * bytes.len() + TRUSTED + CONTROL_MAX,
            "{held} for {}",
            bytes.len()
        );
        let size = sizes.next().map_or(1, |size| size + 1).min(rest.len());
        if size == 0 {
            return (got, None);
        }
        let taken = match reader.direct() {
            Some(mut room) => {
                let size = size.min(room.remaining_mut());
                room.put_slice(&rest[..size]);
                reader.put(size);
                size
            }
            None => {
                wire.extend_from_slice(&rest[..size]);
                size
            }
        };
        rest = &rest[taken..];
    }
}

/// The same by the crate, up to the first thing that it does not take.
fn read_by_tungstenite(side: Side, bytes: &[u8]) -> Vec<Incoming> {
    let (mut socket, mut got) = (tungstenite(side, bytes.to_vec()), Vec::new());
    while let Ok(message) = socket.read() {
        got.push(match message {
            Message::Binary(bytes) => Incoming::Binary(bytes),
            Message::Ping(word) => Incoming::Ping(word),
            Message::Pong(_) => Incoming::Pong,
            Message::Close(frame) => Incoming::Close(frame.map(|frame| frame.code.into())),
            Message::Text(_) | Message::Frame(_) => return got,
        });
    }
    got
}

/// A message in parts, with a ping between them; an end with its code and reason.
#[derive(Clone, Debug)]
enum Sent {
    Message(Vec<Vec<u8>>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<(u16, String)>),
}

/// Those that may be sent. Source: RFC 6455, 7.4.
fn any_end() -> impl Strategy<Value = Option<(u16, String)>> {
    let code = prop_oneof![1000..1004_u16, 1007..1012_u16, 3000..5000_u16];
    // At most four bytes each, of 123.
    let reason = vec(any::<char>(), 0..=30).prop_map(String::from_iter);
    proptest::option::of((code, reason))
}

/// The payload of a close frame.
fn closing(end: Option<&(u16, String)>) -> Vec<u8> {
    end.map_or_else(Vec::new, |(code, reason)| {
        [&code.to_be_bytes(), reason.as_bytes()].concat()
    })
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let size = prop_oneof![
        0..20_usize,
        120..132_usize,
        1000..5000_usize,
        65_530..65_540_usize,
        100_000..140_000_usize
    ];
    let part = (size, any::<u8>()).prop_map(|(size, first)| {
        (0..size)
            .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1] ^ first)
            .collect()
    });
    prop_oneof![
        4 => vec(part, 1..4).prop_map(Sent::Message),
        1 => vec(any::<u8>(), 0..126).prop_map(Sent::Ping),
        1 => Just(Sent::Pong),
    ]
}

/// As the crate frames it.
fn frames(sent: &Sent) -> Vec<Message> {
    let frame = |code: OpCode, last: bool, payload: &[u8]| {
        let header = FrameHeader {
            is_final: last,
            opcode: code,
            ..FrameHeader::default()
        };
        Message::Frame(Frame::from_payload(header, payload.to_vec().into()))
    };
    match sent {
        Sent::Ping(word) => vec![frame(OpCode::Control(Control::Ping), true, word)],
        Sent::Pong => vec![frame(OpCode::Control(Control::Pong), true, b"x")],
        Sent::Close(end) => vec![frame(OpCode::Control(Control::Close), true, &closing(end.as_ref()))],
        Sent::Message(parts) => {
            let mut all = Vec::new();
            for (at, part) in parts.iter().enumerate() {
                let data = if at == 0 { Data::Binary } else { Data::Continue };
                all.push(frame(OpCode::Data(data), at + 1 == parts.len(), part));
                if at + 1 < parts.len() {
                    all.push(frame(OpCode::Control(Control::Ping), true, b"between"));
                }
            }
            all
        }
    }
}

fn expected(sent: &Sent) -> Vec<Incoming> {
    match sent {
        Sent::Ping(word) => vec![Incoming::Ping(word.clone().into())],
        Sent::Pong => vec![Incoming::Pong],
        Sent::Close(end) => vec![Incoming::Close(end.as_ref().map(|(code, _)| *code))],
        Sent::Message(parts) => {
            let mut all = vec![Incoming::Ping(b"between".as_slice().into()); parts.len() - 1];
            all.push(Incoming::Binary(parts.concat().into()));
            all
        }
    }
}

fn written_by_tungstenite(side: Side, all: &[Sent]) -> Vec<u8> {
    let mut socket = tungstenite(side, Vec::new());
    for message in all.iter().flat_map(frames) {
        socket.send(message).unwrap();
    }
    std::mem::take(&mut socket.get_mut().sent)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_another_implementation_sends_is_read_however_it_is_cut(
        mut all in vec(any_sent(), 1..6), end in any_end(), pieces in vec(0..40_000_usize, 1..8), client: bool,
    ) {
        all.push(Sent::Close(end));
        let side = SIDES[usize::from(client)];
        let bytes = written_by_tungstenite(other(side), &all);
        let (got, error) = read(side, &bytes, &pieces);
        prop_assert_eq!(error, None);
        prop_assert!(got == all.iter().flat_map(expected).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_sent_is_read_by_another_implementation(
        mut all in vec(any_sent(), 1..6), end in any_end(), split in 0..100_usize, mask: [u8; 4], client: bool,
    ) {
        all.push(Sent::Close(end));
        let side = SIDES[usize::from(client)];
        let mask = (side == Side::Client).then_some(mask);
        let (mut wire, mut wanted) = (Vec::new(), Vec::new());
        for sent in &all {
            let (kind, payload) = match sent {
                Sent::Ping(word) => (Kind::Ping, word.clone()),
                Sent::Pong => (Kind::Pong, Vec::new()),
                Sent::Message(parts) => (Kind::Binary, parts.concat()),
                Sent::Close(end) => (Kind::Close, closing(end.as_ref())),
            };
            let (head, tail) = payload.split_at(split.min(payload.len()));
            put(&mut wire, kind, [head, tail], mask);
            wanted.push(match kind {
                Kind::Ping => Incoming::Ping(payload.into()),
                Kind::Pong => Incoming::Pong,
                Kind::Close => Incoming::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code))),
                _ => Incoming::Binary(payload.into()),
            });
        }
        prop_assert!(read_by_tungstenite(other(side), &wire) == wanted);
    }

    #[test]
    fn an_end_is_taken_with_its_reason_and_answered_by_the_same(
        end in any_end(), split in 0..100_usize, mask: [u8; 4], client: bool,
    ) {
        let side = SIDES[usize::from(client)];
        let payload = closing(end.as_ref());
        let (head, tail) = payload.split_at(split.min(payload.len()));
        let mut wire = Vec::new();
        put(&mut wire, Kind::Close, [head, tail], (side == Side::Client).then_some(mask));
        let mut peer = tungstenite(other(side), wire);
        let Ok(Message::Close(taken)) = peer.read() else { panic!("no end") };
        let taken = taken.map(|frame| (u16::from(frame.code), frame.reason.to_string()));
        prop_assert_eq!(&taken, &end);
        // A server's says that it is over then.
        let _ = peer.flush();
        let answer = std::mem::take(&mut peer.get_mut().sent);
        let wanted = vec![Incoming::Close(end.map(|(code, _)| code))];
        prop_assert_eq!(read(side, &answer, &[split]), (wanted, None));
    }
}

/// The same frames with masks by the seed: the crate's are other ones each time.
fn masked_by(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let (mut all, mut rest) = (Vec::new(), bytes);
    while let [first, second, behind @ ..] = rest {
        let wide = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let (length, behind) = behind.split_at(wide);
        let size = match wide {
            0 => usize::from(second & 0x7f),
            _ => length.iter().fold(0, |size, byte| size << 8 | usize::from(*byte)),
        };
        all.extend_from_slice(&[&[*first, *second], length].concat());
        let mut payload;
        if second & 0x80 == 0 {
            (payload, rest) = (behind[..size].to_vec(), &behind[size..]);
        } else {
            let (mask, behind) = behind.split_first_chunk().unwrap();
            (payload, rest) = (behind[..size].to_vec(), &behind[size..]);
            let other = [0; 4].map(|_: u8| random.next(256).to_le_bytes()[0]);
            apply(&mut payload, *mask);
            apply(&mut payload, other);
            all.extend_from_slice(&other);
        }
        all.append(&mut payload);
    }
    all
}

#[test]
fn spoiled_frames_are_refused_or_read_as_another_implementation_reads_them() {
    simulate(5000, |seed| {
        let mut random = Random::new(seed);
        let side = SIDES[random.next(2)];
        let mut all: Vec<Sent> = (0..1 + random.next(4))
            .map(|_| match random.next(4) {
                0 => Sent::Ping(vec![1; random.next(126)]),
                1 => Sent::Pong,
                parts => Sent::Message((0..parts).map(|_| vec![7; random.next(300)]).collect()),
            })
            .collect();
        match random.next(4) {
            0 => all.push(Sent::Close(None)),
            1 => all.push(Sent::Close(Some((AWAY, "stops".repeat(random.next(20)))))),
            _ => {}
        }
        let mut bytes = masked_by(&mut random, &written_by_tungstenite(other(side), &all));
        spoil(&mut random, &mut bytes);
        let (got, error) = read(side, &bytes, &[random.next(50), random.next(400)]);
        let theirs = read_by_tungstenite(side, &bytes);
        let same = got
            .iter()
            .zip(&theirs)
            // The crate has a code of its own for those that there are not.
            .take_while(|pair| matches!(pair, (Incoming::Close(_), Incoming::Close(_))) || pair.0 == pair.1)
            .count();
        // A close ends what the crate reads; text is none of a tunnel's.
        let ended = got
            .get(..same)
            .is_some_and(|same| same.iter().any(|it| matches!(it, Incoming::Close(_))));
        assert!(ended || same == got.len().min(theirs.len()), "{got:?}\n{theirs:?}");
        assert!(
            ended || error.is_some() || got.len() >= theirs.len(),
            "{got:?}\n{theirs:?}"
        );
    });
}

#[test]
fn what_breaks_the_rules_is_refused_before_it_has_come() {
    let long = (MAX_FRAME as u64 + 1).to_be_bytes();
    let longest = u64::MAX.to_be_bytes();
    for (side, bytes, error) in [
        (
            Side::Client,
            [&[0x82, 127], long.as_slice()].concat(),
            WebsocketError::TooLong,
        ),
        (
            Side::Client,
            [&[0x82, 127], longest.as_slice()].concat(),
            WebsocketError::TooLong,
        ),
        (Side::Client, vec![0x82, 0x81], WebsocketError::Mask),
        (Side::Server, vec![0x82, 0x01], WebsocketError::Mask),
        (Side::Client, vec![0x83, 0x01], WebsocketError::Kind),
        (Side::Client, vec![0xc2, 0x01], WebsocketError::Kind),
        (Side::Client, vec![0x89, 126, 0, 126], WebsocketError::Control),
        (Side::Client, vec![0x09, 0x00], WebsocketError::Control),
        (Side::Client, vec![0x80, 0x01], WebsocketError::Part),
        (Side::Client, vec![0x02, 0x00, 0x82, 0x00], WebsocketError::Part),
        (Side::Client, vec![0x88, 0x01, 0x03], WebsocketError::Code),
        (Side::Client, vec![0x81, 0x01], WebsocketError::Text),
    ] {
        assert_eq!(read(side, &bytes, &[0]), (Vec::new(), Some(error)), "{bytes:x?}");
    }
    // Parts of a message count together.
    let mut parts = vec![0x02, 127];
    parts.extend_from_slice(&(MAX_FRAME as u64).to_be_bytes());
    parts.resize(parts.len() + MAX_FRAME, 7);
    parts.extend_from_slice(&[0x80, 0x01]);
    assert_eq!(read(Side::Client, &parts, &[65_536]).1, Some(WebsocketError::TooLong));
}

#[test]
fn a_long_message_costs_no_memory_before_it_comes() {
    let mut reader = Reader::new(Side::Client);
    let mut wire = BytesMut::from(
        [&[0x82, 127], (MAX_FRAME as u64).to_be_bytes().as_slice()]
            .concat()
            .as_slice(),
    );
    assert_eq!(reader.next(&mut wire), Ok(None));
    assert!(reader.message.capacity() <= TRUSTED, "{}", reader.message.capacity());
    assert!(reader.direct().unwrap().remaining_mut() <= TRUSTED);
}
