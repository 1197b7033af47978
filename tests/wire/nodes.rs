//! What ends a credential: its node is deleted (3.4), another token is made (1.7).

use rcgen::KeyPair;
use serde_json::json;

use crate::http::{Answer, Certificate};
use crate::server::{AGENT_TOKEN, Server, TOKEN, basic, csr, node_headers};

/// A certificate counts for more certificates as long as its node is there; a token does always.
pub fn a_deleted_nodes_certificate_renews_nothing(server: &Server) {
    let held = server.joined("gone");
    let renewal = |by: Option<&Certificate>, field: &str| {
        let head = format!(
            "POST /v1-k3s/client-kubelet.crt HTTP/1.1\nHost: k3s\n{field}\n{}",
            node_headers("gone")
        );
        server.open(by).ask(&head, &csr(&KeyPair::generate().unwrap()))
    };
    let refused = |answer: &Answer| {
        assert_eq!(answer.code(), 401, "{answer:?}");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with("unable to verify node identity: "), "{message}");
    };
    refused(&renewal(Some(&held), "X-None: 1"));
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "gone" } }).to_string();
    let admin = server.own("client-admin");
    let head = "POST /api/v1/nodes HTTP/1.1\nHost: k3s\nContent-Type: application/json";
    assert_eq!(server.open(Some(&admin)).ask(head, node.as_bytes()).code(), 201);
    let renewed = renewal(Some(&held), "X-None: 1");
    assert_eq!(renewed.code(), 200, "{renewed:?}");
    let head = "DELETE /api/v1/nodes/gone HTTP/1.1\nHost: k3s";
    assert_eq!(server.open(Some(&admin)).ask(head, b"").code(), 200);
    refused(&renewal(Some(&held), "X-None: 1"));
    assert_eq!(renewal(None, &basic("node", AGENT_TOKEN)).code(), 200);
}

/// `PUT` with the new token; nothing is answered but that it is done. The agents' own stays.
pub fn another_token_takes_the_old_ones_place(server: &Server) {
    let other = "wire-other-secret";
    let head = format!("PUT /v1-k3s/token HTTP/1.1\nHost: k3s\n{}", basic("server", TOKEN));
    let body = json!({ "newToken": other }).to_string();
    let answer = server.open(None).ask(&head, body.as_bytes());
    assert_eq!((answer.code(), answer.text()), (200, ""), "{answer:?}");
    for (user, password, code) in [
        ("server", TOKEN, 401),
        ("server", other, 200),
        ("node", AGENT_TOKEN, 200),
    ] {
        let answer = server.get("/v1-k3s/config", &basic(user, password));
        assert_eq!(answer.code(), code, "{user}:{password}");
    }
    assert!(server.file("token").ends_with(&format!("::server:{other}\n")));
}
