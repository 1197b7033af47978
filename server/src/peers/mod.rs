//! The servers of one cluster among themselves: which are alive, where they are, and which one leads.
//!
//! All of that goes through Leases in the shared datastore, so there is nothing to configure:
//! `presence.rs` keeps this server's Lease and the `kubernetes` endpoints (`twin.rs`: while another server has the same address;
//! `namesake.rs`: the same name),
//! `leader.rs` decides who runs controllers and
//! scheduler, `fence.rs` holds back a leader that is none any more. Nobody compares clocks: a Lease counts for as long as
//! it is seen to change, by one's own monotonic clock (`pulse.rs`).
//! What cannot wait for the datastore goes from server to server (`link.rs`): bytes for a node whose tunnel the other one has
//! (`relay.rs`), and news of commits where the datastore has none to give (`hint.rs`).

mod endpoints;
mod fence;
mod hint;
mod leader;
mod link;
mod namesake;
mod presence;
mod pulse;
mod relay;
mod twin;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent::wire::join::hex;
use agent::wire::object::text;
use agent::wire::status::{Reason, Status};
use agent::wire::time::micros;
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::cache::{self, Filter, Watch};
use crate::registry::Registry;
use crate::request::{Api, Client, DeleteOptions, What};

pub use endpoints::{present as present_endpoints, reconcile as reconcile_endpoints};
use fence::Fence;
pub use hint::{HINTS, take as take_hints};
pub use link::{Link, PROTOCOL};
pub use relay::{DIAL, Relay};

/// Between two writes of a Lease that this server holds: a few hundred bytes each in the shared datastore.
const RENEW: Duration = Duration::from_secs(3);
/// A Lease that was not seen to change for so long belongs to nobody: two renewals may be late.
const EXPIRY: Duration = Duration::from_secs(10);
/// A leader that could not renew for so long acts no longer: well before anybody else may begin.
const LEAD: Duration = Duration::from_secs(7);
/// Between two tries of something that failed.
const RETRY: Duration = Duration::from_secs(1);
/// What a server that stops gives to saying good-bye; after that the others find out by themselves.
const GOODBYE: Duration = Duration::from_secs(3);

const NAMESPACE: &str = "kube-system";

/// Where a server is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// No two servers of a cluster have the same.
    pub address: SocketAddr,
    /// Whether others can reach it there: a machine may have no network yet.
    pub reachable: bool,
}

/// This server as the others see it.
#[derive(Clone)]
pub struct Peers {
    client: Client,
    /// Where others reach it; may change.
    place: watch::Receiver<Place>,
    /// What people call it.
    node: String,
    /// Another one at each start: a Lease of an earlier life is not ours.
    holder: String,
    /// Open while this server leads.
    fence: Fence,
    registry: Arc<Registry>,
}

impl Peers {
    /// The server `node` that is reached at `place`; `client` acts as the supervisor, in `registry`.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(
        client: Client,
        registry: Arc<Registry>,
        node: &str,
        place: watch::Receiver<Place>,
    ) -> Result<Self, ring::error::Unspecified> {
        let mut life = [0; 16];
        SystemRandom::new().fill(&mut life)?;
        Ok(Self {
            client,
            place,
            node: node.to_owned(),
            holder: format!("{node}_{}", hex(&life)),
            fence: Fence::default(),
            registry,
        })
    }

    /// Where others reach this server now, if they can.
    fn address(&self) -> Option<SocketAddr> {
        let place = *self.place.borrow();
        place.reachable.then_some(place.address)
    }

    /// Registry and API for what only a leader does: writes are refused while this server does not lead.
    pub fn leaders(&self, api: &Api) -> (Arc<Registry>, Arc<Api>) {
        let registry = Arc::new(self.registry.through(|store| self.fence.over(store)));
        let fenced = self.fence.around(Arc::clone(&registry) as _);
        (registry, Arc::new(api.through(|_| fenced)))
    }

    /// Says good-bye: leaves the endpoints, gives up the lead. Whatever acts has been stopped before.
    pub async fn leave(&self) {
        self.fence.set(None);
        self.fence.end();
        let leaving = async {
            let (led, present) = tokio::join!(self.release(), self.depart());
            led.and(present)
        };
        match timeout(GOODBYE, leaving).await {
            Ok(Ok(())) => {}
            Ok(Err(status)) => warn!(error = %status, "the other servers were not told that this one stops"),
            Err(_) => warn!("the other servers could not be told that this one stops"),
        }
    }

    /// Writes a Lease of this server's over the one that is there, or where there is none; never over one that was not seen.
    /// Returns it as it is then.
    async fn hold(&self, present: Option<&Value>, mut wanted: Value) -> Result<Value, Status> {
        let name = text(&wanted, &["metadata", "name"]).to_owned();
        match present {
            None => self.client.create(What::LEASES, NAMESPACE, wanted).await,
            Some(present) => {
                let revision = text(present, &["metadata", "resourceVersion"]);
                if let Some(meta) = wanted.get_mut("metadata").and_then(Value::as_object_mut) {
                    meta.insert("resourceVersion".to_owned(), revision.into());
                }
                self.client.update(What::LEASES, NAMESPACE, &name, wanted).await
            }
        }
    }

    /// A Lease, as the cache has it.
    async fn lease(&self, name: &str) -> Result<Option<Value>, Status> {
        match self.client.get(What::LEASES, NAMESPACE, name).await {
            Ok(lease) => Ok(Some(lease)),
            Err(status) if status.is(Reason::NotFound) => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Resolves when one of these Leases has changed. Without a watch nothing is lost: there is still the clock.
    async fn change(&self, leases: Filter, watch: &mut Option<Watch>) {
        if watch.is_none() {
            let opened = self
                .client
                .watch(What::LEASES, Some(NAMESPACE), leases, cache::From::Now);
            *watch = opened.await.ok();
        }
        match watch {
            None => std::future::pending().await,
            Some(open) => {
                if open.next().await.is_none() {
                    *watch = None;
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn forget(&self, lease: &Value) -> Result<(), Status> {
        let options = DeleteOptions {
            resource_version: Some(text(lease, &["metadata", "resourceVersion"]).to_owned()),
            ..DeleteOptions::default()
        };
        let name = text(lease, &["metadata", "name"]);
        match self.client.delete(What::LEASES, NAMESPACE, name, options).await {
            // It is gone, or it lives again.
            Err(status) if status.is(Reason::NotFound) || status.is(Reason::Conflict) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Name of the Lease of the server at this address. kube-apiserver hashes the host name; a cloned box has that of its twin, but
/// never its address.
fn lease_of(address: SocketAddr) -> String {
    let hash = hex(digest(&SHA256, address.to_string().as_bytes()).as_ref());
    format!("apiserver-{}", hash.get(..26).unwrap_or_default())
}

/// The specification of a Lease held by `holder`. Times are for people: nobody here compares them.
fn held(holder: &str, acquired: &str, transitions: i64) -> Value {
    json!({
        "holderIdentity": holder,
        "leaseDurationSeconds": EXPIRY.as_secs(),
        "acquireTime": acquired,
        "renewTime": micros(Timestamp::now()),
        "leaseTransitions": transitions,
    })
}

/// What changes whenever somebody writes the Lease.
fn stamp(lease: &Value) -> &str {
    text(lease, &["metadata", "resourceVersion"])
}

#[cfg(test)]
mod tests;
