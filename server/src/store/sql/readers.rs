//! A few connections for reading what is now, and what was.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::super::StoreError;
use super::connector::{Common, Connector, within};
use super::database::{Database, Fault};

/// The API reads from memory; what comes here is a cache that loads and the odd look at the newest revision.
const READERS: usize = 3;

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

    /// Reads, a second time on a new connection if the first was lost while it lay idle.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the database is away.
    pub async fn read<T>(
        &self,
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
            let done = within(ask(link)).await;
            borrowed.in_use = false;
            match done {
                Ok(answer) => return Ok(answer),
                Err(fault) => {
                    connector.lose(&fault);
                    let again = matches!(fault, Fault::Again(_)) && begun.elapsed().as_secs() < 5;
                    if !again && !std::mem::take(&mut idle) {
                        return Err(fault.into());
                    }
                }
            }
        }
    }

    fn take(&self) -> Option<Connector<D>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
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
