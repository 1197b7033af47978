//! A kubelet's pods on a node that is played, in a time that passes only while everybody waits.
//!
//! Tests run it under `#[tokio::test(start_paused = true)]`: ten minutes of back-off take no time, and a delay that is
//! asserted is exact but for the steps in which [`Rig::until`] looks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::api::FakeApi;
use super::{Behaviour, Fake};
use crate::kubelet::host::{Host, NetworkState};
use crate::kubelet::links::Links;
use crate::kubelet::node::Machine;
use crate::kubelet::ports::{Api, Network, Networks};
use crate::kubelet::settings::Settings;
use crate::kubelet::{event, keeper, node, pods};
use crate::scratch::TempDir;
use crate::wire::object::{list, text};

/// Where the node's own object is, and its lease.
pub const NODE: &str = "/api/v1/nodes/box";
pub const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/box";
/// How long after something has happened [`Rig::until`] looks, and how often for what happens beside runtime and API, such as in
/// files. Each look copies what it looks at, and a test may wait for an hour.
const STEP: Duration = Duration::from_millis(10);
const LOOK: Duration = Duration::from_secs(1);
/// What has not happened by then never will.
const LONG: Duration = Duration::from_secs(3600);

/// Who has which address.
#[derive(Default)]
pub struct FakeNetwork(Mutex<BTreeMap<String, IpAddr>>);

impl FakeNetwork {
    /// Pods that have an address.
    pub fn attached(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }
}

impl Network for FakeNetwork {
    fn attach<'a>(&'a self, pod_uid: &'a str, _netns: &'a Path) -> BoxFuture<'a, Result<IpAddr, String>> {
        Box::pin(async move {
            let mut all = self.0.lock().unwrap();
            let next = u8::try_from(all.len()).unwrap() + 2;
            let new = IpAddr::V4(Ipv4Addr::new(10, 42, 0, next));
            Ok(*all.entry(pod_uid.into()).or_insert(new))
        })
    }

    fn detach<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            self.0.lock().unwrap().remove(pod_uid);
            Ok(())
        })
    }

    fn retain(&self, alive: &BTreeSet<String>) -> Result<(), String> {
        self.0.lock().unwrap().retain(|uid, _| alive.contains(uid));
        Ok(())
    }
}

struct Started(Arc<FakeNetwork>);

impl Networks for Started {
    fn start<'a>(&'a self, _range: &'a str) -> BoxFuture<'a, Result<Arc<dyn Network>, String>> {
        Box::pin(async { Ok(self.0.clone() as Arc<dyn Network>) })
    }
}

/// The node. Its agent may die and start again; runtime, network, disk and API stay.
pub struct Rig {
    pub fake: Arc<Fake>,
    pub api: Arc<FakeApi>,
    pub network: Arc<FakeNetwork>,
    up: watch::Sender<NetworkState>,
    settings: Settings,
    dir: TempDir,
    host: Option<Arc<Host>>,
    agent: JoinSet<()>,
}

impl Rig {
    /// A node with image `i` and a pod network, whose agent runs.
    pub fn start() -> Self {
        let mut rig = Self::offline();
        rig.network_comes();
        rig.agent_starts();
        rig
    }

    /// One without a pod network, whose agent does not run yet.
    pub fn offline() -> Self {
        let dir = TempDir::new("node");
        let mut settings = Settings::new("box", dir.path());
        settings.logs = dir.path().join("logs");
        settings.node_ips = vec![Ipv4Addr::new(192, 0, 2, 1).into()].into();
        let fake = Arc::new(Fake::default());
        fake.images.lock().unwrap().insert("i".into());
        Self {
            fake,
            api: Arc::default(),
            network: Arc::default(),
            up: watch::channel(NetworkState::Missing("it is being made".into())).0,
            settings,
            dir,
            host: None,
            agent: JoinSet::new(),
        }
    }

    pub fn network_comes(&self) {
        self.up.send_replace(NetworkState::Up(self.network.clone()));
    }

    pub fn network_goes(&self) {
        self.up.send_replace(NetworkState::Missing("it is being made".into()));
    }

    pub fn agent_starts(&mut self) {
        let api: Arc<dyn Api> = self.api.clone();
        let (events, writing) = event::recorder(api.clone(), "kubelet", "box".into());
        let (keeper, keeping) = keeper::keeper();
        let host = Arc::new(Host {
            settings: self.settings.clone(),
            machine: Machine::default(),
            api,
            containers: self.fake.clone(),
            network: self.up.subscribe(),
            events,
            reports: Arc::default(),
            roll: Arc::default(),
            keeper,
            links: Links::default(),
        });
        self.agent.spawn(writing);
        self.agent.spawn(keeping);
        let reporting = host.clone();
        self.agent
            .spawn(async move { reporting.reports.run(reporting.api.as_ref()).await });
        self.agent.spawn(pods::keep(host.clone()));
        self.host = Some(host);
    }

    /// Has the agent that runs keep its Node and lease, too. The Node is there, with its range of addresses.
    pub fn registers(&mut self) {
        self.api.put(NODE, json!({"spec": {"podCIDR": "10.42.0.0/24"}}));
        let networks = Arc::new(Started(self.network.clone()));
        let host = self.host.clone().unwrap();
        self.agent.spawn(node::keep(host, networks, self.up.clone()));
    }

    /// Ends the agent as a crash does.
    pub async fn agent_dies(&mut self) {
        self.agent.shutdown().await;
    }

    /// Gives the node a pod `ns/NAME` with uid NAME.
    pub fn run(&self, name: &str, spec: Value) {
        let mut spec = spec;
        if let Value::Object(spec) = &mut spec {
            spec.insert("nodeName".into(), "box".into());
        }
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": spec,
        });
        self.api.put(&path(name), pod);
    }

    /// Deletes it, with this many seconds for its containers.
    pub fn delete(&self, name: &str, grace: i64) {
        self.api.delete_pod(&path(name), grace);
    }

    /// What the API knows of the pod, `null` if it is not there.
    pub fn pod(&self, name: &str) -> Value {
        self.api.object(&path(name)).unwrap_or_default()
    }

    /// The phase that the API knows.
    pub fn phase(&self, name: &str) -> String {
        text(&self.pod(name), &["status", "phase"]).to_owned()
    }

    /// The status of a container that the API knows.
    pub fn container(&self, name: &str, container: &str) -> Value {
        let pod = self.pod(name);
        let all = ["initContainerStatuses", "containerStatuses"].map(|key| list(&pod, &["status", key]).to_vec());
        let found = all.into_iter().flatten().find(|it| text(it, &["name"]) == container);
        found.unwrap_or_default()
    }

    /// Why the container waits.
    pub fn reason(&self, name: &str, container: &str) -> String {
        text(&self.container(name, container), &["state", "waiting", "reason"]).to_owned()
    }

    pub fn restarts(&self, name: &str, container: &str) -> i64 {
        self.container(name, container)["restartCount"]
            .as_i64()
            .unwrap_or_default()
    }

    /// Starts so far, as `container attempt`.
    pub fn started(&self) -> Vec<String> {
        self.fake.started.lock().unwrap().clone()
    }

    /// Signals so far, as `container signal`.
    pub fn signals(&self) -> Vec<String> {
        self.fake.signals.lock().unwrap().clone()
    }

    /// Commands so far, as `container words`.
    pub fn commands(&self) -> Vec<String> {
        self.fake.commands.lock().unwrap().clone()
    }

    /// What a command does from now on.
    pub fn behave(&self, command: &str, code: i32, lasts: Duration) {
        let behaviour = Behaviour { code, lasts };
        self.fake.behaviour.lock().unwrap().insert(command.into(), behaviour);
    }

    /// Loses what is kept of a pod for times without a server.
    pub fn forget_kept(&self, name: &str) {
        std::fs::remove_file(self.settings.root.join("kept-pods").join(name)).unwrap();
    }

    /// Where a file of a pod's folder is.
    pub fn path(&self, name: &str, path: &str) -> PathBuf {
        self.settings.root.join("pods").join(name).join(path)
    }

    /// What is in a file of a pod's folder.
    pub fn file(&self, name: &str, path: &str) -> String {
        std::fs::read_to_string(self.path(name, path)).unwrap_or_default()
    }

    /// Waits until something is so; how long that took.
    pub async fn until(&self, what: &str, mut so: impl FnMut(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        let (mut told, mut done) = (self.api.news(), self.fake.news.subscribe());
        while !so(self) {
            assert!(
                begun.elapsed() < LONG,
                "never: {what}; started {:?}, signalled {:?}",
                self.started(),
                self.signals()
            );
            tokio::select! {
                _ = told.changed() => {}
                _ = done.changed() => {}
                () = sleep(LOOK) => {}
            }
            sleep(STEP).await;
        }
        begun.elapsed()
    }

    /// Waits until the pod is gone from the API, then makes sure that nothing of it is left on the node.
    pub async fn until_gone(&self, name: &str) -> Duration {
        let took = self.until("the pod is gone", |rig| rig.pod(name).is_null()).await;
        sleep(Duration::from_secs(1)).await; // what is forgotten on disk is forgotten in the background
        assert!(self.fake.state(name).is_none(), "a sandbox is left");
        assert!(
            !self.network.attached().contains(&name.to_owned()),
            "an address is left"
        );
        let root = &self.settings.root;
        for left in [root.join("pods"), root.join("kept-pods"), root.join("kept-objects")] {
            assert!(!left.join(name).exists(), "{} is left", left.join(name).display());
        }
        let logs = self.dir.path().join("logs").join(format!("ns_{name}_{name}"));
        assert!(!logs.exists(), "logs are left");
        took
    }
}

/// Where a pod lives.
pub fn path(name: &str) -> String {
    format!("/api/v1/namespaces/ns/pods/{name}")
}
