//! What goes through the tunnel to a kubelet: logs.

use std::io::{BufRead as _, BufReader, Read as _};

use serde_json::{Value, json};
use tests::lab::{Kubectl, image, until};

/// A pod of one container on a host.
fn pod(name: &str, host: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": host, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": image::NAME, "command": ["sh", "-c", script]}],
        },
    })
}

fn apply(kubectl: &Kubectl, pod: &Value) {
    kubectl.feed(&["apply", "-f", "-"], &pod.to_string());
}

/// Applies it, and waits until it is ready.
fn start(kubectl: &Kubectl, pod: &Value) {
    apply(kubectl, pod);
    let name = format!("pod/{}", pod["metadata"]["name"].as_str().unwrap());
    kubectl.run(&["wait", "--for=condition=Ready", &name, "--timeout=120s"]);
}

pub fn logs_are_printed_as_the_container_wrote_them(kubectl: &Kubectl) {
    for host in ["server", "one"] {
        let name = format!("talks-{host}");
        start(
            kubectl,
            &pod(&name, host, "printf 'one\\n two\\n\\nthree'; exec sleep 10000"),
        );
        let logs = |options: &[&str]| kubectl.run(&[&["logs", &name], options].concat());
        // A line is in the log once it has ended; the last one has not.
        until("the container has printed", || logs(&[]) == "one\n two\n\n");
        assert_eq!(logs(&["--tail=2"]), " two\n\n");
        assert_eq!(logs(&["--limit-bytes=5"]), "one\n ");
        assert_eq!(logs(&["--since=1h"]), "one\n two\n\n");
        assert_eq!(logs(&["--since-time=2100-01-01T00:00:00Z"]), "");
        let stamped = logs(&["--timestamps"]);
        let texts: Vec<&str> = stamped
            .lines()
            .map(|line| {
                let (stamp, text) = line.split_once(' ').unwrap();
                assert!(stamp.len() == 30 && stamp.ends_with('Z'), "{stamp}");
                text
            })
            .collect();
        assert_eq!(texts, ["one", " two", ""]);
        kubectl.run(&["delete", "pod", &name]);
    }
}

pub fn logs_are_followed_to_the_end(kubectl: &Kubectl) {
    let mut short = pod(
        "counts",
        "one",
        "echo first; sleep 3; echo second; sleep 1; printf third",
    );
    short["spec"]["restartPolicy"] = "Never".into();
    start(kubectl, &short);
    let mut following = kubectl.start(&["logs", "-f", "counts"]);
    let mut lines = BufReader::new(following.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let phase = kubectl.run(&["get", "pod", "counts", "-o", "jsonpath={.status.phase}"]);
    assert_eq!(
        (line.as_str(), phase.as_str()),
        ("first\n", "Running"),
        "it came while the pod ran"
    );
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "second\nthird\n");
    assert!(following.wait().unwrap().success());
    assert_eq!(kubectl.run(&["logs", "counts"]), "first\nsecond\nthird\n");
    kubectl.run(&["delete", "pod", "counts"]);
}

pub fn the_log_before_a_restart_is_kept(kubectl: &Kubectl) {
    let script = "n=$(cat /s/n 2>/dev/null || echo 0); n=$((n+1)); echo $n >/s/n; echo life $n; [ $n -ge 2 ] || exit 1; exec sleep 10000";
    let mut twice = pod("twice", "one", script);
    twice["spec"]["volumes"] = json!([{"name": "s", "emptyDir": {}}]);
    twice["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "s", "mountPath": "/s"}]);
    apply(kubectl, &twice);
    until("the container lives again", || {
        kubectl.try_run(&["logs", "twice"]).is_ok_and(|text| text == "life 2\n")
    });
    until("the status says so", || {
        kubectl
            .try_run(&["logs", "twice", "--previous"])
            .is_ok_and(|text| text == "life 1\n")
    });
    kubectl.run(&["delete", "pod", "twice"]);
}

pub fn what_has_no_log_says_why(kubectl: &Kubectl) {
    let mut stuck = pod("stuck", "one", "true");
    stuck["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "nowhere"}}]);
    apply(kubectl, &stuck);
    let wanted = "Error from server (BadRequest): container \"c\" in pod \"stuck\" is waiting to start: CreateContainerConfigError\n";
    until("the log says what the pod waits for", || {
        kubectl.fail(&["logs", "stuck"], "") == wanted
    });
    for (arguments, said) in [
        (
            ["logs", "stuck", "--previous"],
            "Error from server (BadRequest): previous terminated container \"c\" in pod \"stuck\" not found\n",
        ),
        (
            ["logs", "stuck", "-cx"],
            "error: container x is not valid for pod stuck\n",
        ),
        (
            ["logs", "nobody", "-f"],
            "error: error from server (NotFound): pods \"nobody\" not found in namespace \"default\"\n",
        ),
    ] {
        assert_eq!(kubectl.fail(&arguments, ""), said, "{arguments:?}");
    }
    kubectl.run(&["delete", "pod", "stuck"]);
}
