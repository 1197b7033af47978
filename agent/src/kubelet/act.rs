//! Carries out a probe or a hook: a command in the container, an HTTP request, a connection, a sleep.
//!
//! Source: Kubernetes v1.36, `pkg/probe` and `pkg/kubelet/lifecycle/handlers.go`.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::Empty;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::adapt::chain;
use super::blindly;
use super::ports::Containers;
use crate::runtime::ExecSpec;
use crate::wire::pod::{Container, Handler, HttpGet, Pod};

/// Output that a failed command may put into an event.
const LONGEST_OUTPUT: u64 = 10 << 10;

/// Where and on what a handler acts.
#[derive(Clone)]
pub struct Target {
    /// The runtime.
    pub containers: Arc<dyn Containers>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container's name.
    pub container: String,
    /// The pod's address.
    pub ip: Option<IpAddr>,
}

impl Target {
    fn container(&self) -> Option<&Container> {
        self.pod.all_containers().find(|it| it.name == self.container)
    }
}

/// Does what the handler says within `limit`.
///
/// # Errors
/// What went wrong, in words for an event.
pub async fn act(target: &Target, handler: &Handler, limit: Duration) -> Result<(), String> {
    let acting = async {
        if let Some(exec) = &handler.exec {
            command(target, &exec.command).await
        } else if let Some(get) = &handler.http_get {
            http(target, get).await
        } else if let Some(tcp) = &handler.tcp_socket {
            connect(target, &tcp.host, &tcp.port).await.map(|_| ())
        } else if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(sleep.seconds)).await;
            Ok(())
        } else if handler.grpc.is_some() {
            Ok(()) // not asked: the pod's event has said so, and a healthy pod must not be killed for it
        } else {
            Err("no action is given".into())
        }
    };
    let late = |_| Err(format!("timed out after {}s", limit.as_secs_f32()));
    timeout(limit, acting).await.unwrap_or_else(late)
}

async fn command(target: &Target, command: &[String]) -> Result<(), String> {
    let spec = ExecSpec {
        command: command.to_vec(),
        tty: false,
        stdin: false,
    };
    let started = target
        .containers
        .exec(&target.pod.meta.uid, &target.container, spec)
        .await;
    let mut process = started.map_err(|error| chain(&error))?;
    let stderr = process.stderr.unwrap_or_else(|| Box::new(tokio::io::empty()));
    let (stdout, stderr) = tokio::join!(beginning(process.stdout), beginning(stderr));
    let output = [stdout, stderr].concat();
    match process.control.wait().await {
        Ok(0) => Ok(()),
        Ok(_) if !output.is_empty() => Err(String::from_utf8_lossy(&output).into_owned()),
        Ok(code) => Err(format!("command exited with {code}")),
        Err(error) => Err(chain(&error)),
    }
}

/// The first bytes of a stream that is read to its end: a pipe that nobody reads would stop the command.
async fn beginning(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let begun = (&mut stream).take(LONGEST_OUTPUT).read_to_end(&mut kept).await;
    let rest = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    if let Err(error) = begun.and(rest.map(|_| 0)) {
        tracing::debug!(%error, "a command's output breaks off");
    }
    kept
}

/// A port by number or by its name in the container.
fn port(target: &Target, port: &Value) -> Result<u16, String> {
    let number = match port {
        Value::Number(number) => number.as_u64().and_then(|it| u16::try_from(it).ok()),
        Value::String(text) => text.parse().ok().or_else(|| {
            let mut ports = target.container()?.ports.iter();
            ports.find(|it| it.name == *text).map(|it| it.container_port)
        }),
        _ => None,
    };
    number
        .filter(|it| *it > 0)
        .ok_or_else(|| format!("couldn't find port {port}"))
}

async fn connect(target: &Target, host: &str, at: &Value) -> Result<TcpStream, String> {
    let at = port(target, at)?;
    let connected = match (host, target.ip) {
        ("", Some(ip)) => TcpStream::connect((ip, at)).await,
        ("", None) => return Err("the pod has no address yet".into()),
        (host, _) => TcpStream::connect((host, at)).await,
    };
    connected.map_err(|error| format!("dial tcp port {at}: {error}"))
}

async fn http(target: &Target, get: &HttpGet) -> Result<(), String> {
    let stream = connect(target, &get.host, &get.port).await?;
    let host = match (get.host.as_str(), target.ip) {
        ("", Some(ip)) => ip.to_string(),
        (host, _) => host.to_owned(),
    };
    let request = request(get, &host, port(target, &get.port)?)?;
    let status = if get.scheme == "HTTPS" {
        // Like a Go kubelet: pods' certificates are not checked, the probe asks for life and not for identity.
        let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
        let config = blindly::client_config().map_err(|error| error.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(config);
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|error| error.to_string())?;
        ask(stream, request).await?
    } else {
        ask(stream, request).await?
    };
    match status.as_u16() {
        200..400 => Ok(()),
        code => Err(format!("HTTP probe failed with statuscode: {code}")),
    }
}

fn request(get: &HttpGet, host: &str, port: u16) -> Result<Request<Empty<Bytes>>, String> {
    let path = if get.path.starts_with('/') {
        get.path.clone()
    } else {
        format!("/{}", get.path)
    };
    let own = |name: &str| get.http_headers.iter().find(|it| it.name.eq_ignore_ascii_case(name));
    let bracketed = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let host = own("host").map_or_else(|| format!("{bracketed}:{port}"), |it| it.value.clone());
    let mut builder = Request::get(path).header("Host", host);
    for (name, value) in [
        ("User-Agent", "kube-probe/1.36"),
        ("Accept", "*/*"),
        ("Connection", "close"),
    ] {
        if own(name).is_none() {
            builder = builder.header(name, value);
        }
    }
    for header in get
        .http_headers
        .iter()
        .filter(|it| !it.name.eq_ignore_ascii_case("host"))
    {
        builder = builder.header(&header.name, &header.value);
    }
    builder.body(Empty::new()).map_err(|error| error.to_string())
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<StatusCode, String> {
    let made = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = made.map_err(|error| error.to_string())?;
    let answer = pin!(sender.send_request(request));
    match select(answer, pin!(connection)).await {
        Either::Left((answer, _)) => Ok(answer.map_err(|error| error.to_string())?.status()),
        // The connection may end in the moment in which the answer is whole.
        Either::Right((Err(error), _)) => Err(error.to_string()),
        Either::Right((Ok(()), answer)) => Ok(answer.await.map_err(|error| error.to_string())?.status()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::kubelet::testing::Fake;

    fn target() -> Target {
        let pod = Pod::of(
            &json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": [
            {"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]}}),
        );
        Target {
            containers: Arc::new(Fake::default()),
            pod: Arc::new(pod.unwrap()),
            container: "c".into(),
            ip: Some([127, 0, 0, 1].into()),
        }
    }

    fn handler(value: Value) -> Handler {
        serde::Deserialize::deserialize(value).unwrap()
    }

    #[test]
    fn ports_are_numbers_or_names() {
        for (value, expected) in [
            (json!(80), Some(80)),
            (json!("81"), Some(81)),
            (json!("web"), Some(8080)),
        ] {
            assert_eq!(port(&target(), &value).ok(), expected, "{value}");
        }
        for value in [json!("db"), json!(0), json!(70_000), json!(null)] {
            assert!(port(&target(), &value).is_err(), "{value}");
        }
    }

    #[tokio::test]
    async fn http_and_tcp_probes_ask_the_pod() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().port();
        let serving = async {
            for answer in ["200 OK", "302 Found", "503 Service Unavailable"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let length = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..length]).to_lowercase();
                assert!(head.starts_with("get /live?x=1 http/1.1\r\n"), "{head}");
                assert!(
                    head.contains("user-agent: kube-probe/1.36\r\n") && head.contains("x-own: 1\r\n"),
                    "{head}"
                );
                let text = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        };
        let get = handler(
            json!({"httpGet": {"path": "live?x=1", "port": at, "httpHeaders": [{"name": "X-Own", "value": "1"}]}}),
        );
        let asking = async {
            let one = || async { act(&target(), &get, Duration::from_secs(5)).await };
            (one().await, one().await, one().await)
        };
        let (results, ()) = tokio::join!(asking, serving);
        let refused = Err("HTTP probe failed with statuscode: 503".to_owned());
        assert_eq!(results, (Ok(()), Ok(()), refused));
        let tcp = handler(json!({"tcpSocket": {"port": at}}));
        assert_eq!(act(&target(), &tcp, Duration::from_secs(5)).await, Ok(()));
        drop(listener);
        assert!(act(&target(), &tcp, Duration::from_secs(5)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_has_failed() {
        let sleep = handler(json!({"sleep": {"seconds": 5}}));
        assert_eq!(act(&target(), &sleep, Duration::from_secs(6)).await, Ok(()));
        let late = act(&target(), &sleep, Duration::from_secs(1)).await;
        assert_eq!(late, Err("timed out after 1s".into()));
    }
}
