//! More requests at once than the server works on: who waits, who is sent away and how, who is served all the same.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use server::http::Limits;
use server::registry::Settings;
use server::store::memory::Memory;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::client::{Answer, User};
use crate::rig::Rig;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Longer than any step of these tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request whose body is still to come: it is being worked on until [`Held::finish`], or until it is dropped.
struct Held {
    stream: TlsStream<TcpStream>,
    body: String,
}

impl Held {
    async fn begin(user: &User<'_>, name: &str) -> Self {
        let body = json!({"metadata": {"name": name}}).to_string();
        let head = format!(
            "POST {MAPS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = user.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        Self { stream, body }
    }

    /// Sends the body; the status line of the answer.
    async fn finish(mut self) -> String {
        self.stream.write_all(self.body.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        self.stream.read_exact(&mut head).await.unwrap();
        String::from_utf8_lossy(&head).into_owned()
    }
}

/// A server that works on two writes at once, and lets `ann`, who is exempt from nothing, do all.
async fn small(wait: Duration) -> Rig {
    let limits = Limits {
        reads: 2,
        writes: 2,
        wait,
        ..Limits::default()
    };
    let rig = Rig::with(Arc::new(Memory::new()), Settings::default(), limits).await;
    let binding = json!({
        "metadata": {"name": "ann"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}],
    });
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    assert_eq!(rig.administrator().post(path, &binding).await.code, 201);
    // Roles follow by a watch.
    until(&rig.named("ann", &[]), 201).await;
    rig
}

/// A write that changes nothing.
async fn try_write(user: &User<'_>) -> Answer {
    let path = format!("{MAPS}?dryRun=All");
    user.post(&path, &json!({"metadata": {"name": "never"}})).await
}

/// Writes until the answer has this code: what the server does with an earlier request takes it a moment.
async fn until(user: &User<'_>, code: u16) {
    let asking = async {
        while try_write(user).await.code != code {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_while_too_many_are_served_is_sent_away_to_come_again() {
    let rig = small(Duration::from_millis(100)).await;
    let ann = rig.named("ann", &[]);
    let (first, second) = (Held::begin(&ann, "first").await, Held::begin(&ann, "second").await);
    until(&ann, 429).await;
    for second_version in [false, true] {
        let mut ann = rig.named("ann", &[]);
        ann.second_version = second_version;
        let answer = try_write(&ann).await;
        let (code, reason, message) = answer.refusal();
        assert_eq!((code, reason.as_str()), (429, "TooManyRequests"));
        assert_eq!(message, "Too many requests, please try again later.");
        assert_eq!(answer.header("retry-after"), "1");
        let status = answer.json();
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["details"]["retryAfterSeconds"], 1);
    }
    assert_eq!(ann.get(MAPS).await.code, 200, "writes keep no reader waiting");
    assert_eq!(first.finish().await, "HTTP/1.1 201");
    until(&ann, 201).await;
    assert_eq!(second.finish().await, "HTTP/1.1 201");
    let kept = ann.get(&format!("{MAPS}/second")).await;
    assert_eq!(
        kept.code,
        200,
        "a request that was being worked on is finished: {}",
        kept.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn some_are_served_whatever_the_load() {
    let rig = small(Duration::from_millis(100)).await;
    let ann = rig.named("ann", &[]);
    let _held = (Held::begin(&ann, "first").await, Held::begin(&ann, "second").await);
    until(&ann, 429).await;
    let health = rig.named("ann", &[]).get("/readyz").await;
    assert_eq!(health.code, 200, "{}", health.text());
    assert_eq!(try_write(&rig.administrator()).await.code, 201);
    let node = rig.named("system:node:pi", &["system:nodes"]);
    let json = [("content-type", "application/merge-patch+json")];
    for (path, code) in [
        ("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/pi", 404),
        ("/api/v1/nodes/pi/status", 404),
        ("/api/v1/nodes/pi", 429),
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases/pi", 429),
    ] {
        let answer = node.call("PATCH", path, &json, "{}").await;
        assert_eq!(answer.code, code, "{path}: {}", answer.text());
    }
    let mut tasks = JoinSet::new();
    let watch = ann.send(&mut tasks, "GET", &format!("{MAPS}?watch=1"), &[], "").await;
    assert_eq!(watch.status(), 200, "a watch takes no place");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_gets_the_place_of_who_leaves() {
    let rig = small(PATIENCE).await;
    let ann = rig.named("ann", &[]);
    let (first, second) = (Held::begin(&ann, "first").await, Held::begin(&ann, "second").await);
    // Whether both are being worked on cannot be seen from outside, but that somebody waits can.
    let waits = async {
        loop {
            let asked = tokio::time::timeout(Duration::from_millis(200), try_write(&ann));
            if asked.await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.unwrap();
    let waiting = try_write(&ann);
    let leaving = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(first); // it breaks off: that makes room too
    };
    let (answer, ()) = tokio::join!(waiting, leaving);
    assert_eq!(answer.code, 201, "{}", answer.text());
    assert_eq!(second.finish().await, "HTTP/1.1 201");
}

/// Asks for this over an open connection; the code of the answer.
async fn asked(stream: &mut TlsStream<TcpStream>, path: &str, field: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{field}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    head.split(' ').nth(1).unwrap().to_owned()
}

/// Whether the far end closes the connection, with or without a word.
async fn closes(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_connection_of_strangers_is_closed_for_one_too_many_and_no_other() {
    let limits = Limits {
        strangers: 3,
        ..Limits::default()
    };
    let rig = Rig::with(Arc::new(Memory::new()), Settings::default(), limits).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let made = rig.administrator().post(path, &json!({"spec": {}})).await.json();
    let bearer = format!(
        "authorization: Bearer {}\r\n",
        made["status"]["token"].as_str().unwrap()
    );
    let nobody = rig.user(None);
    // Known: by a certificate from the start, by a token since its first request.
    let mut by_certificate = rig.administrator().connect().await;
    assert_eq!(asked(&mut by_certificate, "/readyz", "").await, "200");
    let mut by_token = nobody.connect().await;
    assert_eq!(asked(&mut by_token, MAPS, &bearer).await, "403");
    // Unknown: before a handshake, after it, and with requests that anyone may make or that are refused.
    let mut silent = TcpStream::connect(rig.address).await.unwrap();
    let mut shaken = nobody.connect().await;
    let mut healthy = nobody.connect().await;
    assert_eq!(asked(&mut healthy, "/healthz", "").await, "200");
    assert_eq!(asked(&mut healthy, MAPS, "").await, "401");
    assert_eq!(
        asked(&mut shaken, "/healthz", "").await,
        "200",
        "there is room for three"
    );

    let mut fourth = nobody.connect().await;
    let closed = tokio::time::timeout(PATIENCE, closes(&mut silent)).await;
    assert!(closed.unwrap(), "the oldest, which has not even shaken hands");
    let mut fifth = rig
        .user(Some(rig.ended("system:admin", "system:masters")))
        .connect()
        .await;
    let closed = tokio::time::timeout(PATIENCE, closes(&mut shaken)).await;
    assert!(closed.unwrap(), "the next");
    for (stream, field, code, who) in [
        (&mut by_certificate, "", "200", "a certificate"),
        (&mut by_token, bearer.as_str(), "403", "a token"),
        (&mut healthy, "", "401", "the third"),
        (&mut fourth, "", "401", "the fourth"),
        (&mut fifth, "", "401", "the fifth, whose certificate counts for nothing"),
    ] {
        assert_eq!(asked(stream, MAPS, field).await, code, "{who}");
    }
}
