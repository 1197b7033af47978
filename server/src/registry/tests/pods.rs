//! Pods: what admission adds, how they are bound, how they go.

use serde_json::json;

use super::*;

const BINDING: fn(&str) -> Value = |node| json!({"target": {"kind": "Node", "name": node}});

#[tokio::test]
async fn a_pod_runs_as_the_default_account_with_a_token_and_default_tolerations() {
    let cluster = Cluster::new().await;
    let made = cluster.create(PODS, pod("a")).await.unwrap();
    let spec = &made["spec"];
    assert_eq!(
        (&spec["serviceAccountName"], &spec["serviceAccount"]),
        (&json!("default"), &json!("default"))
    );
    let volume = &spec["volumes"][0];
    assert!(volume["name"].as_str().unwrap().starts_with("kube-api-access-"));
    assert_eq!(
        volume["projected"]["sources"][0]["serviceAccountToken"],
        json!({"expirationSeconds": 3607, "path": "token"})
    );
    assert_eq!(
        spec["containers"][0]["volumeMounts"][0]["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&spec["priority"], &spec["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
    assert_eq!(made["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    let mut other = pod("b");
    other["spec"]["serviceAccountName"] = "nobody".into();
    let status = cluster.create(PODS, other).await.unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (
            403,
            "pods \"b\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found"
        )
    );
}

#[tokio::test]
async fn a_class_becomes_a_number() {
    let cluster = Cluster::new().await;
    let classes = ("priorityclasses", "", "", "");
    cluster
        .create(
            classes,
            json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"}),
        )
        .await
        .unwrap();
    let mut body = pod("a");
    body["spec"]["priorityClassName"] = "high".into();
    let made = cluster.create(PODS, body.clone()).await.unwrap();
    assert_eq!(
        (&made["spec"]["priority"], &made["spec"]["preemptionPolicy"]),
        (&json!(1000), &json!("Never"))
    );
    body["metadata"]["name"] = "b".into();
    body["spec"]["priorityClassName"] = "system-node-critical".into();
    let made = cluster.create(PODS, body.clone()).await.unwrap();
    assert_eq!(made["spec"]["priority"], 2_000_001_000);
    body["metadata"]["name"] = "c".into();
    body["spec"]["priorityClassName"] = "none".into();
    let status = cluster.create(PODS, body).await.unwrap_err();
    assert_eq!(
        status.message,
        "pods \"c\" is forbidden: no PriorityClass with name none was found"
    );
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let cluster = Cluster::new().await;
    cluster.create(PODS, pod("a")).await.unwrap();
    let answer = cluster.create(part(PODS, "a", "binding"), BINDING("n1")).await.unwrap();
    assert_eq!((&answer["status"], &answer["code"]), (&json!("Success"), &json!(201)));
    let bound = cluster.get(named(PODS, "a")).await.unwrap();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let condition = &bound["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"]),
        (&json!("PodScheduled"), &json!("True"))
    );
    let status = cluster
        .create(part(PODS, "a", "binding"), BINDING("n2"))
        .await
        .unwrap_err();
    assert_eq!(status.code, 409);
    assert!(
        status.message.contains("pod a is already assigned to node \"n1\""),
        "{status}"
    );
    let status = cluster
        .create(part(PODS, "none", "binding"), BINDING("n2"))
        .await
        .unwrap_err();
    assert_eq!(status.code, 404);
}

#[tokio::test]
async fn a_bound_pod_goes_when_its_kubelet_says_so_and_another_at_once() {
    let cluster = Cluster::new().await;
    cluster.create(PODS, pod("a")).await.unwrap();
    cluster
        .delete(named(PODS, "a"), DeleteOptions::default())
        .await
        .unwrap();
    assert_eq!(cluster.get(named(PODS, "a")).await.unwrap_err().code, 404);

    cluster.create(PODS, pod("b")).await.unwrap();
    cluster.create(part(PODS, "b", "binding"), BINDING("n1")).await.unwrap();
    let dying = value(
        &cluster
            .delete(named(PODS, "b"), DeleteOptions::default())
            .await
            .unwrap(),
    );
    assert_eq!(dying["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(dying["metadata"]["deletionTimestamp"], "2027-01-15T08:00:30Z");
    let now = DeleteOptions {
        grace: Some(0),
        uid: dying["metadata"]["uid"].as_str().map(str::to_owned),
        ..DeleteOptions::default()
    };
    cluster.delete(named(PODS, "b"), now).await.unwrap();
    assert_eq!(cluster.get(named(PODS, "b")).await.unwrap_err().code, 404);
}

#[tokio::test]
async fn a_kubelet_reports_status_and_changes_nothing_else() {
    let cluster = Cluster::new().await;
    let made = cluster.create(PODS, pod("a")).await.unwrap();
    cluster.create(part(PODS, "a", "binding"), BINDING("n1")).await.unwrap();
    let cluster = cluster.and_user(User::new("system:node:n1", &["system:nodes"]));
    let patch = json!({"metadata": {"uid": made["metadata"]["uid"]}, "spec": {"nodeName": "elsewhere"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    let patched = cluster
        .patch(part(PODS, "a", "status"), Patch::Strategic(patch))
        .await
        .unwrap();
    assert_eq!(patched["status"]["phase"], "Running");
    assert_eq!(patched["spec"]["nodeName"], "n1");
    assert_eq!(patched["metadata"]["generation"], 1);
    assert_eq!(patched["status"]["qosClass"], "BestEffort");
    let mut bare = patched.clone();
    bare["status"] = json!({"phase": "Running", "conditions": patched["status"]["conditions"]});
    let put = cluster.update(part(PODS, "a", "status"), bare).await.unwrap();
    assert_eq!(put["status"]["qosClass"], "BestEffort");
    let types: Vec<&str> = patched["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["type"].as_str().unwrap())
        .collect();
    assert!(types.contains(&"Ready") && types.contains(&"PodScheduled"), "{types:?}");
    let other = cluster.and_user(User::new("system:node:n2", &["system:nodes"]));
    let patch = Patch::Merge(json!({"status": {"phase": "Failed"}}));
    let status = other.patch(part(PODS, "a", "status"), patch).await.unwrap_err();
    assert_eq!(
        status.message,
        "pods \"a\" is forbidden: node \"n2\" can only update pod status for pods with spec.nodeName set to itself"
    );
}

#[tokio::test]
async fn an_eviction_asks_the_budget() {
    let cluster = Cluster::new().await;
    cluster.create(PODS, pod("a")).await.unwrap();
    cluster.create(part(PODS, "a", "binding"), BINDING("n1")).await.unwrap();
    let running =
        Patch::Merge(json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}));
    cluster.patch(part(PODS, "a", "status"), running).await.unwrap();
    let budgets = ("poddisruptionbudgets", "default", "", "");
    let budget =
        json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    cluster.create(budgets, budget).await.unwrap();
    let eviction = json!({"metadata": {"name": "a"}});
    let status = cluster
        .create(part(PODS, "a", "eviction"), eviction.clone())
        .await
        .unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (429, "Cannot evict pod as it would violate the pod's disruption budget.")
    );
    assert_eq!(status.details.unwrap().causes[0].reason, "DisruptionBudget");
    let allowed = Patch::Merge(
        json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2}}),
    );
    cluster.patch(part(budgets, "b", "status"), allowed).await.unwrap();
    cluster.create(part(PODS, "a", "eviction"), eviction).await.unwrap();
    let dying = cluster.get(named(PODS, "a")).await.unwrap();
    assert!(dying["metadata"]["deletionTimestamp"].is_string());
    let budget = cluster.get(named(budgets, "b")).await.unwrap();
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["a"].is_string());
}

#[tokio::test]
async fn limits_of_the_namespace_become_the_containers() {
    let cluster = Cluster::new().await;
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "default": {"cpu": "500m"}, "max": {"cpu": "1"}}]}});
    cluster.create(("limitranges", "default", "", ""), range).await.unwrap();
    let made = cluster.create(PODS, pod("a")).await.unwrap();
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "500m"}})
    );
    assert_eq!(made["status"]["qosClass"], "Burstable");
    let mut greedy = pod("b");
    greedy["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "2"}});
    assert_eq!(cluster.create(PODS, greedy).await.unwrap_err().code, 403);
}
