//! An agent that loses every server, and the address it joined at, for longer than a node may be silent.
//!
//! It is one more than the others, so that other things can be done to the cluster meanwhile.

use std::thread::sleep;
use std::time::{Duration, Instant};

use tests::lab::{Kubectl, image, until, within_of};

use crate::cluster::{Cluster, FRONT};
use crate::outage::BACK;
use crate::steps::pod_starts;

/// Its host, and its node.
const NAME: &str = "island";
/// Its pod, which counts seconds.
const POD: &str = "counter";
/// So long nothing comes there, at least.
const LONG: Duration = Duration::from_secs(65);
/// A node may be silent for 50 s (`server/src/controllers/node.rs`), says something every 10 s, and a server that leads only since
/// then counts anew.
const LOST: Duration = Duration::from_secs(120);

/// Cut off.
pub struct Island {
    begun: Instant,
    /// What must not change: the pod's identity, container, restarts and start.
    pod: String,
    /// How far it had counted.
    count: usize,
}

impl Island {
    /// Starts the agent and a pod on it, and cuts it off.
    pub fn cut_off(cluster: &mut Cluster) -> Self {
        let server = cluster.servers[0];
        cluster.lab.add_host(NAME);
        let archive = cluster.archive.clone();
        cluster.lab.put_image(NAME, &archive);
        cluster.knows_the_front(NAME);
        cluster.start_agent(NAME);
        for name in &cluster.servers {
            until("its node is ready", || ready(cluster.at(name)) == "True");
        }
        let kubectl = cluster.at(server);
        let script = "i=0; while true; do i=$((i+1)); echo $i; sleep 1; done";
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD},
            "spec": {
                "nodeName": NAME, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": image::NAME, "command": ["sh", "-c", script]}],
            },
        });
        kubectl.feed(&["apply", "-f", "-"], &pod.to_string());
        kubectl.run(&["wait", "--for=condition=Ready", "pod/counter", "--timeout=60s"]);
        for name in &cluster.servers {
            until("its pod is reached through every server", || {
                count(cluster.at(name)).is_ok()
            });
        }
        let (pod, count) = (state(kubectl), count(kubectl).unwrap());
        let begun = Instant::now();
        for other in cluster.servers.iter().chain(&[FRONT]) {
            cluster.lab.part(NAME, other);
        }
        Self { begun, pod, count }
    }

    /// Its node has been found lost; it comes back, and nothing has happened to its pod.
    pub fn comes_back(self, cluster: &mut Cluster) {
        let mut lost = Duration::ZERO;
        for name in &cluster.servers {
            lost = within_of(LOST, self.begun, "its node is lost", || {
                ready(cluster.at(name)) == "Unknown"
            });
        }
        sleep(LONG.saturating_sub(self.begun.elapsed()));
        assert!(cluster.lab.runs(NAME), "its agent has ended");
        let kubectl = cluster.at(cluster.servers[0]);
        assert_eq!(state(kubectl), self.pod, "it was taken from its node");
        let healed = Instant::now();
        for other in cluster.servers.iter().chain(&[FRONT]) {
            cluster.lab.reunite(NAME, other);
        }
        let mut back = Duration::ZERO;
        for name in &cluster.servers {
            back = within_of(BACK, healed, "its node is ready", || ready(cluster.at(name)) == "True");
        }
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let pod_ready = within_of(BACK, healed, "its pod is ready", || {
            kubectl
                .try_run(&["get", "pod", POD, "-o", path])
                .is_ok_and(|said| said == "True")
        });
        let worked = pod_starts(BACK, healed, kubectl, &[NAME], "found");
        // Its tunnels come when their own attempts do.
        for name in &cluster.servers {
            until("it is reached through every server", || count(cluster.at(name)).is_ok());
        }
        let reached = healed.elapsed();
        assert_eq!(state(kubectl), self.pod, "it was not left alone");
        let (counted, gone) = (count(kubectl).unwrap() - self.count, self.begun.elapsed().as_secs_f64());
        // A line takes a second and, on a busy machine, somewhat more.
        assert!(counted as f64 > gone * 0.7, "it counted to {counted} in {gone} s");
        kubectl.run(&["delete", "pod", POD, "--wait=false"]);
        eprintln!(
            "cut off from all: lost after {lost:?}; healed, node ready after {back:?}, its pod {pod_ready:?}, worked after \
             {worked:?}, reached through every server after {reached:?}; {counted} lines in {gone:.0} s"
        );
    }
}

/// Whether its node is ready.
fn ready(kubectl: &Kubectl) -> String {
    let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    kubectl.try_run(&["get", "node", NAME, "-o", path]).unwrap_or_default()
}

fn state(kubectl: &Kubectl) -> String {
    let path = "jsonpath={.metadata.uid} {.spec.nodeName} {.status.phase} {.status.containerStatuses[0].containerID} \
                {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running.startedAt}";
    kubectl.run(&["get", "pod", POD, "-o", path])
}

/// How far the pod has counted, by its log, which holds every number once.
fn count(kubectl: &Kubectl) -> Result<usize, String> {
    let log = kubectl.try_run(&["logs", POD])?;
    let numbers: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len()), "{numbers:?}");
    Ok(numbers.len())
}
