//! An API that is played: objects in memory, lists and watches of pods, and a cable that can be pulled.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::kubelet::ports::{Api, ApiFailure, Change, Returns, Watch};
use crate::wire::object::{self, text};
use crate::wire::status::{Reason, STALE, Status};

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<String, Value>,
    /// Pods that were deleted.
    gone: Vec<Value>,
    watches: Vec<mpsc::UnboundedSender<Change>>,
    unplugged: bool,
    /// What is sent into the void waits for an answer, instead of failing at once.
    void: bool,
    /// The last call had no answer.
    unheard: bool,
    returns: watch::Sender<()>,
    news: watch::Sender<()>,
    /// What is answered to who asks for a token.
    token: Option<Value>,
    /// It shows a past without pods, and says so where it is asked for the present.
    behind: bool,
    /// Status patches, by uid.
    patches: BTreeMap<String, u32>,
}

/// The API. Pods live under their paths; whatever else a kubelet asks for is there once it was [`FakeApi::put`].
#[derive(Default)]
pub struct FakeApi(Mutex<State>);

impl FakeApi {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Puts an object where it belongs, and tells the watches if it is a pod.
    pub fn put(&self, path: &str, object: Value) {
        self.state().put(path, object);
    }

    /// Deletes as the API does: at once, or by a mark that the kubelet acts on.
    pub fn delete_pod(&self, path: &str, grace: i64) {
        let mut state = self.state();
        let Some(mut pod) = state.objects.get(path).cloned() else {
            return;
        };
        if grace == 0 {
            return state.remove(path);
        }
        object::set(&mut pod, &["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z");
        object::set(&mut pod, &["metadata", "deletionGracePeriodSeconds"], grace);
        state.put(path, pod);
    }

    /// Writes into a pod as somebody else does.
    pub fn change(&self, path: &str, patch: &Value) {
        let mut state = self.state();
        let mut object = state.objects.get(path).cloned().unwrap();
        merge(&mut object, patch);
        state.put(path, object);
    }

    /// Answers so to who asks for a service account's token.
    pub fn grant(&self, answer: Value) {
        self.state().token = Some(answer);
    }

    /// Notices of objects that were written or are gone.
    pub fn news(&self) -> watch::Receiver<()> {
        self.state().news.subscribe()
    }

    /// Takes the service accounts away.
    pub fn refuse_tokens(&self) {
        self.state().token = None;
    }

    /// Deletes what is no pod.
    pub fn lose(&self, path: &str) {
        self.state().objects.remove(path);
    }

    /// What is under a path.
    pub fn object(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// Pulls the cable: watches end, and nobody answers.
    pub fn unplug(&self) {
        let mut state = self.state();
        state.unplugged = true;
        state.watches.clear();
    }

    /// Has packets vanish from now on: a call fails only after a while.
    pub fn vanish(&self) {
        self.unplug();
        self.state().void = true;
    }

    /// Plugs it in again.
    pub fn plug(&self) {
        self.state().unplugged = false;
    }

    /// Puts a server in the way that lost its datastore before any pod was made, or the right one again.
    pub fn lag(&self, behind: bool) {
        let mut state = self.state();
        state.behind = behind;
        state.watches.clear();
    }

    /// Whether somebody answers, when that is known. As with Linux' SYNs, which come again after 1, 3 and 7 s, and a limit of 10 s.
    async fn reach(&self) -> Result<(), ApiFailure> {
        let vanishes = || {
            let state = self.state();
            state.unplugged && state.void
        };
        for wait in [1, 2, 4, 3] {
            if vanishes() {
                sleep(Duration::from_secs(wait)).await;
            }
        }
        let mut state = self.state();
        if state.unplugged {
            state.unheard = true;
            return Err(ApiFailure::Unreachable("the cable is out".into()));
        }
        if std::mem::take(&mut state.unheard) {
            state.returns.send_replace(());
        }
        Ok(())
    }

    /// Reasons of the events that were written, in their order.
    pub fn events(&self) -> Vec<String> {
        self.of_events("reason")
    }

    /// Their messages.
    pub fn messages(&self) -> Vec<String> {
        self.of_events("message")
    }

    fn of_events(&self, field: &str) -> Vec<String> {
        let state = self.state();
        let events = state.objects.iter().filter(|(path, _)| path.contains("/events/"));
        let mut all: Vec<_> = events
            .map(|(_, event)| (object::integer(event, &["serial"]), text(event, &[field]).to_owned()))
            .collect();
        all.sort();
        all.into_iter().map(|(_, field)| field).collect()
    }

    /// How often the status of a pod was patched.
    pub fn patches(&self, uid: &str) -> u32 {
        self.state().patches.get(uid).copied().unwrap_or_default()
    }
}

impl State {
    fn put(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        object::set(&mut object, &["metadata", "resourceVersion"], self.version.to_string());
        self.objects.insert(path.into(), object.clone());
        self.news.send_replace(());
        if is_pod(path) {
            self.watches
                .retain(|watch| watch.send(Change::Set(object.clone())).is_ok());
        }
    }

    fn remove(&mut self, path: &str) {
        self.version += 1;
        let gone = self.objects.remove(path);
        self.news.send_replace(());
        for object in gone.into_iter().filter(|_| is_pod(path)) {
            let told = |watch: &mpsc::UnboundedSender<Change>| watch.send(Change::Gone(object.clone())).is_ok();
            self.watches.retain(told);
            self.gone.push(object);
        }
    }

    fn find(&self, path: &str) -> Result<Value, ApiFailure> {
        let missing = || ApiFailure::Status(Status::failure(Reason::NotFound, format!("{path} not found")));
        self.objects.get(path).cloned().ok_or_else(missing)
    }
}

fn is_pod(path: &str) -> bool {
    path.split('/').nth_back(1) == Some("pods")
}

/// A patch as far as a kubelet's status needs one: objects and conditions merge, other lists are replaced but for what deletes
/// from them.
fn merge(old: &mut Value, patch: &Value) {
    match (old, patch) {
        (Value::Object(old), Value::Object(patch)) => {
            for (key, value) in patch {
                match value {
                    Value::Null => drop(old.remove(key)),
                    value => merge(old.entry(key.clone()).or_insert(Value::Object(Map::new())), value),
                }
            }
        }
        (Value::Array(old), Value::Array(items)) if items.iter().all(|item| item.get("type").is_some()) => {
            for item in items {
                match old.iter_mut().find(|it| it.get("type") == item.get("type")) {
                    Some(known) => merge(known, item),
                    None => old.push(item.clone()),
                }
            }
        }
        (old, Value::Array(items)) => {
            let kept = items.iter().filter(|item| item.get("$patch").is_none());
            *old = Value::Array(kept.cloned().collect());
        }
        (old, value) => *old = value.clone(),
    }
}

struct Changes(mpsc::UnboundedReceiver<Change>);

impl Watch for Changes {
    fn next(&mut self) -> BoxFuture<'_, Option<Change>> {
        Box::pin(self.0.recv())
    }
}

impl Api for FakeApi {
    fn get<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        Box::pin(async move {
            self.reach().await?;
            let state = self.state();
            let (plain, query) = path.split_once('?').unwrap_or((path, ""));
            if query.is_empty() && !plain.ends_with("/services") {
                return state.find(plain);
            }
            let items: Vec<Value> = match plain {
                "/api/v1/pods" if !state.behind => {
                    let pods = state.objects.iter().filter(|(path, _)| is_pod(path));
                    pods.map(|(_, pod)| pod.clone()).collect()
                }
                _ => vec![],
            };
            Ok(json!({"kind": "List", "metadata": {"resourceVersion": state.version.to_string()}, "items": items}))
        })
    }

    fn list<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        match self.state().behind {
            true => Box::pin(async { Err(ApiFailure::Unreachable(STALE.into())) }),
            false => self.get(path),
        }
    }

    fn create<'a>(&'a self, path: &'a str, body: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        Box::pin(async move {
            self.reach().await?;
            let mut state = self.state();
            if path.ends_with("/token") {
                let refused = || ApiFailure::Status(Status::failure(Reason::NotFound, "serviceaccounts not found"));
                return state.token.clone().ok_or_else(refused);
            }
            let mut object = body.clone();
            object::set(&mut object, &["serial"], state.version);
            let path = format!("{path}/{}", text(body, &["metadata", "name"]));
            if state.objects.contains_key(&path) {
                let there = Status::failure(Reason::AlreadyExists, format!("{path} already exists"));
                return Err(ApiFailure::Status(there));
            }
            state.put(&path, object.clone());
            Ok(object)
        })
    }

    fn update<'a>(&'a self, path: &'a str, body: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        Box::pin(async move {
            self.reach().await?;
            let mut state = self.state();
            state.find(path)?;
            state.put(path, body.clone());
            Ok(body.clone())
        })
    }

    fn patch<'a>(&'a self, path: &'a str, body: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        Box::pin(async move {
            self.reach().await?;
            let mut state = self.state();
            let path = path.strip_suffix("/status").unwrap_or(path);
            let mut object = state.find(path)?;
            let uid = text(&object, &["metadata", "uid"]).to_owned();
            if !matches!(text(body, &["metadata", "uid"]), wanted if wanted == uid || wanted.is_empty()) {
                let asked = text(body, &["metadata", "uid"]);
                return Err(ApiFailure::Status(Status::failure(
                    Reason::Conflict,
                    format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {uid}"),
                )));
            }
            *state.patches.entry(uid).or_default() += 1;
            merge(&mut object, body);
            state.put(path, object);
            state.find(path)
        })
    }

    fn delete<'a>(&'a self, path: &'a str, options: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        Box::pin(async move {
            self.reach().await?;
            let mut state = self.state();
            let object = state.find(path)?;
            assert_eq!(
                text(options, &["preconditions", "uid"]),
                text(&object, &["metadata", "uid"]),
                "only the pod that has ended here may go"
            );
            state.remove(path);
            Ok(object)
        })
    }

    fn watch<'a>(&'a self, _path: &'a str) -> BoxFuture<'a, Result<Box<dyn Watch>, ApiFailure>> {
        Box::pin(async move {
            self.reach().await?;
            let mut state = self.state();
            let (to, from) = mpsc::unbounded_channel();
            // What happened between list and watch comes again: a state twice is none too many.
            for pod in &state.gone {
                let _ = to.send(Change::Gone(pod.clone()));
            }
            for (_, pod) in state.objects.iter().filter(|(path, _)| is_pod(path)) {
                let _ = to.send(Change::Set(pod.clone()));
            }
            state.watches.push(to);
            Ok(Box::new(Changes(from)) as Box<dyn Watch>)
        })
    }

    fn returns(&self) -> Returns {
        Returns::new(self.state().returns.subscribe())
    }
}
