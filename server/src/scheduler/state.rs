//! What the nodes have and what is taken of it, kept up from one event to the next.

use std::collections::{BTreeMap, HashMap};

use agent::wire::object::{Meta, at};
use agent::wire::taint::Taint;
use serde_json::Value;

use super::wish::{Amounts, HostPort, Wish};

/// A node, and what its pods take.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Cordoned.
    pub unschedulable: bool,
    /// What pods may take in all.
    pub allocatable: Amounts,
    /// What they have taken.
    pub taken: Amounts,
    /// The same for comparisons.
    pub weight: Amounts,
    /// How many there are.
    pub pods: i64,
    /// Ports they occupy.
    pub ports: Vec<HostPort>,
    /// How many there are by managing owner.
    pub owners: HashMap<String, i64>,
    /// The Node object is there; without it only pods are known.
    known: bool,
}

/// All nodes, and which pod counts for which.
#[derive(Debug, Default)]
pub struct State {
    nodes: BTreeMap<String, Node>,
    /// Pods that count, by uid.
    placed: HashMap<String, Wish>,
}

impl State {
    /// The nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.known)
    }

    /// A Node object came or changed.
    pub fn node_seen(&mut self, object: &Value) {
        let meta = Meta::of(object);
        let node = self.nodes.entry(meta.name.clone()).or_default();
        node.name = meta.name;
        node.labels = meta.labels;
        node.taints = Taint::of_node(object);
        node.unschedulable = at(object, &["spec", "unschedulable"]) == Some(&Value::Bool(true));
        let allocatable = at(object, &["status", "allocatable"]).or_else(|| at(object, &["status", "capacity"]));
        node.allocatable = Amounts::read(allocatable);
        node.known = true;
    }

    /// A Node object went; its pods still count should it come back.
    pub fn node_gone(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.known = false;
        }
    }

    /// A pod counts for the node it names from now on, and for no other.
    pub fn place(&mut self, wish: Wish) {
        self.lift(&wish.meta.uid);
        let node = self.nodes.entry(wish.node.clone()).or_default();
        node.taken.add(&wish.requests);
        node.weight.add(&wish.weight);
        node.pods += 1;
        node.ports.extend(wish.ports.iter().cloned());
        if let Some(owner) = &wish.owner {
            *node.owners.entry(owner.clone()).or_default() += 1;
        }
        self.placed.insert(wish.meta.uid.clone(), wish);
    }

    /// A pod counts no more: it is gone, has ended or could not be bound. True if it did count.
    pub fn lift(&mut self, uid: &str) -> bool {
        let Some(wish) = self.placed.remove(uid) else {
            return false;
        };
        if let Some(node) = self.nodes.get_mut(&wish.node) {
            node.taken.subtract(&wish.requests);
            node.weight.subtract(&wish.weight);
            node.pods -= 1;
            for port in &wish.ports {
                if let Some(index) = node.ports.iter().position(|one| one == port) {
                    node.ports.swap_remove(index);
                }
            }
            if let Some(count) = wish.owner.as_ref().and_then(|owner| node.owners.get_mut(owner)) {
                *count -= 1;
            }
            node.owners.retain(|_, count| *count > 0);
        }
        true
    }

    /// Whether a pod counts for some node.
    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, node: &str, cpu: &str) -> Wish {
        Wish::of(&json!({
            "metadata": {"uid": uid, "name": uid, "ownerReferences": [{"uid": "set", "controller": true}]},
            "spec": {"nodeName": node, "containers": [{"resources": {"requests": {"cpu": cpu}}, "ports": [{"hostPort": 80}]}]},
        }))
    }

    #[test]
    fn what_is_placed_and_lifted_again_leaves_nothing_behind() {
        let mut state = State::default();
        state.node_seen(&json!({"metadata": {"name": "edge"}, "status": {"allocatable": {"cpu": "2"}}}));
        state.place(pod("a", "edge", "500m"));
        state.place(pod("a", "edge", "700m"));
        state.place(pod("b", "edge", "1"));
        let node = state.nodes().next().unwrap();
        assert_eq!((node.taken.of("cpu"), node.pods, node.owners["set"]), (1700, 2, 2));
        assert!(state.lift("a") && state.lift("b") && !state.lift("b"));
        let node = state.nodes().next().unwrap();
        assert_eq!(
            (node.taken.of("cpu"), node.pods, node.ports.len(), node.owners.len()),
            (0, 0, 0, 0)
        );
    }

    #[test]
    fn pods_seen_before_their_node_count_once_it_comes() {
        let mut state = State::default();
        state.place(pod("a", "edge", "500m"));
        assert_eq!(state.nodes().count(), 0);
        state.node_seen(&json!({"metadata": {"name": "edge"}}));
        assert_eq!(state.nodes().next().unwrap().taken.of("cpu"), 500);
        state.node_gone("edge");
        assert_eq!(state.nodes().count(), 0);
    }
}
