//! SPDY/3.1, as Kubernetes still uses it: many streams over one connection. `frame.rs` and `header.rs` are pure,
//! `wire.rs` moves bytes.
//!
//! It comes in two coats: over the connection itself after an upgrade (K3s' API server, old kubectl), and in the messages
//! of a websocket (kubectl's port-forward).

pub mod frame;
pub mod header;
pub mod wire;
