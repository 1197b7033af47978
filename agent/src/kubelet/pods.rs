//! Keeps one worker for every pod that is this node's business, and has removed what is nobody's (`leftovers.rs`).
//!
//! A pod is its uid: another of the same name is another pod. Until the first list has come, the pods kept on disk are
//! run; afterwards those the API does not know any more are ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize as _;
use serde_json::Value;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};

use super::disk::{blocking, read_json};
use super::event::About;
use super::feed::{Update, feed};
use super::host::{Host, NetworkState};
use super::ignored;
use super::leftovers::Leftovers;
use super::worker::{Desired, work};
use crate::runtime::{PodState, RuntimeError};
use crate::wire::object::{self, Meta};
use crate::wire::pod::{Pod, PodStatus, RestartPolicy};

/// Updates read ahead of the workers.
const QUEUE: usize = 64;

/// Runs all pods of the node until it is dropped.
pub async fn keep(host: Arc<Host>) {
    let mut pods = Pods {
        host: host.clone(),
        workers: BTreeMap::new(),
        tasks: JoinSet::new(),
        names: BTreeMap::new(),
        done: BTreeSet::new(),
        listed: false,
        sweep: None,
        sweeping: JoinSet::new(),
    };
    pods.start_kept().await;
    let mut events = host.containers.events();
    let mut network = host.network.clone();
    let (to, mut updates) = mpsc::channel(QUEUE);
    let mut feeding = std::pin::pin!(feed(host.api.as_ref(), &host.settings.node_name, to));
    loop {
        tokio::select! {
            () = &mut feeding => return, // only when nobody reads any more
            Some(update) = updates.recv() => pods.update(update).await,
            changed = events.next() => pods.nudge(changed.as_deref()),
            Some(ended) = pods.tasks.join_next_with_id() => pods.ended(ended),
            Some(ended) = pods.sweeping.join_next() => pods.swept(ended).await,
            Ok(()) = network.changed() => if pods.listed { pods.sweep().await },
        }
    }
}

struct Handle {
    desired: watch::Sender<Desired>,
    nudge: Arc<Notify>,
}

struct Pods {
    host: Arc<Host>,
    workers: BTreeMap<String, Handle>,
    tasks: JoinSet<()>,
    /// Which task is which pod's.
    names: BTreeMap<Id, String>,
    /// Pods that are gone from here and not yet from the API.
    done: BTreeSet<String>,
    listed: bool,
    /// The one that is under way, in the one task of `sweeping`.
    sweep: Option<Sweep>,
    sweeping: JoinSet<()>,
}

/// A removal of what nobody wants.
struct Sweep {
    /// What it removes. Whoever is to run a pod of these after all begins when it has ended.
    uids: BTreeSet<String>,
    /// Who had a worker when it began: what has one no more may run on for all that is known.
    stood: BTreeSet<String>,
    /// Closed at its end.
    ended: watch::Receiver<()>,
    /// Somebody has asked for another one.
    again: bool,
}

impl Pods {
    async fn start_kept(&mut self) {
        let folder = self.host.kept_pods();
        for path in files(folder).await {
            let Some(pod) = read_json(&path).await.as_ref().and_then(Pod::of) else {
                continue;
            };
            self.want(Arc::new(pod), true);
        }
    }

    async fn update(&mut self, update: Update) {
        match update {
            Update::All(objects) => {
                let mut there = BTreeSet::new();
                for object in objects {
                    there.extend(self.set(object));
                }
                let gone: Vec<String> = self
                    .workers
                    .keys()
                    .filter(|uid| !there.contains(*uid))
                    .cloned()
                    .collect();
                for uid in gone {
                    self.gone(&uid);
                }
                self.done.retain(|uid| there.contains(uid));
                self.listed = true;
                self.sweep().await;
            }
            Update::Set(object) => {
                self.set(object);
            }
            Update::Gone(object) => {
                let uid = object::text(&object, &["metadata", "uid"]);
                self.gone(uid);
                self.done.remove(uid);
            }
        }
    }

    /// Takes a pod of the API; its uid, if it is one of this node. What of it runs goes on when it can no longer be read.
    fn set(&mut self, mut object: Value) -> Option<String> {
        let own = &self.host.settings.node_name;
        if object::text(&object, &["spec", "nodeName"]) != own {
            return None;
        }
        let pod = match Pod::read(&object) {
            Ok(pod) => pod?,
            Err(error) => {
                self.refuse(&object, &error);
                self.end_unread(&object);
                return Some(object::text(&object, &["metadata", "uid"]).to_owned());
            }
        };
        let uid = pod.meta.uid.clone();
        if self.done.contains(&uid) {
            return Some(uid);
        }
        if !self.workers.contains_key(&uid) {
            self.warn_of_ignored(&pod, &object);
        }
        let known = self.workers.get(&uid).map(|handle| handle.desired.borrow().pod.clone());
        if known.is_none_or(|known| is_news(&known, &pod)) {
            object::remove(&mut object, &["metadata", "managedFields"]);
            self.host.keeper.keep(self.host.kept_pods().join(&uid), object);
        }
        let pod = Arc::new(pod);
        self.want(pod.clone(), false);
        self.host.reports.heard(&pod); // after that: a worker that reports only now looks for itself
        Some(uid)
    }

    /// Names what of a new pod is not acted on.
    fn warn_of_ignored(&self, pod: &Pod, object: &Value) {
        let fields = ignored::fields(object);
        if !fields.is_empty() && !pod.is_terminal() {
            let text = format!("this agent does not act on {}; the pod runs without", fields.join(", "));
            self.host.events.warning(About::pod(pod), "FieldIgnored", text);
        }
    }

    /// Says that a pod cannot be run because it cannot be read: it would wait without a word otherwise.
    fn refuse(&self, object: &Value, error: &serde_json::Error) {
        let name = object::text(object, &["metadata", "name"]);
        tracing::warn!(pod = name, %error, "a pod cannot be read and is not run");
        let text = format!("this agent cannot read the pod: {error}; correct the field and create the pod again");
        self.host
            .events
            .warning(About::unread_pod(object), "FailedToRead", text);
    }

    /// Ends a pod that cannot be read if it is being deleted: who deletes it would wait for ever otherwise.
    fn end_unread(&mut self, object: &Value) {
        let meta = Meta::of(object);
        if meta.deletion_timestamp.is_none() || meta.uid.is_empty() {
            return;
        }
        match self.workers.get(&meta.uid) {
            Some(handle) => {
                let mut pod = Pod::clone(&handle.desired.borrow().pod);
                // A version stands for a status: one whose status cannot be read has not been seen.
                let status = PodStatus::deserialize(&object["status"]);
                let version = status.is_err().then(|| pod.meta.resource_version.clone());
                pod.meta = Meta {
                    resource_version: version.unwrap_or(meta.resource_version.clone()),
                    ..meta
                };
                pod.status = status.unwrap_or(pod.status);
                let pod = Arc::new(pod);
                self.want(pod.clone(), false);
                self.host.reports.heard(&pod);
            }
            // It was never run here: its object is all there is of it.
            None => {
                let pod = Pod { meta, ..Pod::default() };
                self.host.reports.finish(&pod);
            }
        }
    }

    fn want(&mut self, pod: Arc<Pod>, kept: bool) {
        let uid = pod.meta.uid.clone();
        self.host.roll.enter(&pod);
        let desired = Desired { pod, gone: false, kept };
        if let Some(handle) = self.workers.get(&uid) {
            handle.desired.send_if_modified(|known| {
                let news =
                    known.gone != desired.gone || known.kept != desired.kept || matters(&known.pod, &desired.pod);
                *known = desired;
                news
            });
            return;
        }
        let nudge = Arc::new(Notify::new());
        let (sender, receiver) = watch::channel(desired);
        let sweep = self.sweep.as_ref().filter(|sweep| sweep.uids.contains(&uid));
        let ended = sweep.map(|sweep| sweep.ended.clone());
        let work = work(self.host.clone(), receiver, nudge.clone());
        let task = self.tasks.spawn(async move {
            if let Some(mut ended) = ended {
                // Nothing is ever sent: this is the end of the sweep.
                let _ = ended.changed().await;
            }
            work.await;
        });
        self.names.insert(task.id(), uid.clone());
        self.workers.insert(uid, Handle { desired: sender, nudge });
    }

    fn gone(&mut self, uid: &str) {
        if let Some(handle) = self.workers.get(uid) {
            handle.desired.send_modify(|desired| desired.gone = true);
        }
    }

    fn nudge(&self, uid: Option<&str>) {
        match uid {
            Some(uid) => {
                if let Some(handle) = self.workers.get(uid) {
                    handle.nudge.notify_one();
                }
            }
            None => self.workers.values().for_each(|handle| handle.nudge.notify_one()),
        }
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let Some(uid) = self.names.remove(&id) else { return };
        let handle = self.workers.remove(&uid);
        self.host.roll.strike(&uid);
        match ended {
            Ok(_) => {
                // Once more: what the API showed while the worker said farewell was kept again.
                self.host.keeper.forget(self.host.kept_pods().join(&uid));
                if handle.is_some_and(|handle| !handle.desired.borrow().gone) {
                    self.done.insert(uid);
                }
            }
            Err(error) => tracing::error!(uid, %error, "a pod's worker has failed; the next list starts it again"),
        }
    }

    async fn unwanted(&self) -> Result<Vec<PodState>, RuntimeError> {
        let mut all = self.host.containers.pods().await?;
        all.retain(|state| !self.workers.contains_key(&state.pod_uid));
        Ok(all)
    }

    /// Removes what is on the node and belongs to no pod: what an earlier run could not. Where it cannot be told what runs, all
    /// stays until the next time: addresses and volumes may be in use. What takes time goes on in a task of its own, one at a
    /// time; who asks meanwhile gets another one after it.
    async fn sweep(&mut self) {
        if let Some(under_way) = &mut self.sweep {
            under_way.again = true;
            return;
        }
        let unwanted = match self.unwanted().await {
            Ok(unwanted) => unwanted,
            Err(error) => {
                tracing::warn!(%error, "it cannot be told which pods run that nobody wants; they stay");
                return;
            }
        };
        let folders = files(self.host.settings.root.join("pods")).await;
        let uids = folders.iter().filter_map(|path| path.file_name()?.to_str());
        let volumes = uids.filter(|uid| !self.workers.contains_key(*uid)).map(str::to_owned);
        let leftovers = Leftovers {
            pods: unwanted,
            volumes: volumes.collect(),
        };
        let (over, ended) = watch::channel(());
        self.sweep = Some(Sweep {
            uids: leftovers.uids(),
            stood: self.workers.keys().cloned().collect(),
            ended,
            again: false,
        });
        let host = self.host.clone();
        self.sweeping.spawn(async move {
            leftovers.remove(&host).await;
            drop(over);
        });
    }

    /// What nobody wanted is gone, as far as it could be removed.
    async fn swept(&mut self, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            tracing::error!(%error, "the removal of what nobody wants has failed");
        }
        let Some(sweep) = self.sweep.take() else { return };
        let mut alive = sweep.stood;
        alive.extend(self.workers.keys().cloned());
        let network = match &*self.host.network.borrow() {
            NetworkState::Up(network) => Some(network.clone()),
            NetworkState::Missing(_) => None,
        };
        if let Some(Err(error)) = network.map(|network| network.retain(&alive)) {
            tracing::warn!(error, "addresses of pods that nobody wants stay taken");
        }
        if sweep.again {
            self.sweep().await;
        }
    }
}

/// Whether what is kept on disk must be written anew. A status is not worth a write, but for its end and for what must not run
/// twice: after a reboot only the kept status tells that it has been running.
fn is_news(known: &Pod, new: &Pod) -> bool {
    let once = new.spec.restart_policy != RestartPolicy::Always;
    known.spec != new.spec
        || known.meta.deletion_timestamp != new.meta.deletion_timestamp
        || known.is_terminal() != new.is_terminal()
        || (once && attempts(known) != attempts(new))
}

/// Which attempts of its containers a pod's status knows of.
fn attempts(pod: &Pod) -> Vec<&str> {
    let status = &pod.status;
    let all = status.init_container_statuses.iter().chain(&status.container_statuses);
    all.map(|it| it.container_id.as_str())
        .filter(|id| !id.is_empty())
        .collect()
}

/// Whether a worker should look: our own status coming back is no reason to, and what others make of it is the reporter's
/// concern, but for an end.
fn matters(known: &Pod, new: &Pod) -> bool {
    let gates = !new.spec.readiness_gates.is_empty() && known.status.conditions != new.status.conditions;
    let meta = |pod: &Pod| {
        let mut meta = pod.meta.clone();
        meta.resource_version.clear();
        meta
    };
    let ended = known.is_terminal() != new.is_terminal();
    gates || ended || known.spec != new.spec || meta(known) != meta(new)
}

async fn files(folder: PathBuf) -> Vec<PathBuf> {
    let read = blocking(move || {
        std::fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect()
    });
    read.await.unwrap_or_default()
}
