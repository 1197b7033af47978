//! Ten thousand pods as a cluster would have them, put into a store without asking each through the API.
//!
//! They run on a node that exists and belong to it, so that no controller has anything to do about them.

use std::path::Path;

use futures_util::future::join_all;
use serde_json::{Value, json};
use server::request::{Client, Patch, What};
use server::store::sql::sqlite::Sqlite;
use server::store::{Change, Expect, Store, Write};

/// Where they run.
pub const NODE: &str = "box-with-many-pods";
/// The name of the pod that all others are made from.
const PATTERN: &str = "web-7d4b9c6f5d-00000";
/// Written at once.
const BATCH: usize = 500;

/// The text of a pod as the server stores one: defaulted and admitted by the API, with the status of a running pod.
pub async fn pattern(client: &Client) -> String {
    // Its controller makes it too; whoever comes second is told that it is there.
    let account = json!({"metadata": {"name": "default"}});
    let _ = client.create(What::SERVICE_ACCOUNTS, "default", account).await;
    let node = json!({"metadata": {"name": NODE}});
    client.create(What::NODES, "", node).await.unwrap();
    // Without it the pods would be on their way to being evicted, each with a time of its own.
    let ready = Patch::Merge(json!({"status": {"conditions": [condition("Ready")]}}));
    let node = client
        .patch(What::NODES, "", NODE, Some("status"), ready)
        .await
        .unwrap();
    client.create(What::PODS, "default", wanted(&node)).await.unwrap();
    let running = Patch::Merge(json!({"status": status()}));
    let pod = client
        .patch(What::PODS, "default", PATTERN, Some("status"), running)
        .await
        .unwrap();
    let mut metadata = pod["metadata"].clone();
    let _ = metadata.as_object_mut().unwrap().remove("resourceVersion");
    let (spec, status) = (&pod["spec"], &pod["status"]);
    format!(r#"{{"apiVersion":"v1","kind":"Pod","metadata":{metadata},"spec":{spec},"status":{status}}}"#)
}

/// Writes so many pods, all like the pattern but for name and uid, into the datastore of a server that is stopped.
pub async fn fill(folder: &Path, pattern: &str, count: usize) {
    let store = Sqlite::open(&folder.join("server/db/state.db")).unwrap();
    let uid: Value = serde_json::from_str(pattern).unwrap();
    let uid = uid["metadata"]["uid"].as_str().unwrap();
    let numbers: Vec<usize> = (1..=count).collect();
    for numbers in numbers.chunks(BATCH) {
        let writes = numbers.iter().map(|number| {
            let name = format!("web-7d4b9c6f5d-{number:05}");
            let own = format!("{}-{number:012x}", uid.get(..23).unwrap());
            let text = pattern.replace(PATTERN, &name).replace(uid, &own);
            store.write(Write::new(
                format!("/registry/pods/default/{name}"),
                Expect::Absent,
                Change::Put(text.into()),
            ))
        });
        for written in join_all(writes).await {
            written.unwrap();
        }
    }
    store.close().await.unwrap();
}

fn wanted(node: &Value) -> Value {
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10});
    json!({
        "metadata": {
            "name": PATTERN,
            "labels": {
                "app.kubernetes.io/name": "web", "app.kubernetes.io/instance": "production",
                "app.kubernetes.io/part-of": "shop", "pod-template-hash": "7d4b9c6f5d",
            },
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"},
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Node", "name": NODE, "uid": node["metadata"]["uid"], "controller": true,
            }],
        },
        "spec": {
            "nodeName": NODE,
            "containers": [{
                "name": "web", "image": "registry.example.com/shop/web:1.27.4", "ports": [{"containerPort": 8080}],
                "env": [
                    {"name": "DATABASE", "value": "postgres://db.shop.svc.cluster.local:5432/shop"},
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": probe, "livenessProbe": probe,
                "volumeMounts": [{"name": "settings", "mountPath": "/etc/web"}],
            }],
            "volumes": [{"name": "settings", "configMap": {"name": "web"}}],
        },
    })
}

fn condition(kind: &str) -> Value {
    json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"})
}

fn status() -> Value {
    let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    json!({
        "phase": "Running", "hostIP": "192.168.7.21", "podIP": "10.42.3.17", "podIPs": [{"ip": "10.42.3.17"}],
        "startTime": "2026-01-02T03:04:01Z", "qosClass": "Burstable",
        "conditions": conditions,
        "containerStatuses": [{
            "name": "web", "ready": true, "started": true, "restartCount": 0,
            "image": "registry.example.com/shop/web:1.27.4",
            "imageID": "registry.example.com/shop/web@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "containerID": "amphipod://0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "state": {"running": {"startedAt": "2026-01-02T03:04:04Z"}},
        }],
    })
}
