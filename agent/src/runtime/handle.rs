//! The agent's side of the runtime.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast;

use super::{ContainerSpec, ExecSpec, ImageError, PodState, RuntimeError, RuntimeEvent, Sandbox, SandboxSpec};

/// Where the runtime keeps its things.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Images and container file systems; survives reboots.
    pub data_dir: PathBuf,
    /// Sockets, pinned namespaces, records; must not survive a reboot.
    pub run_dir: PathBuf,
    /// The program whose `shim` subcommand is [`shim::main`](super::shim::main): `/proc/self/exe`.
    pub shim: PathBuf,
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
    events: broadcast::Sender<RuntimeEvent>,
}

impl Runtime {
    /// Opens the store and finds running pods again.
    pub async fn open(_config: RuntimeConfig) -> Result<Self, RuntimeError> {
        Err(RuntimeError::Spec("the runtime is not there yet".into()))
    }

    /// Takes in every image of an archive (`docker save` or OCI layout; `.tar` or `.tar.gz`); returns their names.
    pub async fn import(&self, archive: &Path) -> Result<Vec<String>, ImageError> {
        Err(ImageError::Archive {
            path: archive.into(),
            reason: "the runtime is not there yet".into(),
        })
    }

    /// All images.
    pub async fn images(&self) -> Vec<Image> {
        Vec::new()
    }

    /// The image a reference (or an id) means on this node.
    pub async fn resolve(&self, _reference: &str) -> Option<Image> {
        None
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
        self.events.subscribe()
    }
}
