//! What a node may: read what its pods refer to, and speak for itself. Nothing of another node's.
//!
//! Upstream keeps a graph of references; here the pods of the node are looked at when it asks, because a node has few
//! and asks for single objects seldom. What a node may write is narrowed further by admission (NodeRestriction).
//!
//! Source: Kubernetes v1.36, `plugin/pkg/auth/authorizer/node/node_authorizer.go` and `rbac/bootstrappolicy` (`NodeRules`).

use agent::wire::object::{list, text};
use agent::wire::selector::Fields;
use serde_json::Value;

use super::may::Attributes;
use crate::cache::{Cache, Filter};
use crate::request::User;

const READ: &[&str] = &["get", "list", "watch"];

/// The node behind a user; `None`: it is no node.
pub fn name_of(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:")?;
    user.groups.iter().any(|group| group == "system:nodes").then_some(name)
}

/// Whether a node may.
pub fn allows(node: &str, asked: &Attributes<'_>, cache: &Cache) -> bool {
    let Attributes::Resource {
        verb,
        group,
        resource,
        subresource,
        namespace,
        name,
        fields,
    } = *asked
    else {
        return false;
    };
    let one_of = |verbs: &[&str]| verbs.contains(&verb);
    let own = !name.is_empty() && name == node;
    match (group, resource, subresource) {
        ("", "pods", "") => match verb {
            "get" => pod_is_on(node, namespace, name, cache),
            "list" | "watch" => fields.and_then(|fields| fields.required("spec.nodeName")) == Some(node),
            _ => one_of(&["create", "delete"]),
        },
        ("", "pods", "status") => one_of(&["update", "patch"]),
        ("", "pods", "eviction") => verb == "create",
        ("", "nodes", "") => verb == "create" || one_of(READ) || (own && one_of(&["update", "patch"])),
        ("", "nodes", "status") => own && one_of(&["get", "update", "patch"]),
        ("", "secrets" | "configmaps", "") => {
            !name.is_empty() && one_of(READ) && pods(node, namespace, cache).any(|pod| refers(&pod, resource, name))
        }
        ("", "persistentvolumeclaims", "" | "status") => {
            let mine = || pods(node, namespace, cache).any(|pod| refers(&pod, resource, name));
            !name.is_empty() && (one_of(READ) || (subresource == "status" && one_of(&["update", "patch"]))) && mine()
        }
        ("", "persistentvolumes", "") => !name.is_empty() && verb == "get" && volume_is_used(node, name, cache),
        ("", "serviceaccounts", "token") => {
            let uses = |pod: Value| text(&pod, &["spec", "serviceAccountName"]) == name;
            verb == "create" && !name.is_empty() && pods(node, namespace, cache).any(uses)
        }
        ("", "services", "") | ("discovery.k8s.io", "endpointslices", "") => one_of(READ),
        ("" | "events.k8s.io", "events", "") => one_of(&["create", "update", "patch"]),
        ("coordination.k8s.io", "leases", "") => {
            namespace == "kube-node-lease"
                && (verb == "create" || (own && one_of(&["get", "update", "patch", "delete"])))
        }
        ("storage.k8s.io", "csinodes", "" | "status") => {
            verb == "create" || (own && one_of(&["get", "update", "patch", "delete"]))
        }
        ("storage.k8s.io", "csidrivers", "") | ("node.k8s.io", "runtimeclasses", "") => one_of(READ),
        ("storage.k8s.io", "volumeattachments", "") => verb == "get",
        ("resource.k8s.io", "resourceslices", "") => {
            one_of(&["create", "update", "patch", "delete"])
                || (one_of(&["list", "watch", "deletecollection"])
                    && fields.and_then(|fields| fields.required("spec.nodeName")) == Some(node))
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") => verb == "create" || one_of(READ),
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => verb == "create",
        _ => false,
    }
}

/// The pods of a node in a namespace.
fn pods(node: &str, namespace: &str, cache: &Cache) -> impl Iterator<Item = Value> + use<> {
    let mut found = Vec::new();
    if !namespace.is_empty() {
        let filter = Filter {
            // A node's name needs no escape in a selector: it is a DNS name.
            fields: Fields::parse(&format!("spec.nodeName={node}")).unwrap_or_default(),
            ..Filter::default()
        };
        let page = cache.list(&format!("/registry/pods/{namespace}/"), &filter, None, None, None);
        found = page.map(|page| page.items).unwrap_or_default();
    }
    found.into_iter().map(|item| item.value())
}

fn pod_is_on(node: &str, namespace: &str, name: &str, cache: &Cache) -> bool {
    let pod = cache.get(&format!("/registry/pods/{namespace}/{name}"));
    pod.is_some_and(|pod| pod.field("spec.nodeName") == node)
}

/// Whether a volume is claimed by a pod of the node.
fn volume_is_used(node: &str, name: &str, cache: &Cache) -> bool {
    let Some(volume) = cache.get(&format!("/registry/persistentvolumes/{name}")) else {
        return false;
    };
    let volume = volume.value();
    let claim = |key| text(&volume, &["spec", "claimRef", key]);
    let (namespace, claim) = (claim("namespace"), claim("name"));
    !claim.is_empty() && pods(node, namespace, cache).any(|pod| refers(&pod, "persistentvolumeclaims", claim))
}

/// Whether a pod's spec refers to a secret, a config map or a claim by that name.
pub fn refers(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let pulled = resource == "secrets" && list(spec, &["imagePullSecrets"]).iter().any(|one| one["name"] == name);
    pulled || search(spec, ways(resource), &|found| found.as_str() == Some(name))
}

/// Whether [`refers`] may be true for any name at all: what admission must refuse to a node, for as long as this module lets a
/// node read what its pods refer to.
pub fn refers_to_any(pod: &Value, resource: &str) -> bool {
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    let pulled = resource == "secrets" && !list(spec, &["imagePullSecrets"]).is_empty();
    pulled || search(spec, ways(resource), &|_| true)
}

/// Keys whose object has a name in `name`, and a key whose text is one.
type Ways = (&'static [&'static str], &'static str);

fn ways(resource: &str) -> Ways {
    match resource {
        "secrets" => (
            &["secret", "secretRef", "secretKeyRef", "nodePublishSecretRef"],
            "secretName",
        ),
        "configmaps" => (&["configMap", "configMapRef", "configMapKeyRef"], ""),
        "persistentvolumeclaims" => (&[], "claimName"),
        _ => (&[], ""),
    }
}

/// `named`: whether a name, as it is found, is one that is looked for.
fn search(value: &Value, ways: Ways, named: &impl Fn(&Value) -> bool) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| search(item, ways, named)),
        Value::Object(map) => map.iter().any(|(key, value)| {
            (ways.0.contains(&key.as_str()) && value.get("name").is_some_and(named))
                || (key == ways.1 && named(value))
                || search(value, ways, named)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_refers_to_what_its_spec_names() {
        let pod = json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "mounted"}},
                {"name": "b", "projected": {"sources": [{"secret": {"name": "projected"}}, {"configMap": {"name": "root"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "d", "configMap": {"name": "conf"}},
            ],
            "containers": [{
                "name": "decoy",
                "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "all"}}],
            }],
        }});
        for (resource, name, expected) in [
            ("secrets", "pull", true),
            ("secrets", "mounted", true),
            ("secrets", "projected", true),
            ("secrets", "env", true),
            ("secrets", "conf", false),
            ("secrets", "decoy", false),
            ("secrets", "X", false),
            ("configmaps", "root", true),
            ("configmaps", "conf", true),
            ("configmaps", "all", true),
            ("configmaps", "env", false),
            ("persistentvolumeclaims", "data", true),
            ("persistentvolumeclaims", "mounted", false),
        ] {
            assert_eq!(refers(&pod, resource, name), expected, "{resource} {name}");
        }
        for resource in ["secrets", "configmaps", "persistentvolumeclaims"] {
            assert!(refers_to_any(&pod, resource), "{resource}");
            let bare =
                json!({"spec": {"containers": [{"name": "secret", "env": [{"name": "configMap", "value": "x"}]}]}});
            assert!(!refers_to_any(&bare, resource), "{resource}");
        }
    }

    #[test]
    fn a_node_is_known_by_its_name_and_group() {
        assert_eq!(name_of(&User::new("system:node:a", &["system:nodes"])), Some("a"));
        assert_eq!(name_of(&User::new("system:node:a", &[])), None);
        assert_eq!(name_of(&User::new("jane", &["system:nodes"])), None);
    }
}
