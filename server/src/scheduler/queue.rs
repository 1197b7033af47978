//! Which pod is next: by priority, then by age. Pods that found no node wait until something changes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::wish::Wish;

/// After a failure. Source: Kubernetes v1.36 `podInitialBackoffSeconds`, `podMaxBackoffSeconds`.
const FASTEST: Duration = Duration::from_secs(1);
const SLOWEST: Duration = Duration::from_secs(10);
/// A pod that waits for a change looks again after so long anyway. Source: half of v1.36's 5 min would do; K3s' users
/// expect a minute.
const PATIENCE: Duration = Duration::from_secs(60);

type Turn = (Reverse<i64>, String, String);

/// Pods without a node, by uid.
#[derive(Default)]
pub struct Queue {
    ready: BTreeMap<Turn, Wish>,
    turns: HashMap<String, Turn>,
    /// Those that found no node, and until when they wait for a change.
    waiting: HashMap<String, (Wish, Instant)>,
    failures: HashMap<String, u32>,
}

impl Queue {
    /// A pod needs a node: it is new or has changed.
    pub fn push(&mut self, wish: Wish) {
        let uid = wish.meta.uid.clone();
        self.take_out(&uid);
        let created = wish.meta.creation_timestamp.clone().unwrap_or_default();
        let turn = (Reverse(wish.priority), created, uid.clone());
        self.turns.insert(uid, turn.clone());
        self.ready.insert(turn, wish);
    }

    /// Whether the pod waits already, with the same needs.
    ///
    /// Source: Kubernetes v1.36 `pkg/scheduler/backend/queue/scheduling_queue.go`, `isPodUpdated`.
    pub fn waits_with(&self, wish: &Wish) -> bool {
        self.waiting
            .get(&wish.meta.uid)
            .is_some_and(|(waiting, _)| waiting.needs_what(wish))
    }

    /// A pod needs no node any more.
    pub fn remove(&mut self, uid: &str) {
        self.take_out(uid);
        self.failures.remove(uid);
    }

    /// Whose turn it is.
    pub fn next(&mut self) -> Option<Wish> {
        let (_, wish) = self.ready.pop_first()?;
        self.turns.remove(&wish.meta.uid);
        Some(wish)
    }

    /// It found no node: it waits for a change.
    pub fn found_none(&mut self, wish: Wish, now: Instant) {
        self.waiting.insert(wish.meta.uid.clone(), (wish, now + PATIENCE));
    }

    /// Its binding failed: it waits a little, longer each time.
    pub fn failed(&mut self, wish: Wish, now: Instant) {
        let failures = self.failures.entry(wish.meta.uid.clone()).or_default();
        let delay = FASTEST
            .saturating_mul(2_u32.saturating_pow((*failures).min(8)))
            .min(SLOWEST);
        *failures = failures.saturating_add(1);
        self.waiting.insert(wish.meta.uid.clone(), (wish, now + delay));
    }

    /// Room may have come: everybody who found none looks again.
    pub fn stir(&mut self) {
        let waiting: Vec<Wish> = self.waiting.drain().map(|(_, (wish, _))| wish).collect();
        waiting.into_iter().for_each(|wish| self.push(wish));
    }

    /// Those who waited long enough look again.
    pub fn wake(&mut self, now: Instant) {
        let due: Vec<String> = self
            .waiting
            .iter()
            .filter(|(_, (_, until))| *until <= now)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in due {
            if let Some((wish, _)) = self.waiting.remove(&uid) {
                self.push(wish);
            }
        }
    }

    /// When the next of them is due.
    pub fn next_wake(&self) -> Option<Instant> {
        self.waiting.values().map(|(_, until)| *until).min()
    }

    fn take_out(&mut self, uid: &str) {
        self.waiting.remove(uid);
        if let Some(turn) = self.turns.remove(uid) {
            self.ready.remove(&turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, priority: i64, created: &str) -> Wish {
        Wish::of(&json!({"metadata": {"uid": uid, "creationTimestamp": created}, "spec": {"priority": priority}}))
    }

    #[test]
    fn important_pods_go_first_then_old_ones_and_each_once() {
        let mut queue = Queue::default();
        queue.push(pod("young", 0, "2026-11-25T12:00:02Z"));
        queue.push(pod("old", 0, "2026-11-25T12:00:01Z"));
        queue.push(pod("important", 9, "2026-11-25T12:00:03Z"));
        queue.push(pod("old", 0, "2026-11-25T12:00:01Z"));
        let order: Vec<String> = std::iter::from_fn(|| queue.next()).map(|wish| wish.meta.uid).collect();
        assert_eq!(order, ["important", "old", "young"]);
    }

    #[test]
    fn a_pod_that_found_none_looks_again_on_a_change_or_in_time() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.found_none(pod("a", 0, ""), now);
        queue.wake(now);
        assert!(queue.next().is_none());
        queue.stir();
        let again = queue.next().unwrap();
        queue.found_none(again, now);
        queue.wake(now + PATIENCE);
        assert!(queue.next().is_some());
    }

    #[test]
    fn only_other_needs_make_a_waiting_pod_look_again() {
        let mut queue = Queue::default();
        let pod = |changed: fn(&mut serde_json::Value)| {
            let mut pod = json!({"metadata": {"uid": "a", "resourceVersion": "1"}, "spec": {"containers": [{}]}});
            changed(&mut pod);
            Wish::of(&pod)
        };
        assert!(!queue.waits_with(&pod(|_| {})));
        queue.found_none(pod(|_| {}), Instant::now());
        assert!(queue.waits_with(&pod(|pod| {
            pod["metadata"]["resourceVersion"] = json!("2");
            pod["status"] = json!({"conditions": [{"type": "PodScheduled", "status": "False"}]});
        })));
        let tolerates = |pod: &mut serde_json::Value| pod["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
        assert!(!queue.waits_with(&pod(tolerates)));
        queue.push(pod(|_| {}));
        assert!(!queue.waits_with(&pod(|_| {})), "it is in the queue");
    }

    #[test]
    fn failures_wait_longer_each_time() {
        let mut queue = Queue::default();
        let now = Instant::now();
        for seconds in [1, 2, 4, 8, 10, 10] {
            queue.failed(pod("a", 0, ""), now);
            assert_eq!(queue.next_wake(), Some(now + Duration::from_secs(seconds)));
        }
    }
}
