//! The built `k3s server`, without a node of its own, on loopback.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};
use tests::lab::{binary, until};
use tests::run;

use crate::http::{Answer, Certificate, Wire};

pub const TOKEN: &str = "wire-secret";
pub const AGENT_TOKEN: &str = "wire-agent-secret";
/// A node's password, as an agent makes it.
pub const PASSWORD: &str = "0123456789abcdef0123456789abcdef";

/// A server of one test, and its folder.
pub struct Server {
    program: Option<Child>,
    pub folder: PathBuf,
    pub address: SocketAddr,
}

impl Server {
    /// Starts it on 127.0.0.1, and waits until it is ready.
    pub fn start() -> Self {
        Self::start_at("127.0.0.1", "127.0.0.1:6443")
    }

    /// The same at another address of loopback.
    pub fn start_at(bind: &str, address: &str) -> Self {
        run("ip", &["link", "set", "lo", "up"]);
        let folder = std::env::temp_dir().join(format!("wire-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = |name: &str| folder.join(name).display().to_string();
        fs::write(path("config.yaml"), "").unwrap();
        let log = fs::File::create(path("log.txt")).unwrap();
        let mut command = Command::new(binary("k3s"));
        command.args([
            "server",
            "--disable-agent",
            "--node-name",
            "box",
            "--bind-address",
            bind,
        ]);
        command.args(["--token", TOKEN, "--agent-token", AGENT_TOKEN, "--node-ip", bind]);
        command.args([
            "--config",
            &path("config.yaml"),
            "-d",
            &path("data"),
            "-o",
            &path("k3s.yaml"),
        ]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let program = Some(command.spawn().unwrap());
        let address = address.parse().unwrap();
        let server = Self {
            program,
            folder,
            address,
        };
        until("the server is ready", || {
            let ca = server.folder.join("data/server/tls/server-ca.crt").exists();
            let listens = ca && std::net::TcpStream::connect(address).is_ok();
            listens && server.is_ready()
        });
        server
    }

    /// Whether it says so; until then it says when to come again (2.5).
    fn is_ready(&self) -> bool {
        let answer = self.get("/v1-k3s/readyz", &basic("node", AGENT_TOKEN));
        if answer.code() == 200 {
            return true;
        }
        assert_eq!(answer.code(), 503, "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
        let status = answer.json();
        assert_eq!(status["kind"], "Status", "{status}");
        assert_eq!(status["reason"], "ServiceUnavailable", "{status}");
        false
    }

    /// A file of the server's, below `<data>/server`.
    pub fn file(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join("data/server").join(name)
    }

    /// A new connection.
    pub fn open(&self, certificate: Option<&Certificate>) -> Wire {
        Wire::open(self.address, &self.file("tls/server-ca.crt"), certificate)
    }

    /// A `GET` on a connection of its own; `fields`: further header lines.
    pub fn get(&self, path: &str, fields: &str) -> Answer {
        self.open(None)
            .ask(&format!("GET {path} HTTP/1.1\nHost: k3s\n{fields}"), b"")
    }

    /// A certificate of the server's own, such as `client-admin`.
    pub fn own(&self, name: &str) -> Certificate {
        Certificate {
            chain: self.file(&format!("tls/{name}.crt")),
            key: self.file(&format!("tls/{name}.key")),
        }
    }

    /// Has a certificate signed at `route` by the agent token; `fields`: further header lines.
    pub fn signed(&self, route: &str, fields: &str) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let token = basic("node", AGENT_TOKEN);
        let head = format!("POST /v1-k3s/{route} HTTP/1.1\nHost: k3s\n{token}\n{fields}");
        let answer = self.open(None).ask(&head, &csr(&key));
        assert_eq!(answer.code(), 200, "{answer:?}");
        Certificate {
            chain: answer.text().to_owned(),
            key: key.serialize_pem(),
        }
    }

    /// A node that has joined: its kubelet's client certificate.
    pub fn joined(&self, node: &str) -> Certificate {
        self.signed("client-kubelet.crt", &node_headers(node))
    }

    /// Ends it, and sees that it ends well.
    pub fn stop(mut self) {
        let mut program = self.program.take().unwrap();
        run("kill", &["-TERM", &program.id().to_string()]);
        let status = program.wait().unwrap();
        assert!(status.success(), "the server did not stop cleanly: {status}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut program) = self.program.take() {
            let _ = program.kill();
            let _ = program.wait();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.join("log.txt")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default();
            eprintln!("---- end of the server's log\n{}", last.join("\n"));
        }
        remove(&self.folder);
    }
}

fn remove(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
}

/// A header line with a password.
pub fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// A request for a certificate, as an agent sends it: DER with an empty subject.
pub fn csr(key: &KeyPair) -> Vec<u8> {
    let request = CertificateParams::default().serialize_request(key).unwrap();
    request.der().to_vec()
}

/// What an agent says of its node, as header lines.
pub fn node_headers(node: &str) -> String {
    format!("k3s-Node-Name: {node}\nk3s-Node-Password: {PASSWORD}\nk3s-Node-IP: 192.0.2.9")
}
