//! ServiceAccount: every pod runs as one, and finds its token where clients look for it.
//!
//! Source: Kubernetes v1.36 `plugin/pkg/admission/serviceaccount/admission.go`.

use agent::wire::object::{self, at, list, text};
use agent::wire::status::Status;
use serde_json::{Value, json};

use crate::cache::Cache;
use crate::registry::World;
use crate::registry::name_suffix;

use super::Request;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// One hour and a little, by which upstream tells its own tokens from those that people asked for.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn assign(cache: &Cache, world: &dyn World, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
    if !request.creates("", "pods") {
        return Ok(());
    }
    if at(pod, &["metadata", "annotations", MIRROR]).is_some() {
        if !text(pod, &["spec", "serviceAccountName"]).is_empty() {
            return Err(request.forbidden("a mirror pod may not reference service accounts"));
        }
        return Ok(());
    }
    let namespace = request.namespace.unwrap_or_default();
    let name = match text(pod, &["spec", "serviceAccountName"]) {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    let Some(account) = cache.get(&format!("/registry/serviceaccounts/{namespace}/{name}")) else {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
        return Err(request.forbidden(&why));
    };
    let account = account.value();
    object::set(pod, &["spec", "serviceAccountName"], name.as_str());
    object::set(pod, &["spec", "serviceAccount"], name.as_str());
    if wants_token(pod, &account) {
        mount_token(pod, &name_suffix(world.random()));
    }
    if list(pod, &["spec", "imagePullSecrets"]).is_empty() && !list(&account, &["imagePullSecrets"]).is_empty() {
        object::set(
            pod,
            &["spec", "imagePullSecrets"],
            list(&account, &["imagePullSecrets"]).to_vec(),
        );
    }
    Ok(())
}

/// The pod decides, else the account, else yes.
fn wants_token(pod: &Value, account: &Value) -> bool {
    let pod = at(pod, &["spec", "automountServiceAccountToken"]).and_then(Value::as_bool);
    let account = at(account, &["automountServiceAccountToken"]).and_then(Value::as_bool);
    pod.or(account).unwrap_or(true)
}

/// Adds the volume and its mounts, where no container has something else there.
fn mount_token(pod: &mut Value, suffix: &str) {
    let is_token = |volume: &&Value| text(volume, &["name"]).starts_with("kube-api-access-");
    let present = list(pod, &["spec", "volumes"]).iter().find(is_token);
    let known = present.map(|volume| text(volume, &["name"]).to_owned());
    let name = known.clone().unwrap_or_else(|| format!("kube-api-access-{suffix}"));
    let mut mounted = false;
    for containers in ["initContainers", "containers"] {
        let containers = pod.get_mut("spec").and_then(|spec| spec.get_mut(containers));
        for container in containers.and_then(Value::as_array_mut).into_iter().flatten() {
            let mut mounts = list(container, &["volumeMounts"]).to_vec();
            if mounts.iter().any(|mount| text(mount, &["mountPath"]) == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
            object::set(container, &["volumeMounts"], mounts);
            mounted = true;
        }
    }
    if mounted && known.is_none() {
        let mut volumes = list(pod, &["spec", "volumes"]).to_vec();
        volumes.push(token_volume(&name));
        object::set(pod, &["spec", "volumes"], volumes);
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once_and_where_nothing_else_is() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]}});
        mount_token(&mut pod, "abcde");
        let first = pod.clone();
        assert_eq!(pod["spec"]["volumes"][0]["name"], "kube-api-access-abcde");
        assert_eq!(
            pod["spec"]["containers"][0]["volumeMounts"],
            json!([{"name": "kube-api-access-abcde", "readOnly": true, "mountPath": MOUNT_PATH}])
        );
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"][0]["name"], "own");
        mount_token(&mut pod, "fghij");
        assert_eq!(pod, first);
    }

    #[test]
    fn the_pod_overrules_the_account_on_tokens() {
        for (pod, account, wants) in [
            (json!({}), json!({}), true),
            (json!({}), json!({"automountServiceAccountToken": false}), false),
            (
                json!({"spec": {"automountServiceAccountToken": true}}),
                json!({"automountServiceAccountToken": false}),
                true,
            ),
            (
                json!({"spec": {"automountServiceAccountToken": false}}),
                json!({}),
                false,
            ),
        ] {
            assert_eq!(wants_token(&pod, &account), wants, "{pod} {account}");
        }
    }
}
