//! Which certificate files are whose: the services of a server and an agent as `k3s certificate` and the expiry monitor name
//! them.
//!
//! Some of them this program has no use for (etcd): a data directory that K3s made has their files. Source: K3s v1.36,
//! `pkg/util/services`, `pkg/daemons/control/deps` (`CreateRuntimeCertFiles`).

use std::path::{Path, PathBuf};

/// Part of a node that has certificates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "named as in K3s; the table under it has their files")]
pub enum Service {
    ApiServer,
    Admin,
    AuthProxy,
    CloudController,
    ControllerManager,
    Etcd,
    Scheduler,
    Supervisor,
    K3sServer,
    KubeProxy,
    Kubelet,
    K3sController,
    CertificateAuthority,
}

impl Service {
    /// Those of a server: its own, then those of the node that it runs.
    pub const SERVER: [Self; 12] = [
        Self::ApiServer,
        Self::Admin,
        Self::AuthProxy,
        Self::CloudController,
        Self::ControllerManager,
        Self::Etcd,
        Self::Scheduler,
        Self::Supervisor,
        Self::K3sServer,
        Self::KubeProxy,
        Self::Kubelet,
        Self::K3sController,
    ];

    /// Those of an agent.
    pub const AGENT: [Self; 3] = [Self::KubeProxy, Self::Kubelet, Self::K3sController];

    /// As in `--service`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "api-server",
            Self::Admin => "admin",
            Self::AuthProxy => "auth-proxy",
            Self::CloudController => "cloud-controller",
            Self::ControllerManager => "controller-manager",
            Self::Etcd => "etcd",
            Self::Scheduler => "scheduler",
            Self::Supervisor => "supervisor",
            Self::K3sServer => "k3s-server",
            Self::KubeProxy => "kube-proxy",
            Self::Kubelet => "kubelet",
            Self::K3sController => "k3s-controller",
            Self::CertificateAuthority => "certificate-authority",
        }
    }

    /// The one of that name. Authorities are no service that anybody may name: replacing them takes more than a restart.
    pub fn named(name: &str) -> Option<Self> {
        Self::SERVER.into_iter().find(|service| service.name() == name)
    }

    /// Its files below the data directory, each certificate before its key; they need not exist.
    pub fn files(self, data_dir: &Path) -> Vec<PathBuf> {
        let pair = |stem: &&str| [format!("{stem}.crt"), format!("{stem}.key")];
        let shared = match self {
            // Keys that a server shares with agents too old to make their own.
            Self::Kubelet => ["client-kubelet.key", "serving-kubelet.key"].as_slice(),
            _ => &[],
        };
        let shared = shared.iter().map(|name| format!("server/tls/{name}"));
        let files = shared.chain(self.pairs().iter().flat_map(pair));
        files.map(|name| data_dir.join(name)).collect()
    }

    /// Files that come as `.crt` and `.key`. A K3s server's own listener keeps its certificate elsewhere (`dynamic-cert.json`).
    const fn pairs(self) -> &'static [&'static str] {
        match self {
            Self::ApiServer => &["server/tls/client-kube-apiserver", "server/tls/serving-kube-apiserver"],
            Self::Admin => &["server/tls/client-admin"],
            Self::AuthProxy => &["server/tls/client-auth-proxy"],
            Self::CloudController => &["server/tls/client-k3s-cloud-controller"],
            Self::ControllerManager => &["server/tls/client-controller"],
            Self::Etcd => &[
                "server/tls/etcd/client",
                "server/tls/etcd/server-client",
                "server/tls/etcd/peer-server-client",
            ],
            Self::Scheduler => &["server/tls/client-scheduler"],
            Self::Supervisor => &["server/tls/client-supervisor"],
            Self::K3sServer => &[],
            Self::KubeProxy => &["server/tls/client-kube-proxy", "agent/client-kube-proxy"],
            Self::Kubelet => &["agent/client-kubelet", "agent/serving-kubelet"],
            Self::K3sController => &["server/tls/client-k3s-controller", "agent/client-k3s-controller"],
            Self::CertificateAuthority => &[
                "server/tls/server-ca",
                "server/tls/client-ca",
                "server/tls/request-header-ca",
                "server/tls/etcd/peer-ca",
                "server/tls/etcd/server-ca",
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_by_k3s_names_and_authorities_are_not() {
        for service in Service::SERVER {
            assert_eq!(Service::named(service.name()), Some(service));
        }
        for name in ["certificate-authority", "", "Kubelet", "kubelet,admin"] {
            assert_eq!(Service::named(name), None, "{name}");
        }
    }

    #[test]
    fn a_kubelets_files_are_the_nodes_and_the_keys_that_old_agents_share() {
        let files = Service::Kubelet.files(Path::new("/data"));
        let files: Vec<_> = files.iter().filter_map(|path| path.to_str()).collect();
        assert_eq!(
            files,
            [
                "/data/server/tls/client-kubelet.key",
                "/data/server/tls/serving-kubelet.key",
                "/data/agent/client-kubelet.crt",
                "/data/agent/client-kubelet.key",
                "/data/agent/serving-kubelet.crt",
                "/data/agent/serving-kubelet.key",
            ]
        );
        assert_eq!(Service::K3sServer.files(Path::new("/data")), Vec::<PathBuf>::new());
    }
}
