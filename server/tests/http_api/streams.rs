//! Logs, exec and the node's own API, through the server to a node that is played here.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::json;
use server::http::Kubelets;
use server::join::certificate::Wanted;
use server::join::key::PrivateKey;
use server::join::pki::{Own, Pki};
use server::tunnel::{DialError, Dialed, Duplex, NodeDialer, Way};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::rig::Rig;

/// Every node of this cluster is one listener.
struct Here(SocketAddr);

impl NodeDialer for Here {
    fn dial<'a>(&'a self, node: &'a str, _: u16, _: Option<Way>) -> BoxFuture<'a, Result<Dialed, DialError>> {
        Box::pin(async move {
            if node != "box-1" {
                let node = node.to_owned();
                return Err(DialError::NoSession { node });
            }
            let stream = TcpStream::connect(self.0).await.unwrap();
            Ok((Box::new(stream) as Box<dyn Duplex>, Way::Here(0)))
        })
    }
}

fn pems(text: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .map(Result::unwrap)
        .collect()
}

/// A kubelet: it wants a client certificate, tells the path it was asked for, and echoes what is sent after an upgrade.
pub async fn kubelet(pki: &Pki, tasks: &mut JoinSet<()>) -> Kubelets {
    let key = PrivateKey::generate().unwrap();
    let wanted = Wanted::server("box-1", ["box-1".to_owned()]);
    let chain = pki.sign_serving(&wanted, key.pair(), Timestamp::now()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(pems(pki.client_ca_pem()).remove(0)).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            pems(&chain),
            PrivateKeyDer::from_pem_slice(key.pem().as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let tls = acceptor.accept(stream).await.unwrap();
                let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
                let service = service_fn(move |request| answer(request, send.clone()));
                let serving = http1::Builder::new().serve_connection(TokioIo::new(tls), service);
                serving.with_upgrades().await.unwrap_or_default();
                if let Some(upgrade) = receive.recv().await {
                    echo(upgrade).await;
                }
            });
        }
    });
    Kubelets::new(Arc::new(Here(address)), pki.client_config(Own::ApiServer).unwrap())
}

async fn echo(upgrade: hyper::upgrade::OnUpgrade) {
    let mut stream = TokioIo::new(upgrade.await.unwrap());
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => stream.write_all(&buffer[..count]).await.unwrap(),
        }
    }
    let _ = stream.shutdown().await;
}

async fn answer(
    mut request: Request<Incoming>,
    upgrades: tokio::sync::mpsc::UnboundedSender<hyper::upgrade::OnUpgrade>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let told = format!("{} {}", request.method(), request.uri());
    let credential =
        request.headers().contains_key("authorization") || request.headers().contains_key("impersonate-user");
    assert!(!credential, "the client's credentials are not for the node");
    let response = Response::builder();
    let built = if request.uri().path().contains("/broken") {
        response
            .status(400)
            .body("container \"broken\" in pod \"web\" is waiting to start\n".into())
    } else if request.headers().contains_key("upgrade") {
        upgrades.send(hyper::upgrade::on(&mut request)).unwrap();
        let protocol = request.headers().get("sec-websocket-protocol").cloned();
        let mut switching = response
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("upgrade", "websocket");
        switching = switching.header("connection", "Upgrade").header("x-asked", told);
        switching
            .header("sec-websocket-protocol", protocol.unwrap())
            .body("".into())
    } else {
        response.header("content-type", "text/plain").body(told.into())
    };
    Ok(built.unwrap())
}

async fn rig() -> Rig {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    for node in ["box-1", "box-2"] {
        assert_eq!(
            admin
                .post("/api/v1/nodes", &json!({"metadata": {"name": node}}))
                .await
                .code,
            201
        );
    }
    for (pod, node) in [("web", "box-1"), ("far", "box-2"), ("waiting", "")] {
        let containers = json!([{"name": "main", "image": "x"}, {"name": "broken", "image": "x"}]);
        let mut body = json!({"metadata": {"name": pod}, "spec": {"containers": containers}});
        if !node.is_empty() {
            body["spec"]["nodeName"] = node.into();
        }
        let created = admin.post("/api/v1/namespaces/default/pods", &body).await;
        assert_eq!(created.code, 201, "{}", created.text());
    }
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_the_node_api_are_asked_of_the_node() {
    let rig = rig().await;
    let mut admin = rig.administrator();
    admin
        .headers
        .push(("authorization".to_owned(), "Bearer not-for-nodes".to_owned()));
    let pods = "/api/v1/namespaces/default/pods";
    let logs = admin
        .get(&format!("{pods}/web/log?container=main&tailLines=3&follow=true"))
        .await;
    assert_eq!(
        (logs.code, logs.header("content-type"), logs.text().as_str()),
        (
            200,
            "text/plain",
            "GET /containerLogs/default/web/main?tailLines=3&follow=true"
        )
    );
    let stats = admin.get("/api/v1/nodes/box-1/proxy/stats/summary?only=cpu").await;
    assert_eq!(stats.text(), "GET /stats/summary?only=cpu");
    let same = admin.get("/api/v1/nodes/https:box-1:10250/proxy/healthz").await;
    assert_eq!(same.text(), "GET /healthz");
    // An agent of K3s would end its tunnel: it is not asked at all.
    let other = admin.get("/api/v1/nodes/box-1:9100/proxy/metrics").await.refusal();
    let why = "port 9100 of node box-1 is not reached through the API, only its kubelet's (10250)";
    assert_eq!(other, (400, "BadRequest".to_owned(), why.to_owned()));
    for (path, code, reason, message) in [
        (
            "web/log",
            400,
            "BadRequest",
            "a container name must be specified for pod web, choose one of: [main broken]",
        ),
        (
            "web/log?container=other",
            400,
            "BadRequest",
            "container other is not valid for pod web",
        ),
        (
            "web/log?container=broken",
            400,
            "BadRequest",
            "container \"broken\" in pod \"web\" is waiting to start",
        ),
        (
            "waiting/log?container=main",
            400,
            "BadRequest",
            "pod waiting does not have a host assigned",
        ),
        (
            "far/log?container=main",
            503,
            "ServiceUnavailable",
            "error dialing backend: node box-2: no tunnel to node box-2: its agent is not connected to this server",
        ),
    ] {
        let refusal = admin.get(&format!("{pods}/{path}")).await.refusal();
        assert_eq!(refusal, (code, reason.to_owned(), message.to_owned()), "{path}");
    }
}

const EXEC: &str = "/api/v1/namespaces/default/pods/web/exec?container=main&command=sh&stdin=true&stdout=true";
const UPGRADE: [(&str, &str); 5] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ("sec-websocket-protocol", "v5.channel.k8s.io"),
];

async fn echoes(stream: &mut TokioIo<hyper::upgrade::Upgraded>, word: &str) {
    stream.write_all(word.as_bytes()).await.unwrap();
    let mut echoed = vec![0; word.len()];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(echoed, word.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_goes_on_when_the_servers_certificates_are_renewed() {
    let rig = rig().await;
    let mut tasks = JoinSet::new();
    let response = rig.administrator().send(&mut tasks, "GET", EXEC, &UPGRADE, "").await;
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    echoes(&mut stream, "before").await;
    // What is taken away is made anew.
    for file in ["serving-kube-apiserver.crt", "client-kube-apiserver.crt"] {
        std::fs::remove_file(rig.dir.join("tls").join(file)).unwrap();
    }
    let renewed = rig.pki.renew(Timestamp::now()).unwrap();
    assert_eq!(renewed, [Own::ApiServer, Own::Serving]);
    echoes(&mut stream, "after").await;
    // A new one comes through the new certificates, to the client and to the node.
    let response = rig.administrator().send(&mut tasks, "GET", EXEC, &UPGRADE, "").await;
    let mut second = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    echoes(&mut second, "anew").await;
    echoes(&mut stream, "still").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_is_a_stream_to_the_node_for_who_may_create_it() {
    let rig = rig().await;
    let (path, upgrade) = (EXEC, UPGRADE);
    let mut tasks = JoinSet::new();
    let response = rig.administrator().send(&mut tasks, "GET", path, &upgrade, "").await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    assert_eq!(
        response.headers()["x-asked"],
        "GET /exec/default/web/main?input=1&output=1&command=sh"
    );
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    for word in ["hello", "again"] {
        echoes(&mut stream, word).await;
    }
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());

    let role = json!({"metadata": {"name": "reader"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods/exec"]}]});
    let binding = json!({
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}],
    });
    let place = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    assert_eq!(
        rig.administrator().post(&format!("{place}/roles"), &role).await.code,
        201
    );
    assert_eq!(
        rig.administrator()
            .post(&format!("{place}/rolebindings"), &binding)
            .await
            .code,
        201
    );
    let refused = rig.named("jane", &[]).call("GET", path, &upgrade, "").await;
    assert_eq!(
        refused.refusal().2,
        "pods \"web\" is forbidden: User \"jane\" cannot create resource \"pods/exec\" in API group \"\" in the namespace \"default\""
    );
}
