//! `/portForward`: connections to a pod's own loopback, each a pair of SPDY streams (bytes, and what went wrong).
//!
//! kubectl's frames come in a websocket, an API server's of K3s bare. SPDY as it is spoken here has no windows: a pod that
//! does not read holds up its own stream first, then for a while its client's connection, and is then cut off.
//!
//! Source: Kubernetes v1.36, `cri-streaming/pkg/streaming/portforward/httpstream.go`.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::route::{Place, Refusal};
use super::spdy::frame::{self, Encoder, Heard};
use super::spdy::header::{Headers, value};
use super::spdy::wire::{self, Coat, Ends, Queue};
use super::{Port, find};
use crate::kubelet::adapt::chain;
use crate::kubelet::disk::blocking;
use crate::sys::netns;

/// What is negotiated bare, in a header of its own.
pub const BARE: &str = "portforward.k8s.io";
/// What is negotiated for a websocket.
pub const WEBSOCKET: &str = "SPDY/3.1+portforward.k8s.io";
/// Connections of one client at once: a browser that loads a page has dozens.
const PAIRS: usize = 256;
/// Pieces of one stream that wait for the pod. Of [`frame::PIECE`] bytes at most, they are 64 KiB: 16 MiB for a client
/// with as many connections as it may have, all of them to pods that do not read.
const INPUT_QUEUE: usize = 4;
/// How long a full queue holds up the client's other streams.
const STALL: Duration = Duration::from_secs(30);
/// Somebody listens on a pod's loopback, or nobody does.
const CONNECT: Duration = Duration::from_secs(10);
/// Read at once from the pod.
const CHUNK: usize = 16 << 10;

/// A pod whose ports are wanted.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// For messages.
    pod: String,
    uid: String,
    netns: PathBuf,
}

/// Looks whether the pod runs.
///
/// # Errors
/// [`Refusal`].
pub async fn prepare(port: &Port, place: &Place) -> Result<Forwarding, Refusal> {
    let known = find(&port.roll, place)?;
    let uid = known.pod.meta.uid.clone();
    let state = port.containers.pod(&uid).await;
    let state = state.map_err(|error| Refusal::new(500, chain(&error)))?;
    match state.filter(|state| state.shim_alive) {
        Some(state) => Ok(Forwarding {
            pod: known.pod.meta.name.clone(),
            uid,
            netns: state.netns,
        }),
        None => Err(Refusal::new(500, format!("pod {:?} is not running", place.pod))),
    }
}

/// Serves a client until it is gone; its connections to the pod end with it.
pub async fn serve(forwarding: Forwarding, coat: Coat, upgraded: Upgraded) {
    let ends = wire::open(coat, upgraded).await;
    let forwarding = Arc::new(forwarding);
    let dial = move |port| {
        let forwarding = forwarding.clone();
        async move {
            let Forwarding { pod, uid, netns } = &*forwarding;
            let connected = connect(netns, port).await;
            connected.map_err(|why| format!("failed to forward port {port} to pod {pod} (uid {uid}): {why}"))
        }
    };
    converse(ends, dial).await;
}

/// Serves a client whose ports lead where `dial` says; its error is told to the client.
async fn converse<S, F>((mut source, sink, queue): Ends, dial: impl Fn(u16) -> F)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
    F: Future<Output = Result<S, String>> + Send + 'static,
{
    let serving = async move {
        let mut table = Table::default();
        let mut encoder = Encoder::default();
        // Each a task of its own: places in the queue are given in turn, and one given to a pair that nobody polls, while
        // this loop waits for its own, would be lost to all.
        let mut flying = JoinSet::new();
        loop {
            let heard = tokio::select! {
                heard = source.next() => heard,
                Some(over) = flying.join_next() => {
                    over.into_iter().for_each(|number| table.forget(number));
                    continue;
                }
            };
            match heard {
                None => return,
                Some(Heard::Open { stream, headers, fin }) => {
                    let opened = table.open(stream, &headers, fin);
                    let answer = match opened {
                        Opened::Refused => frame::reset(stream),
                        Opened::Half | Opened::Pair(_) => encoder.reply(stream),
                    };
                    if queue.send(answer).await.is_err() {
                        return;
                    }
                    if let Opened::Pair(pair) = opened {
                        let dialing = dial(pair.port);
                        flying.spawn(forward(dialing, pair, queue.clone()));
                    }
                }
                Some(Heard::Data { stream, bytes, fin }) => {
                    if !table.put(stream, bytes, fin).await {
                        table.cut(stream);
                        let _ = queue.send(frame::reset(stream)).await;
                    }
                }
                Some(Heard::Reset { stream }) => table.cut(stream),
                Some(Heard::Ping { id }) => drop(queue.try_send(frame::ping(id))),
                Some(Heard::GoAway) => {}
            }
        }
    };
    tokio::join!(serving, sink.run());
}

/// A connection wanted: its streams, its port, and what the client sends.
#[derive(Debug)]
struct Pair {
    number: u64,
    data: u32,
    error: u32,
    port: u16,
    input: mpsc::Receiver<Bytes>,
    /// Its other end is dropped when the client has given the connection up.
    cut: oneshot::Receiver<()>,
}

#[derive(Debug)]
enum Opened {
    /// The other stream of the pair is awaited.
    Half,
    Pair(Pair),
    Refused,
}

/// The streams of a client.
#[derive(Debug, Default)]
struct Table {
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
    fn open(&mut self, stream: u32, headers: &Headers, fin: bool) -> Opened {
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
    async fn put(&mut self, stream: u32, bytes: Bytes, fin: bool) -> bool {
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
    fn cut(&mut self, stream: u32) {
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
    fn forget(&mut self, number: u64) {
        if let Some(streams) = self.pairs.remove(&number) {
            self.inputs.remove(&streams.data);
        }
        self.waiting.remove(&number);
        self.cuts.remove(&number);
    }
}

/// Carries one connection to its end; returns its pair's number.
async fn forward<S: AsyncRead + AsyncWrite>(
    dialing: impl Future<Output = Result<S, String>>,
    pair: Pair,
    queue: Queue,
) -> u64 {
    let Pair {
        number,
        data,
        error,
        input,
        cut,
        ..
    } = pair;
    let carrying = async {
        match dialing.await {
            Ok(stream) => {
                let (from_pod, to_pod) = split(stream);
                // The pod's end of its side is the end; what the client still sends then is for nobody.
                tokio::select! {
                    () = from(from_pod, data, &queue) => {}
                    () = async { to(to_pod, input).await; std::future::pending().await } => {}
                }
            }
            Err(why) => {
                let _ = queue.send(frame::data(error, why.as_bytes(), false)).await;
            }
        }
    };
    tokio::select! {
        () = carrying => {}
        _ = cut => {}
    }
    // client-go waits for the end of the error stream even after it has given the other one up.
    for stream in [data, error] {
        let _ = queue.send(frame::data(stream, b"", true)).await;
    }
    number
}

async fn from(mut pod: impl AsyncRead + Unpin, stream: u32, queue: &Queue) {
    let mut chunk = Vec::with_capacity(CHUNK);
    while let Ok(read) = pod.read_buf(&mut chunk).await {
        if read == 0 || queue.send(frame::data(stream, &chunk, false)).await.is_err() {
            return;
        }
        chunk.clear();
    }
}

async fn to(mut pod: impl AsyncWrite + Unpin, mut input: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = input.recv().await {
        if pod.write_all(&bytes).await.is_err() {
            break;
        }
    }
    let _ = pod.shutdown().await;
}

/// Connects to a port of the pod's loopback, of either family.
async fn connect(netns: &Path, port: u16) -> io::Result<TcpStream> {
    let stream = either_family(|loopback| {
        let netns = netns.to_owned();
        async move {
            // A socket belongs to the namespace in which it was made; it may be used from anywhere.
            let socket = blocking(move || netns::inside(&netns, move || netns::tcp_socket(loopback))).await?;
            let connecting = timeout(CONNECT, socket.connect(SocketAddr::new(loopback, port))).await;
            connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
    });
    let stream = stream.await?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// The first family that answers. Else it is the first one's refusal that tells a user something: a kernel may have no
/// other family at all, and then not even a socket of it.
async fn either_family<S, F>(dial: impl Fn(IpAddr) -> F) -> io::Result<S>
where
    F: Future<Output = io::Result<S>>,
{
    let mut refused = None;
    for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match dial(loopback).await {
            Ok(stream) => return Ok(stream),
            Err(error) => drop(refused.get_or_insert(error)),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};
    use tokio::time::sleep;

    use super::super::spdy::frame::Decoder;
    use super::super::spdy::frame::client::Opener;
    use super::*;

    /// A client, and the pod's ends of its connections as they are asked for.
    struct Rig {
        client: DuplexStream,
        opener: Opener,
        decoder: Decoder,
        pods: mpsc::UnboundedReceiver<DuplexStream>,
        tasks: JoinSet<()>,
    }

    impl Rig {
        fn new() -> Self {
            let (client, theirs) = duplex(16 << 10);
            let (asked, pods) = mpsc::unbounded_channel();
            let mut tasks = JoinSet::new();
            tasks.spawn(converse(wire::bare(theirs), move |_port| {
                let (pod, ours) = duplex(1024);
                let sent = asked.send(pod).map_err(|error| error.to_string());
                std::future::ready(sent.map(|()| ours))
            }));
            Self {
                client,
                opener: Opener::default(),
                decoder: Decoder::default(),
                pods,
                tasks,
            }
        }

        /// Opens a pair with streams `error` and `error + 2`.
        async fn open(&mut self, error: u32, number: u64) {
            let number = number.to_string();
            for (stream, kind) in [(error, "error"), (error + 2, "data")] {
                let named = [("streamtype", kind), ("port", "80"), ("requestid", &number)];
                self.client.write_all(&self.opener.open(stream, &named)).await.unwrap();
            }
        }

        /// What comes next.
        async fn hear(&mut self) -> Heard {
            loop {
                if let Some(heard) = self.decoder.next().unwrap() {
                    return heard;
                }
                let mut chunk = Vec::new();
                assert!(self.client.read_buf(&mut chunk).await.unwrap() > 0);
                self.decoder.push(&chunk);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_late_gets_everything() {
        const LENGTH: usize = 64 << 10;
        let mut rig = Rig::new();
        for number in 0..12 {
            rig.open(u32::try_from(number).unwrap() * 4 + 1, number).await;
        }
        let print = |rig: &mut Rig, mut pod: DuplexStream| {
            rig.tasks
                .spawn(async move { pod.write_all(&[b'x'; LENGTH]).await.unwrap() });
        };
        for _ in 0..12 {
            let pod = rig.pods.recv().await.unwrap();
            print(&mut rig, pod);
        }
        sleep(Duration::from_secs(1)).await;
        rig.open(49, 12).await;
        sleep(Duration::from_secs(1)).await;
        let (mut bytes, mut ends) = (0, 0);
        while ends < 26 {
            tokio::select! {
                heard = rig.hear() => if let Heard::Data { bytes: more, fin, .. } = heard {
                    (bytes, ends) = (bytes + more.len(), ends + usize::from(fin));
                },
                () = sleep(Duration::from_secs(60)) => panic!("nothing comes after {bytes} bytes"),
            }
            if let Ok(pod) = rig.pods.try_recv() {
                print(&mut rig, pod);
            }
        }
        assert_eq!(bytes, 13 * LENGTH);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_its_client_resets_the_bytes_however_much_the_pod_sends() {
        let mut rig = Rig::new();
        rig.open(1, 0).await;
        let (mut from_client, mut to_client) = split(rig.pods.recv().await.unwrap());
        let endless = rig
            .tasks
            .spawn(async move { while to_client.write_all(&[b'x'; 500]).await.is_ok() {} });
        let said = [frame::reset(1), frame::data(3, b"still", false)].concat();
        rig.client.write_all(&said).await.unwrap();
        let mut input = [0; 5];
        from_client.read_exact(&mut input).await.unwrap();
        assert_eq!(&input, b"still", "the error stream alone is not missed");
        assert!(matches!(
            rig.hear().await,
            Heard::Data {
                stream: 3,
                fin: false,
                ..
            }
        ));
        rig.client.write_all(&frame::reset(3)).await.unwrap();
        while !matches!(
            rig.hear().await,
            Heard::Data {
                stream: 1,
                fin: true,
                ..
            }
        ) {}
        sleep(Duration::from_secs(1)).await;
        assert!(endless.is_finished());
        rig.open(5, 0).await;
        assert!(rig.pods.recv().await.is_some(), "its number is free");
    }

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

    #[tokio::test]
    async fn a_refusal_is_told_though_the_kernel_lacks_the_other_family() {
        let answer = async |fourth: Result<u8, io::ErrorKind>, sixth: Result<u8, io::ErrorKind>| {
            let dial = |loopback: IpAddr| std::future::ready(if loopback.is_ipv4() { fourth } else { sixth });
            let answer = either_family(|loopback| async move { dial(loopback).await.map_err(io::Error::from) });
            answer.await.map_err(|error| error.kind())
        };
        let (refused, unknown) = (io::ErrorKind::ConnectionRefused, io::ErrorKind::Unsupported);
        assert_eq!(answer(Err(refused), Err(unknown)).await, Err(refused));
        assert_eq!(answer(Err(unknown), Ok(6)).await, Ok(6));
        assert_eq!(answer(Ok(4), Ok(6)).await, Ok(4));
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
