//! The supervisor's routes: who may, by which method, and what the answer looks like (K3s v1.36 `pkg/server/handlers`).

use std::fs;

use rcgen::KeyPair;
use serde_json::json;

use crate::http::{Answer, Certificate};
use crate::server::{AGENT_TOKEN, Server, TOKEN, basic, csr, node_headers};

/// Whom a request says it is from, in the order of the columns below.
const CALLERS: [&str; 7] = [
    "nobody",
    "a wrong password",
    "the agent token",
    "the server token",
    "a kubelet's certificate",
    "kube-proxy's certificate",
    "the administrator's certificate",
];

/// A line of a table: method, path, and what each caller gets.
pub type Row = (&'static str, &'static str, [u16; 7]);

pub const WHO_MAY: &[Row] = &[
    ("GET", "/cacerts", [200; 7]),
    ("GET", "/ping", [200; 7]),
    ("GET", "/static/charts/x.tgz", [200; 7]),
    ("GET", "/static/none", [404; 7]),
    ("GET", "/v1-k3s/config", [403, 401, 200, 200, 200, 403, 403]),
    ("GET", "/v1-k3s/apiservers", [403, 401, 200, 200, 200, 403, 403]),
    ("GET", "/v1-k3s/readyz", [403, 401, 200, 200, 200, 403, 403]),
    ("GET", "/v1-k3s/client-ca.crt", [403, 401, 200, 200, 200, 403, 403]),
    ("GET", "/v1-k3s/server-ca.crt", [403, 401, 200, 200, 200, 403, 403]),
    (
        "GET",
        "/v1-k3s/client-kube-proxy.crt",
        [403, 401, 200, 200, 200, 403, 403],
    ),
    (
        "POST",
        "/v1-k3s/client-kube-proxy.crt",
        [403, 401, 200, 200, 200, 403, 403],
    ),
    (
        "GET",
        "/v1-k3s/client-k3s-controller.crt",
        [403, 401, 200, 200, 200, 403, 403],
    ),
    (
        "POST",
        "/v1-k3s/client-k3s-controller.crt",
        [403, 401, 200, 200, 200, 403, 403],
    ),
    // Without the headers that name the node.
    (
        "GET",
        "/v1-k3s/serving-kubelet.crt",
        [403, 401, 400, 400, 400, 403, 403],
    ),
    (
        "POST",
        "/v1-k3s/serving-kubelet.crt",
        [403, 401, 400, 400, 400, 403, 403],
    ),
    ("GET", "/v1-k3s/client-kubelet.crt", [403, 401, 400, 400, 400, 403, 403]),
    (
        "POST",
        "/v1-k3s/client-kubelet.crt",
        [403, 401, 400, 400, 400, 403, 403],
    ),
    // Without a websocket handshake.
    ("GET", "/v1-k3s/connect", [403, 401, 403, 403, 400, 403, 403]),
    ("GET", "/v1-k3s/token", [403, 401, 403, 405, 403, 403, 403]),
    // With nothing in it.
    ("PUT", "/v1-k3s/token", [403, 401, 403, 400, 403, 403, 403]),
    ("GET", "/v1-k3s/server-bootstrap", [403, 401, 403, 400, 403, 403, 403]),
    ("GET", "/v1-k3s/encrypt/status", [403, 401, 403, 200, 403, 403, 403]),
    ("GET", "/v1-k3s/encrypt/config", [403, 401, 403, 405, 403, 403, 403]),
    ("PUT", "/v1-k3s/encrypt/config", [403, 401, 403, 400, 403, 403, 403]),
    ("GET", "/v1-k3s/cert/cacerts", [403, 401, 403, 405, 403, 403, 403]),
    // Differs: K3s takes other authorities.
    ("PUT", "/v1-k3s/cert/cacerts", [403, 401, 403, 405, 403, 403, 403]),
    // Differs: K3s carries an administrator's bytes.
    ("CONNECT", "node:10250", [403, 401, 403, 403, 403, 403, 405]),
    // Differs: K3s hands what it does not know to the API, which takes no password.
    ("GET", "/v1-k3s/nonsense", [403, 401, 404, 404, 404, 403, 403]),
];

/// Each caller by its name, with its header line and its certificate.
pub fn callers(server: &Server) -> Vec<(&'static str, String, Option<Certificate>)> {
    let by_header = [
        String::new(),
        basic("node", "wrong"),
        basic("node", AGENT_TOKEN),
        basic("server", TOKEN),
    ];
    let by_certificate = [
        server.joined("pi"),
        server.signed("client-kube-proxy.crt", ""),
        server.own("client-admin"),
    ];
    let by_header = by_header.into_iter().map(|field| (field, None));
    let by_certificate = by_certificate
        .into_iter()
        .map(|certificate| (String::new(), Some(certificate)));
    let all = CALLERS.into_iter().zip(by_header.chain(by_certificate));
    all.map(|(name, (field, certificate))| (name, field, certificate))
        .collect()
}

/// Who may use which route.
pub fn each_credential_opens_what_it_is_for(server: &Server) {
    fs::create_dir_all(server.path("static/charts")).unwrap();
    fs::write(server.path("static/charts/x.tgz"), "a chart").unwrap();
    let callers = callers(server);
    for (method, path, codes) in WHO_MAY {
        for ((name, field, certificate), code) in callers.iter().zip(codes) {
            let head = format!("{method} {path} HTTP/1.1\nHost: k3s\n{field}");
            let answer = server.open(certificate.as_ref()).ask(&head, b"");
            assert_eq!(answer.code(), *code, "{method} {path} by {name}: {answer:?}");
        }
    }
    agents_are_not_servers_and_passwords_are_compared(server);
    let kubelet = callers[4].2.as_ref().unwrap();
    a_wrong_password_beside_a_good_certificate_does_no_harm(server, kubelet);
}

fn agents_are_not_servers_and_passwords_are_compared(server: &Server) {
    for (user, password, code) in [
        ("server", AGENT_TOKEN, 401),
        ("node", TOKEN, 401),
        ("", TOKEN, 401),
        ("admin", TOKEN, 401),
        ("node", "", 401),
        ("server", TOKEN, 200),
    ] {
        let answer = server.get("/v1-k3s/config", &basic(user, password));
        assert_eq!(answer.code(), code, "{user}:{password}");
    }
}

/// K3s asks one authenticator after the other until one knows the caller.
fn a_wrong_password_beside_a_good_certificate_does_no_harm(server: &Server, kubelet: &Certificate) {
    let head = format!("GET /v1-k3s/config HTTP/1.1\nHost: k3s\n{}", basic("node", "wrong"));
    assert_eq!(server.open(Some(kubelet)).ask(&head, b"").code(), 200);
}

/// Methods that a route has, beyond those of the table above. K3s takes any method on most; what is refused here no agent uses.
pub fn each_method_is_taken_where_it_belongs(server: &Server) {
    let token = basic("server", TOKEN);
    for (methods, path, code) in [
        (&["HEAD"][..], "/cacerts", 200),
        (&["HEAD"], "/ping", 200),
        (&["HEAD"], "/v1-k3s/config", 200),
        (&["HEAD"], "/v1-k3s/server-ca.crt", 200),
        (&["HEAD"], "/v1-k3s/readyz", 200),
        (&["HEAD"], "/static/charts/x.tgz", 200),
        (&["POST", "PUT", "DELETE", "PATCH", "OPTIONS"], "/cacerts", 405),
        (&["POST", "PUT", "DELETE"], "/static/charts/x.tgz", 405),
        (&["POST", "PUT", "DELETE", "PATCH"], "/v1-k3s/config", 405),
        (&["POST"], "/v1-k3s/readyz", 405),
        (&["PUT", "DELETE", "PATCH", "HEAD"], "/v1-k3s/client-kubelet.crt", 405),
        (&["POST", "DELETE", "PATCH", "GET", "HEAD"], "/v1-k3s/token", 405),
    ] {
        for method in methods {
            let head = format!("{method} {path} HTTP/1.1\nHost: k3s\n{token}");
            let answer = server.open(None).ask(&head, b"");
            assert_eq!(answer.code(), code, "{method} {path}: {answer:?}");
        }
    }
}

/// The whole of each answer that is the same each time.
pub fn answers_are_these_bytes(server: &Server) {
    let (ca, client_ca) = (server.file("tls/server-ca.crt"), server.file("tls/client-ca.crt"));
    let agent = basic("node", AGENT_TOKEN);
    let known = [
        ("/cacerts", "", "text/plain", ca.as_str()),
        ("/ping", "", "text/plain", "pong"),
        ("/static/charts/x.tgz", "", "application/gzip", "a chart"),
        ("/v1-k3s/readyz", &agent, "text/plain", "ok"),
        ("/v1-k3s/server-ca.crt", &agent, "text/plain", &ca),
        ("/v1-k3s/client-ca.crt", &agent, "text/plain", &client_ca),
        (
            "/v1-k3s/apiservers",
            &agent,
            "application/json",
            r#"["127.0.0.1:6443"]"#,
        ),
        (
            "/v1-k3s/encrypt/status",
            &basic("server", TOKEN),
            "application/json",
            r#"{"stage":"","activekey":""}"#,
        ),
    ];
    for (path, fields, kind, body) in known {
        let answer = server.get(path, fields);
        let mut lines: Vec<&str> = answer.head.split("\r\n").collect();
        lines[1..].sort_unstable();
        let length = format!("content-length: {}", body.len());
        let kind = format!("content-type: {kind}");
        assert_eq!(lines, ["HTTP/1.1 200 OK", &length, &kind, "date: <now>"], "{path}");
        assert_eq!(answer.text(), body, "{path}");
    }
    settings_are_spelled_as_go_does(&server.get("/v1-k3s/config", &agent));
    certificates_come_with_their_authority(server);
}

/// What agents read (6.4), as Go writes it: these fields and no others.
fn settings_are_spelled_as_go_does(answer: &Answer) {
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let mut settings = answer.json();
    let psk = settings["IPSECPSK"].take();
    assert!(psk.as_str().is_some_and(|psk| psk.len() == 96), "{psk}");
    let expected = json!({
        "APIServerPort": 6444,
        "CipherSuites": [],
        "ClusterDNS": "10.43.0.10",
        "ClusterDNSs": ["10.43.0.10"],
        "ClusterDomain": "cluster.local",
        "ClusterIPRange": { "IP": "10.42.0.0", "Mask": "//8AAA==" },
        "ClusterIPRanges": [{ "IP": "10.42.0.0", "Mask": "//8AAA==" }],
        "DisableCCM": true,
        "DisableHelmController": true,
        "DisableKubeProxy": false,
        "DisableNPC": false,
        "DisableServiceLB": true,
        "EgressSelectorMode": "agent",
        "EmbeddedRegistry": false,
        "FlannelBackend": "vxlan",
        "FlannelExternalIP": false,
        "FlannelIPMasqDisableRandomFully": false,
        "FlannelIPv6Masq": false,
        "HTTPSPort": 6443,
        "IPSECPSK": null,
        "MinTLSVersion": "",
        "ServiceIPRange": { "IP": "10.43.0.0", "Mask": "//8AAA==" },
        "ServiceIPRanges": [{ "IP": "10.43.0.0", "Mask": "//8AAA==" }],
        "ServiceNodePortRange": { "Base": 30000, "Size": 2768 },
        "SupervisorMetrics": false,
        "SupervisorPort": 6443,
        "SystemDefaultRegistry": "",
    });
    assert_eq!(settings, expected);
    for secret in [TOKEN, AGENT_TOKEN] {
        assert!(!answer.text().contains(secret), "{settings}");
    }
}

/// Leaf and authority for whoever sends a request; the key too for whoever sends none, or by GET (2.4).
fn certificates_come_with_their_authority(server: &Server) {
    let key = KeyPair::generate().unwrap();
    let node = node_headers("pi");
    for (route, fields, authority) in [
        ("serving-kubelet.crt", node.as_str(), "server-ca"),
        ("client-kubelet.crt", &node, "client-ca"),
        ("client-kube-proxy.crt", "", "client-ca"),
        ("client-k3s-controller.crt", "", "client-ca"),
    ] {
        for (method, body, with_key) in [
            ("POST", csr(&key), false),
            ("POST", b"no request".to_vec(), true),
            ("POST", vec![], true),
            ("GET", vec![], true),
        ] {
            let token = basic("node", AGENT_TOKEN);
            let head = format!("{method} /v1-k3s/{route} HTTP/1.1\nHost: k3s\n{token}\n{fields}");
            let answer = server.open(None).ask(&head, &body);
            assert_eq!(answer.code(), 200, "{method} {route}: {answer:?}");
            assert_eq!(answer.header("content-type"), Some("text/plain"), "{method} {route}");
            let text = answer.text();
            let blocks: Vec<&str> = text.lines().filter(|line| line.starts_with("-----BEGIN")).collect();
            let certificate = "-----BEGIN CERTIFICATE-----";
            let private = "-----BEGIN EC PRIVATE KEY-----";
            let expected = match with_key {
                true => vec![certificate, certificate, private],
                false => vec![certificate, certificate],
            };
            assert_eq!(blocks, expected, "{method} {route}");
            assert!(
                text.contains(&server.file(&format!("tls/{authority}.crt"))),
                "{method} {route}: the authority as it is on disk"
            );
        }
    }
}

/// A refusal is a `Status` in JSON, with the code of the answer in it, and shows no secret.
pub fn refusals_are_a_status(server: &Server) {
    let (agent, node) = (basic("node", AGENT_TOKEN), node_headers("other"));
    let server_token = basic("server", TOKEN);
    for (head, code, reason, text) in [
        ("GET /v1-k3s/config".to_owned(), 403, "Forbidden", "forbidden"),
        (
            format!("GET /v1-k3s/config\n{}", basic("node", "guess")),
            401,
            "Unauthorized",
            "not authorized",
        ),
        (format!("GET /v1-k3s/token\n{agent}"), 403, "Forbidden", "forbidden"),
        (
            format!("GET /v1-k3s/token\n{server_token}"),
            405,
            "MethodNotAllowed",
            "not allowed",
        ),
        (
            format!("GET /v1-k3s/server-bootstrap\n{server_token}"),
            400,
            "BadRequest",
            "etcd disabled",
        ),
        (
            format!("POST /v1-k3s/client-kubelet.crt\n{agent}"),
            400,
            "BadRequest",
            "node name not set",
        ),
        (
            format!("POST /v1-k3s/client-kubelet.crt\n{agent}\nk3s-Node-Name: other"),
            400,
            "BadRequest",
            "node password not set",
        ),
        (
            format!(
                "POST /v1-k3s/serving-kubelet.crt\n{agent}\n{}",
                node.replace("192.0.2.9", "192.0.2.9,nine")
            ),
            500,
            "InternalError",
            "invalid node IP address",
        ),
        (
            format!(
                "POST /v1-k3s/client-kubelet.crt\n{agent}\n{}",
                node_headers("pi").replace('0', "1")
            ),
            403,
            "Forbidden",
            "node name \"pi\" is taken",
        ),
    ] {
        let (line, fields) = head.split_once('\n').unwrap_or((&head, ""));
        let answer = server
            .open(None)
            .ask(&format!("{line} HTTP/1.1\nHost: k3s\n{fields}"), b"");
        let status = answer.json();
        assert_eq!(answer.code(), code, "{line}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{line}");
        for (field, value) in [
            ("kind", json!("Status")),
            ("apiVersion", json!("v1")),
            ("status", json!("Failure")),
            ("reason", json!(reason)),
            ("code", json!(code)),
        ] {
            assert_eq!(status[field], value, "{line}: {status}");
        }
        let message = status["message"].as_str().unwrap();
        assert!(message.contains(text), "{line}: {message}");
        for secret in [TOKEN, AGENT_TOKEN, "guess", "123456789abcdef"] {
            assert!(!message.contains(secret), "{line}: {message}");
        }
    }
}

/// Differs: K3s signs a serving certificate for any name and address. It lower-cases names, as is done here. Its agents tell a
/// 403 as "duplicate hostname", with the flag for another one; of a 400 they show the number.
pub fn the_names_of_the_api_are_given_to_no_node(server: &Server) {
    let key = csr(&KeyPair::generate().unwrap());
    let token = basic("node", AGENT_TOKEN);
    for (node, addresses, code) in [
        ("kubernetes", "192.0.2.9", 403),
        ("Kubernetes.Default.svc", "192.0.2.9", 403),
        ("kubernetes.default.svc.cluster.local", "192.0.2.9", 403),
        ("10.43.0.1", "192.0.2.9", 400),
        ("other", "192.0.2.9,10.43.0.1", 400),
        ("Other", "192.0.2.9", 200),
        // From the server's own machine.
        ("box", "127.0.0.1", 200),
    ] {
        let fields = node_headers(node).replace("192.0.2.9", addresses);
        for route in ["serving-kubelet.crt", "client-kubelet.crt"] {
            let head = format!("POST /v1-k3s/{route} HTTP/1.1\nHost: k3s\n{token}\n{fields}");
            let answer = server.open(None).ask(&head, &key);
            assert_eq!(answer.code(), code, "{node} {addresses}: {answer:?}");
            if code != 200 {
                let message = answer.json()["message"].as_str().unwrap().to_owned();
                assert!(
                    message.contains("API server") && message.contains("--node-"),
                    "{message}"
                );
            }
        }
    }
    let certificate = server.signed("client-kubelet.crt", &node_headers("OTHER"));
    let head = "GET /v1-k3s/config HTTP/1.1\nHost: k3s";
    assert_eq!(server.open(Some(&certificate)).ask(head, b"").code(), 200, "one node");
}

/// `host:port` as agents take it apart (6.3), and what they say of themselves.
pub fn addresses_of_version_six_are_in_brackets(server: &Server) {
    let token = basic("node", AGENT_TOKEN);
    for host in ["[::1]:6443", "[::1]", "localhost:6443"] {
        let head = format!("GET /v1-k3s/apiservers HTTP/1.1\nHost: {host}\n{token}");
        let answer = server.open(None).ask(&head, b"");
        assert_eq!(answer.text(), r#"["[::1]:6443"]"#, "{host}");
    }
    let fields = node_headers("six").replace("192.0.2.9", "2001:db8::9,192.0.2.9");
    let certificate = server.signed("serving-kubelet.crt", &fields);
    assert!(certificate.chain.contains("BEGIN CERTIFICATE"));
}

/// Clients that speak HTTP/1.0, ask twice over one connection, or do not speak HTTP at all.
pub fn old_and_broken_http_is_answered(server: &Server) {
    let mut wire = server.open(None);
    let answer = wire.ask("GET /ping HTTP/1.0", b"");
    assert!(answer.head.starts_with("HTTP/1.0 200 OK\r\n"), "{answer:?}");
    assert_eq!(answer.text(), "pong");
    assert!(wire.is_closed(), "HTTP/1.0 ends with its answer");

    let mut wire = server.open(None);
    for _ in 0..2 {
        assert_eq!(wire.ask("GET /ping HTTP/1.1\nHost: k3s", b"").text(), "pong");
    }
    let both = [
        crate::http::request("GET /ping HTTP/1.1\nHost: k3s", b""),
        crate::http::request("GET /cacerts HTTP/1.1\nHost: k3s\nConnection: close", b""),
    ];
    wire.say(&both.concat());
    assert_eq!(wire.hear(false).text(), "pong");
    let last = wire.hear(false);
    assert_eq!(last.header("connection"), Some("close"));
    assert_eq!(last.text(), server.file("tls/server-ca.crt"));
    assert!(wire.is_closed());

    for bytes in [
        &b"GET /ping\r\n\r\n"[..],
        b"GET /ping HTTP/1.1\r\nno field\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ] {
        let mut wire = server.open(None);
        wire.say(bytes);
        assert_eq!(wire.hear(false).code(), 400, "{bytes:?}");
        assert!(wire.is_closed(), "{bytes:?}");
    }
}
