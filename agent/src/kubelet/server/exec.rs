//! `/exec` and `/attach`: a command in a container, or the container itself, joined with a client.
//!
//! What can be said before is said as an HTTP answer; the command starts once the client listens.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use hyper::upgrade::Upgraded;
use tokio::time::timeout;

use super::channel::{Protocol, Said, failure};
use super::route::{Place, Refusal, Streams};
use super::stream::{Ear, Kind, Mouth, join};
use super::websocket::{self, Listening, Speaking};
use super::{Port, find};
use crate::kubelet::adapt::chain;
use crate::kubelet::ports::Attempt;
use crate::kubelet::status::newest;
use crate::runtime::ExecSpec;

/// A client that has heard how it ended goes. Until then it is heard out: who closes while input comes that nobody reads sends a
/// reset, which takes away what is still on its way to the client. One that reads slowly has megabytes on their way, in the
/// buffers of the kernel and the tunnel.
pub const FAREWELL: Duration = Duration::from_secs(120);
/// One that is silent so long is not waited for: a close without unread input takes nothing away.
pub const SILENCE: Duration = Duration::from_secs(5);

/// What is joined with a client.
#[derive(Clone, Debug)]
pub struct Joining {
    uid: String,
    container: String,
    streams: Streams,
    /// `None`: the container's own process.
    command: Option<Vec<String>>,
}

impl Joining {
    /// The channels it is joined by.
    pub fn streams(&self) -> Streams {
        self.streams
    }
}

/// Looks whether the container runs.
///
/// # Errors
/// [`Refusal`] in the words of Kubernetes v1.36, `pkg/kubelet/kubelet_pods.go` (`GetExec`).
pub async fn prepare(
    port: &Port,
    place: &Place,
    streams: Streams,
    command: Option<Vec<String>>,
) -> Result<Joining, Refusal> {
    let known = find(&port.roll, place)?;
    let uid = known.pod.meta.uid.clone();
    let state = port.containers.pod(&uid).await;
    let state = state.map_err(|error| Refusal::new(500, chain(&error)))?;
    let attempts = state.as_ref().map(Attempt::all).unwrap_or_default();
    match newest(&attempts, &place.container).is_some_and(|attempt| attempt.running) {
        true => Ok(Joining {
            uid,
            container: place.container.clone(),
            streams,
            command,
        }),
        false => Err(Refusal::new(
            500,
            format!("container not found ({:?})", place.container),
        )),
    }
}

/// Serves a client that has come by websocket.
pub async fn by_websocket(port: Arc<Port>, joining: Joining, protocol: Protocol, upgraded: Upgraded) {
    let (to, from) = websocket::open(upgraded).await.split();
    let (mut ear, mut mouth) = (Listening { protocol, from }, Speaking(to));
    run(&port, joining, &mut ear, &mut mouth).await;
    let leaving = async {
        websocket::close(&mut mouth.0).await;
        while let Ok(Some(_)) = timeout(SILENCE, websocket::next(&mut ear.from)).await {}
    };
    let _ = timeout(FAREWELL, leaving).await;
}

/// Starts or finds the process, and joins.
pub async fn run(port: &Port, joining: Joining, ear: &mut impl Ear, mouth: &mut impl Mouth) {
    let Joining {
        uid,
        container,
        streams,
        command,
    } = joining;
    let (kind, what) = match command {
        Some(_) => (Kind::Command, "executing command in"),
        None => (Kind::Container, "attaching to"),
    };
    let process = match command {
        Some(command) => {
            let spec = ExecSpec {
                command,
                tty: streams.tty,
                stdin: streams.stdin,
            };
            port.containers.exec(&uid, &container, spec).await
        }
        None => port.containers.attach(&uid, &container, streams.stdin).await,
    };
    match process {
        Ok(process) => join(process, kind, streams, ear, mouth).await,
        Err(error) => {
            let status = Box::new(failure(what, &chain(&error)));
            let _ = mouth.say(Said::Status(status)).await;
        }
    }
}
