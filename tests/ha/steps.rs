//! What is done to a cluster, and what must hold then.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use tests::lab::{Kubectl, allowed, image, tell_if_late, until, within_of};

use crate::cluster::{AGENTS, Cluster, FRONT, now};
use crate::load::Load;
use crate::outage::HEALED;
use crate::takeover::{HANDOVER, takes_place, takes_place_within};

/// Until agents work through another server, or again: from the instant in which something broke or healed.
pub const MOVE: Duration = Duration::from_secs(10);
/// Pods for every node.
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: main
        image: IMAGE
        command: ["sleep", "100000"]
"#;

/// Servers started at once on an empty datastore are one cluster, and all have the load balancer's name (`--tls-san`).
pub fn they_are_one_cluster(cluster: &Cluster) {
    let ca = |name: &str| fs::read(cluster.lab.file(name, "lib/k3s/server/tls/server-ca.crt")).unwrap();
    let first = cluster.servers[0];
    for name in &cluster.servers {
        assert!(ca(name) == ca(first), "{name} has another authority than {first}");
        until("all servers are in the endpoints", || {
            cluster.endpoints(name) == cluster.servers
        });
    }
    for agent in AGENTS {
        let list = cluster
            .lab
            .file(agent, "lib/k3s/agent/etc/k3s-agent-load-balancer.json");
        until("an agent knows all servers", || {
            let known = fs::read_to_string(&list).unwrap_or_default();
            let knows = |name: &&str| known.contains(&format!("\"{}:6443\"", cluster.lab.address(name)));
            cluster.servers.iter().all(knows)
        });
    }
    // In turn.
    let front = cluster.at_the_front();
    for _ in &cluster.servers {
        front.run(&["get", "--raw", "/readyz"]);
    }
    for writer in &cluster.servers {
        let name = format!("by-{writer}");
        cluster
            .at(writer)
            .run(&["create", "configmap", &name, "--from-literal=a=b"]);
        for reader in &cluster.servers {
            let read = cluster
                .at(reader)
                .run(&["get", "configmap", &name, "-o", "jsonpath={.data.a}"]);
            assert_eq!(read, "b", "written at {writer}, read at {reader}");
        }
    }
}

/// A Deployment runs on all nodes.
pub fn a_deployment_runs(cluster: &Cluster) {
    let kubectl = cluster.at(cluster.servers[1]);
    kubectl.feed(&["apply", "-f", "-"], &WEB.replace("IMAGE", image::NAME));
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=120s"]);
    let pods = cluster.pods(cluster.servers[0]);
    assert_eq!(pods.len(), 4, "{pods:?}");
    for node in AGENTS {
        assert!(pods.iter().any(|pod| pod.contains(&format!(" {node} "))), "{pods:?}");
    }
}

/// A watch begun at one server goes on at another, from the revision it has come to.
pub fn a_watch_goes_on_at_another_server(cluster: &Cluster) {
    let (here, there) = (&cluster.doors[0], &cluster.doors[1]);
    now(async {
        let from = here.revision().await.unwrap();
        let mut watch = here.watch(from).await.unwrap();
        let first = there.create("watched", 1).await.unwrap();
        let seen = watch.next().await.unwrap().unwrap();
        let last = crate::door::revision(&seen.object).unwrap();
        assert_eq!(Some(last), crate::door::revision(&first.body));
        drop(watch);
        let second = here.update("watched", 2, last).await.unwrap();
        let third = there.delete("watched").await.unwrap();
        assert_eq!((second.code, third.code), (200, 200));
        let mut watch = there.watch(last).await.unwrap();
        let (second, third) = (watch.next().await.unwrap(), watch.next().await.unwrap());
        let values = [second.unwrap(), third.unwrap()].map(|event| (event.kind, crate::door::value(&event.object)));
        assert_eq!(
            values,
            [
                (agent::api::WatchKind::Modified, Some(2)),
                (agent::api::WatchKind::Deleted, Some(2))
            ]
        );
    });
}

/// The leader is killed under load: nothing acknowledged is lost, agents go on, another one leads, and it comes back.
pub fn the_leader_is_killed(cluster: &mut Cluster) {
    until("somebody leads", || cluster.leader(cluster.servers[0]).is_some());
    let dead = cluster.leader(cluster.servers[0]).unwrap();
    let others = cluster.others(dead);
    let before = cluster.pods(others[0]);
    let load = Load::start(&cluster.doors, "killed");
    let begun = Instant::now();
    cluster.lab.end(dead, true);
    let (worked, taken) = thread::scope(|scope| {
        let taken = scope.spawn(|| takes_place(cluster, dead, begun));
        let writing = scope.spawn(|| load.goes_on(MOVE));
        let worked = agents_work_within(MOVE, begun, cluster, others[0], "after-the-kill");
        writing.join().unwrap();
        (worked, taken.join().unwrap())
    });
    // The node of a server that ran one is away with it; nobody else is.
    let away = usize::from(dead == cluster.servers[0]);
    assert!(cluster.ready_nodes(others[0]) >= 1 + AGENTS.len() - away);
    assert_eq!(cluster.pods(others[0]), before);
    let back = comes_back(cluster, dead, others[0]);
    load.goes_on(MOVE);
    let verdict = load.end();
    assert!(
        verdict.doubts > 0,
        "nothing was on its way when it was killed: {verdict}"
    );
    assert_eq!(cluster.pods(dead), before);
    eprintln!("killed leader: agents worked after {worked:?}, {taken}; {back}: {verdict}");
}

/// Starts a server again, which another one and its own node must show in time.
fn comes_back(cluster: &mut Cluster, gone: &str, other: &str) -> String {
    let begun = Instant::now();
    cluster.start_server(gone);
    let listed = within_of(MOVE, begun, "the server is back", || {
        cluster.endpoints(other) == cluster.servers
    });
    let ready = within_of(MOVE, begun, "its node is ready", || {
        cluster.ready_nodes(gone) == 1 + AGENTS.len()
    });
    format!("started again, in the endpoints after {listed:?}, all nodes ready after {ready:?}")
}

/// The leader is stopped under load, and hands over: another one leads at once, nothing is lost, agents work on and their nodes
/// stay ready, and it comes back.
pub fn the_leader_is_stopped(cluster: &mut Cluster) {
    until("somebody leads", || cluster.leader(cluster.servers[0]).is_some());
    let gone = cluster.leader(cluster.servers[0]).unwrap();
    let others = cluster.others(gone);
    let before = cluster.pods(others[0]);
    let load = Load::start(&cluster.doors, "stopped");
    let begun = Instant::now();
    cluster.lab.ask_to_end(gone);
    let (taken, worked, ended) = thread::scope(|scope| {
        let taken = scope.spawn(|| takes_place_within(HANDOVER, cluster, gone, begun));
        let writing = scope.spawn(|| load.goes_on(MOVE));
        let ending = scope.spawn(|| within_of(MOVE, begun, "it has ended", || !cluster.lab.runs(gone)));
        let working = scope.spawn(|| agents_work_within(MOVE, begun, cluster, others[0], "after-the-stop"));
        while begun.elapsed() < MOVE || !working.is_finished() {
            let ready = cluster.ready_agents(others[0]);
            assert_eq!(ready, AGENTS.len(), "after {:?} an agent is not ready", begun.elapsed());
            thread::sleep(Duration::from_millis(100));
        }
        writing.join().unwrap();
        (taken.join().unwrap(), working.join().unwrap(), ending.join().unwrap())
    });
    cluster.lab.see_end(gone);
    assert_eq!(cluster.pods(others[0]), before);
    let back = comes_back(cluster, gone, others[0]);
    load.goes_on(MOVE);
    let verdict = load.end();
    assert_eq!(cluster.pods(gone), before);
    eprintln!("stopped leader: it ended after {ended:?}, {taken}, agents worked after {worked:?}; {back}: {verdict}");
}

/// Every agent starts a pod that it is given through a server, and its status is seen there. Returns how long that took.
pub fn agents_work(cluster: &Cluster, server: &str, name: &str) -> Duration {
    agents_work_within(MOVE, Instant::now(), cluster, server, name)
}

/// The same, within another limit, which counts from `begun` on; so does what is returned.
pub fn agents_work_within(limit: Duration, begun: Instant, cluster: &Cluster, server: &str, name: &str) -> Duration {
    pod_starts(limit, begun, cluster.at(server), &AGENTS, name)
}

/// A pod starts on each of these nodes, and its status is seen.
pub fn pod_starts(limit: Duration, begun: Instant, kubectl: &Kubectl, nodes: &[&str], name: &str) -> Duration {
    let pods = nodes.iter().map(|node| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("{name}-{node}")},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": image::NAME, "command": ["sleep", "10000"]}],
            },
        })
    });
    let pods = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": pods.collect::<Vec<_>>()});
    // Right after a fault its answer may be to come again.
    within_of(limit, begun, "pods are taken", || {
        kubectl.try_feed(&["apply", "-f", "-"], &pods.to_string()).is_ok()
    });
    let names: Vec<String> = nodes.iter().map(|node| format!("pod/{name}-{node}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let left = allowed(limit).saturating_sub(begun.elapsed());
    let timeout = format!("--timeout={}ms", left.as_millis().max(1));
    kubectl.run(&[&["wait", "--for=condition=Ready", &timeout][..], &names].concat());
    let took = begun.elapsed();
    tell_if_late(limit, took, &format!("pods run: {name}"));
    kubectl.run(&[&["delete", "--wait=false"][..], &names].concat());
    took
}

/// Without the fixed registration address nothing stops, and an agent that starts anew finds the servers it knows, also when
/// one of them has gone meanwhile.
pub fn the_load_balancer_is_taken_away(cluster: &mut Cluster) {
    let (server, other) = (cluster.servers[0], cluster.servers[1]);
    let before = cluster.pods(server);
    cluster.lab.end(FRONT, true);
    agents_work(cluster, server, "without-the-front");
    for agent in AGENTS {
        cluster.lab.end(agent, true);
    }
    cluster.lab.end(other, true);
    for agent in AGENTS {
        cluster.start_agent(agent);
    }
    agents_work(cluster, server, "after-a-restart");
    cluster.start_server(other);
    agents_work(cluster, server, "all-there-again");
    assert_eq!(cluster.pods(server), before);
    cluster.start_balancer();
    within_of(HEALED, Instant::now(), "all servers are in the endpoints", || {
        cluster.endpoints(other) == cluster.servers
    });
}
