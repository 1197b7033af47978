//! Which nodes a pod can be on at all, and in words why not on the others.
//!
//! Source of the rules and their texts: Kubernetes v1.36 `pkg/scheduler/framework/plugins`.

use std::collections::BTreeMap;

use super::state::Node;
use super::wish::Wish;

/// Every reason against a node; empty: it fits. The first kind of reason ends the search, as upstream's plugins do.
pub fn objections(wish: &Wish, node: &Node) -> Vec<String> {
    if let Some(demand) = wish.unsupported {
        return vec![demand.to_owned()];
    }
    if let Some(reason) = unschedulable(wish, node)
        .or_else(|| taint(wish, node))
        .or_else(|| affinity(wish, node))
    {
        return vec![reason];
    }
    if wish
        .ports
        .iter()
        .any(|port| node.ports.iter().any(|taken| port.collides(taken)))
    {
        return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
    }
    resources(wish, node)
}

fn unschedulable(wish: &Wish, node: &Node) -> Option<String> {
    use agent::wire::taint::Taint;
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    let borne = wish.tolerations.iter().any(|one| one.tolerates(&taint));
    (node.unschedulable && !borne).then(|| "node(s) were unschedulable".to_owned())
}

fn taint(wish: &Wish, node: &Node) -> Option<String> {
    let hard = node.taints.iter().filter(|taint| taint.effect != "PreferNoSchedule");
    let borne = |taint: &&agent::wire::taint::Taint| wish.tolerations.iter().any(|one| one.tolerates(taint));
    // Which one, a pod's user need not be able to know: since v1.35 (kubernetes/kubernetes#134740) it is not told.
    let unborne = hard.into_iter().any(|taint| !borne(&taint));
    unborne.then(|| "node(s) had untolerated taint(s)".to_owned())
}

fn affinity(wish: &Wish, node: &Node) -> Option<String> {
    let selected = wish
        .node_selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let required = wish.required.as_ref();
    let wanted = required.is_none_or(|terms| terms.iter().any(|term| term.matches(&node.labels, &node.name)));
    (!selected || !wanted).then(|| "node(s) didn't match Pod's node affinity/selector".to_owned())
}

fn resources(wish: &Wish, node: &Node) -> Vec<String> {
    let mut reasons = Vec::new();
    if node.pods >= node.allocatable.of("pods") {
        reasons.push("Too many pods".to_owned());
    }
    for (resource, wanted) in &wish.requests.0 {
        let free = node.allocatable.of(resource).saturating_sub(node.taken.of(resource));
        if *wanted > 0 && *wanted > free {
            reasons.push(format!("Insufficient {resource}"));
        }
    }
    reasons
}

/// The reasons of all nodes in one sentence.
///
/// Source: Kubernetes v1.36 `pkg/scheduler/framework/types.go`, `FitError.Error`.
pub fn sentence(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::state::State;
    use super::*;

    fn node(spec: Value) -> Node {
        let mut state = State::default();
        state.node_seen(&json!({
            "metadata": {"name": "edge", "labels": {"zone": "a"}}, "spec": spec,
            "status": {"allocatable": {"cpu": "1", "memory": "128Mi", "pods": "2"}},
        }));
        let taken = json!({
            "metadata": {"uid": "there"},
            "spec": {"nodeName": "edge", "containers": [{"resources": {"requests": {"cpu": "600m"}}, "ports": [{"hostPort": 80}]}]},
        });
        state.place(&Wish::of(&taken));
        state.nodes().next().unwrap().clone()
    }

    #[test]
    fn each_reason_is_told_in_kubernetes_words() {
        let container = |requests: Value| json!([{"resources": {"requests": requests}}]);
        let plain = json!({});
        for (spec, pod, wanted) in [
            (
                plain.clone(),
                json!({"containers": container(json!({"cpu": "400m"}))}),
                vec![],
            ),
            (
                plain.clone(),
                json!({"containers": container(json!({"cpu": "401m", "memory": "1Gi", "example.com/gpu": "1"}))}),
                vec![
                    "Insufficient cpu",
                    "Insufficient example.com/gpu",
                    "Insufficient memory",
                ],
            ),
            (
                plain.clone(),
                json!({"nodeSelector": {"zone": "b"}}),
                vec!["node(s) didn't match Pod's node affinity/selector"],
            ),
            (
                plain.clone(),
                json!({"containers": [{"ports": [{"hostPort": 80, "protocol": "TCP"}]}]}),
                vec!["node(s) didn't have free ports for the requested pod ports"],
            ),
            (
                plain,
                json!({"containers": [{"ports": [{"hostPort": 80, "protocol": "UDP"}]}]}),
                vec![],
            ),
            (
                json!({"unschedulable": true}),
                json!({}),
                vec!["node(s) were unschedulable"],
            ),
            (
                json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}),
                json!({}),
                vec!["node(s) had untolerated taint(s)"],
            ),
            (
                json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}),
                json!({}),
                vec![],
            ),
        ] {
            let wish = Wish::of(&json!({"spec": pod}));
            assert_eq!(objections(&wish, &node(spec.clone())), wanted, "{pod} on {spec}");
        }
    }

    #[test]
    fn the_sentence_counts_nodes_by_reason() {
        let reasons = BTreeMap::from([("Insufficient cpu".to_owned(), 2), ("Too many pods".to_owned(), 1)]);
        assert_eq!(
            sentence(3, &reasons),
            "0/3 nodes are available: 1 Too many pods, 2 Insufficient cpu."
        );
        assert_eq!(sentence(0, &BTreeMap::new()), "no nodes available to schedule pods");
    }
}
