//! A list of 10,000 pods, to its last byte: spliced in memory, and over TLS on loopback. Limit: 50 ms. And a restart with
//! 100,000 objects. Limit: 2 s.
//!
//! `tests/bench/run list`. The memory that pods take is a test: `tests/memory.rs`; here it is what the kernel says of this
//! process, which is server and client in one.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a figure that cannot be taken ends the run"
)]

#[path = "support/pods.rs"]
mod pods;
#[path = "support/tls.rs"]
mod tls;
#[path = "support/world.rs"]
mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use server::cache::Filter;
use server::http::encode::{self, Style};
use server::http::negotiate::accept;
use server::http::table::Include;
use server::request::What;
use server::run::Server;
use server::store::sql::sqlite::Sqlite;
use server::store::{Change, Expect, Store as _, Write};
use tokio::task::JoinSet;

const PODS: usize = 10_000;
const ROUNDS: usize = 50;
/// ConfigMaps of 1 kB.
const OBJECTS: usize = 100_000;
/// Restarts with them; the best counts: others' work on the machine only ever slows one down.
const RESTARTS: usize = 3;
const PATH: &str = "/api/v1/pods";

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("this is a benchmark: tests/bench/run list");
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        run().await;
        restart().await;
    });
}

async fn run() {
    let folder = world::Folder::new("bench-list");
    let server = world::start(folder.path()).await;
    let pattern = pods::pattern(&server.client).await;
    server.stop().await.unwrap();
    pods::fill(folder.path(), &pattern, PODS).await;
    let begun = Instant::now();
    let server = world::start(folder.path()).await;
    println!(
        "| start with {PODS} pods of {} bytes each | {:.0} ms |",
        pattern.len(),
        millis(begun.elapsed())
    );

    println!("| memory with {PODS} pods, before a list | {} MiB |", memory("VmRSS:"));
    let mut spliced = Vec::new();
    for _ in 0..ROUNDS {
        spliced.push(in_memory(&server).await);
    }
    report("spliced into frames, in memory", spliced);
    report("HTTP/1.1 over TLS on loopback", first_version(&server).await);
    report("HTTP/2 over TLS on loopback", second_version(&server).await);
    println!(
        "| memory after {} lists, and at its highest | {} and {} MiB |",
        3 * ROUNDS,
        memory("VmRSS:"),
        memory("VmHWM:")
    );
    server.stop().await.unwrap();
}

async fn restart() {
    let folder = world::Folder::new("bench-restart");
    let server = world::start(folder.path()).await;
    server.stop().await.unwrap();
    config_maps(folder.path()).await;
    let mut best = Duration::MAX;
    for _ in 0..RESTARTS {
        let begun = Instant::now();
        let server = world::start(folder.path()).await;
        best = best.min(begun.elapsed());
        let page = server.client.list(What::CONFIG_MAPS, None, Filter::default()).await;
        assert!(page.unwrap().items.len() >= OBJECTS);
        server.stop().await.unwrap();
    }
    println!(
        "| restart with {OBJECTS} objects, to ready, best of {RESTARTS} | {:.0} ms |",
        millis(best)
    );
}

/// Writes them into the datastore of a server that is stopped.
async fn config_maps(folder: &Path) {
    let store = Sqlite::open(&folder.join("server/db/state.db")).unwrap();
    let text = "x".repeat(750);
    let numbers: Vec<usize> = (0..OBJECTS).collect();
    for numbers in numbers.chunks(1000) {
        let writes = numbers.iter().map(|number| {
            let name = format!("map-{number:06}");
            let object = format!(
                r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","namespace":"default","uid":"8f0b2c1e-5d3a-4e67-9a41-{number:012}","creationTimestamp":"2026-01-02T03:04:05Z"}},"data":{{"text":"{text}"}}}}"#
            );
            store.write(Write::new(format!("/registry/configmaps/default/{name}"), Expect::Absent, Change::Put(object.into())))
        });
        for written in join_all(writes).await {
            written.unwrap();
        }
    }
    store.close().await.unwrap();
}

/// What the kernel says of this process, in MiB.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// What the server does without a socket.
async fn in_memory(server: &Server) -> (Duration, usize) {
    let resource = server::kinds::table().iter().find(|row| row.plural == "pods").unwrap();
    let begun = Instant::now();
    let page = server.client.list(What::PODS, None, Filter::default()).await.unwrap();
    let style = Style {
        wanted: accept("application/json", true, true).unwrap(),
        include: Include::None,
        gzip: false,
        now: Timestamp::now(),
    };
    let response = encode::list(resource, page, None, style).unwrap_or_else(|status| panic!("{}", status.message));
    let length = read(response).await;
    (begun.elapsed(), length)
}

async fn first_version(server: &Server) -> Vec<(Duration, usize)> {
    let mut tasks = JoinSet::new();
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls::connect(server, "http/1.1").await))
        .await
        .unwrap();
    tasks.spawn(async move { connection.await.unwrap_or_default() });
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let request = Request::get(PATH)
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .unwrap();
        sender.ready().await.unwrap();
        let begun = Instant::now();
        let length = read(sender.send_request(request).await.unwrap()).await;
        times.push((begun.elapsed(), length));
    }
    times
}

async fn second_version(server: &Server) -> Vec<(Duration, usize)> {
    let mut tasks = JoinSet::new();
    // Windows as Go's client has them: the default of 64 kB would measure round trips.
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(1 << 30);
    let (mut sender, connection) = builder
        .handshake(TokioIo::new(tls::connect(server, "h2").await))
        .await
        .unwrap();
    tasks.spawn(async move { connection.await.unwrap_or_default() });
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let request = Request::get(format!("https://localhost{PATH}"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        sender.ready().await.unwrap();
        let begun = Instant::now();
        let length = read(sender.send_request(request).await.unwrap()).await;
        times.push((begun.elapsed(), length));
    }
    times
}

/// Takes a body frame by frame, as a client that stores it elsewhere would.
async fn read<B>(response: Response<B>) -> usize
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    assert_eq!(response.status(), 200);
    let (mut body, mut length) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    length
}

fn report(how: &str, mut times: Vec<(Duration, usize)>) {
    times.sort_unstable();
    let at = |percent: usize| millis(times[(times.len() * percent / 100).min(times.len() - 1)].0);
    let length = times[0].1;
    assert!(
        length > 20_000_000,
        "a list of {length} bytes is not what was meant to be measured"
    );
    println!(
        "| list of {PODS} pods, {length} bytes, {how} | p50 {:.1} ms, p99 {:.1} ms (n = {ROUNDS}) |",
        at(50),
        at(99)
    );
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
