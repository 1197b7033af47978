//! What goes into the certificate that a route signs: fixed by the route, whatever the request says (2.4, 7.3).
//!
//! Pure. Of the request only the public key counts; a body that is no PKCS #10, or no body, is an old agent's, who gets
//! a certificate for a key that the server has, and that key with it.

use std::net::IpAddr;

use jiff::Timestamp;
use rcgen::PublicKeyData;

use super::certificate::{Wanted, requested_key};
use super::pki::{Own, Pki, PkiError, SharedKey};
use super::route::{Certificate, NODES_GROUP};

/// The node that a kubelet's certificate is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Addresses that its kubelet answers under.
    pub addresses: Vec<IpAddr>,
}

/// What the certificate of this route says; `node` matters for the kubelet's only.
pub fn wanted(which: Certificate, node: &Node) -> Wanted {
    match which {
        Certificate::ClientKubelet => Wanted::client(&format!("system:node:{}", node.name), &[NODES_GROUP]),
        Certificate::ServingKubelet => {
            let fixed = [node.name.clone(), "localhost".to_owned(), "127.0.0.1".to_owned()];
            Wanted::server(
                &node.name,
                fixed.into_iter().chain(node.addresses.iter().map(IpAddr::to_string)),
            )
        }
        Certificate::KubeProxy => Wanted::client("system:kube-proxy", &[]),
        Certificate::K3sController => Wanted::client("system:k3s-controller", &[]),
    }
}

/// Signs; answers with the body of the response, PEM.
///
/// `request`: body of the request, DER.
///
/// # Errors
/// When a name cannot be put into a certificate.
pub fn issue(pki: &Pki, which: Certificate, node: &Node, request: &[u8], now: Timestamp) -> Result<String, PkiError> {
    let wanted = wanted(which, node);
    if let Some(key) = requested_key(request) {
        return sign(pki, which, &wanted, &key, now);
    }
    let own = match which {
        Certificate::ClientKubelet | Certificate::ServingKubelet => None,
        Certificate::KubeProxy => pki.own(Own::KubeProxy),
        Certificate::K3sController => pki.own(Own::K3sController),
    };
    let shared = match which {
        Certificate::ClientKubelet => pki.shared_key(SharedKey::ClientKubelet),
        Certificate::ServingKubelet => pki.shared_key(SharedKey::ServingKubelet),
        Certificate::KubeProxy | Certificate::K3sController => own.as_deref().map(|leaf| &leaf.key),
    };
    let key = shared.ok_or_else(|| PkiError::Tls("the key shared with old agents is missing".to_owned()))?;
    let chain = sign(pki, which, &wanted, key.pair(), now)?;
    Ok(chain + key.pem())
}

fn sign(
    pki: &Pki,
    which: Certificate,
    wanted: &Wanted,
    key: &impl PublicKeyData,
    now: Timestamp,
) -> Result<String, PkiError> {
    match which {
        Certificate::ServingKubelet => pki.sign_serving(wanted, key, now),
        Certificate::ClientKubelet | Certificate::KubeProxy | Certificate::K3sController => {
            pki.sign_client(wanted, key, now)
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};

    use super::*;
    use crate::join::certificate::{certificates, identity};
    use crate::join::key::PrivateKey;
    use crate::join::pki::Names;
    use crate::scratch::Scratch;

    fn node() -> Node {
        Node {
            name: "pi".to_owned(),
            addresses: vec!["192.0.2.9".parse().unwrap(), "fd00::9".parse().unwrap()],
        }
    }

    #[test]
    fn a_kubelet_serves_under_its_name_and_addresses() {
        let wanted = wanted(Certificate::ServingKubelet, &node());
        let sans: Vec<&str> = wanted.sans.iter().map(String::as_str).collect();
        assert_eq!(sans, ["127.0.0.1", "192.0.2.9", "fd00::9", "localhost", "pi"]);
    }

    #[test]
    fn the_route_decides_who_one_is_and_the_request_only_gives_the_key() {
        let scratch = Scratch::new("issue");
        let now = "2026-11-25T00:00:00Z".parse().unwrap();
        let pki = Pki::load_or_create(&scratch.0, &Names::default(), now).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "system:masters");
        let request = params.serialize_request(&key).unwrap();
        for (which, name, groups) in [
            (
                Certificate::ClientKubelet,
                "system:node:pi",
                vec!["system:nodes".to_owned()],
            ),
            (Certificate::ServingKubelet, "pi", vec![]),
            (Certificate::KubeProxy, "system:kube-proxy", vec![]),
            (Certificate::K3sController, "system:k3s-controller", vec![]),
        ] {
            let text = issue(&pki, which, &node(), request.der(), now).unwrap();
            assert!(!text.contains("PRIVATE KEY"), "{which:?}");
            let chain = certificates(&text).unwrap();
            assert_eq!(chain.len(), 2, "leaf and authority");
            assert_eq!(identity(&chain[0]).unwrap(), (name.to_owned(), groups), "{which:?}");
            let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
            assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
            let valid = leaf.validity();
            assert_eq!(valid.not_after.timestamp() - Timestamp::as_second(now), 365 * 86_400);
        }
    }

    #[test]
    fn an_agent_that_sends_no_request_gets_a_key_too() {
        let scratch = Scratch::new("issue-old");
        let now = "2026-11-25T00:00:00Z".parse().unwrap();
        let pki = Pki::load_or_create(&scratch.0, &Names::default(), now).unwrap();
        for which in [Certificate::ClientKubelet, Certificate::KubeProxy] {
            let text = issue(&pki, which, &node(), b"", now).unwrap();
            let key = PrivateKey::from_pem(&text).unwrap();
            let chain = certificates(&text).unwrap();
            let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
            assert_eq!(leaf.public_key().raw, key.public(), "{which:?}");
        }
    }
}
