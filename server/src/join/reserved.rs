//! Which names and addresses no node gets a serving certificate for: those by which clients know the API.
//!
//! Pure. A kubelet's serving certificate is of the same authority as the API server's own, and clients ask for no more than
//! that authority and the name. Whoever holds the agents' token could else pass for the API server. K3s signs whatever is asked
//! for. What stays open: every such certificate is for `localhost` and 127.0.0.1 too, which K3s' agents rely on.
//!
//! A node is not *called* so: a server asks a kubelet for the node's name, through the node's own tunnel and with a certificate that
//! may everything. A node `localhost` could lead that connection to an API server, whose certificate is for that name.

use std::net::IpAddr;

use super::issue::Node;
use super::pki::Names;

/// What is the API's own.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// The cluster's names for it, and the operator's (`--tls-san`); lower case.
    names: Vec<String>,
    /// Its Service.
    service: Option<IpAddr>,
    /// This server's node.
    node: String,
    /// This server's, and those that clients came to.
    own: Vec<IpAddr>,
    /// Those of them that its machine has, and not a device before it.
    here: Vec<IpAddr>,
    /// The operator's (`--tls-san`): a load balancer's, for one.
    said: Vec<IpAddr>,
}

/// Why a node gets no serving certificate: what is reserved, and what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Its name.
    #[error("{0}")]
    Name(String),
    /// One of its addresses, or a name that is one.
    #[error("{0}")]
    Address(String),
}

impl Reserved {
    /// On a server of these names. `is_here`: whether its machine has this address.
    pub fn new(names: &Names, is_here: impl Fn(IpAddr) -> bool) -> Self {
        let cluster = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
        let full = format!("kubernetes.default.svc.{}", names.cluster_domain.to_ascii_lowercase());
        let extra = names.extra.iter().map(|name| name.to_ascii_lowercase());
        let met = names.met.iter().filter_map(|name| name.parse().ok());
        let own: Vec<IpAddr> = names.addresses.iter().copied().chain(met).collect();
        Self {
            names: cluster.into_iter().chain([full]).chain(extra).collect(),
            service: names.service,
            node: names.node.to_ascii_lowercase(),
            here: own.iter().copied().filter(|address| is_here(*address)).collect(),
            own,
            said: names.extra.iter().filter_map(|name| name.parse().ok()).collect(),
        }
    }

    /// Whether this node may have a serving certificate.
    ///
    /// `servers`: addresses of all servers. `from`: where the request comes from. A server's own agent, and an agent beside it,
    /// may have that server's name and addresses. What comes through a load balancer comes from the balancer's.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn allows(&self, node: &Node, servers: &[IpAddr], from: IpAddr) -> Result<(), Refused> {
        let from = from.to_canonical();
        let here = from.is_loopback() || self.here.contains(&from);
        let (name, own) = (node.name.as_str(), node.name == self.node);
        if if own {
            !here
        } else {
            stands_for_loopback(name) || self.names.iter().any(|reserved| covers(reserved, name))
        } {
            return Err(Refused::Name(format!(
                "node name {name:?} is the API server's own, and a serving certificate for it would let this node pass for \
                 that: give the node another name with --node-name"
            )));
        }
        // A name that is an address is one in a certificate.
        let named = name.parse().ok();
        for address in node.addresses.iter().copied().chain(named) {
            let address = address.to_canonical();
            let reserved = match address {
                address if address.is_loopback() => false,
                address if Some(address) == self.service => true,
                address if self.own.contains(&address) => !here,
                address if servers.contains(&address) => address != from,
                address => self.said.contains(&address),
            };
            if reserved {
                return Err(Refused::Address(format!(
                    "{address} is an address of the API server, and a serving certificate for it would let node {name:?} pass \
                     for that; only a node on that very machine may have it: set this node's own with --node-ip"
                )));
            }
        }
        Ok(())
    }
}

/// Whether every API server's certificate is for this name.
fn stands_for_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse()
            .is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}

/// Whether a name of a certificate stands for this one: by itself, or by a `*` in the place of its first label, as clients
/// read it. Source: RFC 9525, 6.3.
fn covers(reserved: &str, name: &str) -> bool {
    let rest = |name: &str| name.split_once('.').map(|(_, rest)| rest.to_owned());
    match reserved.strip_prefix("*.") {
        Some(domain) => name == reserved || rest(name).as_deref() == Some(domain),
        None => reserved == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved() -> Reserved {
        let outside: IpAddr = "198.51.100.7".parse().unwrap();
        let names = Names {
            node: "Box-1".to_owned(),
            addresses: vec!["192.0.2.7".parse().unwrap(), "fd00::7".parse().unwrap(), outside],
            cluster_domain: "Cluster.local".to_owned(),
            service: Some("10.43.0.1".parse().unwrap()),
            extra: ["API.example.org", "*.Edge.example.org", "192.0.2.100"]
                .map(str::to_owned)
                .into(),
            ..Names::default()
        };
        Reserved::new(&names, |address| address != outside)
    }

    fn allows(name: &str, addresses: &[&str], from: &str) -> bool {
        let node = Node {
            name: name.to_owned(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        let servers = ["192.0.2.7".parse().unwrap(), "192.0.2.8".parse().unwrap()];
        reserved().allows(&node, &servers, from.parse().unwrap()).is_ok()
    }

    #[test]
    fn no_node_gets_a_name_by_which_clients_know_the_api() {
        for (name, allowed) in [
            ("pi", true),
            ("localhost", false),
            ("127.0.0.1", false),
            ("127.0.0.2", false),
            ("localhost.example.org", true),
            ("kubernetes-worker-1", true),
            ("kubernetes.example.org", true),
            ("kubernetes", false),
            ("kubernetes.default", false),
            ("kubernetes.default.svc", false),
            ("kubernetes.default.svc.cluster.local", false),
            ("api.example.org", false),
            // Clients take a name for this that the operator's wildcard stands for, and no others.
            ("pi.edge.example.org", false),
            ("a.pi.edge.example.org", true),
            ("edge.example.org", true),
            ("piedge.example.org", true),
            // In a certificate it would be the address.
            ("10.43.0.1", false),
            ("192.0.2.8", false),
            ("192.0.2.9", true),
        ] {
            assert_eq!(allows(name, &["192.0.2.9"], "192.0.2.9"), allowed, "{name}");
        }
    }

    #[test]
    fn an_address_of_a_server_is_for_nodes_on_that_server_only() {
        for (address, from, allowed) in [
            ("192.0.2.9", "192.0.2.9", true),
            ("192.0.2.9", "198.51.100.1", true),
            ("127.0.0.1", "192.0.2.9", true),
            // The Service's is nobody's.
            ("10.43.0.1", "192.0.2.9", false),
            ("10.43.0.1", "127.0.0.1", false),
            // This server's.
            ("192.0.2.7", "192.0.2.9", false),
            ("fd00::7", "192.0.2.9", false),
            ("::ffff:192.0.2.7", "192.0.2.9", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "::ffff:192.0.2.7", true),
            ("192.0.2.7", "127.0.0.1", true),
            ("192.0.2.7", "::1", true),
            ("fd00::7", "192.0.2.7", true),
            ("192.0.2.100", "192.0.2.9", false),
            // The operator's load balancer's: all come from there.
            ("192.0.2.100", "192.0.2.100", false),
            ("192.0.2.7", "192.0.2.100", false),
            // Advertised, but of a device that translates addresses.
            ("198.51.100.7", "198.51.100.7", false),
            ("198.51.100.7", "192.0.2.7", true),
            // Another server's.
            ("192.0.2.8", "192.0.2.9", false),
            ("192.0.2.8", "127.0.0.1", false),
            ("192.0.2.8", "192.0.2.8", true),
        ] {
            assert_eq!(
                allows("pi", &["192.0.2.20", address], from),
                allowed,
                "{address} from {from}"
            );
        }
    }

    #[test]
    fn a_servers_own_name_is_for_its_own_node() {
        for (from, allowed) in [
            ("127.0.0.1", true),
            ("192.0.2.7", true),
            ("192.0.2.9", false),
            ("192.0.2.100", false),
            ("198.51.100.7", false),
        ] {
            assert_eq!(allows("box-1", &[], from), allowed, "{from}");
        }
    }
    #[test]
    fn a_server_whose_machine_is_called_localhost_keeps_its_own_node() {
        let names = Names {
            node: "localhost".to_owned(),
            ..Names::default()
        };
        let reserved = Reserved::new(&names, |_| false);
        let node = Node {
            name: "localhost".to_owned(),
            addresses: Vec::new(),
        };
        for (from, allowed) in [("127.0.0.1", true), ("192.0.2.9", false)] {
            assert_eq!(
                reserved.allows(&node, &[], from.parse().unwrap()).is_ok(),
                allowed,
                "{from}"
            );
        }
    }
}
