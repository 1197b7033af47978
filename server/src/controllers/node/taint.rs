//! The taints that follow from a node's conditions. Those of other people are left alone.
//!
//! Source: Kubernetes v1.36 `pkg/controller/nodelifecycle` (`nodeConditionToTaintKeyStatusMap`, `processTaintBaseEviction`).

use agent::wire::object::{Meta, at, text};
use agent::wire::taint::Taint;
use agent::wire::time;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::action::{Action, Plan};
use super::condition;
use crate::request::What;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const PRESSURE: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

/// Brings the taints that are ours in line with the node's state; `ready` is what its Ready condition now says.
pub fn put(plan: &mut Plan, node: &Value, ready: &str, now: Timestamp) {
    let present = Taint::of_node(node);
    let wanted = wanted(node, ready);
    let kept = present
        .iter()
        .filter(|taint| !is_ours(taint) || wanted.iter().any(|one| one.is_same_as(taint)));
    let missing = wanted
        .iter()
        .filter(|taint| !present.iter().any(|one| one.is_same_as(taint)));
    let stamped = missing.cloned().map(|taint| Taint {
        time_added: (taint.effect == "NoExecute").then(|| time::seconds(now)),
        ..taint
    });
    let taints: Vec<Taint> = kept.cloned().chain(stamped).collect();
    if taints != present {
        let meta = Meta::of(node);
        let change = json!({"spec": {"taints": taints}});
        plan.push(Action::merge(What::NODES, &meta, change));
    }
}

fn wanted(node: &Value, ready: &str) -> Vec<Taint> {
    let mut wanted = Vec::new();
    let mut add = |key: &str, effect: &str| {
        wanted.push(Taint {
            key: key.into(),
            effect: effect.into(),
            ..Taint::default()
        });
    };
    let unready = match ready {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    if let Some(key) = unready {
        add(key, "NoSchedule");
        add(key, "NoExecute");
    }
    if at(node, &["spec", "unschedulable"]) == Some(&Value::Bool(true)) {
        add(UNSCHEDULABLE, "NoSchedule");
    }
    for (kind, key) in PRESSURE {
        if condition(node, kind).is_some_and(|one| text(one, &["status"]) == "True") {
            add(key, "NoSchedule");
        }
    }
    wanted
}

fn is_ours(taint: &Taint) -> bool {
    match taint.effect.as_str() {
        "NoExecute" => [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()),
        "NoSchedule" => {
            [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
                || PRESSURE.iter().any(|(_, key)| *key == taint.key)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taints_after(spec: Value, conditions: Value, ready: &str) -> Option<Vec<String>> {
        let node = json!({"metadata": {"name": "edge"}, "spec": spec, "status": {"conditions": conditions}});
        let mut plan = Plan::default();
        put(&mut plan, &node, ready, Timestamp::UNIX_EPOCH);
        let Some(Action::Patch {
            patch: crate::request::Patch::Merge(change),
            ..
        }) = plan.actions.first()
        else {
            return None;
        };
        let after = json!({"spec": change["spec"]});
        let written = Taint::of_node(&after)
            .iter()
            .map(|one| format!("{}:{}", one.key, one.effect))
            .collect();
        Some(written)
    }

    #[test]
    fn taints_follow_the_node_and_strangers_stay() {
        let own = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}, {"key": "mine", "effect": "NoSchedule"}]);
        let memory = json!([{"type": "MemoryPressure", "status": "True"}]);
        for (spec, conditions, ready, wanted) in [
            (json!({}), json!([]), "True", None),
            (json!({"taints": own}), json!([]), "True", Some(vec!["mine:NoSchedule"])),
            (
                json!({}),
                json!([]),
                "False",
                Some(vec![
                    "node.kubernetes.io/not-ready:NoSchedule",
                    "node.kubernetes.io/not-ready:NoExecute",
                ]),
            ),
            (
                json!({"taints": own}),
                json!([]),
                "Unknown",
                Some(vec![
                    "mine:NoSchedule",
                    "node.kubernetes.io/unreachable:NoSchedule",
                    "node.kubernetes.io/unreachable:NoExecute",
                ]),
            ),
            (
                json!({"unschedulable": true}),
                memory,
                "True",
                Some(vec![
                    "node.kubernetes.io/unschedulable:NoSchedule",
                    "node.kubernetes.io/memory-pressure:NoSchedule",
                ]),
            ),
        ] {
            let got = taints_after(spec.clone(), conditions, ready);
            let wanted: Option<Vec<String>> = wanted.map(|list| list.into_iter().map(ToOwned::to_owned).collect());
            assert_eq!(got, wanted, "{spec} {ready}");
        }
    }
}
