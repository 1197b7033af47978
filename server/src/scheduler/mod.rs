//! The scheduler: gives every pod that has none a node.
//!
//! `wish.rs` reads what a pod needs, `state.rs` holds what the nodes have, `filter.rs` and `score.rs` choose; all of it
//! pure. `bind.rs` is the shell: it follows pods and nodes, and writes bindings. A pod counts for its node from the
//! moment it is chosen, so bindings may be on their way while the next pod is placed.
//!
//! Not here: preemption, pod affinity, topology spread, volumes. A pod that asks for one of these waits, and is told so.

mod bind;
mod filter;
mod queue;
mod score;
mod state;
mod wish;

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::request::{Api, Client, User};

/// The name that pods call this scheduler by.
pub const NAME: &str = "default-scheduler";

/// Starts the scheduler as a task of `tasks`; it runs until that is aborted.
pub fn start(api: &Arc<Api>, tasks: &mut JoinSet<()>) {
    let client = Client::new(Arc::clone(api), User::new("system:kube-scheduler", &[]));
    tasks.spawn(bind::run(client));
}
