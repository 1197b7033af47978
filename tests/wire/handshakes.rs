//! TLS at the server's port (6.1), some of it by hand: what a library of today does not say.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::server::Server;

const TLS11: u16 = 0x0302;
const TLS1_2: u16 = 0x0303;
/// `ECDHE_ECDSA_WITH_AES_128_GCM_SHA256`
const FORWARD: u16 = 0xc02b;
/// `ECDHE_ECDSA_WITH_AES_128_CBC_SHA`
const CHAINED: u16 = 0xc009;
/// `RSA_WITH_AES_128_GCM_SHA256`
const STATIC: u16 = 0x009c;

pub fn handshakes_are_as_k3s_has_them(server: &Server) {
    let (h1, h2) = (&b"http/1.1"[..], &b"h2"[..]);
    for (versions, version) in [
        (&[&TLS12][..], ProtocolVersion::TLSv1_2),
        (&[&TLS13], ProtocolVersion::TLSv1_3),
        (&[&TLS12, &TLS13], ProtocolVersion::TLSv1_3),
    ] {
        for (offered, chosen) in [
            (&[][..], None),
            (&[h1][..], Some(h1)),
            (&[h2], Some(h2)),
            (&[h2, h1], Some(h2)),
            (&[h1, h2], Some(h2)),
        ] {
            assert_eq!(
                agreed(server, versions, offered),
                (Some(version), chosen.map(<[u8]>::to_vec)),
                "{version:?} {offered:?}"
            );
        }
    }
    for (version, cipher, alert, what) in [
        (TLS11, FORWARD, 70, "TLS 1.1"),
        (TLS1_2, STATIC, 40, "a key exchange without forward secrecy"),
        (TLS1_2, CHAINED, 40, "CBC"),
    ] {
        let (kind, answer) = record(&mut hello(server, version, cipher));
        assert_eq!((kind, answer), (21, vec![2, alert]), "{what}: a fatal alert");
    }
    // In the clear up to here: a certificate is asked for, of whatever authority.
    let (mut stream, mut messages) = (hello(server, TLS1_2, FORWARD), Vec::new());
    let mut bytes = Vec::new();
    while messages.last().is_none_or(|(kind, _)| *kind != 14) {
        let (kind, content) = record(&mut stream);
        assert_eq!(kind, 22);
        bytes.extend(content);
        while let [kind, 0, b, c, rest @ ..] = &bytes[..]
            && let length = usize::from(u16::from_be_bytes([*b, *c]))
            && rest.len() >= length
        {
            messages.push((*kind, rest[..length].to_vec()));
            bytes = rest[length..].to_vec();
        }
    }
    let kinds: Vec<u8> = messages.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(
        kinds,
        [2, 11, 12, 13, 14],
        "hello, certificate, key, request for one, done"
    );
    assert!(messages[3].1.ends_with(&[0, 0]), "no names of authorities");
}

type Agreed = (Option<ProtocolVersion>, Option<Vec<u8>>);

fn agreed(server: &Server, versions: &[&'static SupportedProtocolVersion], offered: &[&[u8]]) -> Agreed {
    let mut trusted = RootCertStore::empty();
    let ca = server.file("tls/server-ca.crt");
    trusted
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
    let tcp = TcpStream::connect(server.address).unwrap();
    let tls = ClientConnection::new(Arc::new(config), ServerName::from(server.address.ip())).unwrap();
    let mut stream = StreamOwned::new(tls, tcp);
    stream.conn.complete_io(&mut stream.sock).unwrap();
    (
        stream.conn.protocol_version(),
        stream.conn.alpn_protocol().map(<[u8]>::to_vec),
    )
}

/// A connection on which this was said: the latest version, and the one cipher, that the client knows.
fn hello(server: &Server, version: u16, cipher: u16) -> TcpStream {
    let two = |number: usize| u16::try_from(number).unwrap().to_be_bytes();
    // Curve P-256; ECDSA with it and SHA-256, and RSA's.
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 23][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 6, 0, 4, 4, 3, 4, 1],
    ]
    .concat();
    let body = [
        &version.to_be_bytes()[..],
        &[7; 32],
        &[0, 0, 2],
        &cipher.to_be_bytes(),
        &[1, 0],
        &two(extensions.len()),
        &extensions,
    ]
    .concat();
    let message = [&[1, 0][..], &two(body.len()), &body].concat();
    let bytes = [&[22, 3, 1][..], &two(message.len()), &message].concat();
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(&bytes).unwrap();
    stream
}

/// The next record: its kind and what is in it.
fn record(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 5];
    stream.read_exact(&mut head).unwrap();
    let mut content = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    stream.read_exact(&mut content).unwrap();
    (head[0], content)
}
