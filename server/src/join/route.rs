//! The supervisor's routes: which path is which, with what methods, for whom (6.2 of the protocol).
//!
//! Pure. What is not in this table goes to the Kubernetes API, except what lies under the prefix: that is ours to refuse.

use hyper::Method;

use super::passwd::{AGENT_GROUP, SERVER_GROUP};
use crate::peers;

/// Group of every kubelet's certificate.
pub const NODES_GROUP: &str = "system:nodes";

/// Group of the servers among others; which of its members is a server is looked at beside.
const MASTERS_GROUP: &str = "system:masters";

/// Who may fetch what an agent needs.
const AGENTS: &[&str] = &[AGENT_GROUP, SERVER_GROUP, NODES_GROUP, "system:bootstrappers"];

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
    /// Under our prefix, but nothing we offer.
    Unknown,
}

/// The route of a path; `None`: not one of ours.
pub fn find(path: &str) -> Option<Route> {
    let route = match path {
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
            Self::Token => method == Method::PUT,
            Self::Unknown => true,
            _ => method == Method::GET || method == Method::HEAD,
        }
    }

    /// Whether only the certificate of a server opens it.
    pub const fn is_for_servers(self) -> bool {
        matches!(self, Self::Dial | Self::Hints)
    }

    /// The groups of which a caller needs one; `None`: anyone may, without saying who.
    pub const fn groups(self) -> Option<&'static [&'static str]> {
        match self {
            Self::CaCerts | Self::Ping => None,
            Self::Dial | Self::Hints => Some(&[MASTERS_GROUP]),
            Self::Connect => Some(&[NODES_GROUP]),
            Self::Token => Some(&[SERVER_GROUP]),
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
            "/api",
            "/readyz",
            "/v1-k3s",
            "/v1-k3sx/config",
            "/cacerts/",
            "/version",
        ] {
            assert_eq!(find(path), None, "{path}");
        }
        assert_eq!(find("/v1-k3s/encrypt/status"), Some(Route::Unknown));
        assert_eq!(find("/v1-k3s/config"), Some(Route::Config));
    }

    #[test]
    fn only_the_ca_bundle_and_ping_are_for_anyone() {
        for path in ["/cacerts", "/ping"] {
            assert_eq!(find(path).unwrap().groups(), None, "{path}");
        }
        for path in ["config", "connect", "client-kubelet.crt", "server-ca.crt", "nonsense"] {
            assert!(find(&format!("/v1-k3s/{path}")).unwrap().groups().is_some(), "{path}");
        }
        let tunnel = find("/v1-k3s/connect").unwrap().groups().unwrap();
        assert_eq!(tunnel, [NODES_GROUP], "a token alone opens no tunnel");
        let rotation = find("/v1-k3s/token").unwrap().groups().unwrap();
        assert_eq!(rotation, [SERVER_GROUP], "an agent does not rotate the token");
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
            let route = find(&format!("/v1-k3s/{path}")).unwrap();
            assert_eq!(route.takes(&method), taken, "{method} {path}");
        }
    }
}
