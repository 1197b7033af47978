//! Deployments as those see them who wait for them: each line that kubectl prints while pods come, are replaced and go.

use serde_json::{Value, json};
use tests::lab::{Kubectl, image};

use crate::streams::apply;
use crate::watch::Watch;

/// A Deployment of one pod, which takes a moment to end.
fn deployment(name: &str) -> Value {
    let script = "trap 'sleep 5; exit 0' TERM; while true; do sleep 0.2; done";
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 20,
                    "containers": [{"name": "main", "image": image::NAME, "command": ["sh", "-c", script]}],
                },
            },
        },
    })
}

/// A pod that no node takes.
fn marker() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "marker", "labels": {"app": "shown"}},
        "spec": {"nodeSelector": {"none": "none"}, "containers": [{"name": "c", "image": image::NAME}]},
    })
}

/// A line of a table, cut where two spaces or more are.
fn cells(line: &str) -> Vec<&str> {
    line.split("  ")
        .map(str::trim)
        .filter(|cell| !cell.is_empty())
        .collect()
}

/// From the first line to the last, with the columns that a person looks at.
pub fn a_watch_shows_a_pod_from_its_birth_to_its_end(kubectl: &Kubectl) {
    let mut watch = Watch::start(kubectl, &["get", "pods", "-l", "app=shown", "-o", "wide", "-w"]);
    let mut shown = deployment("shown");
    // It waits for its volume for as long as the ConfigMap is not there.
    shown["spec"]["template"]["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "shown"}}]);
    shown["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    // Of one that goes nowhere the watch tells that it has begun.
    apply(kubectl, &marker());
    watch.until("the marker", |line| line.starts_with("marker "));
    kubectl.run(&["delete", "pod", "marker"]);
    apply(kubectl, &shown);
    watch.until("ContainerCreating", |line| line.contains(" ContainerCreating "));
    kubectl.run(&["create", "configmap", "shown"]);
    watch.until("Running", |line| line.contains(" Running "));
    let facts = "jsonpath={.items[0].metadata.name} {.items[0].status.podIP} {.items[0].spec.nodeName}";
    let facts = kubectl.run(&["get", "pods", "-l", "app=shown", "-o", facts]);
    let facts: Vec<&str> = facts.split(' ').collect();
    let [name, address, node] = facts[..] else {
        panic!("{facts:?}")
    };
    kubectl.run(&["delete", "deployment", "shown"]);
    watch.until("the end", |line| line.contains(" Completed "));
    kubectl.run(&["wait", "--for=delete", &format!("pod/{name}"), "--timeout=60s"]);
    kubectl.run(&["delete", "configmap", "shown"]);
    let lines = watch.end();
    assert_eq!(
        cells(&lines[0]),
        [
            "NAME",
            "READY",
            "STATUS",
            "RESTARTS",
            "AGE",
            "IP",
            "NODE",
            "NOMINATED NODE",
            "READINESS GATES"
        ]
    );
    let mut rows: Vec<Vec<&str>> = lines[1..].iter().map(|line| cells(line)).collect();
    rows.retain(|row| row[0] != "marker");
    for row in &mut rows {
        let age = row.remove(4);
        assert!(age.ends_with('s') || age.ends_with('m'), "{age}");
    }
    // Between its network and its first container a pod may be seen with an address; nobody waits for that.
    rows.retain(|row| row[2] != "ContainerCreating" || row[4] != address);
    rows.dedup();
    let none = "<none>";
    let row = |ready, status, address, node| vec![name, ready, status, "0", address, node, none, none];
    let expected = [
        row("0/1", "Pending", none, none),
        row("0/1", "Pending", none, node),
        row("0/1", "ContainerCreating", none, node),
        row("1/1", "Running", address, node),
        row("1/1", "Terminating", address, node),
        row("0/1", "Completed", address, node),
    ];
    assert_eq!(rows, expected);
}

/// With strategy `Recreate` there are never pods of two kinds.
pub fn a_deployment_is_recreated(kubectl: &Kubectl) {
    let mut anew = deployment("anew");
    anew["spec"]["strategy"] = json!({"type": "Recreate"});
    anew["spec"]["replicas"] = json!(2);
    apply(kubectl, &anew);
    kubectl.run(&["rollout", "status", "deployment/anew", "--timeout=120s"]);
    let mut watch = Watch::start(
        kubectl,
        &[
            "get",
            "pods",
            "-l",
            "app=anew",
            "-w",
            "--output-watch-events",
            "--no-headers",
        ],
    );
    watch.until("what is there", |line| line.starts_with("ADDED"));
    let image = format!("main={}", image::OTHER);
    kubectl.run(&["set", "image", "deployment/anew", &image]);
    let printed = kubectl.run(&["rollout", "status", "deployment/anew", "--timeout=120s"]);
    let mut said: Vec<&str> = printed.lines().collect();
    // Whether the controller has seen the change by then is a race that nobody minds, and so is which of two pods is first.
    let passing = [
        "Waiting for deployment spec update to be observed...",
        "Waiting for deployment \"anew\" rollout to finish: 1 of 2 updated replicas are available...",
    ];
    said.retain(|line| !passing.contains(line));
    said.dedup();
    assert_eq!(
        said,
        [
            "Waiting for deployment \"anew\" rollout to finish: 0 out of 2 new replicas have been updated...",
            "Waiting for deployment \"anew\" rollout to finish: 0 of 2 updated replicas are available...",
            "deployment \"anew\" successfully rolled out",
        ]
    );
    only_old_ones_then_only_new_ones(&watch.end());
    kubectl.run(&["delete", "deployment", "anew", "--cascade=foreground", "--timeout=120s"]);
    let left = kubectl.run(&["get", "pods,replicasets", "-l", "app=anew", "-o", "name"]);
    assert_eq!(
        left, "",
        "who waits for a deletion in the foreground finds nothing left"
    );
}

/// `lines`: event, name, ready, status … of pods of two replica sets.
fn only_old_ones_then_only_new_ones(lines: &[String]) {
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split_whitespace().collect()).collect();
    let set = |row: &[&str]| row[1].rsplit_once('-').unwrap().0.to_owned();
    let old = set(&rows[0]);
    let first_new = rows.iter().position(|row| set(row) != old).unwrap();
    let (before, after) = rows.split_at(first_new);
    let mut names: Vec<&str> = before.iter().map(|row| row[1]).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 2, "{lines:#?}");
    for name in names {
        // One that has ended does not count, although its object is still there.
        let last = before.iter().rfind(|row| row[1] == name).unwrap();
        let ended = last[0] == "DELETED" || ["Completed", "Error"].contains(&last[3]);
        assert!(ended, "{name} still ran: {lines:#?}");
    }
    let relapse = after.iter().find(|row| set(row) == old && row[0] == "ADDED");
    assert_eq!(relapse, None, "{lines:#?}");
}

/// All that `kubectl describe` says of a Deployment, with other words for what differs each time.
pub fn a_deployment_is_described(kubectl: &Kubectl, name: &str, expected: &str) {
    let sets = kubectl.run(&["get", "replicasets", "-l", &format!("app={name}"), "-o", "name"]);
    let set = sets.trim().strip_prefix("replicaset.apps/").unwrap();
    let described = kubectl.run(&["describe", "deployment", name]).replace(set, "SET");
    let mut in_events = false;
    let lines = described.lines().map(|line| {
        in_events |= line == "Events:";
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["CreationTimestamp:", ..] => "CreationTimestamp: TIME".to_owned(),
            [kind, reason, age, rest @ ..] if in_events && age.ends_with('s') => {
                format!("  {kind}  {reason}  AGE  {}", rest.join(" "))
            }
            [_, _, _, ..] if in_events => format!("  {}", words.join("  ")),
            _ => line.trim_end().to_owned(),
        }
    });
    let lines: Vec<String> = lines.collect();
    assert_eq!(lines.join("\n"), expected.trim(), "{described}");
}
