//! Whole servers that share one datastore: one identity, one state, and each of them may go.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what fails here fails the test"
)]

mod hints;
mod outage;
mod relay;
mod restored;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use server::cache::{Filter, From, WatchEvent};
use server::config::{self, Command};
use server::request::What;
use server::run::Server;
use server::store::Store;
use server::store::endpoint::{self, Tls};
use server::store::memory::Memory;
use tokio::time::{sleep, timeout};

/// Ends a hopeless wait; nothing is timed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The directories of one test's servers.
struct Machines(PathBuf);

impl Machines {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("amphipod-two-servers-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.0.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.yaml"), "").unwrap();
        dir
    }

    fn config(&self, name: &str, more: &str) -> config::Config {
        let dir = self.dir(name);
        let dir = dir.display();
        let line = format!(
            "k3s server --disable-agent --config {dir}/config.yaml -d {dir} -o {dir}/k3s.yaml --bind-address 127.0.0.1 \
             --https-listen-port 0 --node-name {name} {more}"
        );
        let args = line.split_whitespace().map(Into::into);
        match config::parse(args, &config::surroundings()).unwrap() {
            Command::Server(config) => *config,
            other => panic!("{other:?}"),
        }
    }

    async fn start(&self, name: &str, token: &str, store: &Arc<dyn Store>) -> Server {
        let config = self.config(name, &format!("--token {token}"));
        Server::start_on(&config, Arc::clone(store)).await.unwrap()
    }

    /// Two servers on one database, each by a store of its own.
    async fn start_both(&self, database: &str) -> [Server; 2] {
        let endpoint = endpoint::parse(database, false).unwrap();
        let folder = self.dir("stores");
        let start = async |name| {
            let store = server::store::open(&endpoint, &Tls::default(), &folder.join("none/file")).await;
            self.start(name, "secret", &store.unwrap()).await
        };
        [start("a").await, start("b").await]
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn file(server: &Server, name: &str) -> String {
    std::fs::read_to_string(server.dir().join(name)).unwrap()
}

fn store() -> Arc<dyn Store> {
    Arc::new(Memory::new())
}

fn map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } })
}

/// Ports of the servers that the endpoints name.
async fn servers(at: &Server) -> Vec<u64> {
    let endpoints = at.client.get(What::ENDPOINTS, "default", "kubernetes").await.unwrap();
    let ports = |subset: &Value| subset["ports"][0]["port"].as_u64().unwrap();
    endpoints["subsets"].as_array().unwrap().iter().map(ports).collect()
}

fn port(server: &Server) -> u64 {
    server.address.port().into()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(PATIENCE, waiting).await.is_ok(), "waited in vain until {what}");
}

/// A deployment has its replica set only if some server's controllers work.
async fn controllers_work(at: &Server, name: &str) {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": { "replicas": 1, "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "c", "image": "i" }] } } },
    });
    at.client
        .create(What::DEPLOYMENTS, "default", deployment)
        .await
        .unwrap();
    until("the deployment has a replica set", async || {
        let sets = at.client.list(What::REPLICA_SETS, Some("default"), Filter::default());
        sets.await
            .unwrap()
            .items
            .iter()
            .any(|set| set.label("app") == Some(name))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_needs_only_the_datastore_and_the_token_and_the_first_may_go() {
    let (machines, store) = (Machines::new("join"), store());
    let a = machines.start("a", "secret", &store).await;
    let b = machines.start("b", "secret", &store).await;
    for name in ["tls/server-ca.crt", "tls/client-ca.key", "tls/service.key", "token"] {
        assert_eq!(file(&a, name), file(&b, name), "{name}");
    }
    let mut both = [port(&a), port(&b)];
    both.sort_unstable();
    until("both are endpoints", async || servers(&a).await == both).await;

    let from = From::Now;
    let maps = b
        .client
        .watch(What::CONFIG_MAPS, Some("default"), Filter::default(), from);
    let mut maps = maps.await.unwrap();
    a.client
        .create(What::CONFIG_MAPS, "default", map("seen"))
        .await
        .unwrap();
    let seen = async {
        loop {
            if let Some(WatchEvent::Change(_, item)) = maps.next().await
                && item.value()["metadata"]["name"] == "seen"
            {
                return;
            }
        }
    };
    timeout(PATIENCE, seen).await.unwrap();
    controllers_work(&b, "with-both").await;

    let port_b = port(&b);
    // `Memory` is one store object: closing it with the first server would take it from the second.
    a.leave().await;
    assert_eq!(servers(&b).await, [port_b], "who stops is no endpoint from then on");
    controllers_work(&b, "with-one").await;
    b.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_first_servers_started_at_once_are_one_cluster() {
    let (machines, store) = (Machines::new("race"), store());
    let (a, b) = tokio::join!(
        machines.start("a", "secret", &store),
        machines.start("b", "secret", &store)
    );
    for name in ["tls/server-ca.crt", "tls/service.key", "token"] {
        assert_eq!(file(&a, name), file(&b, name), "{name}");
    }
    let mut both = [port(&a), port(&b)];
    both.sort_unstable();
    until("both are endpoints", async || servers(&a).await == both).await;
    a.leave().await;
    b.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_hand_out_different_addresses_and_node_ports() {
    let (machines, store) = (Machines::new("addresses"), store());
    let a = machines.start("a", "secret", &store).await;
    let b = machines.start("b", "secret", &store).await;
    let making = (0..40).map(|number| {
        let at = if number % 2 == 0 { &a } else { &b };
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": format!("s{number}") },
            "spec": { "type": "NodePort", "ports": [{ "port": 80 }] } });
        at.client.create(What::SERVICES, "default", service)
    });
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for made in join_all(making).await {
        let spec = &made.unwrap()["spec"];
        addresses.insert(spec["clusterIP"].as_str().unwrap().to_owned());
        ports.insert(spec["ports"][0]["nodePort"].as_i64().unwrap());
    }
    assert_eq!((addresses.len(), ports.len()), (40, 40));
    addresses.insert("10.43.0.1".to_owned());
    until("every address shows whose it is, on both servers", async || {
        let shown = async |at: &Server| {
            let page = at
                .client
                .list(What::IP_ADDRESSES, None, Filter::default())
                .await
                .unwrap();
            let names = page.items.iter().map(|item| item.field("metadata.name").to_owned());
            names.collect::<BTreeSet<_>>()
        };
        shown(&a).await == addresses && shown(&b).await == addresses
    })
    .await;
    a.leave().await;
    b.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_another_token_or_none_is_told_so_and_leaves_no_trace() {
    let (machines, store) = (Machines::new("token"), store());
    let a = machines.start("a", "secret", &store).await;
    for (more, hint) in [("--token other", "not that of the cluster"), ("", "was given no token")] {
        let config = machines.config("b", more);
        let error = Server::start_on(&config, Arc::clone(&store)).await.err().unwrap();
        let error = format!("{error:#}");
        assert!(error.contains(hint), "{error}");
        let left: Vec<_> = std::fs::read_dir(Path::new(&config.data_dir).join("server"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["lock"], "nothing of a cluster is on disk");
    }
    assert_eq!(servers(&a).await, [port(&a)]);
    a.leave().await;
}

/// `k3s token rotate` at one of the servers.
async fn rotate(at: &Server, token: &str, new: &str) -> Result<String, String> {
    let line = format!(
        "k3s token rotate --server https://127.0.0.1:{} --token {token} --new-token {new}",
        at.address.port()
    );
    match config::parse(line.split_whitespace().map(Into::into), &config::surroundings()) {
        Ok(Command::Admin(admin)) => server::command::run(*admin).await.map_err(|error| format!("{error:#}")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_rotated_at_one_server_joins_nobody_at_the_others_until_they_have_it() {
    let (machines, store) = (Machines::new("rotate"), store());
    let a = machines.start("a", "secret", &store).await;
    let b = machines.start("b", "secret", &store).await;
    rotate(&a, "secret", "fresh").await.unwrap();
    for token in ["secret", "fresh"] {
        until("the other server has noticed", async || {
            let refused = rotate(&b, token, "other").await.unwrap_err();
            refused.contains("(503)") && refused.contains("restarted with the new token")
        })
        .await;
    }
    let refused = rotate(&a, "secret", "other").await.unwrap_err();
    assert!(refused.contains("(401)"), "{refused}");
    // It serves on, and its controllers or the other's work.
    controllers_work(&b, "while-behind").await;
    b.leave().await;
    let old = machines.config("b", "--token secret");
    let error = Server::start_on(&old, Arc::clone(&store)).await.err().unwrap();
    assert!(format!("{error:#}").contains("k3s token rotate"), "{error:#}");
    let b = machines.start("b", "fresh", &store).await;
    assert_eq!(file(&a, "token"), file(&b, "token"));
    rotate(&b, "fresh", "third").await.unwrap();
    until("the first is behind now", async || {
        rotate(&a, "fresh", "other").await.unwrap_err().contains("(503)")
    })
    .await;
    a.leave().await;
    b.leave().await;
}
