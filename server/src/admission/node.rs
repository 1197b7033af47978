//! NodeRestriction and TaintNodesByCondition: a node speaks for itself and its pods, and begins untrusted.
//!
//! Source: Kubernetes v1.36 `plugin/pkg/admission/noderestriction/admission.go`, `.../nodetaint`.

use agent::wire::object::{self, at, list, text};
use agent::wire::status::Status;
use serde_json::{Map, Value, json};

use super::{Request, Verb};

const RESTRICTED: &str = "node-restriction.kubernetes.io";
const NODE_LEASES: &str = "kube-node-lease";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels of Kubernetes' own namespaces that a node may give itself.
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/windows-build",
];

/// What `system:node:NAME` may write.
pub(super) fn restriction(request: &Request<'_>, object: &Value) -> Result<(), Status> {
    let Some(node) = request.user.name.strip_prefix("system:node:") else {
        return Ok(());
    };
    if !request.user.groups.iter().any(|group| group == "system:nodes") {
        return Ok(());
    }
    let verdict = match (request.row.group, request.row.plural) {
        ("", "pods") => of_pod(node, request, object),
        ("", "nodes") => of_node(node, request, object),
        ("coordination.k8s.io", "leases") => of_lease(node, request),
        ("storage.k8s.io", "csinodes") => of_its_name(
            node,
            request,
            "can only access CSINode with the same name as the requesting node",
        ),
        ("resource.k8s.io", "resourceslices") => of_slice(node, request, object),
        _ => Ok(()),
    };
    verdict.map_err(|why| request.forbidden(&why))
}

fn of_pod(node: &str, request: &Request<'_>, object: &Value) -> Result<(), String> {
    let bound = |pod: &Value| text(pod, &["spec", "nodeName"]) == node;
    match (request.verb, request.subresource, request.old) {
        (Verb::Create, None, _) => {
            if at(object, &["metadata", "annotations", MIRROR]).is_none() {
                return Err(format!(
                    "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
                ));
            }
            if !bound(object) {
                return Err(format!(
                    "node {node:?} can only create pods with spec.nodeName set to itself"
                ));
            }
            if !text(object, &["spec", "serviceAccountName"]).is_empty() {
                return Err(format!(
                    "node {node:?} can not create pods that reference a service account"
                ));
            }
            let sources = ["secret", "configMap", "persistentVolumeClaim"];
            let volumes = list(object, &["spec", "volumes"]);
            if volumes
                .iter()
                .any(|volume| sources.iter().any(|source| volume.get(source).is_some()))
            {
                return Err(format!("node {node:?} can not create pods that reference API objects"));
            }
            Ok(())
        }
        (Verb::Update, Some("status"), Some(old)) if bound(old) => {
            let labels = |pod: &Value| at(pod, &["metadata", "labels"]).cloned();
            if labels(old) == labels(object) {
                Ok(())
            } else {
                Err(format!("node {node:?} cannot update labels through pod status"))
            }
        }
        (Verb::Delete, _, Some(old)) if bound(old) => Ok(()),
        (Verb::Update, Some("status"), _) => Err(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        )),
        (Verb::Delete, _, _) => Err(format!(
            "node {node:?} can only delete pods with spec.nodeName set to itself"
        )),
        (Verb::Create | Verb::Update, _, _) => Err(format!("unexpected operation of node {node:?} on a pod")),
    }
}

fn of_node(node: &str, request: &Request<'_>, object: &Value) -> Result<(), String> {
    if request.name != node {
        return Err(format!(
            "node {node:?} is not allowed to modify node {:?}",
            request.name
        ));
    }
    let empty = json!({});
    let old = request.old.unwrap_or(&empty);
    match request.verb {
        Verb::Delete => Ok(()),
        Verb::Create => of_labels(node, object, old),
        Verb::Update => {
            let taints = |object: &Value| list(object, &["spec", "taints"]).to_vec();
            if request.subresource.is_none() && taints(object) != taints(old) {
                return Err(format!("node {node:?} is not allowed to modify taints"));
            }
            of_labels(node, object, old)
        }
    }
}

/// Only labels that change are looked at.
fn of_labels(node: &str, object: &Value, old: &Value) -> Result<(), String> {
    let labels = |object: &Value| -> Map<String, Value> {
        let labels = at(object, &["metadata", "labels"]).and_then(Value::as_object);
        labels.cloned().unwrap_or_default()
    };
    let (new, old) = (labels(object), labels(old));
    let changed = new
        .keys()
        .chain(old.keys())
        .filter(|key| new.get(*key) != old.get(*key));
    let refused: Vec<&str> = changed.map(String::as_str).filter(|key| !may_label(key)).collect();
    if refused.is_empty() {
        return Ok(());
    }
    Err(format!("is not allowed to modify labels: {}", refused.join(", ")))
        .map_err(|why: String| format!("node {node:?} {why}"))
}

fn may_label(key: &str) -> bool {
    let Some((space, _)) = key.split_once('/') else {
        return true;
    };
    let within = |root: &str| space == root || space.ends_with(&format!(".{root}"));
    if within(RESTRICTED) {
        return false;
    }
    if within("kubelet.kubernetes.io") || within("node.kubernetes.io") {
        return true;
    }
    !(within("kubernetes.io") || within("k8s.io")) || OWN_LABELS.contains(&key)
}

fn of_lease(node: &str, request: &Request<'_>) -> Result<(), String> {
    if request.namespace != Some(NODE_LEASES) {
        return Err(format!(
            "can only access leases in the {NODE_LEASES:?} system namespace"
        ));
    }
    of_its_name(
        node,
        request,
        "can only access node lease with the same name as the requesting node",
    )
}

fn of_its_name(node: &str, request: &Request<'_>, why: &str) -> Result<(), String> {
    if request.name == node {
        Ok(())
    } else {
        Err(why.to_owned())
    }
}

fn of_slice(node: &str, request: &Request<'_>, object: &Value) -> Result<(), String> {
    let slice = request.old.unwrap_or(object);
    if text(slice, &["spec", "nodeName"]) == node {
        return Ok(());
    }
    Err("can only access ResourceSlices with the same node name as the requesting node".to_owned())
}

/// A new node takes no pods until it says that it is ready.
pub(super) fn taint(request: &Request<'_>, object: &mut Value) {
    const NOT_READY: &str = "node.kubernetes.io/not-ready";
    if !request.creates("", "nodes") {
        return;
    }
    let mut taints = list(object, &["spec", "taints"]).to_vec();
    let same = |taint: &Value| text(taint, &["key"]) == NOT_READY && text(taint, &["effect"]) == "NoSchedule";
    if !taints.iter().any(same) {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        object::set(object, &["spec", "taints"], taints);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use crate::request::User;

    fn verdict(
        plural: &str,
        group: &str,
        name: &str,
        verb: Verb,
        subresource: Option<&str>,
        old: Option<Value>,
        new: Value,
    ) -> String {
        let user = User::new("system:node:n1", &["system:nodes"]);
        let row = kinds::find(group, "v1", plural).unwrap();
        let request = Request {
            user: &user,
            row: &row,
            namespace: Some("kube-node-lease"),
            name,
            subresource,
            verb,
            old: old.as_ref(),
        };
        restriction(&request, &new)
            .err()
            .map_or(String::new(), |status| status.message)
    }

    #[test]
    fn a_node_writes_only_what_is_its_own() {
        let mine = json!({"spec": {"nodeName": "n1"}});
        let other = json!({"spec": {"nodeName": "n2"}});
        assert_eq!(
            verdict(
                "pods",
                "",
                "p",
                Verb::Update,
                Some("status"),
                Some(mine.clone()),
                mine.clone()
            ),
            ""
        );
        assert_eq!(
            verdict(
                "pods",
                "",
                "p",
                Verb::Update,
                Some("status"),
                Some(other.clone()),
                other.clone()
            ),
            "pods \"p\" is forbidden: node \"n1\" can only update pod status for pods with spec.nodeName set to itself"
        );
        assert_eq!(
            verdict("pods", "", "p", Verb::Delete, None, Some(mine.clone()), Value::Null),
            ""
        );
        assert!(verdict("pods", "", "p", Verb::Create, None, None, mine).contains("can only create mirror pods"));
        assert_eq!(
            verdict("nodes", "", "n2", Verb::Update, None, Some(json!({})), json!({})),
            "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\""
        );
        assert_eq!(
            verdict(
                "leases",
                "coordination.k8s.io",
                "n1",
                Verb::Update,
                None,
                Some(json!({})),
                json!({})
            ),
            ""
        );
        assert!(
            verdict(
                "leases",
                "coordination.k8s.io",
                "n2",
                Verb::Update,
                None,
                Some(json!({})),
                json!({})
            )
            .contains("same name")
        );
    }

    #[test]
    fn a_node_labels_itself_within_bounds() {
        for (key, may) in [
            ("kubernetes.io/hostname", true),
            ("node-restriction.kubernetes.io/x", false),
            ("node-role.kubernetes.io/worker", false),
            ("node.kubernetes.io/x", true),
            ("a.node.kubernetes.io/x", true),
            ("example.com/x", true),
            ("k3s.io/x", true),
            ("x.k8s.io/y", false),
            ("plain", true),
        ] {
            assert_eq!(may_label(key), may, "{key}");
        }
    }
}
