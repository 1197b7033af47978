//! Removes pods whose node is gone: nobody is left to stop them and say so.
//!
//! A node may come back within moments (its Node object was deleted to let it register anew), hence a quarantine.
//!
//! Source: Kubernetes v1.36 `pkg/controller/podgc/gc_controller.go` (`gcOrphaned`, `quarantineTime`).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent::wire::object::{Meta, text};
use agent::wire::time;
use serde_json::{Value, json};

use super::super::action::{Action, Deletion, Plan};
use super::super::runner::{Controller, Source};
use super::super::world::{Key, World};
use super::pods_and_their_nodes;
use crate::request::What;

const QUARANTINE: Duration = Duration::from_secs(40);

/// The controller.
#[derive(Debug, Default)]
pub struct PodGarbage {
    /// Since when a node that pods are bound to is missing.
    missing: Mutex<HashMap<String, Duration>>,
}

impl Controller for PodGarbage {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn sources(&self) -> Vec<Source> {
        pods_and_their_nodes()
    }

    fn plan(&self, world: &dyn World, key: &Key) -> Plan {
        let mut plan = Plan::default();
        let Some(pod) = world.get(What::PODS, &key.namespace, &key.name) else {
            return plan;
        };
        let node = text(&pod, &["spec", "nodeName"]);
        if node.is_empty() {
            return plan;
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if world.get(What::NODES, "", node).is_some() {
            missing.remove(node);
            return plan;
        }
        let since = *missing.entry(node.to_owned()).or_insert_with(|| world.uptime());
        match QUARANTINE.checked_sub(world.uptime().saturating_sub(since)) {
            Some(rest) if !rest.is_zero() => plan.after(rest),
            _ => remove(&mut plan, &pod, world),
        }
        plan
    }
}

fn remove(plan: &mut Plan, pod: &Value, world: &dyn World) {
    let meta = Meta::of(pod);
    if !matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed") {
        let condition = json!({
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists",
            "lastTransitionTime": time::seconds(world.now()),
        });
        let status = json!({"phase": "Failed", "conditions": [condition]});
        plan.push(Action::merge_status(What::PODS, &meta, status));
    }
    plan.push(Action::Delete {
        what: What::PODS,
        meta: Box::new(meta),
        how: Deletion::Now,
    });
}

#[cfg(test)]
mod tests {
    use super::super::super::world::fake::Objects;
    use super::*;

    #[test]
    fn a_pod_outlives_its_node_by_the_quarantine_only() {
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u", "resourceVersion": "7"},
            "spec": {"nodeName": "gone"}});
        let mut world = Objects::new(vec![(What::PODS, pod)]);
        let controller = PodGarbage::default();
        let key = Key {
            namespace: "default".into(),
            name: "p".into(),
        };
        assert_eq!(controller.plan(&world, &key).again, Some(QUARANTINE));
        world.uptime += QUARANTINE;
        let plan = controller.plan(&world, &key);
        assert!(
            matches!(plan.actions.last(), Some(Action::Delete { how: Deletion::Now, .. })),
            "{plan:?}"
        );
        assert_eq!(
            plan.status_changes()[0]["metadata"],
            json!({"uid": "u", "resourceVersion": "7"})
        );
        let node = json!({"metadata": {"name": "gone"}});
        world.objects.push((What::NODES, node));
        assert!(controller.plan(&world, &key).actions.is_empty(), "the node is back");
    }
}
