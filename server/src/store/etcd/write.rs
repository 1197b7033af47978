//! Writing, exactly once: also when the connection breaks before the answer.
//!
//! A transaction that was sent and not answered may have happened, or may happen yet: etcd passes it from member to
//! member. To ask whether it did is no answer, then, and to send it again could do it twice. So each store has two keys.
//! Every transaction expects that the *fence* was not written since it was made, and leaves its number in the *mark*. In
//! doubt the fence is written: all that were sent before fail from then on. The history of the mark up to there is final,
//! and has the transaction's number or not. If it has, that is the answer; if not, the write is sent again.
//!
//! An etcd that is full refuses every transaction that puts something, the mark too, and grants no lease. Deletes then go
//! without a mark, or nobody could make room: one that is not answered stays in doubt. The last one for which there was
//! room may be answered as those after it, although it happened: the mark says that too.
//!
//! Why not look for the write itself: another server may have written the same bytes from the same state, and only one of
//! the two can be the one that did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent::units::Revision;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tracing::warn;

use super::client::{Client, passes};
use super::grpc::Meaning;
use super::link::Failure;
use super::message::{Done, Headed as _, LeaseGrantRequest, LeaseGrantResponse, PutRequest, TxnResponse};
use super::txn::{self, Outcome, Signature, Signer};
use super::{keys, read, watch};
use crate::store::{Change, StoreError, Write};

/// For a write to be done. An election takes one or two seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// For finding out whether it was done, beyond that. Who waits knows nothing until then.
const DOUBT: Duration = Duration::from_secs(20);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// The mark goes with its lease, and is given a new one: once a day, and none is left of a store that is no more.
const MARK_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A request that is older than this is not on its way any more.
const FENCE_LIFE: Duration = Duration::from_secs(3600);
/// So many read the log at once to find their write.
const DOUBTERS: usize = 16;

/// What writes have in common.
pub struct Writer {
    signer: Signer,
    state: Mutex<State>,
    /// Numbers of transactions.
    next: AtomicU64,
    /// One moves the fence or gets the lease; the others wait and find it done.
    mover: Semaphore,
    doubters: Semaphore,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// The last write of the fence; zero if there is none.
    fence: Revision,
    /// Of the mark.
    lease: Option<i64>,
}

impl Writer {
    /// `name`: no other store's.
    pub fn new(name: &str) -> Self {
        Self {
            signer: Signer {
                fence: format!("amphipod/fence/{name}").into(),
                mark: format!("amphipod/mark/{name}").into(),
            },
            state: Mutex::default(),
            next: AtomicU64::new(1),
            mover: Semaphore::new(1),
            doubters: Semaphore::new(DOUBTERS),
        }
    }

    /// Writes.
    ///
    /// # Errors
    /// [`StoreError`]. [`StoreError::Unavailable`] means that it did not happen, unless it says that it may have.
    pub async fn write(&self, client: &Client, write: &Write) -> Result<Revision, StoreError> {
        let other = match &write.change {
            Change::Move { from, .. } => Some(from),
            Change::Put(_) | Change::Delete => None,
        };
        let mut keys = [&write.key].into_iter().chain(other);
        if let Some(foreign) = keys.find(|key| !keys::is_ours(key.as_bytes())) {
            return Err(StoreError::Unavailable(format!("a key begins with a slash: {foreign}")));
        }
        let until = Instant::now() + PATIENCE;
        match (self.write_signed(client, write, until).await, &write.change) {
            (Err(StoreError::Full), Change::Delete) => self.delete_unsigned(client, write, until).await,
            (written, _) => written,
        }
    }

    /// [`StoreError::Full`] means that it did not happen.
    async fn write_signed(&self, client: &Client, write: &Write, until: Instant) -> Result<Revision, StoreError> {
        loop {
            let signature = self.sign(client, until).await.map_err(|failure| failure.plain())?;
            let lease = match write.ttl {
                Some(ttl) => grant(client, ttl, until).await.map_err(|failure| failure.plain())?,
                None => 0,
            };
            let since = Revision::new(client.newest());
            let request = txn::request(write, lease, &self.signer, signature);
            let failure = match client.try_call::<TxnResponse>("KV/Txn", &request, until).await {
                Ok(answer) => match txn::outcome(write, &answer, signature.fence) {
                    Outcome::Done(revision) => return Ok(revision),
                    Outcome::Conflict(current) => return Err(StoreError::Conflict { current }),
                    Outcome::Overtaken => return Err(StoreError::Overtaken),
                    Outcome::Fenced(seen) => {
                        self.learn(signature.fence, seen);
                        continue;
                    }
                    Outcome::Odd => odd(),
                },
                Err(failure) => failure,
            };
            if is_unclear(&failure) {
                let found = self.find(client, signature, since).await;
                match found.map_err(|error| in_doubt(&write.key, &failure, &error))? {
                    Some(revision) => return Ok(revision),
                    // Finding that out may have taken longer than there was: see [`DOUBT`].
                    None if is_over(until) => return Err(undone(&failure)),
                    None => continue,
                }
            }
            if is_full(&failure) {
                let found = self.look(client, signature, since).await;
                let found = found.map_err(|error| in_doubt(&write.key, &failure, &error))?;
                return found.ok_or(StoreError::Full);
            }
            let lost_lease = matches!(&failure, Failure::Said(status) if status.meaning() == Meaning::NoLease);
            if lost_lease {
                // The mark's, once a day.
                self.state().lease = None;
            }
            if !(passes(&failure) || lost_lease) || is_over(until) {
                return Err(failure.plain());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn delete_unsigned(&self, client: &Client, write: &Write, until: Instant) -> Result<Revision, StoreError> {
        loop {
            let fence = self.state().fence;
            let request = txn::unsigned(write, &self.signer, fence);
            let failure = match client.try_call::<TxnResponse>("KV/Txn", &request, until).await {
                Ok(answer) => match txn::outcome(write, &answer, fence) {
                    Outcome::Done(revision) => return Ok(revision),
                    Outcome::Conflict(current) => return Err(StoreError::Conflict { current }),
                    Outcome::Overtaken => return Err(StoreError::Overtaken),
                    Outcome::Fenced(seen) => {
                        self.learn(fence, seen);
                        continue;
                    }
                    Outcome::Odd => return Err(odd().plain()),
                },
                Err(failure) => failure,
            };
            if is_unclear(&failure) {
                return Err(in_doubt(&write.key, &failure, &StoreError::Full));
            }
            if !passes(&failure) || is_over(until) {
                return Err(failure.plain());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sign(&self, client: &Client, until: Instant) -> Result<Signature, Failure> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let signed = |state: State| {
            let fence = state.fence;
            state.lease.map(|lease| Signature { id, fence, lease })
        };
        if let Some(signature) = signed(*self.state()) {
            return Ok(signature);
        }
        let _permit = self.mover.acquire().await;
        if let Some(signature) = signed(*self.state()) {
            return Ok(signature);
        }
        let lease = grant(client, MARK_LIFE, until).await?;
        let mut state = self.state();
        state.lease = Some(lease);
        let fence = state.fence;
        Ok(Signature { id, fence, lease })
    }

    /// The fence was found elsewhere than we knew: an earlier request to move it came late, or it expired.
    fn learn(&self, known: Revision, seen: Revision) {
        let mut state = self.state();
        // Else somebody learned more meanwhile.
        if state.fence == known {
            state.fence = seen;
        }
    }

    /// Makes sure that a transaction does not happen any more, and looks whether it did.
    async fn find(&self, client: &Client, sent: Signature, since: Revision) -> Result<Option<Revision>, StoreError> {
        let until = Instant::now() + DOUBT;
        let moved = self.move_fence(client, sent.fence, until).await;
        let end = moved.map_err(|failure| failure.plain())?;
        let _permit = self.doubters.acquire().await;
        watch::find(client, &self.signer.mark, &sent.mark(), since, end, until).await
    }

    /// Whether a transaction that was answered has happened all the same: etcd may carry out the one for which the room just
    /// sufficed, and say that there is none.
    async fn look(&self, client: &Client, sent: Signature, since: Revision) -> Result<Option<Revision>, StoreError> {
        let _permit = self.doubters.acquire().await;
        let end = read::revision(client).await?;
        let until = Instant::now() + DOUBT;
        watch::find(client, &self.signer.mark, &sent.mark(), since, end, until).await
    }

    /// Moves the fence away from `fence` if it is still there; returns where to.
    async fn move_fence(&self, client: &Client, fence: Revision, until: Instant) -> Result<Revision, Failure> {
        let _permit = self.mover.acquire().await;
        let now_at = self.state().fence;
        if now_at > fence {
            return Ok(now_at);
        }
        let request = PutRequest {
            key: self.signer.fence.clone(),
            value: Bytes::new(),
            lease: grant(client, FENCE_LIFE, until).await?,
        };
        // More than once is as good as once.
        let done: Done = client.call("KV/Put", &request, until).await?;
        let moved = Revision::new(done.revision());
        self.state().fence = moved;
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

/// Whether it is too late for another attempt.
fn is_over(until: Instant) -> bool {
    Instant::now() + PAUSE >= until
}

fn odd() -> Failure {
    Failure::Unsent("etcd's answer to a transaction has not its form".to_owned())
}

fn is_unclear(failure: &Failure) -> bool {
    match failure {
        Failure::Broken(_) => true,
        Failure::Said(status) => status.meaning() == Meaning::Unclear,
        Failure::Unsent(_) | Failure::Closed => false,
    }
}

fn is_full(failure: &Failure) -> bool {
    matches!(failure, Failure::Said(status) if status.meaning() == Meaning::Full)
}

fn in_doubt(key: &str, failure: &Failure, error: &StoreError) -> StoreError {
    warn!(key, error = %failure, "nobody knows whether a write happened");
    StoreError::Unavailable(format!(
        "a write was sent and not answered ({failure}); whether it happened could not be found out ({error})"
    ))
}

fn undone(failure: &Failure) -> StoreError {
    StoreError::Unavailable(format!(
        "a write was sent and not answered ({failure}); it did not happen, and it is too late to send it again"
    ))
}
