//! As whom the benchmarks connect.

use std::sync::Arc;

use agent::join::trust::{self, Shown};
use server::run::Server;

/// The administrator's TLS configuration, for this version of HTTP.
pub fn administrator(server: &Server, protocol: &str) -> Arc<rustls::ClientConfig> {
    let read = |name: &str| std::fs::read(server.dir().join("tls").join(name)).unwrap();
    let (chain, key) = (read("client-admin.crt"), read("client-admin.key"));
    let shown = Shown {
        chain: &chain,
        key: &key,
    };
    let mut tls =
        rustls::ClientConfig::clone(&*trust::bundle(&read("server-ca.crt"), Some(shown), &Default::default()).unwrap());
    tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Arc::new(tls)
}
