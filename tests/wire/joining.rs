//! What our agent sends while it joins, as bytes, and what it makes of the answers (sections 1 to 3 of K3s' protocol).

use std::fs;
use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent::balancer::{Balancer, Servers};
use agent::join::JoinError;
use agent::tunnel::Tunnels;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::CertificateSigningRequestParams;

use crate::played::{CONFIG, Heard, Machine, PATIENCE, Played};
use crate::server::PASSWORD;

/// The whole head of each request of a join, in their order; `authorization`: of those that carry a credential.
fn expected(host: SocketAddr, authorization: &str) -> Vec<String> {
    let get = |path: &str, credential: &str| format!("GET {path} HTTP/1.1\r\nhost: {host}{credential}");
    let credential = format!("\r\nauthorization: {authorization}");
    let post = |route: &str, headers: &str| {
        format!("POST /v1-k3s/{route} HTTP/1.1\r\nhost: {host}{headers}{credential}\r\ncontent-length: N")
    };
    // K3s leaves the external address out of the second; servers put none into client certificates.
    let node = format!(
        "\r\nk3s-node-name: pi\r\nk3s-node-password: {PASSWORD}\r\nk3s-node-ip: 192.0.2.9,2001:db8::9,198.51.100.9"
    );
    vec![
        // With anybody's certificate, then with one of what the first brought; K3s asks the system's authorities before.
        get("/cacerts", ""),
        get("/cacerts", ""),
        get("/v1-k3s/config", &credential),
        get("/v1-k3s/client-ca.crt", &credential),
        get("/v1-k3s/server-ca.crt", &credential),
        post("serving-kubelet.crt", &node),
        post("client-kubelet.crt", &node),
        post("client-kube-proxy.crt", ""),
        post("client-k3s-controller.crt", ""),
    ]
}

/// A join by password, one by bootstrap token, and one at a server that keeps no connection.
pub async fn a_join_is_these_requests() {
    let played = Played::start();
    let password = format!("Basic {}", STANDARD.encode("node:secret"));
    for (credential, authorization, hangs_up) in [
        // Whatever name the token has, agents are `node`.
        ("server:secret", password.as_str(), false),
        ("abcdef.0123456789abcdef", "Bearer abcdef.0123456789abcdef", false),
        ("server:secret", password.as_str(), true),
    ] {
        played.hangs_up.store(hangs_up, Ordering::SeqCst);
        let machine = Machine::new(&played, Some(played.token(credential)));
        machine.joins().await.unwrap();
        let heard = played.all();
        let heads: Vec<String> = heard.iter().map(without_length).collect();
        assert_eq!(heads, expected(played.address, authorization));
        assert!(heard.iter().all(|heard| !heard.certified));
        // One for each idea of whom to trust, and one for all that is asked with the credential.
        let first = heard[0].connection;
        let connections: Vec<usize> = heard.iter().map(|heard| heard.connection - first).collect();
        match hangs_up {
            false => assert_eq!(connections, [0, 1, 2, 2, 2, 2, 2, 2, 2]),
            true => assert_eq!(connections, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        }
        for heard in &heard {
            assert_eq!(heard.body.is_empty(), heard.line().starts_with("GET"), "{heard:?}");
        }
        for heard in heard.iter().filter(|heard| !heard.body.is_empty()) {
            // PKCS #10 in DER, of version 0 and with an empty subject.
            let request = CertificateSigningRequestParams::from_der(&heard.body.clone().into()).unwrap();
            assert_eq!(request.params.distinguished_name.iter().count(), 0);
            assert_eq!(heard.body[0], 0x30);
        }
        files_are_where_k3s_has_them(&machine, &played);
    }
}

/// What a join leaves on the disk (2.6): names, modes, and the kubeconfigs whole.
fn files_are_where_k3s_has_them(machine: &Machine, played: &Played) {
    let mode = |name: &str| fs::metadata(machine.path(name)).unwrap().permissions().mode() & 0o7777;
    let text = |name: &str| fs::read_to_string(machine.path(name)).unwrap();
    assert_eq!(mode("agent"), 0o700);
    assert_eq!(
        (mode("etc/password"), text("etc/password")),
        (0o600, format!("{PASSWORD}\n"))
    );
    for (name, begins) in [
        ("client-ca.crt", "-----BEGIN CERTIFICATE-----\n"),
        ("server-ca.crt", "-----BEGIN CERTIFICATE-----\n"),
        ("client-kubelet.crt", "-----BEGIN CERTIFICATE-----\n"),
        ("client-kubelet.key", "-----BEGIN EC PRIVATE KEY-----\n"),
        ("serving-kubelet.crt", "-----BEGIN CERTIFICATE-----\n"),
        ("serving-kubelet.key", "-----BEGIN EC PRIVATE KEY-----\n"),
        ("client-kube-proxy.crt", "-----BEGIN CERTIFICATE-----\n"),
        ("client-kube-proxy.key", "-----BEGIN EC PRIVATE KEY-----\n"),
        ("client-k3s-controller.crt", "-----BEGIN CERTIFICATE-----\n"),
        ("client-k3s-controller.key", "-----BEGIN EC PRIVATE KEY-----\n"),
        ("kubelet.kubeconfig", "apiVersion: v1\n"),
        ("kubeproxy.kubeconfig", "apiVersion: v1\n"),
        ("k3scontroller.kubeconfig", "apiVersion: v1\n"),
    ] {
        let name = format!("agent/{name}");
        assert_eq!(mode(&name), 0o600, "{name}");
        assert!(text(&name).starts_with(begins), "{name}");
    }
    for (name, certificate) in [
        ("kubelet", "client-kubelet"),
        ("kubeproxy", "client-kube-proxy"),
        ("k3scontroller", "client-k3s-controller"),
    ] {
        let (folder, server) = (machine.path("agent"), &played.address);
        let folder = folder.display();
        let wanted = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: local\n  cluster:\n    server: https://{server}\n    \
             certificate-authority: {folder}/server-ca.crt\nusers:\n- name: user\n  user:\n    \
             client-certificate: {folder}/{certificate}.crt\n    client-key: {folder}/{certificate}.key\ncontexts:\n\
             - name: Default\n  context:\n    cluster: local\n    namespace: default\n    user: user\n\
             current-context: Default\n"
        );
        assert_eq!(text(&format!("agent/{name}.kubeconfig")), wanted);
    }
}

/// The head, with the length of the body as `N`.
fn without_length(heard: &Heard) -> String {
    let length = format!("content-length: {}", heard.body.len());
    heard.head.replace(&length, "content-length: N")
}

/// What follows a join: the tunnel, with the kubelet's certificate and no token; and the list of servers.
pub async fn a_tunnel_is_asked_for_with_the_kubelets_certificate() {
    let played = Played::start();
    let machine = Machine::new(&played, Some(played.token("node:secret")));
    let joined = machine.joins().await.unwrap();
    played.all();
    let tunnels = Tunnels {
        client: joined.client.clone(),
        balancer: Balancer::new(&machine.config.server.authority(), &[], 1).into(),
        kubelet_port: 10250,
        supervisor_port: None,
    };
    played.answers("/v1-k3s/connect", "401 Unauthorized", "{}");
    let mut refusals = joined.client.refusals();
    let (full, told) = (AtomicBool::new(true), AtomicBool::new(false));
    let found = |servers: &Servers| -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
        assert_eq!(servers.supervisor, [played.address.to_string()]);
        assert_eq!(servers.api, servers.supervisor);
        if full.swap(false, Ordering::Relaxed) {
            return Box::pin(ready(Err(io::ErrorKind::StorageFull.into())));
        }
        told.store(true, Ordering::Relaxed);
        Box::pin(ready(Ok(())))
    };
    let seen = async {
        // Answered with 401, it says that its certificate is refused.
        refusals.changed().await.unwrap();
        while !told.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, tunnels.run(|| 0.5, found, seen))
        .await
        .unwrap();
    let (mut connect, mut servers) = (None, None);
    while connect.is_none() || servers.is_none() {
        let heard = played.next();
        assert!(heard.certified && heard.body.is_empty(), "{heard:?}");
        assert!(!heard.head.to_ascii_lowercase().contains("authorization"), "{heard:?}");
        match heard.line() {
            "GET /v1-k3s/connect HTTP/1.1" => connect = Some(heard),
            "GET /v1-k3s/apiservers HTTP/1.1" => servers = Some(heard),
            other => panic!("{other}"),
        }
    }
    let head = connect.unwrap().head;
    let (rest, key) = head.rsplit_once("\r\nSec-WebSocket-Key: ").unwrap();
    let host = played.address;
    assert_eq!(
        rest,
        format!(
            "GET /v1-k3s/connect HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
        )
    );
    assert_eq!(STANDARD.decode(key.trim()).unwrap().len(), 16);
}

/// What the agent makes of a refusal (2.5), with Kubernetes' `Status` and with old servers' plain text.
pub async fn refusals_are_told_apart() {
    let played = Played::start();
    let status = |message: &str| format!(r#"{{"kind":"Status","apiVersion":"v1","message":"{message}"}}"#);
    let mismatch: &'static str = status("unable to verify password for node pi: hash does not match").leak();
    let (config, kubelet) = (CONFIG, "/v1-k3s/client-kubelet.crt");
    for (path, line, body, is) in [
        (config, "401 Unauthorized", "not authorized", "Token"),
        (config, "403 Forbidden", "forbidden", "Forbidden"),
        (config, "404 Not Found", "404 page not found", "Odd"),
        (config, "429 Too Many Requests", "", "NotReady(\"429"),
        (config, "503 Service Unavailable", "starting", "NotReady"),
        (config, "200 OK", "no JSON", "Odd"),
        (kubelet, "400 Bad Request", "node name not set", "Node"),
        (kubelet, "401 Unauthorized", "unable to verify node identity", "Token"),
        (kubelet, "403 Forbidden", mismatch, "Password"),
        (
            kubelet,
            "405 Method Not Allowed",
            "",
            "Odd { path: \"/v1-k3s/client-kubelet.crt\", reason: \"405",
        ),
        (
            kubelet,
            "500 Internal Server Error",
            "supervisor error ID 12345",
            "NotReady",
        ),
        (kubelet, "503 Service Unavailable", "", "NotReady(\"503"),
    ] {
        let machine = Machine::new(&played, Some(played.token("node:secret")));
        played.answers(path, line, body);
        let error = machine.joins().await.err().unwrap();
        let debug = format!("{error:?}");
        assert!(debug.starts_with(is), "{path} {line}: {debug}");
        assert!(
            error.to_string().contains(body) || body == mismatch || line == "200 OK",
            "{error}"
        );
        // Who says nothing is told by the number.
        let number = line.split(' ').next().unwrap();
        assert!(!body.is_empty() || error.to_string().contains(number), "{error}");
        let last = played.all().pop().unwrap();
        assert!(last.line().contains(path), "it stops there: {last:?}");
    }
    // Joined once, it comes back without a token by its certificate; refused, it says what is missing.
    let mut machine = Machine::new(&played, Some(played.token("node:secret")));
    played.answers("/none", "200 OK", "");
    machine.joins().await.unwrap();
    played.all();
    machine.config.token = None;
    machine.joins().await.unwrap();
    let heard = played.all();
    let config = heard.iter().find(|heard| heard.line().contains("/config")).unwrap();
    let host = played.address;
    assert_eq!(config.head, format!("GET /v1-k3s/config HTTP/1.1\r\nhost: {host}"));
    assert!(config.certified, "{config:?}");
    played.answers(CONFIG, "401 Unauthorized", "not authorized");
    let error = machine.joins().await.err().unwrap();
    assert!(matches!(error, JoinError::Certificate(_)), "{error:?}");
    assert!(error.to_string().contains("--token"), "{error}");
}
