//! A tunnel at our agent, as bytes (section 4): the far end plays the server, as K3s' remotedialer v0.6 speaks.
//!
//! The script runs in a thread of its own, for it waits; the agent's clock is turned forward where a minute would pass.

use std::future::ready;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use agent::balancer::Balancer;
use agent::tunnel::Tunnels;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::played::{Link, Machine, PATIENCE, Played};
use crate::tunnel::{
    BINARY, CONNECT, DATA, DEADLINE, ERROR, PAUSE, PING, PONG, RESUME, SYNC, TEXT, after_number, data, error,
};

const CLOSE: u8 = 8;
/// Pings come so often.
const STEP: Duration = Duration::from_secs(5);
/// Lists of connections come so often.
const LISTS: Duration = Duration::from_secs(60);

/// The server's end of a tunnel.
struct Far {
    link: Link,
    masks: Vec<[u8; 4]>,
}

impl Far {
    fn new(link: Link) -> Self {
        let masks = Vec::new();
        Self { link, masks }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.link.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// A message; servers do not mask.
    fn say(&mut self, opcode: u8, payload: &[u8]) {
        let mut bytes = vec![0x80 | opcode];
        match u8::try_from(payload.len()) {
            Ok(length @ 0..=125) => bytes.push(length),
            _ => {
                bytes.push(126);
                bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
            }
        }
        bytes.extend(payload);
        self.link.write_all(&bytes).unwrap();
        self.link.flush().unwrap();
    }

    /// A frame: what comes after its number, which receivers do not look at.
    fn send(&mut self, rest: &[u8]) {
        self.say(BINARY, &[&[0x2a], rest].concat());
    }

    /// The next message.
    fn hear(&mut self) -> (u8, Vec<u8>) {
        let head = self.take(2);
        assert_eq!(head[0] & 0xf0, 0x80, "whole messages, without extensions");
        assert_eq!(head[1] & 0x80, 0x80, "a client masks");
        let length = match head[1] & 0x7f {
            126 => usize::from(u16::from_be_bytes(self.take(2).try_into().unwrap())),
            127 => panic!("longer than K3s' copy loops make"),
            short => usize::from(short),
        };
        let mask: [u8; 4] = self.take(4).try_into().unwrap();
        self.masks.push(mask);
        let payload = self.take(length);
        let plain = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        (head[0] & 0x0f, plain.collect())
    }

    /// The next frame, after its number; pings are answered.
    fn frame(&mut self) -> Vec<u8> {
        loop {
            match self.hear() {
                (BINARY, payload) => return after_number(&payload),
                (PING, payload) => self.pong(&payload),
                other => panic!("{other:?}"),
            }
        }
    }

    fn pong(&mut self, payload: &[u8]) {
        assert!(payload.is_empty(), "pings have no payload");
        self.say(PONG, b"");
    }

    /// All frames until the agent has answered a ping: it has seen everything said before.
    fn until_pong(&mut self) -> Vec<Vec<u8>> {
        self.say(PING, b"any word");
        let mut frames = Vec::new();
        loop {
            match self.hear() {
                (BINARY, payload) => frames.push(after_number(&payload)),
                (PING, payload) => self.pong(&payload),
                (PONG, payload) => {
                    assert_eq!(payload, b"any word", "as the ping was");
                    return frames;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn connect(id: u8, to: &str) -> Vec<u8> {
    [&[id, CONNECT][..], &DEADLINE, to.as_bytes()].concat()
}

/// From the upgrade to the agent's good-bye, and once more after the connection was cut.
pub async fn frames_at_the_agent_are_these_bytes() {
    let played = Played::start();
    let machine = Machine::new(&played, Some(played.token("node:secret")));
    let joined = machine.joins().await.unwrap();
    let kubelet = TcpListener::bind("127.0.0.1:0").unwrap();
    let tunnels = Tunnels {
        client: joined.client.clone(),
        balancer: Balancer::new(&machine.config.server.authority(), &[], 1).into(),
        kubelet_port: kubelet.local_addr().unwrap().port(),
        supervisor_port: None,
    };
    let (turn, mut turns) = unbounded_channel();
    let script = thread::spawn(move || play(&played, kubelet, turn));
    let until_played = async {
        while let Some(time) = turns.recv().await {
            tokio::time::pause();
            tokio::time::advance(time).await;
            tokio::time::resume();
        }
    };
    tunnels.run(|| 0.5, |_| Box::pin(ready(Ok(()))), until_played).await;
    script.join().unwrap();
}

fn play(played: &Played, kubelet: TcpListener, turn: UnboundedSender<Duration>) {
    let to = format!("tcp/{}", kubelet.local_addr().unwrap());
    let (mut far, begun) = (Far::new(played.tunnel()), Instant::now());
    bytes_go_both_ways_and_either_end_closes(&mut far, &kubelet, &to);
    what_is_not_allowed_ends_alone(&mut far, &kubelet);
    a_paused_stream_waits_and_a_full_one_pauses_the_server(&mut far, &kubelet, &to);
    pings_and_lists_come_in_time(&mut far, &kubelet, &to, begun, &turn);
    assert!(
        far.masks.windows(2).all(|two| two[0] != two[1]),
        "each has its own mask"
    );

    // Text is no frame of this protocol: the tunnel ends, and another is there soon.
    far.say(TEXT, b"\x02\x04\x0c");
    let mut far = Far::new(played.tunnel());
    drop(far.link);
    far = Far::new(played.tunnel());
    drop(kubelet);
    far.send(&connect(4, &to));
    let refused = far.frame();
    let text = String::from_utf8_lossy(&refused[2..]).to_ascii_lowercase();
    assert_eq!(refused[..2], [4, ERROR]);
    let port = to.strip_prefix("tcp/").unwrap();
    assert!(text.starts_with(&format!("dial tcp {port}: ")), "{text}");
    assert!(text.contains("connection refused") && text.len() <= 100, "{text}");
    // It stops, and says so: 1001, going away.
    drop(turn);
    loop {
        match far.hear() {
            (CLOSE, payload) => {
                assert_eq!(payload, [0x03, 0xe9]);
                break;
            }
            (PING, _) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The next connection to the kubelet.
fn taken(kubelet: &TcpListener) -> TcpStream {
    let (stream, _) = kubelet.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn bytes_go_both_ways_and_either_end_closes(far: &mut Far, kubelet: &TcpListener, to: &str) {
    // Nothing is waited for: there is no answer to a connect.
    far.send(&connect(4, to));
    far.send(&data(4, b"hi"));
    let mut near = taken(kubelet);
    assert_eq!(read(&mut near, 2), b"hi");
    near.write_all(b"hello").unwrap();
    assert_eq!(far.frame(), data(4, b"hello"));
    far.send(&data(4, b""));
    far.send(&data(4, &[0xff; 40_000]));
    assert_eq!(read(&mut near, 40_000), [0xff; 40_000]);
    drop(near);
    assert_eq!(far.frame(), error(4, "EOF"));
    // As K3s' servers echo it.
    far.send(&error(4, "EOF"));
    assert!(far.until_pong().is_empty());

    for (id, text) in [(6, "EOF"), (8, "tunnel disconnect")] {
        far.send(&connect(id, to));
        let mut near = taken(kubelet);
        far.send(&data(id, b"last words"));
        far.send(&error(id, text));
        assert_eq!(far.frame(), error(id, text), "an end is answered with the same");
        assert_eq!(read(&mut near, 10), b"last words");
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
    }
    // 100, in Go's signed varint.
    far.send(&[&[0xc8, 0x01, DATA][..], &DEADLINE, b"x"].concat());
    let unknown = [&[0xc8, 0x01, ERROR][..], b"connection not found 100"].concat();
    assert_eq!(far.frame(), unknown);
    far.send(&[&[0xc8, 0x01, ERROR][..], b"EOF"].concat());
    assert!(far.until_pong().is_empty());
}

/// Differs: K3s' agent ends its tunnel.
fn what_is_not_allowed_ends_alone(far: &mut Far, kubelet: &TcpListener) {
    let port = kubelet.local_addr().unwrap().port();
    for to in [
        "tcp/127.0.0.1:1".to_owned(),
        "tcp/127.0.0.1:10010".to_owned(),
        format!("tcp/192.0.2.1:{port}"),
        format!("udp/127.0.0.1:{port}"),
        "unix//run/k3s/containerd/containerd.sock".to_owned(),
        "nonsense".to_owned(),
    ] {
        far.send(&connect(10, &to));
        assert_eq!(far.frame(), error(10, "connect not allowed"), "{to}");
    }
    assert!(far.until_pong().is_empty());
}

fn a_paused_stream_waits_and_a_full_one_pauses_the_server(far: &mut Far, kubelet: &TcpListener, to: &str) {
    let id = 12;
    far.send(&connect(id, to));
    let mut near = taken(kubelet);
    far.send(&[id, PAUSE]);
    assert!(far.until_pong().is_empty());
    near.write_all(b"held back").unwrap();
    // Long enough for the bytes to come that must not.
    thread::sleep(Duration::from_millis(300));
    assert!(far.until_pong().is_empty(), "paused");
    far.send(&[id, RESUME]);
    assert_eq!(far.frame(), data(id, b"held back"));

    // The kubelet does not read: sockets fill, then what the agent holds itself.
    let (block, mut sent, mut paused) = (data(id, &[0x55; 32 << 10]), 0, false);
    while !paused {
        for _ in 0..16 {
            far.send(&block);
            sent += 32 << 10;
        }
        for frame in far.until_pong() {
            assert_eq!(frame, [id, PAUSE]);
            paused = true;
        }
        assert!(sent < 15 << 20, "not paused after {sent} bytes");
    }
    assert!(read(&mut near, sent).iter().all(|byte| *byte == 0x55));
    let mut next = far.frame();
    while next == [id, PAUSE] {
        next = far.frame(); // It may have said so more than once.
    }
    assert_eq!(next, [id, RESUME]);
    far.send(&error(id, "EOF"));
    assert_eq!(far.frame(), error(id, "EOF"));
}

/// A ping every 5 s, and every 60 s the streams that are open, each in eight bytes, the lowest first.
fn pings_and_lists_come_in_time(
    far: &mut Far,
    kubelet: &TcpListener,
    to: &str,
    begun: Instant,
    turn: &UnboundedSender<Duration>,
) {
    let mut open = Vec::new();
    for id in [14, 16] {
        far.send(&connect(id, to));
        open.push(taken(kubelet));
    }
    assert!(far.until_pong().is_empty());
    let mut turned = Duration::ZERO;
    let list = loop {
        turn.send(STEP).unwrap();
        turned += STEP;
        let (mut pinged, mut list) = (false, None);
        while !pinged {
            match far.hear() {
                (PING, payload) => {
                    far.pong(&payload);
                    pinged = true;
                }
                (BINARY, payload) => list = Some(after_number(&payload)),
                other => panic!("{other:?}"),
            }
        }
        if list.is_none() {
            list = far.until_pong().pop();
        }
        let age = begun.elapsed() + turned;
        match list {
            Some(list) => {
                assert!(age >= LISTS, "after {age:?}");
                break list;
            }
            None => assert!(age < LISTS + STEP * 2, "no list after {age:?}"),
        }
    };
    let ids = [7_u64.to_le_bytes(), 8_u64.to_le_bytes()].concat();
    assert_eq!(list, [&[0, SYNC][..], &ids].concat());
    drop(open);
    let mut ends = [far.frame(), far.frame()];
    ends.sort();
    assert_eq!(ends, [error(14, "EOF"), error(16, "EOF")]);
}
