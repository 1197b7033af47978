//! Containers without a daemon: images, sandboxes, processes, logs.
//!
//! [`Runtime`] is the agent's side: it keeps no process of its own alive. Every pod has one shim (`shim`, the same
//! binary re-executed, one thread) that owns the pod's processes, their exit codes and logs, and that outlives the
//! agent; the two talk over a socket in the run directory. Networks are `podnet`'s, restarts and probes the kubelet's.
//! Nothing here blocks the agent's one thread for long: files and mounts are touched by shims or on blocking threads.

mod capability;
mod cgroup;
mod error;
mod exec;
mod handle;
pub mod image;
mod layout;
mod link;
mod message;
mod plan;
mod pods;
pub mod shim;
mod spec;
mod user;

pub use error::{ImageError, RuntimeError};
pub use exec::Exec;
pub use handle::{Image, Runtime, RuntimeConfig};
pub use spec::{
    ContainerSpec, ContainerState, ExecSpec, Limits, Mount, PodState, RuntimeEvent, Sandbox, SandboxSpec, Status,
};
