//! Reads that show what was acknowledged before them, on whichever server of a shared datastore that was.
//!
//! The cache follows the datastore by itself, some milliseconds behind: enough for who writes on one server and reads on
//! another to miss his own write. So whoever is owed the present asks the datastore for its newest revision, and waits until
//! the cache has it. Those who wait at once are served by one question. Source: Kubernetes v1.36 `storage/cacher`,
//! `ConsistentListFromCache`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent::units::Revision;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::Cache;
use crate::store::Store;

/// For the datastore to name its newest revision, and for the cache to come there, each.
const PATIENCE: Duration = Duration::from_secs(2);
/// The first while the datastore is away: it may be back with any question, and reads must go on without it.
const PATIENCE_AWAY: Duration = Duration::from_millis(300);

/// Brings a cache up to date when asked.
pub struct Fresh {
    store: Arc<dyn Store>,
    cache: Cache,
    /// Counts who asked.
    tickets: AtomicU64,
    /// Held while a question is on its way: others wait for the next one, or find theirs answered.
    last: Mutex<Last>,
}

/// The last question's answer.
struct Last {
    /// Who has a smaller ticket had asked before that question.
    before: u64,
    /// `None`: there was none.
    newest: Option<Revision>,
}

impl Fresh {
    /// Of this store, and the cache that follows it.
    pub fn new(store: Arc<dyn Store>, cache: Cache) -> Self {
        let newest = Some(Revision::ZERO);
        let last = Mutex::new(Last { before: 0, newest });
        let tickets = AtomicU64::new(0);
        Self {
            store,
            cache,
            tickets,
            last,
        }
    }

    /// Waits until the cache shows every write that was acknowledged before this was called. False when that cannot be
    /// known soon: the datastore is away, or further ahead than the cache comes in time.
    pub async fn catch_up(&self) -> bool {
        let ticket = self.tickets.fetch_add(1, Ordering::SeqCst);
        match self.newest(ticket).await {
            Some(newest) => timeout(PATIENCE, self.cache.reached(newest)).await.is_ok(),
            None => false,
        }
    }

    async fn newest(&self, ticket: u64) -> Option<Revision> {
        let mut last = self.last.lock().await;
        // A question that was on its way already when we came may have been answered before what we must see.
        if last.before <= ticket {
            let patience = last.newest.map_or(PATIENCE_AWAY, |_| PATIENCE);
            let before = self.tickets.load(Ordering::SeqCst);
            let answer = timeout(patience, self.store.revision()).await;
            let newest = answer.ok().and_then(Result::ok);
            *last = Last { before, newest };
        }
        last.newest
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::FutureExt as _;
    use futures_util::future::{BoxFuture, join_all};
    use tokio::sync::{Semaphore, watch};
    use tokio::task::JoinSet;
    use tokio::time::Instant;

    use super::*;
    use crate::cache::Index;
    use crate::store::altered::Altered;
    use crate::store::memory::Memory;
    use crate::store::{Change, Expect, StoreError, Write};

    /// Another server's store: questions and what the watch delivers can be held up.
    struct Far {
        memory: Memory,
        questions: AtomicUsize,
        /// Each question takes one.
        answers: Semaphore,
        away: watch::Sender<bool>,
    }

    impl Default for Far {
        fn default() -> Self {
            Self {
                memory: Memory::new(),
                questions: AtomicUsize::new(0),
                answers: Semaphore::new(1000),
                away: watch::Sender::new(false),
            }
        }
    }

    impl Altered for Far {
        fn memory(&self) -> &Memory {
            &self.memory
        }

        fn on_revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
            self.questions.fetch_add(1, Ordering::SeqCst);
            let newest = self.memory.revision();
            async move {
                let mut away = self.away.subscribe();
                let _ = away.wait_for(|away| !away).await;
                self.answers.acquire().await.unwrap().forget();
                newest.await
            }
            .boxed()
        }
    }

    async fn write(store: &Far, name: &str) -> Revision {
        let write = Write::new(format!("/registry/{name}"), Expect::Any, Change::Put("{}".into()));
        store.write(write).await.unwrap()
    }

    async fn fresh(store: &Arc<Far>, tasks: &mut JoinSet<()>) -> Arc<Fresh> {
        let store = Arc::clone(store) as Arc<dyn Store>;
        let cache = Cache::start(Arc::clone(&store), Arc::new(|_, _| Index::default()), tasks);
        Arc::new(Fresh::new(store, cache.await.unwrap()))
    }

    #[tokio::test]
    async fn what_was_written_elsewhere_is_shown() {
        let (store, mut tasks) = (Arc::new(Far::default()), JoinSet::new());
        let fresh = fresh(&store, &mut tasks).await;
        for number in 0..100 {
            // The cache's own task has had no chance to run.
            let written = write(&store, &number.to_string()).await;
            assert!(fresh.catch_up().await);
            assert!(fresh.cache.revision() >= written);
        }
    }

    #[tokio::test]
    async fn one_question_serves_all_who_wait_and_none_that_was_asked_too_early() {
        let (store, mut tasks) = (Arc::new(Far::default()), JoinSet::new());
        let fresh = fresh(&store, &mut tasks).await;
        store.answers.forget_permits(usize::MAX);
        store.questions.store(0, Ordering::SeqCst);
        let asked = |count: usize| {
            let store = Arc::clone(&store);
            async move {
                while store.questions.load(Ordering::SeqCst) < count {
                    tokio::task::yield_now().await;
                }
            }
        };
        let early = fresh.catch_up();
        let later = async {
            asked(1).await;
            // The question on its way was put before this.
            let written = write(&store, "late").await;
            let many = join_all((0..20).map(|_| fresh.catch_up()));
            let answering = async {
                tokio::task::yield_now().await;
                store.answers.add_permits(1);
                asked(2).await;
                store.answers.add_permits(1);
            };
            let (many, ()) = tokio::join!(many, answering);
            assert!(fresh.cache.revision() >= written);
            many
        };
        let (early, many) = tokio::join!(early, later);
        assert!(early && many.iter().all(|fresh| *fresh));
        assert_eq!(store.questions.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn without_the_datastore_nobody_waits_long_and_its_return_is_noticed_at_once() {
        let (store, mut tasks) = (Arc::new(Far::default()), JoinSet::new());
        let fresh = fresh(&store, &mut tasks).await;
        store.away.send_replace(true);
        for patience in [PATIENCE, PATIENCE_AWAY, PATIENCE_AWAY] {
            let begun = Instant::now();
            assert!(!fresh.catch_up().await);
            assert!(
                begun.elapsed() <= patience + Duration::from_millis(1),
                "{:?}",
                begun.elapsed()
            );
        }
        store.away.send_replace(false);
        let written = write(&store, "back").await;
        assert!(fresh.catch_up().await);
        assert!(fresh.cache.revision() >= written);
    }
}
