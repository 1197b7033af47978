//! A claim: one object in the store for each cluster IP and node port that a Service has. Pure.
//!
//! To create the key is to claim; two servers cannot both. A cluster IP's claim is its `IPAddress`, as in Kubernetes v1.36
//! (`pkg/registry/core/service/ipallocator/ipallocator.go`). No kind of Kubernetes is one node port, so that claim is a
//! record of ours that the API does not serve (`docs/decisions/0006-addresses-of-services.md`).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use agent::wire::object::{list, text};
use agent::wire::time;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::choose::node_ports;
use crate::cache::Item;
use crate::registry::meta;

/// Where the claims of cluster IPs are.
pub(super) const ADDRESSES: &str = "/registry/ipaddresses/";
/// Where those of node ports are.
pub(super) const PORTS: &str = "/registry/nodeports/";

const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// An `IPAddress` without this is a person's, and nobody else removes it.
const ALLOCATOR: &str = "ipallocator.k8s.io";

/// What at most one Service may have.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Slot {
    /// A cluster IP.
    Address(IpAddr),
    /// A node port, the one of a health check too.
    Port(u16),
}

/// Namespace and name of a Service.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Owner {
    pub namespace: String,
    pub name: String,
}

impl Owner {
    pub(super) fn of(service: &Value) -> Self {
        Self {
            namespace: text(service, &["metadata", "namespace"]).to_owned(),
            name: text(service, &["metadata", "name"]).to_owned(),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(out),
            Self::Port(port) => port.fmt(out),
        }
    }
}

impl Slot {
    /// The store key of its claim.
    pub(super) fn key(self) -> String {
        match self {
            Self::Address(address) => format!("{ADDRESSES}{address}"),
            Self::Port(port) => format!("{PORTS}{port}"),
        }
    }

    /// Of which slot this key is the claim.
    pub(super) fn of_key(key: &str) -> Option<Self> {
        match key.strip_prefix(ADDRESSES) {
            Some(address) => Some(Self::Address(address.parse().ok()?)),
            None => Some(Self::Port(key.strip_prefix(PORTS)?.parse().ok()?)),
        }
    }

    /// The address if it is one that this server hands out.
    pub(super) fn v4(self) -> Option<Ipv4Addr> {
        match self {
            Self::Address(IpAddr::V4(address)) => Some(address),
            Self::Address(IpAddr::V6(_)) | Self::Port(_) => None,
        }
    }

    /// The claim that `owner` makes.
    pub(super) fn claim(self, owner: &Owner, now: Timestamp, random: [u8; 16]) -> Value {
        let mut metadata = json!({ "name": self.to_string(), "uid": meta::uuid(random),
            "creationTimestamp": time::seconds(now) });
        let (version, kind) = match self {
            Self::Address(address) => {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                if let Some(metadata) = metadata.as_object_mut() {
                    let labels = json!({ FAMILY: family, MANAGED_BY: ALLOCATOR });
                    metadata.insert("labels".to_owned(), labels);
                }
                ("networking.k8s.io/v1", "IPAddress")
            }
            Self::Port(_) => ("amphipod.io/v1", "NodePort"),
        };
        let parent = json!({ "group": "", "resource": "services", "namespace": owner.namespace, "name": owner.name });
        json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "spec": { "parentRef": parent } })
    }
}

/// Whose claim it is; `None`: a person's, or not for a Service.
pub(super) fn owner(claim: &Item) -> Option<Owner> {
    if claim.key.starts_with(ADDRESSES) && claim.label(MANAGED_BY) != Some(ALLOCATOR) {
        return None;
    }
    let value = claim.value();
    let parent = |field: &str| text(&value, &["spec", "parentRef", field]).to_owned();
    (parent("resource") == "services" && parent("group").is_empty()).then(|| Owner {
        namespace: parent("namespace"),
        name: parent("name"),
    })
}

/// All that a Service has.
pub(super) fn held(service: &Value) -> BTreeSet<Slot> {
    let kind = text(service, &["spec", "type"]);
    let mut held = BTreeSet::new();
    if kind != "ExternalName" {
        let several = list(service, &["spec", "clusterIPs"]).iter().filter_map(Value::as_str);
        let all = several.chain([text(service, &["spec", "clusterIP"])]);
        held.extend(all.filter_map(|address| address.parse().ok()).map(Slot::Address));
    }
    if matches!(kind, "NodePort" | "LoadBalancer") {
        held.extend(node_ports(service).into_iter().map(Slot::Port));
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_holds_its_addresses_and_the_ports_that_its_type_has() {
        let ports = json!([{"port": 80, "nodePort": 30080}]);
        for (spec, expected) in [
            (
                json!({"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9", "fd00::9"]}),
                vec!["10.43.0.9", "fd00::9"],
            ),
            (json!({"clusterIP": "None", "clusterIPs": ["None"]}), vec![]),
            (json!({"type": "ExternalName", "clusterIP": ""}), vec![]),
            (
                json!({"type": "NodePort", "clusterIP": "10.43.0.9", "ports": ports}),
                vec!["10.43.0.9", "30080"],
            ),
            (
                json!({"type": "LoadBalancer", "ports": ports, "healthCheckNodePort": 30081}),
                vec!["30080", "30081"],
            ),
            (json!({"type": "ClusterIP", "ports": ports}), vec![]),
        ] {
            let held: Vec<String> = held(&json!({ "spec": spec })).iter().map(Slot::to_string).collect();
            assert_eq!(held, expected);
        }
    }

    #[test]
    fn a_key_names_its_slot_and_no_other() {
        for slot in [
            Slot::Address("10.43.0.9".parse().unwrap()),
            Slot::Address("fd00::9".parse().unwrap()),
            Slot::Port(30080),
        ] {
            assert_eq!(Slot::of_key(&slot.key()), Some(slot));
        }
        for key in [
            "/registry/ipaddresses/x",
            "/registry/nodeports/70000",
            "/registry/pods/a/b",
        ] {
            assert_eq!(Slot::of_key(key), None, "{key}");
        }
    }
}
