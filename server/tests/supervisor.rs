//! Joining as a node sees it, over TLS on loopback: a whole server, real certificates, and what goes wrong on the way.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what fails here fails the test"
)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::config::ServerUrl;
use agent::join::{Address, Files, Identity, JoinError, Joined, Joiner};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use server::config::{self, Command};
use server::request::{DeleteOptions, What};
use server::run::Server;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PASSWORD: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

/// A server of one test, with everything it leaves behind.
struct Cluster {
    server: Option<Server>,
    dir: PathBuf,
}

/// A client certificate and its key, PEM.
struct Certificate {
    chain: String,
    key: String,
}

/// What came back.
#[derive(Debug)]
struct Reply {
    code: u16,
    body: String,
}

impl Cluster {
    async fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("amphipod-supervisor-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.yaml"), "").unwrap();
        let server = Server::start(&Self::config(&dir)).await.unwrap();
        Self {
            server: Some(server),
            dir,
        }
    }

    fn config(dir: &Path) -> config::Config {
        let dir = dir.display();
        let line = format!(
            "k3s server --disable-agent --config {dir}/config.yaml -d {dir} -o {dir}/k3s.yaml --token secret \
             --bind-address 127.0.0.1 --https-listen-port 0 --node-name box"
        );
        let args = line.split_whitespace().map(Into::into);
        match config::parse(args, &config::surroundings()).unwrap() {
            Command::Server(config) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    async fn stop(mut self) {
        self.server.take().unwrap().stop().await.unwrap();
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join("server").join(name)).unwrap()
    }

    async fn send(&self, request: Request<Full<Bytes>>, as_node: Option<&Certificate>) -> Reply {
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(self.file("tls/server-ca.crt").as_bytes()) {
            roots.add(der.unwrap()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match as_node {
            None => config.with_no_client_auth(),
            Some(Certificate { chain, key }) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
                    .collect::<Result<_, _>>()
                    .unwrap();
                config
                    .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                    .unwrap()
            }
        };
        let address: SocketAddr = self.server().address;
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("kubernetes").unwrap();
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        let exchange = async move {
            let response = sender.send_request(request).await.unwrap();
            let code = response.status().as_u16();
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                return Reply {
                    code,
                    body: String::new(),
                };
            }
            let body = response.into_body().collect().await.unwrap().to_bytes();
            Reply {
                code,
                body: String::from_utf8(body.to_vec()).unwrap(),
            }
        };
        // The connection ends once the exchange has dropped the sender, or with the upgrade.
        let (reply, _) = tokio::join!(exchange, connection.with_upgrades());
        reply
    }

    async fn get(&self, path: &str, authorization: Option<&str>) -> Reply {
        self.send(request(Method::GET, path, authorization, &[], b""), None)
            .await
    }

    /// Asks for a kubelet's client certificate with the token.
    async fn join(&self, node: &str, password: &str) -> Reply {
        let request = self.certificate_request(
            node,
            password,
            Some(&basic("node", "secret")),
            &KeyPair::generate().unwrap(),
        );
        self.send(request, None).await
    }

    fn certificate_request(
        &self,
        node: &str,
        password: &str,
        authorization: Option<&str>,
        key: &KeyPair,
    ) -> Request<Full<Bytes>> {
        let csr = CertificateParams::default().serialize_request(key).unwrap();
        let headers = [
            ("k3s-Node-Name", node),
            ("k3s-Node-Password", password),
            ("k3s-Node-IP", "192.0.2.9"),
        ];
        request(
            Method::POST,
            "/v1-k3s/client-kubelet.crt",
            authorization,
            &headers,
            csr.der(),
        )
    }

    /// A node that has joined: its certificate.
    async fn joined(&self, node: &str) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let request = self.certificate_request(node, PASSWORD, Some(&basic("node", "secret")), &key);
        let reply = self.send(request, None).await;
        assert_eq!(reply.code, 200, "{reply:?}");
        Certificate {
            chain: reply.body,
            key: key.serialize_pem(),
        }
    }

    async fn register(&self, node: &str) {
        let object = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } });
        self.server().client.create(What::NODES, "", object).await.unwrap();
    }

    async fn delete(&self, what: What, namespace: &str, name: &str) {
        self.server()
            .client
            .delete(what, namespace, name, DeleteOptions::default())
            .await
            .unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Reply {
    /// The message of a `Status`.
    fn message(&self) -> String {
        let status: Value = serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(status["kind"], "Status");
        assert_eq!(status["code"], self.code);
        status["message"].as_str().unwrap().to_owned()
    }
}

fn request(
    method: Method,
    path: &str,
    authorization: Option<&str>,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", "server");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

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
    assert_eq!(servers, [cluster.server().advertised.to_string()]);
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
async fn a_taken_name_is_refused_with_the_node_the_record_and_the_cure() {
    let cluster = Cluster::start("taken").await;
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200, "first come");
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200, "the same machine again");
    let reply = cluster.join("pi", OTHER).await;
    assert_eq!(reply.code, 403);
    let message = reply.message();
    for part in [
        "node name \"pi\" is taken",
        "Secret kube-system/pi.node-password.k3s",
        "cred/node-passwd",
        "kubectl delete node pi",
        "--with-node-id",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains(OTHER) && !message.contains(PASSWORD));
    assert_eq!(cluster.join("pi-2", OTHER).await.code, 200, "another name");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_secret_node_or_row_lets_the_next_machine_have_the_name() {
    let cluster = Cluster::start("cure").await;
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200);
    cluster
        .delete(What::SECRETS, "kube-system", "pi.node-password.k3s")
        .await;
    assert_eq!(cluster.join("pi", OTHER).await.code, 200, "the Secret was deleted");

    cluster.register("pi").await;
    let secret = owned(&cluster, "pi").await;
    assert_eq!(secret["type"], "k3s.cattle.io/node-password");
    assert_eq!(secret["immutable"], true);
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 403);
    cluster.delete(What::NODES, "", "pi").await;
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200, "the Node was deleted");

    let path = cluster.dir.join("server/cred/node-passwd");
    let row = |text: &str| text.lines().any(|line| line.contains(",pi,"));
    until(|| std::fs::read_to_string(&path).is_ok_and(|text| row(&text))).await;
    assert_eq!(cluster.join("pi", OTHER).await.code, 403);
    std::fs::write(&path, "").unwrap();
    assert_eq!(cluster.join("pi", OTHER).await.code, 200, "its row was taken out");
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
        (vec![name, password], &large, 400, "cannot read the certificate request"),
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
    let reply = cluster.get("/v1-k3s/encrypt/status", Some(&token)).await;
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
async fn a_restarted_server_knows_its_nodes() {
    let mut cluster = Cluster::start("restart").await;
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200);
    let token = cluster.file("token");
    cluster.server.take().unwrap().stop().await.unwrap();
    cluster.server = Some(Server::start(&Cluster::config(&cluster.dir)).await.unwrap());
    assert_eq!(cluster.file("token"), token);
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200);
    assert_eq!(cluster.join("pi", OTHER).await.code, 403);
    cluster.stop().await;
}

/// Joins as the agent does, once.
async fn agent_joins(cluster: &Cluster, node: &str, machine: &str, token: &str) -> Result<Joined, JoinError> {
    let machine = cluster.dir.join(machine);
    let address = cluster.server().address;
    let mut config = agent::config::Config::new(ServerUrl::new("127.0.0.1", address.port()), node);
    config.token = Some(agent::config::Secret::new(token));
    let joiner = Joiner {
        config: &config,
        identity: &Identity::open(&machine.join("etc"), node, false).unwrap(),
        files: &Files::create(machine.join("agent")).unwrap(),
        address: Address {
            host: "127.0.0.1".to_owned(),
            port: address.port(),
            shown: config.server.to_string(),
        },
    };
    joiner.once().await
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

/// The node's Secret once it is tied to its Node.
async fn owned(cluster: &Cluster, node: &str) -> Value {
    for _ in 0..100 {
        let name = format!("{node}.node-password.k3s");
        let secret = cluster
            .server()
            .client
            .get(What::SECRETS, "kube-system", &name)
            .await
            .unwrap();
        if secret["metadata"]["ownerReferences"][0]["name"] == node {
            return secret;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the record of {node} was never tied to its node");
}

async fn until(mut so: impl FnMut() -> bool) {
    for _ in 0..100 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never became so");
}
