//! A node whose agent has a tunnel to one of two servers only: the other one reaches it, too.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use agent::tunnel::link::Socket;
use agent::tunnel::session::Role;
use agent::tunnel::{Tunnel, link, upgrade};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::http::response::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, client, server as serving};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::json;
use server::join::certificate::Wanted;
use server::join::key::PrivateKey;
use server::join::pki::{Names, Own, Pki};
use server::request::What;
use server::run::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{Machines, store, until};

const LOG: &str = "/api/v1/namespaces/default/pods/web/log?container=c";
const EXEC: &str = "/api/v1/namespaces/default/pods/web/exec?container=c&command=cat&stdin=true&stdout=true";

/// The authorities of a cluster, in a folder of the test's own.
pub fn authorities(server: &Server, into: &Path) -> Pki {
    let tls = into.join("tls");
    std::fs::create_dir_all(&tls).unwrap();
    for name in ["client-ca", "server-ca", "request-header-ca"] {
        for end in ["crt", "key"] {
            let file = format!("{name}.{end}");
            std::fs::copy(server.dir().join("tls").join(&file), tls.join(&file)).unwrap();
        }
    }
    let names = Names {
        node: "test".into(),
        addresses: Vec::new(),
        cluster_domain: "cluster.local".into(),
        service: None,
        ..Names::default()
    };
    Pki::load_or_create(into, &names, Timestamp::now()).unwrap()
}

/// Whom a client certificate names, and its key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(chain: &str, key: &str) -> Identity {
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
    (
        chain.collect::<Result<_, _>>().unwrap(),
        PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
    )
}

pub fn own(pki: &Pki, which: Own) -> Identity {
    let leaf = pki.own(which).unwrap();
    identity(&leaf.chain, leaf.key.pem())
}

fn node(pki: &Pki) -> Identity {
    let key = PrivateKey::generate().unwrap();
    let wanted = Wanted::client("system:node:pi", &["system:nodes"]);
    identity(
        &pki.sign_client(&wanted, key.pair(), Timestamp::now()).unwrap(),
        key.pem(),
    )
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

async fn connect(pki: &Pki, who: Option<Identity>, to: SocketAddr) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(pki.server_ca_pem().as_bytes()) {
        roots.add(der.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match who {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
        None => config.with_no_client_auth(),
    };
    let tcp = TcpStream::connect(to).await.unwrap();
    let name = ServerName::try_from("kubernetes").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

/// Code and body of a GET.
pub async fn get(pki: &Pki, who: Option<Identity>, at: &Server, uri: &str) -> (u16, String) {
    let request = Request::get(uri)
        .header("host", "server")
        .body(Full::default())
        .unwrap();
    let (parts, body) = call(pki, who, at, request).await;
    (parts.status.as_u16(), body)
}

/// What is answered to one request.
pub async fn call(pki: &Pki, who: Option<Identity>, at: &Server, request: Request<Full<Bytes>>) -> (Parts, String) {
    let tls = connect(pki, who, at.address).await;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
    let exchange = async move {
        let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts, String::from_utf8(body.to_vec()).unwrap())
    };
    tokio::join!(exchange, connection).0
}

/// Sends bytes through an exec and gets them back.
async fn echoes(pki: &Pki, at: &Server) {
    let tls = connect(pki, Some(own(pki, Own::Admin)), at.address).await;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
    let exchange = async move {
        let request = Request::get(EXEC)
            .header("host", "server")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", "v5.channel.k8s.io")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        TokioIo::new(hyper::upgrade::on(answer).await.unwrap())
    };
    let (mut stream, _) = tokio::join!(exchange, connection.with_upgrades());
    let sent: Vec<u8> = (0..200_000_u32)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
        .collect();
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let mut got = vec![0; sent.len()];
    let (wrote, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut got));
    wrote.unwrap();
    read.unwrap();
    assert_eq!(got, sent);
}

/// The agent's end of a tunnel.
async fn tunnel(pki: &Pki, at: &Server) -> Socket<TlsStream<TcpStream>> {
    let tls = connect(pki, Some(node(pki)), at.address).await;
    upgrade("wss://server/v1-k3s/connect", tls).await.unwrap()
}

/// An agent that has its tunnel to one server: on each stream it plays the kubelet.
async fn agent(pki: &Pki, at: &Server) -> JoinSet<()> {
    let socket = tunnel(pki, at).await;
    let key = PrivateKey::generate().unwrap();
    let wanted = Wanted::server("pi", ["pi".to_owned()]);
    let (chain, key) = identity(
        &pki.sign_serving(&wanted, key.pair(), Timestamp::now()).unwrap(),
        key.pem(),
    );
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let mut running = JoinSet::new();
    running.spawn(async move {
        let tunnel = Tunnel::new(Role::Listener, 1);
        let mut streams = JoinSet::new();
        link::run(socket, &tunnel, |opened| {
            assert_eq!(opened.address, "127.0.0.1:10250");
            let acceptor = acceptor.clone();
            streams.spawn(async move {
                // A server that was asked in vain lets go at once.
                let Ok(tls) = acceptor.accept(opened.stream).await else {
                    return;
                };
                let (send, mut upgraded) = tokio::sync::mpsc::channel(1);
                let service = service_fn(move |request| kubelet(request, send.clone()));
                let serving = serving::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service);
                let _ = serving.with_upgrades().await;
                if let Some(upgrade) = upgraded.recv().await {
                    let upgrade: hyper::upgrade::OnUpgrade = upgrade;
                    let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                }
            });
        })
        .await;
    });
    running
}

async fn kubelet(
    mut request: Request<Incoming>,
    upgrades: tokio::sync::mpsc::Sender<hyper::upgrade::OnUpgrade>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.headers().contains_key("upgrade") {
        upgrades.send(hyper::upgrade::on(&mut request)).await.unwrap();
        let answer = Response::builder().status(101).header("upgrade", "websocket");
        return Ok(answer.header("connection", "Upgrade").body(Full::default()).unwrap());
    }
    Ok(Response::new(format!("asked for {}", request.uri()).into()))
}

async fn pod(at: &Server) {
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "pi" } });
    at.client.create(What::NODES, "", node).await.unwrap();
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web" },
        "spec": { "nodeName": "pi", "containers": [{ "name": "c", "image": "i" }] } });
    until("the service account of pods is there", async || {
        at.client.create(What::PODS, "default", pod.clone()).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_a_tunnel_to_one_server_is_reached_through_both() {
    let (machines, store) = (Machines::new("relay"), store());
    let a = machines.start("a", "secret", &store).await;
    let b = machines.start("b", "secret", &store).await;
    let pki = authorities(&a, &machines.dir("authorities"));
    let admin = || Some(own(&pki, Own::Admin));
    pod(&a).await;
    until("the other server knows the pod", async || {
        b.client.get(What::PODS, "default", "web").await.is_ok()
    })
    .await;

    // Both are asked, and say what is wrong.
    let (code, text) = get(&pki, admin(), &b, LOG).await;
    assert_eq!(code, 503, "{text}");
    for words in ["no tunnel to node pi", &format!("{}: no tunnel either", a.advertised())] {
        assert!(text.contains(words), "{words:?} is missing in {text}");
    }

    let mut tunnel = agent(&pki, &a).await;
    for server in [&a, &b] {
        until("the node is reached", async || {
            get(&pki, admin(), server, LOG).await.0 == 200
        })
        .await;
        let (_, text) = get(&pki, admin(), server, LOG).await;
        assert_eq!(text, "asked for /containerLogs/default/web/c");
        echoes(&pki, server).await;
    }

    // The way between servers is for servers.
    let dial = "/v1-k3s/peer/dial?node=pi&port=10250";
    for (who, is) in [
        (None, "nobody"),
        (admin(), "an administrator"),
        (Some(node(&pki)), "a node"),
    ] {
        let (code, text) = get(&pki, who, &a, dial).await;
        assert_eq!(code, 403, "{is}: {text}");
    }
    let supervisor = || Some(own(&pki, Own::Supervisor));
    let (code, text) = get(&pki, supervisor(), &a, dial).await;
    assert_eq!(code, 400, "without an upgrade nothing is opened: {text}");

    tunnel.shutdown().await;
    until("the end of the tunnel is noticed", async || {
        get(&pki, admin(), &b, LOG).await.0 == 503
    })
    .await;
    let (_, text) = get(&pki, admin(), &b, LOG).await;
    assert!(text.contains("no tunnel either"), "{text}");

    // With the other server gone there is nobody left to ask, and one that has died is not waited for.
    tunnel = agent(&pki, &b).await;
    until("the node is reached", async || {
        get(&pki, admin(), &a, LOG).await.0 == 200
    })
    .await;
    b.leave().await;
    until("the node is out of reach", async || {
        get(&pki, admin(), &a, LOG).await.0 == 503
    })
    .await;
    let (_, text) = get(&pki, admin(), &a, LOG).await;
    assert!(
        text.contains("no tunnel to node pi: its agent is not connected to this server"),
        "{text}"
    );
    tunnel.shutdown().await;
    a.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_through_which_nothing_comes_is_gone_around() {
    let (machines, store) = (Machines::new("stalled"), store());
    let a = machines.start("a", "secret", &store).await;
    let b = machines.start("b", "secret", &store).await;
    let pki = authorities(&a, &machines.dir("authorities"));
    pod(&a).await;
    let mut through_b = agent(&pki, &b).await;
    let log = async || get(&pki, Some(own(&pki, Own::Admin)), &a, LOG).await;
    until("the node is reached", async || log().await.0 == 200).await;
    // The link to the server that is asked stands still from the beginning: it is open, and nobody is at its other end.
    let stalled = tunnel(&pki, &a).await;
    let (code, text) = log().await;
    assert_eq!((code, text.as_str()), (200, "asked for /containerLogs/default/web/c"));
    // Without another way it is told as what it is.
    through_b.shutdown().await;
    until("the other way is gone", async || log().await.0 == 503).await;
    drop(stalled);
    a.leave().await;
    b.leave().await;
}
