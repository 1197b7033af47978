//! What our agent sends while it joins, as bytes, and what it makes of the answers (sections 1 to 3 of K3s' protocol). The far
//! end is played: it has authorities of its own, signs what is asked for, and keeps every request as it came.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::balancer::Balancer;
use agent::config::{Config, Secret, ServerUrl};
use agent::join::{Address, Files, Identity, JoinError, Joined, Joiner};
use agent::tunnel::Tunnels;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::server::PASSWORD;

const CONFIG: &str = "/v1-k3s/config";
const PATIENCE: Duration = Duration::from_secs(60);
const SETTINGS: &str = r#"{"ClusterDNS":"10.43.0.10","ClusterDomain":"cluster.local","ClusterIPRange":{"IP":"10.42.0.0","Mask":"//8AAA=="},"HTTPSPort":6443,"ServiceIPRange":{"IP":"10.43.0.0","Mask":"//8AAA=="},"SupervisorPort":6443}"#;

/// A request as it came.
#[derive(Clone, Debug)]
struct Heard {
    /// Request line and headers, without the empty line.
    head: String,
    body: Vec<u8>,
    /// Whether a client certificate came with it.
    certified: bool,
    /// Over which connection, counted from 0.
    connection: usize,
}

impl Heard {
    fn line(&self) -> &str {
        self.head.split("\r\n").next().unwrap()
    }
}

/// An authority, and its certificate in PEM.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    /// As K3s: of the request counts its key alone.
    fn sign(&self, request: &[u8], name: &str, usage: ExtendedKeyUsagePurpose) -> String {
        let request = CertificateSigningRequestParams::from_der(&request.to_vec().into()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let leaf = params.signed_by(&request.public_key, &self.0).unwrap();
        leaf.pem() + &self.1
    }
}

/// What is answered otherwise than well: path, status line and body.
type Otherwise = BTreeMap<&'static str, (&'static str, &'static str)>;

/// The far end. It ends with the test's process.
struct Played {
    address: SocketAddr,
    server_ca: String,
    heard: Receiver<Heard>,
    otherwise: Arc<Mutex<Otherwise>>,
    /// Whether each connection ends with its first answer, without a word.
    hangs_up: Arc<AtomicBool>,
}

impl Played {
    fn start() -> Self {
        let (server, client) = (Authority::new("server"), Authority::new("client"));
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &server.0).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let der = rustls::pki_types::pem::PemObject::from_pem_slice(client.1.as_bytes()).unwrap();
        roots.add(der).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.allow_unauthenticated().build().unwrap())
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (says, heard) = channel();
        let otherwise: Arc<Mutex<Otherwise>> = Arc::default();
        let server_ca = server.1.clone();
        let cluster = Arc::new((server, client, Arc::clone(&otherwise)));
        let config = Arc::new(config);
        let hangs_up = Arc::<AtomicBool>::default();
        let brief = Arc::clone(&hangs_up);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (config, cluster, says) = (Arc::clone(&config), Arc::clone(&cluster), says.clone());
                let brief = Arc::clone(&brief);
                std::thread::spawn(move || converse(stream.unwrap(), number, config, &cluster, &says, &brief));
            }
        });
        Self {
            address,
            server_ca,
            heard,
            otherwise,
            hangs_up,
        }
    }

    /// Has this path answered so, until it is told otherwise.
    fn answers(&self, path: &'static str, status: &'static str, body: &'static str) {
        let mut otherwise = self.otherwise.lock().unwrap();
        otherwise.clear();
        otherwise.insert(path, (status, body));
    }

    fn next(&self) -> Heard {
        self.heard.recv_timeout(PATIENCE).unwrap()
    }

    /// All that have come, when whoever asked has its answers.
    fn all(&self) -> Vec<Heard> {
        self.heard.try_iter().collect()
    }

    /// The full token with this credential.
    fn token(&self, credential: &str) -> String {
        format!(
            "K10{}::{credential}",
            agent::wire::join::ca_hash(self.server_ca.as_bytes())
        )
    }
}

fn converse(
    stream: TcpStream,
    number: usize,
    config: Arc<ServerConfig>,
    cluster: &(Authority, Authority, Arc<Mutex<Otherwise>>),
    says: &Sender<Heard>,
    brief: &AtomicBool,
) {
    let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut bytes = Vec::new();
    loop {
        let Some(heard) = request(&mut tls, &mut bytes, number) else {
            return;
        };
        assert_eq!(tls.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        let (status, body) = answer(&heard, cluster);
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        // Before the answer: whoever has that finds this.
        if says.send(heard).is_err() || tls.write_all(answer.as_bytes()).is_err() || brief.load(Ordering::SeqCst) {
            return;
        }
    }
}

fn request(
    tls: &mut StreamOwned<ServerConnection, TcpStream>,
    bytes: &mut Vec<u8>,
    connection: usize,
) -> Option<Heard> {
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head.to_ascii_lowercase();
            let length = length.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            if bytes.len() >= end + 4 + length {
                let body = bytes[end + 4..end + 4 + length].to_vec();
                bytes.drain(..end + 4 + length);
                let certified = tls.conn.peer_certificates().is_some();
                return Some(Heard {
                    head,
                    body,
                    certified,
                    connection,
                });
            }
        }
        let mut buffer = [0; 4096];
        let count = tls.read(&mut buffer).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&buffer[..count]);
    }
}

fn answer(
    heard: &Heard,
    (server, client, otherwise): &(Authority, Authority, Arc<Mutex<Otherwise>>),
) -> (String, String) {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let path = heard.line().split(' ').nth(1).unwrap();
    if let Some((status, body)) = otherwise.lock().unwrap().get(path) {
        return ((*status).to_owned(), (*body).to_owned());
    }
    let body = match path {
        "/cacerts" | "/v1-k3s/server-ca.crt" => server.1.clone(),
        "/v1-k3s/client-ca.crt" => client.1.clone(),
        "/v1-k3s/config" => SETTINGS.to_owned(),
        "/v1-k3s/serving-kubelet.crt" => server.sign(&heard.body, "pi", ServerAuth),
        "/v1-k3s/client-kubelet.crt" => client.sign(&heard.body, "system:node:pi", ClientAuth),
        "/v1-k3s/client-kube-proxy.crt" => client.sign(&heard.body, "system:kube-proxy", ClientAuth),
        "/v1-k3s/client-k3s-controller.crt" => client.sign(&heard.body, "system:k3s-controller", ClientAuth),
        "/v1-k3s/apiservers" => {
            let host = heard.head.lines().find_map(|line| line.strip_prefix("host: "));
            format!("[{:?}]", host.unwrap())
        }
        _ => return ("404 Not Found".to_owned(), String::new()),
    };
    ("200 OK".to_owned(), body)
}

/// A machine that joins.
struct Machine {
    folder: PathBuf,
    config: Config,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Machine {
    fn new(played: &Played, token: Option<String>) -> Self {
        let folder = std::env::temp_dir().join(format!("wire-joining-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("etc")).unwrap();
        fs::write(folder.join("etc/password"), format!("{PASSWORD}\n")).unwrap();
        let mut config = Config::new(ServerUrl::new("127.0.0.1", played.address.port()), "pi");
        config.token = token.map(Secret::new);
        config.node_ips = vec!["192.0.2.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
        config.node_external_ips = vec!["198.51.100.9".parse().unwrap()];
        Self { folder, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.folder).join(name)
    }

    async fn joins(&self) -> Result<Joined, JoinError> {
        let joiner = Joiner {
            config: &self.config,
            identity: &Identity::open(&self.path("etc"), "pi", false).unwrap(),
            files: &Files::create(self.path("agent")).unwrap(),
            address: Address {
                host: "127.0.0.1".to_owned(),
                port: self.config.server.port(),
                shown: self.config.server.to_string(),
            },
            clock: Arc::default(),
        };
        joiner.once().await
    }
}

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
        balancer: Balancer::new(&machine.config.server.authority(), &[], 1),
        kubelet_port: 10250,
        supervisor_port: None,
    };
    played.answers("/v1-k3s/connect", "401 Unauthorized", "{}");
    let mut refusals = joined.client.refusals();
    let told = AtomicBool::new(false);
    let found = |servers: &[String]| {
        assert_eq!(servers, [played.address.to_string()]);
        told.store(true, Ordering::Relaxed);
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
        (config, "429 Too Many Requests", "", "NotReady"),
        (config, "503 Service Unavailable", "starting", "NotReady"),
        (config, "200 OK", "no JSON", "Odd"),
        (kubelet, "400 Bad Request", "node name not set", "Node"),
        (kubelet, "401 Unauthorized", "unable to verify node identity", "Token"),
        (kubelet, "403 Forbidden", mismatch, "Password"),
        (kubelet, "405 Method Not Allowed", "", "Odd"),
        (
            kubelet,
            "500 Internal Server Error",
            "supervisor error ID 12345",
            "NotReady",
        ),
        (kubelet, "503 Service Unavailable", "", "NotReady"),
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
