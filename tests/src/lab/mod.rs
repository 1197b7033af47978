//! A laboratory: hosts in namespaces of their own, the built programs on them, and the kubectl that people have.
//!
//! Whoever uses it first enters namespaces with [`in_own_namespaces`](crate::in_own_namespaces), so that nothing stays.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a helper that fails fails its test: everything here may panic"
)]

mod faults;
mod host;
pub mod image;
mod inhabitants;
mod kubectl;
mod promise;
mod proxy;

pub use faults::BACKYARD;
pub use host::{Lab, binary};
pub use kubectl::{Forwarding, Kubectl};
pub use promise::{allowed, tell_if_late, until, within, within_of};
pub use proxy::{Direction, Proxy, Weather};
