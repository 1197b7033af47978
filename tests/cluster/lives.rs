//! What becomes of pods: crashes and the wait after them, an end for want of memory, images of other archives.

use serde_json::json;
use tests::lab::{Kubectl, image, until};

use crate::streams::{apply, pod};

/// The volume of a pod that has crashed is as it left it, and who waits is told why.
pub fn a_crashing_pod_waits_and_keeps_its_volume(kubectl: &Kubectl) {
    let mut crashes = pod("waits", "two", "stat -c %a /s; chmod 700 /s; exit 3");
    crashes["spec"]["volumes"] = json!([{"name": "s", "emptyDir": {}}]);
    crashes["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "s", "mountPath": "/s"}]);
    apply(kubectl, &crashes);
    let uid = kubectl.run(&["get", "pod", "waits", "-o", "jsonpath={.metadata.uid}"]);
    let told = format!("kubelet Back-off restarting failed container c in pod waits_default({uid})");
    let mut described = String::new();
    // The event is written after the status.
    until("the pod waits for its next try, and an event says why", || {
        described = kubectl.run(&["describe", "pod", "waits"]);
        let is_told = |line: String| line.starts_with("Warning BackOff") && line.ends_with(&told);
        described.contains("CrashLoopBackOff") && described.lines().map(words).any(is_told)
    });
    let described: Vec<String> = described.lines().map(words).collect();
    let from = described.iter().position(|line| line == "State: Waiting").unwrap();
    let rest = &described[from..];
    assert_eq!(
        rest[1..5],
        [
            "Reason: CrashLoopBackOff",
            "Last State: Terminated",
            "Reason: Error",
            "Exit Code: 3"
        ]
    );
    assert_eq!(rest[7..9], ["Ready: False", "Restart Count: 1"]);
    let waiting = "jsonpath={.status.containerStatuses[0].state.waiting.message}";
    let waiting = kubectl.run(&["get", "pod", "waits", "-o", waiting]);
    assert!(
        waiting.starts_with("back-off 10s restarting failed container=c pod=waits_default("),
        "{waiting}"
    );
    assert_eq!(
        kubectl.run(&["logs", "waits"]),
        "700\n",
        "the volume's mode in the second life"
    );
    kubectl.run(&["delete", "pod", "waits"]);
}

/// A line with one space between its words.
fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub fn who_takes_too_much_memory_is_killed(kubectl: &Kubectl) {
    let mut eats = pod("eats", "one", "x=a; while true; do x=$x$x$x; done");
    eats["spec"]["restartPolicy"] = json!("Never");
    eats["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "16Mi", "cpu": "500m"}});
    apply(kubectl, &eats);
    until("it is killed", || {
        let status = kubectl.run(&["get", "pod", "eats", "--no-headers"]);
        status.split_whitespace().nth(2) == Some("OOMKilled")
    });
    let ended = "jsonpath={.status.phase} {.status.containerStatuses[0].state.terminated.exitCode}";
    assert_eq!(kubectl.run(&["get", "pod", "eats", "-o", ended]), "Failed 137");
    kubectl.run(&["delete", "pod", "eats"]);
}

/// An image from an OCI archive runs where its archive was.
pub fn an_image_of_an_oci_archive_runs(kubectl: &Kubectl, host: &str) {
    let mut runs = pod("oci", host, "echo $FORM");
    runs["spec"]["restartPolicy"] = json!("Never");
    runs["spec"]["containers"][0]["image"] = json!(image::OCI);
    apply(kubectl, &runs);
    until("it has run", || {
        kubectl.run(&["get", "pod", "oci", "-o", "jsonpath={.status.phase}"]) == "Succeeded"
    });
    assert_eq!(kubectl.run(&["logs", "oci"]), "oci\n");
    kubectl.run(&["delete", "pod", "oci"]);
}
