//! What the certificates that every agent has signed may do at the API (7.5, 13.12), and who may what between servers.

use serde_json::json;

use crate::http::Certificate;
use crate::routes::callers;
use crate::server::{Server, TOKEN, basic, node_headers};

/// Path, and what kube-proxy and k3s-controller get.
const MAY_READ: &[(&str, u16, u16)] = &[
    ("/api/v1/nodes", 200, 200),
    ("/api/v1/nodes/rights", 200, 200),
    ("/api/v1/services", 200, 200),
    ("/api/v1/endpoints", 200, 200),
    ("/api/v1/namespaces/default/endpoints", 200, 200),
    ("/apis/discovery.k8s.io/v1/endpointslices", 200, 200),
    ("/api/v1/namespaces", 403, 200),
    ("/api/v1/pods", 403, 200),
    ("/apis/networking.k8s.io/v1/networkpolicies", 403, 200),
    ("/api/v1/secrets", 403, 403),
    ("/api/v1/namespaces/kube-system/secrets", 403, 403),
    ("/api/v1/configmaps", 403, 403),
    ("/apis/apps/v1/deployments", 403, 403),
];

pub fn agents_certificates_open_what_k3s_gives_them(server: &Server) {
    let admin = server.own("client-admin");
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "rights" } }).to_string();
    let post = |path: &str| format!("POST {path} HTTP/1.1\nHost: k3s\nContent-Type: application/json");
    let made = server.open(Some(&admin)).ask(&post("/api/v1/nodes"), node.as_bytes());
    assert_eq!(made.code(), 201, "{made:?}");
    let proxy = server.signed("client-kube-proxy.crt", "");
    let controller = server.signed("client-k3s-controller.crt", "");
    for (path, by_proxy, by_controller) in MAY_READ {
        for (certificate, code, name) in [
            (&proxy, by_proxy, "kube-proxy"),
            (&controller, by_controller, "k3s-controller"),
        ] {
            let answer = server
                .open(Some(certificate))
                .ask(&format!("GET {path} HTTP/1.1\nHost: k3s"), b"");
            assert_eq!(answer.code(), *code, "{path} by {name}: {answer:?}");
        }
    }
    for certificate in [&proxy, &controller] {
        let head = "DELETE /api/v1/nodes/rights HTTP/1.1\nHost: k3s";
        assert_eq!(server.open(Some(certificate)).ask(head, b"").code(), 403);
        let answer = server
            .open(Some(certificate))
            .ask(&post("/api/v1/nodes"), node.as_bytes());
        assert_eq!(answer.code(), 403, "{answer:?}");
    }
    // What K3s' agents ask before they watch.
    let review = |resource: &str| {
        let attributes = json!({ "namespace": "default", "verb": "list", "resource": resource });
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": attributes },
        });
        let head = post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews");
        let answer = server.open(Some(&controller)).ask(&head, review.to_string().as_bytes());
        assert_eq!(answer.code(), 201, "{answer:?}");
        answer.json()["status"]["allowed"].clone()
    };
    assert_eq!((review("endpoints"), review("secrets")), (json!(true), json!(false)));
    let gone = server
        .open(Some(&admin))
        .ask("DELETE /api/v1/nodes/rights HTTP/1.1\nHost: k3s", b"");
    assert_eq!(gone.code(), 200, "{gone:?}");
}

/// By a server's certificate, and by nothing else: no password opens these, nor an administrator's certificate.
pub fn what_is_between_servers_is_for_servers(server: &Server) {
    let supervisor = server.own("client-supervisor");
    let paths = ["/v1-k3s/peer/dial?node=pi&port=10250", "/v1-k3s/peer/revisions"];
    for path in paths {
        let head = |field: &str| format!("GET {path} HTTP/1.1\nHost: k3s\nUpgrade: amphipod-bytes\n{field}");
        for (name, field, certificate) in callers(server) {
            let answer = server.open(certificate.as_ref()).ask(&head(&field), b"");
            assert_eq!(answer.code(), 403, "{path} by {name}: {answer:?}");
        }
        let plain = format!("GET {path} HTTP/1.1\nHost: k3s");
        assert_eq!(server.open(Some(&supervisor)).ask(&plain, b"").code(), 400, "{path}");
        let posted = server.open(Some(&supervisor)).ask(&plain.replace("GET", "POST"), b"");
        assert_eq!(posted.code(), 405, "{path}");
    }
    // No such node has a tunnel; what is told of commits is listened to.
    for (path, code) in paths.into_iter().zip([404, 101]) {
        let mut wire = server.open(Some(&supervisor));
        wire.say(&crate::http::request(
            &format!("GET {path} HTTP/1.1\nHost: k3s\nConnection: Upgrade\nUpgrade: amphipod-bytes"),
            b"",
        ));
        assert_eq!(wire.hear(code == 101).code(), code, "{path}");
    }
}

/// What is no token changes none (1.7).
pub fn a_token_that_cannot_be_read_changes_nothing(server: &Server) {
    let before = server.file("token");
    for body in ["", "nonsense", "[]", r#"{"newToken":7}"#] {
        let head = format!("PUT /v1-k3s/token HTTP/1.1\nHost: k3s\n{}", basic("server", TOKEN));
        let answer = server.open(None).ask(&head, body.as_bytes());
        assert_eq!(answer.code(), 400, "{body}: {answer:?}");
    }
    assert_eq!(server.file("token"), before);
    // A tunnel is asked for by GET.
    let kubelet: Certificate = server.signed("client-kubelet.crt", &node_headers("pi"));
    let answer = server
        .open(Some(&kubelet))
        .ask("POST /v1-k3s/connect HTTP/1.1\nHost: k3s", b"");
    assert_eq!(answer.code(), 405, "{answer:?}");
}
