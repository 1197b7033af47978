//! The register of nodes: whether whoever calls itself a node may be that node, and the upkeep of its records.
//!
//! First come, first served: the first password a name comes with is the one it is bound to, until its Node, its Secret or
//! its row of `node-passwd` is deleted; then the next one is. A node that lost its password has two more ways back
//! (`reenrol`). [`Register::admit`] answers requests, the [`Keeper`] alone writes the file. What is to be done is decided in
//! `node_password`; no clock, disk or socket is here, so that `simulation` can run it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use agent::wire::status::{Reason, Status};
use jiff::Timestamp;
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::ground::{Cluster, Ground};
use super::keeper::Keeper;
use super::node_password::{self, Record, Seen, Why};
use super::reenrol::{self, Way, Window};
use super::roll::{Roll, Stamp};
use crate::cache::Fresh;
use crate::request::Client;

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
pub struct Register<G = Cluster> {
    pub(super) ground: G,
    pub(super) roll: Roll,
    /// The file as we left it.
    stamp: Mutex<Stamp>,
    /// Passwords that matched a hash once: a node asks for two certificates in a row, and all of a fleet at once.
    known: Mutex<HashMap<String, Known>>,
    key: hmac::Key,
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
        Self::on(Cluster::new(client, fresh), Roll::new(cred))
    }
}

impl<G: Ground> Register<G> {
    /// As [`Register::new`], on this ground.
    pub(super) fn on(ground: G, roll: Roll) -> Result<(Arc<Self>, Keeper<G>), ring::error::Unspecified> {
        let (look, looks) = mpsc::channel(LOOKS);
        let register = Arc::new(Self {
            ground,
            roll,
            stamp: Mutex::new(None),
            known: Mutex::new(HashMap::new()),
            key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?,
            look,
        });
        let keeper = Keeper::new(Arc::clone(&register), looks);
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
            let found = self.ground.get(node).await.map_err(|status| later(status.message))?;
            let uid = self
                .ground
                .node_uid(node)
                .await
                .map_err(|status| later(status.message))?;
            let Some(record) = found else {
                match self.enter(claim, None).await? {
                    Ok(()) => {
                        info!(node, "node came first under its name; its password is on record now");
                        return Ok(());
                    }
                    Err(status) if status.is(Reason::AlreadyExists) => continue,
                    Err(status) => return Err(later(status.message)),
                }
            };
            if let Some(why) = outdated(node, &record, uid.as_deref()) {
                info!(node, %why, "forgetting a node's password");
                match self.ground.forget(node, &record.itself()).await {
                    Err(status) if !overtaken(&status) => return Err(later(status.message)),
                    Ok(()) | Err(_) => continue,
                }
            }
            if self.matches(node, &record, password).await.map_err(later)? {
                match self.note(claim, &record).await {
                    true => return Ok(()),
                    false => continue,
                }
            }
            let about = reenrol::about(node, uid.as_deref());
            let Some(way) = reenrol::way(&record, claim.proof, now) else {
                if !self.is_present(node, &record, &uid).await.map_err(later)? {
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
                self.ground
                    .tell(&reenrol::refused(about, refusal.to_string()), now)
                    .await;
                return Err(refusal);
            };
            // A window goes with the record, a proven key stays.
            let key = claim.key.or(claim.proof.filter(|_| way == Way::Proof));
            match self.enter(Claim { key, ..claim }, Some(&record)).await? {
                Ok(()) => {
                    warn!(node, way = %way, "node registered anew, with another password");
                    self.ground.tell(&reenrol::done(about, way), now).await;
                    return Ok(());
                }
                Err(status) if status.is(Reason::AlreadyExists) => {}
                Err(status) => return Err(later(status.message)),
            }
        }
        Err(later("its record keeps changing".to_owned()))
    }

    /// Makes the record of a node that has none, or this one, as long as nothing has been noted on it; the inner answer is
    /// the API's, `AlreadyExists` when the node has another by now.
    async fn enter(&self, claim: Claim<'_>, old: Option<&Record>) -> Result<Result<(), Status>, Refusal> {
        let later = |why: String| Refusal::Later {
            node: claim.node.to_owned(),
            why,
        };
        // Better said at once than when the write has waited in vain. And what is tied to a Node that has gone goes, too.
        if !self.ground.catch_up().await {
            return Err(later(AWAY.to_owned()));
        }
        let hash = self.ground.hash(claim.password).await.map_err(later)?;
        let owner = self.ground.node_uid(claim.node).await;
        let record = Record {
            hash,
            owner: owner.map_err(|status| later(status.message))?,
            key: claim.key.map(str::to_owned),
            ..Record::default()
        };
        let made = match old {
            None => self.ground.create(claim.node, &record).await,
            Some(old) => self.ground.replace(claim.node, &old.version, &record).await,
        };
        if made.is_ok() {
            self.remember(claim.node, &record.hash, claim.password);
        }
        Ok(made)
    }

    /// Notes the node's key, and that it has come while its record is tied to no Node: until then nobody knows whether it
    /// is still to be waited for but by that. False: the record is gone. That nothing can be noted costs the node a way
    /// back, and time, not its place. A node keeps its key and its Node, so that is a write or two in its life.
    async fn note(&self, claim: Claim<'_>, record: &Record) -> bool {
        let key = claim.key.filter(|key| record.key.as_deref() != Some(key));
        if key.is_none() && record.owner.is_some() {
            return true;
        }
        match self.ground.note(claim.node, record, key).await {
            Ok(()) => true,
            Err(status) if overtaken(&status) => false,
            Err(status) => {
                warn!(
                    node = claim.node,
                    error = status.message,
                    "cannot note that a node has come"
                );
                true
            }
        }
    }

    /// Whether a Node of this name exists.
    ///
    /// # Errors
    /// What the API says; 503 when this server knows of none, and cannot ask whether there is one by now.
    pub async fn exists(&self, node: &str) -> Result<bool, Status> {
        if self.ground.node_uid(node).await?.is_some() {
            return Ok(true);
        }
        if !self.ground.catch_up().await {
            return Err(Status::unavailable(format!(
                "cannot look for node {node:?} now: {AWAY}"
            )));
        }
        Ok(self.ground.node_uid(node).await?.is_some())
    }

    /// Whether record and Node (its uid) are still these, to be known before a node is refused by them: an operator may have
    /// deleted one of them since at another server, or told it to let the node in. An error says why that cannot be known.
    async fn is_present(&self, node: &str, record: &Record, uid: &Option<String>) -> Result<bool, String> {
        if !self.ground.catch_up().await {
            return Err(AWAY.to_owned());
        }
        let present = self.ground.get(node).await.map_err(|status| status.message)?;
        let present_uid = self.ground.node_uid(node).await.map_err(|status| status.message)?;
        Ok(present.as_ref() == Some(record) && present_uid == *uid)
    }

    /// The file as we left it.
    pub(super) fn left(&self) -> Stamp {
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the file; nobody else is known any more.
    pub(super) fn write(&self, records: &BTreeMap<String, Record>) -> std::io::Result<()> {
        self.roll.write(records)?;
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = self.roll.stamp();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|node, _| records.contains_key(node));
        Ok(())
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
        match self.ground.verify(&record.hash, password).await? {
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

    fn remember(&self, node: &str, hash: &str, password: &str) {
        let known = Known {
            hash: hash.to_owned(),
            digest: hmac::sign(&self.key, password.as_bytes()),
        };
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(node.to_owned(), known);
    }
}

/// Whether a record is gone, or not as it was: that is nothing to report, what is to be done with it is decided anew.
pub(super) fn overtaken(status: &Status) -> bool {
    status.is(Reason::NotFound) || status.is(Reason::Conflict)
}

/// Why a record binds nobody any more, if so. How long its Node has not come is the keeper's to know.
fn outdated(node: &str, record: &Record, uid: Option<&str>) -> Option<Why> {
    let seen = Seen {
        records: [(node.to_owned(), record.clone())].into(),
        nodes: uid.map(|uid| (node.to_owned(), uid.to_owned())).into_iter().collect(),
        ..Seen::default()
    };
    node_password::plan(&seen).forget.remove(node)
}
