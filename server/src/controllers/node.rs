//! Watches over nodes: are they alive, what may run on them, which addresses do their pods have.
//!
//! A node lives as long as its Lease or its heartbeat keeps changing. That is measured on a clock of our own that never
//! jumps: the times a node writes say only "something new came".
//!
//! Source: Kubernetes v1.36 `pkg/controller/nodelifecycle/node_lifecycle_controller.go`.

mod evict;
mod orphan;
mod range;
mod taint;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent::wire::object::{Meta, at, list, set, text};
use agent::wire::time;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::action::{Action, Note, Plan, reference};
use super::replicaset::ready;
use super::runner::{Controller, Source};
use super::world::{Found, Key, World};
use crate::request::What;

pub use evict::TaintEviction;
pub use orphan::PodGarbage;
pub use range::NodeRanges;

const COMPONENT: &str = "node-controller";
/// Five missed renewals of ten seconds. Source: `--node-monitor-grace-period` of v1.36.
const GRACE: Duration = Duration::from_secs(50);
const LEASES: &str = "kube-node-lease";

/// The controller of `Ready`, of the taints that follow from it, and of pods on dead nodes.
#[derive(Debug, Default)]
pub struct NodeLifecycle {
    /// What each node said last, and when that came.
    heard: Mutex<HashMap<String, (String, Duration)>>,
}

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        COMPONENT
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::own(What::NODES),
            Source::of(What::LEASES, |_, _, item| {
                let key = Key::of(&item.value());
                let of_node = key.namespace == LEASES;
                let node = Key {
                    namespace: String::new(),
                    name: key.name,
                };
                of_node.then_some(node).into_iter().collect()
            }),
        ]
    }

    fn plan(&self, world: &dyn World, key: &Key) -> Plan {
        let mut plan = Plan::default();
        let Some(node) = world.get(What::NODES, "", &key.name) else {
            self.forget(&key.name);
            return plan;
        };
        let silent = self.silence(world, &node, &key.name);
        let lost = silent >= GRACE;
        if lost {
            lose(&mut plan, &node, world.now());
        } else {
            plan.after(GRACE - silent);
        }
        let status = if lost { "Unknown" } else { ready_status(&node) };
        taint::put(&mut plan, &node, status, world.now());
        if lost {
            // An agent that says itself that it is not ready goes on telling how its pods are. Last: a plan ends with what fails.
            mark_pods(&mut plan, world.on_node(&key.name), world.now());
        }
        plan
    }
}

impl NodeLifecycle {
    /// For how long nothing new came from the node.
    fn silence(&self, world: &dyn World, node: &Value, name: &str) -> Duration {
        let lease = world.get(What::LEASES, LEASES, name).unwrap_or_default();
        let beat = condition(node, "Ready").map_or("", |ready| text(ready, &["lastHeartbeatTime"]));
        let said = format!("{} {beat}", text(&lease, &["spec", "renewTime"]));
        let now = world.uptime();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        match heard.get(name) {
            Some((known, since)) if *known == said => now.saturating_sub(*since),
            _ => {
                heard.insert(name.to_owned(), (said, now));
                Duration::ZERO
            }
        }
    }

    fn forget(&self, name: &str) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// For controllers of pods that look at the pod's node: a change of a node concerns every pod on it.
fn pods_and_their_nodes() -> Vec<Source> {
    vec![
        Source::own(What::PODS),
        Source::of(What::NODES, |world, _, item| {
            let name = Key::of(&item.value()).name;
            world.keys_on_node(&name)
        }),
    ]
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = list(object, &["status", "conditions"]);
    conditions.iter().find(|one| text(one, &["type"]) == kind)
}

fn ready_status(node: &Value) -> &str {
    condition(node, "Ready").map_or("Unknown", |ready| match text(ready, &["status"]) {
        "" => "Unknown",
        status => status,
    })
}

/// What the kubelet would tell us becomes unknown.
fn lose(plan: &mut Plan, node: &Value, now: Timestamp) {
    let unknown: Vec<Value> = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        .into_iter()
        .filter_map(|kind| lost_condition(node, kind, now))
        .collect();
    if unknown.is_empty() {
        return;
    }
    let meta = Meta::of(node);
    let status = json!({"conditions": unknown});
    plan.push(Action::merge_status(What::NODES, &meta, status));
    plan.push(Action::Event(Note {
        kind: "Normal",
        reason: "NodeNotReady",
        message: format!("Node {} status is now: NodeNotReady", meta.name),
        about: reference(node),
        component: COMPONENT,
    }));
}

fn lost_condition(node: &Value, kind: &str, now: Timestamp) -> Option<Value> {
    let (reason, message, beat) = match condition(node, kind) {
        Some(known) if text(known, &["status"]) == "Unknown" => return None,
        Some(known) => (
            "NodeStatusUnknown",
            "Kubelet stopped posting node status.",
            known.get("lastHeartbeatTime").cloned(),
        ),
        None => (
            "NodeStatusNeverUpdated",
            "Kubelet never posted node status.",
            at(node, &["metadata", "creationTimestamp"]).cloned(),
        ),
    };
    Some(json!({
        "type": kind,
        "status": "Unknown",
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": beat,
        "lastTransitionTime": time::seconds(now),
    }))
}

/// Nobody can tell any more that these are ready: services must not count on them.
fn mark_pods(plan: &mut Plan, pods: Found<'_>, now: Timestamp) {
    for pod in pods.filter(ready) {
        let meta = Meta::of(&pod);
        let mut condition = json!({"type": "Ready"});
        set(&mut condition, &["status"], "False");
        set(&mut condition, &["lastTransitionTime"], time::seconds(now));
        let status = json!({"conditions": [condition]});
        plan.push(Action::merge_status(What::PODS, &meta, status));
        plan.push(Action::Event(Note {
            kind: "Warning",
            reason: "NodeNotReady",
            message: "Node is not ready".into(),
            about: reference(&pod),
            component: COMPONENT,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::fake::Objects;
    use super::*;

    fn node(ready: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge", "uid": "u", "resourceVersion": "7"}, "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": "2026-11-25T11:00:00Z"}]},
        })
    }

    fn plan(controller: &NodeLifecycle, objects: &Objects) -> Plan {
        let key = Key {
            namespace: String::new(),
            name: "edge".into(),
        };
        controller.plan(objects, &key)
    }

    fn statuses(plan: &Plan) -> Vec<&Value> {
        let changes = plan.status_changes();
        for change in &changes {
            assert_eq!(change["metadata"], json!({"uid": "u", "resourceVersion": "7"}));
        }
        changes
            .into_iter()
            .map(|change| &change["status"]["conditions"])
            .collect()
    }

    #[test]
    fn a_node_that_says_nothing_new_for_the_grace_period_is_lost() {
        let controller = NodeLifecycle::default();
        let mut objects = Objects::new(vec![(What::NODES, node("True"))]);
        assert_eq!(plan(&controller, &objects).again, Some(GRACE));
        objects.uptime += GRACE - Duration::from_secs(1);
        assert!(plan(&controller, &objects).actions.is_empty());
        objects.uptime += Duration::from_secs(1);
        let lost = plan(&controller, &objects);
        let conditions = statuses(&lost);
        assert_eq!(conditions[0][0]["status"], "Unknown");
        assert_eq!(conditions[0][0]["reason"], "NodeStatusUnknown");
        assert_eq!(conditions[0][1]["reason"], "NodeStatusNeverUpdated");
    }

    #[test]
    fn a_renewed_lease_keeps_a_node_alive_whatever_time_it_says() {
        let controller = NodeLifecycle::default();
        for renewed in ["1970-01-01T00:00:01Z", "2099-01-01T00:00:00Z", "1970-01-01T00:00:02Z"] {
            let lease = json!({"metadata": {"name": "edge", "namespace": LEASES}, "spec": {"renewTime": renewed}});
            let mut objects = Objects::new(vec![(What::NODES, node("True")), (What::LEASES, lease)]);
            objects.uptime += GRACE * 3;
            assert!(statuses(&plan(&controller, &objects)).is_empty());
        }
    }

    #[test]
    fn pods_of_a_lost_node_are_not_ready_and_those_of_one_that_speaks_are_what_it_says() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": "edge"},
            "metadata": {"name": "p", "namespace": "default", "uid": "u", "resourceVersion": "7"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        let controller = NodeLifecycle::default();
        let mut objects = Objects::new(vec![(What::NODES, node("False")), (What::PODS, pod)]);
        assert!(statuses(&plan(&controller, &objects)).is_empty());
        objects.uptime += GRACE;
        let lost = plan(&controller, &objects);
        let of_pod = statuses(&lost)
            .into_iter()
            .find(|conditions| conditions.as_array().is_some_and(|all| all.len() == 1));
        assert_eq!(of_pod.unwrap()[0]["status"], "False");
    }
}
