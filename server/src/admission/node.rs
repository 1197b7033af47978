//! NodeRestriction and TaintNodesByCondition: a node speaks for itself and its pods, and begins untrusted.
//!
//! Source: Kubernetes v1.36 `plugin/pkg/admission/noderestriction/admission.go`, `.../nodetaint`.

use agent::wire::object::{self, at, list, text};
use agent::wire::status::Status;
use serde_json::{Map, Value, json};

use super::{Request, Verb};
use crate::auth::node::refers_to_any;

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

/// What `system:node:NAME` may write. `uid_of`: a node's uid, by its name.
pub(super) fn restriction(
    request: &Request<'_>,
    object: &Value,
    uid_of: impl Fn(&str) -> Option<String>,
) -> Result<(), Status> {
    let Some(node) = request.user.name.strip_prefix("system:node:") else {
        return Ok(());
    };
    if !request.user.groups.iter().any(|group| group == "system:nodes") {
        return Ok(());
    }
    let verdict = match (request.row.group, request.row.plural) {
        ("", "pods") => of_pod(node, uid_of(node).as_deref(), request, object),
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

/// `uid`: the node's own.
fn of_pod(node: &str, uid: Option<&str>, request: &Request<'_>, object: &Value) -> Result<(), String> {
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
            owned_by(node, uid, object)?;
            let what = references(object);
            what.map_or(Ok(()), |what| {
                Err(format!("node {node:?} can not create pods that reference {what}"))
            })
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

/// A mirror pod goes with its node: the node is its one owner.
fn owned_by(node: &str, uid: Option<&str>, pod: &Value) -> Result<(), String> {
    let [owner] = list(pod, &["metadata", "ownerReferences"]) else {
        let why = format!("node {node:?} can only create pods with a single owner reference set to itself");
        return Err(why);
    };
    let is = |key: &str, expected: &str| text(owner, &[key]) == expected;
    if !(is("apiVersion", "v1") && is("kind", "Node") && is("name", node)) {
        return Err(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        ));
    }
    if owner.get("controller") != Some(&Value::Bool(true)) {
        return Err(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner.get("blockOwnerDeletion") == Some(&Value::Bool(true)) {
        return Err(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    match uid {
        Some(uid) if is("uid", uid) => Ok(()),
        _ => Err(format!("node {node:?} UID mismatch in the owner reference")),
    }
}

/// What else of the cluster a pod refers to. A node may read what its pods refer to (`auth::node`): a pod that it makes itself
/// must not refer to anything, or the node could read everything.
fn references(pod: &Value) -> Option<&'static str> {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let account = ["serviceAccountName", "serviceAccount"];
    if account.iter().any(|key| !text(spec, &[key]).is_empty()) {
        return Some("a service account");
    }
    for (resource, what) in [
        ("secrets", "secrets"),
        ("configmaps", "configmaps"),
        ("persistentvolumeclaims", "persistentvolumeclaims"),
    ] {
        if refers_to_any(pod, resource) {
            return Some(what);
        }
    }
    if !list(spec, &["resourceClaims"]).is_empty() {
        return Some("resourceclaims");
    }
    let volumes = list(spec, &["volumes"]).iter();
    if volumes.clone().any(|volume| volume.get("ephemeral").is_some()) {
        return Some("persistentvolumeclaims");
    }
    // Some of these name no object, yet stand for the service account that the pod has not.
    let sources = ["serviceAccountToken", "clusterTrustBundle", "podCertificate"];
    let projected = volumes.flat_map(|volume| list(volume, &["projected", "sources"]));
    let granted = |source: &Value| sources.iter().any(|key| source.get(key).is_some());
    projected.clone().any(granted).then_some("credentials of the cluster")
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
            // With an owner that is nowhere the garbage collector would delete the node, and its name were free.
            let owners = |object: &Value| list(object, &["metadata", "ownerReferences"]).to_vec();
            if owners(object) != owners(old) {
                return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
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
        restriction(&request, &new, |name| (name == "n1").then(|| "u1".to_owned()))
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

    /// A mirror pod as a kubelet makes it.
    fn mirror() -> Value {
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": true});
        json!({
            "metadata": {"annotations": {MIRROR: "x"}, "ownerReferences": [owner]},
            "spec": {"nodeName": "n1", "containers": [{"name": "a", "env": [{"name": "secret", "value": "x"}]}]},
        })
    }

    fn created(pod: Value) -> String {
        verdict("pods", "", "p", Verb::Create, None, None, pod)
    }

    #[test]
    fn a_mirror_pod_refers_to_nothing() {
        let mut local = mirror();
        local["spec"]["volumes"] = json!([
            {"name": "a", "hostPath": {"path": "/etc"}},
            {"name": "b", "projected": {"sources": [{"downwardAPI": {}}]}},
            {"name": "c", "csi": {"driver": "d"}},
        ]);
        assert_eq!(created(local), "");
        let volume = |source: Value| ("volumes", json!([source]));
        let projected = |source: Value| volume(json!({"projected": {"sources": [source]}}));
        let secret = json!({"name": "s"});
        let environment = json!([{"env": [{"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]);
        for (key, value) in [
            ("serviceAccountName", json!("s")),
            ("serviceAccount", json!("s")),
            ("imagePullSecrets", json!([secret])),
            ("imagePullSecrets", json!([{}])),
            ("containers", environment.clone()),
            ("initContainers", environment.clone()),
            ("ephemeralContainers", environment),
            (
                "containers",
                json!([{"env": [{"valueFrom": {"configMapKeyRef": {"name": "s", "key": "k"}}}]}]),
            ),
            ("containers", json!([{"envFrom": [{"secretRef": secret}]}])),
            ("containers", json!([{"envFrom": [{"configMapRef": secret}]}])),
            volume(json!({"secret": {"secretName": "s"}})),
            volume(json!({"configMap": secret})),
            projected(json!({"secret": secret})),
            projected(json!({"configMap": secret})),
            projected(json!({"serviceAccountToken": {"path": "t"}})),
            projected(json!({"clusterTrustBundle": {"name": "s", "path": "t"}})),
            projected(json!({"podCertificate": {"signerName": "s"}})),
            volume(json!({"csi": {"driver": "d", "nodePublishSecretRef": secret}})),
            volume(json!({"flexVolume": {"driver": "d", "secretRef": secret}})),
            volume(json!({"cephfs": {"secretRef": secret}})),
            volume(json!({"rbd": {"secretRef": secret}})),
            volume(json!({"iscsi": {"secretRef": secret}})),
            volume(json!({"scaleIO": {"secretRef": secret}})),
            volume(json!({"storageos": {"secretRef": secret}})),
            volume(json!({"azureFile": {"secretName": "s"}})),
            volume(json!({"persistentVolumeClaim": {"claimName": "s"}})),
            volume(json!({"ephemeral": {"volumeClaimTemplate": {}}})),
            ("resourceClaims", json!([{"name": "r", "resourceClaimName": "s"}])),
        ] {
            let mut pod = mirror();
            pod["spec"][key] = value;
            let refusal = created(pod.clone());
            assert!(
                refusal.contains("can not create pods that reference"),
                "{pod}: {refusal:?}"
            );
        }
    }

    #[test]
    fn a_mirror_pod_is_its_nodes_own() {
        let owner = |key: &str, value: Value| {
            let mut pod = mirror();
            pod["metadata"]["ownerReferences"][0][key] = value;
            created(pod)
        };
        assert_eq!(owner("blockOwnerDeletion", json!(false)), "");
        for (key, value) in [
            ("apiVersion", json!("v2")),
            ("kind", json!("Pod")),
            ("name", json!("n2")),
            ("uid", json!("u2")),
            ("controller", json!(false)),
            ("blockOwnerDeletion", json!(true)),
        ] {
            assert!(owner(key, value).contains("forbidden"), "{key}");
        }
        let mut two = mirror();
        let own = two["metadata"]["ownerReferences"][0].clone();
        two["metadata"]["ownerReferences"] = json!([own, own]);
        assert!(created(two).contains("single owner reference"));
        let mut none = mirror();
        none["metadata"]["ownerReferences"] = json!([]);
        assert!(created(none).contains("single owner reference"));
    }

    #[test]
    fn a_node_gives_itself_no_owner() {
        let owned = json!({"metadata": {"ownerReferences": [{"kind": "Pod", "name": "gone", "uid": "x"}]}});
        for subresource in [None, Some("status")] {
            let refusal = verdict(
                "nodes",
                "",
                "n1",
                Verb::Update,
                subresource,
                Some(json!({})),
                owned.clone(),
            );
            assert!(refusal.contains("not allowed to modify ownerReferences"), "{refusal:?}");
        }
        assert_eq!(
            verdict("nodes", "", "n1", Verb::Update, None, Some(owned.clone()), owned),
            ""
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
