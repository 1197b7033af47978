//! The agent's tunnels: one websocket to each server, through which the servers reach this node's kubelet.
//!
//! `session.rs` (pure), `stream.rs` and `link.rs` are both ends' and the server uses them too; `allow.rs` (pure) and
//! `client.rs` are the agent's.

mod allow;
mod client;
#[cfg(test)]
mod hostile;
pub mod link;
pub mod session;
#[cfg(test)]
mod simulation;
mod stream;

pub use client::Tunnels;
pub use stream::{OpenError, Opened, Stream, Tunnel};
