//! What the kubelet needs of its neighbours: containers, pod network, API. Traits, so that tests put fakes there.
//!
//! `adapt.rs` implements them for the real ones. Futures are boxed: one kubelet in the binary, no generics through it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::runtime::{
    ContainerSpec, ExecSpec, Image, PodState, RuntimeError, Sandbox, SandboxSpec, Status as RunStatus,
};
use crate::wire::status::Status;

/// One start of a container, as far as status and restarts look at it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Attempt {
    /// Name in the pod.
    pub container: String,
    /// 0 for the first.
    pub attempt: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Of the image it was made of, as the pod wrote it then: a pod's image may be changed afterwards.
    pub image: String,
    /// `sha256:...`.
    pub image_id: String,
    /// Its process lives.
    pub running: bool,
    /// 128 + n for signal n.
    pub exit_code: i32,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// The signal it asks to be stopped with.
    pub stop_signal: i32,
    /// It never ran, and this is why.
    pub start_error: Option<String>,
}

impl Attempt {
    /// All attempts of a pod.
    pub fn all(pod: &PodState) -> Vec<Self> {
        let each = pod.containers.iter().filter(|it| it.status != RunStatus::Created);
        let read = each.map(|it| Self {
            container: it.name.clone(),
            attempt: it.attempt,
            id: it.id.clone(),
            image: it.image.clone(),
            image_id: it.image_id.clone(),
            running: it.status == RunStatus::Running,
            exit_code: it.exit_code,
            oom_killed: it.oom_killed,
            started: it.started,
            finished: it.finished,
            start_error: None,
            stop_signal: if it.stop_signal == 0 {
                libc::SIGTERM
            } else {
                it.stop_signal
            },
        });
        read.collect()
    }
}

/// A command in a container, or a container's own streams.
pub struct Process {
    /// Standard input, if it has one; dropping it is end of file.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Standard output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Its terminal and its end.
    pub control: Box<dyn Control>,
}

/// The handle on a running command.
pub trait Control: Send {
    /// The terminal's size.
    fn resize(&self, width: u16, height: u16);
    /// Its exit code; may be cancelled and asked again.
    fn wait(&mut self) -> BoxFuture<'_, Result<i32, RuntimeError>>;
}

/// The node's containers.
pub trait Containers: Send + Sync {
    /// Makes a sandbox; one that stands is returned.
    fn create_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> BoxFuture<'a, Result<Sandbox, RuntimeError>>;
    /// Starts one attempt.
    fn start<'a>(&'a self, pod_uid: &'a str, spec: &'a ContainerSpec) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Signals the newest attempt.
    fn signal<'a>(
        &'a self,
        pod_uid: &'a str,
        container: &'a str,
        signal: i32,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Forgets one attempt.
    fn remove<'a>(
        &'a self,
        pod_uid: &'a str,
        container: &'a str,
        attempt: u32,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// Kills and forgets a pod.
    fn remove_sandbox<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;
    /// One pod.
    fn pod<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<Option<PodState>, RuntimeError>>;
    /// All pods.
    fn pods(&self) -> BoxFuture<'_, Result<Vec<PodState>, RuntimeError>>;
    /// Whether the image is on the node.
    fn has_image<'a>(&'a self, image: &'a str) -> BoxFuture<'a, bool>;
    /// All images, for the node's status.
    fn images(&self) -> BoxFuture<'_, Vec<Image>>;
    /// Runs a command.
    fn exec<'a>(
        &'a self,
        pod_uid: &'a str,
        container: &'a str,
        spec: ExecSpec,
    ) -> BoxFuture<'a, Result<Process, RuntimeError>>;
    /// Joins the container's own streams, its input if `stdin`.
    fn attach<'a>(
        &'a self,
        pod_uid: &'a str,
        container: &'a str,
        stdin: bool,
    ) -> BoxFuture<'a, Result<Process, RuntimeError>>;
    /// UIDs of pods that changed by themselves; `None` once, when some may have been missed.
    fn events(&self) -> Box<dyn Events>;
}

/// A stream of pods to look at.
pub trait Events: Send {
    /// The next pod's UID; `None`: look at all.
    fn next(&mut self) -> BoxFuture<'_, Option<String>>;
}

/// The pod network.
pub trait Network: Send + Sync {
    /// Connects a namespace; one that is connected keeps its address.
    fn attach<'a>(&'a self, pod_uid: &'a str, netns: &'a Path) -> BoxFuture<'a, Result<IpAddr, String>>;
    /// Takes it off; unknown pods are fine.
    fn detach<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), String>>;
    /// Frees the addresses of all pods but these.
    fn retain(&self, alive: &BTreeSet<String>) -> Result<(), String>;
}

/// What makes the pod network, once the node's range of addresses is known.
pub trait Networks: Send + Sync {
    /// `range` is the node's `spec.podCIDR`.
    fn start<'a>(&'a self, range: &'a str) -> BoxFuture<'a, Result<Arc<dyn Network>, String>>;
}

/// Why a call of the API gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ApiFailure {
    /// The server said no.
    #[error("{0}")]
    Status(Status),
    /// Nobody answered: go on with what is known.
    #[error("no server answers: {0}")]
    Unreachable(String),
}

impl ApiFailure {
    /// The status code; 0 when nobody answered.
    pub fn code(&self) -> u16 {
        match self {
            Self::Status(status) => status.code,
            Self::Unreachable(_) => 0,
        }
    }
}

/// The Kubernetes API.
pub trait Api: Send + Sync {
    /// GET.
    fn get<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Value, ApiFailure>>;
    /// GET of a list that is the present: what a server cut off from its datastore saw last is a failure.
    fn list<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Value, ApiFailure>>;
    /// POST.
    fn create<'a>(&'a self, path: &'a str, body: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>>;
    /// PUT.
    fn update<'a>(&'a self, path: &'a str, body: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>>;
    /// Strategic merge PATCH.
    fn patch<'a>(&'a self, path: &'a str, body: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>>;
    /// DELETE with options.
    fn delete<'a>(&'a self, path: &'a str, options: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>>;
    /// Watch; the path has its query.
    fn watch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Box<dyn Watch>, ApiFailure>>;
    /// Notices of a server that answers, after a call that none has answered.
    fn returns(&self) -> Returns;
}

/// Between a notice and the next attempt: where one call is answered and the next is not, attempts must not follow without a rest.
const SOON: Duration = Duration::from_millis(500);

/// Whoever has had no answer, and waits before it tries again, learns here that another call had one.
pub struct Returns(watch::Receiver<()>);

impl Returns {
    /// Those that are sent there.
    pub const fn new(notices: watch::Receiver<()>) -> Self {
        Self(notices)
    }

    /// What was so far does not count. To be called before an attempt: what happens while it hangs does.
    pub fn forget(&mut self) {
        self.0.mark_unchanged();
    }

    /// Waits this long, or until soon after a server answers again.
    pub async fn pause(&mut self, most: Duration) {
        let noticed = async {
            if self.0.changed().await.is_err() {
                std::future::pending().await
            }
            sleep(SOON).await;
        };
        let _ = timeout(most, noticed).await;
    }
}

/// What happened to a watched object.
#[derive(Debug)]
pub enum Change {
    /// Added or modified.
    Set(Value),
    /// Deleted; its last state.
    Gone(Value),
    /// Nothing happened up to this object's resourceVersion.
    Bookmark(Value),
    /// The watch is of no use any more: list again.
    Relist,
}

/// A running watch.
pub trait Watch: Send {
    /// The next change; `None` when the stream ended: watch again from the last version.
    fn next(&mut self) -> BoxFuture<'_, Option<Change>>;
}
