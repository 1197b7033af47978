//! The Amphipod server: the Kubernetes API, scheduler and controllers, and the K3s supervisor that agents register with.
//!
//! `docs/architecture.md` follows the five journeys through these modules.
#![forbid(unsafe_code)]

pub mod addons;
pub mod admission;
pub mod auth;
pub mod cache;
#[cfg(test)]
#[path = "../../agent/src/chance.rs"]
mod chance;
pub mod command;
pub mod config;
pub mod control;
pub mod controllers;
pub mod http;
pub mod join;
pub mod kinds;
pub mod peers;
pub mod registry;
pub mod request;
pub mod run;
pub mod scheduler;
pub mod schema;
#[cfg(test)]
mod scratch;
pub mod store;
pub mod tunnel;

/// The version of Kubernetes whose API this server speaks, as K3s writes it; its nodes say the same.
pub use agent::kubelet::KUBELET_VERSION as KUBERNETES_VERSION;
