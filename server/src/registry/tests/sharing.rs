//! Several servers over one store: no two live Services share an address or a node port, and none is lost for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use agent::units::Revision;
use bytes::Bytes;
use futures_util::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::{Instant, sleep};

use super::*;
use crate::registry::ServiceRange;
use crate::store::refusing::Refusing;
use crate::store::{Change, Expect, Write};

const SERVICES: Place<'static> = ("services", "default", "", "");
const ADDRESSES: Place<'static> = ("ipaddresses", "", "", "");
/// Longer than the repair waits for the Service of a claim, with a look after it.
const REPAIRED: Duration = Duration::from_secs(700);

/// Thirteen addresses and eight ports, so that servers meet.
fn tight() -> Settings {
    Settings {
        services: ServiceRange {
            network: Ipv4Addr::new(10, 43, 0, 0),
            bits: 28,
            ports: 30_000..=30_007,
        },
        ..Settings::default()
    }
}

/// Two servers.
async fn pair(settings: &Settings) -> (Arc<Refusing>, [Cluster; 2]) {
    let store: Arc<Refusing> = Arc::default();
    let a = Cluster::on(Arc::clone(&store) as _, 1, settings.clone()).await;
    let b = Cluster::on(Arc::clone(&store) as _, 1 << 40, settings.clone()).await;
    let namespace = json!({"metadata": {"name": "default"}});
    a.create(("namespaces", "", "", ""), namespace).await.unwrap();
    b.registry.cache.reached(a.registry.cache.revision()).await;
    (store, [a, b])
}

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

fn open(name: &str) -> Value {
    service(name, json!({"type": "NodePort", "ports": [{"port": 80}]}))
}

/// What a Service has, as text.
fn slots(service: &Value) -> BTreeSet<String> {
    let address = service["spec"]["clusterIP"].as_str().map(str::to_owned);
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports = ports.filter_map(|port| Some(port["nodePort"].as_i64()?.to_string()));
    ports.chain(address).collect()
}

/// Goes through the whole log: at no revision did two Services have the same, and each had its claims. Returns what is
/// claimed in the end, and what Services have.
async fn history(store: &dyn Store) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut tail = store.watch(Revision::ZERO).await.unwrap();
    let (mut services, mut claims) = (BTreeMap::new(), BTreeSet::new());
    while let Ok(batch) = tail.try_recv() {
        for event in batch.iter() {
            let claimed = ["/registry/ipaddresses/", "/registry/nodeports/"]
                .iter()
                .find_map(|prefix| event.key.strip_prefix(prefix));
            match (claimed, &event.value) {
                (Some(slot), Some(_)) => drop(claims.insert(slot.to_owned())),
                (Some(slot), None) => drop(claims.remove(slot)),
                (None, None) => drop(services.remove(&event.key)),
                (None, Some(value)) if event.key.starts_with("/registry/services/specs/") => {
                    let mine = slots(&serde_json::from_slice(value).unwrap());
                    assert!(
                        mine.is_subset(&claims),
                        "{} has {mine:?}, claimed are {claims:?}",
                        event.key
                    );
                    services.insert(Arc::clone(&event.key), mine);
                }
                (None, Some(_)) => {}
            }
            let all: Vec<&String> = services.values().flatten().collect();
            let different: BTreeSet<&String> = all.iter().copied().collect();
            assert_eq!(all.len(), different.len(), "shared at {}: {services:?}", event.revision);
        }
    }
    (claims, services.into_values().flatten().collect())
}

#[derive(Clone, Debug)]
enum Op {
    Create(usize, u8),
    /// With an address and a port of one's own choice.
    Wish(usize, u8, u8),
    Delete(usize, u8),
    /// To a type without, or back to one with node ports.
    Turn(usize, u8, bool),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let (server, name) = (0..2_usize, 0..6_u8);
    let op = prop_oneof![
        3 => (server.clone(), name.clone()).prop_map(|(server, name)| Op::Create(server, name)),
        2 => (server.clone(), name.clone(), 0..3_u8).prop_map(|(server, name, wish)| Op::Wish(server, name, wish)),
        2 => (server.clone(), name.clone()).prop_map(|(server, name)| Op::Delete(server, name)),
        2 => (server, name, any::<bool>()).prop_map(|(server, name, with)| Op::Turn(server, name, with)),
    ];
    vec(op, 1..40)
}

async fn carry_out(servers: &[Cluster; 2], op: Op) {
    // Whether each is granted does not matter: only that nothing is shared and nothing is lost.
    let _ = match op {
        Op::Create(server, name) => servers[server]
            .create(SERVICES, open(&format!("s{name}")))
            .await
            .map(drop),
        Op::Wish(server, name, wish) => {
            let ports = json!([{"port": 80, "nodePort": 30_000 + i64::from(wish)}]);
            let spec = json!({"type": "NodePort", "clusterIP": format!("10.43.0.{}", wish + 1), "ports": ports});
            servers[server]
                .create(SERVICES, service(&format!("s{name}"), spec))
                .await
                .map(drop)
        }
        Op::Delete(server, name) => {
            let name = format!("s{name}");
            let gone = servers[server].delete(named(SERVICES, &name), DeleteOptions::default());
            gone.await.map(drop)
        }
        Op::Turn(server, name, with) => {
            let kind = if with { "NodePort" } else { "ClusterIP" };
            let patch = Patch::Merge(json!({"spec": {"type": kind}}));
            servers[server]
                .patch(named(SERVICES, &format!("s{name}")), patch)
                .await
                .map(drop)
        }
    };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_two_live_services_share_anything_and_all_is_given_back(batches in vec(ops(), 1..4)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (store, servers) = pair(&tight()).await;
            for batch in batches {
                join_all(batch.into_iter().map(|op| carry_out(&servers, op))).await;
            }
            let (claims, had) = history(&*store).await;
            assert!(had.is_subset(&claims));
            let mut repairing = JoinSet::new();
            let [a, _b] = servers;
            repairing.spawn(async move { a.registry.keep_addresses().await });
            sleep(REPAIRED).await;
            let (claims, had) = history(&*store).await;
            assert_eq!(claims, had, "a claim was leaked");
        });
    }
}

#[tokio::test]
async fn two_servers_that_create_at_once_hand_out_different_ones() {
    let (store, servers) = pair(&Settings::default()).await;
    let all = (0..60).map(|number| servers[number % 2].create(SERVICES, open(&format!("s{number}"))));
    // The two name the same address and port: one has it, the other is told so.
    let wish = json!({"type": "NodePort", "clusterIP": "10.43.0.10", "ports": [{"port": 80, "nodePort": 30_080}]});
    let wishes = servers
        .iter()
        .enumerate()
        .map(|(number, server)| server.create(SERVICES, service(&format!("wish{number}"), wish.clone())));
    let (made, wished) = tokio::join!(join_all(all), join_all(wishes));
    for made in made {
        made.unwrap();
    }
    let refused: Vec<_> = wished.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].message.contains("already allocated"), "{}", refused[0]);
    let (claims, had) = history(&*store).await;
    assert_eq!((claims.len(), claims), (122, had));
}

#[tokio::test]
async fn a_deletion_frees_for_the_other_server_and_a_change_of_type_too() {
    let (store, [a, b]) = pair(&Settings::default()).await;
    let wish = json!({"type": "NodePort", "clusterIP": "10.43.0.10", "ports": [{"port": 80, "nodePort": 30_080}]});
    a.create(SERVICES, service("one", wish.clone())).await.unwrap();
    let (page, _) = a.list(ADDRESSES, ListOptions::default()).await.unwrap();
    let claim = page.items[0].value();
    assert_eq!(
        (&claim["metadata"]["name"], &claim["spec"]["parentRef"]),
        (
            &json!("10.43.0.10"),
            &json!({"group": "", "resource": "services", "namespace": "default", "name": "one"})
        )
    );
    let seen = async |other: &Cluster| b.registry.cache.reached(other.registry.cache.revision()).await;
    a.patch(
        named(SERVICES, "one"),
        Patch::Merge(json!({"spec": {"type": "ClusterIP"}})),
    )
    .await
    .unwrap();
    seen(&a).await;
    let port = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_080}]});
    b.create(SERVICES, service("two", port)).await.unwrap();
    a.delete(named(SERVICES, "one"), DeleteOptions::default())
        .await
        .unwrap();
    seen(&a).await;
    let address = json!({"clusterIP": "10.43.0.10", "ports": [{"port": 80}]});
    b.create(SERVICES, service("three", address)).await.unwrap();
    let (claims, had) = history(&*store).await;
    assert_eq!(claims, had);
}

#[tokio::test(start_paused = true)]
async fn a_claim_left_by_a_crash_is_its_services_own_or_released_in_the_end() {
    let (store, [a, b]) = pair(&Settings::default()).await;
    let wish = |name| service(name, json!({"clusterIP": "10.43.0.10", "ports": [{"port": 80}]}));
    store.refuse(Some("/registry/services/specs/"));
    assert_eq!(a.create(SERVICES, wish("one")).await.unwrap_err().code, 503);
    store.refuse(None);
    b.registry.cache.reached(a.registry.cache.revision()).await;
    let refused = b.create(SERVICES, wish("two")).await.unwrap_err();
    assert!(
        refused.message.contains("already allocated"),
        "the Service may yet come: {refused}"
    );
    let mut repairing = JoinSet::new();
    let (b, begun) = (Arc::new(b), Instant::now());
    let server = Arc::clone(&b);
    repairing.spawn(async move { server.registry.keep_addresses().await });
    a.create(SERVICES, wish("one")).await.unwrap();
    sleep(REPAIRED).await;
    assert!(a.get(named(SERVICES, "one")).await.is_ok());
    let (claims, had) = history(&*store).await;
    assert_eq!(claims, had, "who comes back for his own claim keeps it");

    a.delete(named(SERVICES, "one"), DeleteOptions::default())
        .await
        .unwrap();
    store.refuse(Some("/registry/services/specs/"));
    assert_eq!(a.create(SERVICES, wish("one")).await.unwrap_err().code, 503);
    store.refuse(None);
    while b.create(SERVICES, wish("two")).await.is_err() {
        sleep(Duration::from_secs(10)).await;
        assert!(begun.elapsed() < REPAIRED * 3, "the claim was never released");
    }
    assert!(
        begun.elapsed() > REPAIRED + Duration::from_secs(590),
        "it was released under a Service that could yet come"
    );
}

#[tokio::test(start_paused = true)]
async fn services_from_before_claims_get_theirs() {
    let (store, [a, _b]) = pair(&Settings::default()).await;
    let old = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "old", "namespace": "default", "uid": "u"},
        "spec": {"type": "NodePort", "clusterIP": "10.43.0.10", "clusterIPs": ["10.43.0.10"],
            "ports": [{"port": 80, "nodePort": 30_080}]}});
    let write = Write::new(
        "/registry/services/specs/default/old",
        Expect::Absent,
        Change::Put(Bytes::from(old.to_string())),
    );
    let revision = store.write(write).await.unwrap();
    a.registry.cache.reached(revision).await;
    let wish = service("new", json!({"clusterIP": "10.43.0.10", "ports": [{"port": 80}]}));
    let refused = a.create(SERVICES, wish).await.unwrap_err();
    assert!(refused.message.contains("already allocated"), "{refused}");
    let mut repairing = JoinSet::new();
    let a = Arc::new(a);
    let server = Arc::clone(&a);
    repairing.spawn(async move { server.registry.keep_addresses().await });
    sleep(Duration::from_secs(60)).await;
    let (page, _) = a.list(ADDRESSES, ListOptions::default()).await.unwrap();
    assert_eq!(names(&page), ["10.43.0.10"]);
    assert!(store.get("/registry/nodeports/30080").await.unwrap().is_some());
    a.delete(named(SERVICES, "old"), DeleteOptions::default())
        .await
        .unwrap();
    assert!(store.get("/registry/nodeports/30080").await.unwrap().is_none());
}
