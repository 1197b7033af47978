//! Forgets what is old: etcd keeps all history by itself, until its quota is used up and it takes no more writes.
//!
//! Every server does. What another one has forgotten already is none left to do, and each keeps what was newest a turn
//! ago, so a watcher that was away for less finds its place whichever server was first.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;
use tracing::warn;

use super::super::StoreError;
use super::super::compaction::target;
use super::client::Client;
use super::grpc::Meaning;
use super::link::Failure;
use super::message::{CompactionRequest, Done, signed};
use super::read;

/// Compacts at each turn, for ever.
pub async fn run(client: Arc<Client>, every: Duration) {
    let mut seen = VecDeque::new();
    loop {
        if let Err(problem) = turn(&client, &mut seen).await {
            let error = &problem as &dyn Error;
            warn!(error, "the log could not be compacted, trying again");
        }
        tokio::time::sleep(every).await;
    }
}

/// Forgets what was old a turn ago. `seen`: what was newest then.
async fn turn(client: &Client, seen: &mut VecDeque<Revision>) -> Result<(), StoreError> {
    let oldest = target(seen, read::revision(client).await?);
    if oldest == Revision::ZERO {
        return Ok(());
    }
    compact(client, oldest).await
}

/// Compacts up to `oldest`, unless somebody did it already.
pub async fn compact(client: &Client, oldest: Revision) -> Result<(), StoreError> {
    let request = CompactionRequest {
        revision: signed(oldest.get()),
    };
    let until = Instant::now() + read::PATIENCE;
    match client.call::<Done>("KV/Compact", &request, until).await {
        Ok(_) => Ok(()),
        Err(Failure::Said(status)) if status.meaning() == Meaning::Compacted => Ok(()),
        Err(failure) => Err(read::explain(client, oldest, failure).await),
    }
}
