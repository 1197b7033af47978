//! Who may join, and what each refusal says.

use agent::join::JoinError;
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::KeyPair;
use serde_json::{Value, json};
use server::request::What;

use crate::rig::*;

#[tokio::test(flavor = "multi_thread")]
async fn anyone_may_learn_whom_to_trust_and_nothing_else() {
    let cluster = Cluster::start("anyone").await;
    let reply = cluster.get("/cacerts", None).await;
    assert_eq!(
        (reply.code, reply.body),
        (200, cluster.file("tls/server-ca.crt")),
        "byte for byte"
    );
    assert_eq!(cluster.get("/ping", None).await.body, "pong");
    for path in [
        "config",
        "apiservers",
        "readyz",
        "client-ca.crt",
        "client-kubelet.crt",
        "connect",
        "nonsense",
    ] {
        let reply = cluster.get(&format!("/v1-k3s/{path}"), None).await;
        assert_eq!(reply.code, 403, "{path}: {reply:?}");
        assert!(
            reply.message().contains("neither a token nor a client certificate"),
            "{path}"
        );
    }
    cluster.stop().await;
}

/// hyper ends a stream on which a body follows the answer to HEAD.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_with_head_has_its_headers_and_no_body_over_http_2_too() {
    let cluster = Cluster::start("head").await;
    std::fs::create_dir_all(cluster.dir.join("server/static")).unwrap();
    std::fs::write(cluster.dir.join("server/static/x.tgz"), "a chart").unwrap();
    let ca = cluster.file("tls/server-ca.crt").len();
    let tls = cluster.connect(None, b"h2").await;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    let asking = async move {
        for (path, length) in [("/ping", 4), ("/cacerts", ca), ("/static/x.tgz", 7)] {
            for (method, sent) in [(Method::HEAD, 0), (Method::GET, length)] {
                let mut request = request(method.clone(), path, None, &[], b"");
                *request.uri_mut() = format!("https://server{path}").parse().unwrap();
                request.headers_mut().remove("host");
                let answer = sender.send_request(request).await.unwrap();
                assert_eq!(answer.status(), 200, "{method} {path}");
                assert_eq!(
                    answer.headers()["content-length"],
                    length.to_string(),
                    "{method} {path}"
                );
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body.len(), sent, "{method} {path}");
            }
        }
    };
    let (_, ended) = tokio::join!(asking, connection);
    ended.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_refused_with_the_place_of_the_right_one() {
    let cluster = Cluster::start("token").await;
    for authorization in [
        basic("node", "wrong"),
        basic("server", ""),
        basic("admin", "secret"),
        "Basic !".to_owned(),
        "Bearer abcdef.0123456789abcdef".to_owned(),
        "Digest x".to_owned(),
    ] {
        let reply = cluster.get("/v1-k3s/config", Some(&authorization)).await;
        assert_eq!(reply.code, 401, "{authorization}");
        assert!(reply.message().contains("server/node-token"), "{reply:?}");
    }
    let reply = cluster.get("/v1-k3s/config", Some(&basic("node", "secret"))).await;
    let settings: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(
        settings["ClusterIPRange"],
        json!({ "IP": "10.42.0.0", "Mask": "//8AAA==" })
    );
    assert_eq!(settings["HTTPSPort"], cluster.server().address.port());
    assert_eq!(
        cluster.get("/v1-k3s/readyz", Some(&basic("node", "secret"))).await.body,
        "ok"
    );
    let servers = cluster.get("/v1-k3s/apiservers", Some(&basic("node", "secret"))).await;
    let servers: Vec<String> = serde_json::from_str(&servers.body).unwrap();
    assert_eq!(servers, [cluster.server().advertised().to_string()]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_no_tunnel_and_a_certificate_does() {
    let cluster = Cluster::start("tunnel").await;
    let handshake = |authorization: Option<&str>| {
        let headers = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        request(Method::GET, "/v1-k3s/connect", authorization, &headers, b"")
    };
    let token = basic("node", "secret");
    let reply = cluster.send(handshake(Some(&token)), None).await;
    assert_eq!(reply.code, 403, "{reply:?}");
    let node = cluster.joined("pi").await;
    assert_eq!(cluster.send(handshake(None), Some(&node)).await.code, 101);
    let plain = request(Method::GET, "/v1-k3s/connect", None, &[], b"");
    assert_eq!(cluster.send(plain, Some(&node)).await.code, 400);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_certificate_counts_while_its_node_exists_and_for_itself_only() {
    let cluster = Cluster::start("identity").await;
    let pi = cluster.joined("pi").await;
    let key = KeyPair::generate().unwrap();
    let renew = |node: &str| cluster.certificate_request(node, PASSWORD, None, &key);
    let reply = cluster.send(renew("pi"), Some(&pi)).await;
    assert_eq!(reply.code, 401, "no Node yet: {reply:?}");
    cluster.register("pi").await;
    assert_eq!(cluster.send(renew("pi"), Some(&pi)).await.code, 200);
    let reply = cluster.send(renew("other"), Some(&pi)).await;
    assert_eq!(reply.code, 400, "{reply:?}");
    assert!(reply.message().contains("does not match"));
    cluster.delete(What::NODES, "", "pi").await;
    let reply = cluster.send(renew("pi"), Some(&pi)).await;
    assert_eq!(reply.code, 401);
    assert!(reply.message().contains("join again with a token"), "{reply:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_named_and_harms_nothing() {
    let cluster = Cluster::start("bad").await;
    let token = basic("node", "secret");
    let path = "/v1-k3s/serving-kubelet.crt";
    let name = ("k3s-Node-Name", "pi");
    let password = ("k3s-Node-Password", PASSWORD);
    let large = vec![0x30; 100_000];
    for (headers, body, code, hint) in [
        (vec![password], &b""[..], 400, "node name not set"),
        (vec![name], b"", 400, "node password not set"),
        (vec![("k3s-Node-Name", "Not_A_Name"), password], b"", 400, "--node-name"),
        (
            vec![name, password, ("k3s-Node-IP", "10.0.0.300")],
            b"",
            500,
            "10.0.0.300",
        ),
        (vec![name, password], &large, 400, "cannot read the request"),
    ] {
        let reply = cluster
            .send(request(Method::POST, path, Some(&token), &headers, body), None)
            .await;
        assert_eq!(reply.code, code, "{hint}: {reply:?}");
        assert!(reply.message().contains(hint), "{hint}: {reply:?}");
    }
    let reply = cluster
        .send(request(Method::DELETE, path, Some(&token), &[], b""), None)
        .await;
    assert_eq!(reply.code, 405);
    let reply = cluster.get("/v1-k3s/nonsense", Some(&token)).await;
    assert_eq!(reply.code, 404);
    let old = request(Method::GET, path, Some(&token), &[name, password], b"");
    let reply = cluster.send(old, None).await;
    assert_eq!(reply.code, 200);
    assert!(
        reply.body.contains("PRIVATE KEY"),
        "an old agent gets a key with its certificate"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_joins_with_any_right_token_and_names_what_is_wrong_with_others() {
    let cluster = Cluster::start("agent").await;
    let full = cluster.file("node-token").trim().to_owned();
    let (pinned, _) = full.split_once("::").unwrap();
    for (machine, token) in [
        ("bare", "secret".to_owned()),
        ("node-token", full.clone()),
        ("as-node", format!("{pinned}::node:secret")),
    ] {
        let joined = agent_joins(&cluster, machine, machine, &token).await;
        let joined = joined.unwrap_or_else(|error| panic!("{machine}: {error}"));
        assert_eq!(joined.cluster.cluster_domain, "cluster.local");
    }
    let other_cluster = format!("K10{}::server:secret", "0".repeat(64));
    for (machine, token, hint) in [
        (
            "wrong-hash",
            other_cluster,
            "token CA hash does not match the Cluster CA",
        ),
        ("wrong-token", format!("{pinned}::server:wrong"), "server/node-token"),
        ("no-token", "K10abc".to_owned(), "cannot be used"),
    ] {
        let error = agent_joins(&cluster, machine, machine, &token).await.err().unwrap();
        assert!(error.to_string().contains(hint), "{machine}: {error}");
    }
    let error = agent_joins(&cluster, "bare", "another-machine", &full)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, JoinError::Password(_)), "{error}");
    assert!(error.to_string().contains("kubectl delete node bare"), "{error}");
    cluster.stop().await;
}
