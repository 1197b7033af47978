//! For tests: a store in memory that refuses or holds writes, or says that they came too late, when told so, and gives way
//! before each, so that others get between.

use std::sync::{Mutex, PoisonError};

use agent::units::Revision;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::watch;

use super::altered::Altered;
use super::memory::Memory;
use super::{Store as _, StoreError, Write};

/// The store.
#[derive(Default)]
pub struct Refusing {
    memory: Memory,
    refused: Mutex<Option<&'static str>>,
    held: watch::Sender<Option<&'static str>>,
    gone: Mutex<Option<&'static str>>,
}

impl Refusing {
    /// From now on it is away for writes of keys that begin so; `None`: for none.
    pub fn refuse(&self, prefix: Option<&'static str>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = prefix;
    }

    /// From now on writes of keys that begin so are on their way, until told otherwise.
    pub fn hold(&self, prefix: Option<&'static str>) {
        self.held.send_replace(prefix);
    }

    /// From now on it has no keys that begin so, as far as writes can tell; its watches do not say so.
    pub fn lose(&self, prefix: &'static str) {
        *self.gone.lock().unwrap_or_else(PoisonError::into_inner) = Some(prefix);
    }

    fn is_in(prefix: &Mutex<Option<&'static str>>, key: &str) -> bool {
        let prefix = prefix.lock().unwrap_or_else(PoisonError::into_inner);
        prefix.is_some_and(|prefix| key.starts_with(prefix))
    }
}

impl Altered for Refusing {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn on_write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>> {
        if Self::is_in(&self.refused, &write.key) {
            return ready(Err(StoreError::Unavailable("away".to_owned()))).boxed();
        }
        if Self::is_in(&self.gone, &write.key) {
            return ready(Err(StoreError::Conflict { current: None })).boxed();
        }
        async move {
            tokio::task::yield_now().await;
            let is_free = |held: &Option<&str>| !held.is_some_and(|prefix| write.key.starts_with(prefix));
            // The sender is here.
            let _ = self.held.subscribe().wait_for(is_free).await;
            self.memory.write(write).await
        }
        .boxed()
    }
}
