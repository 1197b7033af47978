//! Two ends of one TLS connection over loopback, and a node's end of a tunnel over one.

use std::sync::Arc;

use agent::tunnel::link::Socket;
use agent::tunnel::session::Role;
use agent::tunnel::{Stream, Tunnel, link};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// The client's end and the server's.
pub async fn connected() -> (client::TlsStream<TcpStream>, server::TlsStream<TcpStream>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = params.self_signed(&key).unwrap().der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = async {
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(client))
            .connect(name, socket)
            .await
            .unwrap()
    };
    let accepting = async {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        TlsAcceptor::from(Arc::new(server)).accept(socket).await.unwrap()
    };
    tokio::join!(connecting, accepting)
}

/// A node's end of a tunnel: `serve` gets every stream that the server opens.
pub async fn node<F: Future<Output = ()> + Send + 'static>(
    socket: client::TlsStream<TcpStream>,
    serve: impl Fn(Stream) -> F,
) {
    let socket = Socket::new(socket);
    let tunnel = Tunnel::new(Role::Listener, 1);
    let mut streams = JoinSet::new();
    link::run(socket, &tunnel, |opened| drop(streams.spawn(serve(opened.stream)))).await;
}
