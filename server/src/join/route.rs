//! The supervisor's routes: which path is which, with what methods, for whom (6.2 of the protocol).
//!
//! Pure. What is not in this table goes to the Kubernetes API, except what lies under the prefix: that is ours to refuse.

use agent::wire::status::{Reason, Status};
use hyper::Method;

use super::passwd::{AGENT_GROUP, SERVER_GROUP};
use crate::peers;

/// Group of every kubelet's certificate.
pub const NODES_GROUP: &str = "system:nodes";

/// Group of the servers among others; which of its members is a server is looked at beside.
const MASTERS_GROUP: &str = "system:masters";

/// Who may fetch what an agent needs.
const AGENTS: &[&str] = &[AGENT_GROUP, SERVER_GROUP, NODES_GROUP, "system:bootstrappers"];

/// What lies under it are files.
pub const STATIC: &str = "/static/";

/// What K3s answers where Secrets have never been encrypted.
pub const NOT_ENCRYPTED: &str = r#"{"stage":"","activekey":""}"#;

/// Which certificate is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Certificate {
    /// `system:node:<name>`: the kubelet's hand on the API.
    ClientKubelet,
    /// The kubelet's HTTPS port.
    ServingKubelet,
    /// `system:kube-proxy`.
    KubeProxy,
    /// `system:k3s-controller`.
    K3sController,
}

/// One of the supervisor's own paths.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route {
    /// The CA bundle, for anyone.
    CaCerts,
    /// Whether somebody is there, for anyone.
    Ping,
    /// The cluster's settings.
    Config,
    /// Addresses of the servers.
    Servers,
    /// Whether nodes can come.
    Ready,
    /// Whom servers and kubelets take for a client.
    ClientCa,
    /// Whom clients take for a server.
    ServerCa,
    /// A certificate.
    Issue(Certificate),
    /// The tunnel.
    Connect,
    /// A stream to a node, for another server.
    Dial,
    /// Another server's news of its commits.
    Hints,
    /// The cluster's token becomes another one.
    Token,
    /// A file of `<data>/server/static`, for anyone.
    Static,
    /// How Secrets are encrypted.
    EncryptionStatus,
    /// They are to be encrypted otherwise.
    EncryptionConfig,
    /// Other certificate authorities are to take over.
    ReplaceAuthorities,
    /// What a server of an embedded etcd hands to the next one.
    ServerBootstrap,
    /// `CONNECT`: a stream to anywhere in the cluster.
    Proxy,
    /// Under our prefix, but nothing we offer.
    Unknown,
}

/// The route of a request; `None`: not one of ours.
pub fn find(method: &Method, path: &str) -> Option<Route> {
    let route = match path {
        _ if method == Method::CONNECT => Route::Proxy,
        "/cacerts" => Route::CaCerts,
        "/ping" => Route::Ping,
        "/v1-k3s/config" => Route::Config,
        "/v1-k3s/apiservers" => Route::Servers,
        "/v1-k3s/readyz" => Route::Ready,
        "/v1-k3s/client-ca.crt" => Route::ClientCa,
        "/v1-k3s/server-ca.crt" => Route::ServerCa,
        "/v1-k3s/client-kubelet.crt" => Route::Issue(Certificate::ClientKubelet),
        "/v1-k3s/serving-kubelet.crt" => Route::Issue(Certificate::ServingKubelet),
        "/v1-k3s/client-kube-proxy.crt" => Route::Issue(Certificate::KubeProxy),
        "/v1-k3s/client-k3s-controller.crt" => Route::Issue(Certificate::K3sController),
        "/v1-k3s/connect" => Route::Connect,
        peers::DIAL => Route::Dial,
        peers::HINTS => Route::Hints,
        "/v1-k3s/token" => Route::Token,
        "/v1-k3s/encrypt/status" => Route::EncryptionStatus,
        "/v1-k3s/encrypt/config" => Route::EncryptionConfig,
        "/v1-k3s/cert/cacerts" => Route::ReplaceAuthorities,
        "/v1-k3s/server-bootstrap" => Route::ServerBootstrap,
        other if other.starts_with(STATIC) => Route::Static,
        other if other.starts_with("/v1-k3s/") => Route::Unknown,
        _ => return None,
    };
    Some(route)
}

impl Route {
    /// Whether the route has this method.
    pub fn takes(self, method: &Method) -> bool {
        match self {
            Self::Issue(_) => method == Method::POST || method == Method::GET,
            Self::Connect | Self::Dial | Self::Hints => method == Method::GET,
            Self::Token | Self::EncryptionConfig | Self::ReplaceAuthorities => method == Method::PUT,
            Self::Unknown | Self::Proxy => true,
            _ => method == Method::GET || method == Method::HEAD,
        }
    }

    /// Whether only the certificate of a server opens it.
    pub const fn is_for_servers(self) -> bool {
        matches!(self, Self::Dial | Self::Hints)
    }

    /// What is said to whoever may use a route that K3s has and this server has nothing behind.
    ///
    /// Sources: K3s v1.36 `pkg/server/handlers` (`Bootstrap`: 400 `etcd disabled`; `EncryptionConfig`: faults are 400);
    /// the others are `docs/k3s-differences.md`'s.
    pub fn declined(self) -> Option<Status> {
        let (reason, why) = match self {
            Self::ServerBootstrap => (
                Reason::BadRequest,
                "etcd disabled: servers of this cluster share a datastore; give the new one --datastore-endpoint and --token",
            ),
            Self::EncryptionConfig => (
                Reason::BadRequest,
                "this server does not encrypt Secrets in its datastore, so there are no keys to change",
            ),
            Self::ReplaceAuthorities => (
                Reason::MethodNotAllowed,
                "this server does not replace its certificate authorities while it runs",
            ),
            Self::Proxy => (
                Reason::MethodNotAllowed,
                "CONNECT is not offered: the API reaches nodes by itself; ask it for logs, exec or the node's proxy",
            ),
            _ => return None,
        };
        Some(Status::failure(reason, why))
    }

    /// The groups of which a caller needs one; `None`: anyone may, without saying who.
    pub const fn groups(self) -> Option<&'static [&'static str]> {
        match self {
            Self::CaCerts | Self::Ping | Self::Static => None,
            Self::Dial | Self::Hints | Self::Proxy => Some(&[MASTERS_GROUP]),
            Self::Connect => Some(&[NODES_GROUP]),
            Self::Token
            | Self::EncryptionStatus
            | Self::EncryptionConfig
            | Self::ReplaceAuthorities
            | Self::ServerBootstrap => Some(&[SERVER_GROUP]),
            Self::Config
            | Self::Servers
            | Self::Ready
            | Self::ClientCa
            | Self::ServerCa
            | Self::Issue(_)
            | Self::Unknown => Some(AGENTS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_gets_what_is_not_under_the_supervisors_paths() {
        for path in [
            "/",
            "/static",
            "/api",
            "/readyz",
            "/v1-k3s",
            "/v1-k3sx/config",
            "/cacerts/",
            "/version",
        ] {
            assert_eq!(find(&Method::GET, path), None, "{path}");
        }
        for (path, route) in [
            ("/v1-k3s/nonsense", Route::Unknown),
            ("/v1-k3s/config", Route::Config),
            ("/static/charts/x.tgz", Route::Static),
        ] {
            assert_eq!(find(&Method::GET, path), Some(route), "{path}");
            assert_eq!(find(&Method::CONNECT, path), Some(Route::Proxy), "{path}");
        }
    }

    #[test]
    fn only_the_ca_bundle_ping_and_files_are_for_anyone() {
        let find = |path: &str| find(&Method::GET, path);
        for path in ["/cacerts", "/ping", "/static/x"] {
            assert_eq!(find(path).unwrap().groups(), None, "{path}");
        }
        for path in ["config", "connect", "client-kubelet.crt", "server-ca.crt", "nonsense"] {
            assert!(find(&format!("/v1-k3s/{path}")).unwrap().groups().is_some(), "{path}");
        }
        let tunnel = find("/v1-k3s/connect").unwrap().groups().unwrap();
        assert_eq!(tunnel, [NODES_GROUP], "a token alone opens no tunnel");
        for path in [
            "token",
            "encrypt/status",
            "encrypt/config",
            "cert/cacerts",
            "server-bootstrap",
        ] {
            let groups = find(&format!("/v1-k3s/{path}")).unwrap().groups().unwrap();
            assert_eq!(groups, [SERVER_GROUP], "{path} is not for agents");
        }
    }

    #[test]
    fn certificates_are_posted_for_and_old_agents_get_them() {
        for (path, method, taken) in [
            ("client-kubelet.crt", Method::POST, true),
            ("client-kubelet.crt", Method::GET, true),
            ("client-kubelet.crt", Method::PUT, false),
            ("config", Method::POST, false),
            ("connect", Method::POST, false),
            ("token", Method::PUT, true),
            ("token", Method::GET, false),
        ] {
            let route = find(&method, &format!("/v1-k3s/{path}")).unwrap();
            assert_eq!(route.takes(&method), taken, "{method} {path}");
        }
    }
}
