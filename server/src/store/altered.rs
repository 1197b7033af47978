//! For tests: stores in memory, some of whose calls do something else.

use agent::units::Revision;
use futures_util::future::BoxFuture;

use super::memory::Memory;
use super::{Entry, Range, Snapshot, Store, StoreError, Tail, Write};

/// What a store does by itself; all else, and what it does not say, is the memory's.
pub trait Altered: Send + Sync + 'static {
    /// Where all lies.
    fn memory(&self) -> &Memory;

    /// In place of [`Store::write`].
    fn on_write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.memory().write(write)
    }

    /// In place of [`Store::watch`].
    fn on_watch(&self, from: Revision) -> BoxFuture<'_, Result<Tail, StoreError>> {
        self.memory().watch(from)
    }

    /// In place of [`Store::revision`].
    fn on_revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.memory().revision()
    }
}

impl<T: Altered> Store for T {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.on_write(write)
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        self.memory().get(key)
    }

    fn list(&self, range: Range, at: Option<Revision>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.memory().list(range, at)
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Tail, StoreError>> {
        self.on_watch(from)
    }

    fn compact(&self, oldest: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.memory().compact(oldest)
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.on_revision()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.memory().close()
    }
}
