//! Pods on one agent: how fast they run, one by one and all at once, and what each weighs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use agent::api::{Client, WatchEvent, WatchKind, WatchStream};
use serde_json::{Value, json};
use tests::lab::{binary, image};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::cluster::{Cluster, is_named, until};
use super::process;
use super::table::Table;

const PODS: &str = "/api/v1/namespaces/default/pods";
/// Starts one by one, and pods at once.
const MANY: usize = 30;
/// Repetitions of the latter.
const ROUNDS: usize = 3;
/// Pods that are weighed.
const WEIGHED: u64 = 10;
const SETTLE: Duration = Duration::from_secs(10);

/// Takes all figures of pods on the node `agent`.
pub async fn measure(cluster: &Cluster, agent: &str, table: &mut Table) {
    let client = cluster.client();
    let mut watch = cluster.watch(PODS).await;
    // The first unpacks the image.
    one(&client, &mut watch, agent, "first").await;
    println!("pods, one at a time");
    let mut times = Vec::new();
    for number in 0..MANY {
        times.push(one(&client, &mut watch, agent, &format!("single-{number}")).await);
    }
    table.spread(
        "pod create to Running, one at a time",
        &times,
        Some(Duration::from_millis(150)),
    );

    println!("pods, {MANY} at once");
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let names: Vec<String> = (0..MANY).map(|number| format!("many-{round}-{number}")).collect();
        rounds.push(together(&client, &mut watch, agent, &names).await);
        delete(&client, &mut watch, &names).await;
    }
    table.times(
        &format!("{MANY} pods created at once, all Running"),
        &rounds,
        Some(Duration::from_millis(1500)),
    );

    println!("memory of {WEIGHED} pods");
    let program = binary("k3s-agent");
    sleep(SETTLE).await;
    let before = process::pss(&process::of_program(&program));
    let names: Vec<String> = (0..WEIGHED).map(|number| format!("weighed-{number}")).collect();
    together(&client, &mut watch, agent, &names).await;
    sleep(SETTLE).await;
    let after = process::pss(&process::of_program(&program));
    table.memory("agent after pods came and went: PSS", before, None);
    table.memory(&format!("agent with {WEIGHED} pods, shims included: PSS"), after, None);
    table.memory(
        &format!("server with its node and those {WEIGHED} pods on the agent: PSS"),
        process::pss(&process::of_program(&binary("k3s"))),
        None,
    );
    table.memory(
        "each further pod: PSS",
        after.saturating_sub(before) / WEIGHED,
        Some(512 << 10),
    );
    delete(&client, &mut watch, &names).await;
}

/// Creates a pod, waits until it runs, and takes it away again. Returns how long it took to run.
async fn one(client: &Client, watch: &mut WatchStream, node: &str, name: &str) -> Duration {
    let begun = Instant::now();
    client.create(PODS, &pod(node, name)).await.unwrap();
    until(watch, |event| is_named(event, name) && is_running(event)).await;
    let took = begun.elapsed();
    delete(client, watch, &[name.to_owned()]).await;
    took
}

/// Creates pods at once and waits until all run.
async fn together(client: &Client, watch: &mut WatchStream, node: &str, names: &[String]) -> Duration {
    let begun = Instant::now();
    let mut creating = JoinSet::new();
    for name in names {
        let (client, pod) = (client.clone(), pod(node, name));
        creating.spawn(async move { client.create(PODS, &pod).await.map(drop) });
    }
    for created in creating.join_all().await {
        created.unwrap();
    }
    let mut missing: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    until(watch, |event| {
        if is_running(event) {
            missing.remove(name_of(event));
        }
        missing.is_empty()
    })
    .await;
    begun.elapsed()
}

async fn delete(client: &Client, watch: &mut WatchStream, names: &[String]) {
    let options = json!({"gracePeriodSeconds": 1});
    for name in names {
        client.delete(&format!("{PODS}/{name}"), Some(&options)).await.unwrap();
    }
    let mut left: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    until(watch, |event| {
        if event.kind == WatchKind::Deleted {
            left.remove(name_of(event));
        }
        left.is_empty()
    })
    .await;
}

fn name_of(event: &WatchEvent) -> &str {
    event.object["metadata"]["name"].as_str().unwrap_or_default()
}

fn is_running(event: &WatchEvent) -> bool {
    event.kind != WatchKind::Deleted && event.object["status"]["phase"] == "Running"
}

fn pod(node: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            // Ends at once when it is told to: an init that ignores the signal would be waited for.
            "containers": [{"name": "c", "image": image::NAME, "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"]}],
        },
    })
}
