//! What the nodes have and what is taken of it, kept up from one event to the next.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

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

/// What a pod takes of its node, to be given back when it goes. The pods of one owner take the same, and share it: a
/// cluster has thousands of pods and few owners.
#[derive(Debug, Eq, Hash, PartialEq)]
struct Share {
    requests: Amounts,
    weight: Amounts,
    ports: Vec<HostPort>,
    owner: Option<String>,
}

/// Where a pod counts.
#[derive(Debug)]
struct Place {
    node: Arc<str>,
    share: Arc<Share>,
}

/// All nodes, and which pod counts for which.
#[derive(Debug, Default)]
pub struct State {
    nodes: BTreeMap<Arc<str>, Node>,
    /// Pods that count, by uid.
    placed: HashMap<Box<str>, Place>,
    /// Every share that a pod has.
    shares: HashSet<Arc<Share>>,
}

impl State {
    /// The nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.known)
    }

    /// A Node object came or changed.
    pub fn node_seen(&mut self, object: &Value) {
        let meta = Meta::of(object);
        let node = self.nodes.entry(meta.name.as_str().into()).or_default();
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
    pub fn place(&mut self, wish: &Wish) {
        self.lift(&wish.meta.uid);
        let share = self.share(wish);
        let known = self.nodes.get_key_value(&*wish.node).map(|(name, _)| Arc::clone(name));
        let name = known.unwrap_or_else(|| wish.node.as_str().into());
        let node = self.nodes.entry(Arc::clone(&name)).or_default();
        node.taken.add(&share.requests);
        node.weight.add(&share.weight);
        node.pods += 1;
        node.ports.extend(share.ports.iter().cloned());
        if let Some(owner) = &share.owner {
            *node.owners.entry(owner.clone()).or_default() += 1;
        }
        let place = Place { node: name, share };
        self.placed.insert(wish.meta.uid.as_str().into(), place);
    }

    /// A pod counts no more: it is gone, has ended or could not be bound. True if it did count.
    pub fn lift(&mut self, uid: &str) -> bool {
        let Some(Place { node, share }) = self.placed.remove(uid) else {
            return false;
        };
        if let Some(node) = self.nodes.get_mut(&node) {
            node.taken.subtract(&share.requests);
            node.weight.subtract(&share.weight);
            node.pods -= 1;
            for port in &share.ports {
                if let Some(index) = node.ports.iter().position(|one| one == port) {
                    node.ports.swap_remove(index);
                }
            }
            if let Some(count) = share.owner.as_ref().and_then(|owner| node.owners.get_mut(owner)) {
                *count -= 1;
            }
            node.owners.retain(|_, count| *count > 0);
        }
        // The set's own, and this one.
        if Arc::strong_count(&share) == 2 {
            self.shares.remove(&share);
        }
        true
    }

    fn share(&mut self, wish: &Wish) -> Arc<Share> {
        let share = Share {
            requests: wish.requests.clone(),
            weight: wish.weight.clone(),
            ports: wish.ports.clone(),
            owner: wish.owner.clone(),
        };
        if let Some(present) = self.shares.get(&share) {
            return Arc::clone(present);
        }
        let share = Arc::new(share);
        self.shares.insert(Arc::clone(&share));
        share
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
        state.place(&pod("a", "edge", "500m"));
        state.place(&pod("a", "edge", "700m"));
        state.place(&pod("b", "edge", "1"));
        let node = state.nodes().next().unwrap();
        assert_eq!((node.taken.of("cpu"), node.pods, node.owners["set"]), (1700, 2, 2));
        assert!(state.lift("a") && state.lift("b") && !state.lift("b"));
        let node = state.nodes().next().unwrap();
        assert_eq!(
            (node.taken.of("cpu"), node.pods, node.ports.len(), node.owners.len()),
            (0, 0, 0, 0)
        );
        assert_eq!((state.placed.len(), state.shares.len()), (0, 0));
    }

    #[test]
    fn pods_that_take_the_same_share_what_is_kept_of_them() {
        let mut state = State::default();
        for (uid, cpu) in [("a", "500m"), ("b", "500m"), ("c", "1")] {
            state.place(&pod(uid, "edge", cpu));
        }
        assert_eq!((state.placed.len(), state.shares.len()), (3, 2));
        assert!(state.lift("a"));
        assert_eq!(state.shares.len(), 2, "b still has it");
        state.place(&pod("b", "edge", "2"));
        assert_eq!(state.shares.len(), 2, "b has another now, and nobody the old one");
        assert_eq!(state.nodes["edge"].taken.of("cpu"), 3000);
    }

    #[test]
    fn pods_seen_before_their_node_count_once_it_comes() {
        let mut state = State::default();
        state.place(&pod("a", "edge", "500m"));
        assert_eq!(state.nodes().count(), 0);
        state.node_seen(&json!({"metadata": {"name": "edge"}}));
        assert_eq!(state.nodes().next().unwrap().taken.of("cpu"), 500);
        state.node_gone("edge");
        assert_eq!(state.nodes().count(), 0);
    }
}
