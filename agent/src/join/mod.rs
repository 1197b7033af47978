//! Becoming a node: identity on disk, the token, certificates, the cluster's settings.
//!
//! [`Identity`] is who this machine is and survives everything but a reflash; [`Joined`] is what a successful join
//! leaves behind for the rest of the agent.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::api::Client;
use crate::config::Secret;
use crate::wire::join::ClusterConfig;

/// Who this machine is to the cluster.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Final node name: lower case, with the id appended if one is wanted.
    pub node_name: String,
    /// What proves that a later request comes from the same machine.
    pub password: Secret,
}

/// What a join leaves behind.
#[derive(Clone)]
pub struct Joined {
    /// Who joined.
    pub identity: Identity,
    /// Addresses the node registers, main one first.
    pub node_ips: Vec<IpAddr>,
    /// The cluster's settings.
    pub cluster: ClusterConfig,
    /// Kubernetes API with the kubelet's certificate.
    pub client: Client,
    /// What is on disk.
    pub files: Files,
}

/// Where a join keeps its files.
#[derive(Clone, Debug)]
pub struct Files {
    /// `<data>/agent`.
    pub dir: PathBuf,
}

impl Files {
    /// Certificate chain of the kubelet's HTTPS port, PEM.
    pub fn serving_cert(&self) -> PathBuf {
        self.dir.join("serving-kubelet.crt")
    }

    /// Its key, PEM `EC PRIVATE KEY`.
    pub fn serving_key(&self) -> PathBuf {
        self.dir.join("serving-kubelet.key")
    }

    /// The CA of client certificates, PEM bundle: whom the kubelet's port lets in.
    pub fn client_ca(&self) -> PathBuf {
        self.dir.join("client-ca.crt")
    }

    /// The CA of servers, PEM bundle.
    pub fn server_ca(&self) -> PathBuf {
        self.dir.join("server-ca.crt")
    }
}
