//! What a node's machine and its people see of it: addresses outside, Ctrl-C, commands without root.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::Command;

use tests::lab::{Kubectl, Lab, binary, until};

use crate::streams::{pod, start};
use crate::walk::identity;

/// Who is outside cannot answer a pod's address, so it sees the node's.
pub fn a_pod_goes_outside_as_its_node(kubectl: &Kubectl, lab: &Lab, host: &str, outside: &str) {
    let listener = lab.listen(outside);
    let at = listener.local_addr().unwrap();
    // Busybox ends with its input.
    let script = format!(
        "(echo hello; sleep 60) | busybox nc {} {}; exec sleep 10000",
        at.ip(),
        at.port()
    );
    start(kubectl, &pod("calls", host, &script));
    let (mut stream, from) = listener.accept().unwrap();
    let mut heard = [0; 6];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!((&heard, from.ip().to_string()), (b"hello\n", lab.address(host)));
    stream.write_all(b"answer\n").unwrap();
    drop(stream);
    until("the pod has the answer", || {
        kubectl.run(&["logs", "calls"]) == "answer\n"
    });
    let own = kubectl.run(&["get", "pod", "calls", "-o", "jsonpath={.status.podIP}"]);
    assert_ne!(own, lab.address(host));
    kubectl.run(&["delete", "pod", "calls"]);
}

/// Ctrl-C ends a server and its agent; pods go on, and are taken over by the next.
pub fn a_server_is_interrupted_and_its_pods_go_on(kubectl: &Kubectl, lab: &mut Lab, host: &str) {
    let script = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.2; done";
    start(kubectl, &pod("counts", host, script));
    let before = identity(kubectl, "counts");
    let log = log_of(lab, host, "default_counts_");
    lab.interrupt(host);
    kubectl.fail(&["get", "pods"], "");
    let length = || fs::metadata(&log).unwrap().len();
    let at_stop = length();
    until("the pod has gone on without its agent", || length() > at_stop + 200);
    lab.start_server(host);
    until("the API is ready", || {
        kubectl.try_run(&["get", "--raw", "/readyz"]).is_ok()
    });
    let written = length();
    until("it is run into", || {
        kubectl
            .try_run(&["exec", "counts", "--", "echo", "ran"])
            .is_ok_and(|ran| ran == "ran\n")
    });
    until("it goes on", || length() > written + 200);
    let counted = kubectl.run(&["logs", "counts"]);
    let expected: Vec<String> = (1..=counted.lines().count()).map(|n| n.to_string()).collect();
    assert_eq!(counted.lines().collect::<Vec<_>>(), expected, "no line is missing");
    assert!(expected.len() >= 10, "{counted}");
    // That another pod starts shows that the new agent is at work.
    start(kubectl, &pod("fresh", host, "exec sleep 10000"));
    assert_eq!(identity(kubectl, "counts"), before);
    kubectl.run(&["delete", "pod", "counts", "fresh"]);
}

/// The log on a host's disk of the one pod whose folder begins so.
fn log_of(lab: &Lab, host: &str, pod: &str) -> PathBuf {
    let folders = fs::read_dir(lab.file(host, "log/pods")).unwrap().flatten();
    let begins = |folder: &fs::DirEntry| folder.file_name().to_string_lossy().starts_with(pod);
    let found = folders.into_iter().find(begins).unwrap();
    found.path().join("c/0.log")
}

/// Keys and certificates are root's: nobody else is told that all is well.
pub fn certificates_are_checked_by_root(lab: &Lab, host: &str) {
    /// Others than root look elsewhere if they do not say so.
    const DATA: &str = "/var/lib/rancher/k3s";
    // Where anybody may run it.
    let program = lab.folder().join("k3s");
    fs::copy(binary("k3s"), &program).unwrap();
    let check = |who: &[&str]| {
        let namespaces = lab.inside(host);
        let mut command = Command::new("nsenter");
        command.args(namespaces).args(who).arg(&program);
        command
            .args(["certificate", "check", "--output", "table", "--data-dir", DATA])
            .output()
            .unwrap()
    };
    let output = check(&[]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && table.contains("serving-kubelet.crt"),
        "{output:?}"
    );
    let output = check(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(
        said.contains(&format!("cannot read {DATA}/")) && said.contains("as root"),
        "{said}"
    );
    fs::remove_file(&program).unwrap();
}
