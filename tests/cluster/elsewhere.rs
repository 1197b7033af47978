//! A server with its node that keeps what it has in another folder than K3s' own.

use std::fs;

use tests::lab::{Kubectl, Lab, image, until};

use crate::streams::{pod, start};

#[test]
fn a_server_and_its_node_keep_all_in_the_folder_they_are_told() {
    if !tests::in_own_namespaces("elsewhere::a_server_and_its_node_keep_all_in_the_folder_they_are_told") {
        return;
    }
    let mut lab = Lab::new();
    lab.add_host("server");
    let images = lab.file("server", "lib/elsewhere/agent/images");
    fs::create_dir_all(&images).unwrap();
    fs::copy(image::archive(lab.folder()), images.join("image.tar")).unwrap();
    let flags = ["--data-dir", "/var/lib/rancher/elsewhere", "--with-node-id"];
    lab.start_server_with("server", &flags);
    let kubectl = Kubectl::of(&lab, "server");
    until("the API is ready", || {
        kubectl.try_run(&["get", "--raw", "/readyz"]).is_ok()
    });
    let id = fs::read_to_string(lab.file("server", "etc/node/id")).unwrap();
    let name = format!("server-{}", id.trim());
    start(&kubectl, &pod("speaks", &name, "echo hello; exec sleep 10000"));
    until("what it says is read", || kubectl.run(&["logs", "speaks"]) == "hello\n");
    let token = "/var/lib/rancher/elsewhere/server/node-token";
    assert!(lab.log("server").contains(token), "the greeting names the files there");
    for file in ["server/node-token", "server/db/state.db", "agent/serving-kubelet.crt"] {
        assert!(lab.file("server", &format!("lib/elsewhere/{file}")).exists(), "{file}");
    }
    assert!(
        !lab.file("server", "lib/k3s").exists(),
        "nothing is in the folder that it would be in otherwise"
    );
    kubectl.run(&["delete", "pod", "speaks"]);
    for start in ["first", "next"] {
        until("its node is labelled", || {
            kubectl.run(&[
                "get",
                "nodes",
                "-l",
                "node-role.kubernetes.io/control-plane",
                "-o",
                "name",
            ]) == format!("node/{name}\n")
        });
        for (kind, namespace) in [("node", "default"), ("lease", "kube-node-lease")] {
            let found = kubectl.run(&["-n", namespace, "get", kind, "-o", "name"]);
            assert!(
                found.ends_with(&format!("/{name}\n")) && found.lines().count() == 1,
                "{found}"
            );
        }
        assert!(lab.log("server").contains(&name), "the greeting names the node");
        if start == "first" {
            lab.interrupt("server");
            lab.start_server_with("server", &flags);
            until("the API is ready", || {
                kubectl.try_run(&["get", "--raw", "/readyz"]).is_ok()
            });
        }
    }
    lab.stop();
}
