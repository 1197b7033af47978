//! An authority, a certificate for a server on loopback, and one for a client.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::Folder;

/// PEM files in a folder.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Who vouches for both.
    pub ca: PathBuf,
    /// The server's, for `localhost`, 127.0.0.1, ::1 and its address.
    pub server: PathBuf,
    /// Its key.
    pub server_key: PathBuf,
    /// A client's; its common name is `client`.
    pub client: PathBuf,
    /// Its key.
    pub client_key: PathBuf,
}

impl Certificates {
    /// Makes all of them, for a server at `address`.
    pub fn new(folder: &Folder, address: Ipv4Addr) -> Self {
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "authority of a test");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let signed = |name: &str, hosts: &[&str]| {
            let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            let mut params = CertificateParams::new(hosts).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            let write = |end: &str, text: &str| folder.write(Path::new(&format!("{name}.{end}")), text);
            (write("crt", &certificate.pem()), write("key", &key.serialize_pem()))
        };
        let (server, server_key) = signed("server", &["localhost", "127.0.0.1", "::1", &address.to_string()]);
        let (client, client_key) = signed("client", &[]);
        Self {
            ca: folder.write(Path::new("ca.crt"), &ca.pem()),
            server,
            server_key,
            client,
            client_key,
        }
    }
}
