//! Containers without a daemon: images, sandboxes, processes, logs.
//!
//! [`Runtime`] is the agent's side: it keeps no process of its own alive. Every pod has one shim (`shim`, the same
//! binary re-executed, one thread) that owns the pod's processes, their exit codes and logs, and that outlives the
//! agent; the two talk over a socket in the run directory. Networks are `podnet`'s, restarts and probes the kubelet's.
//! Nothing here blocks the agent's one thread for long: files and mounts are touched by shims or on blocking threads.

mod error;
mod handle;
pub mod image;
pub mod shim;
mod spec;

pub use error::{ImageError, RuntimeError};
pub use handle::{Exec, Image, Runtime, RuntimeConfig};
pub use spec::{
    ContainerSpec, ContainerState, ExecSpec, Limits, Mount, PodState, RuntimeEvent, Sandbox, SandboxSpec, Status,
};
