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
use tracing::{error, info, warn};

use super::namesake::Namesakes;
use super::pulse::{Pulse, Pulses};
use super::twin::NODE;
use super::{EXPIRY, NAMESPACE, Peers, RENEW, RETRY, endpoints, held, lease_of, stamp};
use crate::cache::Filter;
use crate::request::What;
use crate::tunnel::Sessions;

const LABEL: &str = "apiserver.kubernetes.io/identity";
/// The annotation with where the server is.
pub(super) const ADDRESS: &str = "amphipod.io/address";
/// A renewal that takes longer is none that a node's could be waited for: the agents are told. With [`RENEW`] before it that is
/// 5 s, half of what an agent has until it works elsewhere; longer than an election of etcd (1 s by default).
const SLOW: Duration = Duration::from_secs(2);

/// While another server has this one's address that is said again so often.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// How this server is announced.
#[derive(Default)]
struct Present {
    /// Where it was last.
    address: Option<SocketAddr>,
    /// Its Lease was written at the last beat.
    announced: bool,
    /// Who has written it instead.
    rival: Option<Rival>,
}

/// What is known of the other servers.
#[derive(Default)]
struct Others {
    pulses: Pulses,
    namesakes: Namesakes,
}

/// Another server with the same address.
struct Rival {
    pulse: Pulse,
    told: Instant,
}

impl Rival {
    fn new(stamp: &str) -> Self {
        let now = Instant::now();
        Self {
            pulse: Pulse::new(stamp, now),
            told: now,
        }
    }
}

impl Peers {
    /// Announces this server, and takes in who else is there. To be awaited once before the server says it is ready.
    ///
    /// # Errors
    /// What the API says.
    pub async fn arrive(&self) -> Result<(), Status> {
        let Some(own) = self.address() else {
            return Ok(());
        };
        self.announce(own, self.lease(&lease_of(own)).await?).await?;
        let mut all: BTreeSet<SocketAddr> = self.leases().await?.iter().filter_map(address).collect();
        all.insert(own);
        endpoints::reconcile(&self.client, &all).await
    }

    /// Keeps this server announced, and the endpoints true, until dropped. Agents get to know through `sessions` that the
    /// servers changed, and while this one cannot write.
    pub async fn stay(self, sessions: Arc<Sessions>) {
        let mut others = Others::default();
        let mut present = Present {
            address: self.address(),
            ..Present::default()
        };
        let mut place = self.place.clone();
        let mut trouble = false;
        let mut watch = None;
        loop {
            let began = Instant::now();
            let outcome = {
                let mut beat = std::pin::pin!(bounded(self.beat(&mut others, &mut present, trouble)));
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
                    Ok(()) = place.changed() => break,
                    () = self.change(filter(), &mut watch) => {}
                }
                if trouble || !present.announced {
                    continue;
                }
                match bounded(self.tend(&mut others)).await {
                    Ok(servers) => sessions.servers(&servers),
                    Err(status) => warn!(error = %status, "cannot correct the endpoints of the servers"),
                }
            }
        }
    }

    /// One renewal, and what it shows of the others.
    async fn beat(
        &self,
        others: &mut Others,
        present: &mut Present,
        after_trouble: bool,
    ) -> Result<BTreeSet<SocketAddr>, Status> {
        let now = self.address();
        if let Some(before) = present.address.filter(|before| Some(*before) != now) {
            self.withdraw(before).await?;
        }
        present.address = now;
        present.announced = false;
        let Some(own) = now else {
            // Nobody sees this one, and it does not judge the others.
            return endpoints::present(&self.client).await;
        };
        let lease = self.lease(&lease_of(own)).await?;
        if let Some(taken) = lease.as_ref().filter(|lease| !self.holds(lease)) {
            let first = present.rival.is_none();
            let rival = present.rival.get_or_insert_with(|| Rival::new(stamp(taken)));
            rival.pulse.beat(stamp(taken), Instant::now());
            if Instant::now() < rival.pulse.ends(EXPIRY) {
                if first || rival.told.elapsed() >= TELL_AGAIN {
                    error!("{}", self.conflict(own, taken));
                    rival.told = Instant::now();
                }
                return endpoints::present(&self.client).await;
            }
        }
        present.rival = None;
        self.announce(own, lease).await?;
        present.announced = true;
        if after_trouble {
            others.pulses.forgive(Instant::now());
        }
        self.tend(others).await
    }

    /// Makes the endpoints name the living, and removes the Leases of the dead. Returns the living.
    async fn tend(&self, others: &mut Others) -> Result<BTreeSet<SocketAddr>, Status> {
        let leases = self.leases().await?;
        let now = Instant::now();
        let Others { pulses, namesakes } = others;
        let name = |lease: &'_ Value| text(lease, &["metadata", "name"]).to_owned();
        let names: Vec<String> = leases.iter().map(name).collect();
        let seen = names.iter().map(String::as_str).zip(leases.iter().map(stamp));
        pulses.see(seen, now);
        let own = self.address();
        let own_name = own.map(lease_of);
        let own_lease = own_name.as_deref().unwrap_or_default();
        for problem in namesakes.news(&self.node, own_lease, leases.iter()) {
            error!("{problem}");
        }
        let mut alive: BTreeSet<SocketAddr> = own.into_iter().collect();
        let mut dead = Vec::new();
        for (name, lease) in names.iter().zip(&leases) {
            match address(lease) {
                Some(address) if pulses.is_alive(name, EXPIRY, now) => {
                    alive.insert(address);
                }
                _ if Some(name) == own_name.as_ref() => {}
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
        match self.address() {
            Some(own) => self.withdraw(own).await,
            None => Ok(()),
        }
    }

    /// Leaves the Lease and the endpoint of this address, unless another server has taken them.
    async fn withdraw(&self, own: SocketAddr) -> Result<(), Status> {
        match self.lease(&lease_of(own)).await? {
            Some(lease) if !self.holds(&lease) => return Ok(()),
            Some(lease) => self.forget(&lease).await?,
            None => {}
        }
        let mut servers = endpoints::present(&self.client).await?;
        servers.remove(&own);
        endpoints::reconcile(&self.client, &servers).await
    }

    async fn announce(&self, own: SocketAddr, present: Option<Value>) -> Result<(), Status> {
        let acquired = match &present {
            Some(lease) if self.holds(lease) => text(lease, &["spec", "acquireTime"]).to_owned(),
            _ => micros(Timestamp::now()),
        };
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": lease_of(own), "namespace": NAMESPACE,
                "labels": { LABEL: "kube-apiserver" },
                "annotations": { ADDRESS: own.to_string(), NODE: self.node } },
            "spec": held(&self.holder, &acquired, 0),
        });
        self.hold(present.as_ref(), lease).await.map(drop)
    }

    /// Where the other servers are. One that has died may be among them for some seconds.
    pub(super) async fn others(&self) -> Result<BTreeSet<SocketAddr>, Status> {
        let mut all: BTreeSet<SocketAddr> = self.leases().await?.iter().filter_map(address).collect();
        all.retain(|other| Some(*other) != self.address());
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
