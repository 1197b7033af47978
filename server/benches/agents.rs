//! What agents cost a server: joins, and agents that stand by, each with its tunnel, its lease and its watch of pods.
//!
//! `tests/bench/run agents`. The server is the program itself, in a process of its own, and its processor time and memory are
//! the kernel's figures for that process alone: what the agents do here, on the same processors, is not in them. Agents run no
//! pods; they use the agent's own code for joining and for tunnels, and renew their lease as a kubelet does.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a figure that cannot be taken ends the run"
)]

#[path = "support/folder.rs"]
mod folder;
#[path = "support/join.rs"]
mod join;

use std::future::ready;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::balancer::Balancer;
use agent::join::Joined;
use agent::tunnel::Tunnels;
use agent::wire::object::set;
use jiff::Timestamp;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

const AGENTS: usize = 100;
/// For what a start and the joins set off to be over.
const SETTLE: Duration = Duration::from_secs(20);
const LASTS: Duration = Duration::from_secs(60);
/// A kubelet's.
const BEAT: Duration = Duration::from_secs(10);

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("this is a benchmark: tests/bench/run agents");
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

async fn run() {
    let folder = folder::Folder::new("bench-agents");
    let (server, port) = start(folder.path()).await;
    let machines = folder::Folder::new("bench-agents-machines");
    sleep(SETTLE).await;
    let alone = server.look(LASTS).await;

    let (before, begun) = (server.cpu(), Instant::now());
    let mut joining = JoinSet::new();
    for number in 0..AGENTS {
        let machine = machines.path().join(number.to_string());
        joining.spawn(async move {
            let node = format!("node-{number}");
            let joined = join::join(&node, "secret", &machine, port).await;
            joined.unwrap_or_else(|error| panic!("{node}: {error}"))
        });
    }
    let joined = joining.join_all().await;
    println!(
        "| {AGENTS} joins at once, in {:.1} s | {:.1} ms of the server's processor time each |",
        begun.elapsed().as_secs_f64(),
        (server.cpu() - before).as_secs_f64() * 1000.0 / AGENTS as f64,
    );

    let mut agents = JoinSet::new();
    for one in joined {
        agents.spawn(stand_by(one, port));
    }
    sleep(SETTLE).await;
    let with_them = server.look(LASTS).await;
    assert_eq!(agents.try_join_next().map(|_| ()), None, "agents do not end");
    println!(
        "| {AGENTS} agents that stand by, beside the server alone | {:.2} millicores (alone {:.2}), {:.1} MiB (alone {:.1}) |",
        with_them.millicores - alone.millicores,
        alone.millicores,
        with_them.mebibytes - alone.mebibytes,
        alone.mebibytes,
    );
    agents.shutdown().await;
}

/// The server's process; it ends when this is dropped.
struct Server(Child);

struct Look {
    millicores: f64,
    mebibytes: f64,
}

async fn start(folder: &Path) -> (Server, u16) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::fs::write(folder.join("config.yaml"), "").unwrap();
    let dir = folder.display();
    let line = format!(
        "server --disable-agent --config {dir}/config.yaml -d {dir} -o {dir}/k3s.yaml --token secret \
         --bind-address 127.0.0.1 --https-listen-port {port} --node-name box"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_k3s"));
    let command = command.args(line.split_whitespace());
    let server = Server(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let written = async {
        while !folder.join("k3s.yaml").exists() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), written).await.unwrap();
    (server, port)
}

impl Server {
    /// Processor time so far. The kernel counts in hundredths of a second on every machine that runs this.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).unwrap().parse::<u64>().unwrap();
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    }

    fn mebibytes(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id())).unwrap();
        let pss = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        pss.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
    }

    async fn look(&self, lasts: Duration) -> Look {
        let before = self.cpu();
        sleep(lasts).await;
        Look {
            millicores: (self.cpu() - before).as_secs_f64() / lasts.as_secs_f64() * 1000.0,
            mebibytes: self.mebibytes(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An agent without pods, for ever.
async fn stand_by(joined: Joined, port: u16) {
    let node = joined.identity.node_name.clone();
    let client = joined.client.clone();
    let tunnels = Tunnels {
        client: client.clone(),
        balancer: Balancer::new(&format!("127.0.0.1:{port}"), &[], 1).into(),
        kubelet_port: 10250,
        supervisor_port: None,
    };
    let lease = async {
        client
            .create(
                "/api/v1/nodes",
                &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}),
            )
            .await
            .unwrap();
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let mut lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": node, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": node, "leaseDurationSeconds": 40},
        });
        lease = client.create(leases, &lease).await.unwrap();
        let mut beats = interval(BEAT);
        loop {
            beats.tick().await;
            set(&mut lease, &["spec", "renewTime"], format!("{:.6}", Timestamp::now()));
            lease = client.update(&format!("{leases}/{node}"), &lease).await.unwrap();
        }
    };
    let pods = async {
        let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}&watch=1&resourceVersion=0");
        loop {
            let mut watch = client.watch(&path).await.unwrap();
            while watch.next().await.is_some() {}
        }
    };
    tokio::join!(
        tunnels.run(|| 0.5, |_| Box::pin(ready(Ok(()))), std::future::pending()),
        lease,
        pods
    );
}
