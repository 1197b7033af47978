//! `/portForward`: connections to a pod's own loopback, each a pair of SPDY streams (bytes, and what went wrong).
//!
//! kubectl's frames come in a websocket, an API server's of K3s bare. SPDY as it is spoken here has no windows: a pod that
//! does not read holds up its own stream first, then for a while its client's connection, and is then cut off.
//!
//! `pairs.rs` is which streams make a connection. Source: Kubernetes v1.36,
//! `cri-streaming/pkg/streaming/portforward/httpstream.go`.

mod pairs;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::route::{Place, Refusal};
use super::spdy::frame::{self, Encoder, Heard};
use super::spdy::wire::{self, Coat, Ends, Queue};
use super::{Port, find};
use crate::kubelet::adapt::chain;
use crate::kubelet::disk::blocking;
use crate::sys::netns;
use pairs::{Opened, Pair, Table};

/// What is negotiated bare, in a header of its own.
pub const BARE: &str = "portforward.k8s.io";
/// What is negotiated for a websocket.
pub const WEBSOCKET: &str = "SPDY/3.1+portforward.k8s.io";
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
}
