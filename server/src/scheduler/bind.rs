//! The scheduler's loop: follows pods and nodes, places one pod after the other, and writes bindings side by side.

use std::time::Duration;

use agent::wire::object::{Meta, list, text};
use agent::wire::status::{Reason, Status};
use agent::wire::time;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use super::filter::sentence;
use super::queue::Queue;
use super::score::choose;
use super::state::State;
use super::wish::Wish;
use crate::cache::{ChangeKind, Filter, From, Watch, WatchEvent};
use crate::controllers::{Note, reference, status_patch, tell};
use crate::request::{Client, What};

/// How often somebody else may be quicker at a pod's status; what is not said then is said by the Event alone.
const RACES: usize = 3;
/// Bindings on their way at once.
const BINDINGS: usize = 64;
/// Between two tries to open the watches.
const REOPEN: Duration = Duration::from_secs(1);
/// Without anything to wait for.
const IDLE: Duration = Duration::from_secs(60);

/// Schedules for ever. `client` acts as the scheduler.
pub async fn run(client: Client) {
    loop {
        match follow(&client).await {
            Ok(()) => debug!("scheduler starts over from the present state"),
            Err(status) => warn!(error = %status, "scheduler cannot watch, trying again"),
        }
        sleep(REOPEN).await;
    }
}

/// One write on its way.
struct Outcome {
    wish: Wish,
    result: Result<(), Status>,
}

/// What the scheduler knows and does.
struct Scheduler<'a> {
    client: &'a Client,
    state: State,
    queue: Queue,
    /// Bindings on their way.
    bindings: JoinSet<Outcome>,
    /// What pods are told; nobody waits for it.
    reports: JoinSet<()>,
}

/// Runs until a watch ends. Both begin with the present state; nodes first, so that no pod is told there are none.
async fn follow(client: &Client) -> Result<(), Status> {
    let start = From::State { bookmark: true };
    let mut nodes = client.watch(What::NODES, None, Filter::default(), start).await?;
    let mut pods = client.watch(What::PODS, None, Filter::default(), start).await?;
    let mut scheduler = Scheduler {
        client,
        state: State::default(),
        queue: Queue::default(),
        bindings: JoinSet::new(),
        reports: JoinSet::new(),
    };
    if !scheduler.catch_up(&mut nodes).await || !scheduler.catch_up(&mut pods).await {
        return Ok(());
    }
    loop {
        while scheduler.bindings.len() < BINDINGS
            && let Some(wish) = scheduler.queue.next()
        {
            scheduler.place(wish);
        }
        let wake = scheduler.queue.next_wake().unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            biased;
            Some(outcome) = scheduler.bindings.join_next() => {
                if let Ok(outcome) = outcome {
                    scheduler.bound(outcome);
                }
            }
            event = nodes.next() => match event {
                Some(event) => scheduler.seen(&event),
                None => return Ok(()),
            },
            event = pods.next() => match event {
                Some(event) => scheduler.seen(&event),
                None => return Ok(()),
            },
            Some(_) = scheduler.reports.join_next() => {}
            () = sleep_until(wake) => scheduler.queue.wake(Instant::now()),
        }
    }
}

impl Scheduler<'_> {
    /// Takes in the initial state of a watch; false when it ended before.
    async fn catch_up(&mut self, watch: &mut Watch) -> bool {
        loop {
            match watch.next().await {
                Some(WatchEvent::Bookmark {
                    initial_events_end: true,
                    ..
                }) => return true,
                Some(event) => self.seen(&event),
                None => return false,
            }
        }
    }

    fn seen(&mut self, event: &WatchEvent) {
        let WatchEvent::Change(change, item) = event else {
            return;
        };
        let object = item.value();
        match (text(&object, &["kind"]), change) {
            ("Node", ChangeKind::Deleted) => self.state.node_gone(text(&object, &["metadata", "name"])),
            ("Node", _) => {
                self.state.node_seen(&object);
                self.queue.stir();
            }
            (_, ChangeKind::Deleted) => self.pod_gone(text(&object, &["metadata", "uid"])),
            (_, _) => self.pod_seen(&object),
        }
    }

    fn pod_seen(&mut self, pod: &Value) {
        let wish = Wish::of(pod);
        if wish.finished {
            self.pod_gone(&wish.meta.uid);
        } else if !wish.node.is_empty() {
            self.queue.remove(&wish.meta.uid);
            self.state.place(&wish);
        } else if wish.waits() {
            // A pod whose binding is on its way is seen without a node once more; and what was written into the status
            // of one that waits, here first of all, gives it no better chance.
            if !self.state.is_placed(&wish.meta.uid) && !self.queue.waits_with(&wish) {
                self.queue.push(wish);
            }
        } else {
            self.queue.remove(&wish.meta.uid);
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        if self.state.lift(uid) {
            self.queue.stir();
        }
    }

    /// Chooses a node and sends the binding off, or tells the pod why there is none.
    fn place(&mut self, mut wish: Wish) {
        match choose(&wish, &self.state) {
            Ok(node) => {
                wish.node.clone_from(&node.name);
                self.state.place(&wish);
                let client = self.client.clone();
                self.bindings.spawn(async move {
                    let result = bind(&client, &wish).await;
                    Outcome { wish, result }
                });
            }
            Err((nodes, reasons)) => {
                let message = sentence(nodes, &reasons);
                self.reports
                    .spawn(explain(self.client.clone(), wish.meta.clone(), message));
                self.queue.found_none(wish, Instant::now());
            }
        }
    }

    fn bound(&mut self, outcome: Outcome) {
        let Outcome { mut wish, result } = outcome;
        let Err(status) = result else {
            self.reports.spawn(announce(self.client.clone(), wish));
            return;
        };
        self.state.lift(&wish.meta.uid);
        wish.node.clear();
        if status.is(Reason::NotFound) || status.is(Reason::Conflict) {
            debug!(pod = %wish.meta.name, error = %status, "pod moved on while it was bound");
            return;
        }
        warn!(pod = %wish.meta.name, namespace = %wish.meta.namespace, error = %status, "pod could not be bound, trying again");
        self.queue.failed(wish, Instant::now());
    }
}

async fn bind(client: &Client, wish: &Wish) -> Result<(), Status> {
    let Meta {
        namespace, name, uid, ..
    } = &wish.meta;
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "namespace": namespace, "uid": uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": wish.node},
    });
    let answer = client.create_sub(What::PODS, namespace, name, "binding", binding).await;
    answer.map(drop)
}

async fn announce(client: Client, wish: Wish) {
    let Meta { namespace, name, .. } = &wish.meta;
    let message = format!("Successfully assigned {namespace}/{name} to {}", wish.node);
    tell(
        &client,
        &note(&wish.meta, "Normal", "Scheduled", message),
        Timestamp::now(),
    )
    .await;
}

/// Says in the pod's conditions and in an Event why it has no node; again only when the reason is another.
async fn explain(client: Client, meta: Meta, message: String) {
    for _ in 0..RACES {
        let Ok(pod) = client.get(What::PODS, &meta.namespace, &meta.name).await else {
            return;
        };
        let seen = Meta::of(&pod);
        if seen.uid != meta.uid || !text(&pod, &["spec", "nodeName"]).is_empty() || says(&pod, &message) {
            return;
        }
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": time::seconds(Timestamp::now()),
        });
        // Not of a pod that was bound meanwhile, nor of another one of its name.
        let change = status_patch(&seen, json!({"conditions": [condition]}));
        let patched = client
            .patch(What::PODS, &meta.namespace, &meta.name, Some("status"), change)
            .await;
        match patched {
            Err(status) if status.is(Reason::Conflict) => {}
            Err(status) => {
                debug!(pod = %meta.name, error = %status, "could not say why the pod has no node");
                break;
            }
            Ok(_) => break,
        }
    }
    tell(
        &client,
        &note(&meta, "Warning", "FailedScheduling", message),
        Timestamp::now(),
    )
    .await;
}

/// Whether the pod's conditions give this reason already.
fn says(pod: &Value, message: &str) -> bool {
    list(pod, &["status", "conditions"]).iter().any(|one| {
        text(one, &["type"]) == "PodScheduled"
            && text(one, &["status"]) == "False"
            && text(one, &["message"]) == message
    })
}

fn note(meta: &Meta, kind: &'static str, reason: &'static str, message: String) -> Note {
    let about = reference(&json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
        },
    }));
    Note {
        kind,
        reason,
        message,
        about,
        component: super::NAME,
    }
}
