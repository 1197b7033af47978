//! The one writer of the cache: loads from the store, then applies its tail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;
use tracing::{info, warn};

use super::Shared;
use super::state::item;
use crate::store::{Event, Range, Store, StoreError, Tail};

/// All that the cache holds. What else is in a datastore, such as the sealed bootstrap record, is no object and not for
/// readers of the API.
pub const OBJECTS: &str = "/registry/";

/// How far back a start looks into the log, so that watches survive a restart of the server.
const LOOK_BACK: u64 = 1000;

/// Between attempts while the store does not answer.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(2);

/// History ages without writes, too.
const TRIM_EVERY: Duration = Duration::from_secs(30);

/// Fills the cache from a little way back in the log, as far as the log goes.
pub(super) async fn load(store: &Arc<dyn Store>, shared: &Shared) -> Result<Tail, StoreError> {
    let newest = store.revision().await?;
    let past = Revision::new(newest.get().saturating_sub(LOOK_BACK));
    let objects = || Range {
        prefix: OBJECTS.to_owned(),
        ..Range::default()
    };
    let mut snapshot = store.list(objects(), Some(past)).await;
    if let Err(StoreError::Compacted { oldest, .. }) = snapshot {
        snapshot = store.list(objects(), Some(oldest)).await;
    }
    let snapshot = match snapshot {
        Ok(snapshot) => snapshot,
        Err(StoreError::Compacted { .. }) => store.list(objects(), None).await?,
        Err(error) => return Err(error),
    };
    let tail = store.watch(snapshot.revision).await?;
    shared.write(|state| state.load(snapshot.revision, &snapshot.entries, &shared.indexer));
    drop(snapshot);
    Ok(catch_up(shared, tail, newest))
}

/// Applies what a new tail holds already, which is everything up to `newest`.
fn catch_up(shared: &Shared, mut tail: Tail, newest: Revision) -> Tail {
    while let Ok(batch) = tail.try_recv() {
        apply(shared, &batch);
    }
    // The newest revision may have no event: it jumps after a crash.
    shared.write(|state| state.revision = state.revision.max(newest));
    publish(shared, true);
    tail
}

/// Applies the store's events for ever; what it cannot get in order it loads anew.
///
/// `ends` comes from outside: a task that is aborted before it first ran has made nothing that could be dropped.
pub(super) async fn follow(store: Arc<dyn Store>, ends: EndsWatches, mut tail: Tail) {
    let shared = &ends.0;
    let mut trim = tokio::time::interval(TRIM_EVERY);
    loop {
        tokio::select! {
            batch = tail.recv() => match batch {
                Some(batch) => {
                    apply(shared, &batch);
                    publish(shared, false);
                }
                None => tail = take_up(&store, shared).await,
            },
            _ = trim.tick() => shared.write(|state| state.history.trim(Instant::now())),
        }
    }
}

/// A new tail: without a gap if the log still has what was missed, else after a fresh load.
async fn take_up(store: &Arc<dyn Store>, shared: &Shared) -> Tail {
    let mut delay = RETRY_FIRST;
    loop {
        let seen = shared.read(|state| state.revision);
        let attempt = async {
            let newest = store.revision().await?;
            match store.watch(seen).await {
                Ok(tail) => Ok(catch_up(shared, tail, newest)),
                Err(StoreError::Compacted { .. } | StoreError::Future { .. }) => {
                    warn!(revision = %seen, "cut off from the log, loading the state anew");
                    load(store, shared).await
                }
                Err(error) => Err(error),
            }
        };
        match attempt.await {
            Ok(tail) => {
                info!(revision = %seen, "following the log again");
                return tail;
            }
            Err(error) => warn!(error = &error as &dyn std::error::Error, "cannot follow the log yet"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_LONGEST);
    }
}

/// Items are made (parsed, indexed, spliced) before the lock is taken.
fn apply(shared: &Shared, batch: &[Event]) {
    let made: Vec<_> = batch
        .iter()
        .map(|event| {
            let value = event.value.as_ref().filter(|_| event.key.starts_with(OBJECTS));
            value.map(|value| item(&shared.indexer, &event.key, event.revision, value))
        })
        .collect();
    let now = Instant::now();
    shared.write(|state| state.apply(batch.iter().zip(made), now));
}

/// Tells everybody who waits.
fn publish(shared: &Shared, all: bool) {
    let revision = shared.read(|state| {
        state.history.wake(all);
        state.revision
    });
    if shared.tip.send_replace(revision) > revision {
        shared.returns.send_modify(|returns| *returns += 1);
    }
}

/// Whatever ends the follower, by abort too, ends the watches.
pub(super) struct EndsWatches(pub Arc<Shared>);

impl Drop for EndsWatches {
    fn drop(&mut self) {
        self.0.write(|state| state.closed = true);
        publish(&self.0, true);
    }
}
