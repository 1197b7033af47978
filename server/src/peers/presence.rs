//! This server is there: a Lease that it keeps renewing, and endpoints that name every server whose Lease is alive.
//!
//! Every server does the same; whoever sees a change first writes it, by compare-and-swap. A server judges the others only
//! right after it has written its own Lease: then datastore and cache are known to be up to date, and silence means
//! something. Source: Kubernetes v1.36 `pkg/controlplane/apiserver/server.go` (identity Leases) and
//! `pkg/controlplane/reconcilers/lease.go`; 15 s is the TTL there.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent::wire::object::text;
use agent::wire::selector::Labels;
use agent::wire::status::Status;
use agent::wire::time::micros;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::pulse::Pulses;
use super::{EXPIRY, NAMESPACE, Peers, RENEW, RETRY, endpoints, held, stamp};
use crate::cache::Filter;
use crate::request::What;
use crate::tunnel::Sessions;

const LABEL: &str = "apiserver.kubernetes.io/identity";
const ADDRESS: &str = "amphipod.io/address";
/// A renewal that takes longer is none that a node's could be waited for: the agents are told.
const SLOW: Duration = Duration::from_secs(4);

impl Peers {
    /// Announces this server, and takes in who else is there. To be awaited once before the server says it is ready.
    ///
    /// # Errors
    /// What the API says.
    pub async fn arrive(&self) -> Result<(), Status> {
        self.announce().await?;
        let mut all: BTreeSet<SocketAddr> = self.leases().await?.iter().filter_map(address).collect();
        all.insert(self.address);
        endpoints::reconcile(&self.client, &all).await
    }

    /// Keeps this server announced, and the endpoints true, until dropped. Agents get to know through `sessions` that the
    /// servers changed, and while this one cannot write.
    pub async fn stay(self, sessions: Arc<Sessions>) {
        let mut pulses = Pulses::default();
        let mut trouble = false;
        let mut watch = None;
        loop {
            let began = Instant::now();
            let outcome = {
                let mut beat = std::pin::pin!(bounded(self.beat(&mut pulses, trouble)));
                tokio::select! {
                    outcome = &mut beat => outcome,
                    () = sleep(SLOW) => {
                        sessions.ready(false);
                        beat.await
                    }
                }
            };
            // One that was slow is not taken back at its end: agents would come and go with each.
            sessions.ready(outcome.is_ok() && began.elapsed() < SLOW);
            outcome.iter().for_each(|servers| sessions.servers(servers));
            if let Err(status) = &outcome
                && !trouble
            {
                warn!(error = %status, "cannot tell the other servers that this one is alive, trying on");
            }
            if outcome.is_ok() && trouble {
                info!("the other servers see this one again");
            }
            trouble = outcome.is_err();
            let now = Instant::now();
            let next = if trouble { now + RETRY } else { began + RENEW };
            // Between two renewals the others come and go.
            while Instant::now() < next {
                tokio::select! {
                    // After a stall of this process both are due, and the cache shows the others as they were before it:
                    // who is judged by that looks dead. So first our own renewal, which brings the cache up to date.
                    biased;
                    () = sleep_until(next) => break,
                    () = self.change(filter(), &mut watch) => {}
                }
                if trouble {
                    continue;
                }
                match bounded(self.tend(&mut pulses)).await {
                    Ok(servers) => sessions.servers(&servers),
                    Err(status) => warn!(error = %status, "cannot correct the endpoints of the servers"),
                }
            }
        }
    }

    /// One renewal, and what it shows of the others.
    async fn beat(&self, pulses: &mut Pulses, after_trouble: bool) -> Result<BTreeSet<SocketAddr>, Status> {
        self.announce().await?;
        if after_trouble {
            pulses.forgive(Instant::now());
        }
        self.tend(pulses).await
    }

    /// Makes the endpoints name the living, and removes the Leases of the dead. Returns the living.
    async fn tend(&self, pulses: &mut Pulses) -> Result<BTreeSet<SocketAddr>, Status> {
        let leases = self.leases().await?;
        let now = Instant::now();
        let name = |lease: &'_ Value| text(lease, &["metadata", "name"]).to_owned();
        let names: Vec<String> = leases.iter().map(name).collect();
        let seen = names.iter().map(String::as_str).zip(leases.iter().map(stamp));
        pulses.see(seen, now);
        let mut alive = BTreeSet::from([self.address]);
        let mut dead = Vec::new();
        for (name, lease) in names.iter().zip(&leases) {
            match address(lease) {
                Some(address) if pulses.is_alive(name, EXPIRY, now) => {
                    alive.insert(address);
                }
                _ if *name == self.name => {}
                _ => dead.push(lease),
            }
        }
        endpoints::reconcile(&self.client, &alive).await?;
        for lease in dead {
            info!(
                server = text(lease, &["metadata", "annotations", ADDRESS]),
                "a server is gone"
            );
            self.forget(lease).await?;
        }
        Ok(alive)
    }

    /// Leaves the endpoints at once, without waiting for anybody to notice.
    pub(super) async fn depart(&self) -> Result<(), Status> {
        if let Some(lease) = self.lease(&self.name).await? {
            self.forget(&lease).await?;
        }
        let mut servers = endpoints::present(&self.client).await?;
        servers.remove(&self.address);
        endpoints::reconcile(&self.client, &servers).await
    }

    async fn announce(&self) -> Result<(), Status> {
        let present = self.lease(&self.name).await?;
        let acquired = match &present {
            Some(lease) if text(lease, &["spec", "holderIdentity"]) == self.holder => {
                text(lease, &["spec", "acquireTime"]).to_owned()
            }
            _ => micros(Timestamp::now()),
        };
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": self.name, "namespace": NAMESPACE, "labels": { LABEL: "kube-apiserver" },
                "annotations": { ADDRESS: self.address.to_string() } },
            "spec": held(&self.holder, &acquired, 0),
        });
        self.hold(present.as_ref(), lease).await
    }

    /// Where the other servers are. One that has died may be among them for some seconds.
    pub(super) async fn others(&self) -> Result<BTreeSet<SocketAddr>, Status> {
        let mut all: BTreeSet<SocketAddr> = self.leases().await?.iter().filter_map(address).collect();
        all.remove(&self.address);
        Ok(all)
    }

    async fn leases(&self) -> Result<Vec<Value>, Status> {
        let page = self.client.list(What::LEASES, Some(NAMESPACE), filter()).await?;
        Ok(page.items.iter().map(|item| item.value()).collect())
    }
}

/// A datastore that stalls is one that does not answer.
async fn bounded<T>(work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let outcome = timeout(EXPIRY, work).await;
    outcome.unwrap_or_else(|_| Err(Status::unavailable("the datastore does not answer")))
}

/// The Leases of servers.
pub(super) fn filter() -> Filter {
    Filter {
        labels: Labels::parse(&format!("{LABEL}=kube-apiserver")).unwrap_or_default(),
        ..Filter::default()
    }
}

fn address(lease: &Value) -> Option<SocketAddr> {
    let annotations = lease.get("metadata")?.get("annotations")?;
    annotations.get(ADDRESS)?.as_str()?.parse().ok()
}
