//! What an object costs in memory, beside its own bytes: the commitment is half of them, at most.
//!
//! Nothing is timed or sampled: this program's allocator counts every byte that Rust code holds. A server is measured with
//! next to nothing in it and again with thousands of pods, so that what differs is what the pods cost: cache, indexes, the
//! store's heads, and what scheduler and controllers keep. SQLite's page cache is C's and not counted; it has a bound of its own.
//!
//! What is held for a moment counts too: an allocator gives little of it back to the system. So the most at once is measured
//! while lists are read and all controllers look at a node with thousands of pods.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that panics fails, as it should"
)]

#[path = "support/counting.rs"]
mod counting;
#[path = "../benches/support/pods.rs"]
mod pods;
#[path = "../benches/support/tls.rs"]
mod tls;
#[path = "../benches/support/world.rs"]
mod world;

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::json;
use server::cache::Filter;
use server::request::{Patch, What};
use server::run::Server;

const PODS: usize = 2000;
/// Of an object's serialized size, in hundredths.
const LIMIT: usize = 150;
/// What may be held at once beside that, in hundredths of all objects: trees of all of them would be a thousand.
const LIMIT_AT_ONCE: usize = 100;
const LISTS: usize = 20;

/// Bytes held once the server has come to rest: the least that is seen while nothing new is written; and the most until then.
async fn held() -> (usize, usize) {
    let (mut least, mut most) = (usize::MAX, 0);
    let mut quiet = 0;
    while quiet < 20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let counting::Held { now, most: at_once } = counting::held();
        most = most.max(at_once);
        quiet = if now < least { 0 } else { quiet + 1 };
        least = least.min(now);
    }
    (least, most)
}

/// Bytes of all objects of the server as clients get them, and how many there are.
async fn serialized(server: &Server) -> (usize, usize) {
    let page = server.client.list(What::PODS, None, Filter::default()).await.unwrap();
    (page.items.iter().map(|item| item.body.len()).sum(), page.items.len())
}

async fn start_and_weigh(folder: &Path) -> (usize, usize, usize) {
    let server = world::start(folder).await;
    let (held, _) = held().await;
    let (bytes, count) = serialized(&server).await;
    server.stop().await.unwrap();
    (held, bytes, count)
}

/// The most that is held at once, beside what is held at rest, while lists are read and all that looks at pods does so.
async fn at_once(folder: &Path) -> usize {
    let server = world::start(folder).await;
    let (rest, _) = held().await;
    let lost = Patch::Merge(json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}));
    let node = server.client.patch(What::NODES, "", pods::NODE, Some("status"), lost);
    node.await.unwrap();
    let socket = TokioIo::new(tls::connect(&server, "http/1.1").await);
    let (mut sender, connection) = http1::handshake(socket).await.unwrap();
    let reading = async move {
        for _ in 0..LISTS {
            let request = Request::get("/api/v1/pods").header("host", "localhost");
            sender.ready().await.unwrap();
            let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await;
            let mut body = answer.unwrap().into_body();
            while let Some(frame) = body.frame().await {
                frame.unwrap();
            }
        }
    };
    let (connected, ()) = tokio::join!(connection, reading);
    connected.unwrap();
    let (_, most) = held().await;
    server.stop().await.unwrap();
    most.saturating_sub(rest)
}

#[test]
fn a_cached_object_takes_at_most_half_as_much_again_as_its_bytes() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let folder = world::Folder::new("memory");
        let server = world::start(folder.path()).await;
        let pattern = pods::pattern(&server.client).await;
        // As those of a node that is away are.
        let unready = pattern.replace(
            r#""status":"True","type":"Ready""#,
            r#""status":"False","type":"Ready""#,
        );
        assert_ne!(unready, pattern);
        server.stop().await.unwrap();
        let (before, few, _) = start_and_weigh(folder.path()).await;
        pods::fill(folder.path(), &unready, PODS).await;
        let (after, many, count) = start_and_weigh(folder.path()).await;
        assert_eq!(
            count,
            PODS + 1,
            "the pods have to stay for the measurement to mean anything"
        );
        let (cost, bytes) = (after.saturating_sub(before), many - few);
        println!(
            "{PODS} pods of {} bytes take {} bytes each in memory",
            bytes / PODS,
            cost / PODS
        );
        assert!(cost >= bytes, "{cost} bytes for {bytes}: something was not counted");
        assert!(
            cost * 100 <= bytes * LIMIT,
            "{cost} bytes are held for {bytes} bytes of objects, the limit is {LIMIT} %"
        );
        let most = at_once(folder.path()).await;
        println!("at most {most} bytes more are held at once");
        assert!(
            most * 100 <= bytes * LIMIT_AT_ONCE,
            "{most} bytes are held at once for {bytes} bytes of objects, the limit is {LIMIT_AT_ONCE} %"
        );
    });
}
