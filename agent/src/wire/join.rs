//! How a node and the supervisor meet: header names, routes, the hash of a CA bundle, and the cluster's settings as
//! `/v1-k3s/config` carries them. Tokens are in `token`.
//!
//! Source: K3s v1.31 to v1.36, `pkg/clientaccess`, `pkg/daemons/config`. Go field names and Go encodings are the
//! contract: real K3s agents read what [`ClusterConfig::to_json`] writes.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use serde_json::{Value, json};

/// Path prefix of the supervisor's routes.
pub const PREFIX: &str = "/v1-k3s";
/// The CA bundle, for anyone.
pub const CACERTS: &str = "/cacerts";
/// Lower-case node name.
pub const NODE_NAME: &str = "k3s-node-name";
/// The node's password, 32 hex digits.
pub const NODE_PASSWORD: &str = "k3s-node-password";
/// Comma-separated addresses of the node.
pub const NODE_IP: &str = "k3s-node-ip";

/// The hash that a token pins: of the bytes as served for a single certificate, of the root's DER for a chain.
///
/// A bundle that cannot be read as a chain is hashed as bytes, as K3s does. Signatures of a chain are not checked here:
/// issuer and subject decide, and a bundle with a wrong chain cannot match a hash made from a right one unless it ends
/// in the same root, which is what the hash vouches for.
///
/// Source: K3s v1.31, `pkg/clientaccess` `hashCA`.
pub fn ca_hash(pem: &[u8]) -> String {
    let chain = certificates(pem);
    let root = match chain.as_slice() {
        [] | [_] => None,
        [first, ..] => root_of(first, &chain),
    };
    hex(digest::digest(&digest::SHA256, root.unwrap_or(pem)).as_ref())
}

/// The DER of every certificate in a PEM bundle; what is not one is passed over.
pub fn certificates(pem: &[u8]) -> Vec<Vec<u8>> {
    use rustls_pki_types::{CertificateDer, pem::PemObject as _};
    CertificateDer::pem_slice_iter(pem)
        .filter_map(|der| der.ok().map(|der| der.to_vec()))
        .collect()
}

fn root_of<'a>(first: &'a [u8], chain: &'a [Vec<u8>]) -> Option<&'a [u8]> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let mut der = first;
    for _ in 0..chain.len() {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        if certificate.issuer().as_raw() == certificate.subject().as_raw() {
            return Some(der);
        }
        der = chain.iter().find(|other| {
            X509Certificate::from_der(other)
                .is_ok_and(|(_, other)| other.subject().as_raw() == certificate.issuer().as_raw())
        })?;
    }
    None
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A range of addresses, `10.42.0.0/16`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Cidr {
    /// Its first address; bits beyond the prefix are zero.
    pub address: IpAddr,
    /// How many leading bits are fixed.
    pub prefix: u8,
}

/// A text that is no range of addresses.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no range of addresses such as 10.42.0.0/16")]
pub struct CidrError(String);

impl Cidr {
    /// The range with this prefix that holds `address`; `None` when the prefix is too long.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Self { address, prefix })
    }

    /// Whether the range holds this address.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::new(address, self.prefix) == Some(self)
    }

    /// Go's `net.IPNet`: `{"IP":"10.42.0.0","Mask":"//8AAA=="}`.
    fn to_go(self) -> Value {
        let mask = match self.address {
            IpAddr::V4(_) => u32::MAX
                .checked_shl(32 - u32::from(self.prefix))
                .unwrap_or(0)
                .to_be_bytes()
                .to_vec(),
            IpAddr::V6(_) => u128::MAX
                .checked_shl(128 - u32::from(self.prefix))
                .unwrap_or(0)
                .to_be_bytes()
                .to_vec(),
        };
        json!({ "IP": self.address.to_string(), "Mask": STANDARD.encode(mask) })
    }

    fn from_go(value: &Value) -> Option<Self> {
        let address = value.get("IP")?.as_str()?.parse().ok()?;
        let mask = STANDARD.decode(value.get("Mask")?.as_str()?).ok()?;
        let ones: u32 = mask.iter().map(|byte| byte.leading_ones()).sum();
        Self::new(address, u8::try_from(ones).ok()?)
    }
}

impl std::str::FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            Self::new(address.parse().ok()?, prefix.parse().ok()?)
        };
        parse().ok_or_else(|| CidrError(text.into()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The settings of a cluster that its nodes follow. What an agent does not read is not here.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the wire format has these switches, each on its own"
)]
pub struct ClusterConfig {
    /// Ranges of pod addresses; one per family, the first is the main one.
    pub cluster_cidrs: Vec<Cidr>,
    /// Ranges of service addresses.
    pub service_cidrs: Vec<Cidr>,
    /// First node port.
    pub node_port_base: u16,
    /// How many node ports.
    pub node_port_size: u16,
    /// Addresses of the cluster's DNS service.
    pub cluster_dns: Vec<IpAddr>,
    /// Such as `cluster.local`.
    pub cluster_domain: String,
    /// Such as `vxlan`, `host-gw`, `none`.
    pub flannel_backend: String,
    /// Masquerade IPv6.
    pub flannel_ipv6_masq: bool,
    /// Nodes reach one another by their external addresses.
    pub flannel_external_ip: bool,
    /// What the tunnel may dial: `agent`, `pod`, `cluster`, `disabled`; empty from old servers.
    pub egress_selector_mode: String,
    /// Port of the Kubernetes API.
    pub https_port: u16,
    /// Port of the supervisor; the same in plain K3s.
    pub supervisor_port: u16,
    /// Loopback port of the API on servers.
    pub api_server_port: u16,
    /// No cloud controller.
    pub disable_ccm: bool,
    /// No network policy.
    pub disable_npc: bool,
    /// No service proxy.
    pub disable_kube_proxy: bool,
    /// No service load balancer.
    pub disable_service_lb: bool,
    /// No Helm controller.
    pub disable_helm_controller: bool,
    /// Images from peers.
    pub embedded_registry: bool,
    /// Metrics on the supervisor port.
    pub supervisor_metrics: bool,
    /// Key shared by all nodes, 96 hex digits.
    pub ipsec_psk: String,
    /// Such as `VersionTLS12`.
    pub min_tls_version: String,
    /// IANA names.
    pub cipher_suites: Vec<String>,
    /// Where packaged images come from; empty for the default.
    pub system_default_registry: String,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            cluster_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            node_port_base: 30_000,
            node_port_size: 2768,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            flannel_backend: "vxlan".into(),
            flannel_ipv6_masq: false,
            flannel_external_ip: false,
            egress_selector_mode: "agent".into(),
            https_port: 6443,
            supervisor_port: 6443,
            api_server_port: 6444,
            disable_ccm: false,
            disable_npc: false,
            disable_kube_proxy: false,
            disable_service_lb: false,
            disable_helm_controller: false,
            embedded_registry: false,
            supervisor_metrics: false,
            ipsec_psk: String::new(),
            min_tls_version: String::new(),
            cipher_suites: Vec::new(),
            system_default_registry: String::new(),
        }
    }
}

impl ClusterConfig {
    /// The API's port, where the supervisor has another one.
    pub fn port_of_api(&self) -> Option<u16> {
        Some(self.https_port).filter(|port| *port != self.supervisor_port)
    }

    /// The JSON that K3s agents read.
    pub fn to_json(&self) -> Value {
        let ranges = |all: &[Cidr]| all.iter().map(|range| range.to_go()).collect::<Vec<_>>();
        let first = |all: &[Cidr]| all.first().map_or(Value::Null, |range| range.to_go());
        let addresses: Vec<String> = self.cluster_dns.iter().map(IpAddr::to_string).collect();
        json!({
            "ClusterIPRange": first(&self.cluster_cidrs), "ClusterIPRanges": ranges(&self.cluster_cidrs),
            "ServiceIPRange": first(&self.service_cidrs), "ServiceIPRanges": ranges(&self.service_cidrs),
            "ServiceNodePortRange": { "Base": self.node_port_base, "Size": self.node_port_size },
            "ClusterDNS": addresses.first().cloned().unwrap_or_default(), "ClusterDNSs": addresses,
            "ClusterDomain": self.cluster_domain,
            "FlannelBackend": self.flannel_backend, "FlannelIPv6Masq": self.flannel_ipv6_masq,
            "FlannelExternalIP": self.flannel_external_ip, "FlannelIPMasqDisableRandomFully": false,
            "EgressSelectorMode": self.egress_selector_mode,
            "HTTPSPort": self.https_port, "SupervisorPort": self.supervisor_port, "APIServerPort": self.api_server_port,
            "DisableCCM": self.disable_ccm, "DisableNPC": self.disable_npc,
            "DisableKubeProxy": self.disable_kube_proxy, "DisableServiceLB": self.disable_service_lb,
            "DisableHelmController": self.disable_helm_controller,
            "EmbeddedRegistry": self.embedded_registry, "SupervisorMetrics": self.supervisor_metrics,
            "IPSECPSK": self.ipsec_psk,
            "MinTLSVersion": self.min_tls_version, "CipherSuites": self.cipher_suites,
            "SystemDefaultRegistry": self.system_default_registry,
        })
    }

    /// Reads what any K3s server sends: unknown fields are passed over, missing or odd ones keep their default.
    pub fn from_json(value: &Value) -> Self {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
        let number = |value: Option<&Value>, default: u16| {
            value
                .and_then(Value::as_u64)
                .and_then(|n| u16::try_from(n).ok())
                .filter(|n| *n > 0)
                .unwrap_or(default)
        };
        let items = |key: &str| {
            value
                .get(key)
                .and_then(Value::as_array)
                .map(Vec::as_slice)
                .unwrap_or_default()
        };
        let ranges = |many: &str, one: &str| -> Vec<Cidr> {
            let all: Vec<_> = items(many).iter().filter_map(Cidr::from_go).collect();
            if all.is_empty() {
                value.get(one).and_then(Cidr::from_go).into_iter().collect()
            } else {
                all
            }
        };
        let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
        let mut cluster_dns: Vec<IpAddr> = items("ClusterDNSs").iter().filter_map(address).collect();
        if cluster_dns.is_empty() {
            cluster_dns = value.get("ClusterDNS").and_then(address).into_iter().collect();
        }
        let default = Self::default();
        let https_port = number(value.get("HTTPSPort"), default.https_port);
        let ports = value.get("ServiceNodePortRange");
        Self {
            cluster_cidrs: ranges("ClusterIPRanges", "ClusterIPRange"),
            service_cidrs: ranges("ServiceIPRanges", "ServiceIPRange"),
            node_port_base: number(ports.and_then(|ports| ports.get("Base")), default.node_port_base),
            node_port_size: number(ports.and_then(|ports| ports.get("Size")), default.node_port_size),
            cluster_dns,
            cluster_domain: Some(text("ClusterDomain"))
                .filter(|text| !text.is_empty())
                .unwrap_or(default.cluster_domain),
            flannel_backend: text("FlannelBackend"),
            flannel_ipv6_masq: flag("FlannelIPv6Masq"),
            flannel_external_ip: flag("FlannelExternalIP"),
            egress_selector_mode: text("EgressSelectorMode"),
            https_port,
            supervisor_port: number(value.get("SupervisorPort"), https_port),
            api_server_port: number(value.get("APIServerPort"), default.api_server_port),
            disable_ccm: flag("DisableCCM"),
            disable_npc: flag("DisableNPC"),
            disable_kube_proxy: flag("DisableKubeProxy"),
            disable_service_lb: flag("DisableServiceLB"),
            disable_helm_controller: flag("DisableHelmController"),
            embedded_registry: flag("EmbeddedRegistry"),
            supervisor_metrics: flag("SupervisorMetrics"),
            ipsec_psk: text("IPSECPSK"),
            min_tls_version: text("MinTLSVersion"),
            cipher_suites: items("CipherSuites")
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect(),
            system_default_registry: text("SystemDefaultRegistry"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_certificate_is_hashed_as_served_and_a_chain_by_its_root() {
        use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
        let params = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = params("root").self_signed(&root_key).unwrap();
        let issuer = Issuer::new(params("root"), root_key);
        let middle = params("middle").signed_by(&key, &issuer).unwrap();
        let single = format!("# kept\n{}", root.pem());
        assert_eq!(
            ca_hash(single.as_bytes()),
            hex(digest::digest(&digest::SHA256, single.as_bytes()).as_ref())
        );
        let other_key = KeyPair::generate().unwrap();
        let other = params("other").self_signed(&other_key).unwrap();
        let stranger = format!("{}{}", middle.pem(), other.pem());
        assert_eq!(
            ca_hash(stranger.as_bytes()),
            hex(digest::digest(&digest::SHA256, stranger.as_bytes()).as_ref()),
            "a chain that ends nowhere"
        );
        let chain = format!("{}{}", middle.pem(), root.pem());
        assert_eq!(
            ca_hash(chain.as_bytes()),
            hex(digest::digest(&digest::SHA256, root.der()).as_ref())
        );
    }

    #[test]
    fn ranges_are_encoded_as_go_does() {
        let range: Cidr = "10.42.0.0/16".parse().unwrap();
        assert_eq!(range.to_go(), json!({"IP": "10.42.0.0", "Mask": "//8AAA=="}));
        for text in [
            "10.42.0.0/16",
            "0.0.0.0/0",
            "10.42.3.0/24",
            "fd00:42::/56",
            "::/0",
            "10.0.0.1/32",
        ] {
            let range: Cidr = text.parse().unwrap();
            assert_eq!(range.to_string(), text);
            assert_eq!(Cidr::from_go(&range.to_go()), Some(range), "{text}");
        }
        for text in ["10.42.0.0", "10.42.0.0/33", "x/8", "::/129", ""] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
        assert!(range.contains("10.42.9.1".parse().unwrap()));
        assert!(!range.contains("10.43.9.1".parse().unwrap()));
        assert!(!range.contains("::1".parse().unwrap()));
    }

    #[test]
    fn settings_survive_the_round_trip_and_old_servers_are_understood() {
        let config = ClusterConfig {
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap(), "fd00::/56".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            cluster_dns: vec!["10.43.0.10".parse().unwrap()],
            disable_npc: true,
            ..ClusterConfig::default()
        };
        assert_eq!(ClusterConfig::from_json(&config.to_json()), config);
        let old = json!({"ClusterIPRange": {"IP": "10.42.0.0", "Mask": "//8AAA=="}, "ClusterDNS": "10.43.0.10",
            "ClusterDNSs": null, "HTTPSPort": 7443, "SupervisorPort": 0, "New": {"Field": 1}});
        let read = ClusterConfig::from_json(&old);
        assert_eq!(read.cluster_cidrs, ["10.42.0.0/16".parse().unwrap()]);
        assert_eq!(read.cluster_dns, ["10.43.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            (read.https_port, read.supervisor_port, read.node_port_base),
            (7443, 7443, 30_000)
        );
        assert_eq!(
            ClusterConfig::from_json(&json!({"ClusterDNS": ""})).cluster_dns,
            [] as [IpAddr; 0]
        );
    }
}
