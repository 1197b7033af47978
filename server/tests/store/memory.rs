//! The store in memory.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use server::store::Store;
use server::store::memory::Memory;

use crate::contract::{self, Backend};

/// What is in it is there as long as this.
struct InMemory(Arc<Memory>);

impl InMemory {
    fn new() -> Self {
        Self(Arc::new(Memory::new()))
    }
}

impl Backend for InMemory {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        let store: Arc<dyn Store> = Arc::<Memory>::clone(&self.0);
        async { store }.boxed()
    }
}

contract::of_all!(InMemory::new());
contract::of_shared!(InMemory::new());
