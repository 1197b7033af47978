//! The cluster's authorities (7.1), and the keys of certificates that are signed (2.4).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P384_SHA384, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::certificates::{key, rsa_key};
use crate::server::{AGENT_TOKEN, Server, basic, csr, node_headers};

const DAY: i64 = 86_400;
const HOUR: i64 = 3600;

pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

/// Ten years on P-256, signed by themselves.
pub fn the_five_authorities_are_those_of_k3s(server: &Server) {
    for (file, prefix) in [
        ("server-ca", "k3s-server-ca"),
        ("client-ca", "k3s-client-ca"),
        ("request-header-ca", "k3s-request-header-ca"),
        ("etcd/server-ca", "etcd-server-ca"),
        ("etcd/peer-ca", "etcd-peer-ca"),
    ] {
        let pem = server.file(&format!("tls/{file}.crt"));
        let ders: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .map(Result::unwrap)
            .collect();
        let [der] = &ders[..] else { panic!("{file}: {pem}") };
        let (_, authority) = X509Certificate::from_der(der).unwrap();
        let name = authority.subject().iter_common_name().next().unwrap().as_str().unwrap();
        let made: i64 = name.strip_prefix(&format!("{prefix}@")).unwrap().parse().unwrap();
        assert!((now() - 600..=now()).contains(&made), "{name}");
        assert_eq!(authority.issuer().as_raw(), authority.subject().as_raw(), "{file}");
        assert!(authority.verify_signature(None).is_ok(), "{file}");
        let validity = authority.validity();
        assert_eq!(validity.not_before.timestamp(), made - HOUR, "{file}");
        assert_eq!(validity.not_after.timestamp(), made + 3650 * DAY, "{file}");
        let usage = authority.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && usage.key_cert_sign());
        assert!(authority.basic_constraints().unwrap().unwrap().value.ca, "{file}");
        let pair = key(&server.file(&format!("tls/{file}.key")));
        assert_eq!(authority.public_key().raw, pair.subject_public_key_info(), "{file}");
        for ending in ["crt", "key"] {
            let path = server.path(&format!("tls/{file}.{ending}"));
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
        if !file.contains('/') && file != "request-header-ca" {
            assert_eq!(server.file(&format!("tls/{file}.nochain.crt")), pem);
        }
    }
}

/// Whatever a request says beside its key: the route says who it is for. One that cannot be read is an old agent's.
pub fn of_a_request_its_key_counts(server: &Server) {
    let token = basic("node", AGENT_TOKEN);
    let mine = KeyPair::generate().unwrap();
    let mut broken = csr(&mine);
    let last = broken.len() - 1;
    broken[last] ^= 1;
    let mut params = CertificateParams::new(["evil.example".to_owned()]).unwrap();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    params.distinguished_name.push(DnType::CommonName, "system:admin");
    let named = params.serialize_request(&mine).unwrap();
    let large = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    // K3s' agents make keys on P-256, and send whichever they find in their file.
    let rsa = rsa_key(include_str!("../../server/src/join/vectors/rsa.pkcs1.pem"));
    for (what, body, pair) in [
        ("its signature broken", broken, &mine),
        ("with names", named.der().to_vec(), &mine),
        ("of P-384", csr(&large), &large),
        ("of RSA", csr(&rsa), &rsa),
    ] {
        let head = format!(
            "POST /v1-k3s/client-kubelet.crt HTTP/1.1\nHost: k3s\n{token}\nContent-Type: application/pkcs10\n{}",
            node_headers("odd")
        );
        let answer = server.open(None).ask(&head, &body);
        assert_eq!(answer.code(), 200, "{what}: {answer:?}");
        assert!(!answer.text().contains("PRIVATE KEY"), "{what}");
        let (der, subject) = (CertificateDer::from_pem_slice(&answer.body).unwrap(), "system:node:odd");
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(leaf.public_key().raw, pair.subject_public_key_info(), "{what}");
        let name = leaf.subject().iter_common_name().next().unwrap().as_str().unwrap();
        assert_eq!(name, subject, "{what}");
        assert!(leaf.subject_alternative_name().unwrap().is_none(), "{what}");
    }
    let pem = params.serialize_request(&mine).unwrap().pem().unwrap();
    for (method, route, file, body) in [
        ("POST", "client-kubelet", "client-kubelet", pem.as_bytes()),
        ("GET", "client-kubelet", "client-kubelet", b""),
        ("GET", "serving-kubelet", "serving-kubelet", b""),
        ("GET", "client-kube-proxy", "client-kube-proxy", b""),
        ("GET", "client-k3s-controller", "client-k3s-controller", b""),
    ] {
        let head = format!(
            "{method} /v1-k3s/{route}.crt HTTP/1.1\nHost: k3s\n{token}\n{}",
            node_headers("odd")
        );
        let answer = server.open(None).ask(&head, body);
        assert_eq!(answer.header("content-type"), Some("text/plain"), "{route}");
        let shared = server.file(&format!("tls/{file}.key"));
        assert!(answer.text().ends_with(&shared), "{route}: the key as it is on disk");
        let der = CertificateDer::from_pem_slice(&answer.body).unwrap();
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(
            leaf.public_key().raw,
            key(&shared).subject_public_key_info(),
            "{route}: it fits"
        );
    }
}

/// A node that says no address has its name and the loopback ones.
pub fn a_node_need_not_say_its_addresses(server: &Server) {
    let fields = node_headers("quiet").replace("k3s-Node-IP: 192.0.2.9", "X-None: 1");
    for route in ["client-kubelet.crt", "serving-kubelet.crt"] {
        let chain = server.signed(route, &fields).chain;
        let der = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        let names = leaf.subject_alternative_name().unwrap();
        let count = names.map_or(0, |names| names.value.general_names.len());
        assert_eq!(count, if route.starts_with("serving") { 3 } else { 0 }, "{route}");
    }
}
