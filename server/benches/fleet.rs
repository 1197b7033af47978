//! What many nodes ask of one server: joins at once, and bytes through tunnels.
//!
//! `tests/bench/run fleet`. A node that joins is the agent's own code: it fetches CA and settings, makes four keys and has
//! them signed, with its node password. Its files are on a tmpfs: a fleet's disks are not the server's. Keys, requests and
//! TLS of all nodes are made by this process, on the processors that the server has. Limits: 200 joins a second, none
//! failing; through a tunnel 70 % of what plain TLS carries. What an idle tunnel costs in memory is a test
//! (`tests/tunnel_memory.rs`).
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a figure that cannot be taken ends the run"
)]

#[path = "support/join.rs"]
mod join;
#[path = "support/pair.rs"]
mod pair;
#[path = "support/world.rs"]
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use server::run::Server;
use server::tunnel::Sessions;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;

const NODES: usize = 200;
const LASTS: Duration = Duration::from_secs(3);
/// What one write takes: `io::copy` does no more either.
const CHUNK: usize = 32 << 10;
/// Each way is measured so often, in turns, and the best counts: others' work on the machine only ever slows one down.
const ROUNDS: usize = 3;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("this is a benchmark: tests/bench/run fleet");
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        joins().await;
        throughput().await;
    });
}

/// A folder in memory that goes when it is dropped.
struct Machines(PathBuf);

impl Drop for Machines {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn joins() {
    let folder = world::Folder::new("bench-fleet");
    let server = world::start(folder.path()).await;
    let machines = Machines(PathBuf::from(format!("/dev/shm/bench-fleet-{}", std::process::id())));
    let mut joining = JoinSet::new();
    let begun = Instant::now();
    for number in 0..NODES {
        let (machine, port) = (machines.0.join(number.to_string()), server.address.port());
        joining.spawn(async move {
            let begun = Instant::now();
            let joined = join::join(&format!("node-{number}"), "secret", &machine, port).await;
            joined.map(|_| begun.elapsed()).map_err(|error| error.to_string())
        });
    }
    let results = joining.join_all().await;
    let took = begun.elapsed();
    let mut times: Vec<Duration> = results
        .iter()
        .filter_map(|result| result.as_ref().ok())
        .copied()
        .collect();
    times.sort_unstable();
    let slowest = times.last().copied().unwrap_or_default();
    println!(
        "| {NODES} nodes join at once | {:.0} a second, the slowest after {:.0} ms, {} refused |",
        times.len() as f64 / took.as_secs_f64(),
        slowest.as_secs_f64() * 1000.0,
        NODES - times.len(),
    );
    for error in results.iter().filter_map(|result| result.as_ref().err()).take(3) {
        println!("| a node was refused | {error} |");
    }
    stop(server).await;
}

async fn stop(server: Server) {
    server.stop().await.unwrap();
}

/// Bytes from a node to the server, as logs go: over TLS by itself, in one connection and in as many as there are streams (whose
/// writers and readers have as many buffers), and through a tunnel over TLS of the same kind.
async fn throughput() {
    for streams in [1, 100] {
        let (mut one, mut as_many, mut tunnelled) = (0.0_f64, 0.0_f64, 0.0_f64);
        for _ in 0..ROUNDS {
            one = one.max(over_tls(1).await);
            as_many = as_many.max(over_tls(streams).await);
            tunnelled = tunnelled.max(through_tunnel(streams).await);
        }
        println!(
            "| tunnel, {streams} streams, best of {ROUNDS} | {tunnelled:.0} MB/s, {:.0} % of as many connections over plain TLS \
             ({as_many:.0} MB/s), {:.0} % of one ({one:.0} MB/s) |",
            tunnelled / as_many * 100.0,
            tunnelled / one * 100.0,
        );
    }
}

async fn over_tls(connections: usize) -> f64 {
    let (mut tasks, mut ends) = (JoinSet::new(), Vec::new());
    for _ in 0..connections {
        let (node, server) = pair::connected().await;
        tasks.spawn(pour(node));
        ends.push(server);
    }
    drain(ends).await
}

async fn through_tunnel(streams: usize) -> f64 {
    let (node, server) = pair::connected().await;
    let sessions = Sessions::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&sessions).accept("pi".to_owned(), server));
    tasks.spawn(pair::node(node, pour));
    while !sessions.is_connected("pi") {
        tokio::task::yield_now().await;
    }
    let mut ends = Vec::new();
    for _ in 0..streams {
        ends.push(sessions.open("pi", 10250, None).unwrap().0);
    }
    drain(ends).await
}

/// Writes until nobody takes it any more.
async fn pour(mut to: impl AsyncWrite + Unpin) {
    let bytes = vec![b'x'; CHUNK];
    while to.write_all(&bytes).await.is_ok() {}
}

/// Reads all of them for a while; MB a second.
async fn drain<S: AsyncRead + Unpin + Send + 'static>(from: Vec<S>) -> f64 {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for mut one in from {
        tasks.spawn(async move {
            let (mut buffer, mut total) = (vec![0; CHUNK], 0_usize);
            while begun.elapsed() < LASTS {
                total += one.read(&mut buffer).await.unwrap();
            }
            total
        });
    }
    let total: usize = tasks.join_all().await.into_iter().sum();
    total as f64 / begun.elapsed().as_secs_f64() / 1e6
}
