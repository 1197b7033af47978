//! The one writer of the cache: loads from the store, then applies its tail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;
use tracing::{info, warn};

use super::state::item;
use super::{Item, Shared};
use crate::store::{Event, Range, Snapshot, Store, StoreError, Tail};

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
    Ok(catch_up(shared, Some(&snapshot), tail, newest))
}

/// Applies what a new tail holds already, which is everything up to `newest`, to the state as it is, or as of a snapshot that it
/// begins anew with. At once: who reads in between would be shown a state of long ago, or none.
fn catch_up(shared: &Shared, anew: Option<&Snapshot>, mut tail: Tail, newest: Revision) -> Tail {
    let mut backlog = Vec::new();
    while let Ok(batch) = tail.try_recv() {
        let made = made(shared, &batch);
        backlog.push((batch, made));
    }
    let now = Instant::now();
    shared.write(|state| {
        if let Some(snapshot) = anew {
            state.load(snapshot.revision, &snapshot.entries, &shared.indexer);
        }
        for (batch, made) in backlog {
            state.apply(batch.iter().zip(made), now);
        }
        // The newest revision may have no event: it jumps after a crash.
        state.revision = state.revision.max(newest);
    });
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
                Ok(tail) => Ok(catch_up(shared, None, tail, newest)),
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

/// The items of a batch: made (parsed, indexed, spliced) before the lock is taken.
fn made(shared: &Shared, batch: &[Event]) -> Vec<Option<Item>> {
    let of = |event: &Event| {
        let value = event.value.as_ref().filter(|_| event.key.starts_with(OBJECTS));
        value.map(|value| item(&shared.indexer, &event.key, event.revision, value))
    };
    batch.iter().map(of).collect()
}

fn apply(shared: &Shared, batch: &[Event]) {
    let (made, now) = (made(shared, batch), Instant::now());
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, mpsc as threads};

    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;
    use tokio::sync::mpsc;
    use tokio::task::JoinSet;

    use super::super::{Cache, Filter, From, Index};
    use super::*;
    use crate::store::altered::Altered;
    use crate::store::memory::Memory;
    use crate::store::{Change, Expect, Write};

    /// A store whose first tail ends when it is told to, and is not to be taken up then.
    #[derive(Default)]
    struct Cut {
        memory: Memory,
        watches: AtomicUsize,
        first: Mutex<Option<mpsc::Sender<Arc<[Event]>>>>,
    }

    impl Altered for Cut {
        fn memory(&self) -> &Memory {
            &self.memory
        }

        fn on_watch(&self, from: Revision) -> BoxFuture<'_, Result<Tail, StoreError>> {
            async move {
                match self.watches.fetch_add(1, Ordering::SeqCst) {
                    0 => {
                        let (sender, tail) = mpsc::channel(1024);
                        let mut log = self.memory.watch(from).await?;
                        while let Ok(batch) = log.try_recv() {
                            sender.try_send(batch).unwrap();
                        }
                        *self.first.lock().unwrap() = Some(sender);
                        Ok(tail)
                    }
                    1 => Err(StoreError::Compacted {
                        asked: from,
                        oldest: from.next(),
                    }),
                    _ => self.memory.watch(from).await,
                }
            }
            .boxed()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn while_the_state_is_loaded_anew_nobody_is_shown_an_older_one() {
        let store = Arc::new(Cut::default());
        for number in 0..100 {
            let key = format!("/registry/things/{number}");
            let write = Write::new(key, Expect::Absent, Change::Put("{}".into()));
            store.write(write).await.unwrap();
        }
        // From then on each item is made only when somebody looks at the cache.
        let (look, looked) = threads::sync_channel(0);
        let looked = Mutex::new(looked);
        let begun = Arc::new(AtomicUsize::new(0));
        let slowly = Arc::clone(&begun);
        let indexer = move |_: &str, _: &[u8]| {
            if slowly.load(Ordering::SeqCst) > 0 {
                // An error: nobody will any more.
                let _ = looked.lock().unwrap().recv();
            }
            Index::default()
        };
        let mut tasks = JoinSet::new();
        let cache = Cache::start(Arc::clone(&store) as _, Arc::new(indexer), &mut tasks).await;
        let cache = cache.unwrap();
        let mut watch = cache.watch("/registry/", Filter::default(), From::Now).unwrap();
        begun.store(1, Ordering::SeqCst);
        drop(store.first.lock().unwrap().take());
        // It ends when the state is loaded.
        while !matches!(watch.next().now_or_never(), Some(None)) {
            assert_eq!(cache.all("/registry/").len(), 100);
            let _ = look.try_send(());
            tokio::task::yield_now().await;
        }
        assert_eq!(cache.all("/registry/").len(), 100);
    }
}
