//! The objects that a cluster has from its first second: namespaces, the `kubernetes` service, priority classes.
//!
//! [`wanted`] lists them (pure); [`ensure`] makes what is missing and corrects what tells where the servers are. Roles
//! and bindings are `auth`'s, service accounts and the CA's config map the controllers'. Source: Kubernetes v1.36
//! `pkg/controlplane/controller/systemnamespaces`, `.../kubernetesservice`, `pkg/registry/scheduling/rest`.

use std::net::IpAddr;

use agent::wire::status::{Reason, Status};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use crate::request::{Client, Patch, What};

/// What the objects depend on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Address of the `kubernetes` service.
    pub service_ip: IpAddr,
    /// Address of this server.
    pub advertised: IpAddr,
    /// Its port.
    pub port: u16,
}

/// Whether an object that is there already is left alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keep {
    /// It is; people may change it.
    AsItIs,
    /// These members are ours and are brought back.
    Members(&'static [&'static str]),
}

/// One of them.
pub struct Wanted {
    /// Its resource.
    pub what: What,
    /// Its namespace, empty when it has none.
    pub namespace: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The whole object.
    pub object: Value,
    /// What becomes of one that is there.
    pub keep: Keep,
}

/// All of them, in the order in which they can be made.
pub fn wanted(facts: &Facts) -> Vec<Wanted> {
    let mut all: Vec<Wanted> = ["kube-system", "kube-public", "kube-node-lease", "default"]
        .into_iter()
        .map(|name| Wanted {
            what: What::NAMESPACES,
            namespace: "",
            name,
            object: json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }),
            keep: Keep::AsItIs,
        })
        .collect();
    for (name, value, description) in [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        let object = json!({ "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name },
            "value": value, "description": description });
        let keep = Keep::AsItIs;
        all.push(Wanted {
            what: What::PRIORITY_CLASSES,
            namespace: "",
            name,
            object,
            keep,
        });
    }
    for (what, object) in token_cleaner() {
        all.push(Wanted {
            what,
            namespace: "kube-system",
            name: TOKEN_CLEANER,
            object,
            keep: Keep::AsItIs,
        });
    }
    for (what, object, keep) in kubernetes(facts) {
        all.push(Wanted {
            what,
            namespace: "default",
            name: "kubernetes",
            object,
            keep,
        });
    }
    all
}

const TOKEN_CLEANER: &str = "system:controller:token-cleaner";

/// The rights of the controller that removes bootstrap tokens: the one role of a controller that is a namespace's.
///
/// Source: Kubernetes v1.36, `plugin/pkg/auth/authorizer/rbac/bootstrappolicy/namespace_policy.go`.
fn token_cleaner() -> [(What, Value); 2] {
    let metadata = json!({ "name": TOKEN_CLEANER, "namespace": "kube-system",
        "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" } });
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata,
        "rules": [{ "verbs": ["get", "watch", "list", "delete"], "apiGroups": [""], "resources": ["secrets"] },
            { "verbs": ["create", "patch", "update"], "apiGroups": ["", "events.k8s.io"], "resources": ["events"] }],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": TOKEN_CLEANER },
        "subjects": [{ "kind": "ServiceAccount", "name": "token-cleaner", "namespace": "kube-system" }],
    });
    [(What::ROLES, role), (What::ROLE_BINDINGS, binding)]
}

/// The service by which pods find the API, and where it leads.
fn kubernetes(facts: &Facts) -> [(What, Value, Keep); 3] {
    let family = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "kubernetes", "namespace": "default",
            "labels": { "component": "apiserver", "provider": "kubernetes" } },
        "spec": { "clusterIP": facts.service_ip.to_string(), "clusterIPs": [facts.service_ip.to_string()],
            "ipFamilies": [family(facts.service_ip)], "ipFamilyPolicy": "SingleStack", "type": "ClusterIP",
            "sessionAffinity": "None",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": facts.port }] },
    });
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": { "name": "kubernetes", "namespace": "default",
            "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": [{ "addresses": [{ "ip": facts.advertised.to_string() }],
            "ports": [{ "name": "https", "port": facts.port, "protocol": "TCP" }] }],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "kubernetes", "namespace": "default",
            "labels": { "kubernetes.io/service-name": "kubernetes" } },
        "addressType": family(facts.advertised),
        "endpoints": [{ "addresses": [facts.advertised.to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": facts.port, "protocol": "TCP" }],
    });
    [
        (What::SERVICES, service, Keep::AsItIs),
        (What::ENDPOINTS, endpoints, Keep::Members(&["subsets"])),
        (What::ENDPOINT_SLICES, slice, Keep::Members(&["endpoints", "ports"])),
    ]
}

/// Makes what is missing: namespaces, then all else at once, so that the datastore commits it together.
///
/// # Errors
/// What the API says.
pub async fn ensure(client: &Client, all: Vec<Wanted>) -> Result<(), Status> {
    let (namespaces, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.what == What::NAMESPACES);
    for together in [namespaces, others] {
        try_join_all(together.into_iter().map(|one| ensure_one(client, one))).await?;
    }
    Ok(())
}

async fn ensure_one(client: &Client, wanted: Wanted) -> Result<(), Status> {
    let Wanted {
        what,
        namespace,
        name,
        object,
        keep,
    } = wanted;
    match client.get(what, namespace, name).await {
        Err(status) if status.is(Reason::NotFound) => match client.create(what, namespace, object).await {
            Err(status) if !status.is(Reason::AlreadyExists) => Err(status),
            _ => Ok(()),
        },
        Err(status) => Err(status),
        Ok(present) => match correction(&present, &object, keep) {
            Some(patch) => client
                .patch(what, namespace, name, None, Patch::Merge(patch))
                .await
                .map(drop),
            None => Ok(()),
        },
    }
}

/// What brings an object back to what we want of it.
fn correction(present: &Value, wanted: &Value, keep: Keep) -> Option<Value> {
    let Keep::Members(members) = keep else { return None };
    let differs = |member: &&&str| present.get(**member) != wanted.get(**member);
    members.iter().any(|member| differs(&member)).then(|| {
        let member = |member: &&str| ((*member).to_owned(), wanted.get(*member).cloned().unwrap_or_default());
        Value::Object(members.iter().map(member).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            service_ip: "10.43.0.1".parse().unwrap(),
            advertised: "192.0.2.1".parse().unwrap(),
            port: 6443,
        }
    }

    #[test]
    fn namespaces_come_before_what_lies_in_them() {
        let all = wanted(&facts());
        let at = |name: &str, what: What| all.iter().position(|one| one.name == name && one.what == what).unwrap();
        assert!(at("default", What::NAMESPACES) < at("kubernetes", What::SERVICES));
        for one in &all {
            assert_eq!(one.object["metadata"]["name"], one.name);
            let namespace = one.object["metadata"]["namespace"].as_str().unwrap_or_default();
            assert_eq!(namespace, one.namespace, "{}", one.name);
        }
    }

    #[test]
    fn a_server_that_moved_says_where_it_is_now_and_changes_nothing_else() {
        let [_, (_, old, keep), _] = kubernetes(&facts());
        assert_eq!(correction(&old, &old, keep), None);
        let moved = Facts {
            advertised: "192.0.2.2".parse().unwrap(),
            ..facts()
        };
        let [(_, service, keep_service), (_, new, _), _] = kubernetes(&moved);
        let patch = correction(&old, &new, keep).unwrap();
        assert_eq!(patch["subsets"][0]["addresses"][0]["ip"], "192.0.2.2");
        assert_eq!(patch.as_object().unwrap().len(), 1);
        assert_eq!(
            correction(&json!({}), &service, keep_service),
            None,
            "people may change the service"
        );
    }
}
