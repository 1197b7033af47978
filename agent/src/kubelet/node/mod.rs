//! The node's own object: registered once, its status kept true, its lease renewed.
//!
//! `object.rs` says what is in it (pure), `machine.rs` asks the kernel, `lease.rs` holds the lease. Like a Go kubelet, a
//! node whose object somebody deletes does not come back by itself: its agent must be restarted for that.

mod lease;
mod machine;
mod object;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

pub use self::machine::{Disk, Machine};
pub use self::object::{KUBELET_VERSION, allocatable};

use self::object::Observed;
use super::clock;
use super::disk::{read_json, write_json};
use super::event::About;
use super::host::{Host, NetworkState};
use super::ports::{ApiFailure, Change, Networks};
use crate::trouble::Trouble;
use crate::wire::object::{list, text};

/// How often the lease is renewed and the status looked at: Kubernetes' `nodeStatusUpdateFrequency`.
const BEAT: Duration = Duration::from_secs(10);
/// After an attempt that no server has answered: a node that was silent for long is lost to its cluster until its first word. One
/// that begins in the void can go through at the next of its SYNs (1, 3, 7 s) or lasts for 10 s, so this is 3 s more at most.
const UNHEARD: Duration = Duration::from_secs(3);
/// How often an unchanged status is sent: Kubernetes' `nodeStatusReportFrequency`.
const REPORT: Duration = Duration::from_secs(300);
/// Between attempts to register; doubles up to [`LONGEST_DELAY`].
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// With no renewal for this long, a node controller has called us dead and the status must be told again.
const PRESUMED_DEAD: Duration = Duration::from_secs(35);

/// Registers the node, starts the pod network once its addresses are known, and keeps both up. Ends only by being
/// dropped.
pub async fn keep(host: Arc<Host>, networks: Arc<dyn Networks>, network: watch::Sender<NetworkState>) {
    let kept = host.settings.root.join("node.json");
    let known = read_json(&kept).await.unwrap_or_default();
    let mut range = text(&known, &["podCIDR"]).to_owned();
    if !range.is_empty() {
        // A server may be long in coming; the node's range has not changed since.
        start_network(networks.as_ref(), &network, &range).await;
    }
    let node = register(&host).await;
    let mut keeper = Keeper::new(host.clone(), &node);
    keeper.beat().await;
    let assigned = assigned_range(&host, node).await;
    if assigned != range || matches!(*network.borrow(), NetworkState::Missing(_)) {
        if !range.is_empty() && assigned != range {
            tracing::warn!(
                from = range,
                to = assigned,
                "the node's range of pod addresses has changed"
            );
        }
        range = assigned;
        let mut delay = FIRST_DELAY;
        while !start_network(networks.as_ref(), &network, &range).await {
            keeper.beat().await;
            sleep(delay).await;
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }
    if text(&known, &["podCIDR"]) != range
        && let Err(error) = write_json(&kept, &json!({"podCIDR": range})).await
    {
        tracing::warn!(%error, "the node's range of pod addresses is not kept for the next start");
    }
    let mut ips = host.settings.node_ips.clone();
    let (mut annotated, mut returns) = (true, host.api.returns());
    loop {
        returns.forget();
        let heard = keeper.beat().await;
        if heard && !annotated {
            annotated = annotate(&host).await;
        }
        let pause = async {
            match heard {
                true => sleep(BEAT).await,
                false => returns.pause(UNHEARD).await,
            }
        };
        tokio::select! {
            () = pause => {}
            () = ips.changed() => annotated = false,
        }
    }
}

/// Brings what the node's annotations say of its addresses up to date; what others go by is in the status. Returns whether it
/// has.
async fn annotate(host: &Host) -> bool {
    let path = format!("/api/v1/nodes/{}", host.settings.node_name);
    let annotated = async {
        let found = host.api.get(&path).await?;
        match object::adopt(&host.settings, &found) {
            Some(patch) => host.api.patch(&path, &patch).await.map(drop),
            None => Ok(()),
        }
    };
    let annotated = annotated.await;
    if let Err(error) = &annotated {
        tracing::warn!(%error, "the node's new addresses are in its status and not in its annotations, trying on");
    }
    annotated.is_ok()
}

async fn start_network(networks: &dyn Networks, network: &watch::Sender<NetworkState>, range: &str) -> bool {
    match networks.start(range).await {
        Ok(started) => {
            network.send_replace(NetworkState::Up(started));
            true
        }
        Err(error) => {
            tracing::error!(error, range, "the pod network does not start");
            network.send_replace(NetworkState::Missing(error));
            false
        }
    }
}

/// Creates the Node, or brings up to date the one that is there; tries for ever. Returns it.
async fn register(host: &Host) -> Value {
    let (mut delay, mut trouble) = (FIRST_DELAY, Trouble::default());
    loop {
        match try_register(host).await {
            Ok(node) => {
                tracing::info!(node = host.settings.node_name, "node is registered");
                return node;
            }
            Err(error) if trouble.is_news(clock::now()) => {
                tracing::warn!(%error, retry_ms = delay.as_millis(), "node is not registered yet");
            }
            Err(error) => tracing::debug!(%error, retry_ms = delay.as_millis(), "node is not registered yet"),
        }
        sleep(delay).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}

async fn try_register(host: &Host) -> Result<Value, ApiFailure> {
    let fresh = object::fresh(&host.settings, &observe(host).await, Timestamp::now());
    match host.api.create("/api/v1/nodes", &fresh).await {
        Err(error) if error.code() == 409 => {}
        other => return other,
    }
    let path = format!("/api/v1/nodes/{}", host.settings.node_name);
    let found = host.api.get(&path).await?;
    match object::adopt(&host.settings, &found) {
        Some(patch) => host.api.patch(&path, &patch).await,
        None => Ok(found),
    }
}

/// Waits until the control plane has given the node its range of pod addresses.
async fn assigned_range(host: &Host, node: Value) -> String {
    let name = &host.settings.node_name;
    let path = format!("/api/v1/nodes/{name}");
    let mut node = node;
    loop {
        let range = text(&node, &["spec", "podCIDR"]);
        if !range.is_empty() {
            return range.to_owned();
        }
        let version = text(&node, &["metadata", "resourceVersion"]);
        let watch = format!(
            "/api/v1/nodes?watch=1&fieldSelector=metadata.name%3D{name}&resourceVersion={version}&timeoutSeconds=60"
        );
        if let Ok(mut changes) = host.api.watch(&watch).await {
            while let Some(change) = changes.next().await {
                if let Change::Set(changed) = change
                    && !text(&changed, &["spec", "podCIDR"]).is_empty()
                {
                    return text(&changed, &["spec", "podCIDR"]).to_owned();
                }
            }
        }
        sleep(FIRST_DELAY * 5).await;
        node = host.api.get(&path).await.unwrap_or(node);
    }
}

async fn observe(host: &Host) -> Observed {
    let root = host.settings.root.clone();
    let disk = super::disk::blocking(move || Ok(Disk::read(&existing(&root)))).await;
    Observed {
        machine: host.machine.clone(),
        disk: disk.unwrap_or_default(),
        images: host.containers.images().await,
        network_missing: match &*host.network.borrow() {
            NetworkState::Up(_) => None,
            NetworkState::Missing(why) => Some(why.clone()),
        },
    }
}

/// The nearest folder above that exists.
fn existing(path: &std::path::Path) -> std::path::PathBuf {
    let found = path.ancestors().find(|path| path.exists());
    found.unwrap_or(path).to_owned()
}

/// Keeps status and lease.
struct Keeper {
    host: Arc<Host>,
    lease: lease::Lease,
    /// What was last sent, and when.
    told: Value,
    told_at: Option<Instant>,
    alive_at: Instant,
    /// Why lease and status do not get through has been said.
    unrenewed: Trouble,
    untold: Trouble,
}

impl Keeper {
    fn new(host: Arc<Host>, node: &Value) -> Self {
        let told = node.get("status").cloned().unwrap_or_default();
        let lease = lease::Lease::new(&host.settings.node_name, text(node, &["metadata", "uid"]));
        Self {
            host,
            lease,
            told,
            told_at: None,
            alive_at: clock::now(),
            unrenewed: Trouble::default(),
            untold: Trouble::default(),
        }
    }

    /// Renews the lease, and tells the status where that is due. Returns whether a server has answered, whatever it said.
    async fn beat(&mut self) -> bool {
        match self.lease.renew(self.host.api.as_ref(), Timestamp::now()).await {
            Ok(()) => {
                if clock::now().duration_since(self.alive_at) > PRESUMED_DEAD {
                    self.told_at = None;
                }
                self.alive_at = clock::now();
                self.unrenewed.ends();
            }
            Err(error) => {
                match self.unrenewed.is_news(clock::now()) {
                    true => tracing::warn!(%error, "the node's lease is not renewed"),
                    false => tracing::debug!(%error, "the node's lease is not renewed"),
                }
                if error.code() == 0 {
                    // The status would wait for as long again.
                    return false;
                }
            }
        }
        let observed = observe(&self.host).await;
        let status = object::status(&self.host.settings, &observed, &self.told, Timestamp::now());
        let recent = |at: Instant| clock::now().duration_since(at) < REPORT;
        if self.told_at.is_some_and(recent) && object::says_the_same(&self.told, &status) {
            return true;
        }
        let path = format!("/api/v1/nodes/{}/status", self.host.settings.node_name);
        let body = json!({"status": difference(&self.told, &status)});
        match self.host.api.patch(&path, &body).await {
            Ok(_) => {
                self.has_told(status);
                true
            }
            Err(error) => {
                let why = untold(error.code());
                match self.untold.is_news(clock::now()) {
                    true => tracing::warn!(%error, "{why}"),
                    false => tracing::debug!(%error, "{why}"),
                }
                self.told_at = None;
                error.code() != 0
            }
        }
    }

    fn has_told(&mut self, status: Value) {
        let about = || About::node(&self.host.settings.node_name);
        let name = &self.host.settings.node_name;
        match (is_ready(&self.told), is_ready(&status)) {
            (false, true) => {
                let text = format!("Node {name} status is now: NodeReady");
                self.host.events.normal(about(), "NodeReady", text);
            }
            (true, false) => {
                let text = format!("Node {name} status is now: NodeNotReady");
                self.host.events.normal(about(), "NodeNotReady", text);
            }
            _ => {}
        }
        self.told = status;
        self.told_at = Some(clock::now());
        self.untold.ends();
    }
}

/// What a status that did not get through means, by the code of the answer. A kubelet registers when it starts, and then no more
/// (K3s' too): what an operator has deleted does not come back by itself.
const fn untold(code: u16) -> &'static str {
    match code {
        404 => {
            "the node's status is not reported: its Node was deleted; restart the agent, with a token, to register it anew"
        }
        _ => "the node's status is not reported",
    }
}

fn is_ready(status: &Value) -> bool {
    let conditions = list(status, &["conditions"]);
    conditions
        .iter()
        .any(|it| text(it, &["type"]) == "Ready" && text(it, &["status"]) == "True")
}

/// A strategic merge patch: conditions always (others' stay, they merge by type), the rest where it differs. A list of
/// addresses is replaced whole: two of one type would merge into one.
fn difference(old: &Value, new: &Value) -> Value {
    let mut patch = Map::new();
    for (key, value) in new.as_object().into_iter().flatten() {
        match key.as_str() {
            "conditions" => {
                patch.insert(key.clone(), value.clone());
            }
            _ if old.get(key) == Some(value) => {}
            "addresses" if !list(old, &["addresses"]).is_empty() => {
                let all = [json!({"$patch": "replace"})].into_iter();
                let all = all.chain(list(new, &["addresses"]).iter().cloned());
                patch.insert(key.clone(), Value::Array(all.collect()));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_deleted_is_told_with_its_cure() {
        assert!(untold(404).contains("restart the agent"));
        for code in [0, 403, 500, 503] {
            assert!(!untold(code).contains("deleted"), "{code}");
        }
    }
    use crate::kubelet::testing::node::{LEASE, NODE, Rig};

    /// Wherever in an attempt, or between two, that falls.
    #[tokio::test(start_paused = true)]
    async fn a_node_is_heard_again_within_seconds_of_its_way_being_back() {
        for phase in 0..28 {
            let mut rig = Rig::start();
            rig.registers();
            let versions = |rig: &Rig| {
                [NODE, LEASE].map(|path| {
                    let object = rig.api.object(path).unwrap_or_default();
                    text(&object, &["metadata", "resourceVersion"]).to_owned()
                })
            };
            rig.until("it is heard", |rig| rig.api.object(LEASE).is_some()).await;
            rig.api.vanish();
            sleep(Duration::from_secs(60) + Duration::from_millis(500) * phase).await;
            let before = versions(&rig);
            rig.api.plug();
            let took = rig
                .until("it is heard again", |rig| {
                    let now = versions(rig);
                    now[0] != before[0] && now[1] != before[1]
                })
                .await;
            assert!(took < Duration::from_secs(7), "{took:?}, phase {phase}");
            rig.run("web", json!({"containers": [{"name": "c", "image": "i"}]}));
            let took = rig.until("it hears", |rig| rig.phase("web") == "Running").await;
            assert!(took < Duration::from_secs(4), "{took:?}, phase {phase}");
        }
    }

    #[test]
    fn a_status_patch_holds_conditions_and_what_changed() {
        let old =
            json!({"addresses": [{"type": "Hostname", "address": "a"}], "capacity": {"cpu": "1"}, "conditions": []});
        let mut new = old.clone();
        assert_eq!(difference(&old, &new), json!({"conditions": []}));
        crate::wire::object::set(&mut new, &["addresses"], json!([{"type": "Hostname", "address": "b"}]));
        assert_eq!(
            difference(&old, &new),
            json!({"addresses": [{"$patch": "replace"}, {"type": "Hostname", "address": "b"}], "conditions": []})
        );
        assert_eq!(difference(&Value::Null, &new), new, "a first report has everything");
    }
}
