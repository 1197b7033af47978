//! Events: what a person reads under `kubectl describe`. Best effort: a full queue or an absent server loses some.
//!
//! Repeats become a count on the event that is there. [`Ledger`] decides and is pure. Sources: Kubernetes v1.36,
//! client-go `tools/record` (aggregation, spam filter), `pkg/kubelet/events` (reasons).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::clock;
use super::ports::{Api, ApiFailure};
use crate::wire::object;
use crate::wire::pod::{Container, Pod};
use crate::wire::time;

/// Events waiting to be written; more are dropped.
const QUEUE: usize = 256;
/// Events whose repeats are counted.
const REMEMBERED: usize = 256;
/// One object's events at once, and how often it earns another: client-go's spam filter.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);
/// Objects whose bursts are counted.
const SOURCES: usize = 256;

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// All is well.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// What an event is about.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct About {
    kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
    field: String,
}

impl About {
    /// A pod.
    pub fn pod(pod: &Pod) -> Self {
        Self {
            kind: "Pod",
            namespace: pod.meta.namespace.clone(),
            name: pod.meta.name.clone(),
            uid: pod.meta.uid.clone(),
            field: String::new(),
        }
    }

    /// A pod of which only its metadata can be read.
    pub fn unread_pod(object: &Value) -> Self {
        let own = |field: &str| object::text(object, &["metadata", field]).to_owned();
        Self {
            kind: "Pod",
            namespace: own("namespace"),
            name: own("name"),
            uid: own("uid"),
            field: String::new(),
        }
    }

    /// A container of a pod.
    pub fn container(pod: &Pod, container: &Container) -> Self {
        let init = pod.spec.init_containers.iter().any(|it| it.name == container.name);
        let list = if init { "initContainers" } else { "containers" };
        Self {
            field: format!("spec.{list}{{{}}}", container.name),
            ..Self::pod(pod)
        }
    }

    /// The node; its uid in events is its name, as kubelets have it.
    pub fn node(name: &str) -> Self {
        Self {
            kind: "Node",
            name: name.into(),
            uid: name.into(),
            ..Self::default()
        }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Happening {
    about: About,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// Takes events from anywhere in the kubelet.
#[derive(Clone, Debug)]
pub struct Recorder(mpsc::Sender<Happening>);

impl Recorder {
    /// Something normal happened.
    pub fn normal(&self, about: About, reason: &'static str, message: impl Into<String>) {
        self.record(about, Severity::Normal, reason, message.into());
    }

    /// Something went wrong.
    pub fn warning(&self, about: About, reason: &'static str, message: impl Into<String>) {
        self.record(about, Severity::Warning, reason, message.into());
    }

    fn record(&self, about: About, severity: Severity, reason: &'static str, message: String) {
        let happening = Happening {
            about,
            severity,
            reason,
            message,
        };
        if self.0.try_send(happening).is_err() {
            tracing::debug!(reason, "an event is lost: too many wait to be written");
        }
    }
}

/// A recorder, and the task that writes what it takes.
///
/// `component`: who says so, such as `kubelet`.
pub fn recorder(api: Arc<dyn Api>, component: &'static str, node_name: String) -> (Recorder, impl Future<Output = ()>) {
    let (to, mut from) = mpsc::channel(QUEUE);
    let writing = async move {
        let mut ledger = Ledger::new(component, node_name);
        while let Some(happening) = from.recv().await {
            let Some(write) = ledger.note(&happening, clock::now(), Timestamp::now()) else {
                continue;
            };
            if let Err(error) = send(api.as_ref(), &mut ledger, &happening, write).await {
                tracing::debug!(reason = happening.reason, %error, "an event is not written");
            }
        }
    };
    (Recorder(to), writing)
}

async fn send(api: &dyn Api, ledger: &mut Ledger, happening: &Happening, write: Write) -> Result<(), ApiFailure> {
    match write {
        Write::Create { path, body } => {
            let made = api.create(&path, &body).await;
            if made.is_err() {
                ledger.forget(happening);
            }
            made.map(|_| ())
        }
        Write::Count { path, body } => match api.patch(&path, &body).await {
            // It has expired: begin again.
            Err(error) if error.code() == 404 => {
                ledger.forget(happening);
                match ledger.note(happening, clock::now(), Timestamp::now()) {
                    Some(Write::Create { path, body }) => api.create(&path, &body).await.map(|_| ()),
                    _ => Ok(()),
                }
            }
            other => other.map(|_| ()),
        },
    }
}

/// What to send.
#[derive(Clone, Debug, PartialEq)]
enum Write {
    Create { path: String, body: Value },
    Count { path: String, body: Value },
}

/// Which events are there already, and who has written how many lately.
struct Ledger {
    component: &'static str,
    node_name: String,
    known: BTreeMap<Happening, (String, u64)>,
    order: VecDeque<Happening>,
    bursts: BTreeMap<About, (u32, Instant)>,
    serial: u32,
}

impl Ledger {
    fn new(component: &'static str, node_name: String) -> Self {
        Self {
            component,
            node_name,
            known: BTreeMap::new(),
            order: VecDeque::new(),
            bursts: BTreeMap::new(),
            serial: 0,
        }
    }

    fn note(&mut self, it: &Happening, now: Instant, wall: Timestamp) -> Option<Write> {
        if !self.may(&it.about, now) {
            return None;
        }
        let namespace = if it.about.namespace.is_empty() {
            "default"
        } else {
            &it.about.namespace
        };
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let stamp = time::seconds(wall);
        if let Some((name, count)) = self.known.get_mut(it) {
            *count += 1;
            return Some(Write::Count {
                path: format!("{path}/{name}"),
                body: json!({"count": *count, "lastTimestamp": stamp, "message": it.message}),
            });
        }
        self.serial = self.serial.wrapping_add(1);
        // Unique like client-go's (a time in hexadecimal), even when the clock stands still.
        let nanos = u64::try_from(wall.as_nanosecond()).unwrap_or(0);
        let name = format!("{}.{:x}", it.about.name, nanos.wrapping_add(u64::from(self.serial)));
        let body = self.object(it, namespace, &name, &stamp);
        self.remember(it, name);
        Some(Write::Create { path, body })
    }

    fn object(&self, it: &Happening, namespace: &str, name: &str, stamp: &str) -> Value {
        let mut involved = json!({
            "apiVersion": "v1",
            "kind": it.about.kind,
            "name": it.about.name,
            "uid": it.about.uid,
        });
        if !it.about.namespace.is_empty() {
            object::set(&mut involved, &["namespace"], it.about.namespace.as_str());
        }
        if !it.about.field.is_empty() {
            object::set(&mut involved, &["fieldPath"], it.about.field.as_str());
        }
        let severity = match it.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        };
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": involved,
            "reason": it.reason,
            "message": it.message,
            "source": {"component": self.component, "host": self.node_name},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
            "type": severity,
            "reportingComponent": self.component,
            "reportingInstance": self.node_name,
        })
    }

    fn remember(&mut self, it: &Happening, name: String) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(it.clone());
        self.known.insert(it.clone(), (name, 1));
    }

    fn forget(&mut self, it: &Happening) {
        self.known.remove(it);
        self.order.retain(|known| known != it);
    }

    fn may(&mut self, about: &About, now: Instant) -> bool {
        if self.bursts.len() >= SOURCES && !self.bursts.contains_key(about) {
            self.bursts.clear(); // forgetting who was loud is harmless now and then
        }
        let about = About {
            field: String::new(),
            ..about.clone()
        };
        let (left, since) = self.bursts.entry(about).or_insert((BURST, now));
        while *left < BURST && now.duration_since(*since) >= REFILL {
            *left += 1;
            *since += REFILL;
        }
        if *left == BURST {
            *since = now;
        }
        *left = match left.checked_sub(1) {
            Some(left) => left,
            None => return false,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happening(message: &str) -> Happening {
        let pod = Pod::of(&json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [{"name": "c"}]}}))
        .unwrap();
        Happening {
            about: About::container(&pod, &pod.spec.containers[0]),
            severity: Severity::Warning,
            reason: "BackOff",
            message: message.into(),
        }
    }

    #[test]
    fn a_repeat_becomes_a_count() {
        let (mut ledger, now) = (Ledger::new("kubelet", "pi".into()), Instant::now());
        let Some(Write::Create { path, body }) = ledger.note(&happening("x"), now, Timestamp::UNIX_EPOCH) else {
            panic!("the first one is made");
        };
        assert_eq!(path, "/api/v1/namespaces/ns/events");
        assert_eq!(
            body.pointer("/involvedObject/fieldPath"),
            Some(&json!("spec.containers{c}"))
        );
        let name = object::text(&body, &["metadata", "name"]).to_owned();
        let again = ledger.note(&happening("x"), now, Timestamp::UNIX_EPOCH).unwrap();
        let Write::Count { path, body } = again else {
            panic!("the second one counts")
        };
        assert_eq!(path, format!("/api/v1/namespaces/ns/events/{name}"));
        assert_eq!(object::integer(&body, &["count"]), Some(2));
        assert!(matches!(
            ledger.note(&happening("y"), now, Timestamp::UNIX_EPOCH),
            Some(Write::Create { .. })
        ));
    }

    #[test]
    fn a_loud_object_is_heard_only_now_and_then() {
        let (mut ledger, now) = (Ledger::new("kubelet", "pi".into()), Instant::now());
        let heard =
            |ledger: &mut Ledger, at: Instant| ledger.note(&happening("x"), at, Timestamp::UNIX_EPOCH).is_some();
        assert_eq!((0..100).filter(|_| heard(&mut ledger, now)).count(), 25);
        let later = now + Duration::from_secs(601);
        assert_eq!((0..100).filter(|_| heard(&mut ledger, later)).count(), 2);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ledger = Ledger::new("kubelet", "pi".into());
        for number in 0..2000u32 {
            let mut it = happening("x");
            it.about.uid = number.to_string();
            ledger.note(&it, Instant::now(), Timestamp::UNIX_EPOCH);
        }
        assert!(ledger.known.len() <= REMEMBERED && ledger.bursts.len() <= SOURCES);
        assert_eq!(ledger.known.len(), ledger.order.len());
    }
}
