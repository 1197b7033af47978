//! What goes through the tunnel to a kubelet: logs, commands, attached containers, forwarded ports.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Command;

use serde_json::{Value, json};
use tests::lab::{Kubectl, Lab, image, until};

/// A pod of one container on a host.
pub fn pod(name: &str, host: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": host, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": image::NAME, "command": ["sh", "-c", script]}],
        },
    })
}

pub fn apply(kubectl: &Kubectl, pod: &Value) {
    kubectl.feed(&["apply", "-f", "-"], &pod.to_string());
}

/// Applies it, and waits until it is ready.
pub fn start(kubectl: &Kubectl, pod: &Value) {
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

pub fn commands_run_in_containers(kubectl: &Kubectl) {
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "runs"}, "data": {"page.txt": "from a file\n"},
    });
    apply(kubectl, &config);
    for host in ["server", "one"] {
        let name = format!("runs-{host}");
        let mut runs = pod(&name, host, "exec sleep 10000");
        runs["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "runs"}}]);
        runs["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/config"}]);
        runs["spec"]["containers"][0]["env"] = json!([{"name": "GREETING", "value": "hello"}]);
        start(kubectl, &runs);
        let script = "echo $GREETING; cat /config/page.txt; hostname; echo not shown >&2";
        let printed = kubectl.run(&["exec", &name, "--", "sh", "-c", script]);
        assert_eq!(printed, format!("hello\nfrom a file\n{name}\n"));
        let sent = "0123456789\n".repeat(4000);
        assert_eq!(
            kubectl.feed(&["exec", "-i", &name, "--", "cat"], &sent),
            sent,
            "input, and its end"
        );

        let failing = kubectl.start(&["exec", &name, "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
        let output = failing.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(
            (output.status.code(), text(&output.stdout), text(&output.stderr)),
            (
                Some(3),
                "out\n".into(),
                "err\ncommand terminated with exit code 3\n".into()
            )
        );
        let said = kubectl.fail(&["exec", &name, "--", "no-such-program"], "");
        assert!(said.contains("executable file not found"), "{said}");
        let said = kubectl.fail(&["exec", &name, "-cx", "--", "true"], "");
        assert!(said.contains("container x is not valid for pod"), "{said}");

        let exec = kubectl.line(&["exec", "-it", &name, "--", "sh", "-c", "'sleep 1; busybox stty size'"]);
        let line = format!("stty rows 31 cols 97; {exec}");
        let terminal = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .output()
            .unwrap();
        let shown = text(&terminal.stdout);
        assert!(shown.contains("31 97"), "{shown}");
        kubectl.run(&["delete", "pod", &name]);
    }
}

pub fn a_container_is_attached_to(kubectl: &Kubectl) {
    let mut echoes = pod("echoes", "one", "while read line; do echo got $line; done; echo end");
    echoes["spec"]["restartPolicy"] = "Never".into();
    echoes["spec"]["containers"][0]["stdin"] = true.into();
    echoes["spec"]["containers"][0]["stdinOnce"] = true.into();
    start(kubectl, &echoes);
    let printed = kubectl.feed(&["attach", "-i", "echoes"], "one\ntwo\n");
    assert_eq!(printed, "got one\ngot two\nend\n");
    until("the pod has ended", || {
        kubectl.run(&["get", "pod", "echoes", "-o", "jsonpath={.status.phase}"]) == "Succeeded"
    });
    let said = kubectl.fail(&["exec", "echoes", "--", "true"], "");
    assert!(
        said.contains("container not found (\"c\")") || said.contains("completed pod"),
        "{said}"
    );
    kubectl.run(&["delete", "pod", "echoes"]);
}

pub fn ports_of_a_pod_are_forwarded(kubectl: &Kubectl) {
    for host in ["server", "one"] {
        let name = format!("serves-{host}");
        let script = "echo page >/tmp/small; head -c 3000000 /dev/zero >/tmp/large; exec busybox httpd -f -p 127.0.0.1:8080 -h /tmp";
        start(kubectl, &pod(&name, host, script));
        let asked = ["exec", &name, "--", "wget", "-qO-", "http://127.0.0.1:8080/small"];
        until("the pod serves", || {
            kubectl.try_run(&asked).is_ok_and(|page| page == "page\n")
        });
        let forwarding = kubectl.forward(&name, 8080);
        for _ in 0..3 {
            assert!(forwarding.get("/large").len() > 3_000_000);
            assert!(forwarding.get("/small").ends_with(b"page\n"));
        }
        drop(forwarding);

        let mut nobody = kubectl.forward(&name, 9999);
        assert_eq!(nobody.get("/small"), b"");
        let said = nobody.said();
        assert!(
            said.contains("failed to forward port 9999 to pod") && said.contains("refused"),
            "{said}"
        );
        drop(nobody);
        kubectl.run(&["delete", "pod", &name]);
    }
}

pub fn a_node_out_of_reach_is_told_and_one_that_came_back_is_reached(kubectl: &Kubectl, lab: &mut Lab) {
    start(kubectl, &pod("stays-reached", "one", "echo here; exec sleep 10000"));
    let run = || kubectl.try_run(&["exec", "stays-reached", "--", "echo", "ran"]);
    assert_eq!(run(), Ok("ran\n".to_owned()));
    lab.end("one", true);
    let unreached = "error dialing backend: node one: no tunnel to node one: its agent is not connected to this server";
    until("the server knows that the agent is gone", || {
        kubectl.fail(&["logs", "stays-reached"], "").contains(unreached)
    });
    assert!(run().unwrap_err().contains(unreached), "{:?}", run());
    lab.restart_agent("one");
    until("the pod that was adopted is reached", || {
        run() == Ok("ran\n".to_owned())
    });
    assert_eq!(kubectl.run(&["logs", "stays-reached"]), "here\n");
    kubectl.run(&["delete", "pod", "stays-reached"]);
}
