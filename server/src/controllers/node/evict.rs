//! Sends pods away from nodes with `NoExecute` taints, each after the time it tolerates them.
//!
//! The time runs on our own clock from when the pod was first seen so.
//!
//! Source: Kubernetes v1.36 `pkg/controller/tainteviction/taint_eviction.go`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent::wire::object::{Meta, text};
use agent::wire::taint::{Stay, Taint, Toleration, stay};
use agent::wire::time;
use serde_json::{Value, json};

use super::super::action::{Action, Note, Plan, reference};
use super::super::runner::{Controller, Source};
use super::super::world::{Key, World, terminating};
use super::pods_and_their_nodes;
use crate::request::What;

/// The controller.
#[derive(Debug, Default)]
pub struct TaintEviction {
    /// Since when a pod, by uid, is where it may not stay.
    since: Mutex<HashMap<Key, (String, Duration)>>,
}

impl Controller for TaintEviction {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn sources(&self) -> Vec<Source> {
        pods_and_their_nodes()
    }

    fn plan(&self, world: &dyn World, key: &Key) -> Plan {
        let mut plan = Plan::default();
        let Some(pod) = world.get(What::PODS, &key.namespace, &key.name) else {
            self.forget(key);
            return plan;
        };
        let meta = Meta::of(&pod);
        let node = world.get(What::NODES, "", text(&pod, &["spec", "nodeName"]));
        let taints = node.as_ref().map(Taint::of_node).unwrap_or_default();
        match stay(&taints, &Toleration::of_pod(&pod)) {
            _ if terminating(&meta) => self.forget(key),
            Stay::Always => self.forget(key),
            Stay::No => evict(&mut plan, &pod, world),
            Stay::For(patience) => {
                let waited = self.waited(key, &meta.uid, world.uptime());
                match patience.checked_sub(waited) {
                    Some(rest) if !rest.is_zero() => plan.after(rest),
                    _ => evict(&mut plan, &pod, world),
                }
            }
        }
        plan
    }
}

impl TaintEviction {
    fn waited(&self, key: &Key, uid: &str, now: Duration) -> Duration {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        match since.get(key) {
            Some((known, begun)) if known == uid => now.saturating_sub(*begun),
            _ => {
                since.insert(key.clone(), (uid.to_owned(), now));
                Duration::ZERO
            }
        }
    }

    fn forget(&self, key: &Key) {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

fn evict(plan: &mut Plan, pod: &Value, world: &dyn World) {
    let meta = Meta::of(pod);
    let condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint",
        "lastTransitionTime": time::seconds(world.now()),
    });
    let status = json!({"conditions": [condition]});
    plan.push(Action::merge_status(What::PODS, &meta, status));
    // After what may find that the pod has moved on.
    plan.push(Action::Event(Note {
        kind: "Normal",
        reason: "TaintManagerEviction",
        message: format!("Marking for deletion Pod {}/{}", meta.namespace, meta.name),
        about: reference(pod),
        component: "taint-eviction-controller",
    }));
    plan.push(Action::delete(What::PODS, pod));
}

#[cfg(test)]
mod tests {
    use super::super::super::world::fake::Objects;
    use super::*;

    fn world(tolerations: Value) -> Objects {
        let node = json!({"metadata": {"name": "edge"}, "spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}});
        let pod = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u", "resourceVersion": "7"},
            "spec": {"nodeName": "edge", "tolerations": tolerations},
        });
        Objects::new(vec![(What::NODES, node), (What::PODS, pod)])
    }

    fn plan(controller: &TaintEviction, world: &Objects) -> Plan {
        let key = Key {
            namespace: "default".into(),
            name: "p".into(),
        };
        controller.plan(world, &key)
    }

    fn deletes(plan: &Plan) -> bool {
        plan.actions
            .iter()
            .any(|action| matches!(action, Action::Delete { .. }))
    }

    #[test]
    fn a_pod_goes_when_its_patience_is_over_and_not_before() {
        let controller = TaintEviction::default();
        let mut world = world(json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 300}]));
        assert_eq!(plan(&controller, &world).again, Some(Duration::from_secs(300)));
        world.uptime += Duration::from_secs(299);
        assert!(!deletes(&plan(&controller, &world)));
        world.uptime += Duration::from_secs(1);
        let plan = plan(&controller, &world);
        assert!(deletes(&plan), "{plan:?}");
        assert_eq!(
            plan.status_changes()[0]["metadata"],
            json!({"uid": "u", "resourceVersion": "7"})
        );
    }

    #[test]
    fn a_pod_without_a_toleration_goes_at_once_and_one_that_bears_all_stays() {
        let controller = TaintEviction::default();
        assert!(deletes(&plan(&controller, &world(json!([])))));
        assert!(
            plan(&controller, &world(json!([{"operator": "Exists"}])))
                .actions
                .is_empty()
        );
    }
}
