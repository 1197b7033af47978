//! Stores that are SQL databases: SQLite in a file of one server's own, and databases that several servers share.
//!
//! The shared ones have one engine and a dialect each. `database.rs` says what a dialect does; `writer.rs` commits,
//! `follower.rs` keeps watchers going, `readers.rs` reads; `batch.rs`, `history.rs` and
//! `expiry.rs` decide, and are pure; `record.rs` keeps what was seen over a restart.

mod batch;
mod compaction;
mod connector;
mod database;
mod expiry;
mod follower;
mod history;
pub mod mysql;
pub mod postgres;
mod readers;
mod record;
mod shared;
pub mod sqlite;
mod writer;

use tokio::sync::watch;

use super::StoreError;

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}

/// Waits until it is said, or until nobody is left to say it.
async fn has_closed(closed: &mut watch::Receiver<bool>) {
    let _ = closed.wait_for(|closed| *closed).await;
}
