//! Forgets what is old. Every server tries; the mark in the database lets one of them do each step.

use std::collections::VecDeque;
use std::sync::Arc;

use agent::units::Revision;
use futures_util::FutureExt;
use tokio::sync::watch;
use tracing::warn;

use super::super::compaction::{EVERY, target};
use super::super::{StoreError, reachable};
use super::database::{Database, Link};
use super::has_closed;
use super::readers::Readers;

/// Revisions in one transaction: short enough that nobody waits for it.
const STEP: u64 = 2000;

/// Compacts now and then until `closed`.
pub async fn run<D: Database>(readers: Arc<Readers<D>>, mut closed: watch::Receiver<bool>) {
    let mut seen = VecDeque::new();
    loop {
        let done = async {
            let marks = readers.read(|link| async move { link.marks().await }.boxed()).await?;
            let target = target(&mut seen, marks.newest);
            if target > marks.compacted {
                compact(&readers, target).await?;
            }
            Ok::<_, StoreError>(())
        };
        let waited = async {
            if let Err(problem) = done.await {
                warn!(
                    error = &problem as &dyn std::error::Error,
                    "the log could not be compacted, trying again"
                );
            }
            tokio::time::sleep(EVERY).await;
        };
        tokio::select! {
            () = has_closed(&mut closed) => return,
            () = waited => {}
        }
    }
}

/// Compacts up to `oldest`, step by step, together with whoever else does.
pub async fn compact<D: Database>(readers: &Readers<D>, oldest: Revision) -> Result<(), StoreError> {
    loop {
        let marks = readers.read(|link| async move { link.marks().await }.boxed()).await?;
        reachable(oldest, Revision::ZERO, marks.newest)?;
        let from = marks.compacted;
        if from >= oldest {
            return Ok(());
        }
        let to = oldest.min(Revision::new(from.get().saturating_add(STEP)));
        // False: another server was quicker. Either way there may be more to do.
        readers
            .read(move |link| async move { link.compact(from, to).await }.boxed())
            .await?;
    }
}
