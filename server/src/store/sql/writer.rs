//! The one writer of a server: what arrives during a commit is the next batch.
//!
//! A commit whose connection broke may have happened. The next connection finds that out under the lock, by the batch's
//! stamp, before anybody is answered: so a write is acknowledged if and only if it is in the log, unless the database
//! stays away for longer than a client should wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;
use tokio::sync::{mpsc, oneshot, watch};

use super::super::{StoreError, Write};
use super::batch::{Decided, decide, keys};
use super::connector::{Common, Connector, heal, within};
use super::database::{Database, Fault, Link, Row};
use super::has_closed;

/// Writes taken together: more would let the first wait for long.
const BATCH: usize = 512;
/// Bytes taken together; one write alone may have more. A batch is sent under the lock, and the database waits for the rest of
/// it for 3 s (PostgreSQL) or 5 s (MariaDB, where hexadecimal doubles it): for this much 3, or 3.5, Mbit/s do.
const BATCH_BYTES: usize = 1 << 20;
/// How long a write may stay undecided while the database is away.
const UNDECIDED: Duration = Duration::from_secs(5);
/// An idle connection is looked at so often; databases end transactions of the vanished, and connections, after longer.
const LOOK: Duration = Duration::from_secs(10);
/// Between attempts after a collision.
const COLLISION: Duration = Duration::from_millis(5);

/// A write on its way.
#[derive(Debug)]
pub struct Queued {
    /// What.
    pub write: Write,
    /// To whom; nobody if the log wants it itself.
    pub reply: Option<oneshot::Sender<Result<Revision, StoreError>>>,
}

/// Rows that this server has committed.
#[derive(Debug)]
pub struct Committed {
    /// The counter before them.
    pub before: Revision,
    /// Dense from there.
    pub rows: Vec<Row>,
}

/// The writer.
#[derive(Debug)]
pub struct Writer<D: Database> {
    connector: Connector<D>,
    common: Arc<Common>,
    follower: mpsc::Sender<Committed>,
}

impl<D: Database> Writer<D> {
    /// Tells `follower` of what it commits.
    pub fn new(database: Arc<D>, common: Arc<Common>, follower: mpsc::Sender<Committed>) -> Self {
        Self {
            connector: Connector::new(database, Arc::clone(&common)),
            common,
            follower,
        }
    }

    /// Writes until `closed`, and then what has arrived.
    pub async fn run(mut self, queue: mpsc::Receiver<Queued>, mut closed: watch::Receiver<bool>) {
        let mut arrivals = Arrivals { queue, held: None };
        loop {
            let first = tokio::select! {
                biased;
                first = arrivals.next() => first,
                () = has_closed(&mut closed) => return self.finish(arrivals).await,
                () = tokio::time::sleep(LOOK) => {
                    self.look().await;
                    continue;
                }
            };
            let Some(first) = first else {
                return;
            };
            self.carry_out(arrivals.batch(first)).await;
        }
    }

    async fn finish(&mut self, mut arrivals: Arrivals) {
        arrivals.queue.close();
        while let Some(first) = arrivals.next().await {
            self.carry_out(arrivals.batch(first)).await;
        }
    }

    /// Notices a lost connection, and a lost history, before somebody writes.
    async fn look(&mut self) {
        let common = Arc::clone(&self.common);
        if let Ok(link) = self.connector.link().await
            && let Err(fault) = within(heal(link, &common)).await
        {
            self.connector.lose(&fault);
        }
    }

    /// Brings a batch to its end, whatever it takes, and answers each of its writes.
    async fn carry_out(&mut self, batch: Vec<Queued>) {
        let (writes, replies): (Vec<Write>, Vec<_>) =
            batch.into_iter().map(|queued| (queued.write, queued.reply)).unzip();
        let answers = self.decide_and_commit(&writes).await.unwrap_or_else(|problem| {
            let problem = StoreError::from(problem);
            writes.iter().map(|_| Err(problem.clone())).collect()
        });
        for (reply, answer) in replies.into_iter().zip(answers) {
            // Nobody waits any more if that fails.
            let _ = reply.map(|reply| reply.send(answer));
        }
    }

    async fn decide_and_commit(&mut self, writes: &[Write]) -> Result<Vec<Result<Revision, StoreError>>, Fault> {
        let deadline = Instant::now() + UNDECIDED;
        let mut doubt: Option<Decided> = None;
        loop {
            let fault = match self.connector.link().await {
                Ok(link) => match within(attempt(link, &self.common, writes, &mut doubt)).await {
                    Ok(decided) => return Ok(self.tell(decided)),
                    Err(fault @ Fault::ReadOnly(_)) => {
                        if self.connector.refused(&fault) {
                            continue;
                        }
                        fault
                    }
                    Err(fault) => {
                        self.connector.lose(&fault);
                        fault
                    }
                },
                // Nothing has been sent: no need to wait for anything.
                Err(fault) if doubt.is_none() => return Err(fault),
                Err(fault) => fault,
            };
            if let Some(answer) = verdict(fault, doubt.is_some(), Instant::now() >= deadline) {
                return Err(answer);
            }
            let wait = self
                .connector
                .retry_at()
                .map_or(COLLISION, |at| at.saturating_duration_since(Instant::now()));
            tokio::time::sleep(wait.max(COLLISION)).await;
        }
    }

    /// The rows are in the log.
    fn tell(&mut self, decided: Decided) -> Vec<Result<Revision, StoreError>> {
        self.common.saw(&decided.rows);
        if let Some(last) = decided.rows.last() {
            self.connector.wrote();
            if !self.connector.open().is_some_and(|link| link.tells()) {
                self.common.committed(last.event.revision);
            }
            // If it cannot take them now it reads them from the log.
            let _ = self.follower.try_send(Committed {
                before: decided.before,
                rows: decided.rows,
            });
        }
        decided.answers
    }
}

/// What writes are told after a failed attempt; `None`: try again. Pure.
///
/// While it is in doubt whether an earlier attempt was committed, no fault of a later one says that it was not.
fn verdict(fault: Fault, in_doubt: bool, late: bool) -> Option<Fault> {
    match fault {
        fault if in_doubt => late.then(|| Fault::Lost(format!("{fault}; the write may have happened"))),
        Fault::Refused(_) | Fault::ReadOnly(_) | Fault::Full => Some(fault),
        Fault::Lost(_) | Fault::Again(_) => late.then_some(fault),
    }
}

/// What arrives, in order.
#[derive(Debug)]
struct Arrivals {
    queue: mpsc::Receiver<Queued>,
    /// Came first, and had no room in the batch before.
    held: Option<Queued>,
}

impl Arrivals {
    /// May be dropped at any time.
    async fn next(&mut self) -> Option<Queued> {
        match self.held.take() {
            Some(held) => Some(held),
            None => self.queue.recv().await,
        }
    }

    /// What goes in one batch with `first`.
    fn batch(&mut self, first: Queued) -> Vec<Queued> {
        let mut size = size_of(&first.write);
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = self.queue.try_recv()
        {
            size = size.saturating_add(size_of(&next.write));
            if size > BATCH_BYTES {
                self.held = Some(next);
                break;
            }
            batch.push(next);
        }
        batch
    }
}

fn size_of(write: &Write) -> usize {
    write.key.len().saturating_add(write.size())
}

/// One transaction. Leaves in `doubt` what may have been committed when it fails, or is dropped.
async fn attempt<L: Link>(
    link: &mut L,
    common: &Common,
    writes: &[Write],
    doubt: &mut Option<Decided>,
) -> Result<Decided, Fault> {
    let locked = link.lock(&keys(writes)).await?;
    if let Some(decided) = doubt {
        // Whoever had the lock is done: it is in the log now, or never will be.
        if link.stamp(decided.before.next()).await? == Some(decided.stamp) {
            link.release().await?;
            let decided = std::mem::take(decided);
            *doubt = None;
            return Ok(decided);
        }
        *doubt = None;
    }
    if locked.newest < common.seen().revision {
        // It went back under us, and the connection did not break: a proxy stands between.
        link.release().await?;
        heal(link, common).await?;
        return Err(Fault::Again("the database has lost writes".to_owned()));
    }
    let decided = decide(writes, &locked, common.stamp(), Instant::now());
    if decided.rows.is_empty() {
        link.release().await?;
        return Ok(decided);
    }
    let decided = doubt.insert(decided);
    let committed = link.commit(&decided.rows, decided.newest).await;
    match committed {
        Ok(()) => {
            let decided = std::mem::take(decided);
            *doubt = None;
            Ok(decided)
        }
        Err(fault @ Fault::Lost(_)) => Err(fault),
        Err(fault @ (Fault::Again(_) | Fault::Refused(_) | Fault::ReadOnly(_) | Fault::Full)) => {
            *doubt = None;
            Err(fault)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Change, Expect};
    use super::*;

    fn queued(key: &str, size: usize) -> Queued {
        let write = Write::new(key, Expect::Any, Change::Put(vec![b'x'; size].into()));
        Queued { write, reply: None }
    }

    #[tokio::test]
    async fn a_batch_is_no_longer_than_its_bound_unless_one_write_is() {
        let (sender, queue) = mpsc::channel(8);
        let mut arrivals = Arrivals { queue, held: None };
        let (half, long) = (BATCH_BYTES / 2, BATCH_BYTES * 2);
        for (key, size) in [("a", 1), ("b", half), ("c", half), ("d", long), ("e", 1)] {
            sender.try_send(queued(key, size)).unwrap();
        }
        drop(sender);
        let mut batches = Vec::new();
        while let Some(first) = arrivals.next().await {
            let batch = arrivals.batch(first);
            batches.push(
                batch
                    .into_iter()
                    .map(|queued| queued.write.key.to_string())
                    .collect::<String>(),
            );
        }
        assert_eq!(batches, ["ab", "c", "d", "e"]);
    }

    #[test]
    fn no_fault_says_that_a_write_in_doubt_did_not_happen() {
        let faults = || {
            let text = || "gone".to_owned();
            [
                Fault::Lost(text()),
                Fault::Again(text()),
                Fault::Refused(text()),
                Fault::ReadOnly(text()),
                Fault::Full,
            ]
        };
        for fault in faults() {
            assert!(verdict(fault.clone(), true, false).is_none(), "{fault:?}");
            let told = verdict(fault.clone(), true, true);
            let in_doubt = matches!(&told, Some(Fault::Lost(text)) if text.ends_with("; the write may have happened"));
            assert!(in_doubt, "{fault:?}: {told:?}");
        }
        let told = |late| faults().map(|fault| verdict(fault, false, late).map(|fault| fault.to_string()));
        let (gone, full) = (|| Some("gone".to_owned()), || Some(Fault::Full.to_string()));
        let read_only = || Some(Fault::ReadOnly("gone".to_owned()).to_string());
        assert_eq!(
            told(false),
            [None, None, gone(), read_only(), full()],
            "what cannot change ends at once"
        );
        assert_eq!(told(true), [gone(), gone(), gone(), read_only(), full()]);
    }
}
