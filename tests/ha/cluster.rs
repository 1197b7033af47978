//! A whole cluster on hosts of its own: servers on one datastore, a load balancer in front of them, two agents.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tests::lab::{Kubectl, Lab, image, until, within};

use crate::database::Database;
use crate::door::Door;

/// The host of the fixed registration address.
pub const FRONT: &str = "front";
/// Its name. It has another address, at which nobody answers.
const NAME: &str = "cluster.test";
/// Hosts that run pods and nothing else.
pub const AGENTS: [&str; 2] = ["one", "two"];
const NODES: &str = "/api/v1/nodes";
/// A read is answered sooner, from the cache, whatever has become of the datastore.
const ANSWER: Duration = Duration::from_secs(10);

pub struct Cluster {
    pub lab: Lab,
    pub database: Database,
    /// The first one runs a node, too.
    pub servers: Vec<&'static str>,
    /// kubectl by server.
    kubectls: BTreeMap<&'static str, Kubectl>,
    /// The way into each server.
    pub doors: Vec<Door>,
    /// The image of pods.
    pub archive: PathBuf,
}

impl Cluster {
    /// Starts everything, all servers at once, and waits until the nodes are ready. `start`: the datastore, in the lab.
    pub fn start(servers: &[&'static str], start: impl FnOnce() -> Database) -> Self {
        let mut lab = Lab::new();
        lab.add_backyard();
        let database = start();
        let archive = image::archive(lab.folder());
        for name in servers.iter().chain(&AGENTS) {
            lab.add_host(name);
            lab.put_image(name, &archive);
        }
        lab.add_host(FRONT);
        let (servers, kubectls) = (servers.to_vec(), BTreeMap::new());
        let mut cluster = Self {
            lab,
            database,
            servers,
            kubectls,
            doors: Vec::new(),
            archive,
        };
        cluster.start_balancer();
        for name in AGENTS {
            cluster.knows_the_front(name);
        }
        for name in cluster.servers.clone() {
            cluster.lab.join_backyard(name);
            cluster.start_server(name);
        }
        for name in &cluster.servers {
            let kubectl = Kubectl::of(&cluster.lab, name);
            until("the API is ready", || {
                kubectl.try_run(&["get", "--raw", "/readyz"]).is_ok()
            });
            cluster.kubectls.insert(name, kubectl);
            let door = Door::of(&cluster.lab, name, name);
            cluster.doors.push(door);
        }
        for name in AGENTS {
            cluster.start_agent(name);
        }
        for name in &cluster.servers {
            until("all nodes are ready, and every server says so", || {
                cluster.ready_nodes(name) == 1 + AGENTS.len()
            });
        }
        cluster
    }

    /// Starts a server of the cluster, with what it has on its disk.
    pub fn start_server(&mut self, name: &str) {
        let mut flags = self.database.flags();
        flags.push(format!("--tls-san={}", self.lab.address(FRONT)));
        if name != self.servers[0] {
            flags.push("--disable-agent".to_owned());
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        self.lab.start_server_with(name, &flags);
    }

    /// Lets a host know the fixed registration address by its name.
    pub fn knows_the_front(&self, host: &str) {
        let front = self.lab.address(FRONT);
        self.lab.name(host, NAME, &[Lab::NOBODY, &front]);
    }

    /// Starts an agent, with what it has on its disk, at the fixed registration address, by name.
    pub fn start_agent(&mut self, name: &str) {
        self.lab.start_agent_through(name, NAME, self.servers[0]);
    }

    /// Starts the load balancer: HAProxy, which passes connections on to the servers that answer.
    pub fn start_balancer(&mut self) {
        let servers = self.servers.iter().map(|name| {
            let address = self.lab.address(name);
            format!("  server {name} {address}:6443 check inter 500ms fall 2 rise 1\n")
        });
        let text = format!(
            "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n\
             frontend cluster\n  bind :6443\n  default_backend servers\n\
             backend servers\n  option tcp-check\n  balance roundrobin\n{}",
            servers.collect::<String>()
        );
        let path = self.lab.file(FRONT, "haproxy.cfg");
        fs::write(&path, text).unwrap();
        let arguments = ["-db", "-f", path.to_str().unwrap()];
        self.lab
            .start_program(FRONT, Path::new("/usr/sbin/haproxy"), &arguments);
    }

    /// Ends everything in order; HAProxy knows no clean end.
    pub fn stop(mut self) {
        self.lab.end(FRONT, true);
        self.lab.stop();
    }

    /// kubectl at whichever server the load balancer takes.
    pub fn at_the_front(&self) -> Kubectl {
        Kubectl::through(&self.lab, FRONT, self.servers[0])
    }

    /// kubectl at a server.
    pub fn at(&self, name: &str) -> &Kubectl {
        &self.kubectls[name]
    }

    /// The way into a server.
    pub fn door(&self, name: &str) -> &Door {
        self.doors.iter().find(|door| door.name == name).unwrap()
    }

    /// All servers but one.
    pub fn others(&self, name: &str) -> Vec<&'static str> {
        self.servers.iter().copied().filter(|other| *other != name).collect()
    }

    /// How many nodes are ready, by a server's word: those of the first server and of [`AGENTS`], no others.
    pub fn ready_nodes(&self, server: &str) -> usize {
        let nodes = self.get(server, NODES).unwrap_or_default();
        ready_of(&nodes, &[self.servers[0], AGENTS[0], AGENTS[1]])
    }

    /// How many of [`AGENTS`] are ready, by the word of a server that answers.
    pub fn ready_agents(&self, server: &str) -> usize {
        ready_of(&self.surely(server, NODES), &AGENTS)
    }

    /// The servers in the endpoints of the service `kubernetes`, by a server's word.
    pub fn endpoints(&self, server: &str) -> Vec<&'static str> {
        let path = "/api/v1/namespaces/default/endpoints/kubernetes";
        let found = self.get(server, path).unwrap_or_default();
        let subsets = list(&found["subsets"]).iter();
        let found: Vec<&str> = subsets
            .flat_map(|subset| list(&subset["addresses"]))
            .map(|address| word(&address["ip"]))
            .collect();
        let listed = |name: &&str| found.contains(&self.lab.address(name).as_str());
        self.servers.iter().copied().filter(listed).collect()
    }

    /// Who leads, by a server's word.
    pub fn leader(&self, server: &str) -> Option<&'static str> {
        let lease = self.get(server, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/k3s")?;
        // Its name, and which of its lives.
        let (holder, _) = word(&lease["spec"]["holderIdentity"]).rsplit_once('_')?;
        self.servers.iter().copied().find(|name| *name == holder)
    }

    /// Pods of the Deployment with their node, container and restarts, by a server's word: what no fault may change.
    pub fn pods(&self, server: &str) -> Vec<String> {
        let pods = self.surely(server, "/api/v1/namespaces/default/pods?labelSelector=app%3Dweb");
        let line = |pod: &Value| {
            let container = &pod["status"]["containerStatuses"][0];
            let (name, node) = (word(&pod["metadata"]["name"]), word(&pod["spec"]["nodeName"]));
            let (id, restarts) = (word(&container["containerID"]), &container["restartCount"]);
            format!("{name} {node} {id} {restarts} {}", word(&pod["status"]["phase"]))
        };
        let mut pods: Vec<String> = list(&pods["items"]).iter().map(line).collect();
        pods.sort();
        pods
    }

    /// What a server answers, if it is a yes. Not by kubectl: whoever asks again and again must not keep the machine from what is
    /// waited for.
    fn get(&self, server: &str, path: &str) -> Option<Value> {
        let answer = now(self.door(server).ask(Method::GET, path, None)).ok()?;
        (answer.code == 200).then_some(answer.body)
    }

    /// The same of a server that has to answer; it may be asked more than once, as by any client.
    fn surely(&self, server: &str, path: &str) -> Value {
        let mut answer = None;
        within(ANSWER, "a server answers", || {
            answer = self.get(server, path);
            answer.is_some()
        });
        answer.unwrap()
    }
}

/// How many of the wanted nodes are ready, of a list of nodes.
fn ready_of(nodes: &Value, wanted: &[&str]) -> usize {
    let ready = |node: &&Value| {
        let says_so = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        wanted.contains(&word(&node["metadata"]["name"])) && list(&node["status"]["conditions"]).iter().any(says_so)
    };
    list(&nodes["items"]).iter().filter(ready).count()
}

/// Items; none where there is no list.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Runs what is asynchronous to its end.
pub fn now<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let work = async { tokio::time::timeout(Duration::from_secs(60), work).await };
    runtime.unwrap().block_on(work).expect("no answer")
}
