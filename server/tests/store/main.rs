//! The contract of `server::store`, held against every backend: one file each, real databases included.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests: what cannot be done fails them"
)]

mod contract;
mod crash;
mod damage;
mod etcd;
mod faults;
mod full;
mod guards;
mod jumps;
mod memory;
mod moves;
mod mysql;
mod postgres;
mod restoring;
mod sql;
mod sqlite;
mod trouble;
mod unwritable;
