//! Kinds that are served in a second group or version, as their clients use them.

use serde_json::{Value, json};
use server::schema::protobuf::{decode, encode};
use tokio::task::JoinSet;

use crate::rig::Rig;
use crate::watching::Lines;

const NEWER: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const CORE: &str = "/api/v1/namespaces/default/events";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// As kube-proxy's recorder sends it.
fn starting(name: &str) -> Value {
    json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"},
        "eventTime": "2026-11-25T11:00:00.000001Z", "reportingController": "kube-proxy",
        "reportingInstance": "kube-proxy-edge", "action": "StartKubeProxy", "reason": "Starting",
        "regarding": {"kind": "Node", "name": "edge", "uid": "edge"}, "type": "Normal"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kube_proxy_records_that_it_starts() {
    let rig = Rig::start().await;
    let (proxy, user) = (rig.named("system:kube-proxy", &[]), rig.administrator());
    let mut tasks = JoinSet::new();
    let only = [("accept", PROTOBUF), ("content-type", PROTOBUF)];
    let path = format!("{CORE}?watch=true&allowWatchBookmarks=false");
    let mut core = Lines::of(user.send(&mut tasks, "GET", &path, &[], "").await);
    let path = format!("{NEWER}?watch=true&fieldSelector=regarding.name%3Dedge");
    let mut newer = Lines::of(user.send(&mut tasks, "GET", &path, &[], "").await);
    let made = proxy.call("POST", NEWER, &only, encode(&starting("s")).unwrap()).await;
    assert_eq!(
        (made.code, made.header("content-type")),
        (201, PROTOBUF),
        "{}",
        made.text()
    );
    let made = decode(&made.body, ("", "")).unwrap();
    assert_eq!(
        (&made["apiVersion"], &made["regarding"]["name"]),
        (&json!("events.k8s.io/v1"), &json!("edge"))
    );
    let (older, other) = (core.next().await.unwrap(), newer.next().await.unwrap());
    assert_eq!((&older["type"], &other["type"]), (&json!("ADDED"), &json!("ADDED")));
    assert_eq!(older["object"]["involvedObject"], other["object"]["regarding"]);
    assert_eq!(older["object"]["metadata"], other["object"]["metadata"]);
    // It happens again: the recorder patches the series.
    let patch = json!({"series": {"count": 2, "lastObservedTime": "2026-11-25T11:05:00.000000Z"}}).to_string();
    let strategic = [("content-type", "application/strategic-merge-patch+json")];
    let patched = proxy.call("PATCH", &format!("{NEWER}/s"), &strategic, patch).await;
    assert_eq!(patched.code, 200, "{}", patched.text());
    assert_eq!(core.next().await.unwrap()["object"]["series"]["count"], 2);
    let one = user.call("GET", &format!("{NEWER}/s"), &only, "").await;
    let one = decode(&one.body, ("", "")).unwrap();
    assert_eq!(
        (&one["series"]["count"], &one["eventTime"]),
        (&json!(2), &json!("2026-11-25T11:00:00.000001Z"))
    );
    let list = user.call("GET", NEWER, &only, "").await;
    let list = decode(&list.body, ("", "")).unwrap();
    assert_eq!(
        (&list["kind"], &list["items"][0]["reason"]),
        (&json!("EventList"), &json!("Starting"))
    );
    // It may record, and no more.
    assert_eq!(proxy.call("DELETE", &format!("{NEWER}/s"), &[], "").await.code, 403);
    assert_eq!(proxy.call("GET", NEWER, &[], "").await.code, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_shows_events_in_both_forms() {
    let rig = Rig::start().await;
    let kubectl = rig.kubectl();
    kubectl
        .says(
            "create -f -",
            &starting("s").to_string(),
            &["event.events.k8s.io/s created"],
        )
        .await;
    for command in ["get events", "get events.v1.events.k8s.io", "get ev s"] {
        kubectl
            .says(command, "", &["LAST SEEN", "Normal", "Starting", "node/edge"])
            .await;
    }
    kubectl
        .says("events", "", &["LAST SEEN", "Starting", "Node/edge"])
        .await;
    kubectl
        .says(
            "get events.v1.events.k8s.io s -o jsonpath={.apiVersion}/{.regarding.name}",
            "",
            &["events.k8s.io/v1/edge"],
        )
        .await;
    kubectl
        .says(
            "get events.v1.events.k8s.io --field-selector regarding.name=edge -o name",
            "",
            &["event.events.k8s.io/s"],
        )
        .await;
    kubectl.says("api-versions", "", &["events.k8s.io/v1"]).await;
    kubectl
        .says(
            "explain events.regarding --api-version events.k8s.io/v1",
            "",
            &["GROUP:", "events.k8s.io", "fieldPath"],
        )
        .await;
    kubectl
        .says(
            "delete events.v1.events.k8s.io s",
            "",
            &["event.events.k8s.io \"s\" deleted"],
        )
        .await;
    kubectl.says("get events", "", &["No resources found"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_autoscales() {
    let rig = Rig::start().await;
    let kubectl = rig.kubectl();
    kubectl
        .says("create deployment web --image=web:1", "", &["created"])
        .await;
    kubectl
        .says(
            "autoscale deployment web --min=2 --max=5 --cpu-percent=70",
            "",
            &["horizontalpodautoscaler.autoscaling/web autoscaled"],
        )
        .await;
    let of =
        "{.apiVersion}/{.spec.metrics[0].resource.target.averageUtilization}/{.spec.targetCPUUtilizationPercentage}";
    for (version, words) in [("v1", "autoscaling/v1//70"), ("v2", "autoscaling/v2/70/")] {
        let name = format!("get horizontalpodautoscalers.{version}.autoscaling web");
        kubectl.says(&format!("{name} -o jsonpath={of}"), "", &[words]).await;
        kubectl.says(&name, "", &["Deployment/web", "/70%", "MINPODS"]).await;
    }
    let user = rig.administrator();
    let path = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/web";
    let only = [("accept", PROTOBUF), ("content-type", PROTOBUF)];
    let mut older = decode(&user.call("GET", path, &only, "").await.body, ("", "")).unwrap();
    older["spec"]["targetCPUUtilizationPercentage"] = 60.into();
    let put = user.call("PUT", path, &only, encode(&older).unwrap()).await;
    assert_eq!(put.code, 200, "{}", put.text());
    let newer = user.get(&path.replace("v1", "v2")).await.json();
    assert_eq!(
        newer["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
        60
    );
}
