//! Which pods this node has and how they are, for whoever asks from outside: the HTTPS port.
//!
//! `pods.rs` enters and strikes out, workers add what they report; readers get copies. It decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::wire::pod::{Pod, PodStatus};

/// All pods of the node.
#[derive(Debug, Default)]
pub struct Roll(Mutex<BTreeMap<String, Known>>);

/// A pod of this node.
#[derive(Clone, Debug)]
pub struct Known {
    /// As the API last had it.
    pub pod: Arc<Pod>,
    /// As its worker last saw it; before its first look what the API had.
    pub status: PodStatus,
}

impl Roll {
    /// Enters a pod, or what is new about it.
    pub fn enter(&self, pod: &Arc<Pod>) {
        let mut all = self.lock();
        match all.get_mut(&pod.meta.uid) {
            Some(known) => known.pod = pod.clone(),
            None => {
                let (pod, status) = (pod.clone(), pod.status.clone());
                all.insert(pod.meta.uid.clone(), Known { pod, status });
            }
        }
    }

    /// A worker has seen how its pod is.
    pub fn report(&self, uid: &str, status: &PodStatus) {
        if let Some(known) = self.lock().get_mut(uid) {
            known.status = status.clone();
        }
    }

    /// Nothing is left of it here.
    pub fn strike(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// The pod of this name. Of two (the old one still stops) it is the one that stays.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Known> {
        let all = self.lock();
        let named = all
            .values()
            .filter(|known| known.pod.meta.name == name && known.pod.meta.namespace == namespace);
        named
            .min_by_key(|known| known.pod.meta.deletion_timestamp.is_some())
            .cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Known> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, deleted: bool) -> Arc<Pod> {
        let mut object = json!({"metadata": {"name": "web", "namespace": "ns", "uid": uid}});
        if deleted {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        Arc::new(Pod::of(&object).unwrap())
    }

    #[test]
    fn of_two_pods_of_a_name_the_one_that_stays_is_meant() {
        let roll = Roll::default();
        for (uid, deleted) in [("a", true), ("b", false)] {
            roll.enter(&pod(uid, deleted));
        }
        assert_eq!(roll.find("ns", "web").unwrap().pod.meta.uid, "b");
        roll.strike("b");
        assert_eq!(roll.find("ns", "web").unwrap().pod.meta.uid, "a");
        assert!(roll.find("other", "web").is_none());
    }

    #[test]
    fn a_status_outlives_news_of_the_pod() {
        let roll = Roll::default();
        roll.enter(&pod("a", false));
        let running = PodStatus {
            phase: "Running".into(),
            ..PodStatus::default()
        };
        roll.report("a", &running);
        roll.report("unknown", &running);
        roll.enter(&pod("a", true));
        let known = roll.all();
        assert_eq!((known.len(), known[0].status.phase.as_str()), (1, "Running"));
    }
}
