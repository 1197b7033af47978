//! What tests of several modules stand on: folders, and a server as far as its API. It is here, so that what they test need not
//! import what a server is made of.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::auth::guard::Authorizer;
use crate::cache::Cache;
use crate::kinds;
use crate::registry::{RealWorld, Registry, Settings};
use crate::request::{Api, Client, User};
use crate::store::Store;

/// An administrator's client of an API over `store`, which is served for as long as `serving` is held.
pub(crate) async fn client(store: Arc<dyn Store>, serving: &mut JoinSet<()>) -> Client {
    let cache = Cache::start(Arc::clone(&store), kinds::indexer(), serving)
        .await
        .unwrap();
    let registry = Registry::new(store, cache.clone(), Arc::new(RealWorld), Settings::default());
    let api = Arc::new(Api::new(Arc::new(registry), Arc::new(Authorizer::new(cache))));
    Client::new(api, User::new("system:admin", &["system:masters"]))
}

/// A folder of one test, removed with everything in it.
#[derive(Debug)]
pub(crate) struct Scratch(pub PathBuf);

impl Scratch {
    /// An empty folder whose path no other test has: `name` is this one's.
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("amphipod-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
