//! Exec, attach and port-forward over real TLS on loopback, in front of played processes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Empty;
use hyper::Request;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::spdy::frame::client::Opener;
use super::spdy::frame::{Decoder, Heard, data, ping};
use super::testing::Node;
use crate::kubelet::ports::{Control, Process};
use crate::runtime::RuntimeError;

/// The inside of a process that a test plays.
struct Played {
    stdin: DuplexStream,
    stdout: DuplexStream,
    stderr: DuplexStream,
    exit: oneshot::Sender<i32>,
    sizes: Arc<Mutex<Vec<(u16, u16)>>>,
}

struct Handle {
    exit: oneshot::Receiver<i32>,
    sizes: Arc<Mutex<Vec<(u16, u16)>>>,
}

impl Control for Handle {
    fn resize(&self, width: u16, height: u16) {
        self.sizes.lock().unwrap().push((width, height));
    }

    fn wait(&mut self) -> BoxFuture<'_, Result<i32, RuntimeError>> {
        Box::pin(async { (&mut self.exit).await.map_err(|_| RuntimeError::Start("played".into())) })
    }
}

impl Played {
    /// The next process that is started on the node.
    fn next(node: &Node) -> Self {
        let [(stdin, their_in), (their_out, stdout), (their_err, stderr)] = [(); 3].map(|()| duplex(1024));
        let (exit, exits) = oneshot::channel();
        let sizes = Arc::<Mutex<Vec<_>>>::default();
        node.fake.processes.lock().unwrap().push_back(Process {
            stdin: Some(Box::new(their_in)),
            stdout: Box::new(their_out),
            stderr: Some(Box::new(their_err)),
            control: Box::new(Handle {
                exit: exits,
                sizes: sizes.clone(),
            }),
        });
        Self {
            stdin,
            stdout,
            stderr,
            exit,
            sizes,
        }
    }
}

type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

async fn upgrade(
    node: &Node,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<(Upgraded, String, JoinSet<()>), (u16, String)> {
    let shown = node.authority.sign("system:apiserver", "system:masters");
    let mut request = Request::get(path).header("connection", "Upgrade");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let sent = node.send(Some(shown), request.body(Empty::new()).unwrap()).await;
    let (response, tasks) = sent.unwrap();
    let status = response.status().as_u16();
    if status != 101 {
        use http_body_util::BodyExt as _;
        let body = response.into_body().collect().await.unwrap().to_bytes();
        return Err((status, String::from_utf8(body.to_vec()).unwrap()));
    }
    let names = ["sec-websocket-protocol", "x-stream-protocol-version"];
    let protocol = names.iter().find_map(|name| response.headers().get(*name));
    let protocol = protocol.unwrap().to_str().unwrap().to_owned();
    Ok((hyper::upgrade::on(response).await.unwrap(), protocol, tasks))
}

async fn websocket(
    node: &Node,
    path: &str,
    protocols: &str,
) -> Result<(WebSocket, String, JoinSet<()>), (u16, String)> {
    let headers = [
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", protocols),
    ];
    let (upgraded, protocol, tasks) = upgrade(node, path, &headers).await?;
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    Ok((socket, protocol, tasks))
}

async fn send(socket: &mut WebSocket, bytes: &[u8]) {
    socket
        .send(Message::Binary(Bytes::copy_from_slice(bytes)))
        .await
        .unwrap();
}

/// The next message; `None` at the end.
async fn hear(socket: &mut WebSocket) -> Option<Vec<u8>> {
    loop {
        match socket.next().await?.unwrap() {
            Message::Binary(bytes) => return Some(bytes.to_vec()),
            Message::Close(frame) => {
                assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(1000));
                return None;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_command_is_joined_by_websocket_until_its_end() {
    let node = Node::start().await;
    node.add_pod().await;
    let mut played = Played::next(&node);
    let path = "/exec/ns/web/c?input=1&output=1&error=1&command=sh&command=-c";
    let (mut socket, protocol, _tasks) = websocket(&node, path, "v4.channel.k8s.io,v5.channel.k8s.io")
        .await
        .unwrap();
    assert_eq!(protocol, "v5.channel.k8s.io");
    send(&mut socket, b"\0hello ").await;
    send(&mut socket, b"\x04{\"Width\":97,\"Height\":31}").await;
    send(&mut socket, b"\0world").await;
    send(&mut socket, b"\xff\0").await;
    let mut input = String::new();
    played.stdin.read_to_string(&mut input).await.unwrap();
    assert_eq!(input, "hello world", "and the end of input comes through");
    assert_eq!(*played.sizes.lock().unwrap(), [(97, 31)]);
    assert_eq!(*node.fake.commands.lock().unwrap(), ["c sh -c"]);
    played.stdout.write_all(b"out").await.unwrap();
    assert_eq!(hear(&mut socket).await.unwrap(), b"\x01out");
    played.stderr.write_all(b"err").await.unwrap();
    assert_eq!(hear(&mut socket).await.unwrap(), b"\x02err");
    // One stream stays open, as when a child of the command goes on with it.
    drop(played.stdout);
    played.exit.send(3).unwrap();
    let status = hear(&mut socket).await.unwrap();
    assert_eq!(status.first(), Some(&3));
    let status: Value = serde_json::from_slice(&status[1..]).unwrap();
    assert_eq!(
        (&status["status"], &status["reason"]),
        (&"Failure".into(), &"NonZeroExitCode".into())
    );
    assert_eq!(status["details"]["causes"][0]["message"], "3");
    assert_eq!(hear(&mut socket).await, None);
}

#[tokio::test]
async fn a_command_that_does_not_read_is_heard_all_the_same() {
    let node = Node::start().await;
    node.add_pod().await;
    let mut played = Played::next(&node);
    let path = "/exec/ns/web/c?input=1&output=1&command=x";
    let (mut socket, _, _tasks) = websocket(&node, path, "v4.channel.k8s.io").await.unwrap();
    for _ in 0..4 {
        send(&mut socket, &[0; 32 << 10]).await;
    }
    for number in 0..200u8 {
        played.stdout.write_all(&[number; 500]).await.unwrap();
        let mut heard = 0;
        while heard < 500 {
            heard += hear(&mut socket).await.unwrap().len() - 1;
        }
    }
}

#[tokio::test]
async fn a_command_ends_with_its_client() {
    let node = Node::start().await;
    node.add_pod().await;
    let mut played = Played::next(&node);
    let path = "/exec/ns/web/c?input=1&output=1&command=x";
    let (socket, _, tasks) = websocket(&node, path, "v5.channel.k8s.io").await.unwrap();
    drop((socket, tasks));
    assert_eq!(played.stdin.read(&mut [0; 8]).await.unwrap(), 0);
    played.exit.closed().await;
}

#[tokio::test]
async fn an_attached_container_tells_no_exit_code() {
    let node = Node::start().await;
    node.add_pod().await;
    let played = Played::next(&node);
    let (mut socket, _, _tasks) = websocket(&node, "/attach/ns/web/c?output=1", "v5.channel.k8s.io")
        .await
        .unwrap();
    drop((played.stdout, played.stderr));
    played.exit.send(7).unwrap();
    let status = String::from_utf8(hear(&mut socket).await.unwrap()).unwrap();
    assert!(status.contains("\"status\":\"Success\""), "{status}");
}

#[tokio::test]
async fn what_cannot_be_joined_is_refused_before_the_upgrade() {
    let node = Node::start().await;
    node.add_pod().await;
    let refused = async |path: &str, protocol: &str| websocket(&node, path, protocol).await.err();
    for (path, protocol, code, text) in [
        (
            "/exec/ns/web/d?output=1&command=x",
            "v5.channel.k8s.io",
            500,
            "container not found (\"d\")",
        ),
        (
            "/exec/ns/web/other-uid/c?output=1&command=x",
            "v5.channel.k8s.io",
            404,
            "pod \"web\" does not exist",
        ),
        (
            "/exec/ns/web/c?output=1&command=x",
            "v9.channel.k8s.io",
            403,
            "no protocol in common",
        ),
        ("/portForward/ns/web", "v4.channel.k8s.io", 403, "no protocol in common"),
    ] {
        let (got, said) = refused(path, protocol).await.unwrap();
        assert!(got == code && said.starts_with(text), "{path}: {got} {said}");
    }
    let plain = node.get("/exec/ns/web/c?output=1&command=x").await;
    assert_eq!(
        plain,
        (400, "unable to upgrade: missing upgrade headers in request".to_owned())
    );
    assert!(node.fake.commands.lock().unwrap().is_empty());
}

/// Reads frames until the streams named have ended; their bytes by stream, and how many replies came.
async fn frames(stream: &mut TokioIo<Upgraded>, decoder: &mut Decoder, ends: &[u32]) -> Vec<(u32, Vec<u8>)> {
    let mut bytes: Vec<(u32, Vec<u8>)> = ends.iter().map(|stream| (*stream, Vec::new())).collect();
    let mut open = ends.len();
    while open > 0 {
        let mut chunk = Vec::new();
        assert!(
            stream.read_buf(&mut chunk).await.unwrap() > 0,
            "it ended with {bytes:?}"
        );
        decoder.push(&chunk);
        while let Some(heard) = decoder.next().unwrap() {
            if let Heard::Data {
                stream,
                bytes: more,
                fin,
            } = heard
            {
                let slot = bytes.iter_mut().find(|(known, _)| *known == stream);
                slot.unwrap().1.extend_from_slice(&more);
                open -= usize::from(fin);
            }
        }
    }
    bytes
}

#[tokio::test]
async fn a_command_is_joined_by_spdy_until_its_end() {
    let node = Node::start().await;
    node.add_pod().await;
    let mut played = Played::next(&node);
    let headers = [
        ("upgrade", "SPDY/3.1"),
        ("x-stream-protocol-version", "v4.channel.k8s.io"),
    ];
    let path = "/exec/ns/web/c?input=1&output=1&tty=1&command=x";
    let (upgraded, protocol, _tasks) = upgrade(&node, path, &headers).await.unwrap();
    assert_eq!(protocol, "v4.channel.k8s.io");
    let mut client = TokioIo::new(upgraded);
    let mut opener = Opener::default();
    let opened = [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "resize")]
        .map(|(stream, kind)| opener.open(stream, &[("streamtype", kind)]));
    client.write_all(&opened.concat()).await.unwrap();
    let said = [
        ping(1),
        data(7, b"{\"Width\":80,\"Height\":24}\n{\"Width\":97,", false),
        data(7, b"\"Height\":31}\n", false),
        data(3, b"hello", false),
        data(3, b" world", true),
    ];
    client.write_all(&said.concat()).await.unwrap();
    let mut input = String::new();
    played.stdin.read_to_string(&mut input).await.unwrap();
    assert_eq!(input, "hello world");
    assert_eq!(*played.sizes.lock().unwrap(), [(80, 24), (97, 31)]);
    played.stdout.write_all(b"done").await.unwrap();
    drop((played.stdout, played.stderr));
    played.exit.send(0).unwrap();
    let heard = frames(&mut client, &mut Decoder::default(), &[1, 5]).await;
    assert_eq!(heard[1].1, b"done");
    let status: Value = serde_json::from_slice(&heard[0].1).unwrap();
    assert_eq!(status["status"], "Success");
}

#[tokio::test]
async fn the_end_is_heard_by_spdy_though_input_was_left_unread() {
    const LENGTH: usize = 4 << 20;
    let node = Node::start().await;
    node.add_pod().await;
    let mut played = Played::next(&node);
    let headers = [
        ("upgrade", "SPDY/3.1"),
        ("x-stream-protocol-version", "v4.channel.k8s.io"),
    ];
    let path = "/exec/ns/web/c?input=1&output=1&command=x";
    let (upgraded, _, _tasks) = upgrade(&node, path, &headers).await.unwrap();
    let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
    let mut opener = Opener::default();
    let opened =
        [(1, "error"), (3, "stdin"), (5, "stdout")].map(|(stream, kind)| opener.open(stream, &[("streamtype", kind)]));
    to.write_all(&opened.concat()).await.unwrap();
    let (stdin, stdout) = (played.stdin, &mut played.stdout);
    let printing = async {
        stdout.write_all(&vec![b'x'; LENGTH]).await.unwrap();
        played.exit.send(0).unwrap();
        let _ = stdout.shutdown().await;
    };
    let hearing = async {
        let (mut decoder, mut heard, mut ends) = (Decoder::default(), 0, 0);
        while ends < 2 {
            let mut chunk = Vec::with_capacity(8 << 10);
            let read = from.read_buf(&mut chunk).await;
            assert!(read.unwrap() > 0, "it ended after {heard} bytes");
            decoder.push(&chunk);
            while let Some(frame) = decoder.next().unwrap() {
                if let Heard::Data { stream, bytes, fin } = frame {
                    heard += if stream == 5 { bytes.len() } else { 0 };
                    ends += usize::from(fin);
                }
            }
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        heard
    };
    // More than the process, and all queues on the way to it, take.
    let sending = async {
        let piece = data(3, &[0; 16 << 10], false);
        while to.write_all(&piece).await.is_ok() {}
    };
    let heard = tokio::select! {
        ((), heard) = async { tokio::join!(printing, hearing) } => heard,
        () = async { sending.await; std::future::pending().await } => 0,
    };
    assert_eq!(heard, LENGTH);
    drop(stdin);
}

#[tokio::test]
async fn a_port_that_cannot_be_reached_is_told_on_the_error_stream() {
    let node = Node::start().await;
    node.add_pod().await;
    let headers = [
        ("upgrade", "SPDY/3.1"),
        ("x-stream-protocol-version", "portforward.k8s.io"),
    ];
    let (upgraded, _, _tasks) = upgrade(&node, "/portForward/ns/web", &headers).await.unwrap();
    let mut client = TokioIo::new(upgraded);
    let (mut opener, mut decoder) = (Opener::default(), Decoder::default());
    for (error, number) in [(1, "0"), (5, "1")] {
        let opened = [(error, "error"), (error + 2, "data")]
            .map(|(stream, kind)| opener.open(stream, &[("streamtype", kind), ("port", "80"), ("requestid", number)]));
        client.write_all(&opened.concat()).await.unwrap();
        let heard = frames(&mut client, &mut decoder, &[error, error + 2]).await;
        let said = String::from_utf8(heard[0].1.clone()).unwrap();
        assert!(
            said.starts_with("failed to forward port 80 to pod web (uid u): "),
            "{said}"
        );
        assert!(heard[1].1.is_empty());
    }
}
