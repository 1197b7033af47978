//! The Kubernetes API as the agent uses it: JSON over HTTP/1.1, through the local load balancer.
//!
//! [`Client`] asks and watches; `transport` carries; `request` and `watch` decide. Retrying is the caller's: a failed
//! call says whether the server answered ([`ApiError::Status`]) or could not be reached ([`ApiError::Transport`]).

mod anyone;
mod client;
mod refused;
pub mod request;
pub mod transport;
mod watch;

pub use anyone::Anyone;
pub use client::{ApiError, Client, WatchStream};
pub(crate) use refused::is_refusal;
pub use request::{PatchType, retry_after};
pub use transport::{Endpoint, TransportError};
pub use watch::{WatchEvent, WatchKind};
