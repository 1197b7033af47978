//! How the others take the place of a server that is gone: seen at every one of them from the instant of the fault on.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use hyper::Method;
use tests::lab::{allowed, tell_if_late};
use tokio::time::{Instant as Deadline, sleep, timeout_at};

use crate::cluster::{Cluster, now};
use crate::door::Door;

/// Until a dead server is out of the endpoints and of what agents are told, and another one leads (`docs/server-died.md`).
pub const TAKEOVER: Duration = Duration::from_secs(15);
/// The same, of one that says good-bye. Several times that is still less than a lead lasts that nobody has given back
/// (`server/src/peers`).
pub const HANDOVER: Duration = Duration::from_millis(1500);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// When the last of the others had it, from the fault on.
#[derive(Debug)]
pub struct Takeover {
    /// The `kubernetes` endpoints name the others only.
    pub endpoints: Duration,
    /// So does the list for agents.
    pub listed: Duration,
    /// One of the others leads.
    pub led: Duration,
}

impl fmt::Display for Takeover {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoints, listed, led } = self;
        write!(
            to,
            "endpoints after {endpoints:?}, agents' list {listed:?}, lead {led:?}"
        )
    }
}

/// Waits until every other server shows that they are without `gone`, which it was at `begun`, and holds that to the promise.
/// What a server shows with a warning that it may be out of date does not count.
pub fn takes_place(cluster: &Cluster, gone: &str, begun: Instant) -> Takeover {
    takes_place_within(TAKEOVER, cluster, gone, begun)
}

/// The same, held to another promise.
pub fn takes_place_within(limit: Duration, cluster: &Cluster, gone: &str, begun: Instant) -> Takeover {
    let others = cluster.others(gone);
    let doors: Vec<&Door> = others.iter().map(|name| cluster.door(name)).collect();
    let all: BTreeSet<String> = others.iter().map(|name| cluster.lab.address(name)).collect();
    let waited = allowed(limit);
    let end = Deadline::from_std(begun + waited);
    now(async {
        let endpoints = async {
            let found = seen_by_all(&doors, end, async |door| Some(endpoints(door).await? == all)).await;
            found.then(|| begun.elapsed())
        };
        let listed = async {
            let found = seen_by_all(&doors, end, async |door| Some(door.servers().await.ok()? == all)).await;
            found.then(|| begun.elapsed())
        };
        let led = async {
            let leads = async |door: &Door| Some(others.contains(&holder(door).await?.as_str()));
            let found = seen_by_all(&doors, end, leads).await;
            found.then(|| begun.elapsed())
        };
        let (endpoints, listed, led) = tokio::join!(endpoints, listed, led);
        let held = |after: Option<Duration>, what: &str| {
            let after = after.unwrap_or_else(|| panic!("{waited:?} after {gone} was gone it was not so that {what}"));
            tell_if_late(limit, after, what);
            after
        };
        Takeover {
            endpoints: held(endpoints, "the endpoints are without it"),
            listed: held(listed, "agents are told of the others only"),
            led: held(led, "another one leads"),
        }
    })
}

/// Whether every door shows it before the end; one that has shown it is not asked again.
async fn seen_by_all(doors: &[&Door], end: Deadline, shows: impl AsyncFn(&Door) -> Option<bool>) -> bool {
    let looking = async {
        for door in doors {
            while shows(door).await != Some(true) {
                sleep(PAUSE).await;
            }
        }
    };
    timeout_at(end, looking).await.is_ok()
}

/// Addresses in the endpoints of the service `kubernetes`.
async fn endpoints(door: &Door) -> Option<BTreeSet<String>> {
    let path = "/api/v1/namespaces/default/endpoints/kubernetes";
    let answer = door.ask(Method::GET, path, None).await.ok()?;
    let subsets = answer.body["subsets"].as_array().filter(|_| !answer.stale)?.iter();
    let addresses = subsets.flat_map(|subset| subset["addresses"].as_array().into_iter().flatten());
    Some(
        addresses
            .filter_map(|one| Some(one["ip"].as_str()?.to_owned()))
            .collect(),
    )
}

/// The name of the server that leads.
async fn holder(door: &Door) -> Option<String> {
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/k3s";
    let answer = door.ask(Method::GET, path, None).await.ok()?;
    let holder = answer.body["spec"]["holderIdentity"]
        .as_str()
        .filter(|_| !answer.stale)?;
    // Its name, and which of its lives.
    Some(holder.rsplit_once('_')?.0.to_owned())
}
