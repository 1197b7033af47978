//! A whole server of one test, and what nodes and agents do to it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::join::{JoinError, Joined};
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
use server::store::Store;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub const PASSWORD: &str = "0123456789abcdef0123456789abcdef";
pub const OTHER: &str = "fedcba9876543210fedcba9876543210";

/// A server of one test, with everything it leaves behind.
pub struct Cluster {
    pub server: Option<Server>,
    pub dir: PathBuf,
}

/// A client certificate and its key, PEM.
pub struct Certificate {
    pub chain: String,
    pub key: String,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub code: u16,
    pub body: String,
    /// Seconds of `Retry-After`.
    pub retry_after: Option<String>,
}

impl Cluster {
    pub async fn start(name: &str) -> Self {
        Self::start_as(name, |_| ()).await
    }

    /// With something else in its configuration.
    pub async fn start_as(name: &str, change: fn(&mut config::Config)) -> Self {
        let dir = Self::folder(name);
        let mut config = Self::config(&dir);
        change(&mut config);
        let server = Some(Server::start(&config).await.unwrap());
        Self { server, dir }
    }

    /// On a datastore that other servers may share.
    pub async fn start_on(name: &str, store: Arc<dyn Store>) -> Self {
        let dir = Self::folder(name);
        let server = Some(Server::start_on(&Self::config(&dir), store).await.unwrap());
        Self { server, dir }
    }

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("amphipod-supervisor-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.yaml"), "").unwrap();
        dir
    }

    pub fn config(dir: &Path) -> config::Config {
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

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub async fn stop(mut self) {
        self.server.take().unwrap().stop().await.unwrap();
    }

    pub fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join("server").join(name)).unwrap()
    }

    /// A connection over which that HTTP is spoken.
    pub async fn connect(&self, as_node: Option<&Certificate>, alpn: &[u8]) -> TlsStream<TcpStream> {
        self.connect_to("kubernetes", as_node, alpn).await
    }

    /// The leaf certificate that a client is shown who looks for this name.
    pub async fn shown_to(&self, name: &'static str) -> CertificateDer<'static> {
        let tls = self.connect_to(name, None, b"http/1.1").await;
        tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }

    async fn connect_to(&self, name: &'static str, as_node: Option<&Certificate>, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(self.file("tls/server-ca.crt").as_bytes()) {
            roots.add(der.unwrap()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match as_node {
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
        let name = ServerName::try_from(name).unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>, as_node: Option<&Certificate>) -> Reply {
        let tls = self.connect(as_node, b"http/1.1").await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        let exchange = async move {
            let response = sender.send_request(request).await.unwrap();
            let code = response.status().as_u16();
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                return Reply {
                    code,
                    body: String::new(),
                    retry_after: None,
                };
            }
            let retry_after = response.headers().get("retry-after");
            let retry_after = retry_after.map(|value| value.to_str().unwrap().to_owned());
            let body = response.into_body().collect().await.unwrap().to_bytes();
            Reply {
                code,
                body: String::from_utf8(body.to_vec()).unwrap(),
                retry_after,
            }
        };
        // The connection ends once the exchange has dropped the sender, or with the upgrade.
        let (reply, _) = tokio::join!(exchange, connection.with_upgrades());
        reply
    }

    pub async fn get(&self, path: &str, authorization: Option<&str>) -> Reply {
        self.send(request(Method::GET, path, authorization, &[], b""), None)
            .await
    }

    /// Asks for a kubelet's client certificate with the token.
    pub async fn join(&self, node: &str, password: &str) -> Reply {
        let request = self.certificate_request(
            node,
            password,
            Some(&basic("node", "secret")),
            &KeyPair::generate().unwrap(),
        );
        self.send(request, None).await
    }

    pub fn certificate_request(
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
    pub async fn joined(&self, node: &str) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let request = self.certificate_request(node, PASSWORD, Some(&basic("node", "secret")), &key);
        let reply = self.send(request, None).await;
        assert_eq!(reply.code, 200, "{reply:?}");
        Certificate {
            chain: reply.body,
            key: key.serialize_pem(),
        }
    }

    pub async fn register(&self, node: &str) {
        let object = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } });
        self.server().client.create(What::NODES, "", object).await.unwrap();
    }

    pub async fn delete(&self, what: What, namespace: &str, name: &str) {
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
    pub fn message(&self) -> String {
        let status: Value = serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(status["kind"], "Status");
        assert_eq!(status["code"], self.code);
        status["message"].as_str().unwrap().to_owned()
    }
}

pub fn request(
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

pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Joins as the agent does, once.
pub async fn agent_joins(cluster: &Cluster, node: &str, machine: &str, token: &str) -> Result<Joined, JoinError> {
    let machine = cluster.dir.join(machine);
    crate::join::join(node, token, &machine, cluster.server().address.port()).await
}

/// The node's Secret once it is tied to its Node.
pub async fn owned(cluster: &Cluster, node: &str) -> Value {
    for _ in 0..600 {
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

pub async fn until(mut so: impl FnMut() -> bool) {
    for _ in 0..600 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never became so");
}
