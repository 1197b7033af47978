//! Tells the API what became of pods: patches `status`, and deletes those that are gone from here.
//!
//! The newest status of a pod wins; the same one is not sent twice; a failure is retried with back-off, a pod at a
//! time. What others write over it is put right (Kubernetes v1.36, `pkg/kubelet/status` `needsReconcile`).
//! [`Book`] decides and is pure, `difference.rs` says what to send, [`Reporter::run`] sends.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::clock;
use super::difference::{difference, holds};
use super::ports::{Api, ApiFailure};
use crate::units::Revision;
use crate::wire::object::{Meta, text};
use crate::wire::pod::{Pod, PodStatus};

/// Patches on their way at once: as many as the client has connections for.
const PARALLEL: usize = 4;
/// The first report of a pod waits this long for a better one: most pods run by then, and one patch is enough.
const SETTLE: Duration = Duration::from_millis(100);
/// After a failure.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// A server that comes back should hear from us soon.
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Between two corrections of a pod that somebody writes over again and again; doubles up to [`LONGEST_TRUCE`], so that two who
/// disagree wear no disk out. Source of the 10 s: Kubernetes v1.36, `pkg/kubelet/status` `syncPeriod`.
const TRUCE: Duration = Duration::from_secs(10);
const LONGEST_TRUCE: Duration = Duration::from_secs(300);

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

    /// The API has the pod so. If our part of its status is not as we told it, it is told again.
    pub fn heard(&self, pod: &Pod) {
        if self.book().heard(pod, clock::now()) {
            self.wake.notify_one();
        }
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
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// The server has it, and the pod is so now (unless the answer cannot be read).
    Told(Option<Heard>),
    /// There is no such pod any more (or another of its name).
    Gone,
    /// Try again later.
    Failed,
}

/// A state of a pod in the API.
#[derive(Clone, Debug, PartialEq)]
struct Heard {
    /// Orders the states of an object.
    version: Revision,
    status: Value,
}

impl Heard {
    fn new(meta: &Meta, status: &PodStatus) -> Option<Self> {
        Some(Self {
            version: Revision::parse(&meta.resource_version)?,
            status: serde_json::to_value(status).ok()?,
        })
    }

    fn of(object: &Value) -> Option<Self> {
        let status = PodStatus::deserialize(object.get("status")?).ok()?;
        Self::new(&Meta::of(object), &status)
    }
}

async fn send(api: &dyn Api, call: &Call) -> Outcome {
    let result = match call {
        Call::Patch { path, body } => api.patch(path, body).await,
        Call::Delete { path, body } => api.delete(path, body).await,
    };
    match result {
        Ok(object) => Outcome::Told(Heard::of(&object)),
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
    /// The version of the pod in which it knew that.
    version: Revision,
    /// A newer state that came while a call was on its way: only its answer shows which of the two is newer.
    heard: Option<Heard>,
    /// What is on its way.
    flying: Option<Flying>,
    /// When a correction was last sent (or will be), and how long after that the next one may be.
    corrected: Option<(Instant, Duration)>,
    /// The correction waits until then.
    truce: Option<Instant>,
    finish: bool,
    not_before: Option<Instant>,
    delay: Duration,
}

#[derive(Clone, Debug, PartialEq)]
enum Flying {
    Status(Value),
    End,
}

impl Book {
    fn entry(&mut self, pod: &Pod) -> &mut Entry {
        self.pods.entry(pod.meta.uid.clone()).or_insert_with(|| {
            let known = serde_json::to_value(&pod.status).unwrap_or_default();
            Entry {
                path: format!("/api/v1/namespaces/{}/pods/{}", pod.meta.namespace, pod.meta.name),
                wanted: known.clone(),
                told: known,
                version: Revision::parse(&pod.meta.resource_version).unwrap_or_default(),
                heard: None,
                flying: None,
                corrected: None,
                truce: None,
                finish: false,
                not_before: None,
                delay: FIRST_DELAY,
            }
        })
    }

    fn report(&mut self, pod: &Pod, status: &PodStatus, now: Instant) {
        let fresh = !self.pods.contains_key(&pod.meta.uid);
        let entry = self.entry(pod);
        let wanted = serde_json::to_value(status).unwrap_or_default();
        if wanted != entry.wanted {
            entry.truce = None; // news are not held up
        }
        entry.wanted = wanted;
        let vague = status.phase == "Pending" && pod.meta.deletion_timestamp.is_none();
        match (fresh, vague, entry.not_before) {
            (true, true, _) => entry.not_before = Some(now + SETTLE),
            (false, false, Some(at)) if at <= now + SETTLE && entry.delay == FIRST_DELAY => entry.not_before = None,
            _ => {}
        }
    }

    /// Whether there may be something to do now.
    fn heard(&mut self, pod: &Pod, now: Instant) -> bool {
        let Some(entry) = self.pods.get_mut(&pod.meta.uid) else {
            return false;
        };
        let known = entry.heard.as_ref().map_or(entry.version, |it| it.version);
        // Most of what comes is what we have sent ourselves.
        match Heard::new(&pod.meta, &pod.status).filter(|it| it.version > known) {
            Some(news) => entry.heard = Some(news),
            None => return false,
        }
        entry.weigh(now);
        true
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
            if entry.flying.is_some() || (entry.is_told() && !entry.finish) {
                continue;
            }
            match entry.not_before.max(entry.truce.filter(|_| !entry.finish)) {
                Some(at) if at > now => wake = Some(wake.map_or(at, |known| known.min(at))),
                _ if calls.len() < room => {
                    let (flying, call) = entry.call(uid);
                    entry.flying = Some(flying);
                    calls.push((uid.clone(), call));
                }
                _ => {} // the end of a call looks again
            }
        }
        (calls, wake)
    }

    fn done(&mut self, uid: &str, outcome: Outcome, now: Instant) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        match (outcome, entry.flying.take()) {
            (Outcome::Gone, _) | (Outcome::Told(_), Some(Flying::End)) => {
                self.pods.remove(uid);
            }
            (Outcome::Told(answer), sent) => {
                if let Some(Flying::Status(sent)) = sent {
                    entry.told = sent;
                }
                entry.not_before = None;
                entry.delay = FIRST_DELAY;
                let newest = |it: &Heard| it.version;
                entry.heard = entry.heard.take().into_iter().chain(answer).max_by_key(newest);
                entry.weigh(now);
            }
            (Outcome::Failed, _) => {
                entry.not_before = Some(now + entry.delay);
                entry.delay = (entry.delay * 2).min(LONGEST_DELAY);
                entry.weigh(now);
            }
        }
    }
}

impl Entry {
    /// Whether there is nothing to say: also to a pod that somebody has declared over, until its worker has taken note.
    fn is_told(&self) -> bool {
        let over = |status: &Value| matches!(text(status, &["phase"]), "Succeeded" | "Failed");
        holds(&self.told, &self.wanted) || (over(&self.told) && !over(&self.wanted))
    }

    /// Takes over what was heard. If we had nothing more to say, others have changed our part: it is put right, at once the
    /// first time.
    fn weigh(&mut self, now: Instant) {
        if self.flying.is_some() {
            return;
        }
        let Some(heard) = self.heard.take().filter(|it| it.version > self.version) else {
            return;
        };
        let silent = self.is_told();
        self.version = heard.version;
        self.told = heard.status;
        if silent && !self.is_told() {
            let (at, truce) = match self.corrected {
                Some((last, truce)) if now < last + truce * 2 => {
                    (now.max(last + truce), (truce * 2).min(LONGEST_TRUCE))
                }
                _ => (now, TRUCE),
            };
            self.corrected = Some((at, truce));
            self.truce = Some(at);
        }
    }

    fn call(&self, uid: &str) -> (Flying, Call) {
        if self.is_told() {
            let body = json!({
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "gracePeriodSeconds": 0,
                "preconditions": {"uid": uid},
            });
            let path = self.path.clone();
            return (Flying::End, Call::Delete { path, body });
        }
        let call = Call::Patch {
            path: format!("{}/status", self.path),
            body: json!({"metadata": {"uid": uid}, "status": difference(&self.told, &self.wanted)}),
        };
        (Flying::Status(self.wanted.clone()), call)
    }
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
        book.done("u", Outcome::Told(None), now);
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
        book.done("u", Outcome::Told(None), now);
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
        book.done("u", Outcome::Told(None), later);
        let Some(Call::Delete { path, body }) = one(&mut book, later) else {
            panic!("now it may go")
        };
        assert_eq!(path, "/api/v1/namespaces/ns/pods/web");
        assert_eq!(body.pointer("/preconditions/uid"), Some(&json!("u")));
        assert_eq!(body.pointer("/gracePeriodSeconds"), Some(&json!(0)));
        book.done("u", Outcome::Told(None), later);
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

    fn ready(says: &str) -> PodStatus {
        let mut all = status("Running", "10.0.0.1");
        all.conditions = vec![Condition {
            kind: "Ready".into(),
            status: says.into(),
            ..Condition::default()
        }];
        all
    }

    fn at(version: u64, status: &PodStatus) -> Pod {
        let mut pod = pod();
        pod.meta.resource_version = version.to_string();
        pod.status = status.clone();
        pod
    }

    fn answer(version: u64, status: &PodStatus) -> Outcome {
        let pod = at(version, status);
        Outcome::Told(Heard::new(&pod.meta, &pod.status))
    }

    #[test]
    fn what_others_write_over_a_status_is_put_right_ever_more_seldom() {
        let (mut book, mut now) = (Book::default(), Instant::now());
        book.report(&at(1, &status("", "")), &ready("True"), now);
        assert!(one(&mut book, now).is_some());
        book.done("u", answer(2, &ready("True")), now);
        assert!(!book.heard(&at(2, &ready("True")), now), "our own words come back");
        let mut version = 2;
        for wait in [0, 10, 20, 40, 80, 160, 300, 300] {
            assert!(book.heard(&at(version + 1, &ready("False")), now));
            let due = now + Duration::from_secs(wait);
            if wait > 0 {
                assert_eq!(book.due(now, 4), (vec![], Some(due)));
            }
            let call = one(&mut book, due);
            assert!(matches!(call, Some(Call::Patch { .. })), "after {wait} s");
            book.done("u", answer(version + 2, &ready("True")), due);
            (now, version) = (due, version + 2);
        }
        let much_later = now + LONGEST_TRUCE * 3;
        assert!(book.heard(&at(version + 1, &ready("False")), much_later));
        assert!(one(&mut book, much_later).is_some(), "peace makes it quick again");
    }

    #[test]
    fn what_others_write_while_a_call_is_on_its_way_is_put_right_after_it() {
        for (heard, answered) in [(3, 2), (2, 3)] {
            let (mut book, now) = (Book::default(), Instant::now());
            book.report(&at(1, &status("", "")), &ready("True"), now);
            assert!(one(&mut book, now).is_some());
            book.heard(&at(heard, &ready("False")), now);
            assert_eq!(one(&mut book, now), None, "one at a time");
            // The newer of the two counts: a change that our call has undone needs no other.
            book.done("u", answer(answered, &ready("True")), now);
            assert_eq!(one(&mut book, now).is_some(), heard > answered);
        }
    }

    #[test]
    fn an_answer_tells_of_changes_in_what_was_not_sent() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.report(&at(1, &ready("True")), &ready("True"), now);
        let mut moved = ready("True");
        moved.pod_ip = "10.0.0.9".into();
        book.report(&at(1, &ready("True")), &moved, now);
        assert!(one(&mut book, now).is_some());
        let mut meanwhile = ready("False");
        meanwhile.pod_ip = "10.0.0.9".into();
        book.done("u", answer(3, &meanwhile), now);
        let Some(Call::Patch { body, .. }) = one(&mut book, now) else {
            panic!("it is not as we want it")
        };
        assert_eq!(body.pointer("/status/conditions/0/status"), Some(&json!("True")));
    }
}
