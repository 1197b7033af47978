//! A node for tests of the port: certificates of its own, a runtime that is played, and a client.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::{Port, accept};
use crate::kubelet::ports::Containers as _;
use crate::kubelet::settings::Settings;
use crate::kubelet::testing::Fake;
use crate::kubelet::translate::log_path;
use crate::runtime::{ContainerSpec, SandboxSpec};
use crate::scratch::TempDir;
use crate::wire::pod::{Pod, PodStatus};

/// Signs both the port's certificate and its clients'.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its own certificate, PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Chain and key, PEM.
    pub fn sign(&self, name: &str, group: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["box".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// Writes what a join leaves to where these settings want it.
    pub fn write(&self, settings: &Settings) {
        let (cert, key) = self.sign("system:node:box", "system:nodes");
        for (path, text) in [
            (&settings.serving_cert, cert),
            (&settings.serving_key, key),
            (&settings.client_ca, self.0.pem()),
        ] {
            fs::write(path, text).unwrap();
        }
    }

    fn client(&self, shown: Option<(String, String)>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
                    .map(Result::unwrap)
                    .collect();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }
}

/// A node whose port is open on loopback.
pub struct Node {
    _dir: TempDir,
    pub authority: Authority,
    pub fake: Arc<Fake>,
    pub port: Arc<Port>,
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Node {
    pub async fn start() -> Self {
        let dir = TempDir::new("port");
        let authority = Authority::new();
        let mut settings = Settings::new("box", dir.path());
        settings.logs = dir.path().join("logs");
        authority.write(&settings);
        let fake = Arc::new(Fake::default());
        let port = Arc::new(Port {
            kept_pods: dir.path().join("kept-pods"),
            settings,
            containers: fake.clone(),
            roll: Arc::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, port.clone()));
        Self {
            _dir: dir,
            authority,
            fake,
            port,
            address,
            _tasks: tasks,
        }
    }

    /// A pod `ns/web` with a container `c` that runs and one `d` that waits.
    pub async fn add_pod(&self) -> Arc<Pod> {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "ns", "uid": "u", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]},
        });
        fs::create_dir_all(&self.port.kept_pods).unwrap();
        fs::write(self.port.kept_pods.join("u"), object.to_string()).unwrap();
        let pod = Arc::new(Pod::of(&object).unwrap());
        self.port.roll.enter(&pod);
        let sandbox = SandboxSpec {
            pod_uid: "u".into(),
            ..SandboxSpec::default()
        };
        self.fake.create_sandbox(&sandbox).await.unwrap();
        self.start_container(0).await;
        pod
    }

    /// Starts attempt `number` of `c`.
    pub async fn start_container(&self, number: u32) {
        let spec = ContainerSpec {
            name: "c".into(),
            attempt: number,
            ..ContainerSpec::default()
        };
        self.fake.start("u", &spec).await.unwrap();
        let last = match number {
            0 => json!({}),
            _ => json!({"terminated": {"containerID": format!("amphipod://c-{}", number - 1)}}),
        };
        let status = json!({"phase": "Running", "containerStatuses": [
            {"name": "c", "containerID": format!("amphipod://c-{number}"), "state": {"running": {}}, "lastState": last},
            {"name": "d", "state": {"waiting": {"reason": "ContainerCreating"}}},
        ]});
        let status: PodStatus = serde_json::from_value(status).unwrap();
        self.port.roll.report("u", &status);
    }

    /// Adds a line to the log of attempt `number` of `c`.
    pub fn print(&self, pod: &Pod, number: u32, text: &str) {
        use std::io::Write as _;
        let path = log_path(&self.port.settings.logs, pod, "c", number);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "2026-01-01T00:00:00.000000001Z stdout F {text}").unwrap();
    }

    /// As the API server.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let shown = self.authority.sign("system:apiserver", "system:masters");
        self.get_as(Some(shown), path).await.unwrap()
    }

    pub async fn get_as(&self, shown: Option<(String, String)>, path: &str) -> Result<(u16, String), String> {
        let request = Request::get(path).body(Empty::new()).unwrap();
        let (response, mut tasks) = self.send(shown, request).await?;
        let status = response.status().as_u16();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        tasks.shutdown().await;
        Ok((status, String::from_utf8(body.to_bytes().to_vec()).unwrap()))
    }

    /// The response, and the task that its body needs.
    pub async fn send(
        &self,
        shown: Option<(String, String)>,
        request: Request<Empty<Bytes>>,
    ) -> Result<(Response<Incoming>, JoinSet<()>), String> {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = "box".try_into().unwrap();
        let tls = self.authority.client(shown).connect(name, tcp).await;
        let tls = tls.map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        Ok((response, tasks))
    }

    /// A list as JSON.
    pub async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).await.1).unwrap()
    }
}
