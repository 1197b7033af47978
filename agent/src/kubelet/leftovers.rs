//! Ends and removes what is on the node and belongs to no pod.
//!
//! It takes as long as a shim that does not answer is waited for. `pods.rs` says what it is, and goes on meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::disk::remove_folder;
use super::host::Host;
use super::ports::Attempt;
use super::translate::log_dir;
use super::volume;
use crate::runtime::PodState;

/// What the containers of a pod that nobody knows get between signal and kill: how long they want is not known either. Source:
/// Kubernetes v1.36, `pkg/kubelet` `HandlePodCleanups` (a second) and `minimumGracePeriodInSeconds`.
const PARTING: Duration = Duration::from_secs(2);
/// How often it is looked whether they have ended.
const LOOK: Duration = Duration::from_millis(100);

/// What nobody wants.
pub struct Leftovers {
    /// Pods with a sandbox.
    pub pods: Vec<PodState>,
    /// Uids of pods with a folder of volumes.
    pub volumes: Vec<String>,
}

impl Leftovers {
    /// Of all that is to be removed.
    pub fn uids(&self) -> BTreeSet<String> {
        let pods = self.pods.iter().map(|state| &state.pod_uid);
        pods.chain(&self.volumes).cloned().collect()
    }

    /// Removes it. What cannot be removed stays, and is said.
    pub async fn remove(self, host: &Host) {
        part(host, &self.pods).await;
        // Beside each other: a shim that does not answer holds up no other pod's end.
        join_all(self.pods.iter().map(|state| remove(host, state))).await;
        for uid in &self.volumes {
            if let Err(error) = volume::tear_down(&host.settings.root, uid).await {
                tracing::warn!(uid, %error, "the folder of a pod that nobody wants stays");
            }
        }
    }
}

/// Asks what runs of these pods to end, all at once, and lets it; in all for [`PARTING`], also where a shim does not answer.
async fn part(host: &Host, pods: &[PodState]) {
    let runs = |state: &PodState| Attempt::all(state).iter().any(|it| it.running);
    let mut signals = Vec::new();
    for state in pods {
        let running = Attempt::all(state).into_iter().filter(|it| it.running);
        signals.extend(running.map(|it| tell(host, &state.pod_uid, it)));
    }
    if signals.is_empty() {
        return;
    }
    let parting: BTreeSet<&str> = pods.iter().map(|state| state.pod_uid.as_str()).collect();
    let run = |all: Vec<PodState>| {
        all.iter()
            .any(|state| parting.contains(state.pod_uid.as_str()) && runs(state))
    };
    let ended = async {
        join_all(signals).await;
        // What cannot be looked at may run still.
        while host.containers.pods().await.map_or(true, run) {
            sleep(LOOK).await;
        }
    };
    let _ = timeout(PARTING, ended).await;
}

async fn tell(host: &Host, uid: &str, it: Attempt) {
    let name = &it.container;
    if let Err(error) = host.containers.signal(uid, name, it.stop_signal).await {
        tracing::warn!(uid, container = name, %error, "a container that nobody wants is not told to end");
    }
}

async fn remove(host: &Host, state: &PodState) {
    let uid = &state.pod_uid;
    tracing::info!(
        pod = format!("{}/{}", state.namespace, state.name),
        uid,
        "removing a pod that nobody wants"
    );
    let logs = log_dir(&host.settings.logs, &state.namespace, &state.name, uid);
    let removed = host.containers.remove_sandbox(uid).await;
    let removed = removed.map_err(|error| error.to_string());
    let removed = removed.and(remove_folder(&logs).await.map_err(|error| error.to_string()));
    if let Err(error) = removed {
        tracing::warn!(uid, error, "a pod that nobody wants stays");
    }
}
