//! Tells the API what became of pods: patches `status`, and deletes those that are gone from here.
//!
//! The newest status of a pod wins; the same one is not sent twice; a failure is retried with back-off, a pod at a
//! time. [`Book`] decides and is pure, [`Reporter::run`] sends.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use super::clock;
use super::ports::{Api, ApiFailure};
use crate::wire::object;
use crate::wire::pod::{Pod, PodStatus};

/// Patches on their way at once: as many as the client has connections for.
const PARALLEL: usize = 4;
/// The first report of a pod waits this long for a better one: most pods run by then, and one patch is enough.
const SETTLE: Duration = Duration::from_millis(100);
/// After a failure.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// A server that comes back should hear from us soon.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// The kubelet's mouth. One per kubelet.
#[derive(Debug, Default)]
pub struct Reporter {
    book: Mutex<Book>,
    wake: Notify,
}

impl Reporter {
    /// This is the pod's status now.
    pub fn report(&self, pod: &Pod, status: &PodStatus) {
        self.book().report(pod, status, clock::now());
        self.wake.notify_one();
    }

    /// Nothing of the pod is left here: once its last status is told, its object may go.
    pub fn finish(&self, pod: &Pod) {
        self.book().finish(pod, clock::now());
        self.wake.notify_one();
    }

    /// The object is gone: nothing more to tell.
    pub fn forget(&self, uid: &str) {
        self.book().pods.remove(uid);
    }

    /// Sends until it is dropped.
    pub async fn run(&self, api: &dyn Api) {
        let mut flying = FuturesUnordered::new();
        loop {
            let room = PARALLEL.saturating_sub(flying.len());
            let (calls, wake) = self.book().due(clock::now(), room);
            for (uid, call) in calls {
                flying.push(async move { (uid, send(api, &call).await) });
            }
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((uid, outcome)) = flying.next() => self.book().done(&uid, outcome, clock::now()),
                () = self.wake.notified() => {}
                () = sleep => {}
            }
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing panics while it is held.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a call ended, by what follows from it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// The server has it.
    Told,
    /// There is no such pod any more (or another of its name).
    Gone,
    /// Try again later.
    Failed,
}

async fn send(api: &dyn Api, call: &Call) -> Outcome {
    let result = match call {
        Call::Patch { path, body } => api.patch(path, body).await,
        Call::Delete { path, body } => api.delete(path, body).await,
    };
    match result {
        Ok(_) => Outcome::Told,
        Err(error) if is_gone(&error) => Outcome::Gone,
        Err(ApiFailure::Unreachable(error)) => {
            tracing::debug!(error, "a pod's status waits for a server");
            Outcome::Failed
        }
        Err(error) => {
            tracing::warn!(%error, "a pod's status is refused");
            Outcome::Failed
        }
    }
}

/// Whether there is no such pod, or another of its name. Other conflicts (a write that lost a race) are tried again.
fn is_gone(error: &ApiFailure) -> bool {
    match error {
        ApiFailure::Status(status) => {
            status.code == 404 || status.code == 409 && status.message.contains("UID in precondition")
        }
        ApiFailure::Unreachable(_) => false,
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Call {
    Patch { path: String, body: Value },
    Delete { path: String, body: Value },
}

/// All pods that have something to tell.
#[derive(Debug, Default)]
struct Book {
    pods: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    path: String,
    wanted: Value,
    /// What the server knows, as far as we know.
    told: Value,
    /// What is on its way.
    flying: Option<Value>,
    finish: bool,
    not_before: Option<Instant>,
    delay: Duration,
}

impl Book {
    fn entry(&mut self, pod: &Pod) -> &mut Entry {
        self.pods.entry(pod.meta.uid.clone()).or_insert_with(|| {
            let known = serde_json::to_value(&pod.status).unwrap_or_default();
            Entry {
                path: format!("/api/v1/namespaces/{}/pods/{}", pod.meta.namespace, pod.meta.name),
                wanted: known.clone(),
                told: known,
                flying: None,
                finish: false,
                not_before: None,
                delay: FIRST_DELAY,
            }
        })
    }

    fn report(&mut self, pod: &Pod, status: &PodStatus, now: Instant) {
        let fresh = !self.pods.contains_key(&pod.meta.uid);
        let entry = self.entry(pod);
        entry.wanted = serde_json::to_value(status).unwrap_or_default();
        let vague = status.phase == "Pending" && pod.meta.deletion_timestamp.is_none();
        match (fresh, vague, entry.not_before) {
            (true, true, _) => entry.not_before = Some(now + SETTLE),
            (false, false, Some(at)) if at <= now + SETTLE && entry.delay == FIRST_DELAY => entry.not_before = None,
            _ => {}
        }
    }

    fn finish(&mut self, pod: &Pod, now: Instant) {
        let entry = self.entry(pod);
        entry.finish = true;
        entry.not_before = entry.not_before.filter(|at| *at > now + SETTLE);
    }

    /// At most `room` calls to make now, and when to look again.
    fn due(&mut self, now: Instant, room: usize) -> (Vec<(String, Call)>, Option<Instant>) {
        let mut calls = Vec::new();
        let mut wake: Option<Instant> = None;
        for (uid, entry) in &mut self.pods {
            if entry.flying.is_some() || (entry.wanted == entry.told && !entry.finish) {
                continue;
            }
            match entry.not_before {
                Some(at) if at > now => wake = Some(wake.map_or(at, |known| known.min(at))),
                _ if calls.len() < room => {
                    entry.flying = Some(entry.wanted.clone());
                    calls.push((uid.clone(), entry.call(uid)));
                }
                _ => {} // the end of a call looks again
            }
        }
        (calls, wake)
    }

    fn done(&mut self, uid: &str, outcome: Outcome, now: Instant) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let sent = entry.flying.take().unwrap_or_default();
        match outcome {
            Outcome::Told if entry.finish && sent == entry.told => {
                self.pods.remove(uid);
            }
            Outcome::Told => {
                entry.told = sent;
                entry.not_before = None;
                entry.delay = FIRST_DELAY;
            }
            Outcome::Gone => {
                self.pods.remove(uid);
            }
            Outcome::Failed => {
                entry.not_before = Some(now + entry.delay);
                entry.delay = (entry.delay * 2).min(LONGEST_DELAY);
            }
        }
    }
}

impl Entry {
    fn call(&self, uid: &str) -> Call {
        if self.wanted == self.told {
            let body = json!({
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "gracePeriodSeconds": 0,
                "preconditions": {"uid": uid},
            });
            return Call::Delete {
                path: self.path.clone(),
                body,
            };
        }
        Call::Patch {
            path: format!("{}/status", self.path),
            body: json!({"metadata": {"uid": uid}, "status": difference(&self.told, &self.wanted)}),
        }
    }
}

/// A strategic merge patch from one status to another. Conditions merge by type, so those of others stay; addresses
/// merge by `ip`, so old ones are deleted by name; all other lists are replaced.
fn difference(old: &Value, new: &Value) -> Value {
    let empty = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new.iter().filter(|(key, value)| old.get(*key) != Some(*value)) {
        let value = match (key.as_str(), old.get(key)) {
            ("podIPs" | "hostIPs", Some(before)) => addresses(before, value),
            _ => value.clone(),
        };
        patch.insert(key.clone(), value);
    }
    Value::Object(patch)
}

fn addresses(old: &Value, new: &Value) -> Value {
    let (old, new) = (object::list(old, &[]), object::list(new, &[]));
    let gone = old.iter().filter(|it| !new.contains(it));
    let gone = gone.map(|it| json!({"$patch": "delete", "ip": object::text(it, &["ip"])}));
    Value::Array(gone.chain(new.iter().cloned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pod::{Condition, Ip};

    fn pod() -> Pod {
        Pod::of(&json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}})).unwrap()
    }

    fn status(phase: &str, ip: &str) -> PodStatus {
        PodStatus {
            phase: phase.into(),
            pod_ip: ip.into(),
            pod_ips: vec![Ip { ip: ip.into() }],
            conditions: vec![Condition::default()],
            ..PodStatus::default()
        }
    }

    fn one(book: &mut Book, now: Instant) -> Option<Call> {
        let (mut calls, _) = book.due(now, 4);
        assert!(calls.len() < 2);
        calls.pop().map(|(_, call)| call)
    }

    #[test]
    fn a_pod_that_runs_at_once_is_told_of_once() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.report(&pod(), &status("Pending", ""), now);
        assert_eq!(one(&mut book, now), None, "it may still settle");
        book.report(&pod(), &status("Running", "10.0.0.1"), now);
        let Some(Call::Patch { path, body }) = one(&mut book, now) else {
            panic!("it runs")
        };
        assert_eq!(path, "/api/v1/namespaces/ns/pods/web/status");
        assert_eq!(body.pointer("/status/phase"), Some(&json!("Running")));
        assert_eq!(body.pointer("/metadata/uid"), Some(&json!("u")));
        book.done("u", Outcome::Told, now);
        book.report(&pod(), &status("Running", "10.0.0.1"), now);
        assert_eq!(one(&mut book, now), None, "the same again is no news");
    }

    #[test]
    fn a_pod_that_stays_pending_is_told_of_after_a_moment() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.report(&pod(), &status("Pending", ""), now);
        let (_, wake) = book.due(now, 4);
        assert_eq!(wake, Some(now + SETTLE));
        assert!(one(&mut book, now + SETTLE).is_some());
    }

    #[test]
    fn what_changed_on_the_way_is_sent_after_it() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.report(&pod(), &status("Running", "10.0.0.1"), now);
        assert!(one(&mut book, now).is_some());
        book.report(&pod(), &status("Succeeded", "10.0.0.1"), now);
        assert_eq!(one(&mut book, now), None, "one at a time");
        book.done("u", Outcome::Told, now);
        let Some(Call::Patch { body, .. }) = one(&mut book, now) else {
            panic!("the news follows")
        };
        assert_eq!(body.get("status"), Some(&json!({"phase": "Succeeded"})));
    }

    #[test]
    fn failures_back_off_and_the_end_comes_after_the_last_report() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.report(&pod(), &status("Failed", ""), now);
        book.finish(&pod(), now);
        assert!(matches!(one(&mut book, now), Some(Call::Patch { .. })));
        book.done("u", Outcome::Failed, now);
        assert_eq!(one(&mut book, now), None);
        let later = now + FIRST_DELAY;
        assert!(matches!(one(&mut book, later), Some(Call::Patch { .. })));
        book.done("u", Outcome::Told, later);
        let Some(Call::Delete { path, body }) = one(&mut book, later) else {
            panic!("now it may go")
        };
        assert_eq!(path, "/api/v1/namespaces/ns/pods/web");
        assert_eq!(body.pointer("/preconditions/uid"), Some(&json!("u")));
        assert_eq!(body.pointer("/gracePeriodSeconds"), Some(&json!(0)));
        book.done("u", Outcome::Told, later);
        assert!(book.pods.is_empty());
    }

    #[test]
    fn only_another_uid_makes_a_conflict_the_end_of_a_pod() {
        use crate::wire::status::{Reason, Status};
        for (reason, message, gone) in [
            (Reason::NotFound, "pods \"web\" not found", true),
            (
                Reason::Conflict,
                "Precondition failed: UID in precondition: a, UID in object meta: b",
                true,
            ),
            (
                Reason::Conflict,
                "the object has been modified; please apply your changes to the latest version",
                false,
            ),
            (Reason::Forbidden, "no", false),
        ] {
            let error = ApiFailure::Status(Status::failure(reason, message));
            assert_eq!(is_gone(&error), gone, "{message}");
        }
        assert!(!is_gone(&ApiFailure::Unreachable("away".into())));
    }

    #[test]
    fn a_moved_pod_loses_its_old_address() {
        let old = serde_json::to_value(status("Running", "10.0.0.1")).unwrap();
        let new = serde_json::to_value(status("Running", "10.0.0.2")).unwrap();
        assert_eq!(
            difference(&old, &new),
            json!({"podIP": "10.0.0.2", "podIPs": [{"$patch": "delete", "ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]})
        );
        let mut reasonless = old.clone();
        object::set(&mut reasonless, &["reason"], "Evicted");
        assert_eq!(difference(&reasonless, &old), json!({"reason": null}));
    }
}
