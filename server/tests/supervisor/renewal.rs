//! Certificates are renewed, a node's and the server's, while a log is followed and a command runs through the node's tunnel.

use std::convert::Infallible;
use std::future::ready;
use std::path::Path;
use std::sync::Arc;

use agent::balancer::Balancer;
use agent::join::{Certificate as Which, Clock, Files};
use agent::kubelet::NodeIps;
use agent::run::renew;
use agent::tunnel::Tunnels;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, client, server as serving};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use server::request::{Patch, What};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::agents::Machine;
use crate::rig::{Certificate, Cluster, until};

const LOG: &str = "/api/v1/namespaces/default/pods/web/log?container=c&follow=true";
const EXEC: &str = "/api/v1/namespaces/default/pods/web/exec?container=c&command=cat&stdin=true&stdout=true";

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_their_tunnel_stay_open_while_the_certificates_under_them_are_renewed() {
    let cluster = Cluster::start_as("renewal", |config| config.tls_san_security = false).await;
    let machine = Machine::new(&cluster, "pi", "pi", "secret");
    let joiner = machine.joiner(Clock::default());
    let joined = joiner.once().await.unwrap();
    let (mut tasks, (print, _)) = (JoinSet::new(), broadcast::channel(16));
    let port = kubelet(&machine.files, print.clone(), &mut tasks).await;
    pod_on(&cluster, port).await;
    let tunnels = Tunnels {
        client: joined.client.clone(),
        balancer: Balancer::new(&machine.config.server.authority(), &[], 0).into(),
        kubelet_port: port,
        supervisor_port: None,
    };
    tasks.spawn(tunnels.run(|| 0.5, |_| Box::pin(ready(Ok(()))), std::future::pending()));

    let mut log = Log::follow(&cluster, &mut tasks).await;
    let mut command = exec(&cluster, &mut tasks).await;
    let mut goes_on = async |what: &str| {
        print.send(Bytes::from(format!("{what}\n"))).unwrap();
        log.says(what).await;
        echoes(&mut command, what.as_bytes()).await;
    };
    goes_on("before").await;

    // The node's: all four, by what a running agent does.
    let files = Which::ALL.map(|which| machine.files.cert(which));
    let read = || files.each_ref().map(|path| std::fs::read(path).unwrap());
    let (old, tls) = (read(), joined.client.endpoint().tls.unwrap());
    let renewed = || !Arc::ptr_eq(&tls, &joined.client.endpoint().tls.unwrap());
    tokio::select! {
        () = renew::run(&joiner, &joined.client, true, || None, || (), NodeIps::from(joined.node_ips.clone())) => {}
        () = until(renewed) => {}
    }
    for (old, new) in old.iter().zip(read()) {
        assert!(*old != new, "a certificate is the old one");
    }
    goes_on("the node's are renewed").await;

    // The server's, as soon as a client comes by a name that it lacks.
    let before = cluster.shown_to("kubernetes").await;
    cluster.shown_to("renewed.example").await;
    assert!(before != cluster.shown_to("kubernetes").await, "it shows the old one");
    goes_on("the server's is renewed").await;

    // What is opened now comes through the same tunnel.
    let mut second = Log::follow(&cluster, &mut tasks).await;
    goes_on("after").await;
    second.says("after").await;
    tasks.shutdown().await;
    cluster.stop().await;
}

/// A followed log, as its reader has it.
struct Log {
    body: Incoming,
    read: Vec<u8>,
}

impl Log {
    /// Once the node can be reached.
    async fn follow(cluster: &Cluster, tasks: &mut JoinSet<()>) -> Self {
        loop {
            let answer = ask(cluster, tasks, LOG, &[]).await;
            if answer.status() == 200 {
                let (body, read) = (answer.into_body(), Vec::new());
                return Self { body, read };
            }
            assert_eq!(answer.status(), 503, "{answer:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Reads its next line.
    async fn says(&mut self, line: &str) {
        while !self.read.ends_with(b"\n") {
            let Some(frame) = self.body.frame().await else {
                panic!("the log has ended");
            };
            let frame = frame.unwrap();
            self.read.extend(frame.into_data().unwrap());
        }
        assert_eq!(
            String::from_utf8(std::mem::take(&mut self.read)).unwrap(),
            format!("{line}\n")
        );
    }
}

/// A command that gives back what it gets.
async fn exec(cluster: &Cluster, tasks: &mut JoinSet<()>) -> TokioIo<hyper::upgrade::Upgraded> {
    let upgrade = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "v5.channel.k8s.io"),
    ];
    let answer = ask(cluster, tasks, EXEC, &upgrade).await;
    assert_eq!(answer.status(), 101);
    TokioIo::new(hyper::upgrade::on(answer).await.unwrap())
}

async fn echoes(stream: &mut TokioIo<hyper::upgrade::Upgraded>, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, bytes);
}

/// Asks as the administrator, on a connection of its own.
async fn ask(cluster: &Cluster, tasks: &mut JoinSet<()>, uri: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
    let admin = Certificate {
        chain: cluster.file("tls/client-admin.crt"),
        key: cluster.file("tls/client-admin.key"),
    };
    let tls = cluster.connect(Some(&admin), b"http/1.1").await;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
    tasks.spawn(async move { connection.with_upgrades().await.unwrap() });
    let mut request = Request::get(uri).header("host", "server");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    sender.send_request(request).await.unwrap()
}

/// A pod on the node, whose kubelet has this port.
async fn pod_on(cluster: &Cluster, port: u16) {
    let client = &cluster.server().client;
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "pi" } });
    client.create(What::NODES, "", node).await.unwrap();
    let port = json!({ "status": { "daemonEndpoints": { "kubeletEndpoint": { "Port": port } } } });
    client
        .patch(What::NODES, "", "pi", Some("status"), Patch::Merge(port))
        .await
        .unwrap();
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web" },
        "spec": { "nodeName": "pi", "containers": [{ "name": "c", "image": "i" }] } });
    // The service account of pods may not be there yet.
    while client.create(What::PODS, "default", pod.clone()).await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// A kubelet's port with the node's certificate, for callers with one of the cluster's. Its log is what is printed; a command
/// gives back what it gets.
async fn kubelet(files: &Files, print: broadcast::Sender<Bytes>, tasks: &mut JoinSet<()>) -> u16 {
    let pems = |path: &Path| -> Vec<_> {
        CertificateDer::pem_file_iter(path)
            .unwrap()
            .map(Result::unwrap)
            .collect()
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(pems(&files.client_ca()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            pems(&files.serving_cert()),
            PrivateKeyDer::from_pem_file(files.serving_key()).unwrap(),
        );
    let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(serve(acceptor.clone(), stream, print.clone()));
        }
    });
    port
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, print: broadcast::Sender<Bytes>) {
    let tls = acceptor.accept(stream).await.unwrap();
    let (send, mut upgraded) = mpsc::channel::<OnUpgrade>(1);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (send, lines) = (send.clone(), print.subscribe());
        async move {
            if !request.headers().contains_key("upgrade") {
                return Ok::<_, Infallible>(Response::new(BoxBody::new(StreamBody::new(frames(lines)))));
            }
            send.send(hyper::upgrade::on(&mut request)).await.unwrap();
            let answer = Response::builder().status(101).header("upgrade", "websocket");
            Ok(answer.header("connection", "Upgrade").body(BoxBody::default()).unwrap())
        }
    });
    let connection = serving::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service);
    // A reader of a log leaves in the middle.
    let _ = connection.with_upgrades().await;
    if let Some(upgrade) = upgraded.recv().await {
        let (mut reader, mut writer) = split(TokioIo::new(upgrade.await.unwrap()));
        let _ = copy(&mut reader, &mut writer).await;
    }
}

fn frames(lines: broadcast::Receiver<Bytes>) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    stream::unfold(lines, async |mut lines| {
        let line = lines.recv().await.ok()?;
        Some((Ok(Frame::data(line)), lines))
    })
}
