//! How the benchmarks connect: as the administrator, over TLS on loopback.

use std::sync::Arc;

use agent::join::trust::{self, Shown};
use rustls::pki_types::ServerName;
use server::run::Server;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A connection for this version of HTTP.
pub async fn connect(server: &Server, protocol: &str) -> TlsStream<TcpStream> {
    let socket = TcpStream::connect(server.address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(administrator(server, protocol));
    connector.connect(name, socket).await.unwrap()
}

fn administrator(server: &Server, protocol: &str) -> Arc<rustls::ClientConfig> {
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
