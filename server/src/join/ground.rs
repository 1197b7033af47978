//! What a register of nodes stands on: the cluster's records and Nodes, as this server sees them, and costly hashes.
//!
//! Reads show what this server has seen, which may be behind the datastore; writes are decided by the datastore. A trait, so
//! that the register can be run in a simulated cluster (`simulation`); [`Cluster`] is the real one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agent::wire::status::Status;
use jiff::Timestamp;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::Semaphore;

use super::node_password::{self, BadHash, Only, Record};
use super::record;
use crate::cache::Fresh;
use crate::controllers::{self, Note};
use crate::request::Client;

/// Hashes computed at once: each takes a core and up to 32 MiB.
const HASHES: usize = 2;

/// What a register stands on. Errors of reads and writes are the API's, those of hashes say why in a sentence.
#[expect(
    async_fn_in_trait,
    reason = "who spawns a future knows its ground, and that it can be sent"
)]
pub trait Ground {
    /// The record of a node.
    async fn get(&self, node: &str) -> Result<Option<Record>, Status>;
    /// The uid of a Node.
    async fn node_uid(&self, node: &str) -> Result<Option<String>, Status>;
    /// All records by node.
    async fn all(&self) -> Result<BTreeMap<String, Record>, Status>;
    /// Uids of all Nodes by name.
    async fn nodes(&self) -> Result<BTreeMap<String, String>, Status>;

    /// Waits until what is read shows what any server has acknowledged; false when that cannot be known soon.
    async fn catch_up(&self) -> bool;

    /// Makes a record of hash, owner and key; `AlreadyExists` when somebody was first.
    async fn create(&self, node: &str, record: &Record) -> Result<(), Status>;
    /// Makes a record in the place of the one of this version, in one step; `AlreadyExists` when there is another, or none.
    async fn replace(&self, node: &str, version: &str, record: &Record) -> Result<(), Status>;
    /// Notes on this record that its node has come, so that its version is another, and the hash of the node's key, if it
    /// is a new one; `Conflict` or `NotFound` when the record is not the one that is meant, as below.
    async fn note(&self, node: &str, record: &Record, key: Option<&str>) -> Result<(), Status>;
    /// Ties a record to its Node's uid.
    async fn tie(&self, node: &str, only: &Only, uid: &str) -> Result<(), Status>;
    /// Takes the window off a record.
    async fn close(&self, node: &str, only: &Only) -> Result<(), Status>;
    /// Deletes a record.
    async fn forget(&self, node: &str, only: &Only) -> Result<(), Status>;

    /// The text that is stored for a password.
    async fn hash(&self, password: &str) -> Result<String, String>;
    /// Whether a stored text is of this password.
    async fn verify(&self, text: &str, password: &str) -> Result<Result<bool, BadHash>, String>;
    /// How long this server has run, by a clock that nobody sets.
    fn up(&self) -> Duration;
    /// Tells people; that it is lost changes nothing.
    async fn tell(&self, note: &Note, now: Timestamp);
}

/// The API, as the supervisor.
pub struct Cluster {
    /// For whoever watches.
    pub(super) client: Client,
    /// What brings the records up to date; `None`: no other server writes.
    fresh: Option<Fresh>,
    hashing: Semaphore,
    pub(super) begun: Instant,
}

impl Cluster {
    /// `fresh`: of the cache that the API reads from, where other servers write, too.
    pub fn new(client: Client, fresh: Option<Fresh>) -> Self {
        Self {
            client,
            fresh,
            hashing: Semaphore::new(HASHES),
            begun: Instant::now(),
        }
    }

    /// Off the workers, and few at a time.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let _permit = self.hashing.acquire().await.map_err(|error| error.to_string())?;
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| error.to_string())
    }
}

impl Ground for Cluster {
    async fn get(&self, node: &str) -> Result<Option<Record>, Status> {
        record::get(&self.client, node).await
    }

    async fn node_uid(&self, node: &str) -> Result<Option<String>, Status> {
        record::node_uid(&self.client, node).await
    }

    async fn all(&self) -> Result<BTreeMap<String, Record>, Status> {
        record::all(&self.client).await
    }

    async fn nodes(&self) -> Result<BTreeMap<String, String>, Status> {
        record::nodes(&self.client).await
    }

    async fn catch_up(&self) -> bool {
        match &self.fresh {
            Some(fresh) => fresh.catch_up().await,
            None => true,
        }
    }

    async fn create(&self, node: &str, record: &Record) -> Result<(), Status> {
        record::create(&self.client, node, record).await
    }

    async fn replace(&self, node: &str, version: &str, record: &Record) -> Result<(), Status> {
        record::replace(&self.client, node, version, record).await
    }

    async fn note(&self, node: &str, record: &Record, key: Option<&str>) -> Result<(), Status> {
        record::note(&self.client, node, record, key).await
    }

    async fn tie(&self, node: &str, only: &Only, uid: &str) -> Result<(), Status> {
        record::tie(&self.client, node, only, uid).await
    }

    async fn close(&self, node: &str, only: &Only) -> Result<(), Status> {
        record::close(&self.client, node, only).await
    }

    async fn forget(&self, node: &str, only: &Only) -> Result<(), Status> {
        record::forget(&self.client, node, only).await
    }

    async fn hash(&self, password: &str) -> Result<String, String> {
        let mut salt = [0; 8];
        SystemRandom::new()
            .fill(&mut salt)
            .map_err(|_| "the system has no randomness".to_owned())?;
        let given = password.to_owned();
        let hashed = self.blocking(move || node_password::hash(&given, salt)).await?;
        hashed.map_err(|error| error.to_string())
    }

    async fn verify(&self, text: &str, password: &str) -> Result<Result<bool, BadHash>, String> {
        let (text, given) = (text.to_owned(), password.to_owned());
        self.blocking(move || node_password::verify(&text, &given)).await
    }

    fn up(&self) -> Duration {
        self.begun.elapsed()
    }

    async fn tell(&self, note: &Note, now: Timestamp) {
        controllers::tell(&self.client, note, now).await;
    }
}
