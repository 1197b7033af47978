//! Client certificates that name nobody: the handshake takes them, and the request is answered by what else it carries
//! (K3s v1.36 `pkg/cluster/https.go`, Kubernetes v1.36 `apiserver/pkg/authentication/request/x509`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::json;

use crate::http::Certificate;
use crate::routes::WHO_MAY;
use crate::server::{AGENT_TOKEN, PASSWORD, Server, TOKEN, basic, csr, node_headers};

/// The same node with a certificate that ran out, is not valid yet, is of another cluster, or is for servers only.
fn refused(server: &Server) -> Vec<(&'static str, Certificate)> {
    let own = client_authority(server);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Of the same name: a key makes an authority.
    params.distinguished_name = authority_name(server);
    let foreign = Issuer::new(params, KeyPair::generate().unwrap());
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    vec![
        ("expired", node_certificate(&own, (2020, 2021), client.clone())),
        ("not valid yet", node_certificate(&own, (4000, 4001), client.clone())),
        ("of another cluster", node_certificate(&foreign, (2020, 4000), client)),
        (
            "for servers",
            node_certificate(&own, (2020, 4000), ExtendedKeyUsagePurpose::ServerAuth),
        ),
    ]
}

/// The kubelet's certificate of node `pi`.
fn node_certificate(
    issuer: &Issuer<'_, KeyPair>,
    (from, until): (i32, i32),
    usage: ExtendedKeyUsagePurpose,
) -> Certificate {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, "system:node:pi");
    (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().unwrap();
    Certificate {
        chain: params.signed_by(&key, issuer).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

/// The cluster's own authority for clients: its name and its key.
fn client_authority(server: &Server) -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = authority_name(server);
    Issuer::new(params, key(&server.file("tls/client-ca.key")))
}

fn authority_name(server: &Server) -> DistinguishedName {
    const PREFIX: &str = "k3s-client-ca@";
    let der = body(&server.file("tls/client-ca.crt"));
    let at = der.windows(PREFIX.len()).position(|part| part == PREFIX.as_bytes());
    let digits = der[at.unwrap() + PREFIX.len()..].iter();
    let digits: String = digits
        .map(|byte| char::from(*byte))
        .take_while(char::is_ascii_digit)
        .collect();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("{PREFIX}{digits}"));
    name
}

/// A key on P-256 as K3s writes it (RFC 5915).
pub fn key(pem: &str) -> KeyPair {
    // id-ecPublicKey, prime256v1
    let algorithm = [
        0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7,
    ];
    enveloped(&algorithm, pem)
}

/// An RSA key as Go writes it (RFC 8017).
pub fn rsa_key(pem: &str) -> KeyPair {
    // rsaEncryption, null
    let algorithm = [0x30, 0x0d, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
    enveloped(&algorithm, pem)
}

/// A key in the envelope that rcgen takes (RFC 5958).
fn enveloped(algorithm: &[u8], pem: &str) -> KeyPair {
    let tag = |tag: u8, content: &[u8]| {
        let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
        let head = match (high, low) {
            (0, 0..0x80) => vec![tag, low],
            (0, _) => vec![tag, 0x81, low],
            _ => vec![tag, 0x82, high, low],
        };
        [head.as_slice(), content].concat()
    };
    let all = [&[2, 1, 0][..], algorithm, &tag(4, &body(pem))].concat();
    KeyPair::try_from(&PrivatePkcs8KeyDer::from(tag(0x30, &all))).unwrap()
}

/// What the first block of a PEM text holds.
fn body(pem: &str) -> Vec<u8> {
    let lines = pem.lines().skip_while(|line| !line.starts_with("-----BEGIN")).skip(1);
    let text: String = lines.take_while(|line| !line.starts_with('-')).collect();
    STANDARD.decode(text).unwrap()
}

/// Alone it is 401 wherever somebody has to be known; beside a right password it does no harm.
pub fn what_names_nobody_is_401_and_stands_in_no_passwords_way(server: &Server) {
    server.joined("pi");
    for (what, certificate) in refused(server) {
        for (method, path, codes) in WHO_MAY {
            let alone = if codes[0] == 403 { 401 } else { codes[0] };
            for (field, code) in [
                (String::new(), alone),
                (basic("node", "wrong"), codes[1]),
                (basic("node", AGENT_TOKEN), codes[2]),
                (basic("server", TOKEN), codes[3]),
            ] {
                let head = format!("{method} {path} HTTP/1.1\nHost: k3s\n{field}");
                let answer = server.open(Some(&certificate)).ask(&head, b"");
                assert_eq!(answer.code(), code, "{what}: {method} {path} {field}: {answer:?}");
            }
        }
    }
}

/// The API says what Kubernetes says, and to whoever asks whether it lives too.
pub fn the_api_answers_what_names_nobody_as_kubernetes_does(server: &Server) {
    let unauthorized = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "Unauthorized", "reason": "Unauthorized", "code": 401,
    });
    for (what, certificate) in refused(server) {
        for path in ["/api/v1/nodes", "/api/v1/nodes/pi", "/readyz", "/version", "/nonsense"] {
            let mut wire = server.open(Some(&certificate));
            // The connection is good, and goes on.
            for _ in 0..2 {
                let answer = wire.ask(&format!("GET {path} HTTP/1.1\nHost: k3s"), b"");
                assert_eq!(answer.code(), 401, "{what}: {path}");
                assert_eq!(answer.json(), unauthorized, "{what}: {path}");
            }
        }
    }
}

/// A node that was off for a year comes back by its token, and has a certificate again that counts.
pub fn a_node_whose_certificate_ran_out_joins_by_its_token(server: &Server) {
    let (_, expired) = refused(server).swap_remove(0);
    let key = KeyPair::generate().unwrap();
    let head = |field: &str| {
        let node = node_headers("pi");
        format!("POST /v1-k3s/client-kubelet.crt HTTP/1.1\nHost: k3s\n{field}\n{node}")
    };
    let alone = server.open(Some(&expired)).ask(&head("X-None: 1"), &csr(&key));
    assert_eq!(alone.code(), 401, "{alone:?}");
    let message = alone.json()["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("does not count") && message.contains("join again with a token"),
        "{message}"
    );
    let answer = server
        .open(Some(&expired))
        .ask(&head(&basic("node", AGENT_TOKEN)), &csr(&key));
    assert_eq!(answer.code(), 200, "{answer:?}");
    let fresh = Certificate {
        chain: answer.text().to_owned(),
        key: key.serialize_pem(),
    };
    let settings = server
        .open(Some(&fresh))
        .ask("GET /v1-k3s/config HTTP/1.1\nHost: k3s", b"");
    assert_eq!(settings.code(), 200, "{settings:?}");
    // Its key is no proof while the certificate counts for nothing: another password is another machine.
    let other = head(&basic("node", AGENT_TOKEN)).replace(PASSWORD, "fedcba9876543210fedcba9876543210");
    assert_eq!(server.open(Some(&expired)).ask(&other, &csr(&key)).code(), 403);
}
