//! Forgets what is old. Every server tries; the mark in the database lets one of them do each step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use agent::units::Revision;
use futures_util::FutureExt;
use tokio::sync::watch;
use tracing::warn;

use super::super::StoreError;
use super::database::{Database, Link};
use super::has_closed;
use super::readers::Readers;

/// How often, and how long history is kept. Source: kube-apiserver, `--etcd-compaction-interval`.
const EVERY: Duration = Duration::from_secs(300);
/// So many revisions are kept at least, for those who were away for a moment.
const HISTORY: u64 = 1000;
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

/// What was newest a whole turn ago, unless that is too near. Pure.
fn target(seen: &mut VecDeque<Revision>, newest: Revision) -> Revision {
    seen.push_back(newest);
    let past = if seen.len() > 1 { seen.pop_front() } else { None };
    let kept = Revision::new(newest.get().saturating_sub(HISTORY));
    past.unwrap_or(Revision::ZERO).min(kept)
}

/// Compacts up to `oldest`, step by step, together with whoever else does.
pub async fn compact<D: Database>(readers: &Readers<D>, oldest: Revision) -> Result<(), StoreError> {
    loop {
        let marks = readers.read(|link| async move { link.marks().await }.boxed()).await?;
        if oldest > marks.newest {
            let current = marks.newest;
            return Err(StoreError::Future { asked: oldest, current });
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_turn_old_goes_but_for_the_last_thousand() {
        let mut seen = VecDeque::new();
        let turns = [(5000, 0), (9000, 5000), (9100, 8100), (9100, 8100), (20_000, 9100)];
        for (newest, wanted) in turns {
            assert_eq!(target(&mut seen, Revision::new(newest)).get(), wanted, "{newest}");
        }
    }
}
