//! The figures of `docs/budgets.md` that need the real programs: starts, pods, memory, idle CPU, idle disk, sizes.
//!
//! Hosts are the lab's, and the programs those of this build: `tests/bench/run` makes the release ones first. One run
//! prints one table. Nothing is asserted; a figure beyond its limit is marked.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a figure that cannot be taken ends the run"
)]

mod cluster;
mod failover;
mod pair;
mod pods;
mod process;
mod servers;
mod table;

use std::time::Duration;

use cluster::Cluster;
use pair::Kind;
use table::{Table, millis};
use tests::lab::binary;
use tokio::runtime::Builder;

/// Starts of each kind.
const STARTS: usize = 5;
/// For a program to forget its start.
const SETTLE: Duration = Duration::from_secs(30);
/// CPU of an idle program is taken over so long.
const IDLE: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("this is a benchmark: tests/bench/run figures");
        return;
    }
    let passed_on: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if !tests::inside_own_namespaces(&passed_on) {
        return;
    }
    let minutes = arguments
        .iter()
        .find_map(|argument| argument.strip_prefix("--disk-minutes="));
    let disk = Duration::from_secs(60 * minutes.map_or(5, |text| text.parse().unwrap()));
    let only = arguments.iter().find_map(|argument| argument.strip_prefix("--only="));
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let table = runtime.block_on(async {
        match only {
            None => run(disk).await,
            Some("disk") => run_disk(disk).await,
            Some("failover") => run_failover().await,
            Some(servers) if servers.starts_with("servers") => run_servers(servers).await,
            Some(other) => panic!(
                "no such part: {other} (there are: disk failover servers-postgresql servers-mariadb servers-etcd)"
            ),
        }
    });
    println!("\n{table}");
}

/// Bytes written depend little on what else the machine does: this one may run beside other work.
async fn run_disk(lasts: Duration) -> Table {
    let mut table = Table::default();
    let mut cluster = Cluster::new();
    cluster.start_server("server").await;
    cluster.join_agent("agent").await;
    println!("idle for {} s", (SETTLE + lasts).as_secs());
    tokio::time::sleep(SETTLE).await;
    let programs = programs(&cluster, "agent");
    let before = programs.map(|(_, pid)| process::written(pid));
    tokio::time::sleep(lasts).await;
    written(&programs, before, lasts, &mut table);
    cluster.stop();
    table
}

async fn run_failover() -> Table {
    let mut table = Table::default();
    failover::measure(&mut table).await;
    table
}

/// On one datastore: a lab is made once in a process.
async fn run_servers(on: &str) -> Table {
    let kind = match on {
        "servers-postgresql" => Kind::PostgreSql,
        "servers-mariadb" => Kind::MariaDb,
        "servers-etcd" => Kind::Etcd,
        other => panic!("no such datastore: {other}"),
    };
    let mut table = Table::default();
    servers::measure(kind, &mut table).await;
    table
}

/// What is called how in a table, and its process.
type Program = (&'static str, u32);

fn programs(cluster: &Cluster, agent: &str) -> [Program; 2] {
    [
        ("server with its node", cluster.pid("server")),
        ("agent", cluster.pid(agent)),
    ]
}

async fn run(disk: Duration) -> Table {
    let mut table = Table::default();
    sizes(&mut table);
    let mut cluster = Cluster::new();
    cold_starts(&mut cluster, &mut table).await;

    println!("a server with its node");
    let (ready, node_ready) = cluster.start_server("server").await;
    table.times("server start to ready, with its node", &[ready], None);
    table.times("server start to its own node Ready", &[node_ready], None);
    let mut joins = Vec::new();
    for number in 1..=STARTS {
        println!("agent {number} joins");
        if number > 1 {
            cluster.drop_agent(&format!("agent{}", number - 1)).await;
        }
        joins.push(cluster.join_agent(&format!("agent{number}")).await);
    }
    table.times(
        "agent start to node Ready, first join",
        &joins,
        Some(Duration::from_millis(500)),
    );
    let agent = format!("agent{STARTS}");
    idle(&cluster, &agent, disk, &mut table).await;
    pods::measure(&cluster, &agent, &mut table).await;
    cluster.stop();
    table
}

fn sizes(table: &mut Table) {
    for (program, limit) in [("k3s", 20 << 20), ("k3s-agent", 8 << 20)] {
        let size = std::fs::metadata(binary(program)).unwrap().len();
        let note = if program == "k3s" { "" } else { ", not the edge profile" };
        table.bytes(&format!("size of {program}{note}"), size, Some(limit));
    }
}

async fn cold_starts(cluster: &mut Cluster, table: &mut Table) {
    let mut starts = Vec::new();
    for number in 1..=STARTS {
        let name = format!("cold{number}");
        starts.push(cluster.start_bare_server(&name).await);
        println!("server start {number}: {}", millis(starts[number - 1]));
        if number == STARTS {
            tokio::time::sleep(SETTLE).await;
            let memory = process::pss(&[cluster.pid(&name)]);
            table.memory("server without node, idle: PSS", memory, Some(35 << 20));
        }
        cluster.end(&name);
    }
    table.times(
        "server cold start to /readyz, no node",
        &starts,
        Some(Duration::from_millis(300)),
    );
}

/// Memory, CPU and disk of programs that have nothing to do.
async fn idle(cluster: &Cluster, agent: &str, disk: Duration, table: &mut Table) {
    println!("idle for {} s", (SETTLE + IDLE + disk).as_secs());
    tokio::time::sleep(SETTLE).await;
    let programs = programs(cluster, agent);
    let [(_, server), (_, agent)] = programs;
    table.memory(
        "server with its node and one agent, idle: PSS",
        process::pss(&[server]),
        Some(45 << 20),
    );
    table.memory("agent, idle, no pods: PSS", process::pss(&[agent]), Some(12 << 20));
    let before = programs.map(|(_, pid)| (process::cpu(pid), process::written(pid)));
    tokio::time::sleep(IDLE).await;
    for ((which, pid), (before, _)) in programs.iter().zip(before) {
        let used = process::cpu(*pid).saturating_sub(before);
        let limit = which.starts_with("server").then_some(3.0);
        table.number(
            &format!("{which}, idle {} s: CPU", IDLE.as_secs()),
            used.as_secs_f64() * 1000.0 / IDLE.as_secs_f64(),
            "millicores",
            limit,
        );
    }
    tokio::time::sleep(disk).await;
    written(&programs, before.map(|(_, bytes)| bytes), IDLE + disk, table);
}

/// What they have written to disk since `before`, so long ago.
fn written(programs: &[Program; 2], before: [u64; 2], lasted: Duration, table: &mut Table) {
    let days = lasted.as_secs_f64() / 86_400.0;
    for ((which, pid), before) in programs.iter().zip(before) {
        let bytes = process::written(*pid).saturating_sub(before);
        let limit = which.starts_with("server").then_some(20.0);
        println!("{which}: {bytes} bytes in {} s", lasted.as_secs());
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        table.number(
            &format!(
                "{which}, idle: written, extrapolated from {} min",
                lasted.as_secs() / 60
            ),
            bytes as f64 / days / 1e6,
            "MB a day",
            limit,
        );
    }
}
