//! Joining as a node sees it, over TLS on loopback: a whole server, real certificates, and what goes wrong on the way.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what fails here fails the test"
)]

mod agents;
mod commands;
#[expect(dead_code, reason = "it can be away in more ways than matter to a join")]
#[path = "../http_api/faulty.rs"]
mod faulty;
#[path = "../../benches/support/join.rs"]
mod join;
mod joining;
mod passwords;
mod renewal;
mod rig;
mod rotation;
