//! What certificates say (7.3): whom they name, what for, for how long, and who vouches for it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer as _;

use crate::server::{Server, node_headers};

const YEAR: Duration = Duration::from_secs(365 * 86_400);
const DAY: Duration = Duration::from_secs(86_400);

/// Common name, organisation, whether it is for servers (else for clients), how its authority's name begins.
type Leaf = (&'static str, Option<&'static str>, bool, &'static str);

/// The server's own, by their files below `tls/`.
const OWN: &[(&str, Leaf)] = &[
    (
        "client-admin",
        ("system:admin", Some("system:masters"), false, "k3s-client-ca"),
    ),
    (
        "client-supervisor",
        ("system:k3s-supervisor", Some("system:masters"), false, "k3s-client-ca"),
    ),
    (
        "client-controller",
        ("system:kube-controller-manager", None, false, "k3s-client-ca"),
    ),
    (
        "client-scheduler",
        ("system:kube-scheduler", None, false, "k3s-client-ca"),
    ),
    (
        "client-kube-apiserver",
        ("system:apiserver", Some("system:masters"), false, "k3s-client-ca"),
    ),
    ("client-kube-proxy", ("system:kube-proxy", None, false, "k3s-client-ca")),
    (
        "client-k3s-controller",
        ("system:k3s-controller", None, false, "k3s-client-ca"),
    ),
    (
        "client-k3s-cloud-controller",
        ("k3s-cloud-controller-manager", None, false, "k3s-client-ca"),
    ),
    (
        "client-auth-proxy",
        ("system:auth-proxy", None, false, "k3s-request-header-ca"),
    ),
    (
        "serving-kube-apiserver",
        ("kube-apiserver", None, true, "k3s-server-ca"),
    ),
];

/// The server's own, and those of a node.
pub fn certificates_say_what_those_of_k3s_say(server: &Server) {
    for (file, leaf) in OWN {
        let names = says(&server.file(&format!("tls/{file}.crt")), leaf);
        if *file == "serving-kube-apiserver" {
            for name in [
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "localhost",
                "box",
                "127.0.0.1",
                "::1",
                "10.43.0.1",
            ] {
                assert!(names.contains(&name.to_owned()), "{name}: {names:?}");
            }
        } else {
            assert!(names.is_empty(), "{file}: {names:?}");
        }
    }
    for (route, leaf, hosts) in [
        (
            "client-kubelet.crt",
            ("system:node:leaf", Some("system:nodes"), false, "k3s-client-ca"),
            &[][..],
        ),
        (
            "serving-kubelet.crt",
            ("leaf", None, true, "k3s-server-ca"),
            &["leaf", "localhost", "127.0.0.1", "192.0.2.9"],
        ),
        (
            "client-kube-proxy.crt",
            ("system:kube-proxy", None, false, "k3s-client-ca"),
            &[],
        ),
        (
            "client-k3s-controller.crt",
            ("system:k3s-controller", None, false, "k3s-client-ca"),
            &[],
        ),
    ] {
        let mut names = says(&server.signed(route, &node_headers("leaf")).chain, &leaf);
        let mut hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        names.sort_unstable();
        hosts.sort_unstable();
        assert_eq!(names, hosts, "{route}");
    }
}

/// Holds the first certificate of a chain to this, and returns the names and addresses that it is for.
fn says(chain: &str, (name, organisation, serves, authority): &Leaf) -> Vec<String> {
    let blocks: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .map(Result::unwrap)
        .collect();
    assert_eq!(blocks.len(), 2, "{name}: leaf and authority");
    let (_, leaf) = X509Certificate::from_der(&blocks[0]).unwrap();
    let (_, issuer) = X509Certificate::from_der(&blocks[1]).unwrap();
    let one = |found: Vec<&str>| found.first().map(ToString::to_string);
    let common = |of| {
        one(x509_parser::x509::X509Name::iter_common_name(of)
            .map(|part| part.as_str().unwrap())
            .collect())
    };
    let organisations = leaf.subject().iter_organization().map(|part| part.as_str().unwrap());
    let exactly = |count| assert_eq!(leaf.subject().iter_attributes().count(), count, "{name}");
    exactly(1 + usize::from(organisation.is_some()));
    assert_eq!(common(leaf.subject()).as_deref(), Some(*name));
    assert_eq!(one(organisations.collect()).as_deref(), *organisation, "{name}");
    assert!(
        common(leaf.issuer()).unwrap().starts_with(&format!("{authority}@")),
        "{name}"
    );
    assert_eq!(leaf.issuer().as_raw(), issuer.subject().as_raw(), "{name}");
    let key = &leaf.public_key().algorithm;
    assert_eq!(key.algorithm, OID_KEY_TYPE_EC_PUBLIC_KEY, "{name}");
    let curve = key.parameters.as_ref().unwrap().as_oid().unwrap();
    assert_eq!(curve, OID_EC_P256, "{name}");
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert_eq!((usage.server_auth, usage.client_auth), (*serves, !serves), "{name}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let end = Duration::from_secs(leaf.validity().not_after.timestamp().try_into().unwrap());
    assert!(end > now + YEAR - DAY && end < now + YEAR + DAY, "{name}: {end:?}");
    // An hour ago, by a clock that has gone on since.
    let age = i64::try_from(now.as_secs()).unwrap() - leaf.validity().not_before.timestamp();
    assert!((3600..3600 + 600).contains(&age), "{name}: {age}");
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(
        usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign(),
        "{name}"
    );
    assert!(!leaf.is_ca(), "{name}");
    let serial = leaf.raw_serial();
    assert!(
        serial.len() <= 8 && serial[0] < 0x80 && serial.iter().any(|byte| *byte > 0),
        "{name}: {serial:?}"
    );
    let Some(names) = leaf.subject_alternative_name().unwrap() else {
        return Vec::new();
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(four) => std::net::Ipv4Addr::from(four).to_string(),
            Err(_) => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(*bytes).unwrap()).to_string(),
        },
        other => panic!("{other:?}"),
    };
    names.value.general_names.iter().map(name).collect()
}
