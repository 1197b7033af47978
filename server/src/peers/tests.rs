//! Servers that share one store in memory, in paused time: who is seen, who is missed, who leads.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use agent::units::Revision;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::subscriber::set_default;

use super::*;
use crate::auth::guard::Authorizer;
use crate::cache::Cache;
use crate::kinds;
use crate::registry::{RealWorld, Registry, Settings};
use crate::request::User;
use crate::store::refusing::Refusing;
use crate::store::{Change, Expect, Store, StoreError, Write};
use crate::tunnel::Sessions;

struct Server {
    api: Arc<Api>,
    peers: Peers,
    client: Client,
    /// What leads on this server.
    leads: Arc<AtomicBool>,
    acting: JoinSet<()>,
    _serving: JoinSet<()>,
}

/// True until it is dropped.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Server {
    async fn start(store: &Arc<Refusing>, address: &str) -> Self {
        Self::start_as(store, address, address).await.unwrap().0
    }

    /// Starts the server `node`; also what says where it is.
    async fn start_as(
        store: &Arc<Refusing>,
        node: &str,
        address: &str,
    ) -> Result<(Self, watch::Sender<Place>), Status> {
        let mut serving = JoinSet::new();
        let store: Arc<dyn Store> = Arc::clone(store) as _;
        let cache = Cache::start(Arc::clone(&store), kinds::indexer(), &mut serving)
            .await
            .unwrap();
        let registry = Registry::new(store, cache.clone(), Arc::new(RealWorld), Settings::default());
        let registry = Arc::new(registry);
        let api = Arc::new(Api::new(Arc::clone(&registry) as _, Arc::new(Authorizer::new(cache))));
        let client = Client::new(
            Arc::clone(&api),
            User::new("system:k3s-supervisor", &["system:masters"]),
        );
        for name in ["default", "kube-system"] {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            let _ = client.create(What::NAMESPACES, "", namespace).await;
        }
        let (moving, place) = watch::channel(at(address));
        let peers = Peers::new(client.clone(), registry, node, place).unwrap();
        peers.alone().await?;
        peers.arrive().await.unwrap();
        let (mut acting, leads) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
        acting.spawn(peers.clone().stay(Sessions::new()));
        let flag = Arc::clone(&leads);
        acting.spawn(peers.clone().stand(move |acting| {
            flag.store(true, Ordering::Relaxed);
            let flag = Flag(Arc::clone(&flag));
            acting.spawn(async move {
                let _flag = flag;
                std::future::pending().await
            });
        }));
        let server = Self {
            api,
            peers,
            client,
            leads,
            acting,
            _serving: serving,
        };
        Ok((server, moving))
    }

    fn leads(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    async fn servers(&self) -> BTreeSet<String> {
        let all = endpoints::present(&self.client).await.unwrap();
        all.iter().map(ToString::to_string).collect()
    }

    /// What a controller has in hand.
    fn controller(&self) -> Client {
        let masters = User::new("system:admin", &["system:masters"]);
        Client::new(self.peers.leaders(&self.api).1, masters)
    }

    async fn crash(&mut self) {
        self.acting.shutdown().await;
    }

    async fn stop(&mut self) {
        self.acting.shutdown().await;
        self.peers.leave().await;
    }
}

const A: &str = "192.0.2.1:6443";
const B: &str = "192.0.2.2:6443";
/// No longer does a dead server count.
const NOTICED: Duration = Duration::from_secs(15);

/// Where a server is; empty: nowhere yet.
fn at(address: &str) -> Place {
    Place {
        address: address.parse().unwrap_or(([127, 0, 0, 1], 6443).into()),
        reachable: !address.is_empty(),
    }
}

async fn until(mut is_so: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain");
        sleep(Duration::from_millis(50)).await;
    }
    begun.elapsed()
}

fn map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } })
}

fn both() -> BTreeSet<String> {
    [A, B].map(str::to_owned).into()
}

#[tokio::test(start_paused = true)]
async fn live_servers_are_the_endpoints_and_a_dead_one_is_missed_in_time() {
    let store = Arc::default();
    let mut a = Server::start(&store, A).await;
    assert_eq!(a.servers().await, [A.to_owned()].into());
    let b = Server::start(&store, B).await;
    assert_eq!(a.servers().await, both());
    sleep(NOTICED * 4).await;
    assert_eq!(b.servers().await, both(), "who lives stays");
    assert!(a.leads() && !b.leads(), "the first one leads, and keeps the lead");
    a.crash().await;
    let took = until(async || b.servers().await == [B.to_owned()].into()).await;
    assert!(took <= NOTICED, "{took:?}");
    let took = until(async || b.leads()).await;
    assert!(took <= NOTICED, "{took:?}");
    let leases = b.client.list(What::LEASES, Some(NAMESPACE), Filter::default());
    assert_eq!(leases.await.unwrap().items.len(), 2, "its own and the lead's");
    let a = Server::start(&store, A).await;
    assert_eq!(a.servers().await, both());
    sleep(NOTICED).await;
    assert!(!a.leads() && b.leads(), "coming back takes nothing away");
}

#[tokio::test(start_paused = true)]
async fn who_stops_says_good_bye_and_is_followed_at_once() {
    let store = Arc::default();
    let mut a = Server::start(&store, A).await;
    let mut b = Server::start(&store, B).await;
    until(async || a.leads()).await;
    a.stop().await;
    assert_eq!(b.servers().await, [B.to_owned()].into());
    let took = until(async || b.leads()).await;
    assert!(took <= RETRY, "{took:?}");
    b.stop().await;
    assert_eq!(b.servers().await, [B.to_owned()].into(), "the last one stays listed");
}

#[tokio::test(start_paused = true)]
async fn while_the_datastore_is_away_nobody_leads_and_nobody_is_taken_for_dead() {
    let store: Arc<Refusing> = Arc::default();
    let a = Server::start(&store, A).await;
    let b = Server::start(&store, B).await;
    until(async || a.leads()).await;
    let acting = a.controller();
    acting.create(What::CONFIG_MAPS, "default", map("led")).await.unwrap();
    store.refuse(Some(""));
    let took = until(async || !a.leads()).await;
    assert!(took < EXPIRY, "it stops before another may begin: {took:?}");
    sleep(NOTICED * 2).await;
    assert!(!a.leads() && !b.leads());
    store.refuse(None);
    let refused = acting.create(What::CONFIG_MAPS, "default", map("stale")).await;
    assert!(refused.unwrap_err().message.contains("leads no longer"));
    until(async || a.leads() || b.leads()).await;
    for _ in 0..100 {
        assert_eq!(b.servers().await, both());
        assert!(!(a.leads() && b.leads()));
        sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_leader_of_before_has_on_its_way_does_not_happen() {
    let store: Arc<Refusing> = Arc::default();
    let mut a = Server::start(&store, A).await;
    let b = Server::start(&store, B).await;
    until(async || a.leads()).await;
    let (old, new) = (a.controller(), b.controller());
    old.create(What::CONFIG_MAPS, "default", map("led")).await.unwrap();
    store.hold(Some("/registry/configmaps/"));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { old.create(What::CONFIG_MAPS, "default", map("late")).await });
    sleep(RETRY).await;
    a.crash().await;
    until(async || b.leads()).await;
    store.hold(None);
    let refused = tasks.join_next().await.unwrap().unwrap().unwrap_err();
    assert!(refused.message.contains("taken over"), "{refused}");
    let found = b.client.get(What::CONFIG_MAPS, "default", "late").await;
    assert!(found.unwrap_err().is(Reason::NotFound));
    new.create(What::CONFIG_MAPS, "default", map("new")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_term_that_begins_too_late_begins_not_at_all() {
    let store: Arc<Refusing> = Arc::default();
    store.hold(Some("/amphipod/lead"));
    let mut a = Server::start(&store, A).await;
    sleep(RETRY).await;
    let lease = a.peers.lease("k3s").await.unwrap().unwrap();
    assert_eq!(text(&lease, &["spec", "holderIdentity"]), a.peers.holder);
    let lease = Revision::new(stamp(&lease).parse().unwrap());
    let (mut tasks, peers) = (JoinSet::new(), a.peers.clone());
    tasks.spawn(async move { peers.begin(lease, Instant::now() + NOTICED * 4).await });
    a.crash().await;
    let b = Server::start(&store, B).await;
    sleep(NOTICED).await;
    let lease = b.peers.lease("k3s").await.unwrap().unwrap();
    assert_eq!(text(&lease, &["spec", "holderIdentity"]), b.peers.holder);
    assert!(!a.leads() && !b.leads(), "whoever cannot begin does not act");
    store.hold(None);
    let refused = tasks.join_next().await.unwrap().unwrap();
    assert!(matches!(refused, Err(StoreError::Overtaken)), "{refused:?}");
    until(async || b.leads()).await;
    let written = b.controller().create(What::CONFIG_MAPS, "default", map("new")).await;
    written.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_term_the_datastore_has_lost_begins_another_one() {
    let store: Arc<Refusing> = Arc::default();
    let a = Server::start(&store, A).await;
    until(async || a.leads()).await;
    let controller = a.controller();
    controller
        .create(What::CONFIG_MAPS, "default", map("one"))
        .await
        .unwrap();
    let lost = Write::new("/amphipod/lead", Expect::Any, Change::Delete);
    store.write(lost).await.unwrap();
    let refused = controller.create(What::CONFIG_MAPS, "default", map("two")).await;
    assert!(refused.unwrap_err().message.contains("taken over"));
    let written = async || {
        controller
            .create(What::CONFIG_MAPS, "default", map("two"))
            .await
            .is_ok()
    };
    let took = until(written).await;
    assert!(took <= RENEW, "{took:?}");
    assert!(a.leads());
}

#[tokio::test(start_paused = true)]
async fn a_server_whose_address_comes_later_or_changes_is_named_by_the_one_it_has() {
    let store = Arc::default();
    let b = Server::start(&store, B).await;
    let (a, moving) = Server::start_as(&store, "a", "").await.unwrap();
    sleep(NOTICED * 2).await;
    for server in [&a, &b] {
        assert_eq!(
            server.servers().await,
            [B.to_owned()].into(),
            "loopback is no address for others"
        );
    }
    moving.send_replace(at(A));
    let took = until(async || b.servers().await == both()).await;
    assert!(took <= RENEW, "{took:?}");
    let moved = "192.0.2.9:6443";
    moving.send_replace(at(moved));
    let wanted: BTreeSet<String> = [moved, B].map(str::to_owned).into();
    let took = until(async || b.servers().await == wanted).await;
    assert!(took <= RENEW, "{took:?}");
    sleep(NOTICED * 2).await;
    assert_eq!(a.servers().await, wanted);
    let leases = b.client.list(What::LEASES, Some(NAMESPACE), Filter::default());
    assert_eq!(leases.await.unwrap().items.len(), 3, "none is left of the old address");
}

#[tokio::test(start_paused = true)]
async fn a_server_with_the_address_of_another_one_does_not_start_and_names_both() {
    let store = Arc::default();
    let (mut first, _stays) = Server::start_as(&store, "shed", A).await.unwrap();
    let refused = Server::start_as(&store, "barn", A).await.err().unwrap();
    for words in ["barn", "server shed", A, "--advertise-address", "--node-ip"] {
        assert!(refused.message.contains(words), "{words:?} is missing in {refused}");
    }
    assert_eq!(first.servers().await, [A.to_owned()].into());
    // Its machine is gone, and another one gets its address.
    first.crash().await;
    let (next, _stays) = Server::start_as(&store, "barn", A).await.unwrap();
    assert_eq!(next.servers().await, [A.to_owned()].into());
}

#[tokio::test(start_paused = true)]
async fn of_two_clones_the_elder_leaves_lease_and_endpoints_to_the_other_until_that_is_gone() {
    let store = Arc::default();
    let (elder, _stays) = Server::start_as(&store, "box", A).await.unwrap();
    let (mut clone, _stays) = Server::start_as(&store, "box", A).await.unwrap();
    let lease = async || {
        let lease = elder.peers.lease(&lease_of(A.parse().unwrap())).await.unwrap().unwrap();
        text(&lease, &["spec", "holderIdentity"]).to_owned()
    };
    let endpoints = async || {
        let endpoints = elder
            .client
            .get(What::ENDPOINTS, "default", "kubernetes")
            .await
            .unwrap();
        stamp(&endpoints).to_owned()
    };
    let before = endpoints().await;
    for _ in 0..100 {
        assert_eq!(
            lease().await,
            clone.peers.holder,
            "the Lease is not written back and forth"
        );
        sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(endpoints().await, before, "nor are the endpoints");
    clone.stop().await;
    let took = until(async || {
        elder
            .peers
            .lease(&lease_of(A.parse().unwrap()))
            .await
            .unwrap()
            .is_some()
    })
    .await;
    assert!(took <= NOTICED, "{took:?}");
    assert_eq!(lease().await, elder.peers.holder);
    assert_eq!(elder.servers().await, [A.to_owned()].into());
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn two_servers_of_one_name_both_serve_and_each_says_once_what_is_wrong() {
    let log = Log::default();
    let to = log.clone();
    let told = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || to.clone());
    let _guard = set_default(told.finish());
    let said = || {
        let lines = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        [A, B].map(|address| {
            lines
                .matches(&format!("the one at {address} are both called box"))
                .count()
        })
    };
    let store = Arc::default();
    let (mut first, _stays) = Server::start_as(&store, "box", A).await.unwrap();
    sleep(NOTICED).await;
    assert_eq!(said(), [0, 0]);
    let (second, _stays) = Server::start_as(&store, "box", B).await.unwrap();
    sleep(RENEW * 3).await;
    assert_eq!(said(), [1, 1]);
    sleep(NOTICED * 4).await;
    assert_eq!(said(), [1, 1], "once is enough");
    assert_eq!(first.servers().await, both());
    assert_eq!(second.servers().await, both());
    let others = |address: &str| [address.parse().unwrap()].into();
    assert_eq!(first.peers.others().await.unwrap(), others(B), "streams find their way");
    assert_eq!(second.peers.others().await.unwrap(), others(A));
    assert!(first.leads() && !second.leads());
    let (old, new) = (first.controller(), second.controller());
    old.create(What::CONFIG_MAPS, "default", map("led")).await.unwrap();
    new.create(What::CONFIG_MAPS, "default", map("not-led"))
        .await
        .unwrap_err();
    first.crash().await;
    let took = until(async || second.leads()).await;
    assert!(took <= NOTICED, "{took:?}");
    let took = until(async || second.servers().await == [B.to_owned()].into()).await;
    assert!(took <= NOTICED, "{took:?}");
    new.create(What::CONFIG_MAPS, "default", map("led-anew")).await.unwrap();
    let (_third, _stays) = Server::start_as(&store, "box", A).await.unwrap();
    sleep(NOTICED).await;
    assert_eq!(said(), [2, 2]);
}
