//! The built `k3s`, run as people run it: what it prints and leaves on disk, and what a SIGKILL leaves of it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what fails here fails the test"
)]

mod crash;
mod datastore;
mod greeting;
mod rig;
mod witness;
