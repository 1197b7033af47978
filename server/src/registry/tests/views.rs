//! What is served in a second group or version: one object, two forms.

use serde_json::{Value, json};

use super::*;
use crate::cache::{ChangeKind, Filter, From, Watch, WatchEvent};
use crate::store::Range;
use agent::units::Revision;
use agent::wire::selector::Fields;

const CORE: Place<'static> = ("events", "default", "", "");
const NEWER: Place<'static> = ("events.v1.events.k8s.io", "default", "", "");

fn newer(name: &str) -> Value {
    json!({"metadata": {"name": name}, "regarding": {"kind": "Pod", "namespace": "default", "name": "p"},
        "eventTime": "2026-11-25T11:00:00.000001Z", "reportingController": "kube-proxy", "reportingInstance": "kube-proxy-edge",
        "action": "StartKubeProxy", "reason": "Starting", "note": "it starts", "type": "Normal"})
}

fn older(name: &str) -> Value {
    json!({"metadata": {"name": name}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "q"},
        "reason": "Pulled", "message": "it is here", "type": "Warning", "count": 2, "source": {"component": "kubelet", "host": "edge"},
        "firstTimestamp": "2026-11-25T11:00:00Z", "lastTimestamp": "2026-11-25T11:01:00Z"})
}

fn selecting(text: &str) -> ListOptions {
    let fields = Fields::parse(text).unwrap();
    ListOptions {
        filter: Filter {
            fields,
            ..Filter::default()
        },
        ..ListOptions::default()
    }
}

async fn watch(cluster: &Cluster, place: Place<'_>, from: From) -> Watch {
    let filter = Filter::default();
    let operation = Operation::Watch {
        filter,
        from,
        bookmarks: false,
    };
    match cluster.run(place, operation).await.unwrap() {
        Answer::Watch(watch) => watch,
        _ => panic!("no watch"),
    }
}

async fn told(watch: &mut Watch) -> (ChangeKind, Value) {
    match watch.next().await.unwrap() {
        WatchEvent::Change(kind, item) => {
            let value = item.value();
            assert_eq!(value["metadata"]["resourceVersion"], item.revision.to_string());
            (kind, value)
        }
        WatchEvent::Bookmark { .. } => panic!("a bookmark"),
    }
}

/// The same object in the other form: all that is asked of the two is that they are one.
fn is_one(left: &Value, right: &Value) {
    assert_eq!(left["metadata"], right["metadata"]);
    assert!(left["metadata"]["resourceVersion"].is_string(), "{left}");
}

#[tokio::test]
async fn an_event_made_in_one_form_is_seen_in_the_other() {
    let cluster = Cluster::new().await;
    let made = cluster.create(NEWER, newer("n")).await.unwrap();
    assert_eq!(
        (&made["apiVersion"], &made["note"], &made["reportingController"]),
        (&json!("events.k8s.io/v1"), &json!("it starts"), &json!("kube-proxy"))
    );
    let seen = cluster.get(named(CORE, "n")).await.unwrap();
    is_one(&made, &seen);
    assert_eq!(
        (
            &seen["apiVersion"],
            &seen["message"],
            &seen["reportingComponent"],
            &seen["involvedObject"]["name"]
        ),
        (&json!("v1"), &json!("it starts"), &json!("kube-proxy"), &json!("p"))
    );
    assert_eq!(seen.get("note"), None);
    let made = cluster.create(CORE, older("o")).await.unwrap();
    let seen = cluster.get(named(NEWER, "o")).await.unwrap();
    is_one(&made, &seen);
    assert_eq!(
        (
            &seen["deprecatedCount"],
            &seen["deprecatedSource"]["host"],
            &seen["deprecatedLastTimestamp"]
        ),
        (&json!(2), &json!("edge"), &json!("2026-11-25T11:01:00Z"))
    );
    // Stored once, in the older form, where it always was.
    let range = Range {
        prefix: "/registry/events/".to_owned(),
        ..Range::default()
    };
    let stored = cluster.registry.store().list(range, None).await.unwrap();
    assert_eq!(stored.entries.len(), 2);
    for entry in &stored.entries {
        assert!(entry.value.starts_with(br#"{"apiVersion":"v1","kind":"Event","#));
    }
    // Each form knows its own words only.
    let mut wrong = newer("w");
    wrong["message"] = "x".into();
    assert_eq!(cluster.create(NEWER, wrong).await.unwrap_err().code, 400);
    assert_eq!(cluster.create(CORE, newer("w")).await.unwrap_err().code, 400);
}

#[tokio::test]
async fn lists_select_in_the_words_of_their_form() {
    let cluster = Cluster::new().await;
    cluster.create(NEWER, newer("n")).await.unwrap();
    cluster.create(CORE, older("o")).await.unwrap();
    let (page, _) = cluster.list(NEWER, ListOptions::default()).await.unwrap();
    assert_eq!(names(&page), ["n", "o"]);
    for item in &page.items {
        assert_eq!(item.value()["apiVersion"], "events.k8s.io/v1");
    }
    for (text, wanted) in [
        ("regarding.name=p", "n"),
        ("regarding.kind=Pod,reason=Pulled", "o"),
        ("reportingController=kube-proxy", "n"),
        ("type!=Normal", "o"),
        ("metadata.name=n", "n"),
    ] {
        let (page, _) = cluster.list(NEWER, selecting(text)).await.unwrap();
        assert_eq!(names(&page), [wanted], "{text}");
    }
    // Who names no component is found by who reports.
    for (text, wanted) in [
        ("source=kubelet", "o"),
        ("source=kube-proxy", "n"),
        ("source!=kubelet", "n"),
        ("reportingComponent=kube-proxy", "n"),
        ("reportingComponent=", "o"),
    ] {
        let (page, _) = cluster.list(CORE, selecting(text)).await.unwrap();
        assert_eq!(names(&page), [wanted], "{text}");
    }
    for (place, text) in [
        (NEWER, "involvedObject.name=p"),
        (CORE, "regarding.name=p"),
        (NEWER, "source=x"),
    ] {
        let status = cluster.list(place, selecting(text)).await.unwrap_err();
        let word = text.split('=').next().unwrap();
        assert_eq!(
            (status.code, status.message),
            (400, format!("field label not supported: {word}"))
        );
    }
    let operation = Operation::DeleteCollection {
        list: selecting("regarding.name=p"),
        options: DeleteOptions::default(),
    };
    cluster.run(NEWER, operation).await.unwrap();
    let (page, _) = cluster.list(CORE, ListOptions::default()).await.unwrap();
    assert_eq!(names(&page), ["o"]);
}

#[tokio::test]
async fn a_running_watch_shows_in_its_form_what_happens_in_either() {
    let cluster = Cluster::new().await;
    cluster.create(CORE, older("before")).await.unwrap();
    let from = From::State { bookmark: false };
    let (mut core, mut other) = (watch(&cluster, CORE, from).await, watch(&cluster, NEWER, from).await);
    let made = cluster.create(NEWER, newer("n")).await.unwrap();
    let patch = json!({"series": {"count": 2, "lastObservedTime": "2026-11-25T11:02:00.000000Z"}});
    let patched = cluster.patch(named(NEWER, "n"), Patch::Strategic(patch)).await.unwrap();
    cluster
        .delete(named(NEWER, "n"), DeleteOptions::default())
        .await
        .unwrap();
    let mut kinds = Vec::new();
    for _ in 0..4 {
        let (one, two) = (told(&mut core).await, told(&mut other).await);
        assert_eq!((one.0, &one.1["metadata"]), (two.0, &two.1["metadata"]));
        assert_eq!(
            (&one.1["apiVersion"], &two.1["apiVersion"]),
            (&json!("v1"), &json!("events.k8s.io/v1"))
        );
        assert_eq!(one.1["message"], two.1["note"]);
        kinds.push(two);
    }
    assert_eq!((kinds[1].0, &kinds[1].1), (ChangeKind::Added, &made));
    assert_eq!((kinds[2].0, &kinds[2].1), (ChangeKind::Modified, &patched));
    assert_eq!(kinds[3].0, ChangeKind::Deleted);
    // It goes on from a revision that the other form showed.
    let revision = Revision::parse(made["metadata"]["resourceVersion"].as_str().unwrap()).unwrap();
    let mut resumed = watch(&cluster, CORE, From::After(revision)).await;
    let (kind, event) = told(&mut resumed).await;
    assert_eq!((kind, &event["series"]["count"]), (ChangeKind::Modified, &json!(2)));
}

#[tokio::test]
async fn each_form_is_checked_as_its_own() {
    let cluster = Cluster::new().await;
    let mut bare = newer("n");
    for key in ["eventTime", "reportingController"] {
        bare.as_object_mut().unwrap().remove(key);
    }
    let status = cluster.create(NEWER, bare).await.unwrap_err();
    assert_eq!(
        (status.code, status.details.unwrap().causes[0].field.as_str()),
        (422, "eventTime")
    );
    cluster.create(CORE, older("o")).await.unwrap();
    // The older form may be rewritten, the newer one only counts.
    let recount = json!({"count": 3, "message": "again"});
    cluster.patch(named(CORE, "o"), Patch::Merge(recount)).await.unwrap();
    cluster.create(NEWER, newer("n")).await.unwrap();
    let status = cluster
        .patch(named(NEWER, "n"), Patch::Merge(json!({"note": "other"})))
        .await
        .unwrap_err();
    assert_eq!(
        (status.code, status.details.unwrap().causes[0].field.as_str()),
        (422, "message")
    );
    // A PUT makes what is not there, in this form too, and by its rules.
    let mut put = newer("put");
    let made = cluster.update(named(NEWER, "put"), put.clone()).await.unwrap();
    assert_eq!(
        (&made["apiVersion"], &made["note"]),
        (&json!("events.k8s.io/v1"), &json!("it starts"))
    );
    put["type"] = "Odd".into();
    put["metadata"]["name"] = "put-2".into();
    assert_eq!(cluster.update(named(NEWER, "put-2"), put).await.unwrap_err().code, 422);
    let status = cluster.get(named(NEWER, "gone")).await.unwrap_err();
    assert_eq!(status.message, "events \"gone\" not found");
}

#[tokio::test]
async fn an_autoscaler_of_the_first_version_is_one_of_the_second() {
    const FIRST: Place<'static> = ("horizontalpodautoscalers.v1.autoscaling", "default", "h", "");
    const SECOND: Place<'static> = ("horizontalpodautoscalers.v2.autoscaling", "default", "h", "");
    let cluster = Cluster::new().await;
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    let body = json!({"metadata": {"name": "h"},
        "spec": {"maxReplicas": 3, "scaleTargetRef": target, "targetCPUUtilizationPercentage": 70}});
    let made = cluster.create(named(FIRST, ""), body).await.unwrap();
    assert_eq!(
        (&made["apiVersion"], &made["spec"]["minReplicas"]),
        (&json!("autoscaling/v1"), &json!(1))
    );
    let seen = cluster.get(SECOND).await.unwrap();
    is_one(&made, &seen);
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}});
    assert_eq!(seen["spec"]["metrics"], json!([cpu]));
    let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
    let spec = json!({"metrics": [memory, cpu], "behavior": {"scaleUp": {"stabilizationWindowSeconds": 30}}});
    let second = cluster
        .patch(SECOND, Patch::Merge(json!({ "spec": spec })))
        .await
        .unwrap();
    let status = json!({"status": {"desiredReplicas": 2, "currentMetrics": [],
        "conditions": [{"type": "AbleToScale", "status": "True"}]}});
    cluster
        .patch(part(SECOND, "h", "status"), Patch::Merge(status))
        .await
        .unwrap();
    // What the first version does not know is not lost by a change through it.
    let changed = cluster
        .patch(
            FIRST,
            Patch::Strategic(json!({"spec": {"targetCPUUtilizationPercentage": 50}})),
        )
        .await
        .unwrap();
    assert_eq!(changed["spec"]["targetCPUUtilizationPercentage"], 50);
    let noted = &changed["metadata"]["annotations"];
    assert!(
        noted["autoscaling.alpha.kubernetes.io/metrics"]
            .as_str()
            .unwrap()
            .contains("memory"),
        "{noted}"
    );
    let seen = cluster.get(SECOND).await.unwrap();
    assert_eq!(seen["metadata"].get("annotations"), None);
    assert_eq!(seen["spec"]["behavior"], second["spec"]["behavior"]);
    assert_eq!(seen["spec"]["metrics"][0], memory);
    assert_eq!(
        seen["spec"]["metrics"][1]["resource"]["target"]["averageUtilization"],
        50
    );
    assert_eq!(seen["status"]["conditions"][0]["type"], "AbleToScale");
    // A note that cannot be read is none: what it was for is not wanted any more, and the rest is as it was.
    for words in [
        "",
        "{}",
        "[7]",
        r#"[{"type": 7}]"#,
        r#"[{"type": "Pods", "pods": {"metricName": 7}}]"#,
    ] {
        let wrong = json!({"metadata": {"annotations": {"autoscaling.alpha.kubernetes.io/metrics": words,
            "autoscaling.alpha.kubernetes.io/conditions": words}}});
        let seen = cluster.patch(FIRST, Patch::Merge(wrong)).await.unwrap();
        assert_eq!(seen["spec"]["targetCPUUtilizationPercentage"], 50, "{words}");
        let seen = cluster.get(SECOND).await.unwrap();
        let metrics = seen["spec"]["metrics"].as_array().unwrap();
        assert_eq!(
            (metrics.len(), &metrics[0]["resource"]["name"]),
            (1, &json!("cpu")),
            "{words}"
        );
        assert_eq!(seen["spec"]["behavior"], second["spec"]["behavior"], "{words}");
        assert_eq!(seen["status"]["conditions"][0]["type"], "AbleToScale", "{words}");
    }
}
