//! A few connections for reading what is now, and what was.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::super::StoreError;
use super::connector::{Common, Connector, PATIENCE, within_time};
use super::database::{Database, Fault};

/// The API reads from memory; what comes here is a cache that loads and the odd look at the newest revision.
const READERS: usize = 3;
/// Another transaction may be in the way for so long.
const COLLIDING: Duration = Duration::from_secs(5);
/// Between attempts after a collision.
const COLLISION: Duration = Duration::from_millis(20);

/// Connections, made when first needed.
#[derive(Debug)]
pub struct Readers<D: Database> {
    idle: Mutex<Vec<Connector<D>>>,
    room: Semaphore,
}

impl<D: Database> Readers<D> {
    /// None is open yet.
    pub fn new(database: &Arc<D>, common: &Arc<Common>) -> Self {
        let connector = |_| Connector::new(Arc::clone(database), Arc::clone(common));
        Self {
            idle: Mutex::new((0..READERS).map(connector).collect()),
            room: Semaphore::new(READERS),
        }
    }

    /// Reads, a second time on a new connection if the first was lost while it lay idle, and for a while again and again
    /// if another transaction is in the way.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the database is away.
    pub async fn read<T>(
        &self,
        ask: impl for<'a> FnMut(&'a mut D::Link) -> BoxFuture<'a, Result<T, Fault>>,
    ) -> Result<T, StoreError> {
        self.read_within(PATIENCE, ask).await
    }

    /// As [`read`](Self::read), with `patience` for each attempt: for what is long.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_within<T>(
        &self,
        patience: Duration,
        mut ask: impl for<'a> FnMut(&'a mut D::Link) -> BoxFuture<'a, Result<T, Fault>>,
    ) -> Result<T, StoreError> {
        let _place = self.room.acquire().await.map_err(|_| super::closed())?;
        let mut borrowed = Borrowed {
            connector: self.take(),
            home: self,
            in_use: false,
        };
        let Some(connector) = borrowed.connector.as_mut() else {
            return Err(super::closed());
        };
        let begun = Instant::now();
        let mut idle = connector.is_open();
        loop {
            let link = connector.link().await?;
            borrowed.in_use = true;
            let done = within_time(patience, ask(link)).await;
            borrowed.in_use = false;
            match done {
                Ok(answer) => return Ok(answer),
                Err(fault) => {
                    connector.lose(&fault);
                    match pause(&fault, std::mem::take(&mut idle), begun.elapsed()) {
                        Some(pause) => tokio::time::sleep(pause).await,
                        None => return Err(fault.into()),
                    }
                }
            }
        }
    }

    fn take(&self) -> Option<Connector<D>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// How soon a read that failed is worth another attempt, if it is. `idle`: it was the first on a connection that lay
/// idle. Pure.
fn pause(fault: &Fault, idle: bool, elapsed: Duration) -> Option<Duration> {
    match fault {
        Fault::Lost(_) => idle.then_some(Duration::ZERO),
        Fault::Again(_) => (elapsed < COLLIDING).then_some(COLLISION),
        Fault::Refused(_) | Fault::ReadOnly(_) | Fault::Full => None,
    }
}

/// Goes home whatever happens.
struct Borrowed<'a, D: Database> {
    connector: Option<Connector<D>>,
    /// Dropped now, the connection would be in the middle of something.
    in_use: bool,
    home: &'a Readers<D>,
}

impl<D: Database> Drop for Borrowed<'_, D> {
    fn drop(&mut self) {
        let Some(mut connector) = self.connector.take() else {
            return;
        };
        if self.in_use {
            connector.discard();
        }
        self.home
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connector);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_succeed_is_asked_again() {
        let text = || "why".to_owned();
        for (fault, idle, seconds, wanted) in [
            (Fault::Lost(text()), true, 0, Some(Duration::ZERO)),
            (Fault::Lost(text()), false, 0, None),
            (Fault::Again(text()), true, 0, Some(COLLISION)),
            (Fault::Again(text()), false, 4, Some(COLLISION)),
            (Fault::Again(text()), true, 5, None),
            (Fault::Refused(text()), true, 0, None),
            (Fault::ReadOnly(text()), true, 0, None),
            (Fault::Full, true, 0, None),
        ] {
            let found = pause(&fault, idle, Duration::from_secs(seconds));
            assert_eq!(found, wanted, "{fault:?} {idle} {seconds}");
        }
    }
}
