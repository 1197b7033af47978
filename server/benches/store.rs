//! Durable creates a second, of 1 kB: on SQLite by itself, and of ConfigMaps through the whole API.
//!
//! `tests/bench/run store`. Each client waits for its answer before it asks again. Limits, on SQLite: 1,500 a second with
//! one client, 10,000 with 256. What one client can have at most is what the disk says to a flush, so that is measured too.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a figure that cannot be taken ends the run"
)]

#[path = "support/tls.rs"]
mod tls;
#[path = "support/world.rs"]
mod world;

use std::fs::File;
use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use server::run::Server;
use server::store::sql::sqlite::Sqlite;
use server::store::{Change, Expect, Store, Write};
use tokio::task::JoinSet;

const CLIENTS: [usize; 3] = [1, 16, 256];
const LASTS: Duration = Duration::from_secs(5);
/// The disk by itself shows sooner what it can.
const DISK_LASTS: Duration = Duration::from_secs(1);
const SIZE: usize = 1000;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("this is a benchmark: tests/bench/run store");
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

async fn run() {
    let folder = world::Folder::new("bench-store");
    disk(folder.path());
    for clients in CLIENTS {
        let file = folder.path().join(format!("{clients}.db"));
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(&file).unwrap());
        let times = together(clients, |client| {
            let store = Arc::clone(&store);
            async move { move |number: usize| create(Arc::clone(&store), client, number) }
        });
        report(
            &format!("SQLite, durable creates of {SIZE} bytes, {clients} clients"),
            times.await,
            LASTS,
        );
        store.close().await.unwrap();
    }
    for clients in CLIENTS {
        let folder = world::Folder::new("bench-store-api");
        let server = world::start(folder.path()).await;
        let times = together(clients, |client| {
            let connecting = connect(&server);
            async move {
                let sender = connecting.await;
                move |number: usize| post(sender.clone(), client, number)
            }
        });
        report(
            &format!("API, HTTP/2 over TLS, creates of ConfigMaps, {clients} clients"),
            times.await,
            LASTS,
        );
        server.stop().await.unwrap();
    }
}

/// How long this disk takes to say that one small write is on it.
fn disk(folder: &Path) {
    let mut file = File::create(folder.join("flush")).unwrap();
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < DISK_LASTS {
        let one = Instant::now();
        file.write_all(&[0; 4096]).unwrap();
        file.sync_data().unwrap();
        times.push(one.elapsed());
    }
    report(
        "this disk, appends of 4 kB with fdatasync, one writer",
        times,
        DISK_LASTS,
    );
}

/// Runs clients, each with what `ready` makes for it, and returns how long each call took.
async fn together<M, F, C, R>(clients: usize, ready: M) -> Vec<Duration>
where
    M: Fn(usize) -> F,
    F: Future<Output = C>,
    C: Fn(usize) -> R + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let mut calls = Vec::new();
    for client in 0..clients {
        calls.push(ready(client).await);
    }
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for call in calls {
        running.spawn(async move {
            let mut times = Vec::new();
            while begun.elapsed() < LASTS {
                let one = Instant::now();
                call(times.len()).await;
                times.push(one.elapsed());
            }
            times
        });
    }
    running.join_all().await.concat()
}

async fn create(store: Arc<dyn Store>, client: usize, number: usize) {
    let written = store.write(Write::new(
        format!("/registry/configmaps/default/c{client}-{number}"),
        Expect::Absent,
        Change::Put(vec![b'x'; SIZE].into()),
    ));
    written.await.unwrap();
}

type Sender = http2::SendRequest<Full<Bytes>>;

/// A connection of its own, whose task ends with its last sender.
async fn connect(server: &Server) -> Sender {
    let stream = tls::connect(server, "h2").await;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends with its last sender, before the run does"
    )]
    drop(tokio::spawn(connection));
    sender
}

async fn post(mut sender: Sender, client: usize, number: usize) {
    let body = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{client}-{number}")},
        "data": {"text": "x".repeat(SIZE - 230)},
    });
    let request = Request::post("https://localhost/api/v1/namespaces/default/configmaps")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 201);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(!body.is_empty());
}

/// The rate is calls over the time that all of them took together.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn report(what: &str, mut times: Vec<Duration>, lasted: Duration) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
    println!(
        "| {what} | {:.0} a second, p50 {:.2} ms, p99 {:.2} ms |",
        times.len() as f64 / lasted.as_secs_f64(),
        at(50),
        at(99)
    );
}
