//! Bootstrap tokens: who carries one as bearer is what an agent with a password is, on every route (1.5, 1.6).

use serde_json::json;
use tests::lab::until;

use crate::routes::WHO_MAY;
use crate::server::{Server, basic, node_headers};

const ID: &str = "abcdef";
const SECRET: &str = "0123456789abcdef";

/// Puts the token into the cluster as kubeadm and `k3s token create` do.
fn create(server: &Server) {
    let body = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": { "name": format!("bootstrap-token-{ID}"), "namespace": "kube-system" },
        "stringData": {
            "token-id": ID, "token-secret": SECRET, "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:k3s:default-node-token",
        },
    });
    let head = "POST /api/v1/namespaces/kube-system/secrets HTTP/1.1\nHost: k3s\nContent-Type: application/json";
    let admin = server.own("client-admin");
    let answer = server.open(Some(&admin)).ask(head, body.to_string().as_bytes());
    assert_eq!(answer.code(), 201, "{answer:?}");
}

/// As bearer it opens what the agents' token opens; as a password, and with another secret, it is a wrong one.
pub fn a_bootstrap_token_is_good_as_bearer_and_as_nothing_else(server: &Server) {
    create(server);
    let bearer = format!("Authorization: Bearer {ID}.{SECRET}");
    until("the token counts", || {
        server.get("/v1-k3s/config", &bearer).code() == 200
    });
    for (method, path, codes) in WHO_MAY {
        for (field, code) in [
            (bearer.clone(), codes[2]),
            (bearer.replace("Bearer", "bearer"), codes[2]),
            (format!("{bearer}0"), codes[1]),
            (format!("Authorization: Bearer {ID}.fedcba9876543210"), codes[1]),
            (format!("Authorization: Bearer fedcba.{SECRET}"), codes[1]),
            (basic(ID, SECRET), codes[1]),
            (basic("node", &format!("{ID}.{SECRET}")), codes[1]),
            (basic(&format!("{ID}.{SECRET}"), ""), codes[1]),
        ] {
            let answer = server
                .open(None)
                .ask(&format!("{method} {path} HTTP/1.1\nHost: k3s\n{field}"), b"");
            assert_eq!(answer.code(), code, "{method} {path} with {field}: {answer:?}");
            assert!(!answer.head.contains(SECRET) && !String::from_utf8_lossy(&answer.body).contains(SECRET));
        }
    }
    let head = format!(
        "POST /v1-k3s/client-kubelet.crt HTTP/1.1\nHost: k3s\n{bearer}\n{}",
        node_headers("bearer")
    );
    let answer = server
        .open(None)
        .ask(&head, &crate::server::csr(&rcgen::KeyPair::generate().unwrap()));
    assert_eq!(answer.code(), 200, "{answer:?}");
    // The API knows it by its id, and lets it do little.
    let answer = server.get("/api/v1/nodes", &bearer);
    assert_eq!(answer.code(), 403, "{answer:?}");
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&format!("system:bootstrap:{ID}")), "{message}");
}
