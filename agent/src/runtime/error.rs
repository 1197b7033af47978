//! Why the runtime could not do something, by what the kubelet does about it.

use std::io;
use std::path::PathBuf;

/// Why a sandbox or a container could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The node does not hold the image: fetch it or report `ErrImageNeverPull`.
    #[error("image {0:?} is not on this node")]
    NoImage(String),
    /// No such sandbox: make it again.
    #[error("pod {0} has no sandbox")]
    NoSandbox(String),
    /// No such container in the sandbox.
    #[error("no container {0:?} in this pod")]
    NoContainer(String),
    /// The container could not be started, in words for the person who wrote the pod (`RunContainerError`).
    #[error("{0}")]
    Start(String),
    /// The spec cannot be honoured as written (`CreateContainerConfigError`).
    #[error("{0}")]
    Spec(String),
    /// The pod's shim is gone or does not answer: remove the sandbox and begin again.
    #[error("shim of pod {pod_uid}: {reason}")]
    Shim {
        /// The pod.
        pod_uid: String,
        /// What went wrong.
        reason: String,
    },
    /// The node's own files: try again later.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl RuntimeError {
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Why an archive gave no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The archive is damaged, hostile or of an unknown kind: it will not get better by itself.
    #[error("{}: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The node's own files: try again later.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}
