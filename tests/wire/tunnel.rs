//! A tunnel at the server, as bytes: websocket messages and what is in them (K3s' remotedialer v0.6, `message.go`, `session.go`).
//!
//! The near end plays the node. What goes through the tunnel enters it by the route between servers, which hands on bytes as
//! they are.

use std::time::Duration;

use crate::http::{Certificate, Wire, request};
use crate::server::Server;

pub const BINARY: u8 = 2;
pub const TEXT: u8 = 1;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// Legacy deadline of Data and Connect: 15,000 ms.
pub const DEADLINE: [u8; 3] = [0xb0, 0xea, 0x01];

/// Types, in Go's signed varint.
pub const DATA: u8 = 2;
pub const CONNECT: u8 = 4;
pub const ERROR: u8 = 6;
const ADD_CLIENT: u8 = 8;
const REMOVE_CLIENT: u8 = 10;
pub const PAUSE: u8 = 12;
pub const RESUME: u8 = 14;
pub const SYNC: u8 = 16;
const NOT_YET_KNOWN: u8 = 18;

/// A node's end of its tunnel.
struct Node(Wire);

impl Node {
    /// Upgrades a connection, and waits until the server serves it.
    fn open(server: &Server, certificate: &Certificate) -> Self {
        let mut wire = server.open(Some(certificate));
        wire.say(&request(
            "GET /v1-k3s/connect HTTP/1.1
             Host: k3s
             Origin: https://elsewhere.example
             Connection: Upgrade
             Upgrade: websocket
             Sec-WebSocket-Version: 13
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            b"",
        ));
        let answer = wire.hear(true);
        assert!(
            answer.head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
            "{answer:?}"
        );
        for (name, value) in [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            // The example of RFC 6455.
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ] {
            assert_eq!(answer.header(name), Some(value), "{answer:?}");
        }
        for name in ["sec-websocket-protocol", "sec-websocket-extensions"] {
            assert_eq!(answer.header(name), None, "{answer:?}");
        }
        let mut node = Self(wire);
        assert!(node.until_pong().is_empty(), "nothing is said unasked");
        node
    }

    /// A message, masked as clients have to.
    fn say(&mut self, opcode: u8, payload: &[u8]) {
        let mask = [7, 77, 177, 217];
        let mut bytes = vec![0x80 | opcode];
        match payload.len() {
            length @ 0..=125 => bytes.push(0x80 | u8::try_from(length).unwrap()),
            length => {
                bytes.push(0x80 | 126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.0.say(&bytes);
    }

    /// A frame: what comes after its number, which receivers do not look at.
    fn send(&mut self, rest: &[&[u8]]) {
        self.say(BINARY, &[&[0x2a][..], &rest.concat()].concat());
    }

    /// The next message.
    fn hear(&mut self) -> (u8, Vec<u8>) {
        let head = self.0.take(2);
        assert_eq!(head[0] & 0xf0, 0x80, "whole messages, without extensions");
        assert_eq!(head[1] & 0x80, 0, "a server does not mask");
        let length = match head[1] {
            126 => usize::from(u16::from_be_bytes(self.0.take(2).try_into().unwrap())),
            127 => panic!("longer than K3s' copy loops make"),
            short => usize::from(short),
        };
        (head[0] & 0x0f, self.0.take(length))
    }

    /// The next frame, after its number.
    fn frame(&mut self) -> Vec<u8> {
        loop {
            match self.hear() {
                (BINARY, payload) => return after_number(&payload),
                // The server says how it stands in pings, which any peer answers.
                (PING, _) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// All frames until the server has answered a ping: it has seen everything said before.
    fn until_pong(&mut self) -> Vec<Vec<u8>> {
        self.say(PING, b"");
        let mut frames = Vec::new();
        loop {
            match self.hear() {
                (BINARY, payload) => frames.push(after_number(&payload)),
                (PING, _) => {}
                (PONG, payload) => {
                    assert!(payload.is_empty(), "as the ping was");
                    return frames;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A frame begins with a number of at most ten bytes, the last of which has no high bit.
pub fn after_number(payload: &[u8]) -> Vec<u8> {
    let length = payload.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    assert!(length <= 10, "{payload:?}");
    payload[length..].to_vec()
}

/// Another server's stream to port 10250 of `pi`.
fn dial(server: &Server) -> Wire {
    let mut near = server.open(Some(&server.own("client-supervisor")));
    near.say(&request(
        "GET /v1-k3s/peer/dial?node=pi&port=10250 HTTP/1.1
         Host: k3s
         Connection: Upgrade
         Upgrade: amphipod-bytes",
        b"",
    ));
    let answer = near.hear(true);
    assert_eq!(answer.code(), 101, "{answer:?}");
    near
}

/// What a dial sends, for connection `id`.
fn connect(id: u8) -> Vec<u8> {
    [&[id, CONNECT][..], &DEADLINE, b"tcp/127.0.0.1:10250"].concat()
}

pub fn data(id: u8, bytes: &[u8]) -> Vec<u8> {
    [&[id, DATA][..], &DEADLINE, bytes].concat()
}

pub fn error(id: u8, text: &str) -> Vec<u8> {
    [&[id, ERROR][..], text.as_bytes()].concat()
}

/// One node's tunnel, from its upgrade on.
pub fn frames_at_the_server_are_these_bytes(server: &Server) {
    let certificate = server.joined("pi");
    let mut node = Node::open(server, &certificate);
    bytes_go_both_ways_and_either_end_closes(server, &mut node);
    a_paused_stream_waits_and_a_full_one_pauses_the_node(server, &mut node);
    what_is_meant_for_nobody_is_answered_or_passed_over(&mut node);
    streams_that_the_node_does_not_list_end(server, &mut node);
    drop(node);
    what_is_no_frame_ends_the_tunnel(server, &certificate);
}

/// Connections are numbered from 2, in steps of one, so 4 in the first byte, then 6.
fn bytes_go_both_ways_and_either_end_closes(server: &Server, node: &mut Node) {
    let mut near = dial(server);
    assert_eq!(
        node.frame(),
        connect(4),
        "before there is anything to send, and without an answer"
    );
    near.say(b"hi");
    assert_eq!(node.frame(), data(4, b"hi"));
    node.send(&[&data(4, b"hello")]);
    assert_eq!(near.take(5), b"hello");
    // Data without bytes is none.
    node.send(&[&data(4, b"")]);
    node.send(&[&data(4, &[0xff; 40_000])]);
    assert_eq!(near.take(40_000), [0xff; 40_000]);
    drop(near);
    assert_eq!(node.frame(), error(4, "EOF"));
    // K3s' agents answer with one of their own, and with a second.
    node.send(&[&error(4, "EOF")]);
    node.send(&[&error(4, "EOF")]);
    assert!(node.until_pong().is_empty());

    for (id, text) in [(6, "EOF"), (8, "dial tcp 127.0.0.1:10250: connect: connection refused")] {
        let mut near = dial(server);
        assert_eq!(node.frame(), connect(id));
        node.send(&[&data(id, b"last words")]);
        node.send(&[&error(id, text)]);
        assert_eq!(node.frame(), error(id, text), "an end is answered with the same");
        assert_eq!(near.take(10), b"last words");
        assert!(near.is_closed());
    }
}

fn a_paused_stream_waits_and_a_full_one_pauses_the_node(server: &Server, node: &mut Node) {
    let id = 10;
    let mut near = dial(server);
    assert_eq!(node.frame(), connect(id));
    node.send(&[&[id, PAUSE]]);
    assert!(node.until_pong().is_empty());
    near.say(b"held back");
    // Long enough for the bytes to come that must not.
    std::thread::sleep(Duration::from_millis(300));
    assert!(node.until_pong().is_empty(), "paused");
    node.send(&[&[id, RESUME]]);
    assert_eq!(node.frame(), data(id, b"held back"));

    // Nobody reads at the near end: sockets fill, then what the server holds itself.
    let (block, mut sent, mut paused) = (data(id, &[0x55; 32 << 10]), 0, false);
    while !paused {
        for _ in 0..16 {
            node.send(&[&block]);
            sent += 32 << 10;
        }
        for frame in node.until_pong() {
            assert_eq!(frame, [id, PAUSE]);
            paused = true;
        }
        assert!(sent < 15 << 20, "not paused after {sent} bytes");
    }
    assert!(near.take(sent).iter().all(|byte| *byte == 0x55));
    let mut next = node.frame();
    while next == [id, PAUSE] {
        next = node.frame(); // It may have said so more than once.
    }
    assert_eq!(next, [id, RESUME]);
    drop(near);
    assert_eq!(node.frame(), error(id, "EOF"));
}

fn what_is_meant_for_nobody_is_answered_or_passed_over(node: &mut Node) {
    // 100, in Go's signed varint.
    node.send(&[&[0xc8, 0x01, DATA], &DEADLINE, b"x"]);
    let answer = node.frame();
    assert_eq!(answer[..3], [0xc8, 0x01, ERROR]);
    // K3s' text has the session before the number.
    assert_eq!(String::from_utf8_lossy(&answer[3..]), "connection not found 100");
    // Differs: K3s ends the tunnel.
    node.send(&[&connect(12)]);
    assert_eq!(node.frame(), error(12, "connect not allowed"));
    for rest in [
        [&[0xc8, 0x01, ERROR][..], b"EOF"].concat(),
        vec![0xc8, 0x01, PAUSE],
        vec![0xc8, 0x01, RESUME],
        [&[0, ADD_CLIENT][..], b"pi/1"].concat(),
        [&[0, REMOVE_CLIENT][..], b"pi/1"].concat(),
        vec![4, NOT_YET_KNOWN, 1, 2, 3],
    ] {
        node.send(&[&rest]);
        assert!(node.until_pong().is_empty(), "{rest:?}");
    }
}

fn streams_that_the_node_does_not_list_end(server: &Server, node: &mut Node) {
    let (mut listed, mut other) = (dial(server), dial(server));
    assert_eq!(node.frame(), connect(12));
    assert_eq!(node.frame(), connect(14));
    let list = 6_u64.to_le_bytes();
    // One list may have been on its way before the node knew of a stream.
    node.send(&[&[0, SYNC]]);
    assert!(node.until_pong().is_empty());
    for near in [&mut listed, &mut other] {
        near.say(b"x");
    }
    let mut both = [node.frame(), node.frame()];
    both.sort();
    assert_eq!(both, [data(12, b"x"), data(14, b"x")], "both are still there");
    node.send(&[&[0, SYNC], &list]);
    assert!(node.until_pong().is_empty(), "silently");
    assert!(other.is_closed());
    node.send(&[&data(12, b"still here")]);
    assert_eq!(listed.take(10), b"still here");
}

fn what_is_no_frame_ends_the_tunnel(server: &Server, certificate: &Certificate) {
    for (opcode, payload, what) in [
        (TEXT, &b"\x02\x04\x0c"[..], "text"),
        (BINARY, b"", "nothing"),
        (BINARY, b"\x02\x04", "no type"),
        (
            BINARY,
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            "a number too long",
        ),
        (
            BINARY,
            b"\x02\x00\x10\x01\x02\x03\x04\x05\x06\x07",
            "a list of seven bytes",
        ),
    ] {
        let mut node = Node::open(server, certificate);
        node.say(opcode, payload);
        // A close frame may come first.
        while !node.0.is_closed() {
            node.0.take(1);
        }
        let mut next = Node::open(server, certificate);
        assert!(next.until_pong().is_empty(), "{what} harms no other tunnel");
    }
}
