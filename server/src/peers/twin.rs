//! Another server with this one's address: a cloned box, or `--advertise-address` copied along with a configuration.
//!
//! The Lease of an address is held by one life of one server. Who starts and finds it renewed by a server of another name does
//! not start; one of its own name is taken for its own earlier life and followed at once. Who runs and finds that another
//! took it says so and leaves Lease and endpoints to that one, until it is gone: nothing is written back and forth.

use std::net::SocketAddr;

use agent::wire::object::text;
use agent::wire::status::{Reason, Status};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{EXPIRY, Peers, RETRY, lease_of, stamp};

/// The annotation with the name of the server: kube-apiserver has it in a label, for which a name may be too long.
pub(super) const NODE: &str = "amphipod.io/node";

/// The name of the server whose Lease this is.
pub(super) fn node(lease: &Value) -> &str {
    text(lease, &["metadata", "annotations", NODE])
}

impl Peers {
    /// Waits until it is certain that no other server has this one's address. To be awaited before [`Peers::arrive`].
    ///
    /// # Errors
    /// That one has, with both names and the cure; what the API says.
    pub async fn alone(&self) -> Result<(), Status> {
        let Some(address) = self.address() else {
            return Ok(());
        };
        let (name, begun) = (lease_of(address), Instant::now());
        let Some(found) = self.lease(&name).await?.filter(|lease| !self.is_ours(lease)) else {
            return Ok(());
        };
        // A server that was killed, and given another name since, leaves its Lease behind, too: only a change is life.
        while begun.elapsed() < EXPIRY {
            match self.lease(&name).await? {
                None => return Ok(()),
                Some(lease) if stamp(&lease) != stamp(&found) => {
                    return Err(Status::failure(Reason::Conflict, self.conflict(address, &lease)));
                }
                Some(_) => sleep(RETRY).await,
            }
        }
        Ok(())
    }

    /// Whether this is our Lease, or one of an earlier life of this server.
    fn is_ours(&self, lease: &Value) -> bool {
        self.holds(lease) || node(lease).is_empty() || node(lease) == self.node
    }

    /// Whether this life of this server holds the Lease.
    pub(super) fn holds(&self, lease: &Value) -> bool {
        text(lease, &["spec", "holderIdentity"]) == self.holder
    }

    /// What is wrong, and what to do.
    pub(super) fn conflict(&self, address: SocketAddr, lease: &Value) -> String {
        let (me, ip) = (&self.node, address.ip());
        let other = match node(lease) {
            other if other == me => format!("another server that is called {me}, too"),
            other => format!("server {other}"),
        };
        format!(
            "this server, {me}, and {other} advertise the same address, {address} (Lease kube-system/{}): give each its own with \
             --advertise-address or --node-ip, the one that the other servers and the agents reach it at (not that of a load \
             balancer), or stop the one that should not be there. A server that has taken {ip} over from one that is gone for good \
             starts 10 s after that one has stopped",
            text(lease, &["metadata", "name"])
        )
    }
}
