//! The API as clients see it: a real listener with TLS, a registry over a store in memory, and the kubectl that is installed.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics fails, as it should"
)]

mod client;
mod controllers;
mod faulty;
mod generators;
mod kubectl;
mod outage;
mod overload;
mod protobuf;
mod refusals;
mod rig;
mod roles;
mod streams;
mod versions;
mod watching;
