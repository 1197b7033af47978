//! How containers end: what they say last, their exit codes, and the kill for who does not heed a signal.

use std::process::Child;

use tests::lab::{Kubectl, until};

use crate::streams::{pod, start};
use crate::watch::Watch;

/// Each state of a pod's container by what it ended with, nothing while it runs.
const CODE: &str = "jsonpath=code={.status.containerStatuses[0].state.terminated.exitCode}{\"\\n\"}";

/// Who follows a log until the pod is deleted reads all of it, and is let go; who watches the pod sees with what it ended.
pub fn a_deleted_pod_is_heard_to_its_end(kubectl: &Kubectl, host: &str) {
    let script = "trap 'echo bye; exit 7' TERM; n=0; while true; do n=$((n+1)); echo line $n; sleep 0.1; done";
    let mut talks = pod("heeds", host, script);
    talks["spec"]["terminationGracePeriodSeconds"] = 60.into();
    start(kubectl, &talks);
    let following = kubectl.start(&["logs", "-f", "heeds"]);
    let mut watch = Watch::start(kubectl, &["get", "pod", "heeds", "-w", "-o", CODE]);
    watch.until("that it runs", |line| line == "code=");
    until("it has spoken for a while", || {
        kubectl.run(&["logs", "heeds"]).lines().count() > 20
    });
    assert_eq!(kubectl.run(&["delete", "pod", "heeds"]), "pod \"heeds\" deleted\n");
    let lines = all_of(following);
    let (last, others) = lines.split_last().unwrap();
    assert_eq!(last, "bye");
    let expected: Vec<String> = (1..=others.len()).map(|n| format!("line {n}")).collect();
    assert_eq!(others, expected);
    watch.until("its exit code", |line| line == "code=7");
    watch.end();
}

/// The time is that of who deletes, not that of the pod.
pub fn who_does_not_heed_the_signal_is_killed(kubectl: &Kubectl, host: &str) {
    let mut deaf = pod("deaf", host, "trap '' TERM; while true; do sleep 0.1; done");
    deaf["spec"]["terminationGracePeriodSeconds"] = 100_000.into();
    start(kubectl, &deaf);
    let mut watch = Watch::start(kubectl, &["get", "pod", "deaf", "-w", "-o", CODE]);
    watch.until("that it runs", |line| line == "code=");
    kubectl.run(&["delete", "pod", "deaf", "--grace-period=3"]);
    watch.until("its exit code", |line| line == "code=137");
    watch.end();
}

/// A hook that takes all of the grace leaves the container two seconds for its signal.
pub fn a_hook_does_not_cost_the_container_its_signal(kubectl: &Kubectl, host: &str) {
    let mut polite = pod("polite", host, "trap 'exit 9' TERM; while true; do sleep 0.1; done");
    polite["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] = serde_json::json!(["sleep", "1000"]);
    polite["spec"]["terminationGracePeriodSeconds"] = 2.into();
    start(kubectl, &polite);
    let mut watch = Watch::start(kubectl, &["get", "pod", "polite", "-w", "-o", CODE]);
    watch.until("that it runs", |line| line == "code=");
    kubectl.run(&["delete", "pod", "polite"]);
    watch.until("its exit code", |line| line == "code=9");
    watch.end();
}

/// Waits for a command's end, which must be a good one. Returns its lines.
fn all_of(command: Child) -> Vec<String> {
    let output = command.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(ToOwned::to_owned).collect()
}
