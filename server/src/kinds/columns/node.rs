//! Nodes.

use agent::wire::object::{at, list, text};
use serde_json::Value;

use super::{AGE, NAME, Shown, cell};

const COLUMNS: &[Shown] = &[
    NAME,
    Shown::text("Status", "Whether it takes part", |node, _| status(node).into()),
    Shown::text("Roles", "What it is for", |node, _| roles(node)),
    AGE,
    Shown::text("Version", "Of its kubelet", |node, _| info(node, "kubeletVersion")),
    Shown::text("Internal-IP", "Address inside the cluster", |node, _| {
        address(node, "InternalIP")
    })
    .wide(),
    Shown::text("External-IP", "Address outside", |node, _| address(node, "ExternalIP")).wide(),
    Shown::text("OS-Image", "Operating system", |node, _| known(info(node, "osImage"))).wide(),
    Shown::text("Kernel-Version", "Kernel and architecture", |node, _| kernel(node)).wide(),
    Shown::text("Container-Runtime", "What runs its containers", |node, _| {
        known(info(node, "containerRuntimeVersion"))
    })
    .wide(),
];

/// The columns, if it is this kind.
pub fn columns(group: &str, plural: &str) -> Option<&'static [Shown]> {
    (group.is_empty() && plural == "nodes").then_some(COLUMNS)
}

fn status(node: &Value) -> String {
    let conditions = list(node, &["status", "conditions"]);
    let ready = conditions.iter().find(|one| text(one, &["type"]) == "Ready");
    let mut words = vec![match ready.map(|one| text(one, &["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if at(node, &["spec", "unschedulable"]) == Some(&Value::Bool(true)) {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(node: &Value) -> Value {
    let labels = at(node, &["metadata", "labels"]).and_then(Value::as_object);
    let role = |(key, value): (&String, &Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => Some(role.to_owned()),
        None if key == "kubernetes.io/role" => value.as_str().map(ToOwned::to_owned),
        None => None,
    };
    let mut roles: Vec<String> = labels.into_iter().flatten().filter_map(role).collect();
    roles.retain(|role| !role.is_empty());
    roles.sort_unstable();
    roles.dedup();
    cell::or_none(roles.join(","))
}

fn info(node: &Value, field: &str) -> Value {
    cell::text(node, &["status", "nodeInfo", field])
}

fn known(value: Value) -> Value {
    if value == "" { "<unknown>".into() } else { value }
}

/// Source: Kubernetes v1.36 `pkg/printers/internalversion` (`printNode`).
fn kernel(node: &Value) -> Value {
    let version = known(info(node, "kernelVersion"));
    match (version.as_str(), text(node, &["status", "nodeInfo", "architecture"])) {
        (Some(version), architecture) if !architecture.is_empty() => format!("{version} ({architecture})").into(),
        _ => version,
    }
}

fn address(node: &Value, kind: &str) -> Value {
    let addresses = list(node, &["status", "addresses"]);
    let found = addresses.iter().find(|one| text(one, &["type"]) == kind);
    cell::or_none(found.map(|one| text(one, &["address"]).to_owned()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_shows_status_and_roles() {
        let node = |ready: &str, unschedulable: bool| {
            json!({
                "metadata": {"labels": {"node-role.kubernetes.io/master": "true", "node-role.kubernetes.io/control-plane": "true", "x": "y"}},
                "spec": {"unschedulable": unschedulable},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        for (ready, held, wanted) in [
            ("True", false, "Ready"),
            ("True", true, "Ready,SchedulingDisabled"),
            ("Unknown", false, "NotReady"),
        ] {
            assert_eq!(status(&node(ready, held)), wanted);
        }
        assert_eq!(status(&json!({})), "Unknown");
        assert_eq!(roles(&node("True", false)), "control-plane,master");
        assert_eq!(roles(&json!({})), "<none>");
    }
    #[test]
    fn the_kernel_is_shown_with_the_architecture_it_was_built_for() {
        for (info, wanted) in [
            (
                json!({"kernelVersion": "6.1.0", "architecture": "arm64"}),
                "6.1.0 (arm64)",
            ),
            (json!({"kernelVersion": "6.1.0"}), "6.1.0"),
            (json!({"architecture": "arm64"}), "<unknown> (arm64)"),
            (json!({}), "<unknown>"),
        ] {
            assert_eq!(kernel(&json!({"status": {"nodeInfo": info}})), wanted);
        }
    }
}
