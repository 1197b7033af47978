//! Writing, exactly once: also when the connection breaks before the answer.
//!
//! A transaction that was sent and not answered may have happened, or may happen yet: etcd passes it from member to
//! member. To ask whether it did is no answer, then, and to send it again could do it twice. So first the fence is moved:
//! a key that every transaction of this store expects at its present revision, and whose next write makes all that were
//! sent before it fail. What the log shows up to that write is final. If the transaction is in it, that is the answer; if
//! not, it is sent again.
//!
//! The fence is written only then. It has a lease, so that it does not outlive its store by long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent::units::Revision;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tracing::warn;

use super::client::{Client, passes};
use super::grpc::Meaning;
use super::link::Failure;
use super::message::{Done, Headed as _, LeaseGrantRequest, LeaseGrantResponse, PutRequest, TxnResponse};
use super::txn::{self, Outcome};
use super::{keys, watch};
use crate::store::{StoreError, Write};

/// For a write to be done. An election takes one or two seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// For finding out whether it was done, beyond that. Who waits knows nothing until then.
const DOUBT: Duration = Duration::from_secs(20);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// A request that is older than this is not on its way any more.
const FENCE_LIFE: Duration = Duration::from_secs(3600);
/// So many read the log at once to find their write.
const DOUBTERS: usize = 16;

/// What writes have in common.
pub struct Writer {
    fence_key: Bytes,
    /// Where the fence is; zero: nowhere.
    fence: AtomicU64,
    /// One moves it; the others wait and find it moved.
    mover: Semaphore,
    doubters: Semaphore,
}

impl Writer {
    /// `name`: no other store's.
    pub fn new(name: &str) -> Self {
        Self {
            fence_key: format!("amphipod/fence/{name}").into(),
            fence: AtomicU64::new(0),
            mover: Semaphore::new(1),
            doubters: Semaphore::new(DOUBTERS),
        }
    }

    /// Writes.
    ///
    /// # Errors
    /// [`StoreError`]. [`StoreError::Unavailable`] means that it did not happen, unless it says that it may have.
    pub async fn write(&self, client: &Client, write: &Write) -> Result<Revision, StoreError> {
        if !keys::is_ours(write.key.as_bytes()) {
            return Err(StoreError::Unavailable(format!(
                "a key begins with a slash: {}",
                write.key
            )));
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let lease = match write.ttl {
                Some(ttl) => grant(client, ttl, until).await.map_err(|failure| failure.plain())?,
                None => 0,
            };
            let since = Revision::new(client.newest());
            let fence = self.fence();
            let request = txn::request(write, lease, &self.fence_key, fence);
            let failure = match client.try_call::<TxnResponse>("KV/Txn", &request, until).await {
                Ok(answer) => match txn::outcome(&answer, fence) {
                    Outcome::Done(revision) => return Ok(revision),
                    Outcome::Conflict(current) => return Err(StoreError::Conflict { current }),
                    Outcome::Fenced(seen) => {
                        self.learn(fence, seen);
                        continue;
                    }
                    Outcome::Odd => Failure::Unsent("etcd's answer to a transaction has not its form".to_owned()),
                },
                Err(failure) => failure,
            };
            if is_unclear(&failure) {
                let found = self.find(client, write, since, fence).await;
                match found.map_err(|error| in_doubt(&write.key, &failure, &error))? {
                    Some(revision) => return Ok(revision),
                    None => continue,
                }
            }
            let lost_lease = matches!(&failure, Failure::Said(status) if status.meaning() == Meaning::NoLease);
            if !(passes(&failure) || lost_lease) || Instant::now() + PAUSE >= until {
                return Err(failure.plain());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn fence(&self) -> Revision {
        Revision::new(self.fence.load(Ordering::Acquire))
    }

    /// Somebody moved the fence from where we knew it; or we did not know.
    fn learn(&self, known: Revision, seen: Revision) {
        // Changed meanwhile: by who knows better.
        let _ = self
            .fence
            .compare_exchange(known.get(), seen.get(), Ordering::AcqRel, Ordering::Acquire);
    }

    /// Makes sure that what was sent with `fence` does not happen any more, and looks whether it did.
    async fn find(
        &self,
        client: &Client,
        write: &Write,
        since: Revision,
        fence: Revision,
    ) -> Result<Option<Revision>, StoreError> {
        let until = Instant::now() + DOUBT;
        let end = self.move_fence(client, fence, until).await?;
        let _permit = self.doubters.acquire().await;
        let history = watch::history(client, &write.key, since, end, until).await?;
        Ok(txn::found(write, &history))
    }

    /// Moves the fence away from `fence` if it is still there; returns where to.
    async fn move_fence(&self, client: &Client, fence: Revision, until: Instant) -> Result<Revision, StoreError> {
        let _permit = self.mover.acquire().await;
        let now_at = self.fence();
        if now_at != fence && now_at != Revision::ZERO {
            return Ok(now_at);
        }
        let moving = async {
            let request = PutRequest {
                key: self.fence_key.clone(),
                value: Bytes::new(),
                lease: grant(client, FENCE_LIFE, until).await?,
            };
            // More than once is as good as once.
            client.call::<Done>("KV/Put", &request, until).await
        };
        let moved = moving.await.map_err(|failure| failure.plain())?;
        let moved = Revision::new(moved.revision());
        self.fence.store(moved.get(), Ordering::Release);
        Ok(moved)
    }
}

/// A lease of its own for a key: those that expire together would share a revision, and each event has one of its own.
async fn grant(client: &Client, life: Duration, until: Instant) -> Result<i64, Failure> {
    let seconds = life.as_secs().saturating_add(u64::from(life.subsec_nanos() > 0)).max(1);
    let request = LeaseGrantRequest {
        ttl: i64::try_from(seconds).unwrap_or(i64::MAX),
    };
    let granted: LeaseGrantResponse = client.call("Lease/LeaseGrant", &request, until).await?;
    match granted.error.as_str() {
        "" => Ok(granted.id),
        why => Err(Failure::Unsent(format!("etcd grants no lease: {why}"))),
    }
}

fn is_unclear(failure: &Failure) -> bool {
    match failure {
        Failure::Broken(_) => true,
        Failure::Said(status) => status.meaning() == Meaning::Unclear,
        Failure::Unsent(_) | Failure::Closed => false,
    }
}

fn in_doubt(key: &str, failure: &Failure, error: &StoreError) -> StoreError {
    warn!(key, error = %failure, "nobody knows whether a write happened");
    StoreError::Unavailable(format!(
        "a write was sent and not answered ({failure}); whether it happened could not be found out ({error})"
    ))
}
