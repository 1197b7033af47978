//! The log in etcd (v3.4 or newer): one transaction a write, etcd's revisions as they are.
//!
//! etcd counts its revision up once per transaction that writes, in the order of commit. So revisions are dense and each
//! has one event as long as only stores like this one write there, and of a move two; transactions of others are passed on
//! as they are, and a revision of several keys comes in one batch. Every write is durable: other servers must see heartbeats, too.
//! Keys with a time to live have a lease each and are deleted by etcd, within a second or two of their time.
//!
//! The user, if there is one, must be allowed to read and write all keys.

mod client;
mod compaction;
mod endpoints;
mod grpc;
mod keys;
mod link;
mod message;
mod read;
mod txn;
mod watch;
mod write;

use std::sync::{Arc, Mutex, PoisonError};

use agent::units::Revision;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::task::JoinSet;
use tracing::info;

use self::client::Client;
pub use self::client::Settings;
pub use self::endpoints::{Endpoint, EndpointError, Endpoints, parse};
use self::grpc::Meaning;
use self::link::Failure;
use self::write::Writer;
use super::{Entry, Range, Snapshot, Store, StoreError, Tail, Write};

/// What kube-apiserver's objects begin with. Source: Kubernetes v1.36, `runtime/serializer/protobuf`, `protoEncodingPrefix`.
const PROTOBUF: &[u8] = b"k8s\0";
/// So many are looked at: whoever writes one in protobuf writes all so.
const NAMESPACES: usize = 16;

/// A cluster of etcd.
pub struct Etcd {
    client: Arc<Client>,
    writer: Writer,
    /// The connection's keeper and the watches; `None` once closed.
    tasks: Mutex<Option<JoinSet<()>>>,
}

impl Etcd {
    /// Connects.
    ///
    /// # Errors
    /// When no member answers within ten seconds, or not as it should.
    pub async fn open(settings: Settings) -> Result<Self, StoreError> {
        let every = settings.compaction;
        let (client, keeper) = client::new(settings);
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.run());
        let mut name = [0; 8];
        let random = SystemRandom::new().fill(&mut name);
        random.map_err(|_| StoreError::Unavailable("the system gives no random numbers".to_owned()))?;
        let store = Self {
            client: Arc::new(client),
            writer: Writer::new(&format!("{:016x}", u64::from_be_bytes(name))),
            tasks: Mutex::new(Some(tasks)),
        };
        // From here on the newest revision seen is a point in this log: see `write`.
        let revision = read::revision(&store.client).await?;
        info!(%revision, "the datastore is etcd");
        store.spawn(compaction::run(Arc::clone(&store.client), every))?;
        Ok(store)
    }

    /// An object that kube-apiserver wrote: K3s and Kubernetes keep theirs in protobuf, under the names that ours have.
    ///
    /// Looks at namespaces, which every cluster has and no server keeps otherwise (aggregated APIs are in JSON there too).
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn object_of_others(&self) -> Result<Option<Arc<str>>, StoreError> {
        let range = Range {
            prefix: "/registry/namespaces/".to_owned(),
            limit: Some(NAMESPACES),
            ..Range::default()
        };
        let found = read::list(self.client()?, &range, None).await?.entries;
        let theirs = found.into_iter().find(|entry| entry.value.starts_with(PROTOBUF));
        Ok(theirs.map(|entry| entry.key))
    }

    /// The client, unless the store is closed.
    fn client(&self) -> Result<&Arc<Client>, StoreError> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.as_ref().map(|_| &self.client).ok_or_else(closed)
    }

    /// Runs a task for as long as the store is open.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Result<(), StoreError> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let tasks = tasks.as_mut().ok_or_else(closed)?;
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
        Ok(())
    }
}

fn closed() -> StoreError {
    Failure::Closed.plain()
}

impl Failure {
    /// What it is to whoever asked for nothing special.
    fn plain(&self) -> StoreError {
        match self {
            Self::Unsent(_) | Self::Broken(_) | Self::Closed => StoreError::Unavailable(self.to_string()),
            Self::Said(status) => match status.meaning() {
                Meaning::Full => StoreError::Full,
                Meaning::TooLarge => StoreError::TooLarge(format!(
                    "{}; etcd's limit is 1.5 MiB unless its --max-request-bytes is raised",
                    status.message
                )),
                Meaning::Compacted
                | Meaning::Future
                | Meaning::Elsewhere
                | Meaning::StaleToken
                | Meaning::NoAuth
                | Meaning::NoLease
                | Meaning::Refused
                | Meaning::Unclear => StoreError::Unavailable(self.to_string()),
            },
        }
    }
}

impl Store for Etcd {
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move { self.writer.write(self.client()?, &write).await }.boxed()
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        async move { read::get(self.client()?, &key).await }.boxed()
    }

    fn list(&self, range: Range, at: Option<Revision>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        async move { read::list(self.client()?, &range, at).await }.boxed()
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Tail, StoreError>> {
        async move {
            let (tail, follow) = watch::watch(Arc::clone(self.client()?), from).await?;
            self.spawn(follow)?;
            Ok(tail)
        }
        .boxed()
    }

    fn compact(&self, oldest: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move { compaction::compact(self.client()?, oldest).await }.boxed()
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move { read::revision(self.client()?).await }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            let mut tasks = tasks.ok_or_else(closed)?;
            tasks.shutdown().await;
            Ok(())
        }
        .boxed()
    }
}
