//! The register of nodes: whether whoever calls itself a node may be that node, and the upkeep of its records.
//!
//! First come, first served: the first password a name comes with is the one it is bound to, until its Node, its Secret or
//! its row of `node-passwd` is deleted; then the next one is. [`Register::admit`] answers requests, [`Keeper`] alone
//! writes the file. What is to be done is decided in `node_password`.

use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::wire::status::{Reason, Status};
use jiff::Timestamp;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::sleep;
use tracing::{info, warn};

use super::node_password::{self, Plan, Record, Seen};
use super::record;
use super::roll::{Roll, Stamp};
use crate::cache::{ChangeKind, Filter, From, Watch, WatchEvent};
use crate::request::{Client, What};

/// Orphans are looked for this often (K3s).
const SWEEP: Duration = Duration::from_secs(60);
/// Nodes that come together are written to the file together.
const GATHER: Duration = Duration::from_secs(1);
/// Hashes computed at once: each takes a core and up to 32 MiB.
const HASHES: usize = 2;
/// Requests that may wait for the file to be looked at.
const LOOKS: usize = 64;
/// A record can change under us this often before we let the node come again.
const ROUNDS: usize = 3;

/// Why a node is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// 403. Names the node, the record and the cure.
    #[error(
        "node name {node:?} is taken: the node password sent does not match the one on record in Secret \
         kube-system/{node}.node-password.k3s (made {created}; also row {node:?} of {file} on the server). If this is the \
         same machine set up anew, run \"kubectl delete node {node}\" (or \"kubectl -n kube-system delete secret \
         {node}.node-password.k3s\") and it joins at its next attempt; if it is another machine, give it a name of its own \
         with --node-name or --with-node-id"
    )]
    Taken {
        /// Its name.
        node: String,
        /// When the record was made.
        created: Timestamp,
        /// Path of the file.
        file: String,
    },
    /// Come again later.
    #[error("cannot check the password of node {node:?} now: {why}")]
    Later {
        /// Its name.
        node: String,
        /// What stands in the way.
        why: String,
    },
}

/// Who is which node.
pub struct Register {
    client: Client,
    roll: Roll,
    /// The file as we left it.
    stamp: Mutex<Stamp>,
    /// Passwords that matched a hash once: a node asks for two certificates in a row, and all of a fleet at once.
    known: Mutex<HashMap<String, Known>>,
    key: hmac::Key,
    hashing: Semaphore,
    changed: Notify,
    look: mpsc::Sender<oneshot::Sender<()>>,
}

struct Known {
    hash: String,
    digest: hmac::Tag,
}

impl Register {
    /// A register over the API (as the supervisor), mirrored into `<data>/server/cred`, and its keeper, to be run.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(client: Client, cred: &Path) -> Result<(Arc<Self>, Keeper), ring::error::Unspecified> {
        let (look, looks) = mpsc::channel(LOOKS);
        let register = Arc::new(Self {
            client,
            roll: Roll::new(cred),
            stamp: Mutex::new(None),
            known: Mutex::new(HashMap::new()),
            key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?,
            hashing: Semaphore::new(HASHES),
            changed: Notify::new(),
            look,
        });
        let keeper = Keeper {
            register: Arc::clone(&register),
            looks,
            written: BTreeSet::new(),
        };
        Ok((register, keeper))
    }

    /// Lets a node in that is the one on record, or that comes first under its name.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn admit(&self, node: &str, password: &str, now: Timestamp) -> Result<(), Refusal> {
        let later = |why: String| Refusal::Later {
            node: node.to_owned(),
            why,
        };
        self.heed_operator().await;
        for _ in 0..ROUNDS {
            let found = record::get(&self.client, node)
                .await
                .map_err(|status| later(status.message))?;
            let uid = record::node_uid(&self.client, node)
                .await
                .map_err(|status| later(status.message))?;
            let Some((record, secret)) = found else {
                let hash = self.hash(password).await.map_err(later)?;
                match record::create(&self.client, node, &hash, uid.as_deref()).await {
                    Ok(()) => {
                        info!(node, "node came first under its name; its password is on record now");
                        self.remember(node, &hash, password);
                        self.changed.notify_one();
                        return Ok(());
                    }
                    Err(status) if status.is(Reason::AlreadyExists) => continue,
                    Err(status) => return Err(later(status.message)),
                }
            };
            if let Some(why) = outdated(node, &record, uid, now) {
                info!(node, why, "forgetting a node's password");
                record::forget(&self.client, node, Some(secret))
                    .await
                    .map_err(|status| later(status.message))?;
                continue;
            }
            if self.matches(node, &record, password).await.map_err(later)? {
                return Ok(());
            }
            return Err(Refusal::Taken {
                node: node.to_owned(),
                created: record.created,
                file: self.roll.path().display().to_string(),
            });
        }
        Err(later("its record keeps changing".to_owned()))
    }

    /// Whether a Node of this name exists.
    ///
    /// # Errors
    /// What the API says.
    pub async fn exists(&self, node: &str) -> Result<bool, Status> {
        Ok(record::node_uid(&self.client, node).await?.is_some())
    }

    /// Nodes from now on; `None`: the next sweep tries again.
    async fn watch_nodes(&self) -> Option<Watch> {
        let watch = self.client.watch(What::NODES, None, Filter::default(), From::Now).await;
        watch
            .inspect_err(|status| warn!(error = status.message, "cannot watch the nodes"))
            .ok()
    }

    /// Has the keeper look at the file before anything is decided, if it is not as we left it.
    async fn heed_operator(&self) {
        let left = *self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        if self.roll.stamp() == left {
            return;
        }
        let (done, looked) = oneshot::channel();
        if self.look.send(done).await.is_ok() {
            let _ = looked.await;
        }
    }

    async fn matches(&self, node: &str, record: &Record, password: &str) -> Result<bool, String> {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(node)
            && known.hash == record.hash
        {
            return Ok(hmac::verify(&self.key, password.as_bytes(), known.digest.as_ref()).is_ok());
        }
        let (hash, given) = (record.hash.clone(), password.to_owned());
        let verified = self.blocking(move || node_password::verify(&hash, &given)).await?;
        match verified {
            Ok(true) => {
                self.remember(node, &record.hash, password);
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(_) => {
                warn!(node, "the node's password record is damaged: no password fits it");
                Ok(false)
            }
        }
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

    /// Off the workers, and few at a time.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
        let _permit = self.hashing.acquire().await.map_err(|error| error.to_string())?;
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| error.to_string())
    }

    fn remember(&self, node: &str, hash: &str, password: &str) {
        let known = Known {
            hash: hash.to_owned(),
            digest: hmac::sign(&self.key, password.as_bytes()),
        };
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(node.to_owned(), known);
    }
}

/// Waits until a Node is made or deleted; what else happens to Nodes is none of our business. A watch that has ended is
/// taken out, to be opened anew.
async fn came_or_went(nodes: &mut Option<Watch>) {
    let Some(watch) = nodes else { return pending().await };
    loop {
        match watch.next().await {
            Some(WatchEvent::Change(ChangeKind::Added | ChangeKind::Deleted, _)) => return,
            Some(WatchEvent::Change(ChangeKind::Modified, _) | WatchEvent::Bookmark { .. }) => {}
            None => {
                *nodes = None;
                return;
            }
        }
    }
}

/// Why a record binds nobody any more, if so.
fn outdated(node: &str, record: &Record, uid: Option<String>, now: Timestamp) -> Option<&'static str> {
    let seen = Seen {
        records: [(node.to_owned(), record.clone())].into(),
        nodes: uid.map(|uid| (node.to_owned(), uid)).into_iter().collect(),
        ..Seen::default()
    };
    node_password::plan(&seen, now).forget.remove(node)
}

/// Keeps records, Nodes and the file in agreement.
pub struct Keeper {
    register: Arc<Register>,
    looks: mpsc::Receiver<oneshot::Sender<()>>,
    /// Nodes whose rows we wrote.
    written: BTreeSet<String>,
}

impl Keeper {
    /// Runs until it is dropped.
    pub async fn run(mut self) {
        match self.register.roll.written() {
            Ok(written) => self.written = written,
            Err(error) => warn!(error = %error, "cannot read which rows of node-passwd are ours"),
        }
        let register = Arc::clone(&self.register);
        let mut waiting = Vec::new();
        let mut nodes = None;
        loop {
            if nodes.is_none() {
                nodes = register.watch_nodes().await;
            }
            if let Err(why) = self.sweep(Timestamp::now()).await {
                warn!(error = why, "cannot look after the nodes' password records");
            }
            for done in waiting.drain(..) {
                // Who asked may have gone meanwhile.
                let _ = oneshot::Sender::send(done, ());
            }
            tokio::select! {
                () = sleep(SWEEP) => {}
                () = register.changed.notified() => sleep(GATHER).await,
                () = came_or_went(&mut nodes) => sleep(GATHER).await,
                Some(done) = self.looks.recv() => waiting.push(done),
            }
            while let Ok(done) = self.looks.try_recv() {
                waiting.push(done);
            }
        }
    }

    /// Makes Secrets, Nodes and the file agree once.
    async fn sweep(&mut self, now: Timestamp) -> Result<(), String> {
        let (client, roll) = (&self.register.client, &self.register.roll);
        let stamp = roll.stamp();
        let mut seen = Seen {
            records: record::all(client).await.map_err(|status| status.message)?,
            nodes: record::nodes(client).await.map_err(|status| status.message)?,
            rows: roll.rows().map_err(|error| error.to_string())?,
            written: std::mem::take(&mut self.written),
        };
        let plan = node_password::plan(&seen, now);
        let carried_out = self.carry_out(&plan, &seen).await;
        self.written = std::mem::take(&mut seen.written);
        carried_out.map_err(|status| status.message)?;
        let records = match plan == Plan::default() {
            true => seen.records,
            false => record::all(client).await.map_err(|status| status.message)?,
        };
        if roll.stamp() != stamp {
            // An operator wrote meanwhile: the next request, or the next round, reads that first.
            return Ok(());
        }
        roll.write(&records).map_err(|error| error.to_string())?;
        *self.register.stamp.lock().unwrap_or_else(PoisonError::into_inner) = roll.stamp();
        let mut known = self.register.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|node, _| records.contains_key(node));
        drop(known);
        self.written = records.into_keys().collect();
        Ok(())
    }

    async fn carry_out(&self, plan: &Plan, seen: &Seen) -> Result<(), Status> {
        let client = &self.register.client;
        for (node, why) in &plan.forget {
            info!(node, why, "forgetting a node's password");
            record::forget(client, node, None).await?;
        }
        for (node, text) in &plan.adopt {
            info!(node, "taking over a row of node-passwd that has no record");
            let hash = match text.starts_with("$1:") {
                true => text.clone(),
                false => self.register.hash(text).await.map_err(Status::internal)?,
            };
            let made = record::create(client, node, &hash, seen.nodes.get(node).map(String::as_str)).await;
            made.or_else(|status| status.is(Reason::AlreadyExists).then_some(()).ok_or(status))?;
        }
        for (node, uid) in &plan.own {
            match record::tie(client, node, uid).await {
                Err(status) if !status.is(Reason::NotFound) => return Err(status),
                _ => {}
            }
        }
        Ok(())
    }
}
