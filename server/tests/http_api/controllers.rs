//! The controllers do their work as the accounts they are, with the rights of the bootstrap roles and no others.

use std::time::Duration;

use serde_json::json;
use server::controllers::{Settings, start};

use crate::client::{Answer, User};
use crate::rig::Rig;

/// Asks until the answer is as it should be.
async fn until(user: &User<'_>, path: &str, what: &str, holds: impl Fn(&Answer) -> bool) -> Answer {
    for _ in 0..600 {
        let answer = user.get(path).await;
        if holds(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{path} never {what}: {}", user.get(path).await.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_becomes_pods_and_a_namespace_goes_with_all_that_is_in_it() {
    let mut rig = Rig::start().await;
    let settings = Settings {
        root_ca: rig.pki.server_ca_pem().to_owned(),
        cluster_cidr: ([10, 42, 0, 0].into(), 16),
    };
    let (api, cache) = (rig.api.clone(), rig.cache.clone());
    start(&api, &cache, settings, &mut rig.tasks);
    let admin = rig.administrator();
    assert_eq!(
        admin
            .post("/api/v1/namespaces", &json!({"metadata": {"name": "lab"}}))
            .await
            .code,
        201
    );
    let lab = "/api/v1/namespaces/lab";
    until(&admin, &format!("{lab}/serviceaccounts/default"), "came", |answer| {
        answer.code == 200
    })
    .await;
    until(
        &admin,
        &format!("{lab}/configmaps/kube-root-ca.crt"),
        "came",
        |answer| answer.code == 200,
    )
    .await;
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "main", "image": "example.org/web:1"}]},
            },
        },
    });
    let created = admin
        .post("/apis/apps/v1/namespaces/lab/deployments", &deployment)
        .await;
    assert_eq!(created.code, 201, "{}", created.text());
    let two = |answer: &Answer| answer.json()["items"].as_array().is_some_and(|items| items.len() == 2);
    until(&admin, &format!("{lab}/pods?labelSelector=app%3Dweb"), "were two", two).await;
    let seen = |answer: &Answer| {
        let deployment = answer.json();
        deployment["status"]["observedGeneration"] == deployment["metadata"]["generation"]
    };
    until(&admin, "/apis/apps/v1/namespaces/lab/deployments/web", "was seen", seen).await;
    let numbered = |answer: &Answer| answer.text().contains("\"deployment.kubernetes.io/revision\":\"1\"");
    until(
        &admin,
        "/apis/apps/v1/namespaces/lab/deployments/web",
        "was numbered",
        numbered,
    )
    .await;
    let told = |answer: &Answer| answer.text().contains("ScalingReplicaSet");
    until(&admin, &format!("{lab}/events"), "told of the scaling", told).await;
    admin
        .post("/api/v1/nodes", &json!({"metadata": {"name": "box-1"}}))
        .await;
    let ranged = |answer: &Answer| answer.json()["spec"]["podCIDR"] == "10.42.0.0/24";
    until(&admin, "/api/v1/nodes/box-1", "got its range", ranged).await;
    assert_eq!(admin.call("DELETE", lab, &[], "").await.code, 200);
    until(&admin, lab, "went", |answer| answer.code == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_node_is_told_so_once() {
    let mut rig = Rig::start().await;
    let api = rig.api.clone();
    server::scheduler::start(&api, &mut rig.tasks);
    let admin = rig.administrator();
    let pods = "/api/v1/namespaces/default/pods";
    let counts = |answer: &Answer, pod: &str| -> Vec<u64> {
        let events = answer.json();
        let of_pod = events["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["reason"] == "FailedScheduling" && event["involvedObject"]["name"] == pod);
        of_pod.map(|event| event["count"].as_u64().unwrap()).collect()
    };
    // What the first is told changes its status, which the scheduler sees before the second pod.
    for pod in ["first", "second"] {
        let pod = json!({"metadata": {"name": pod}, "spec": {"containers": [{"name": "main", "image": "example.org/web:1"}]}});
        let made = admin.post(pods, &pod).await;
        assert_eq!(made.code, 201, "{}", made.text());
        let name = pod["metadata"]["name"].as_str().unwrap();
        let told = |answer: &Answer| !counts(answer, name).is_empty();
        until(&admin, "/api/v1/namespaces/default/events", "told of the pod", told).await;
    }
    let events = admin.get("/api/v1/namespaces/default/events").await;
    assert_eq!(counts(&events, "first"), [1], "{}", events.text());
}
