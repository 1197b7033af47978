//! What a kubelet is told at its start; nothing of it changes later, but the addresses of the machine.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

/// A taint that the node is registered with.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// May be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// At what time a certificate (DER) is judged while the system clock shows that (seconds since 1970): a board's may be behind.
#[derive(Clone)]
pub struct Judged(Arc<Rule>);

type Rule = dyn Fn(&[u8], u64) -> u64 + Send + Sync;

impl Judged {
    /// By this rule.
    pub fn new(rule: impl Fn(&[u8], u64) -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(rule))
    }

    /// When, in seconds since 1970.
    pub fn at(&self, certificate: &[u8], system: u64) -> u64 {
        (self.0)(certificate, system)
    }
}

impl fmt::Debug for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Judged")
    }
}

/// Addresses that may come later than the kubelet, and change while it runs.
#[derive(Clone, Debug)]
pub struct NodeIps(watch::Receiver<Vec<IpAddr>>);

impl NodeIps {
    /// Those that are known now.
    pub fn now(&self) -> Vec<IpAddr> {
        self.0.borrow().clone()
    }

    /// Resolves when they have become others since it last did.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl From<Vec<IpAddr>> for NodeIps {
    /// These, for ever.
    fn from(ips: Vec<IpAddr>) -> Self {
        Self(watch::channel(ips).1)
    }
}

impl From<watch::Receiver<Vec<IpAddr>>> for NodeIps {
    fn from(ips: watch::Receiver<Vec<IpAddr>>) -> Self {
        Self(ips)
    }
}

impl Default for NodeIps {
    fn default() -> Self {
        Vec::new().into()
    }
}

/// What a kubelet runs on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the Node object.
    pub node_name: String,
    /// The host's own name.
    pub hostname: String,
    /// Addresses inside the cluster, main one first.
    pub node_ips: NodeIps,
    /// Addresses for the outside.
    pub external_ips: Vec<IpAddr>,
    /// Labels of the first registration.
    pub labels: Vec<(String, String)>,
    /// Taints of the first registration.
    pub taints: Vec<Taint>,
    /// Where the HTTPS port listens.
    pub bind: IpAddr,
    /// The HTTPS port (10250).
    pub port: u16,
    /// Volumes, and what is kept for times without a server: `<data>/agent/kubelet`.
    pub root: PathBuf,
    /// Logs of all pods: `/var/log/pods`.
    pub logs: PathBuf,
    /// The cluster's name servers; empty: pods get the node's.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain, such as `cluster.local`.
    pub cluster_domain: String,
    /// The `resolv.conf` that pods get whose `dnsPolicy` is `Default`.
    pub resolv_conf: PathBuf,
    /// Certificate chain of the HTTPS port, PEM.
    pub serving_cert: PathBuf,
    /// Its key, PEM.
    pub serving_key: PathBuf,
    /// CAs of the clients that the HTTPS port lets in, PEM.
    pub client_ca: PathBuf,
    /// When their certificates are judged: now, unless something knows better.
    pub judged: Judged,
}

impl Settings {
    /// The settings of a node under `agent_dir` (`<data>/agent`, with the files of a join in it); the rest is K3s'
    /// defaults.
    pub fn new(node_name: impl Into<String>, agent_dir: &std::path::Path) -> Self {
        let node_name = node_name.into();
        Self {
            hostname: node_name.clone(),
            node_name,
            node_ips: NodeIps::default(),
            external_ips: vec![],
            labels: vec![],
            taints: vec![],
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 10_250,
            root: agent_dir.join("kubelet"),
            logs: "/var/log/pods".into(),
            cluster_dns: vec![],
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            serving_cert: agent_dir.join("serving-kubelet.crt"),
            serving_key: agent_dir.join("serving-kubelet.key"),
            client_ca: agent_dir.join("client-ca.crt"),
            judged: Judged::new(|_, system| system),
        }
    }

    /// The node's main address.
    pub fn main_ip(&self) -> Option<IpAddr> {
        self.node_ips.now().first().copied()
    }
}
