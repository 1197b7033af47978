//! Which streams of a client make a connection to a pod's port: two each, of its bytes and of what went wrong.
//!
//! They are opened in either order, and bytes may come before the second one. Nothing is sent from here: what [`Table::open`]
//! and [`Table::put`] answer is for `portforward.rs` to tell the client.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::super::spdy::header::{Headers, value};

/// Connections of one client at once: a browser that loads a page has dozens.
const PAIRS: usize = 256;
/// Pieces of one stream that wait for the pod. Of [`PIECE`] bytes at most, they are 64 KiB: 16 MiB for a client with as many
/// connections as it may have, all of them to pods that do not read.
///
/// [`PIECE`]: super::super::spdy::frame::PIECE
const INPUT_QUEUE: usize = 4;
/// How long a full queue holds up the client's other streams.
const STALL: Duration = Duration::from_secs(30);

/// A connection wanted: its streams, its port, and what the client sends.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) number: u64,
    pub(super) data: u32,
    pub(super) error: u32,
    pub(super) port: u16,
    pub(super) input: mpsc::Receiver<Bytes>,
    /// Its other end is dropped when the client has given the connection up.
    pub(super) cut: oneshot::Receiver<()>,
}

/// What a stream is to its pair.
#[derive(Debug)]
pub(super) enum Opened {
    /// The other stream of the pair is awaited.
    Half,
    /// It makes the pair whole.
    Pair(Pair),
    /// It is of no pair, or of one too many.
    Refused,
}

/// The streams of a client.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By the client's number of the pair.
    pairs: BTreeMap<u64, Streams>,
    /// Where bytes of a stream go.
    inputs: BTreeMap<u32, mpsc::Sender<Bytes>>,
    /// Bytes of pairs that are not whole.
    waiting: BTreeMap<u64, mpsc::Receiver<Bytes>>,
    /// Of pairs that are whole: dropped, they end the connection.
    cuts: BTreeMap<u64, oneshot::Sender<()>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Streams {
    error: u32,
    data: u32,
    port: u16,
}

impl Table {
    /// A stream that the client opens, with the headers that say of which pair and port it is.
    pub(super) fn open(&mut self, stream: u32, headers: &Headers, fin: bool) -> Opened {
        // Clients before there were numbers sent none, and opened error and data one after the other.
        let number = match value(headers, "requestid") {
            "" => Ok(u64::from(stream.saturating_sub(1) / 4) | 1 << 63),
            text => text.parse(),
        };
        let (Ok(number), Ok(port)) = (number, value(headers, "port").parse::<u16>()) else {
            return Opened::Refused;
        };
        if stream == 0 || port == 0 || (self.pairs.len() >= PAIRS && !self.pairs.contains_key(&number)) {
            return Opened::Refused;
        }
        let known = self.pairs.get(&number).copied().unwrap_or_default();
        let now = match value(headers, "streamtype") {
            "error" if known.error == 0 => Streams { error: stream, ..known },
            "data" if known.data == 0 => Streams {
                data: stream,
                port,
                ..known
            },
            _ => return Opened::Refused,
        };
        self.pairs.insert(number, now);
        if now.data == stream {
            // Bytes may come before the pair is whole.
            let (to, input) = mpsc::channel(INPUT_QUEUE);
            self.inputs.insert(stream, to);
            self.waiting.insert(number, input);
        }
        if fin {
            self.end(stream);
        }
        match self.waiting.remove(&number) {
            Some(input) if now.error != 0 && now.data != 0 => {
                let (cutting, cut) = oneshot::channel();
                self.cuts.insert(number, cutting);
                Opened::Pair(Pair {
                    number,
                    data: now.data,
                    error: now.error,
                    port: now.port,
                    input,
                    cut,
                })
            }
            waiting => {
                self.waiting.extend(waiting.map(|input| (number, input)));
                Opened::Half
            }
        }
    }

    /// Hands bytes on; false when the stream takes none for too long. Bytes of streams that are over are nobody's.
    pub(super) async fn put(&mut self, stream: u32, bytes: Bytes, fin: bool) -> bool {
        let to = match fin {
            true => self.inputs.remove(&stream),
            false => self.inputs.get(&stream).cloned(),
        };
        match to.filter(|_| !bytes.is_empty()) {
            Some(to) => timeout(STALL, to.send(bytes)).await.is_ok(),
            None => true,
        }
    }

    /// The client sends nothing more on a stream.
    fn end(&mut self, stream: u32) {
        self.inputs.remove(&stream);
    }

    /// A stream is given up. The connection ends with that of its bytes, which client-go resets once it is done with it,
    /// however much the pod still sends; not with that of what went wrong.
    pub(super) fn cut(&mut self, stream: u32) {
        let of = |(_, streams): &(&u64, &Streams)| stream != 0 && streams.data == stream;
        let Some(number) = self.pairs.iter().find(of).map(|(number, _)| *number) else {
            return;
        };
        self.end(stream);
        match self.cuts.remove(&number) {
            Some(cutting) => drop(cutting), // its task ends, and it is forgotten then
            None if self.waiting.contains_key(&number) => self.forget(number),
            None => {}
        }
    }

    /// A pair is over.
    pub(super) fn forget(&mut self, number: u64) {
        if let Some(streams) = self.pairs.remove(&number) {
            self.inputs.remove(&streams.data);
        }
        self.waiting.remove(&number);
        self.cuts.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_is_not_whole_is_forgotten_with_its_bytes() {
        let mut table = Table::default();
        open(&mut table, 1, "error", "80", "0");
        open(&mut table, 3, "data", "80", "1");
        for stream in [0, 1, 9] {
            table.cut(stream);
        }
        assert_eq!(table.pairs.len(), 2);
        table.cut(3);
        assert_eq!(table.pairs.keys().collect::<Vec<_>>(), [&0]);
        assert!(table.inputs.is_empty() && table.waiting.is_empty());
    }

    fn open(table: &mut Table, stream: u32, kind: &str, port: &str, number: &str) -> Opened {
        let named = [("streamtype", kind), ("port", port), ("requestid", number)];
        let headers: Headers = named.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        table.open(stream, &headers, false)
    }

    fn port_of(opened: &Opened) -> Option<u16> {
        match opened {
            Opened::Pair(pair) => Some(pair.port),
            Opened::Half | Opened::Refused => None,
        }
    }

    #[tokio::test]
    async fn two_streams_are_a_connection_whichever_comes_first() {
        let mut table = Table::default();
        assert!(matches!(open(&mut table, 1, "error", "80", "0"), Opened::Half));
        assert_eq!(port_of(&open(&mut table, 3, "data", "80", "0")), Some(80));
        assert!(matches!(open(&mut table, 5, "data", "81", "1"), Opened::Half));
        assert!(table.put(5, Bytes::from_static(b"early"), false).await);
        let Opened::Pair(mut pair) = open(&mut table, 7, "error", "81", "1") else {
            panic!("the pair is whole")
        };
        table.end(5);
        assert_eq!(pair.input.recv().await.unwrap(), "early");
        assert_eq!(pair.input.recv().await, None);
        for (stream, kind) in [(9, "error"), (11, "data")] {
            let opened = open(&mut table, stream, kind, "82", "");
            assert_eq!(port_of(&opened).is_some(), kind == "data", "without a number");
        }
        assert_eq!(table.pairs.len(), 3);
    }

    #[test]
    fn what_is_no_stream_of_a_pair_is_refused() {
        let mut table = Table::default();
        open(&mut table, 1, "error", "80", "0");
        for (stream, kind, port, number) in [
            (3, "error", "80", "0"),
            (3, "stdout", "80", "0"),
            (3, "data", "0", "0"),
            (3, "data", "x", "0"),
            (3, "data", "80", "x"),
            (0, "data", "80", "0"),
        ] {
            let opened = open(&mut table, stream, kind, port, number);
            assert!(matches!(opened, Opened::Refused), "{stream} {kind} {port} {number}");
        }
        assert!(table.inputs.is_empty());
    }

    #[test]
    fn connections_of_a_client_are_bounded_and_forgotten_when_over() {
        let mut table = Table::default();
        let most = u32::try_from(PAIRS).unwrap();
        for number in 0..most {
            open(&mut table, number * 4 + 1, "error", "80", &number.to_string());
            open(&mut table, number * 4 + 3, "data", "80", &number.to_string());
        }
        let more = |table: &mut Table| open(table, 9001, "error", "80", "9000");
        assert!(matches!(more(&mut table), Opened::Refused));
        table.forget(0);
        assert!(matches!(more(&mut table), Opened::Half));
        (0..=9000).for_each(|number| table.forget(number));
        assert!(table.pairs.is_empty() && table.inputs.is_empty() && table.waiting.is_empty());
        assert!(table.cuts.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_takes_nothing_is_given_up_after_a_while() {
        let mut table = Table::default();
        open(&mut table, 1, "error", "80", "0");
        let pair = open(&mut table, 3, "data", "80", "0");
        let piece = || Bytes::from_static(b"x");
        for _ in 0..INPUT_QUEUE {
            assert!(table.put(3, piece(), false).await);
        }
        assert!(!table.put(3, piece(), false).await);
        assert!(table.put(77, piece(), true).await, "bytes of no stream are nobody's");
        drop(pair);
        table.forget(0);
        assert!(table.inputs.is_empty());
    }
}
