//! Which of the nodes that fit is best: room left, evenly used, liked by the pod, few siblings.
//!
//! The weights are upstream's for the parts that are here. Source: Kubernetes v1.36
//! `pkg/scheduler/apis/config/v1/default_plugins.go`, `plugins/noderesources`.

use super::filter::objections;
use super::state::{Node, State};
use super::wish::Wish;
use std::collections::BTreeMap;

const WHOLE: i64 = 100;

/// The best node, or how many nodes have which reason against the pod.
pub fn choose<'a>(wish: &Wish, state: &'a State) -> Result<&'a Node, (usize, BTreeMap<String, usize>)> {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut fitting = Vec::new();
    let mut nodes = 0;
    for node in state.nodes() {
        nodes += 1;
        let against = objections(wish, node);
        if against.is_empty() {
            fitting.push(node);
        }
        for reason in against {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    let scores = scores(wish, &fitting);
    let best = fitting
        .into_iter()
        .zip(scores)
        .max_by_key(|(node, score)| (*score, tie_break(wish, node)));
    best.map(|(node, _)| node).ok_or((nodes, reasons))
}

fn scores(wish: &Wish, nodes: &[&Node]) -> Vec<i64> {
    let liked: Vec<i64> = nodes.iter().map(|node| preference(wish, node)).collect();
    let disliked: Vec<i64> = nodes.iter().map(|node| soft_taints(wish, node)).collect();
    let siblings: Vec<i64> = nodes.iter().map(|node| siblings(wish, node)).collect();
    let share = |value: i64, all: &[i64]| match all.iter().max() {
        Some(most) if *most > 0 => value * WHOLE / most,
        _ => 0,
    };
    let rows = nodes.iter().zip(&liked).zip(&disliked).zip(&siblings);
    rows.map(|(((node, like), dislike), sibling)| {
        least_allocated(wish, node)
            + balanced(wish, node)
            + 2 * share(*like, &liked)
            + 3 * (WHOLE - share(*dislike, &disliked))
            + 2 * (WHOLE - share(*sibling, &siblings))
    })
    .collect()
}

/// How much of a resource would be in use, of [`WHOLE`].
fn used(wish: &Wish, node: &Node, resource: &str) -> i64 {
    let all = node.allocatable.of(resource);
    let taken = node.weight.of(resource).saturating_add(wish.weight.of(resource));
    if all <= 0 {
        WHOLE
    } else {
        (taken.saturating_mul(WHOLE) / all).clamp(0, WHOLE)
    }
}

fn least_allocated(wish: &Wish, node: &Node) -> i64 {
    let free = |resource| WHOLE - used(wish, node, resource);
    i64::midpoint(free("cpu"), free("memory"))
}

fn balanced(wish: &Wish, node: &Node) -> i64 {
    let apart = used(wish, node, "cpu") - used(wish, node, "memory");
    WHOLE - apart.abs() / 2
}

fn preference(wish: &Wish, node: &Node) -> i64 {
    let matching = wish
        .preferred
        .iter()
        .filter(|(_, term)| term.matches(&node.labels, &node.name));
    matching.map(|(weight, _)| weight).sum()
}

fn soft_taints(wish: &Wish, node: &Node) -> i64 {
    let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    let unborne = soft.filter(|taint| !wish.tolerations.iter().any(|one| one.tolerates(taint)));
    i64::try_from(unborne.count()).unwrap_or(i64::MAX)
}

fn siblings(wish: &Wish, node: &Node) -> i64 {
    let owner = wish.owner.as_ref();
    owner.and_then(|owner| node.owners.get(owner)).copied().unwrap_or(0)
}

/// Spreads pods over nodes that are equally good, the same way each time.
fn tie_break(wish: &Wish, node: &Node) -> u64 {
    let bytes = wish.meta.uid.bytes().chain(node.name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn state(nodes: &[(&str, Value)]) -> State {
        let mut state = State::default();
        for (name, spec) in nodes {
            let status = json!({"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"}});
            state.node_seen(
                &json!({"metadata": {"name": name, "labels": {"name": name}}, "spec": spec, "status": status}),
            );
        }
        state
    }

    fn pod(uid: &str, spec: Value) -> Wish {
        let owner = json!([{"uid": "set", "controller": true}]);
        Wish::of(&json!({"metadata": {"uid": uid, "ownerReferences": owner}, "spec": spec}))
    }

    fn chosen(state: &State, wish: &Wish) -> String {
        choose(wish, state).map(|node| node.name.clone()).unwrap()
    }

    #[test]
    fn siblings_spread_over_equal_nodes() {
        let mut state = state(&[("a", json!({})), ("b", json!({})), ("c", json!({}))]);
        let mut seen = Vec::new();
        for uid in ["1", "2", "3"] {
            let mut wish = pod(uid, json!({"containers": [{}]}));
            wish.node = chosen(&state, &wish);
            seen.push(wish.node.clone());
            state.place(&wish);
        }
        seen.sort();
        assert_eq!(seen, ["a", "b", "c"]);
    }

    #[test]
    fn preferred_affinity_and_soft_taints_steer() {
        let state = state(&[
            ("a", json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]})),
            ("b", json!({})),
        ]);
        assert_eq!(chosen(&state, &pod("1", json!({"containers": [{}]}))), "b");
        let term = json!({"weight": 100, "preference": {"matchExpressions": [{"key": "name", "operator": "In", "values": ["a"]}]}});
        let likes_a = json!({"containers": [{}], "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}});
        assert_eq!(chosen(&state, &pod("1", likes_a)), "a");
    }

    #[test]
    fn the_emptier_node_wins() {
        let mut state = state(&[("a", json!({})), ("b", json!({}))]);
        let mut big = Wish::of(
            &json!({"metadata": {"uid": "big"}, "spec": {"containers": [{"resources": {"requests": {"cpu": "2", "memory": "2Gi"}}}]}}),
        );
        big.node = "a".into();
        state.place(&big);
        assert_eq!(chosen(&state, &pod("1", json!({"containers": [{}]}))), "b");
    }

    #[test]
    fn no_node_is_told_with_its_reasons() {
        let state = state(&[("a", json!({"unschedulable": true}))]);
        let (nodes, reasons) = choose(&pod("1", json!({"containers": [{}]})), &state).unwrap_err();
        assert_eq!((nodes, reasons.len()), (1, 1));
    }
}
