//! The node's addresses while the agent runs: a machine may boot before its network, and be given another address later.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::config::Config;
use crate::join::address::{Found, find, is_here, settle};

/// How often a machine without an address is looked at, and one with: a few system calls.
const WITHOUT: Duration = Duration::from_secs(1);
const WITH: Duration = Duration::from_secs(10);

/// Keeps `ips` true, for ever. What was configured stays.
pub async fn follow(config: &Config, ips: watch::Sender<Vec<IpAddr>>) {
    if !config.node_ips.is_empty() {
        return std::future::pending().await;
    }
    let known = ips.borrow().first().copied();
    let found = find(config.server.host(), config.server.port()).await;
    // What the start found counts as long as there is nothing better: it may have been the address of a machine without a route.
    let mut known = known.map(|ip| found.filter(|found| found.ip() == ip).unwrap_or(Found::Present(ip)));
    if known.is_none() {
        warn!("this machine has no address in a network yet: the node says so, and takes one once there is one");
    }
    loop {
        sleep(if known.is_none() { WITHOUT } else { WITH }).await;
        if matches!(known, Some(Found::Routed(ip)) if is_here(ip)) {
            // Nothing is to be asked then, and no name server.
            continue;
        }
        let found = find(config.server.host(), config.server.port()).await;
        known = settle(known, found, is_here);
        let now: Vec<IpAddr> = known.into_iter().map(Found::ip).collect();
        let before = ips.borrow().clone();
        if now != before {
            info!(from = ?before, to = ?now, "this machine's address is another one now");
            ips.send_replace(now);
        }
    }
}
