//! A server, played: it has authorities of its own, signs what is asked for, and keeps every request as it came; where a
//! tunnel is asked for it opens one and hands it over. And a machine that joins it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::config::{Config, Secret, ServerUrl};
use agent::join::{Address, Files, Identity, JoinError, Joined, Joiner};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::server::PASSWORD;

pub const CONFIG: &str = "/v1-k3s/config";
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const SETTINGS: &str = r#"{"ClusterDNS":"10.43.0.10","ClusterDomain":"cluster.local","ClusterIPRange":{"IP":"10.42.0.0","Mask":"//8AAA=="},"HTTPSPort":6443,"ServiceIPRange":{"IP":"10.43.0.0","Mask":"//8AAA=="},"SupervisorPort":6443}"#;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Request line and headers, without the empty line.
    pub head: String,
    pub body: Vec<u8>,
    /// Whether a client certificate came with it.
    pub certified: bool,
    /// Over which connection, counted from 0.
    pub connection: usize,
}

impl Heard {
    pub fn line(&self) -> &str {
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

/// A connection after its upgrade.
pub type Link = StreamOwned<ServerConnection, TcpStream>;

/// What is answered otherwise than well: path, status line and body.
type Otherwise = BTreeMap<&'static str, (&'static str, String)>;

/// What all servers of a cluster have.
struct Cluster {
    server: Authority,
    client: Authority,
    otherwise: Mutex<Otherwise>,
    tls: Arc<ServerConfig>,
}

/// The far end. It ends with the test's process.
pub struct Played {
    pub address: SocketAddr,
    cluster: Arc<Cluster>,
    heard: Receiver<Heard>,
    tunnels: Receiver<Link>,
    /// Whether each connection ends with its first answer, without a word.
    pub hangs_up: Arc<AtomicBool>,
}

impl Played {
    pub fn start() -> Self {
        Self::at("127.0.0.1:0")
    }

    /// The first server of a cluster, listening there.
    pub fn at(address: &str) -> Self {
        let (server, client) = (Authority::new("server"), Authority::new("client"));
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(["127.0.0.1", "127.0.0.2", "127.0.0.3"].map(str::to_owned)).unwrap();
        let leaf = leaf.signed_by(&key, &server.0).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let der = rustls::pki_types::pem::PemObject::from_pem_slice(client.1.as_bytes()).unwrap();
        roots.add(der).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.allow_unauthenticated().build().unwrap())
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (otherwise, tls) = (Mutex::default(), Arc::new(tls));
        let cluster = Cluster {
            server,
            client,
            otherwise,
            tls,
        };
        Self::listen(address, Arc::new(cluster))
    }

    /// Another port of the same cluster.
    pub fn beside(&self, address: &str) -> Self {
        Self::listen(address, Arc::clone(&self.cluster))
    }

    fn listen(address: &str, cluster: Arc<Cluster>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (says, heard) = channel();
        let (opens, tunnels) = channel();
        let hangs_up = Arc::<AtomicBool>::default();
        let (brief, all) = (Arc::clone(&hangs_up), Arc::clone(&cluster));
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (all, says) = (Arc::clone(&all), says.clone());
                let (brief, opens) = (Arc::clone(&brief), opens.clone());
                std::thread::spawn(move || {
                    if let Some(link) = converse(stream.unwrap(), number, &all, &says, &brief) {
                        let _ = opens.send(link);
                    }
                });
            }
        });
        Self {
            address,
            cluster,
            heard,
            tunnels,
            hangs_up,
        }
    }

    /// Has this path answered so, and no other, until it is told otherwise.
    pub fn answers(&self, path: &'static str, status: &'static str, body: &str) {
        let mut otherwise = self.cluster.otherwise.lock().unwrap();
        otherwise.clear();
        otherwise.insert(path, (status, body.to_owned()));
    }

    /// Has this path, too, answered with 200 and `body`, by all of the cluster.
    pub fn also(&self, path: &'static str, body: &str) {
        let mut otherwise = self.cluster.otherwise.lock().unwrap();
        otherwise.insert(path, ("200 OK", body.to_owned()));
    }

    pub fn next(&self) -> Heard {
        self.heard.recv_timeout(PATIENCE).unwrap()
    }

    /// All that have come, when whoever asked has its answers.
    pub fn all(&self) -> Vec<Heard> {
        self.heard.try_iter().collect()
    }

    /// The next tunnel, upgraded.
    pub fn tunnel(&self) -> Link {
        self.tunnels.recv_timeout(PATIENCE).unwrap()
    }

    /// The full token with this credential.
    pub fn token(&self, credential: &str) -> String {
        format!(
            "K10{}::{credential}",
            agent::wire::join::ca_hash(self.cluster.server.1.as_bytes())
        )
    }
}

fn converse(
    stream: TcpStream,
    number: usize,
    cluster: &Cluster,
    says: &Sender<Heard>,
    brief: &AtomicBool,
) -> Option<Link> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&cluster.tls)).unwrap(), stream);
    let mut bytes = Vec::new();
    loop {
        let heard = request(&mut tls, &mut bytes, number)?;
        assert_eq!(tls.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        let (status, body) = answer(&heard, cluster);
        let answer = match status.starts_with("101 ") {
            true => format!("HTTP/1.1 {status}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{body}\r\n\r\n"),
            false => format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        };
        // Before the answer: whoever has that finds this.
        if says.send(heard).is_err() || tls.write_all(answer.as_bytes()).is_err() || brief.load(Ordering::SeqCst) {
            return None;
        }
        if status.starts_with("101 ") {
            tls.flush().unwrap();
            return Some(tls);
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
    Cluster {
        server,
        client,
        otherwise,
        ..
    }: &Cluster,
) -> (String, String) {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let path = heard.line().split(' ').nth(1).unwrap();
    if let Some((status, body)) = otherwise.lock().unwrap().get(path) {
        return ((*status).to_owned(), body.clone());
    }
    let body = match path {
        "/cacerts" | "/v1-k3s/server-ca.crt" => server.1.clone(),
        "/v1-k3s/client-ca.crt" => client.1.clone(),
        CONFIG => SETTINGS.to_owned(),
        "/v1-k3s/serving-kubelet.crt" => server.sign(&heard.body, "pi", ServerAuth),
        "/v1-k3s/client-kubelet.crt" => client.sign(&heard.body, "system:node:pi", ClientAuth),
        "/v1-k3s/client-kube-proxy.crt" => client.sign(&heard.body, "system:kube-proxy", ClientAuth),
        "/v1-k3s/client-k3s-controller.crt" => client.sign(&heard.body, "system:k3s-controller", ClientAuth),
        "/v1-k3s/apiservers" => {
            let host = heard.head.lines().find_map(|line| line.strip_prefix("host: "));
            format!("[{:?}]", host.unwrap())
        }
        "/v1-k3s/connect" => return ("101 Switching Protocols".to_owned(), accepted(&heard.head)),
        _ => return ("404 Not Found".to_owned(), String::new()),
    };
    ("200 OK".to_owned(), body)
}

/// What a websocket's server answers a client's key with (RFC 6455, 4.2.2).
fn accepted(head: &str) -> String {
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
    let text = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key.unwrap());
    let accept = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()));
    format!("Sec-WebSocket-Accept: {accept}")
}

/// A machine that joins.
pub struct Machine {
    folder: PathBuf,
    pub config: Config,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Machine {
    pub fn new(played: &Played, token: Option<String>) -> Self {
        let folder =
            std::env::temp_dir().join(format!("wire-joining-{}-{}", std::process::id(), played.address.port()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("etc")).unwrap();
        fs::write(folder.join("etc/password"), format!("{PASSWORD}\n")).unwrap();
        let mut config = Config::new(ServerUrl::new("127.0.0.1", played.address.port()), "pi");
        config.token = token.map(Secret::new);
        config.node_ips = vec!["192.0.2.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
        config.node_external_ips = vec!["198.51.100.9".parse().unwrap()];
        Self { folder, config }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.folder).join(name)
    }

    pub async fn joins(&self) -> Result<Joined, JoinError> {
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
