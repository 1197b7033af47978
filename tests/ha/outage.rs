//! The datastore goes, or a server's way to it, or a server stands still: what goes on, what waits, and that all of it heals.

use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use tests::lab::{Kubectl, image, until, within_of};

use crate::cluster::{AGENTS, Cluster, now};
use crate::door::Door;
use crate::load::Load;
use crate::steps::{MOVE, agents_work_within};
use crate::takeover::takes_place;

/// Longer than a lead lasts and a Lease counts (`server/src/peers`).
const LONG: Duration = Duration::from_secs(13);
/// Until a node says again that it is ready, when it has been silent for too long meanwhile: an attempt to renew its Lease that
/// falls into the void goes through with its next SYN, 4 s later at most, or lasts for 3 s more, and the next one comes 3 s later
/// (`agent/src/kubelet/node`).
pub const BACK: Duration = Duration::from_secs(10);
/// Until everything is as before, once the cause is gone; agents are back sooner ([`MOVE`]).
pub const HEALED: Duration = Duration::from_secs(20);
/// Until a log that is followed through a server ends, when that one's machine is gone (`agent/src/dial.rs`).
const GONE: Duration = Duration::from_secs(50);

/// A pod whose port is forwarded, and the size of what it serves.
const SERVES: &str = "serves";
const PAGE: usize = 300_000;

/// How a datastore goes away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Away {
    /// As by a power cut.
    Killed,
    /// It stands still for longer than any Lease counts, its connections open.
    Paused,
}

/// The datastore is away under load: reads and watches go on, writes wait for it, nobody ends, and nothing is lost.
pub fn the_datastore_is_away(cluster: &mut Cluster, how: Away) {
    let before = cluster.pods(cluster.servers[0]);
    let phase = match how {
        Away::Killed => "db-killed",
        Away::Paused => "db-paused",
    };
    let load = Load::start(&cluster.doors, phase);
    match how {
        Away::Killed => cluster.database.kill(),
        Away::Paused => cluster.database.pause(),
    }
    thread::scope(|scope| {
        for name in &cluster.servers {
            let (door, cluster, before) = (cluster.door(name), &*cluster, &before);
            scope.spawn(move || {
                says_so(door);
                assert_eq!(cluster.pods(name), *before);
            });
        }
    });
    if how == Away::Paused {
        sleep(LONG);
    }
    for name in cluster.servers.iter().chain(&AGENTS) {
        assert!(cluster.lab.runs(name), "{name} has ended");
    }
    let mut healed = Instant::now();
    match how {
        Away::Killed => {
            cluster.database.start_again();
            healed = Instant::now();
        }
        Away::Paused => cluster.database.resume(),
    }
    let (back, worked) = thread::scope(|scope| {
        let back = scope.spawn(|| load.goes_on(HEALED));
        let worked = all_goes_on(cluster, healed, cluster.servers[1], phase);
        (back.join().unwrap(), worked)
    });
    let verdict = load.end();
    assert!(verdict.doubts > 0, "nothing was on its way: {verdict}");
    assert_eq!(verdict.broken(), 0, "a watch ended: {verdict}");
    assert_eq!(cluster.pods(cluster.servers[0]), before);
    eprintln!("{phase}: writes went on {back:?} after it was back, agents worked after {worked:?}: {verdict}");
}

/// The leader's packets to the datastore get lost, for longer than its lead lasts; it is reached, and reaches all others. Another
/// one takes over, and in between its clients are told.
pub fn the_leader_is_cut_off_from_the_datastore(cluster: &Cluster) {
    until("somebody leads", || cluster.leader(cluster.servers[0]).is_some());
    let away = cluster.leader(cluster.servers[0]).unwrap();
    let others = cluster.others(away);
    let before = cluster.pods(others[0]);
    let load = Load::start(&cluster.doors, "cut-off");
    let begun = Instant::now();
    cluster.lab.cut_backdoor(away);
    let (worked, taken) = thread::scope(|scope| {
        let taken = scope.spawn(|| takes_place(cluster, away, begun));
        let writing = scope.spawn(|| load.goes_on(HEALED));
        let worked = agents_work_within(MOVE, begun, cluster, others[0], "without-cut-off");
        writing.join().unwrap();
        (worked, taken.join().unwrap())
    });
    says_so(cluster.door(away));
    let healed = Instant::now();
    cluster.lab.mend_backdoor(away);
    let again = all_goes_on(cluster, healed, others[0], "cut-off");
    let back = within_of(HEALED, healed, "it is back among the servers", || {
        cluster.endpoints(others[0]) == cluster.servers
    });
    load.goes_on(HEALED);
    let verdict = load.end();
    assert_eq!(cluster.pods(others[0]), before);
    let leader = cluster.leader(others[0]);
    assert!(
        leader.is_some_and(|leader| leader != away),
        "it took the lead back: {leader:?}"
    );
    eprintln!(
        "cut-off: agents worked after {worked:?}, {taken}; healed, agents worked after {again:?}, in the endpoints after \
         {back:?}: {verdict}"
    );
}

/// An agent's packets to a server get lost, both ways: it works through another one, and its pods are reached through every
/// server, also the one that has lost it. When that one loses the others, what went through them ends.
pub fn an_agent_is_cut_off_from_a_server(cluster: &Cluster) {
    let (agent, lost) = (AGENTS[0], cluster.servers[0]);
    let others = cluster.others(lost);
    let before = cluster.pods(others[0]);
    let pod = before.iter().find(|pod| pod.contains(&format!(" {agent} "))).unwrap();
    let pod = pod.split_whitespace().next().unwrap();
    serve(cluster.at(others[0]), agent);
    let begun = Instant::now();
    cluster.lab.part(agent, lost);
    let (reached, worked) = thread::scope(|scope| {
        let worked = scope.spawn(|| agents_work_within(MOVE, begun, cluster, others[0], "parted"));
        let mut reached = Duration::ZERO;
        for name in &cluster.servers {
            let words = ["exec", pod, "--", "echo", name];
            reached = within_of(HEALED, begun, "its pods are reached through every server", || {
                cluster.at(name).try_run(&words).is_ok_and(|said| said.trim() == *name)
            });
            let forwarding = cluster.at(name).forward(SERVES, 8080);
            for _ in 0..3 {
                let page = forwarding.get("/page");
                assert!(page.len() > PAGE, "{} bytes came through {name}", page.len());
            }
        }
        (reached, worked.join().unwrap())
    });
    all_is_well(cluster, Instant::now());
    let followed = Followed::begin(cluster.at(lost));
    let parted = Instant::now();
    others.iter().for_each(|other| cluster.lab.part(lost, other));
    let healed = Instant::now();
    cluster.lab.reunite(agent, lost);
    let again = all_goes_on(cluster, healed, lost, "reunited");
    let ended = followed.ends(parted);
    others.iter().for_each(|other| cluster.lab.reunite(lost, other));
    assert_eq!(cluster.pods(lost), before);
    cluster.at(lost).run(&["delete", "pod", SERVES, "--wait=false"]);
    eprintln!(
        "parted: reached through every server after {reached:?}, agents worked after {worked:?}; healed, after {again:?}; a log \
         through a server that was gone ended after {ended:?}"
    );
}

/// A server that does not hear of its datastore shows what it knows, and says so; whoever is to write is told to come again.
pub fn says_so(door: &Door) {
    let name = &door.name;
    now(async {
        let read = door.read(&format!("by-{name}")).await.unwrap();
        assert_eq!((read.code, read.stale), (200, true), "{name}: {}", read.body);
        let refused = door.create("refused", 1).await.unwrap();
        assert_eq!(refused.code, 503, "{name}: {}", refused.body);
        assert!(refused.retry_after.is_some(), "{name}: {}", refused.body);
    });
}

/// A log that is followed until this is dropped.
struct Followed(Child);

impl Followed {
    /// Follows the log of the pod that serves, which says nothing after its first line.
    fn begin(kubectl: &Kubectl) -> Self {
        let mut followed = None;
        // Nothing is promised of one that begins in the moment in which a tunnel breaks.
        until("a log is followed", || {
            let mut this = Self(kubectl.start(&["logs", "-f", SERVES]));
            let mut line = String::new();
            BufReader::new(this.0.stdout.as_mut().unwrap())
                .read_line(&mut line)
                .unwrap();
            if !line.is_empty() {
                assert_eq!(line, "serving\n");
                followed = Some(this);
            }
            followed.is_some()
        });
        followed.unwrap()
    }

    /// It ends in time, which counts from `begun` on. Returns when it did.
    fn ends(mut self, begun: Instant) -> Duration {
        assert!(self.0.try_wait().unwrap().is_none(), "nothing was followed");
        within_of(
            GONE,
            begun,
            "a log ends that went through a server that is gone",
            || self.0.try_wait().unwrap().is_some(),
        )
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pod that serves a page.
fn serve(kubectl: &Kubectl, node: &str) {
    let script =
        format!("head -c {PAGE} /dev/zero >/tmp/page; echo serving; exec busybox httpd -f -p 127.0.0.1:8080 -h /tmp");
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": SERVES},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": image::NAME, "command": ["sh", "-c", script]}],
        },
    });
    kubectl.feed(&["apply", "-f", "-"], &pod.to_string());
    let asked = ["exec", SERVES, "--", "wget", "-qO-", "http://127.0.0.1:8080/page"];
    until("the pod serves", || {
        kubectl.try_run(&asked).is_ok_and(|page| page.len() == PAGE)
    });
}

/// What all healing has to bring: agents work through this server, and every server says that every node is ready. Both are looked at
/// side by side, as both are promised from the same instant on. Returns when agents worked.
pub fn all_goes_on(cluster: &Cluster, healed: Instant, server: &str, name: &str) -> Duration {
    let worked = thread::scope(|scope| {
        scope.spawn(|| all_is_well(cluster, healed));
        agents_work_within(MOVE, healed, cluster, server, name)
    });
    // Nor was that how it looked before anybody noticed.
    all_is_well(cluster, Instant::now());
    worked
}

/// Every server says that every node is ready, soon after all has healed.
pub fn all_is_well(cluster: &Cluster, healed: Instant) {
    // Side by side: the promise is every server's.
    thread::scope(|scope| {
        for name in &cluster.servers {
            scope.spawn(move || {
                within_of(BACK, healed, "all nodes are ready", || {
                    cluster.ready_nodes(name) == 1 + AGENTS.len()
                })
            });
        }
    });
}
