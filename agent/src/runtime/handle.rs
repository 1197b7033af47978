//! The agent's side of the runtime.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::Command;
use tokio::sync::broadcast;
use tracing::warn;

use super::image::record::Record;
use super::shim::BAD_INPUT;
use super::{ContainerSpec, ExecSpec, ImageError, PodState, RuntimeError, RuntimeEvent, Sandbox, SandboxSpec, image};

/// Events beyond this are dropped and the receiver told so: it then looks at every pod.
const EVENTS: usize = 128;

/// Where the runtime keeps its things.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Images and container file systems; survives reboots.
    pub data_dir: PathBuf,
    /// Sockets, pinned namespaces, records; must not survive a reboot.
    pub run_dir: PathBuf,
    /// The program whose `shim` subcommand is [`shim::main`](super::shim::main): `/proc/self/exe`.
    pub shim: PathBuf,
    /// Cgroup under which all pods are, relative to the root of every hierarchy: `kubepods`.
    pub cgroup_parent: String,
}

impl RuntimeConfig {
    /// The usual one: this program is the shim, pods are in the cgroup `kubepods`.
    pub fn new(data_dir: PathBuf, run_dir: PathBuf) -> Self {
        Self {
            data_dir,
            run_dir,
            shim: "/proc/self/exe".into(),
            cgroup_parent: "kubepods".into(),
        }
    }
}

/// An image on this node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Image {
    /// Full names (`docker.io/library/busybox:latest`), sorted.
    pub names: Vec<String>,
    /// `sha256:…` of its configuration.
    pub id: String,
    /// Bytes of its files, unpacked.
    pub size: u64,
}

impl From<Record> for Image {
    fn from(record: Record) -> Self {
        Self {
            names: record.names,
            id: record.id,
            size: record.size,
        }
    }
}

/// A command running beside a container's own.
pub struct Exec {
    /// Its standard input, unless it has none. Dropping it is end of file (with a terminal: nothing).
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its standard output; with a terminal everything.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error; `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
}

impl Exec {
    /// Tells its terminal how large it is; nothing without one.
    pub fn resize(&self, _width: u16, _height: u16) {}

    /// Waits for its end: its exit code, 128 + signal when a signal ended it.
    pub async fn wait(&mut self) -> Result<i32, RuntimeError> {
        Err(RuntimeError::NoSandbox(String::new()))
    }
}

/// The node's containers.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    config: RuntimeConfig,
    events: broadcast::Sender<RuntimeEvent>,
}

impl Runtime {
    /// Opens the store and finds running pods again.
    pub async fn open(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let data = config.data_dir.clone();
        let prepared = blocking(move || image::prepare(&data)).await;
        prepared.map_err(RuntimeError::io(&config.data_dir))?;
        let (events, _) = broadcast::channel(EVENTS);
        Ok(Self {
            inner: Arc::new(Inner { config, events }),
        })
    }

    /// Takes in every image of an archive (`docker save` or OCI layout; `.tar` or `.tar.gz`); returns their names.
    ///
    /// The work is done by a child process that ends with the call: an image must not cost the agent memory for good.
    pub async fn import(&self, archive: &Path) -> Result<Vec<String>, ImageError> {
        let failed = |source| ImageError::Io {
            path: archive.into(),
            source,
        };
        let mut command = Command::new(&self.inner.config.shim);
        command
            .arg("shim")
            .arg("import")
            .arg(&self.inner.config.data_dir)
            .arg(archive);
        let done = command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(failed)?;
        let reason = || String::from_utf8_lossy(&done.stderr).trim().to_owned();
        if done.status.success() {
            let names = String::from_utf8_lossy(&done.stdout);
            Ok(names.lines().map(str::to_owned).collect())
        } else if done.status.code() == Some(BAD_INPUT) {
            Err(ImageError::Archive {
                path: archive.into(),
                reason: reason(),
            })
        } else {
            Err(failed(io::Error::other(format!("{}: {}", done.status, reason()))))
        }
    }

    /// All images.
    pub async fn images(&self) -> Vec<Image> {
        self.records().await.into_iter().map(Image::from).collect()
    }

    /// The image a reference (or an id) means on this node.
    pub async fn resolve(&self, reference: &str) -> Option<Image> {
        self.record(reference).await.map(Image::from)
    }

    async fn record(&self, reference: &str) -> Option<Record> {
        image::find(&self.records().await, reference).cloned()
    }

    async fn records(&self) -> Vec<Record> {
        let data = self.inner.config.data_dir.clone();
        blocking(move || image::records(&data)).await.unwrap_or_else(|error| {
            warn!(error = &error as &dyn Error, "images cannot be listed");
            Vec::new()
        })
    }

    /// Makes a pod's sandbox; one that stands already is returned as it is.
    pub async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        Err(RuntimeError::NoSandbox(spec.pod_uid.clone()))
    }

    /// Starts one attempt of a container.
    pub async fn start_container(&self, pod_uid: &str, _spec: &ContainerSpec) -> Result<(), RuntimeError> {
        Err(RuntimeError::NoSandbox(pod_uid.into()))
    }

    /// Sends a signal to a container's first process (its newest attempt); one that has ended is no error.
    pub async fn signal(&self, pod_uid: &str, _container: &str, _signal: i32) -> Result<(), RuntimeError> {
        Err(RuntimeError::NoSandbox(pod_uid.into()))
    }

    /// Kills and forgets one attempt of a container and its files (its log stays).
    pub async fn remove_container(&self, pod_uid: &str, _container: &str, _attempt: u32) -> Result<(), RuntimeError> {
        Err(RuntimeError::NoSandbox(pod_uid.into()))
    }

    /// Kills and forgets everything of a pod but its logs. Unknown pods are no error.
    pub async fn remove_sandbox(&self, _pod_uid: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// All pods with a sandbox, those of an earlier agent process too.
    pub async fn pods(&self) -> Result<Vec<PodState>, RuntimeError> {
        Ok(Vec::new())
    }

    /// Runs a command in a running container (its newest attempt).
    pub async fn exec(&self, pod_uid: &str, _container: &str, _spec: ExecSpec) -> Result<Exec, RuntimeError> {
        Err(RuntimeError::NoSandbox(pod_uid.into()))
    }

    /// Joins a running container's own streams: what it prints from now on and, with `stdin` in its spec, its input.
    pub async fn attach(&self, pod_uid: &str, _container: &str) -> Result<Exec, RuntimeError> {
        Err(RuntimeError::NoSandbox(pod_uid.into()))
    }

    /// Wakes for every pod that changed by itself. A receiver that lagged looks at all of them.
    pub fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }
}

/// Runs `work` on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}
