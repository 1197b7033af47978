//! The lab's programs with a clock beside them, and the API as its administrator sees it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::api::{Client, Endpoint, WatchEvent, WatchKind, WatchStream};
use agent::join::trust::{self, Shown};
use serde_json::Value;
use tests::lab::{Lab, image};
use tokio::time::{sleep, timeout};

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at something that cannot be watched yet.
const LOOK: Duration = Duration::from_millis(1);

/// Hosts, and where the API of `server` is.
pub struct Cluster {
    lab: Lab,
    archive: PathBuf,
}

impl Cluster {
    pub fn new() -> Self {
        let lab = Lab::new();
        let archive = image::archive(lab.folder());
        Self { lab, archive }
    }

    /// Starts a server without a node on a host of its own. Returns how long that took, until `/readyz` says so.
    pub async fn start_bare_server(&mut self, name: &str) -> Duration {
        self.lab.add_host(name);
        let begun = Instant::now();
        self.lab.start_server_with(name, &["--disable-agent"]);
        self.ready(name).await;
        begun.elapsed()
    }

    /// Starts a server with its node. Returns how long until it was ready, and until its node was.
    pub async fn start_server(&mut self, name: &str) -> (Duration, Duration) {
        self.add_host(name);
        let begun = Instant::now();
        self.lab.start_server(name);
        self.ready(name).await;
        let ready = begun.elapsed();
        self.node_ready(name).await;
        (ready, begun.elapsed())
    }

    /// Starts an agent on a new host. Returns how long until a watch saw its node ready.
    pub async fn join_agent(&mut self, name: &str) -> Duration {
        self.add_host(name);
        let mut nodes = self.watch("/api/v1/nodes").await;
        let begun = Instant::now();
        self.lab.start_agent(name, "server");
        until(&mut nodes, |event| is_named(event, name) && is_ready(&event.object)).await;
        begun.elapsed()
    }

    /// Ends an agent, and its node.
    pub async fn drop_agent(&mut self, name: &str) {
        self.lab.end(name, false);
        self.client()
            .delete(&format!("/api/v1/nodes/{name}"), None)
            .await
            .unwrap();
    }

    pub fn pid(&self, name: &str) -> u32 {
        self.lab.pid(name)
    }

    pub fn end(&mut self, name: &str) {
        self.lab.end(name, false);
    }

    pub fn stop(mut self) {
        self.lab.stop();
    }

    /// The administrator's client.
    pub fn client(&self) -> Client {
        let read = |name: &str| fs::read(self.lab.file("server", &format!("lib/k3s/server/tls/{name}"))).unwrap();
        let (chain, key) = (read("client-admin.crt"), read("client-admin.key"));
        let shown = Shown {
            chain: &chain,
            key: &key,
        };
        let tls = trust::bundle(&read("server-ca.crt"), Some(shown), &Default::default()).unwrap();
        let host = self.lab.address("server");
        Client::new(Endpoint {
            host,
            port: 6443,
            tls: Some(tls),
        })
    }

    /// Watches a collection from now on.
    pub async fn watch(&self, collection: &str) -> WatchStream {
        let client = self.client();
        let list = client.get(&format!("{collection}?limit=1")).await.unwrap();
        let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
        client
            .watch(&format!("{collection}?watch=1&resourceVersion={revision}"))
            .await
            .unwrap()
    }

    fn add_host(&mut self, name: &str) {
        self.lab.add_host(name);
        self.lab.put_image(name, &self.archive);
    }

    async fn ready(&self, name: &str) {
        let tls = Some(trust::anyone().unwrap());
        let host = self.lab.address(name);
        let client = Client::new(Endpoint { host, port: 6443, tls });
        let asking = async {
            while client.get_bytes("/readyz").await.is_err() {
                sleep(LOOK).await;
            }
        };
        timeout(PATIENCE, asking).await.expect("the server is never ready");
    }

    async fn node_ready(&self, name: &str) {
        let client = self.client();
        let mut nodes = client.watch("/api/v1/nodes?watch=1").await.unwrap();
        until(&mut nodes, |event| is_named(event, name) && is_ready(&event.object)).await;
    }
}

/// Waits for an event that is wanted.
pub async fn until(watch: &mut WatchStream, mut wanted: impl FnMut(&WatchEvent) -> bool) {
    let waiting = async {
        loop {
            let event = watch.next().await.expect("the watch ended").unwrap();
            assert!(event.kind != WatchKind::Error, "{}", event.object);
            if wanted(&event) {
                return;
            }
        }
    };
    timeout(PATIENCE, waiting).await.expect("waited in vain for an event");
}

/// Whether an event is about the object of this name.
pub fn is_named(event: &WatchEvent, name: &str) -> bool {
    event.object["metadata"]["name"] == name
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}
