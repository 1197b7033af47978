//! The leader stands still in the middle of its work, for longer than its lead lasts. The next one does that work, people ask
//! for other things meanwhile, and when the old one goes on it must leave all of that as it is.
//!
//! What its controllers had begun is of several kinds: pods to be made, pods to be replaced, a namespace to be emptied that
//! is there again, under its old name, when it wakes.

use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};
use tests::lab::{image, until, within_of};

use crate::chronicle::{Chronicle, History, KINDS};
use crate::cluster::{AGENTS, Cluster, now};
use crate::door::Door;
use crate::load::Load;
use crate::outage::{HEALED, all_goes_on};
use crate::steps::{MOVE, agents_work_within};
use crate::takeover::takes_place;

/// Where all of this is.
const NAMESPACES: &[&str] = &["work", "going"];
const NAMES: &str = KINDS[0];
const MAPS: &str = KINDS[1];
const SETS: &str = KINDS[3];
const DEPLOYMENTS: &str = KINDS[4];
/// Pods to be made, in one go: more than the leader makes before it is stopped.
const MANY: usize = 150;
/// Configuration maps in the namespace that goes.
const BAGGAGE: usize = 40;
/// Until a request is made again that was not carried out.
const AGAIN: Duration = Duration::from_secs(1);
/// While the leader that is back could still do something.
const AWAKE: Duration = Duration::from_secs(5);

/// Under load, and with an agent's own pods beside.
pub fn the_leader_is_paused_at_work(cluster: &Cluster) {
    until("somebody leads", || cluster.leader(cluster.servers[0]).is_some());
    let away = cluster.leader(cluster.servers[0]).unwrap();
    let others = cluster.others(away);
    let before = cluster.pods(others[0]);
    let door = cluster.door(others[0]);
    let chronicle = Chronicle::begin(door, NAMESPACES);
    now(prepare(door));
    chronicle.settles("all is there", |now| now.pods("steady") == 3 && now.pods("doomed") == 4);
    cluster
        .at(others[0])
        .run(&["-n", "work", "rollout", "status", "deployment/steady", "--timeout=60s"]);
    let load = Load::start(&cluster.doors, "paused");

    let replaced: Vec<String> = chronicle.present().names("steady").into_iter().take(2).collect();
    let begun = thread::scope(|scope| {
        let asking = scope.spawn(|| now(ask_for_much(door, &replaced)));
        chronicle.first("grows");
        let begun = Instant::now();
        cluster.lab.pause(away);
        asking.join().unwrap();
        begun
    });
    let (worked, taken) = thread::scope(|scope| {
        let taken = scope.spawn(|| takes_place(cluster, away, begun));
        let writing = scope.spawn(|| load.goes_on(HEALED));
        // What was on its way to the datastore is there, and the next one cannot lead yet.
        sleep(Duration::from_secs(1));
        let (made, left) = (chronicle.made("grows"), chronicle.present().in_namespace("going"));
        assert!(
            made < MANY && left > 0,
            "it had made {made} pods, left were {left} objects: nothing was pending"
        );
        // To agents it is a machine that says nothing any more.
        let worked = agents_work_within(MOVE, begun, cluster, others[0], "without-paused");
        writing.join().unwrap();
        (worked, taken.join().unwrap())
    });
    chronicle.settles("the next leader has done it", |now| {
        now.pods("grows") == MANY && now.pods("steady") == 3 && now.in_namespace("going") == 0
    });
    now(ask_for_less(door));
    chronicle.settles("and what was asked for since", |now| {
        now.pods("grows") == 10 && now.pods("steady") == 1 && now.pods("doomed") == 2
    });

    let settled = now(door.revision()).unwrap();
    let healed = Instant::now();
    cluster.lab.resume(away);
    let again = all_goes_on(cluster, healed, others[0], "paused");
    let back = within_of(HEALED, healed, "it is back among the servers", || {
        cluster.endpoints(others[0]) == cluster.servers
    });
    sleep(AWAKE.saturating_sub(healed.elapsed()));
    load.goes_on(HEALED);
    let verdict = load.end();
    assert_eq!(cluster.pods(others[0]), before);
    let leader = cluster.leader(others[0]);
    assert!(
        leader.is_some_and(|leader| leader != away),
        "it took the lead back: {leader:?}"
    );
    judge(&chronicle.end(), settled);
    eprintln!(
        "paused at work: agents worked after {worked:?}, {taken}; healed, agents worked after {again:?}, in the endpoints after \
         {back:?}: {verdict}"
    );
}

/// What is there before.
async fn prepare(door: &Door) {
    for name in NAMESPACES {
        make(
            door,
            NAMES,
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        )
        .await;
    }
    let nowhere = json!({"nowhere": "to-be-found"});
    make(door, &inside(DEPLOYMENTS, "work"), &deployment("grows", 0, &nowhere)).await;
    make(door, &inside(DEPLOYMENTS, "going"), &deployment("doomed", 4, &nowhere)).await;
    // On a node, whose kubelet has its part in their end.
    let node = json!({"kubernetes.io/hostname": AGENTS[0]});
    make(door, &inside(DEPLOYMENTS, "work"), &deployment("steady", 3, &node)).await;
    for number in 0..BAGGAGE {
        make(door, &inside(MAPS, "going"), &map(number)).await;
    }
}

/// All at once: work for the leader.
async fn ask_for_much(door: &Door, replaced: &[String]) {
    let dropping = async {
        for name in replaced {
            ask(
                door,
                Method::DELETE,
                &format!("/api/v1/namespaces/work/pods/{name}"),
                None,
            )
            .await;
        }
    };
    let namespace = format!("{NAMES}/going");
    let going = ask(door, Method::DELETE, &namespace, None);
    tokio::join!(scale(door, "grows", MANY), dropping, going);
}

/// While the old leader sleeps: the contrary of what it was at.
async fn ask_for_less(door: &Door) {
    tokio::join!(scale(door, "grows", 10), scale(door, "steady", 1));
    make(
        door,
        NAMES,
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "going"}}),
    )
    .await;
    let nowhere = json!({"nowhere": "to-be-found"});
    make(door, &inside(DEPLOYMENTS, "going"), &deployment("doomed", 2, &nowhere)).await;
    for number in 0..BAGGAGE {
        make(door, &inside(MAPS, "going"), &map(number)).await;
    }
}

/// Reads the history. `settled`: the revision before the old leader woke. A write of its controllers may have passed the last
/// look at the clock and have waited for the database when it was stopped: that is refused, too (`server/src/peers/fence.rs`).
fn judge(history: &History, settled: u64) {
    let late = history.after(settled);
    assert!(late.is_empty(), "after the old leader woke: {late:?}");
    // Made and ended, by whichever leader: nothing beyond what was asked for, and nothing twice.
    for (app, made, ended, why) in [
        ("grows", MANY, MANY - 10, "made, and taken back"),
        ("steady", 3 + 2, 2 + 2, "two replaced, two too many"),
        ("doomed", 4 + 2, 4, "gone with their namespace; there again"),
    ] {
        assert_eq!(history.pods(app), Ok((made, ended)), "{app}: {why}");
    }
    assert_eq!(history.lives(NAMES, |event| event.name == "going"), Ok((2, 1)));
    for app in ["grows", "steady"] {
        assert_eq!(history.lives(SETS, |event| event.app == app), Ok((1, 0)), "{app}");
    }
    assert_eq!(history.lives(SETS, |event| event.app == "doomed"), Ok((2, 1)));
    assert_eq!(history.lives(DEPLOYMENTS, |event| event.name == "doomed"), Ok((2, 1)));
    let baggage = history.lives(MAPS, |event| event.name.starts_with("baggage-"));
    assert_eq!(baggage, Ok((2 * BAGGAGE, BAGGAGE)));
}

async fn scale(door: &Door, name: &str, replicas: usize) {
    let path = format!("{}/{name}/scale", inside(DEPLOYMENTS, "work"));
    let scale = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": name, "namespace": "work"},
        "spec": {"replicas": replicas},
    });
    ask(door, Method::PUT, &path, Some(&scale)).await;
}

async fn make(door: &Door, path: &str, object: &Value) {
    ask(door, Method::POST, path, Some(object)).await;
}

/// Until it is done, as every client would: an answer may be that the datastore is away.
async fn ask(door: &Door, method: Method, path: &str, body: Option<&Value>) {
    // What it is answered when it was done the time before.
    let done = match method {
        Method::POST => Some(409),
        Method::DELETE => Some(404),
        _ => None,
    };
    let mut failure = None;
    for _ in 0..3 {
        match door.ask(method.clone(), path, body).await {
            Ok(answer) if answer.code < 300 => return,
            Ok(answer) if failure.is_some() && done == Some(answer.code) => return,
            Ok(answer) => {
                assert!(answer.code >= 500, "{method} {path}: {}: {}", answer.code, answer.body);
                failure = Some(answer.body.to_string());
            }
            Err(error) => failure = Some(error),
        }
        tokio::time::sleep(AGAIN).await;
    }
    panic!("{method} {path}: {failure:?}");
}

/// The list of a kind in a namespace.
fn inside(list: &str, namespace: &str) -> String {
    let (version, plural) = list.rsplit_once('/').unwrap();
    format!("{version}/namespaces/{namespace}/{plural}")
}

fn deployment(name: &str, replicas: usize, node: &Value) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "nodeSelector": node, "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "c", "image": image::NAME, "command": ["sleep", "100000"]}],
                },
            },
        },
    })
}

fn map(number: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("baggage-{number}")}, "data": {"a": "b"}})
}
