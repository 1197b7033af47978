//! Two servers on one datastore under load: durable creates a second through both, and how long after its answer a write reaches
//! a watch at the server that did not take it.
//!
//! Servers, datastore and clients share the machine, so clients are lean: bodies are a text with a name put in, connections
//! few, and a watch keeps bytes and the time at which they came, which are read when all is over. Each watch is of what the
//! other server is given. The processor time of each part is in the table.
//!
//! When a transaction was committed only the database knows: after the request left and before its answer was read. So how late
//! an event is lies between its time after the answer (0 if it came before) and its time after the request.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use agent::api::{Client, Endpoint};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;

use crate::pair::{Kind, Pair, SERVERS};
use crate::process;
use crate::table::Table;

const WRITERS: [usize; 3] = [1, 64, 256];
const LASTS: Duration = Duration::from_secs(8);
/// A watch ends so long after the last write; what is seen later counts as lost.
const GRACE: Duration = Duration::from_secs(4);
/// To each server, shared by its writers.
const CONNECTIONS: usize = 4;
/// An object's, as it is sent.
const SIZE: usize = 1000;
/// For a namespace to be known to both servers, and furnished.
const SETTLE: Duration = Duration::from_secs(3);
/// Of the commitments: creates a second at least with many writers on PostgreSQL; an event's delay, median and 99th percentile.
const RATE: f64 = 3000.0;
const LATE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(20)];
/// The same on MariaDB, which tells nobody of commits: servers tell each other.
const LATE_UNTOLD: [Duration; 2] = [Duration::from_millis(60); 2];

/// When a create was sent, and answered.
type Written = (Instant, Instant);
type Sender = http2::SendRequest<Full<Bytes>>;

/// Measures each number of writers.
pub async fn measure(kind: Kind, table: &mut Table) {
    let mut pair = Pair::start(kind).await;
    for writers in WRITERS {
        round(kind, &pair, writers, table).await;
    }
    pair.lab.stop();
}

async fn round(kind: Kind, pair: &Pair, writers: usize, table: &mut Table) {
    let namespaces = SERVERS.map(|name| format!("from-{name}-{writers}"));
    let client = Client::new(endpoint(pair, 0));
    for namespace in &namespaces {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        client.create("/api/v1/namespaces", &object).await.unwrap();
    }
    sleep(SETTLE).await;
    let watches: Vec<JoinHandle<Vec<Chunk>>> = (0..)
        .zip(&namespaces)
        .map(|(server, namespace)| watch(endpoint(pair, 1 - server), namespace))
        .collect();
    let connections = [connect(pair, 0, writers).await, connect(pair, 1, writers).await];
    let before = Usage::now(pair);
    let written = write(connections, &namespaces, writers).await;
    let used = Usage::now(pair).since(&before);
    // They end by themselves; nothing else is to be done meanwhile.
    let seen: Vec<Vec<Chunk>> = watches.into_iter().map(|watch| watch.join().unwrap()).collect();
    report((kind, writers), &written, &seen, &used, table);
}

fn endpoint(pair: &Pair, server: usize) -> Endpoint {
    pair.endpoint(&pair.lab.address(SERVERS[server]), 6443)
}

/// Bytes of a watch, and when they came.
type Chunk = (Instant, Bytes);

/// Watches ConfigMaps in a thread of its own, which writers do not hold up, from before this returns until [`GRACE`] after the
/// last write.
fn watch(endpoint: Endpoint, namespace: &str) -> JoinHandle<Vec<Chunk>> {
    let seconds = (LASTS + GRACE).as_secs();
    let path = format!("/api/v1/namespaces/{namespace}/configmaps?watch=1&resourceVersion=0&timeoutSeconds={seconds}");
    let (ready, begun) = mpsc::channel();
    let watching = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut link = endpoint.connect().await.unwrap();
            let request = Request::get(path).header("host", "localhost");
            let answer = link.send(request.body(Full::default()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200);
            ready.send(()).unwrap();
            let (mut body, mut chunks) = (answer.into_body(), Vec::new());
            while let Some(chunk) = link.chunk(&mut body).await.unwrap() {
                chunks.push((Instant::now(), chunk));
            }
            chunks
        })
    });
    begun.recv().unwrap();
    watching
}

/// Connections of the writers to a server, with the tasks that move their bytes.
struct Connections {
    senders: Vec<Sender>,
    tasks: JoinSet<()>,
}

async fn connect(pair: &Pair, server: usize, writers: usize) -> Connections {
    let host = pair.lab.address(SERVERS[server]);
    let mut tls = rustls::ClientConfig::clone(&pair.administrator());
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(tls));
    let (mut senders, mut tasks) = (Vec::new(), JoinSet::new());
    for _ in 0..CONNECTIONS.min(writers) {
        let socket = TcpStream::connect((host.as_str(), 6443)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from(host.clone()).unwrap();
        let socket = TokioIo::new(tls.connect(name, socket).await.unwrap());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
        tasks.spawn(async move { connection.await.unwrap_or_default() });
        senders.push(sender);
    }
    Connections { senders, tasks }
}

/// Writers take turns between the servers. What each has written, by its number and the write's.
async fn write(connections: [Connections; 2], namespaces: &[String; 2], writers: usize) -> Vec<Vec<Written>> {
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for writer in 0..writers {
        let (server, turn) = (writer % 2, writer / 2);
        let senders = &connections[server].senders;
        let sender = senders[turn % senders.len()].clone();
        let path = format!(
            "https://{}/api/v1/namespaces/{}/configmaps",
            SERVERS[server], namespaces[server]
        );
        running.spawn(async move { (writer, create(sender, &path, writer, begun).await) });
    }
    let mut written = running.join_all().await;
    written.sort_unstable_by_key(|(writer, _)| *writer);
    for mut connections in connections {
        connections.tasks.shutdown().await;
    }
    written.into_iter().map(|(_, written)| written).collect()
}

/// Creates one object after the other, each when the one before was answered.
async fn create(mut sender: Sender, path: &str, writer: usize, begun: Instant) -> Vec<Written> {
    let mut written: Vec<Written> = Vec::new();
    let frame = object("", "").len();
    while begun.elapsed() < LASTS {
        let name = format!("w{writer}-{}", written.len());
        let body = object(&name, &"x".repeat(SIZE - frame - name.len()));
        let request = Request::post(path).header("content-type", "application/json");
        let sent = Instant::now();
        let answer = sender.send_request(request.body(body.into()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 201);
        written.push((sent, Instant::now()));
        answer.into_body().collect().await.unwrap();
    }
    written
}

fn object(name: &str, text: &str) -> String {
    format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"text":"{text}"}}}}"#)
}

/// Processor time so far.
struct Usage {
    servers: Duration,
    clients: Duration,
}

impl Usage {
    fn now(pair: &Pair) -> Self {
        Self {
            servers: SERVERS.map(|name| process::cpu(pair.lab.pid(name))).iter().sum(),
            clients: process::cpu(std::process::id()),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            servers: self.servers.saturating_sub(before.servers),
            clients: self.clients.saturating_sub(before.clients),
        }
    }
}

fn report(
    (kind, writers): (Kind, usize),
    written: &[Vec<Written>],
    seen: &[Vec<Chunk>],
    used: &Usage,
    table: &mut Table,
) {
    let what = format!("two servers on {}, {writers} writers", kind.name());
    let (mut answered, mut after_answer, mut after_request) = (Vec::new(), Vec::new(), Vec::new());
    for (server, chunks) in seen.iter().enumerate() {
        let came = arrivals(chunks);
        for (writer, written) in written.iter().enumerate().filter(|(writer, _)| writer % 2 == server) {
            for (number, (sent, answer)) in written.iter().enumerate() {
                let name = format!("w{writer}-{number}");
                let at = came
                    .get(&name)
                    .unwrap_or_else(|| panic!("{name} was acknowledged and not seen by the other server"));
                answered.push(answer.saturating_duration_since(*sent));
                after_answer.push(at.saturating_duration_since(*answer));
                after_request.push(at.saturating_duration_since(*sent));
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = answered.len() as f64 / LASTS.as_secs_f64();
    table.rate(
        &format!("{what}: creates of {SIZE} bytes"),
        rate,
        (kind == Kind::PostgreSql && writers > 1).then_some(RATE),
    );
    table.spread(&format!("{what}: answered after"), &answered, None);
    table.spread_within(
        &format!("{what}: seen at the other after the answer"),
        &after_answer,
        if kind == Kind::MariaDb { LATE_UNTOLD } else { LATE },
    );
    table.spread(
        &format!("{what}: seen at the other after the request"),
        &after_request,
        None,
    );
    for (who, time) in [("servers", used.servers), ("clients", used.clients)] {
        let cores = time.as_secs_f64() / LASTS.as_secs_f64();
        table.number(&format!("{what}: processors used by the {who}"), cores, "cores", None);
    }
}

/// When the event about each object of a watch had come whole.
fn arrivals(chunks: &[Chunk]) -> HashMap<String, Instant> {
    let (mut came, mut line) = (HashMap::new(), Vec::new());
    for (at, chunk) in chunks {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let event: Value = serde_json::from_slice(&line).unwrap();
                let name = event["object"]["metadata"]["name"].as_str().unwrap();
                came.insert(name.to_owned(), *at);
                line.clear();
            }
        }
    }
    came
}
