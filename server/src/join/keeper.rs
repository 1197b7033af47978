//! The upkeep of the register: whoever keeps node passwords, Nodes and `cred/node-passwd` of one server in agreement.
//!
//! One [`Keeper::round`] after the other; what is to be done in one is decided in `node_password` and `reenrol`. When the next
//! round comes is decided in [`Keeper::run`], the only part that waits and knows the clock.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use agent::wire::selector::Fields;
use agent::wire::status::{Reason, Status};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tracing::{info, warn};

use super::ground::{Cluster, Ground};
use super::node_password::{self, Orphans, Plan, Record, Seen, Written};
use super::record;
use super::reenrol::{self, Window};
use super::register::{Register, overtaken};
use super::roll::{Roll, Stamp};
use crate::cache::{ChangeKind, Filter, From, Item, Watch, WatchEvent};
use crate::request::{Client, What};

/// Orphans are looked for this often (K3s).
const SWEEP: Duration = Duration::from_secs(60);
/// The file is looked at this often, which takes one system call: a row may be taken out here while its node asks
/// another server.
const LOOK: Duration = Duration::from_secs(2);
/// Nodes that come together are written to the file together.
const GATHER: Duration = Duration::from_secs(1);

/// Keeps records, Nodes and the file in agreement.
pub struct Keeper<G = Cluster> {
    register: Arc<Register<G>>,
    looks: mpsc::Receiver<oneshot::Sender<()>>,
    /// Requests that wait for the file to be looked at.
    waiting: Vec<oneshot::Sender<()>>,
    /// The rows we wrote.
    written: Written,
    /// Windows for another password, and since when each is there.
    windows: reenrol::Windows,
    /// Records that have no Node yet, and since when each is there.
    orphans: Orphans,
}

impl Keeper {
    /// Runs until it is dropped.
    pub async fn run(mut self) {
        self.begin();
        let register = Arc::clone(&self.register);
        let client = &register.ground.client;
        let (mut nodes, mut records) = (None, None);
        loop {
            if nodes.is_none() {
                nodes = watch(client, What::NODES).await;
            }
            if records.is_none() {
                records = watch(client, What::SECRETS).await;
            }
            let left = self.round().await;
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
                Some(done) = self.looks.recv() => self.waiting.push(done),
            }
        }
    }
}

impl<G: Ground> Keeper<G> {
    /// Of this register, which asks by `looks`.
    pub(super) fn new(register: Arc<Register<G>>, looks: mpsc::Receiver<oneshot::Sender<()>>) -> Self {
        Self {
            register,
            looks,
            waiting: Vec::new(),
            written: Written::new(),
            windows: reenrol::Windows::default(),
            orphans: Orphans::default(),
        }
    }

    /// To be called before the first round.
    pub(super) fn begin(&mut self) {
        match self.register.roll.written() {
            Ok(written) => self.written = written,
            Err(error) => warn!(error = %error, "cannot read which rows of node-passwd are ours"),
        }
    }

    /// Whether somebody waits for the next round.
    pub(super) fn is_asked(&mut self) -> bool {
        while let Ok(done) = self.looks.try_recv() {
            self.waiting.push(done);
        }
        !self.waiting.is_empty()
    }

    /// Makes Secrets, Nodes and the file agree, and answers who waits for that. Returns the state of the file that no other
    /// round is needed for.
    pub(super) async fn round(&mut self) -> Stamp {
        self.is_asked();
        let register = Arc::clone(&self.register);
        let before = register.roll.stamp();
        if let Err(why) = self.sweep().await {
            warn!(error = why, "cannot look after the nodes' password records");
        }
        for done in self.waiting.drain(..) {
            // Who asked may have gone meanwhile.
            let _ = oneshot::Sender::send(done, ());
        }
        // What a sweep could make nothing of is not swept for again until it changes.
        let left = register.left().filter(|left| Some(*left) == register.roll.stamp());
        left.or(before)
    }

    async fn sweep(&mut self) -> Result<(), String> {
        let register = Arc::clone(&self.register);
        let (ground, roll) = (&register.ground, &register.roll);
        let stamp = roll.stamp();
        let mut seen = self.look().await?;
        if !seen.overdue.is_empty() {
            // A server that was cut off is the last to know that a Node has come.
            match ground.catch_up().await {
                true => seen = self.look().await?,
                false => seen.overdue.clear(),
            }
        }
        let plan = node_password::plan(&seen);
        if let Some(rows) = plan.rebuilt {
            let path = roll.path().display();
            warn!(file = %path, rows, "node-passwd lost several rows off its end and is written anew: no node is forgotten; to forget some, run k3s node-password delete NAME, or take out one row at a time");
        }
        let over = self.windows.over(&seen.records, ground.up());
        self.carry_out(&plan, &seen, &over)
            .await
            .map_err(|status| status.message)?;
        let records = match plan == Plan::default() {
            true => seen.records,
            false => ground.all().await.map_err(|status| status.message)?,
        };
        if roll.stamp() != stamp {
            // An operator wrote meanwhile: the next request, or the next round, reads that first.
            return Ok(());
        }
        register.write(&records).map_err(|error| error.to_string())?;
        self.written = records.into_iter().map(|(node, record)| (node, record.uid)).collect();
        Ok(())
    }

    /// All that there is to see.
    async fn look(&mut self) -> Result<Seen, String> {
        let (ground, roll) = (&self.register.ground, &self.register.roll);
        // In this order: a Node that a record is tied to, and that is not seen after it, has gone.
        let records = ground.all().await.map_err(|status| status.message)?;
        let nodes = ground.nodes().await.map_err(|status| status.message)?;
        Ok(Seen {
            overdue: self.orphans.overdue(&records, &nodes, ground.up()),
            rows: roll.rows().map_err(|error| error.to_string())?,
            written: self.written.clone(),
            records,
            nodes,
        })
    }

    async fn carry_out(&self, plan: &Plan, seen: &Seen, over: &[(String, Window)]) -> Result<(), Status> {
        let ground = &self.register.ground;
        let gone_is_fine = |status: Status| if overtaken(&status) { Ok(()) } else { Err(status) };
        for (node, window) in over {
            let Some(record) = seen.records.get(node) else { continue };
            info!(node, until = %window.until, "a window for another node password has run out and is taken off");
            ground.close(node, &record.unchanged()).await.or_else(gone_is_fine)?;
        }
        for (node, why) in &plan.forget {
            let Some(record) = seen.records.get(node) else { continue };
            info!(node, %why, "forgetting a node's password");
            ground.forget(node, &why.only(record)).await.or_else(gone_is_fine)?;
        }
        for (node, password) in &plan.adopt {
            info!(node, "taking over a row of node-passwd that has no record");
            let record = Record {
                hash: ground.hash(password).await.map_err(Status::internal)?,
                ..Record::default()
            };
            let made = ground.create(node, &record).await;
            made.or_else(|status| status.is(Reason::AlreadyExists).then_some(()).ok_or(status))?;
        }
        for (node, uid) in &plan.own {
            let Some(record) = seen.records.get(node) else { continue };
            // As it was seen: when its node has come since, that Node may have gone before.
            let tied = ground.tie(node, &record.unchanged(), uid).await;
            tied.or_else(gone_is_fine)?;
        }
        Ok(())
    }
}

/// Nodes, or their records whoever makes them, from now on; `None`: the next round tries again.
async fn watch(client: &Client, what: What) -> Option<Watch> {
    let mut filter = Filter::default();
    let namespace = (what == What::SECRETS).then_some(record::NAMESPACE);
    if namespace.is_some() {
        filter.fields = Fields::parse(&format!("type={}", record::TYPE)).ok()?;
    }
    let watch = client.watch(what, namespace, filter, From::Now).await;
    watch
        .inspect_err(|status| warn!(error = status.message, what = what.plural, "cannot watch"))
        .ok()
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

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;
    use crate::cache::{Cache, Fresh, Index};
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
            let (register, mut keeper) = Register::new(client, fresh, &scratch.0).unwrap();
            drop(register);
            keeper.sweep().await.unwrap();
            if !followed {
                here.shutdown().await;
            }
            let node = json!({ "metadata": { "name": "pi" } });
            other.create(What::NODES, "", node).await.unwrap();
            let ground = &mut Arc::get_mut(&mut keeper.register).unwrap().ground;
            ground.begun = ground.begun.checked_sub(SWEEP * 20).unwrap();
            // A write that this server shows no more waits for what never comes.
            let _ = timeout(SWEEP, keeper.sweep()).await;
            let records = record::all(&other).await.unwrap();
            assert!(records.keys().eq(left), "{followed}: {records:?}");
        }
    }
}
