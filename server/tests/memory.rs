//! What an object costs in memory, beside its own bytes: the commitment is half of them, at most.
//!
//! Nothing is timed or sampled: this program's allocator counts every byte that Rust code holds. A server is measured with
//! next to nothing in it and again with thousands of pods, so that what differs is what the pods cost: cache, indexes, the
//! store's heads, and what scheduler and controllers keep. SQLite's page cache is C's and not counted; it has a bound of its own.
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
#[path = "../benches/support/world.rs"]
mod world;

use std::path::Path;
use std::time::Duration;

use server::cache::Filter;
use server::request::What;
use server::run::Server;

const PODS: usize = 2000;
/// Of an object's serialized size, in hundredths.
const LIMIT: usize = 150;

/// Bytes held once the server has come to rest: the least that is seen while nothing new is written.
async fn held() -> usize {
    let mut least = usize::MAX;
    let mut quiet = 0;
    while quiet < 20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = counting::held();
        quiet = if now < least { 0 } else { quiet + 1 };
        least = least.min(now);
    }
    least
}

/// Bytes of all objects of the server as clients get them, and how many there are.
async fn serialized(server: &Server) -> (usize, usize) {
    let page = server.client.list(What::PODS, None, Filter::default()).await.unwrap();
    (page.items.iter().map(|item| item.body.len()).sum(), page.items.len())
}

async fn start_and_weigh(folder: &Path) -> (usize, usize, usize) {
    let server = world::start(folder).await;
    let held = held().await;
    let (bytes, count) = serialized(&server).await;
    server.stop().await.unwrap();
    (held, bytes, count)
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
        server.stop().await.unwrap();
        let (before, few, _) = start_and_weigh(folder.path()).await;
        pods::fill(folder.path(), &pattern, PODS).await;
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
    });
}
