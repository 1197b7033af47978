//! What agent and shim say to each other: one JSON line each way, descriptors beside it.
//!
//! One connection per request. A shim outlives the agent that started it, so both sides take messages of older and newer
//! versions: add variants and fields, never change them; an unknown request is answered with an error.

use serde::{Deserialize, Serialize};

use super::{ExecSpec, RuntimeError, Status};
use crate::runtime::spec::stamp;

/// A longer line ends the connection: commands of exec are the longest there are.
pub(super) const MAX_LINE: usize = 256 << 10;

/// One attempt of a container.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Which {
    pub name: String,
    pub attempt: u32,
}

/// What the agent wants.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Request {
    /// A byte for every change from now on, until the connection ends.
    Watch,
    /// Start what `plan.json` says; answered when it runs or has failed.
    Start(Start),
    /// With stdin, stdout and stderr unless it gets a terminal. Answered twice: when it runs (with the terminal's
    /// descriptor) and when it has ended. Closing the connection kills it.
    Exec { which: Which, spec: ExecSpec },
    /// With descriptors for stdout and stderr. Answered at once (with the descriptor of its input, if it has one and
    /// `stdin` is set), and when the container has ended.
    Attach {
        which: Which,
        #[serde(default = "yes")]
        stdin: bool,
    },
    /// To the first process.
    Signal { which: Which, signal: i32 },
    /// Kill it and forget it; answered when it is gone.
    Forget { which: Which },
    /// Kill all and end; answered when all are gone.
    Stop,
}

fn yes() -> bool {
    true
}

/// What the shim itself must know of a container; the rest it leaves in the plan for its child.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Start {
    pub which: Which,
    pub cgroup: String,
    /// No pid namespace of its own.
    #[serde(default)]
    pub host_pid: bool,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub log: LogPlan,
}

/// Where a container's output goes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct LogPlan {
    pub path: std::path::PathBuf,
    /// Begin a new file beyond this.
    pub max_bytes: u64,
    /// Files kept, the current one included.
    pub max_files: usize,
}

/// What the shim answers.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Reply {
    /// It is done, or runs.
    Done {
        #[serde(default)]
        tty: bool,
    },
    /// It is not.
    Failed(Failure),
    /// A command or container has ended.
    Exited { code: i32 },
}

/// Why something was not done.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) enum FailureKind {
    /// The container cannot be started as it is.
    Start,
    /// The spec asks for what cannot be.
    Spec,
    /// No such container.
    NoContainer,
}

impl Failure {
    pub fn start(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Start,
            message: message.into(),
        }
    }

    pub fn spec(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Spec,
            message: message.into(),
        }
    }

    /// As the kubelet is told.
    pub fn into_error(self, container: &str) -> RuntimeError {
        match self.kind {
            FailureKind::Start => RuntimeError::Start(self.message),
            FailureKind::Spec => RuntimeError::Spec(self.message),
            FailureKind::NoContainer => RuntimeError::NoContainer(container.into()),
        }
    }
}

/// What changes in a container's life, as its shim writes it down.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Life {
    pub status: Status,
    pub pid: i32,
    #[serde(default, with = "stamp")]
    pub started: Option<jiff::Timestamp>,
    #[serde(default, with = "stamp")]
    pub finished: Option<jiff::Timestamp>,
    #[serde(default)]
    pub exit_code: i32,
    #[serde(default)]
    pub signal: i32,
    #[serde(default)]
    pub oom_killed: bool,
}
