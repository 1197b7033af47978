//! The one runner of all controllers: watches what a controller names, keeps a queue of keys, plans and carries out.
//!
//! Level-triggered: an event only says "look again", and a plan is made from the present state. A key whose plan failed
//! is looked at again with back-off. Our own writes are in the cache before they are acknowledged, so a plan never
//! misses what the previous one did.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use agent::wire::object::{Meta, integer, text};
use agent::wire::status::{Reason, Status};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use super::action::{Action, Deletion, Note, Plan, Taken};
use super::world::{Key, Live, World};
use crate::cache::{Cache, ChangeKind, Filter, From, Item, OBJECTS, Watch, WatchEvent};
use crate::request::{Client, DeleteOptions, Patch, What};

/// Delay after the first failure; doubles up to [`SLOWEST`]. Source: client-go v1.36 `DefaultTypedControllerRateLimiter`.
const FASTEST: Duration = Duration::from_millis(5);
/// The longest a failing key waits.
const SLOWEST: Duration = Duration::from_secs(300);
/// Keys between a source's watch and the queue; a full channel makes the watch wait, nothing is lost.
const CHANNEL: usize = 256;
/// Between two tries to open a watch.
const REOPEN: Duration = Duration::from_secs(1);

/// Something watched, and the keys an object of it concerns.
#[derive(Clone, Copy)]
pub struct Source {
    /// The kind; `None` is every object there is.
    pub what: Option<What>,
    /// Only in this namespace; `None` is everywhere.
    pub namespace: Option<&'static str>,
    /// Which keys to look at when this happened to this object.
    pub keys: fn(&dyn World, ChangeKind, &Item) -> Vec<Key>,
}

impl Source {
    /// A kind whose objects are the controller's own keys.
    pub fn own(what: What) -> Self {
        Self {
            what: Some(what),
            namespace: None,
            keys: |_, _, item| vec![Key::of(&item.value())],
        }
    }

    /// A kind whose objects concern others.
    pub fn of(what: What, keys: fn(&dyn World, ChangeKind, &Item) -> Vec<Key>) -> Self {
        Self {
            what: Some(what),
            namespace: None,
            keys,
        }
    }

    /// Only in this namespace, where the controller has its rights.
    pub const fn within(self, namespace: &'static str) -> Self {
        Self {
            namespace: Some(namespace),
            ..self
        }
    }

    async fn watch(self, client: &Client, cache: &Cache) -> Result<Watch, Status> {
        let start = From::State { bookmark: false };
        match self.what {
            Some(what) => client.watch(what, self.namespace, Filter::default(), start).await,
            None => cache.watch(OBJECTS, Filter::default(), start).map_err(Status::internal),
        }
    }
}

/// A controller: what it watches and what it decides. It does nothing itself.
pub trait Controller: Send + Sync + 'static {
    /// For logs.
    fn name(&self) -> &'static str;
    /// What it watches.
    fn sources(&self) -> Vec<Source>;
    /// What is to be done for a key, given the present state.
    fn plan(&self, world: &dyn World, key: &Key) -> Plan;
    /// What is to be done when a creation was refused and the plan ended there, beside trying again.
    fn refused(&self, _world: &dyn World, _key: &Key, _what: What, _why: &Status) -> Vec<Action> {
        Vec::new()
    }
}

/// Runs a controller until the task set is shut down. `client` acts as the controller.
pub async fn run(controller: Arc<dyn Controller>, client: Client, cache: Cache) {
    let (sender, mut changed) = mpsc::channel(CHANNEL);
    let mut watchers = JoinSet::new();
    for source in controller.sources() {
        watchers.spawn(follow(
            source,
            client.clone(),
            cache.clone(),
            sender.clone(),
            controller.name(),
        ));
    }
    let mut queue = Queue::default();
    loop {
        let now = Instant::now();
        let Some(key) = queue.due(now) else {
            let wake = queue.next().unwrap_or_else(|| now + SLOWEST);
            tokio::select! {
                changed = changed.recv() => match changed {
                    Some(key) => queue.add(key, Instant::now()),
                    None => return,
                },
                () = sleep_until(wake) => {}
            }
            while let Ok(key) = changed.try_recv() {
                queue.add(key, Instant::now());
            }
            continue;
        };
        let plan = controller.plan(&Live::now(&cache), &key);
        match carry_out(&client, plan).await {
            Ok(again) => queue.done(key, again.map(|delay| Instant::now() + delay)),
            Err(Failure { creating, status }) => {
                let delay = queue.failed(key.clone(), Instant::now());
                log_failure(controller.name(), &key, &status, delay);
                let actions = creating
                    .map(|what| controller.refused(&Live::now(&cache), &key, what, &status))
                    .unwrap_or_default();
                let plan = Plan { actions, again: None };
                if let Err(Failure { status, .. }) = carry_out(&client, plan).await {
                    log_failure(controller.name(), &key, &status, delay);
                }
            }
        }
    }
}

fn log_failure(controller: &'static str, key: &Key, status: &Status, delay: Duration) {
    let (namespace, name, retry_ms) = (&key.namespace, &key.name, delay.as_millis());
    // Of what goes away with its namespace nothing new can be made, and need not be.
    if status.is(Reason::Conflict) || status.is(Reason::NotFound) || namespace_goes(status) {
        debug!(controller, %namespace, %name, error = %status, retry_ms, "object moved on while it was looked at");
    } else {
        warn!(controller, %namespace, %name, error = %status, retry_ms, "controller could not carry out its plan");
    }
}

/// Whether a creation was refused because its namespace is on its way out.
pub fn namespace_goes(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// Watches a source for ever and sends the keys that its events concern.
async fn follow(source: Source, client: Client, cache: Cache, sender: mpsc::Sender<Key>, controller: &'static str) {
    loop {
        match source.watch(&client, &cache).await {
            Ok(mut watch) => {
                while let Some(event) = watch.next().await {
                    let WatchEvent::Change(change, item) = event else {
                        continue;
                    };
                    let keys = (source.keys)(&Live::now(&cache), change, &item);
                    for key in keys {
                        if sender.send(key).await.is_err() {
                            return;
                        }
                    }
                }
            }
            Err(status) => {
                let kind = source.what.map_or("everything", |what| what.plural);
                warn!(controller, kind, error = %status, "controller cannot watch, trying again");
            }
        }
        sleep(REOPEN).await;
    }
}

/// Keys that are due now or later, each once; failures are counted per key.
#[derive(Default)]
struct Queue {
    due: HashMap<Key, Instant>,
    /// The same, soonest first: at a start there are as many as objects.
    order: BTreeSet<(Instant, Key)>,
    failures: HashMap<Key, u32>,
}

impl Queue {
    fn add(&mut self, key: Key, now: Instant) {
        if let Some(due) = self.due.get(&key) {
            if *due <= now {
                return;
            }
            self.order.remove(&(*due, key.clone()));
        }
        self.order.insert((now, key.clone()));
        self.due.insert(key, now);
    }

    fn due(&mut self, now: Instant) -> Option<Key> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.order.pop_first()?;
        self.due.remove(&key);
        Some(key)
    }

    fn next(&self) -> Option<Instant> {
        self.order.first().map(|(due, _)| *due)
    }

    fn done(&mut self, key: Key, again: Option<Instant>) {
        self.failures.remove(&key);
        if let Some(again) = again {
            self.add(key, again);
        }
    }

    fn failed(&mut self, key: Key, now: Instant) -> Duration {
        let failures = self.failures.entry(key.clone()).or_default();
        let delay = back_off(*failures);
        *failures = failures.saturating_add(1);
        self.add(key, now + delay);
        delay
    }
}

/// Doubles with each failure.
fn back_off(failures: u32) -> Duration {
    FASTEST
        .saturating_mul(2_u32.saturating_pow(failures.min(20)))
        .min(SLOWEST)
}

/// What ended a plan early.
struct Failure {
    /// The kind that was to be created, if it was that.
    creating: Option<What>,
    status: Status,
}

/// More creations of one plan are not told of one by one. Source: client-go v1.36 `tools/record`, `defaultSpamBurst`.
const TOLD: usize = 25;

/// What a plan has done so far.
#[derive(Default)]
struct Progress {
    told: Vec<Note>,
    /// The resourceVersions of what it changed as it had seen it, by uid: its own changes are none that a decision did not know
    /// of.
    written: HashMap<String, String>,
}

impl Progress {
    fn wrote(&mut self, object: &Value) {
        let of = |part| text(object, &["metadata", part]).to_owned();
        self.written.insert(of("uid"), of("resourceVersion"));
    }
}

async fn carry_out(client: &Client, plan: Plan) -> Result<Option<Duration>, Failure> {
    let mut progress = Progress::default();
    let mut result = Ok(plan.again);
    for action in plan.actions {
        let creating = match &action {
            Action::Create { what, .. } => Some(*what),
            _ => None,
        };
        let deletes = matches!(action, Action::Delete { .. });
        match act(client, action, &mut progress).await {
            Ok(()) => {}
            // Somebody changed it: no failure, and not to be waited for longer each time.
            Err(status) if deletes && status.is(Reason::Conflict) => {
                debug!(error = %status, "what was to be deleted has changed: looking again");
                result = Ok(Some(FASTEST));
                break;
            }
            Err(status) => {
                result = Err(Failure { creating, status });
                break;
            }
        }
    }
    for note in progress.told {
        tell(client, &note, Timestamp::now()).await;
    }
    result
}

async fn act(client: &Client, action: Action, progress: &mut Progress) -> Result<(), Status> {
    match action {
        Action::Create {
            what,
            object,
            taken,
            told: note,
        } => {
            let namespace = text(&object, &["metadata", "namespace"]).to_owned();
            let made = client.create(what, &namespace, object).await;
            if let (Ok(made), Some(note), true) = (&made, note, progress.told.len() < TOLD) {
                let message = format!("{}{}", note.message, text(made, &["metadata", "name"]));
                progress.told.push(Note { message, ..note });
            }
            match taken {
                Taken::Done => unless(Reason::AlreadyExists, made),
                Taken::Refused => made.map(drop),
            }
        }
        Action::Update {
            what,
            subresource,
            object,
        } => {
            let Key { namespace, name } = Key::of(&object);
            client
                .update_sub(what, &namespace, &name, subresource, object)
                .await
                .map(|object| progress.wrote(&object))
        }
        Action::Patch {
            what,
            at: (namespace, name),
            subresource,
            patch,
        } => {
            let compared = match &patch {
                Patch::Merge(change) | Patch::Strategic(change) => {
                    !text(change, &["metadata", "resourceVersion"]).is_empty()
                }
                Patch::Json(_) => false,
            };
            let changed = client.patch(what, &namespace, &name, subresource, patch).await?;
            if compared {
                progress.wrote(&changed);
            }
            Ok(())
        }
        Action::Delete { what, meta, how } => {
            let Meta {
                namespace,
                name,
                uid,
                resource_version,
                ..
            } = *meta;
            let seen = Some(resource_version).filter(|seen| !seen.is_empty());
            let resource_version = seen.map(|seen| progress.written.get(&uid).cloned().unwrap_or(seen));
            let propagation = match how {
                Deletion::Usual | Deletion::Now => None,
                Deletion::Foreground => Some("Foreground".to_owned()),
                Deletion::Background => Some("Background".to_owned()),
                Deletion::Orphan => Some("Orphan".to_owned()),
            };
            let options = DeleteOptions {
                uid: Some(uid),
                resource_version,
                grace: (how == Deletion::Now).then_some(0),
                propagation,
                ..DeleteOptions::default()
            };
            unless(Reason::NotFound, client.delete(what, &namespace, &name, options).await)
        }
        Action::Event(note) => {
            tell(client, &note, Timestamp::now()).await;
            Ok(())
        }
    }
}

fn unless(expected: Reason, result: Result<Value, Status>) -> Result<(), Status> {
    match result {
        Err(status) if !status.is(expected) => Err(status),
        _ => Ok(()),
    }
}

/// Writes an Event, or counts up the one that is there. Events are for people: that one is lost is not worth a retry.
pub async fn tell(client: &Client, note: &Note, now: Timestamp) {
    let result = match client.create(What::EVENTS, note.namespace(), note.event(now)).await {
        Err(status) if status.is(Reason::AlreadyExists) => count_up(client, note, now).await,
        other => other.map(drop),
    };
    if let Err(status) = result {
        debug!(reason = note.reason, error = %status, "event was not recorded");
    }
}

async fn count_up(client: &Client, note: &Note, now: Timestamp) -> Result<(), Status> {
    let seen = client.get(What::EVENTS, note.namespace(), &note.name()).await?;
    let count = integer(&seen, &["count"]).unwrap_or(1).saturating_add(1);
    let change = json!({"count": count, "lastTimestamp": agent::wire::time::seconds(now)});
    client
        .patch(What::EVENTS, note.namespace(), &note.name(), None, Patch::Merge(change))
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch;
    use crate::store::refusing::Refusing;

    fn key(name: &str) -> Key {
        Key {
            namespace: "default".into(),
            name: name.into(),
        }
    }

    #[test]
    fn a_failing_key_waits_longer_each_time_and_a_success_forgets_that() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let delays: Vec<u128> = (0..3).map(|_| queue.failed(key("a"), now).as_millis()).collect();
        assert_eq!(delays, [5, 10, 20]);
        assert_eq!(back_off(40), SLOWEST);
        queue.done(key("a"), None);
        assert_eq!(queue.failed(key("a"), now), FASTEST);
    }

    #[test]
    fn a_change_brings_a_waiting_key_forward_and_each_key_is_queued_once() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.done(key("a"), Some(now + SLOWEST));
        assert_eq!(queue.due(now), None);
        queue.add(key("a"), now);
        queue.add(key("a"), now);
        queue.add(key("a"), now + SLOWEST);
        assert_eq!(queue.due(now), Some(key("a")));
        assert_eq!((queue.due(now + SLOWEST), queue.next()), (None, None));
    }

    const MAP: What = What::CONFIG_MAPS;

    /// A client of an API over a store in memory.
    async fn client(serving: &mut JoinSet<()>) -> Client {
        let client = scratch::client(Arc::<Refusing>::default(), serving).await;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        client.create(What::NAMESPACES, "", namespace).await.unwrap();
        client
    }

    async fn made(client: &Client, name: &str) -> Value {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        client.create(MAP, "default", map).await.unwrap()
    }

    async fn is_there(client: &Client, name: &str) -> bool {
        client.get(MAP, "default", name).await.is_ok()
    }

    fn labelled(value: &str) -> Patch {
        Patch::Merge(json!({"metadata": {"labels": {"by": value}}}))
    }

    #[tokio::test]
    async fn what_changed_since_it_was_looked_at_is_not_deleted_and_looked_at_again() {
        let mut serving = JoinSet::new();
        let client = client(&mut serving).await;
        let (first, second) = (made(&client, "first").await, made(&client, "second").await);
        client
            .patch(MAP, "default", "first", None, labelled("another"))
            .await
            .unwrap();
        let plan = |seen: &Value| Plan {
            actions: vec![Action::delete(MAP, seen), Action::delete(MAP, &second)],
            again: None,
        };
        let again = carry_out(&client, plan(&first)).await.ok().flatten();
        assert_eq!(again, Some(FASTEST), "looked at again, and not as a failure");
        assert!(is_there(&client, "first").await && is_there(&client, "second").await);
        let fresh = client.get(MAP, "default", "first").await.unwrap();
        let again = carry_out(&client, plan(&fresh)).await.ok();
        assert_eq!(again, Some(None));
        assert!(!is_there(&client, "first").await && !is_there(&client, "second").await);
    }

    #[tokio::test]
    async fn what_the_plan_itself_changed_or_goes_whatever_it_is_is_deleted() {
        let mut serving = JoinSet::new();
        let client = client(&mut serving).await;
        let (own, whatever) = (made(&client, "own").await, made(&client, "whatever").await);
        client
            .patch(MAP, "default", "whatever", None, labelled("another"))
            .await
            .unwrap();
        let patch = Action::Patch {
            what: MAP,
            at: ("default".to_owned(), "own".to_owned()),
            subresource: None,
            patch: Patch::Merge(json!({"metadata": {
                "labels": {"by": "us"}, "resourceVersion": own["metadata"]["resourceVersion"]}})),
        };
        let actions = vec![
            patch,
            Action::delete(MAP, &own),
            Action::delete_whatever(MAP, &whatever),
        ];
        let again = carry_out(&client, Plan { actions, again: None }).await.ok();
        assert_eq!(again, Some(None));
        assert!(!is_there(&client, "own").await && !is_there(&client, "whatever").await);
    }
}
