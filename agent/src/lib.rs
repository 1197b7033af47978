//! The Amphipod agent: what turns a box into a Kubernetes worker node.
//!
//! Modules from the wire inward; `docs/architecture.md` follows the five journeys through them.
#![deny(unsafe_code)]

pub mod api;
pub mod balancer;
#[cfg(test)]
mod chance;
pub mod config;
pub mod dial;
pub mod join;
pub mod kubelet;
pub mod podnet;
pub mod run;
pub mod runtime;
#[cfg(test)]
mod scratch;
#[expect(unsafe_code, reason = "system calls live here and nowhere else")]
pub mod sys;
mod trouble;
pub mod tunnel;
pub mod units;
pub mod wire;
