//! What the kubelet asks for and what it is told: sandboxes, containers, their states.
//!
//! Plain data; nothing here touches the machine. `plan` turns a container spec and its image into the
//! exact process a shim starts. These types also cross the shim's socket, and a shim outlives the agent that started
//! it: add fields with a default, never rename or remove one.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a pod or a container may use at most. `None` is "no limit of its own".
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Limits {
    /// Bytes of memory, page cache included.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Microseconds of CPU time in every 100 ms; 100,000 is one whole CPU.
    #[serde(default)]
    pub cpu_quota: Option<u64>,
    /// Share of the CPU under contention, on cgroup v1's scale (1024 is one CPU requested, 2 the least).
    #[serde(default)]
    pub cpu_shares: Option<u64>,
    /// Processes and threads.
    #[serde(default)]
    pub pids: Option<u64>,
}

/// A pod's shared surroundings.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct SandboxSpec {
    /// The pod's UID: the key of everything the runtime keeps.
    pub pod_uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// What `hostname` prints inside; ignored with `host_network` (the pod then shares the node's).
    pub hostname: String,
    /// Share the node's network and host name.
    #[serde(default)]
    pub host_network: bool,
    /// See the node's processes.
    #[serde(default)]
    pub host_pid: bool,
    /// Share the node's System V IPC and message queues.
    #[serde(default)]
    pub host_ipc: bool,
    /// Limits of the whole pod.
    #[serde(default)]
    pub limits: Limits,
    /// Where the pod's container logs are kept; made if missing, not removed with the sandbox.
    #[serde(default)]
    pub log_dir: PathBuf,
    /// `net.core.somaxconn` → `1024` and the like, set in the pod's own namespaces.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
}

/// A sandbox that stands.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The pod's network namespace, pinned; with `host_network` the node's own.
    pub netns: PathBuf,
    /// When it was made.
    pub created: Timestamp,
}

/// A file or folder of the node shown inside a container.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Mount {
    /// On the node; must exist.
    pub source: PathBuf,
    /// In the container; made if missing.
    pub target: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Let mounts made later on the node show up inside (`HostToContainer`).
    #[serde(default)]
    pub follow_host: bool,
}

/// One container of a pod, one start of it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ContainerSpec {
    /// The container's name in the pod.
    pub name: String,
    /// 0 for the first start, one more for each restart.
    #[serde(default)]
    pub attempt: u32,
    /// Image reference as the pod writes it, or an image id.
    pub image: String,
    /// Replaces the image's entry point unless empty (the pod's `command`).
    #[serde(default)]
    pub command: Vec<String>,
    /// Replaces the image's arguments unless empty (the pod's `args`).
    #[serde(default)]
    pub args: Vec<String>,
    /// Added to the image's environment, in order; a later name wins.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Instead of the image's.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// In order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Limits of this container.
    #[serde(default)]
    pub limits: Limits,
    /// `runAsUser`; otherwise the image's user.
    #[serde(default)]
    pub run_as_user: Option<u32>,
    /// `runAsGroup`; otherwise the user's group in the image's `/etc/passwd`.
    #[serde(default)]
    pub run_as_group: Option<u32>,
    /// `supplementalGroups` and `fsGroup`.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Refuse to start if the user turns out to be 0 (`runAsNonRoot`).
    #[serde(default)]
    pub run_as_non_root: bool,
    /// All capabilities, all devices, nothing masked.
    #[serde(default)]
    pub privileged: bool,
    /// Capabilities beside the default set, with or without `CAP_`; `ALL` is all of them.
    #[serde(default)]
    pub add_capabilities: Vec<String>,
    /// Capabilities taken out of the default set; applied before `add_capabilities` when it is `ALL`.
    #[serde(default)]
    pub drop_capabilities: Vec<String>,
    /// `allowPrivilegeEscalation: false`.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// The image's files cannot be written.
    #[serde(default)]
    pub read_only_root: bool,
    /// A terminal instead of pipes.
    #[serde(default)]
    pub tty: bool,
    /// Keep standard input open for attaching; otherwise it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Close standard input when the first client that is attached to it goes or closes it.
    #[serde(default)]
    pub stdin_once: bool,
    /// Where standard output and error go, in CRI format.
    pub log_path: PathBuf,
    /// Bytes after which the log begins a new file; 10 MiB if nothing is said.
    #[serde(default)]
    pub log_max_bytes: Option<u64>,
    /// Log files kept, the current one included; 5 if nothing is said.
    #[serde(default)]
    pub log_max_files: Option<u16>,
    /// −1000 to 1000; best effort.
    #[serde(default)]
    pub oom_score_adj: i32,
}

/// How a container is doing.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Status {
    /// Known, not started.
    #[default]
    Created,
    /// Its first process lives.
    Running,
    /// Its first process has ended and the record says how.
    Exited,
    /// Its shim is gone: nobody knows how it ended. `exit_code` is 137.
    Unknown,
}

/// One container as the runtime knows it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ContainerState {
    /// The container's name in the pod.
    pub name: String,
    /// Which start this is.
    pub attempt: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// As the spec wrote it.
    pub image: String,
    /// `sha256:…` of the image's configuration.
    pub image_id: String,
    /// When the runtime accepted it.
    #[serde(default, with = "stamp")]
    pub created: Option<Timestamp>,
    /// When its process began.
    #[serde(default, with = "stamp")]
    pub started: Option<Timestamp>,
    /// When its process ended.
    #[serde(default, with = "stamp")]
    pub finished: Option<Timestamp>,
    /// 0 to 255; 128 + signal when a signal ended it.
    #[serde(default)]
    pub exit_code: i32,
    /// The signal that ended it, else 0.
    #[serde(default)]
    pub signal: i32,
    /// The kernel killed one of its processes for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// How it is doing.
    pub status: Status,
    /// The first process as the node sees it; 0 if it never ran.
    #[serde(default)]
    pub pid: i32,
    /// What the image asks to be stopped with (`STOPSIGNAL`), SIGTERM if it does not say.
    #[serde(default)]
    pub stop_signal: i32,
    /// Where its log is.
    #[serde(default)]
    pub log_path: PathBuf,
}

/// A pod as the runtime knows it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PodState {
    /// The pod's UID.
    pub pod_uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// When the sandbox was made.
    #[serde(default, with = "stamp")]
    pub created: Option<Timestamp>,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// Whether its shim answers. Without one nothing can be started or read any more: remove the sandbox.
    #[serde(default)]
    pub shim_alive: bool,
    /// All containers not yet removed, every attempt on its own.
    #[serde(default)]
    pub containers: Vec<ContainerState>,
}

impl PodState {
    /// The newest attempt of a container.
    pub fn container(&self, name: &str) -> Option<&ContainerState> {
        let attempts = self.containers.iter().filter(|container| container.name == name);
        attempts.max_by_key(|container| container.attempt)
    }
}

/// A command run beside a container's own.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// A terminal instead of pipes.
    #[serde(default)]
    pub tty: bool,
    /// Give it a standard input; otherwise it reads `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
}

/// Something about a pod changed: look at it again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuntimeEvent {
    /// The pod.
    pub pod_uid: String,
}

/// Instants as RFC 3339 text, absent ones as null.
pub(super) mod stamp {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::wire::time;

    pub fn serialize<S: Serializer>(at: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => to.serialize_str(&time::nanos(*at)),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        Ok(text.as_deref().and_then(time::parse))
    }
}
