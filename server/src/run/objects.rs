//! The objects that a cluster has from its first second: namespaces, the `kubernetes` service, priority classes.
//!
//! [`namespaces`] and [`rest`] list them (pure); [`ensure`] makes what is missing and leaves alone what is there: people may
//! change it. Where the servers are is `peers`', roles and bindings are `auth`'s, service accounts and the CA's config map
//! the controllers'. Source: Kubernetes v1.36 `pkg/controlplane/controller/systemnamespaces`, `.../kubernetesservice`,
//! `pkg/registry/scheduling/rest`.

use std::net::IpAddr;

use agent::wire::status::{Reason, Status};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use crate::request::{Client, What};

/// What the objects depend on.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Address of the `kubernetes` service.
    pub service_ip: IpAddr,
    /// Port of the servers.
    pub port: u16,
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
}

/// What has to be there before all else.
pub fn namespaces() -> Vec<Wanted> {
    ["kube-system", "kube-public", "kube-node-lease", "default"]
        .into_iter()
        .map(|name| Wanted {
            what: What::NAMESPACES,
            namespace: "",
            name,
            object: json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }),
        })
        .collect()
}

/// All others.
pub fn rest(facts: &Facts) -> Vec<Wanted> {
    let class = |(name, value, description): (&'static str, i64, &str)| Wanted {
        what: What::PRIORITY_CLASSES,
        namespace: "",
        name,
        object: json!({ "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name },
            "value": value, "description": description }),
    };
    let classes = [
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
    ];
    let cleaner = |(what, object)| Wanted {
        what,
        namespace: "kube-system",
        name: TOKEN_CLEANER,
        object,
    };
    let classes = classes.into_iter().map(class);
    classes
        .chain(token_cleaner().map(cleaner))
        .chain([kubernetes(facts)])
        .collect()
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

/// The service by which pods find the API.
fn kubernetes(facts: &Facts) -> Wanted {
    let family = if facts.service_ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "kubernetes", "namespace": "default",
            "labels": { "component": "apiserver", "provider": "kubernetes" } },
        "spec": { "clusterIP": facts.service_ip.to_string(), "clusterIPs": [facts.service_ip.to_string()],
            "ipFamilies": [family], "ipFamilyPolicy": "SingleStack", "type": "ClusterIP", "sessionAffinity": "None",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": facts.port }] },
    });
    Wanted {
        what: What::SERVICES,
        namespace: "default",
        name: "kubernetes",
        object,
    }
}

/// Makes what is missing, all at once, so that the datastore commits it together.
///
/// # Errors
/// What the API says.
pub async fn ensure(client: &Client, all: Vec<Wanted>) -> Result<(), Status> {
    try_join_all(all.into_iter().map(|one| ensure_one(client, one))).await?;
    Ok(())
}

async fn ensure_one(client: &Client, wanted: Wanted) -> Result<(), Status> {
    let Wanted {
        what,
        namespace,
        name,
        object,
    } = wanted;
    match client.get(what, namespace, name).await {
        Err(status) if status.is(Reason::NotFound) => match client.create(what, namespace, object).await {
            // Another server was faster.
            Err(status) if !status.is(Reason::AlreadyExists) => Err(status),
            _ => Ok(()),
        },
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_namespace_lies_in_one_that_is_made_before() {
        let facts = Facts {
            service_ip: "10.43.0.1".parse().unwrap(),
            port: 6443,
        };
        let before = namespaces();
        for one in before.iter().chain(&rest(&facts)) {
            assert_eq!(one.object["metadata"]["name"], one.name);
            let namespace = one.object["metadata"]["namespace"].as_str().unwrap_or_default();
            assert_eq!(namespace, one.namespace, "{}", one.name);
            assert!(
                namespace.is_empty() || before.iter().any(|other| other.name == namespace),
                "{namespace}"
            );
        }
    }
}
