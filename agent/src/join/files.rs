//! Where a join keeps what it got, under `<data>/agent`: names and contents are K3s' (protocol 2.6).

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::durable::{self, Disk, SystemDisk};

/// Whom a certificate names; the file names follow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Certificate {
    /// The kubelet's HTTPS port.
    ServingKubelet,
    /// The kubelet towards the API.
    ClientKubelet,
    /// The service proxy.
    ClientKubeProxy,
    /// K3s' own controllers on a node.
    ClientK3sController,
}

impl Certificate {
    /// In the order in which K3s asks for them.
    pub const ALL: [Self; 4] = [
        Self::ServingKubelet,
        Self::ClientKubelet,
        Self::ClientKubeProxy,
        Self::ClientK3sController,
    ];

    /// Name of its files and of its route, without `.crt`.
    pub const fn stem(self) -> &'static str {
        match self {
            Self::ServingKubelet => "serving-kubelet",
            Self::ClientKubelet => "client-kubelet",
            Self::ClientKubeProxy => "client-kube-proxy",
            Self::ClientK3sController => "client-k3s-controller",
        }
    }

    const fn kubeconfig(self) -> Option<&'static str> {
        match self {
            Self::ServingKubelet => None,
            Self::ClientKubelet => Some("kubelet.kubeconfig"),
            Self::ClientKubeProxy => Some("kubeproxy.kubeconfig"),
            Self::ClientK3sController => Some("k3scontroller.kubeconfig"),
        }
    }
}

/// The files of a join.
#[derive(Clone, Debug)]
pub struct Files {
    /// `<data>/agent`.
    pub dir: PathBuf,
}

impl Files {
    /// Makes the folder.
    ///
    /// # Errors
    /// The disk's.
    pub fn create(dir: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir.join("etc"))?;
        Ok(Self { dir })
    }

    /// Certificate chain of the kubelet's HTTPS port, PEM.
    pub fn serving_cert(&self) -> PathBuf {
        self.cert(Certificate::ServingKubelet)
    }

    /// Its key, PEM `EC PRIVATE KEY`.
    pub fn serving_key(&self) -> PathBuf {
        self.key(Certificate::ServingKubelet)
    }

    /// The CA of client certificates, PEM bundle: whom the kubelet's port lets in.
    pub fn client_ca(&self) -> PathBuf {
        self.dir.join("client-ca.crt")
    }

    /// The CA of servers, PEM bundle.
    pub fn server_ca(&self) -> PathBuf {
        self.dir.join("server-ca.crt")
    }

    /// The cluster's settings as the server last sent them, for a start without one.
    pub fn settings(&self) -> PathBuf {
        self.dir.join("etc/cluster-settings.json")
    }

    /// The balancer's servers.
    pub fn balancer(&self) -> PathBuf {
        self.dir.join("etc/k3s-agent-load-balancer.json")
    }

    /// The servers of the balancer for the API, where that has a port of its own.
    pub fn api_balancer(&self) -> PathBuf {
        self.dir.join("etc/k3s-api-server-agent-load-balancer.json")
    }

    /// What time it was at least, in seconds since 1970.
    pub fn time_floor(&self) -> PathBuf {
        self.dir.join("etc/time-floor")
    }

    /// A chain.
    pub fn cert(&self, which: Certificate) -> PathBuf {
        self.dir.join(format!("{}.crt", which.stem()))
    }

    /// A key.
    pub fn key(&self, which: Certificate) -> PathBuf {
        self.dir.join(format!("{}.key", which.stem()))
    }

    /// Writes a file, whole or not at all, unless it has this content already.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.write_on(&SystemDisk, path, content)
    }

    /// As [`Self::write`], on this disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_on(&self, disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
        if disk.read(path).is_ok_and(|found| found == content) {
            return Ok(());
        }
        durable::replace_on(disk, path, content, 0o600)
    }

    /// Writes the kubeconfig that goes with a certificate.
    ///
    /// `server`: `https://127.0.0.1:6444`.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_kubeconfig(&self, disk: &dyn Disk, which: Certificate, server: &str) -> io::Result<()> {
        let Some(name) = which.kubeconfig() else { return Ok(()) };
        let (ca, cert, key) = (self.server_ca(), self.cert(which), self.key(which));
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: local\n  cluster:\n    server: {server}\n    \
             certificate-authority: {}\nusers:\n- name: user\n  user:\n    client-certificate: {}\n    client-key: {}\n\
             contexts:\n- name: Default\n  context:\n    cluster: local\n    namespace: default\n    user: user\n\
             current-context: Default\n",
            ca.display(),
            cert.display(),
            key.display()
        );
        self.write_on(disk, &self.dir.join(name), text.as_bytes())
    }
}
