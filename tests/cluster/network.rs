//! A server whose machine boots before its network, and gets another address later: it is found and trusted at each.

use std::fs;
use std::net::Ipv4Addr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tests::lab::{Kubectl, Lab, binary, until};
use tests::run;

const ENDPOINTS: &[&str] = &[
    "get",
    "endpoints",
    "kubernetes",
    "-o",
    "jsonpath={.subsets[*].addresses[*].ip}",
];

#[test]
fn a_server_that_boots_before_its_network_takes_the_address_when_it_comes_and_when_it_changes() {
    if !tests::in_own_namespaces(
        "network::a_server_that_boots_before_its_network_takes_the_address_when_it_comes_and_when_it_changes",
    ) {
        return;
    }
    let mut lab = Lab::new();
    lab.add_host_without_network("server");
    lab.add_host("box");
    lab.start_program(
        "server",
        &binary("k3s"),
        &["server", "--node-name", "server", "--token", "cluster-secret"],
    );
    until("the server works on its own", || {
        lab.log("server").contains("Ready after")
    });
    assert!(
        lab.log("server").contains("has no address in a network yet"),
        "and says how it stands"
    );

    lab.plug_in("server");
    is_reached_at_its_address(&lab);
    let token = fs::read_to_string(lab.node_token("server")).unwrap();
    let url = lab.url("server");
    let join = ["--server", &url, "--token", token.trim(), "--node-name", "box"];
    lab.start_program("box", &binary("k3s-agent"), &join);
    let kubectl = Kubectl::of(&lab, "server");
    for name in ["server", "box"] {
        until(&format!("{name} is ready"), || is_ready(&kubectl, name));
    }

    // A second address of the machine, which nobody named: the first client that comes to it finds it in the certificate.
    run("ip", &["-n", "server", "addr", "add", "10.99.0.88/24", "dev", "eth0"]);
    kubectl.run(&["--server", "https://10.99.0.88:6443", "get", "--raw", "/readyz"]);

    let first = lab.address("server");
    lab.readdress("server", "10.99.0.77");
    is_reached_at_its_address(&lab);
    let log = lab.log("server");
    assert!(
        log.contains(&first) && log.contains("reached at another address now"),
        "{log}"
    );
    lab.stop();
}

fn is_ready(kubectl: &Kubectl, node: &str) -> bool {
    let condition = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    kubectl.try_run(&["get", "node", node, "-o", condition]) == Ok("True".to_owned())
}

/// From another machine, with a certificate for the address; and so say endpoints and node.
fn is_reached_at_its_address(lab: &Lab) {
    let (kubectl, address) = (Kubectl::of(lab, "server"), lab.address("server"));
    until("the API is ready at the address", || {
        kubectl.try_run(&["get", "--raw", "/readyz"]).is_ok()
    });
    until("the endpoints name the address", || {
        kubectl.try_run(ENDPOINTS) == Ok(address.clone())
    });
    let internal =
        "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address} {.metadata.annotations.k3s\\.io/internal-ip}";
    until("the node has the address", || {
        kubectl.try_run(&["get", "node", "server", "-o", internal]) == Ok(format!("{address} {address}"))
    });
    let certificate = lab.file("server", "lib/k3s/agent/serving-kubelet.crt");
    let address: Ipv4Addr = address.parse().unwrap();
    until("the kubelet's certificate carries the address", || {
        let pem = fs::read_to_string(&certificate).unwrap();
        let leaf = pem
            .lines()
            .skip(1)
            .take_while(|line| !line.starts_with('-'))
            .collect::<String>();
        // An address among the alternative names: its tag, its length, its bytes.
        let name = [&[0x87, 4], address.octets().as_slice()].concat();
        STANDARD
            .decode(leaf)
            .unwrap()
            .windows(name.len())
            .any(|bytes| bytes == name)
    });
}
