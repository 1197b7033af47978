//! The agent's tunnels: one websocket to each server, through which the servers reach this node's kubelet.
//!
//! `session.rs` (pure; with `role.rs`, `inbound.rs` and `passing.rs`), `stream.rs`, `link.rs` and the websocket below it (`websocket.rs`, pure)
//! are both ends' and the server uses them too; `allow.rs` (pure), `upgrade.rs`, `client.rs` and `still.rs` are the
//! agent's.

mod allow;
mod client;
#[cfg(test)]
mod hostile;
mod inbound;
pub mod link;
mod masks;
mod passing;
mod role;
pub mod session;
#[cfg(test)]
mod simulation;
mod still;
mod stream;
mod upgrade;
mod websocket;

pub use client::Tunnels;
pub use stream::{OpenError, Opened, Stream, Tunnel};
pub use upgrade::upgrade;
