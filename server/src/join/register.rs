//! The register of nodes: whether whoever calls itself a node may be that node, and the upkeep of its records.
//!
//! First come, first served: the first password a name comes with is the one it is bound to, until its Node, its Secret or
//! its row of `node-passwd` is deleted; then the next one is. A node that lost its password has two more ways back
//! (`reenrol`). [`Register::admit`] answers requests, [`Keeper`] alone writes the file. What is to be done is decided in
//! `node_password`.

use std::collections::{BTreeSet, HashMap};
use std::future::pending;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent::wire::selector::Fields;
use agent::wire::status::{Reason, Status};
use jiff::Timestamp;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::sleep;
use tracing::{info, warn};

use super::node_password::{self, Orphans, Plan, Record, Seen, Written};
use super::record;
use super::reenrol::{self, Way, Window};
use super::roll::{Roll, Stamp};
use crate::cache::{ChangeKind, Filter, Fresh, From, Item, Watch, WatchEvent};
use crate::controllers::tell;
use crate::request::{Client, What};

/// Orphans are looked for this often (K3s).
const SWEEP: Duration = Duration::from_secs(60);
/// The file is looked at this often, which takes one system call: a row may be taken out here while its node asks
/// another server.
const LOOK: Duration = Duration::from_secs(2);
/// Nodes that come together are written to the file together.
const GATHER: Duration = Duration::from_secs(1);
/// Hashes computed at once: each takes a core and up to 32 MiB.
const HASHES: usize = 2;
/// Requests that may wait for the file to be looked at.
const LOOKS: usize = 64;
/// A record can change under us this often before we let the node come again.
const ROUNDS: usize = 3;

/// Why nothing is known of what other servers wrote.
const AWAY: &str = "the datastore does not answer";

/// Why a node is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// 403. Names the node, the record and the cure.
    #[error(
        "node name {node:?} is taken: the node password sent does not match the one on record in Secret \
         kube-system/{node}.node-password.k3s (made {created}; also row {node:?} of {file} on the server). If this is the \
         same machine set up anew, run \"k3s node reenrol {node} --for 10m\" on a server, or \"kubectl delete node {node}\" (or \
         \"kubectl -n kube-system delete secret {node}.node-password.k3s\"), and it joins at its next attempt; if it is \
         another machine, give it a name of its own with --node-name or --with-node-id"
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

/// Who wants to be a node.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Its name.
    pub node: &'a str,
    /// The password it sent.
    pub password: &'a str,
    /// Hash of the key that the caller has and that a client certificate of this very node is for.
    pub proof: Option<&'a str>,
    /// Hash of the key that it asks a client certificate for.
    pub key: Option<&'a str>,
}

/// Who is which node.
pub struct Register {
    client: Client,
    /// What brings the records up to date; `None`: no other server writes.
    fresh: Option<Fresh>,
    roll: Roll,
    /// The file as we left it.
    stamp: Mutex<Stamp>,
    /// Passwords that matched a hash once: a node asks for two certificates in a row, and all of a fleet at once.
    known: Mutex<HashMap<String, Known>>,
    key: hmac::Key,
    hashing: Semaphore,
    look: mpsc::Sender<oneshot::Sender<()>>,
}

struct Known {
    hash: String,
    digest: hmac::Tag,
}

impl Register {
    /// A register over the API (as the supervisor), mirrored into `<data>/server/cred`, and its keeper, to be run.
    ///
    /// `fresh`: of the cache that the API reads from, where other servers write, too.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(
        client: Client,
        fresh: Option<Fresh>,
        cred: &Path,
    ) -> Result<(Arc<Self>, Keeper), ring::error::Unspecified> {
        let (look, looks) = mpsc::channel(LOOKS);
        let register = Arc::new(Self {
            client,
            fresh,
            roll: Roll::new(cred),
            stamp: Mutex::new(None),
            known: Mutex::new(HashMap::new()),
            key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?,
            hashing: Semaphore::new(HASHES),
            look,
        });
        let keeper = Keeper {
            register: Arc::clone(&register),
            looks,
            written: Written::new(),
            windows: reenrol::Windows::default(),
            orphans: Orphans::default(),
            begun: Instant::now(),
        };
        Ok((register, keeper))
    }

    /// Lets a node in that is the one on record, or that comes first under its name.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn admit(&self, claim: Claim<'_>, now: Timestamp) -> Result<(), Refusal> {
        let Claim { node, password, .. } = claim;
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
            let Some(record) = found else {
                // Better said at once than when the write has waited in vain.
                if !self.catch_up().await {
                    return Err(later(AWAY.to_owned()));
                }
                match self.enter(claim, uid, None).await? {
                    Ok(()) => {
                        info!(node, "node came first under its name; its password is on record now");
                        return Ok(());
                    }
                    Err(status) if status.is(Reason::AlreadyExists) => continue,
                    Err(status) => return Err(later(status.message)),
                }
            };
            if let Some(why) = outdated(node, &record, uid.as_deref()) {
                info!(node, why, "forgetting a node's password");
                record::forget(&self.client, node, Some(record.uid))
                    .await
                    .map_err(|status| later(status.message))?;
                continue;
            }
            if self.matches(node, &record, password).await.map_err(later)? {
                self.note_key(claim, &record).await;
                return Ok(());
            }
            let about = reenrol::about(node, uid.as_deref());
            let Some(way) = reenrol::way(&record, claim.proof, now) else {
                if !self.is_present(node, &record).await.map_err(later)? {
                    continue;
                }
                if let Some(Window { opened, until }) = record.window {
                    let opened = opened.map(|opened| opened.to_string());
                    warn!(node, opened, %until, %now, "a window for another password is not open by this server's clock");
                }
                let refusal = Refusal::Taken {
                    node: node.to_owned(),
                    created: record.created,
                    file: self.roll.path().display().to_string(),
                };
                tell(&self.client, &reenrol::refused(about, refusal.to_string()), now).await;
                return Err(refusal);
            };
            // A window goes with the record, a proven key stays.
            let key = claim.key.or(claim.proof.filter(|_| way == Way::Proof));
            match self.enter(Claim { key, ..claim }, uid, Some(&record)).await? {
                Ok(()) => {
                    warn!(node, way = %way, "node registered anew, with another password");
                    tell(&self.client, &reenrol::done(about, way), now).await;
                    return Ok(());
                }
                Err(status) if status.is(Reason::AlreadyExists) => {}
                Err(status) => return Err(later(status.message)),
            }
        }
        Err(later("its record keeps changing".to_owned()))
    }

    /// Makes the record of a node that has none, or this one; the inner answer is the API's, `AlreadyExists` when the node
    /// has another by now.
    async fn enter(
        &self,
        claim: Claim<'_>,
        owner: Option<String>,
        old: Option<&Record>,
    ) -> Result<Result<(), Status>, Refusal> {
        let hash = self.hash(claim.password).await.map_err(|why| Refusal::Later {
            node: claim.node.to_owned(),
            why,
        })?;
        let record = Record {
            hash,
            owner,
            key: claim.key.map(str::to_owned),
            ..Record::default()
        };
        let made = match old {
            None => record::create(&self.client, claim.node, &record).await,
            Some(old) => record::replace(&self.client, claim.node, &old.uid, &record).await,
        };
        if made.is_ok() {
            self.remember(claim.node, &record.hash, claim.password);
        }
        Ok(made)
    }

    /// A node keeps its key, so this is one write in its life. That it fails costs the node a way back, not its place.
    async fn note_key(&self, claim: Claim<'_>, record: &Record) {
        let Some(key) = claim.key.filter(|key| record.key.as_deref() != Some(key)) else {
            return;
        };
        let noted = record::note_key(&self.client, claim.node, record, key).await;
        if let Err(status) = noted.or_else(overtaken) {
            warn!(
                node = claim.node,
                error = status.message,
                "cannot note the key of a node"
            );
        }
    }

    /// Whether a Node of this name exists.
    ///
    /// # Errors
    /// What the API says; 503 when this server knows of none, and cannot ask whether there is one by now.
    pub async fn exists(&self, node: &str) -> Result<bool, Status> {
        if record::node_uid(&self.client, node).await?.is_some() {
            return Ok(true);
        }
        if !self.catch_up().await {
            return Err(Status::unavailable(format!(
                "cannot look for node {node:?} now: {AWAY}"
            )));
        }
        Ok(record::node_uid(&self.client, node).await?.is_some())
    }

    /// Whether the record is still this one, to be known before a node is refused by it: another server may have forgotten
    /// it since, or been told to let the node in. An error says why that cannot be known.
    async fn is_present(&self, node: &str, record: &Record) -> Result<bool, String> {
        if !self.catch_up().await {
            return Err(AWAY.to_owned());
        }
        let present = record::get(&self.client, node).await.map_err(|status| status.message)?;
        Ok(present.as_ref() == Some(record))
    }

    /// Waits until this server shows what any other has acknowledged; false when that cannot be known soon.
    async fn catch_up(&self) -> bool {
        match &self.fresh {
            Some(fresh) => fresh.catch_up().await,
            None => true,
        }
    }

    /// Nodes, or their records whoever makes them, from now on; `None`: the next sweep tries again.
    async fn watch(&self, what: What) -> Option<Watch> {
        let mut filter = Filter::default();
        let namespace = (what == What::SECRETS).then_some(record::NAMESPACE);
        if namespace.is_some() {
            filter.fields = Fields::parse(&format!("type={}", record::TYPE)).ok()?;
        }
        let watch = self.client.watch(what, namespace, filter, From::Now).await;
        watch
            .inspect_err(|status| warn!(error = status.message, what = what.plural, "cannot watch"))
            .ok()
    }

    /// The file as we left it.
    fn left(&self) -> Stamp {
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the keeper look at the file before anything is decided, if it is not as we left it.
    async fn heed_operator(&self) {
        if self.roll.stamp() == self.left() {
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

/// Waits until an object is made or deleted, or is another by now; what else happens to it is none of our business. A watch
/// that has ended is taken out, to be opened anew.
async fn came_or_went(watched: &mut Option<Watch>, is_another: impl Fn(&Item) -> bool) {
    let Some(watch) = watched else { return pending().await };
    loop {
        match watch.next().await {
            Some(WatchEvent::Change(ChangeKind::Added | ChangeKind::Deleted, _)) => return,
            Some(WatchEvent::Change(ChangeKind::Modified, item)) if is_another(&item) => return,
            Some(WatchEvent::Change(ChangeKind::Modified, _) | WatchEvent::Bookmark { .. }) => {}
            None => {
                *watched = None;
                return;
            }
        }
    }
}

/// Waits until the file is not as it was left, and has been so for one look: its editor may be in the middle of it.
async fn edited(roll: &Roll, left: Stamp) {
    let mut last = left;
    loop {
        sleep(LOOK).await;
        let now = roll.stamp();
        if now != left && now == last {
            return;
        }
        last = now;
    }
}

/// That a record is gone, or another one's by now, is nothing to report: what is to be done with it is decided anew.
fn overtaken(status: Status) -> Result<(), Status> {
    match status.is(Reason::NotFound) || status.is(Reason::Conflict) {
        true => Ok(()),
        false => Err(status),
    }
}

/// Why a record binds nobody any more, if so. How long its Node has not come is the keeper's to know.
fn outdated(node: &str, record: &Record, uid: Option<&str>) -> Option<&'static str> {
    let seen = Seen {
        records: [(node.to_owned(), record.clone())].into(),
        nodes: uid.map(|uid| (node.to_owned(), uid.to_owned())).into_iter().collect(),
        ..Seen::default()
    };
    node_password::plan(&seen).forget.remove(node)
}

/// Keeps records, Nodes and the file in agreement.
pub struct Keeper {
    register: Arc<Register>,
    looks: mpsc::Receiver<oneshot::Sender<()>>,
    /// The rows we wrote.
    written: Written,
    /// Windows for another password, and since when each is there.
    windows: reenrol::Windows,
    /// Records that have no Node yet, and since when each is there.
    orphans: Orphans,
    begun: Instant,
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
        let (mut nodes, mut records) = (None, None);
        loop {
            if nodes.is_none() {
                nodes = register.watch(What::NODES).await;
            }
            if records.is_none() {
                records = register.watch(What::SECRETS).await;
            }
            let before = register.roll.stamp();
            if let Err(why) = self.sweep().await {
                warn!(error = why, "cannot look after the nodes' password records");
            }
            for done in waiting.drain(..) {
                // Who asked may have gone meanwhile.
                let _ = oneshot::Sender::send(done, ());
            }
            // What a sweep could make nothing of is not swept for again until it changes.
            let left = register
                .left()
                .filter(|left| Some(*left) == register.roll.stamp())
                .or(before);
            let written = &self.written;
            let anew = |item: &Item| {
                let uid = record::node_of(item).and_then(|node| written.get(node));
                uid.is_none_or(|uid| **uid != *item.index.uid)
            };
            tokio::select! {
                () = sleep(SWEEP) => {}
                () = edited(&register.roll, left) => {}
                () = came_or_went(&mut records, anew) => sleep(GATHER).await,
                () = came_or_went(&mut nodes, |_| false) => sleep(GATHER).await,
                Some(done) = self.looks.recv() => waiting.push(done),
            }
            while let Ok(done) = self.looks.try_recv() {
                waiting.push(done);
            }
        }
    }

    /// Makes Secrets, Nodes and the file agree once.
    async fn sweep(&mut self) -> Result<(), String> {
        let (client, roll) = (&self.register.client, &self.register.roll);
        let stamp = roll.stamp();
        let up = self.begun.elapsed();
        // A server that was cut off shows what was so before: the Node has come meanwhile, at another one.
        let is_now = !self.orphans.may_be(up) || self.register.catch_up().await;
        let mut seen = Seen {
            records: record::all(client).await.map_err(|status| status.message)?,
            nodes: record::nodes(client).await.map_err(|status| status.message)?,
            rows: roll.rows().map_err(|error| error.to_string())?,
            written: std::mem::take(&mut self.written),
            overdue: BTreeSet::new(),
        };
        let overdue = self.orphans.overdue(&seen.records, &seen.nodes, up);
        seen.overdue = if is_now { overdue } else { BTreeSet::new() };
        let plan = node_password::plan(&seen);
        if let Some(rows) = plan.rebuilt {
            let path = roll.path().display();
            warn!(file = %path, rows, "node-passwd lost several rows off its end and is written anew: no node is forgotten; to forget some, run k3s node-password delete NAME, or take out one row at a time");
        }
        let over = self.windows.over(&seen.records, up);
        let carried_out = self.carry_out(&plan, &seen, &over).await;
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
        self.written = records.into_iter().map(|(node, record)| (node, record.uid)).collect();
        Ok(())
    }

    async fn carry_out(&self, plan: &Plan, seen: &Seen, over: &[(String, Window)]) -> Result<(), Status> {
        let client = &self.register.client;
        for (node, window) in over {
            info!(node, until = %window.until, "a window for another node password has run out and is taken off");
            record::close(client, node, window).await?;
        }
        for (node, why) in &plan.forget {
            info!(node, why, "forgetting a node's password");
            let uid = seen.records.get(node).map(|record| record.uid.clone());
            record::forget(client, node, uid).await?;
        }
        for (node, password) in &plan.adopt {
            info!(node, "taking over a row of node-passwd that has no record");
            let record = Record {
                hash: self.register.hash(password).await.map_err(Status::internal)?,
                owner: seen.nodes.get(node).cloned(),
                ..Record::default()
            };
            let made = record::create(client, node, &record).await;
            made.or_else(|status| status.is(Reason::AlreadyExists).then_some(()).ok_or(status))?;
        }
        for (node, uid) in &plan.own {
            let Some(record) = seen.records.get(node) else { continue };
            record::tie(client, node, record, uid).await.or_else(overtaken)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;
    use crate::cache::{Cache, Index};
    use crate::scratch::{self, Scratch};
    use crate::store::Store;
    use crate::store::memory::Memory;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_was_cut_off_forgets_no_node_that_came_meanwhile() {
        for (followed, left) in [(true, &["pi"][..]), (false, &["ghost", "pi"])] {
            let store: Arc<dyn Store> = Arc::new(Memory::new());
            let (mut here, mut there) = (JoinSet::new(), JoinSet::new());
            let other = scratch::client(Arc::clone(&store), &mut there).await;
            let namespace = json!({ "metadata": { "name": record::NAMESPACE } });
            other.create(What::NAMESPACES, "", namespace).await.unwrap();
            for node in ["ghost", "pi"] {
                record::create(&other, node, &Record::default()).await.unwrap();
            }
            let client = scratch::client(Arc::clone(&store), &mut here).await;
            let indexer = Arc::new(|_: &str, _: &[u8]| Index::default());
            let cache = Cache::start(Arc::clone(&store), indexer, &mut here).await.unwrap();
            let scratch = Scratch::new(&format!("register-cut-off-{followed}"));
            let fresh = Some(Fresh::new(Arc::clone(&store), cache));
            let (_register, mut keeper) = Register::new(client, fresh, &scratch.0).unwrap();
            keeper.sweep().await.unwrap();
            if !followed {
                here.shutdown().await;
            }
            let node = json!({ "metadata": { "name": "pi" } });
            other.create(What::NODES, "", node).await.unwrap();
            keeper.begun = keeper.begun.checked_sub(SWEEP * 20).unwrap();
            // A write that this server shows no more waits for what never comes.
            let _ = timeout(SWEEP, keeper.sweep()).await;
            let records = record::all(&other).await.unwrap();
            assert!(records.keys().eq(left), "{followed}: {records:?}");
        }
    }
}
