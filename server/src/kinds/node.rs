//! Nodes: they bring their status along when they register, and their heartbeats are not data.
//!
//! Source: Kubernetes v1.36 `pkg/registry/core/node/strategy.go`, `pkg/apis/core/validation` (`ValidateNodeUpdate`).

use std::collections::BTreeSet;

use agent::wire::object::{self, at, list, text};
use agent::wire::selector::{is_label_key, is_label_value};
use serde_json::{Value, json};

use super::fault::{Faults, same};
use crate::registry::resource::{FieldError, Keep, Rules};

const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "PreferNoSchedule"];
const CIDR: &[&str] = &["spec", "podCIDR"];
const CIDRS: &[&str] = &["spec", "podCIDRs"];

/// Rules of nodes.
#[derive(Debug)]
pub(super) struct Node;

impl Rules for Node {
    /// `podCIDR` and `podCIDRs` say the same.
    fn default(&self, node: &mut Value) {
        let one = text(node, CIDR).to_owned();
        let several = list(node, CIDRS);
        if one.is_empty() {
            if let Some(first) = several.first().cloned() {
                object::set(node, CIDR, first);
            }
        } else if several.is_empty() {
            object::set(node, CIDRS, json!([one]));
        }
    }

    fn born_with_status(&self) -> bool {
        true
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        taints(new, &mut faults);
        if let Some(old) = old {
            if !text(old, CIDR).is_empty() && !same(at(new, CIDR), at(old, CIDR)) {
                let detail = "node updates may not change podCIDR except from \"\" to valid";
                faults.push(FieldError::forbidden("spec.podCIDRs", detail));
            }
            let provider = ["spec", "providerID"];
            if !text(old, &provider).is_empty() && text(new, &provider) != text(old, &provider) {
                let detail = "node updates may not change providerID except from \"\" to valid";
                faults.push(FieldError::forbidden("spec.providerID", detail));
            }
        }
        faults.all()
    }

    /// What only a heartbeat changed is said again by the next one: it need not be on disk at once.
    fn keep(&self, new: &Value, old: Option<&Value>) -> Keep {
        let Some(old) = old else { return Keep::DURABLE };
        let part = |object: &Value, path: &[&str]| at(object, path).cloned();
        let same = [
            &["spec"][..],
            &["metadata", "labels"],
            &["metadata", "annotations"],
            &["metadata", "finalizers"],
        ]
        .iter()
        .all(|path| part(new, path) == part(old, path));
        let dying = at(new, &["metadata", "deletionTimestamp"]).is_some();
        if same && !dying && new.get("status") != old.get("status") {
            Keep::VOLATILE
        } else {
            Keep::DURABLE
        }
    }
}

fn taints(node: &Value, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (index, taint) in list(node, &["spec", "taints"]).iter().enumerate() {
        let field = format!("spec.taints[{index}]");
        let (key, value, effect) = (text(taint, &["key"]), text(taint, &["value"]), text(taint, &["effect"]));
        if !is_label_key(key) {
            faults.push(FieldError::invalid(
                format!("{field}.key"),
                &key.into(),
                "must be a qualified name",
            ));
        }
        if !is_label_value(value) {
            faults.push(FieldError::invalid(
                format!("{field}.value"),
                &value.into(),
                "must be a valid label value",
            ));
        }
        if effect.is_empty() {
            faults.push(FieldError::required(format!("{field}.effect"), ""));
        }
        faults.one_of(taint, &["effect"], &field, EFFECTS);
        if !seen.insert((key, effect)) {
            let value = json!({"key": key, "effect": effect});
            faults.push(FieldError::duplicate(field, &value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_not_data_and_a_cordon_is() {
        let old = json!({"metadata": {"name": "n"}, "spec": {}, "status": {"conditions": [1]}});
        let mut beat = old.clone();
        beat["status"]["conditions"] = json!([2]);
        assert_eq!(Node.keep(&beat, Some(&old)), Keep::VOLATILE);
        beat["spec"]["unschedulable"] = true.into();
        assert_eq!(Node.keep(&beat, Some(&old)), Keep::DURABLE);
        assert_eq!(Node.keep(&old, None), Keep::DURABLE);
    }

    #[test]
    fn a_node_keeps_its_network_and_its_taints_are_well_formed() {
        let old = json!({"spec": {"podCIDR": "10.42.0.0/24"}});
        let new = json!({"spec": {"podCIDR": "10.42.1.0/24", "taints": [{"key": "a", "effect": "Never"}, {"key": "a", "effect": "Never"}]}});
        let texts: Vec<String> = Node
            .check(&new, Some(&old))
            .into_iter()
            .map(|fault| fault.text)
            .collect();
        assert_eq!(
            texts,
            [
                "Unsupported value: \"Never\": supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\"",
                "Unsupported value: \"Never\": supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\"",
                "Duplicate value: {\"effect\":\"Never\",\"key\":\"a\"}",
                "Forbidden: node updates may not change podCIDR except from \"\" to valid",
            ]
        );
        let mut node = json!({"spec": {"podCIDR": "10.42.0.0/24"}});
        Node.default(&mut node);
        assert_eq!(node["spec"]["podCIDRs"], json!(["10.42.0.0/24"]));
    }
}
