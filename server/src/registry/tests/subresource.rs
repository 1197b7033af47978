//! Status, scale, approval.

use serde_json::json;

use super::*;

#[tokio::test]
async fn status_has_its_own_door() {
    let cluster = Cluster::new().await;
    let made = cluster.create(DEPLOYMENTS, deployment("a")).await.unwrap();
    let mut body = made.clone();
    body["status"] = json!({"replicas": 2, "observedGeneration": 1});
    body["spec"]["replicas"] = 9.into();
    body["metadata"]["labels"] = json!({"x": "y"});
    let reported = cluster
        .update(part(DEPLOYMENTS, "a", "status"), body.clone())
        .await
        .unwrap();
    assert_eq!(reported["status"]["replicas"], 2);
    assert_eq!(reported["spec"]["replicas"], 1);
    assert_eq!(reported["metadata"]["generation"], 1);
    assert!(reported["metadata"].get("labels").is_none());
    let mut body = reported.clone();
    body["status"] = json!({"replicas": 5});
    let kept = cluster.update(named(DEPLOYMENTS, "a"), body).await.unwrap();
    assert_eq!(kept["status"], reported["status"]);
}

#[tokio::test]
async fn scale_shows_and_sets_replicas() {
    let cluster = Cluster::new().await;
    let made = cluster.create(DEPLOYMENTS, deployment("a")).await.unwrap();
    let place = part(DEPLOYMENTS, "a", "scale");
    let scale = cluster.get(place).await.unwrap();
    assert_eq!(
        (&scale["kind"], &scale["apiVersion"]),
        (&json!("Scale"), &json!("autoscaling/v1"))
    );
    assert_eq!(scale["spec"], json!({"replicas": 1}));
    assert_eq!(scale["status"], json!({"replicas": 0, "selector": "app=web"}));
    assert_eq!(
        scale["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    let scaled = cluster
        .patch(place, Patch::Merge(json!({"spec": {"replicas": 3}})))
        .await
        .unwrap();
    assert_eq!(scaled["spec"]["replicas"], 3);
    let whole = cluster.get(named(DEPLOYMENTS, "a")).await.unwrap();
    assert_eq!(
        (&whole["spec"]["replicas"], &whole["metadata"]["generation"]),
        (&json!(3), &json!(2))
    );
    let mut body = scaled.clone();
    body["spec"]["replicas"] = 0.into();
    let zero = cluster.update(place, body.clone()).await.unwrap();
    assert!(zero["spec"].get("replicas").is_none());
    body["spec"]["replicas"] = (-1).into();
    body["metadata"]["resourceVersion"] = "".into();
    assert_eq!(cluster.update(place, body).await.unwrap_err().code, 422);
}

#[tokio::test]
async fn a_node_registers_with_its_status_and_reports_on() {
    let cluster = Cluster::new().await;
    let nodes = ("nodes", "", "", "");
    let body = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}},
        "status": {"capacity": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "False"}]}});
    let made = cluster.create(nodes, body).await.unwrap();
    assert_eq!(made["status"]["capacity"], json!({"cpu": "2"}));
    assert_eq!(made["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"}]}});
    let ready = cluster
        .patch(part(nodes, "n1", "status"), Patch::Strategic(patch))
        .await
        .unwrap();
    assert_eq!(ready["status"]["conditions"].as_array().unwrap().len(), 2);
    assert_eq!(ready["status"]["conditions"][0]["status"], "True");
}

#[tokio::test]
async fn a_certificate_is_asked_for_in_the_callers_name_and_approved_once() {
    let cluster = Cluster::new().await;
    let requests = ("certificatesigningrequests", "", "", "");
    let body = json!({"metadata": {"name": "r"}, "spec": {"signerName": "example.com/x", "request": "eA==", "usages": ["client auth"], "username": "root"}});
    let made = cluster.create(requests, body).await.unwrap();
    assert_eq!(made["spec"]["username"], "admin");
    assert_eq!(
        made["spec"]["groups"],
        json!(["system:masters", "system:authenticated"])
    );
    let mut approved = made.clone();
    approved["status"] = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "Test"}]});
    let approved = cluster.update(part(requests, "r", "approval"), approved).await.unwrap();
    let mut denied = approved.clone();
    denied["status"]["conditions"] = json!([{"type": "Denied", "status": "True"}]);
    assert_eq!(
        cluster
            .update(part(requests, "r", "approval"), denied)
            .await
            .unwrap_err()
            .code,
        422
    );
    let mut issued = approved.clone();
    issued["status"] = json!({"certificate": "eA=="});
    let issued = cluster.update(part(requests, "r", "status"), issued).await.unwrap();
    assert_eq!(issued["status"]["certificate"], "eA==");
    assert_eq!(issued["status"]["conditions"][0]["type"], "Approved");
}

#[tokio::test]
async fn ephemeral_containers_only_come() {
    let cluster = Cluster::new().await;
    let mut body = cluster.create(PODS, pod("a")).await.unwrap();
    body["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "busybox:1"}]);
    let place = part(PODS, "a", "ephemeralcontainers");
    let mut with = cluster.update(place, body).await.unwrap();
    assert_eq!(with["spec"]["ephemeralContainers"][0]["name"], "debug");
    with["spec"]["ephemeralContainers"] = json!([]);
    let status = cluster.update(place, with).await.unwrap_err();
    assert!(status.message.contains("may not be removed or changed"), "{status}");
}
