//! Gives each node its share of the cluster's pod addresses: `spec.podCIDR`, a /24 of the cluster CIDR.
//!
//! What is taken is what the nodes say, so there is no second record that could disagree.
//!
//! Source: Kubernetes v1.36 `pkg/controller/nodeipam/ipam/range_allocator.go`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use agent::wire::object::{Meta, text};
use agent::wire::selector::Labels;
use serde_json::{Value, json};

use super::super::action::{Action, Note, Plan, reference};
use super::super::runner::{Controller, Source};
use super::super::world::{Found, Key, World};
use crate::request::What;

/// Addresses of one node: a /24. Source: `--node-cidr-mask-size`, which K3s leaves at 24.
const SHARE: u32 = 256;

/// The controller.
#[derive(Debug)]
pub struct NodeRanges {
    /// First address of the cluster CIDR.
    first: u32,
    /// How many shares it has.
    shares: u32,
}

impl NodeRanges {
    /// For the cluster CIDR `first/prefix`; a prefix longer than 24 has no share for anybody.
    pub fn new(first: Ipv4Addr, prefix: u8) -> Self {
        let shares = 24_u32
            .checked_sub(u32::from(prefix))
            .map_or(0, |bits| 1_u32.checked_shl(bits).unwrap_or(0));
        let mask = u32::MAX
            .checked_shl(32_u32.saturating_sub(u32::from(prefix)))
            .unwrap_or(0);
        Self {
            first: u32::from(first) & mask,
            shares,
        }
    }

    fn share(&self, number: u32) -> String {
        let address = self.first.wrapping_add(number.wrapping_mul(SHARE));
        format!("{}/24", Ipv4Addr::from(address))
    }

    /// The lowest share that no node has.
    fn free(&self, nodes: Found<'_>) -> Option<String> {
        let range = |node: Value| text(&node, &["spec", "podCIDR"]).to_owned();
        let taken: BTreeSet<String> = nodes.map(range).collect();
        (0..self.shares)
            .map(|number| self.share(number))
            .find(|share| !taken.contains(share))
    }
}

impl Controller for NodeRanges {
    fn name(&self) -> &'static str {
        "node-ipam-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::own(What::NODES)]
    }

    fn plan(&self, world: &dyn World, key: &Key) -> Plan {
        let mut plan = Plan::default();
        let Some(node) = world.get(What::NODES, "", &key.name) else {
            return plan;
        };
        if !text(&node, &["spec", "podCIDR"]).is_empty() {
            return plan;
        }
        match self.free(world.list(What::NODES, None, &Labels::everything())) {
            Some(share) => {
                let meta = Meta::of(&node);
                let spec = json!({"podCIDR": share, "podCIDRs": [share]});
                let change = json!({ "spec": spec });
                plan.push(Action::merge(What::NODES, &meta, change));
            }
            None => plan.push(Action::Event(Note {
                kind: "Warning",
                reason: "CIDRNotAvailable",
                message: "No address range is left in the cluster CIDR: remove nodes, or start the server with a larger --cluster-cidr".into(),
                about: reference(&node),
                component: "cidrAllocator",
            })),
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::world::fake::Objects;
    use super::*;

    fn node(name: &str, range: &str) -> (What, Value) {
        let node = json!({"metadata": {"name": name, "resourceVersion": "1"}, "spec": {"podCIDR": range}});
        (What::NODES, node)
    }

    fn given(prefix: u8, others: &[&str]) -> Option<String> {
        let mut objects: Vec<_> = others.iter().map(|range| node(range, range)).collect();
        objects.push(node("new", ""));
        let controller = NodeRanges::new(Ipv4Addr::new(10, 42, 0, 0), prefix);
        let key = Key {
            namespace: String::new(),
            name: "new".into(),
        };
        let plan = controller.plan(&Objects::new(objects), &key);
        match plan.actions.first() {
            Some(Action::Patch {
                patch: crate::request::Patch::Merge(change),
                ..
            }) => Some(text(change, &["spec", "podCIDR"]).to_owned()),
            _ => None,
        }
    }

    #[test]
    fn a_node_gets_the_lowest_free_share_and_none_when_all_are_taken() {
        for (prefix, others, wanted) in [
            (16, vec![], Some("10.42.0.0/24")),
            (16, vec!["10.42.0.0/24", "10.42.2.0/24"], Some("10.42.1.0/24")),
            (23, vec!["10.42.0.0/24", "10.42.1.0/24"], None),
            (24, vec![], Some("10.42.0.0/24")),
            (25, vec![], None),
        ] {
            assert_eq!(given(prefix, &others).as_deref(), wanted, "/{prefix} {others:?}");
        }
    }
}
