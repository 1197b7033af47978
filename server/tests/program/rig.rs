//! The program in a folder of its own, and a client that has nothing but the kubeconfig it wrote.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

/// A start on a slow, busy machine; it only ends a hopeless wait.
const STARTING: Duration = Duration::from_secs(120);

/// Removed with all that is in it.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("amphipod-program-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.yaml"), "").unwrap();
        Self(folder)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running `k3s server`. Killed when it goes out of scope.
pub struct Program {
    child: Child,
    printed: mpsc::Receiver<String>,
    reader: Option<JoinHandle<()>>,
}

impl Program {
    /// `k3s server` without a node, with all it writes in `folder`, and these flags.
    pub fn start(folder: &Folder, flags: &[&str]) -> Self {
        Self::start_in(folder, flags, &[])
    }

    /// The same with this environment beside that of the tests.
    pub fn start_in(folder: &Folder, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(folder.0.join("log.txt"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_k3s"));
        command.args([
            "server",
            "--disable-agent",
            "--node-name",
            "box",
            "--bind-address",
            "127.0.0.1",
        ]);
        command.args([
            "--config",
            &folder.path("config.yaml"),
            "--data-dir",
            &folder.path("data"),
        ]);
        command
            .args(["--write-kubeconfig", &folder.path("k3s.yaml")])
            .args(flags)
            .envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, printed) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            // Nobody may listen any more.
            output
                .lines()
                .map_while(Result::ok)
                .for_each(|line| drop(sender.send(line)));
        });
        Self {
            child,
            printed,
            reader: Some(reader),
        }
    }

    /// Waits until it says that it is ready; what it has printed by then, to the line with the join command.
    pub fn greeting(&self, folder: &Folder) -> String {
        let mut all = String::new();
        while !all.contains("  join ") {
            let Ok(line) = self.printed.recv_timeout(STARTING) else {
                let log = std::fs::read_to_string(folder.0.join("log.txt")).unwrap();
                panic!("it never was ready. It printed:\n{all}and logged:\n{log}");
            };
            all.push_str(&line);
            all.push('\n');
        }
        all
    }

    /// Waits until it ends by itself, and says whether it did well.
    pub fn ends(mut self) -> bool {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(begun.elapsed() < STARTING, "it goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM: it must end by itself, with success.
    pub fn stop(mut self) {
        tests::run("kill", &["-TERM", &self.child.id().to_string()]);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// SIGKILL.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The administrator, as the kubeconfig says.
#[derive(Clone)]
pub struct Admin {
    pub address: String,
    tls: Arc<ClientConfig>,
}

/// One connection; requests go one after the other.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// The connection itself.
    _tasks: JoinSet<()>,
}

impl Admin {
    pub fn of(kubeconfig: &Path) -> Self {
        let text = std::fs::read_to_string(kubeconfig).unwrap();
        let field = |name: &str| {
            let found = text.lines().find_map(|line| line.trim().strip_prefix(name));
            found.unwrap_or_else(|| panic!("{name} is missing")).trim().to_owned()
        };
        let data = |name: &str| STANDARD.decode(field(name)).unwrap();
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(&data("certificate-authority-data:")) {
            roots.add(der.unwrap()).unwrap();
        }
        let chain = CertificateDer::pem_slice_iter(&data("client-certificate-data:"))
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_slice(&data("client-key-data:")).unwrap();
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        Self {
            address: field("server: https://"),
            tls: Arc::new(tls),
        }
    }

    /// A connection, unless the server is gone.
    pub async fn connect(&self) -> Option<Connection> {
        let stream = TcpStream::connect(&self.address).await.ok()?;
        let name = ServerName::try_from("localhost").unwrap();
        let tls = TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
            .ok()?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.ok()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { connection.await.unwrap_or_default() });
        Some(Connection { sender, _tasks: tasks })
    }

    pub async fn get(&self, path: &str) -> Value {
        let mut connection = self.connect().await.unwrap();
        let (code, answer) = connection.call("GET", path, &Value::Null).await.unwrap();
        assert_eq!(code, 200, "{path}: {answer}");
        answer
    }
}

impl Connection {
    /// Sends a request; its answer is read by the caller.
    pub async fn send(&mut self, method: &str, path: &str, body: &Value) -> Option<Response<Incoming>> {
        self.sender.ready().await.ok()?;
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let request = request.header("content-type", "application/json");
        self.sender
            .send_request(request.body(Full::new(text.into())).unwrap())
            .await
            .ok()
    }

    /// The code and the answer, if all of it came.
    pub async fn call(&mut self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let response = self.send(method, path, body).await?;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.ok()?.to_bytes();
        let answer = serde_json::from_slice(&bytes);
        Some((code, answer.unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into())))
    }
}
