//! What a tunnel costs the server while nothing goes through it, beside its TCP and TLS: 16 kB at most.
//!
//! Only the server's end is there: the node is a hand that pings, so that nothing of a node's is counted.

#[path = "support/counting.rs"]
mod counting;

use std::sync::Arc;
use std::time::Duration;

use server::tunnel::Sessions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinSet;

const SESSIONS: usize = 200;
const LIMIT: usize = 16 << 10;
/// Room of the pipe in place of a socket, in bytes; not counted against the tunnel.
const PIPE: usize = 64;
/// How often a node asks whether its tunnel lives.
const PING: Duration = Duration::from_secs(5);
/// Many pings.
const MINUTE: Duration = Duration::from_secs(60);

/// Pings as a node does (masked, without a payload) and takes the answers; how many came.
async fn ping(mut node: DuplexStream) -> usize {
    let (mut frame, mut pongs) = ([0; 2], 0);
    while node.write_all(&[0x89, 0x80, 0, 0, 0, 0]).await.is_ok() && node.read_exact(&mut frame).await.is_ok() {
        assert_eq!(frame, [0x8a, 0], "an idle tunnel answers pings and sends nothing else");
        pongs += 1;
        tokio::time::sleep(PING).await;
    }
    pongs
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_costs_the_server_at_most_sixteen_kilobytes() {
    let sessions = Sessions::new();
    let (mut tunnels, mut peers) = (JoinSet::new(), JoinSet::new());
    let pipes: Vec<_> = (0..=SESSIONS).map(|_| tokio::io::duplex(PIPE)).collect();
    let mut ends = Vec::new();
    for (end, peer) in pipes {
        peers.spawn(ping(peer));
        ends.push(end);
    }
    tokio::time::sleep(MINUTE).await;
    // The first of all brings what all share.
    tunnels.spawn(Arc::clone(&sessions).accept("first".to_owned(), ends.pop().unwrap()));
    tokio::time::sleep(MINUTE).await;
    let before = counting::held().now;
    for (number, end) in ends.into_iter().enumerate() {
        tunnels.spawn(Arc::clone(&sessions).accept(format!("node-{number}"), end));
    }
    tokio::time::sleep(MINUTE).await;
    let held = counting::held();
    let (cost, most) = (
        held.now.saturating_sub(before) / SESSIONS,
        held.most.saturating_sub(before) / SESSIONS,
    );
    assert!(sessions.is_connected("node-0") && sessions.is_connected("node-199"));
    println!("an idle tunnel takes {cost} bytes, and {most} at once while it is set up");
    assert!(cost > 500, "{cost} bytes: something was not counted");
    assert!(cost <= LIMIT, "{cost} bytes for an idle tunnel, the limit is {LIMIT}");
    tunnels.shutdown().await;
    for pings in peers.join_all().await {
        assert!(
            pings > 0,
            "a tunnel that was never asked whether it lives has not been at rest"
        );
    }
}
