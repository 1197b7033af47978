//! A network that is slow, narrow, loses packets, stands still or breaks: a TCP proxy that does all that to what passes it.
//!
//! This kernel has no netem. What a lost packet is to TCP, bytes that come a retransmission later, is done to the bytes;
//! what comes out is what went in, in order, until a connection is cut, which may be in the middle of anything.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Read at once.
const PIECE: usize = 16 << 10;
/// Pieces under way in each direction: the network's buffers.
const UNDER_WAY: usize = 64;
/// What TCP waits at least before it sends again what was lost (Linux' `TCP_RTO_MIN`).
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// While a direction stands still.
const STANDING: Duration = Duration::from_millis(5);

/// What one direction is like.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Weather {
    /// On the way at least so long,
    pub delay: Duration,
    /// and so much longer at most.
    pub jitter: Duration,
    /// Bytes a second.
    pub rate: Option<u32>,
    /// Pieces in a hundred that get lost, and come when they are sent again.
    pub lost: u64,
    /// Nothing gets through, and nobody is told.
    pub stalled: bool,
    /// A connection is cut after at most twice so many bytes.
    pub cut_after: Option<u64>,
}

/// The two directions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// To who listens.
    There,
    /// To who connected.
    Back,
}

/// The proxy. Its end cuts what passes it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    over: AtomicBool,
    /// Connections that weather has cut.
    cuts: AtomicUsize,
}

#[derive(Debug)]
struct State {
    to: Option<SocketAddr>,
    there: Weather,
    back: Weather,
    open: Vec<TcpStream>,
    chance: u64,
}

impl Proxy {
    /// Listens on a free port of `address`, and passes connections on to `to`.
    pub fn start(address: Ipv4Addr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            to: Some(to),
            there: Weather::default(),
            back: Weather::default(),
            open: Vec::new(),
            chance: 0x9e37_79b9_7f4a_7c15,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            over: AtomicBool::new(false),
            cuts: AtomicUsize::new(0),
        });
        let taking = Arc::clone(&shared);
        let accepting = thread::spawn(move || accept(&listener, &taking));
        Self {
            address,
            shared,
            accepting: Some(accepting),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather of both directions.
    pub fn set(&self, weather: Weather) {
        let mut state = self.shared.state.lock().unwrap();
        (state.there, state.back) = (weather, weather);
    }

    /// Changes the weather of one direction.
    pub fn set_one(&self, direction: Direction, weather: Weather) {
        let mut state = self.shared.state.lock().unwrap();
        match direction {
            Direction::There => state.there = weather,
            Direction::Back => state.back = weather,
        }
    }

    /// Cuts every connection, drops what is under way, and passes new ones on to `to`; without it they are closed.
    pub fn lead_to(&self, to: Option<SocketAddr>) {
        let mut state = self.shared.state.lock().unwrap();
        state.to = to;
        for stream in state.open.drain(..) {
            // It may have ended.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// How many connections the weather has cut.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.lead_to(None);
        // So that it sees that it is over.
        let _ = TcpStream::connect(self.address);
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

impl State {
    /// Below `bound` (xorshift).
    fn below(&mut self, bound: u64) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % bound.max(1)
    }

    fn weather(&self, direction: Direction) -> Weather {
        match direction {
            Direction::There => self.there,
            Direction::Back => self.back,
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.over.load(Ordering::Relaxed) {
            return;
        }
        let to = shared.state.lock().unwrap().to;
        let (Ok(client), Some(to)) = (client, to) else { continue };
        let shared = Arc::clone(shared);
        // It may take long, and others are to connect meanwhile. Ends with the connection.
        thread::spawn(move || {
            let Ok(server) = TcpStream::connect_timeout(&to, Duration::from_secs(10)) else {
                return;
            };
            let mut state = shared.state.lock().unwrap();
            if state.to != Some(to) {
                return;
            }
            state.open.retain(|stream| stream.peer_addr().is_ok());
            for stream in [&client, &server] {
                let _ = stream.set_nodelay(true);
                state.open.extend(stream.try_clone());
            }
            drop(state);
            for (direction, from, into) in [
                (Direction::There, &client, &server),
                (Direction::Back, &server, &client),
            ] {
                let (Ok(from), Ok(into)) = (from.try_clone(), into.try_clone()) else {
                    continue;
                };
                let shared = Arc::clone(&shared);
                thread::spawn(move || pass(direction, from, into, &shared));
            }
        });
    }
}

/// Passes one direction on, until it ends or is cut.
fn pass(direction: Direction, mut from: TcpStream, into: TcpStream, shared: &Arc<Shared>) {
    let (pieces, coming) = sync_channel(UNDER_WAY);
    let writer = {
        let shared = Arc::clone(shared);
        thread::spawn(move || write(direction, into, &coming, &shared))
    };
    read(direction, &mut from, &pieces, shared);
    drop(pieces);
    // A panic over there has been printed already.
    let _ = writer.join();
}

fn read(direction: Direction, from: &mut TcpStream, pieces: &SyncSender<(Instant, Vec<u8>)>, shared: &Shared) {
    let (mut last, mut left) = (Instant::now(), None);
    loop {
        let mut bytes = vec![0; PIECE];
        let length = from.read(&mut bytes).unwrap_or(0);
        bytes.truncate(length);
        let mut state = shared.state.lock().unwrap();
        let weather = state.weather(direction);
        let jitter = state.below(u64::try_from(weather.jitter.as_micros()).unwrap());
        let mut due = Instant::now() + weather.delay + Duration::from_micros(jitter);
        if state.below(100) < weather.lost {
            due += RETRANSMISSION;
        }
        let most: Option<u64> = weather.cut_after.map(|mean| state.below(mean * 2));
        drop(state);
        let took = weather.rate.map_or(0.0, |rate| length as f64 / f64::from(rate));
        // In order.
        last = due.max(last + Duration::from_secs_f64(took));
        left = most.map(|most| left.unwrap_or(most));
        let cut = left.is_some_and(|left| left < length as u64);
        if cut {
            bytes.truncate(usize::try_from(left.unwrap_or(0)).unwrap());
        }
        left = left.map(|left: u64| left.saturating_sub(length as u64));
        let over = length == 0 || pieces.send((last, bytes)).is_err();
        if cut {
            shared.cuts.fetch_add(1, Ordering::Relaxed);
        }
        if cut || over {
            return;
        }
    }
}

fn write(direction: Direction, mut into: TcpStream, coming: &Receiver<(Instant, Vec<u8>)>, shared: &Shared) {
    while let Ok((due, bytes)) = coming.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        while shared.state.lock().unwrap().weather(direction).stalled && !shared.over.load(Ordering::Relaxed) {
            thread::sleep(STANDING);
        }
        if into.write_all(&bytes).is_err() {
            break;
        }
    }
    // Both ways: what is left of a connection that was cut is of no use, and ends that are half open nobody here has.
    let _ = into.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut from, mut to) = (stream.as_ref().unwrap(), stream.as_ref().unwrap());
                let _ = std::io::copy(&mut from, &mut to);
            }
        });
        address
    }

    /// Sends, and returns what comes back before the connection ends.
    fn there_and_back(proxy: &Proxy, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        let mut back = vec![0; bytes.len()];
        let _ = stream.write_all(bytes);
        let mut got = 0;
        while got < back.len() {
            match stream.read(&mut back[got..]) {
                Ok(0) | Err(_) => break,
                Ok(length) => got += length,
            }
        }
        back.truncate(got);
        back
    }

    #[test]
    fn what_passes_is_late_and_narrow_and_whole_or_a_beginning() {
        let proxy = Proxy::start(Ipv4Addr::LOCALHOST, echo());
        let sent: Vec<u8> = (0..60_000_u32).map(|number| number.to_be_bytes()[3]).collect();
        let timed = |weather| {
            proxy.set(weather);
            let begun = Instant::now();
            (there_and_back(&proxy, &sent) == sent, begun.elapsed())
        };
        assert!(timed(Weather::default()).0);
        let slow = Weather {
            delay: Duration::from_millis(60),
            jitter: Duration::from_millis(20),
            lost: 20,
            ..Weather::default()
        };
        let (whole, took) = timed(slow);
        assert!(whole && took >= Duration::from_millis(120), "{took:?}");
        let narrow = Weather {
            rate: Some(120_000),
            ..Weather::default()
        };
        let (whole, took) = timed(narrow);
        assert!(whole && took >= Duration::from_millis(500), "{took:?}");
        proxy.set(Weather {
            cut_after: Some(10_000),
            ..Weather::default()
        });
        let got = there_and_back(&proxy, &sent);
        assert!(
            got.len() < 20_000 && sent.starts_with(&got) && proxy.cuts() > 0,
            "{}",
            got.len()
        );
    }

    #[test]
    fn a_stalled_direction_holds_everything_until_it_goes_on_or_is_cut() {
        let proxy = Proxy::start(Ipv4Addr::LOCALHOST, echo());
        let stalled = Weather {
            stalled: true,
            ..Weather::default()
        };
        proxy.set_one(Direction::Back, stalled);
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        stream.write_all(b"a").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream.read(&mut [0]).unwrap_err();
        proxy.set(Weather::default());
        assert_eq!(stream.read(&mut [0]).unwrap(), 1);
        proxy.lead_to(None);
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        assert!(there_and_back(&proxy, b"b").is_empty());
    }
}
