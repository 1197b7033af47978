//! The store in etcd, against real clusters of it: one member and three, killed, paused, cut off.

mod cutter;

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::units::Revision;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use server::cache::{Cache, Filter, From, Index};
use server::store::endpoint::{self, Tls};
use server::store::{Expect, OpenError, Store, StoreError, etcd, open};
use tests::database::etcd::{Etcd, Form};
use tests::{in_own_namespaces, run};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::cutter::Cutter;
use crate::contract::{self, Backend, delete, drained, put, state};
use crate::faults::bear;

/// A cluster and the way into it.
struct InEtcd(Etcd);

impl InEtcd {
    fn new() -> Self {
        Self(Etcd::start().unwrap())
    }

    fn over_tls() -> Self {
        let form = Form {
            tls: true,
            ..Form::default()
        };
        Self(Etcd::start_as(form).unwrap())
    }
}

async fn open_at(text: &str, etcd: &Etcd) -> Arc<dyn Store> {
    try_open_at(text, etcd).await.unwrap()
}

async fn try_open_at(text: &str, etcd: &Etcd) -> Result<Arc<dyn Store>, OpenError> {
    try_open_with(text, &files(etcd)).await
}

async fn try_open_with(text: &str, tls: &Tls) -> Result<Arc<dyn Store>, OpenError> {
    let endpoint = endpoint::parse(text, false).unwrap();
    open(&endpoint, tls, std::path::Path::new("/nonexistent/file")).await
}

fn files(etcd: &Etcd) -> Tls {
    let files = etcd.files();
    Tls {
        ca: files.as_ref().map(|files| files.ca.clone()),
        cert: files.as_ref().map(|files| files.cert.clone()),
        key: files.map(|files| files.key),
    }
}

impl Backend for InEtcd {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        async { open_at(&self.0.endpoint(), &self.0).await }.boxed()
    }
}

contract::of_all!(InEtcd::new());
contract::of_lasting!(InEtcd::new());
contract::of_shared!(InEtcd::new());

mod over_tls {
    use super::InEtcd;

    crate::contract::checks!(InEtcd::over_tls(); writes_are_compared_and_swapped, a_watch_misses_and_repeats_nothing);
}

#[tokio::test]
async fn the_member_proves_who_it_is_and_so_do_we() {
    let InEtcd(etcd) = InEtcd::over_tls();
    let whole = files(&etcd);
    let store = try_open_with(&etcd.endpoint(), &whole).await.unwrap();
    store.write(put("/a", Expect::Absent, "1")).await.unwrap();
    store.close().await.unwrap();
    let stranger = Tls {
        ca: whole.cert.clone(),
        ..whole.clone()
    };
    let system = Tls {
        ca: None,
        ..whole.clone()
    };
    let nobody = Tls {
        cert: None,
        key: None,
        ..whole
    };
    for (tls, says) in [(stranger, "certificate"), (system, "certificate"), (nobody, "")] {
        let problem = try_open_with(&etcd.endpoint(), &tls).await.map(drop).unwrap_err();
        assert!(matches!(problem, OpenError::Etcd(_)), "{problem}");
        assert!(problem.to_string().contains(says), "{says}: {problem}");
    }
}

/// Of three members.
fn three() -> Etcd {
    let form = Form {
        members: 3,
        ..Form::default()
    };
    Etcd::start_as(form).unwrap()
}

/// How often a store was in doubt over writes: it moved its fence then.
fn doubts(etcd: &Etcd) -> i64 {
    // "amphipod/fence/" to "amphipod/fence0".
    let range = json!({ "key": "YW1waGlwb2QvZmVuY2Uv", "range_end": "YW1waGlwb2QvZmVuY2Uw" });
    let found = etcd.ask(0, "kv/range", &range).unwrap();
    let fences = found
        .get("kvs")
        .and_then(|kvs| kvs.as_array())
        .cloned()
        .unwrap_or_default();
    let moves = |kv: &serde_json::Value| kv.get("version")?.as_str()?.parse::<i64>().ok();
    fences.iter().filter_map(moves).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_log_forgets_what_is_old_by_itself() {
    let etcd = Etcd::start().unwrap();
    let settings = etcd::Settings {
        endpoints: etcd::parse(&etcd.endpoint()).unwrap(),
        tls: None,
        compaction: Duration::from_millis(200),
    };
    let store = Arc::new(etcd::Etcd::open(settings).await.unwrap());
    let first = store.write(put("/c/first", Expect::Any, "1")).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..16 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for number in 0..80 {
                let key = format!("/c/{writer}");
                store.write(put(&key, Expect::Any, &number.to_string())).await.unwrap();
            }
        });
    }
    while writers.join_next().await.transpose().unwrap().is_some() {}
    let newest = store.revision().await.unwrap();
    let forgotten = async {
        while !matches!(store.watch(first).await, Err(StoreError::Compacted { .. })) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), forgotten).await.unwrap();
    let recent = Revision::new(newest.get() - 900);
    assert!(
        store.watch(recent).await.is_ok(),
        "the last thousand revisions are kept"
    );
    assert_eq!(
        state(&*store, "/c/first", None).await.unwrap(),
        [format!("/c/first=1@{first}")]
    );
    store.close().await.unwrap();
}

#[test]
fn a_member_whose_port_is_taken_for_a_moment_starts_again_all_the_same() {
    // In the network of all tests another one may take the port in the moment in which nobody has it.
    if !in_own_namespaces("etcd::a_member_whose_port_is_taken_for_a_moment_starts_again_all_the_same") {
        return;
    }
    run("ip", &["link", "set", "lo", "up"]);
    let mut etcd = Etcd::start().unwrap();
    // Killed before it first led, it would not know after that of whom its cluster is, and nobody would lead for ever.
    assert_eq!(etcd.leader().unwrap(), 0);
    etcd.kill(0).unwrap();
    // As the near end of somebody's connection has it: nobody listens there. No client was at this port, so that no
    // connection that is over holds it yet.
    let taken = TcpSocket::new_v4().unwrap();
    taken.bind(etcd.peer_address(0)).unwrap();
    let begun = Instant::now();
    let freed = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        drop(taken);
    });
    etcd.start_again(0).unwrap();
    freed.join().unwrap();
    assert!(begun.elapsed() > Duration::from_secs(1), "it was not taken");
    assert_eq!(etcd.leader().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_of_etcd_lose_no_write_and_repeat_none() {
    let mut etcd = Etcd::start().unwrap();
    let endpoint = etcd.endpoint();
    let stores = vec![open_at(&endpoint, &etcd).await, open_at(&endpoint, &etcd).await];
    let run = bear(stores, 16, async {
        for round in 0..5_u64 {
            sleep(Duration::from_millis(150 + 70 * round)).await;
            etcd.kill(0).unwrap();
            etcd.start_again(0).unwrap();
        }
        sleep(Duration::from_millis(300)).await;
    })
    .await;
    // One for each writer: how many more is the machine's matter.
    assert!(run.acknowledged > 32, "{run:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_loses_its_leader_goes_on() {
    let mut etcd = three();
    let endpoint = etcd.endpoint();
    let stores = vec![open_at(&endpoint, &etcd).await, open_at(&endpoint, &etcd).await];
    let run = bear(stores, 8, async {
        sleep(Duration::from_millis(300)).await;
        let leader = etcd.leader().unwrap();
        etcd.kill(leader).unwrap();
        sleep(Duration::from_secs(3)).await;
        etcd.start_again(leader).unwrap();
        sleep(Duration::from_millis(500)).await;
        // One that says nothing is worse than one that is gone.
        let leader = etcd.leader().unwrap();
        etcd.pause(leader).unwrap();
        sleep(Duration::from_secs(6)).await;
        etcd.resume(leader).unwrap();
        sleep(Duration::from_millis(500)).await;
    })
    .await;
    assert!(run.acknowledged > 100, "{run:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_are_settled_as_soon_as_an_etcd_that_stood_still_goes_on() {
    let etcd = Etcd::start().unwrap();
    let store = open_at(&etcd.endpoint(), &etcd).await;
    let mut resumed = None;
    let run = bear(vec![Arc::clone(&store)], 16, async {
        sleep(Duration::from_millis(300)).await;
        etcd.pause(0).unwrap();
        // Longer than a write is tried for, and less than a doubt lasts.
        sleep(Duration::from_secs(12)).await;
        etcd.resume(0).unwrap();
        resumed = Some(Instant::now());
        sleep(Duration::from_secs(2)).await;
        let fresh = store.write(put("/fresh", Expect::Absent, "1"));
        timeout(Duration::from_secs(8), fresh).await.unwrap().unwrap();
    })
    .await;
    let took = resumed.unwrap().elapsed();
    // Left alone a doubt ends 30 s after it began, 18 s after this.
    assert!(took < Duration::from_secs(14), "{took:?}: {run:?}");
    assert!(run.doubts <= 16, "each writer had one write on its way: {run:?}");
    let moves = doubts(&etcd);
    assert!((1..=4).contains(&moves), "one doubt is all writers': {moves}: {run:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_lost_are_found_out() {
    let etcd = Etcd::start().unwrap();
    let way = Cutter::to(etcd.address(0)).await;
    let endpoint = format!("http://{}", way.address);
    let stores = vec![open_at(&endpoint, &etcd).await, open_at(&etcd.endpoint(), &etcd).await];
    let run = bear(stores, 16, async {
        for round in 0..20 {
            // A new connection takes 100 ms and, on a busy machine, more.
            way.answers(20).await;
            sleep(Duration::from_millis(7 * round)).await;
            way.cut();
        }
        sleep(Duration::from_millis(300)).await;
    })
    .await;
    assert!(run.acknowledged > 100, "{run:?}");
    assert_eq!(run.doubts, 0, "etcd was there all the time, so each could be found out");
    let doubts = doubts(&etcd);
    assert!(doubts > 3, "nothing was put to the test: {doubts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_etcd_says_so_and_comes_back() {
    let mut etcd = Etcd::start().unwrap();
    let store = open_at(&etcd.endpoint(), &etcd).await;
    let first = store.write(put("/a", Expect::Absent, "1")).await.unwrap();
    let mut tail = store.watch(Revision::new(first.get() - 1)).await.unwrap();
    assert_eq!(drained(&mut tail, 1).await, [format!("/a=1@{first}")]);
    etcd.kill(0).unwrap();
    let away = timeout(Duration::from_secs(40), store.write(put("/a", Expect::At(first), "2")))
        .await
        .unwrap();
    assert!(matches!(away, Err(StoreError::Unavailable(_))), "{away:?}");
    etcd.start_again(0).unwrap();
    let second = store.write(put("/a", Expect::At(first), "3")).await.unwrap();
    assert_eq!(drained(&mut tail, 1).await, [format!("/a=3@{second}")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_what_was_seen_ends_its_watches() {
    let mut etcd = Etcd::start().unwrap();
    let store = open_at(&etcd.endpoint(), &etcd).await;
    let first = store.write(put("/a", Expect::Absent, "1")).await.unwrap();
    etcd.kill(0).unwrap();
    etcd.keep(0).unwrap();
    etcd.start_again(0).unwrap();
    let mut tail = store.watch(first).await.unwrap();
    let seen = store.write(put("/a", Expect::At(first), "2")).await.unwrap();
    assert_eq!(drained(&mut tail, 1).await, [format!("/a=2@{seen}")]);
    etcd.kill(0).unwrap();
    etcd.put_back(0).unwrap();
    etcd.start_again(0).unwrap();
    let over = timeout(Duration::from_secs(40), tail.recv()).await.unwrap();
    assert!(over.is_none(), "it cannot go on from what is no more: {over:?}");
    assert!(matches!(store.watch(seen).await, Err(StoreError::Future { .. })));
    assert_eq!(state(&*store, "/a", None).await.unwrap(), [format!("/a=1@{first}")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_shows_at_once_what_was_written_before_it_began() {
    let etcd = Etcd::start().unwrap();
    let store = open_at(&etcd.endpoint(), &etcd).await;
    let empty = Cache::start(
        Arc::clone(&store),
        Arc::new(|_, _| Index::default()),
        &mut JoinSet::new(),
    )
    .await;
    assert_eq!(
        empty.unwrap().revision(),
        store.revision().await.unwrap(),
        "no event to wait for"
    );
    for number in 0..50 {
        let key = format!("/registry/things/{number:02}");
        store
            .write(put(&key, Expect::Absent, r#"{"metadata":{}}"#))
            .await
            .unwrap();
    }
    let another = open_at(&etcd.endpoint(), &etcd).await;
    let mut tasks = JoinSet::new();
    let cache = Cache::start(another, Arc::new(|_, _| Index::default()), &mut tasks)
        .await
        .unwrap();
    let page = cache.list("/registry/", &Filter::default(), None, None, None).unwrap();
    assert_eq!(page.items.len(), 50);
    assert_eq!(page.revision, store.revision().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_others_delete_at_once_are_gone_from_the_cache_and_end_its_watches() {
    let etcd = Etcd::start().unwrap();
    let store = open_at(&etcd.endpoint(), &etcd).await;
    let mut tasks = JoinSet::new();
    let running = Cache::start(Arc::clone(&store), Arc::new(|_, _| Index::default()), &mut tasks);
    let running = running.await.unwrap();
    let mut first = Revision::ZERO;
    for key in ["/registry/things/a", "/registry/things/b", "/registry/things/c"] {
        first = store.write(put(key, Expect::Absent, "{}")).await.unwrap();
    }
    let kept = store
        .write(put("/registry/others/d", Expect::Absent, "{}"))
        .await
        .unwrap();
    running.reached(kept).await;
    let begin = |cache: &Cache, after| cache.watch("/registry/things/", Filter::default(), From::After(after));
    let mut watch = begin(&running, first).unwrap();
    // "etcdctl del --prefix /registry/things/".
    let range = json!({ "key": "L3JlZ2lzdHJ5L3RoaW5ncy8=", "range_end": "L3JlZ2lzdHJ5L3RoaW5nczA=" });
    let deleted = etcd.ask(0, "kv/deleterange", &range).unwrap();
    assert_eq!(deleted["deleted"], "3");
    let newest = store.revision().await.unwrap();
    running.reached(newest).await;
    // It was deleted just now: a start finds it in the log.
    let another = open_at(&etcd.endpoint(), &etcd).await;
    let started = Cache::start(another, Arc::new(|_, _| Index::default()), &mut tasks);
    for cache in [running, started.await.unwrap()] {
        let keys: Vec<_> = cache
            .all("/registry/")
            .iter()
            .map(|item| item.key.to_string())
            .collect();
        assert_eq!(keys, ["/registry/others/d"]);
        assert!(begin(&cache, kept).is_err(), "a list must be asked for");
        assert!(begin(&cache, newest).is_ok());
    }
    let over = timeout(Duration::from_secs(10), watch.next()).await.unwrap();
    assert!(over.is_none(), "{over:?}");
}

#[tokio::test]
async fn a_user_logs_in_and_a_wrong_password_is_told() {
    let etcd = Etcd::start().unwrap();
    let address = etcd.address(0);
    let before = open_at(&format!("http://root:s%40crt@{address}"), &etcd).await;
    etcd.enable_auth("s@crt").unwrap();
    let after = open_at(&format!("http://root:s%40crt@{address}"), &etcd).await;
    let mut tail = after.watch(after.revision().await.unwrap()).await.unwrap();
    let revision = after.write(put("/a", Expect::Absent, "1")).await.unwrap();
    assert_eq!(drained(&mut tail, 1).await, [format!("/a=1@{revision}")]);
    // It was there before there were users: its first token is no token at all.
    before.write(put("/a", Expect::At(revision), "2")).await.unwrap();
    for wrong in [format!("http://root:hidden@{address}"), format!("http://{address}")] {
        let problem = try_open_at(&wrong, &etcd).await.err().unwrap().to_string();
        assert!(!problem.contains("hidden"), "{problem}");
        assert!(
            problem.contains("authentication failed") || problem.contains("user name is empty"),
            "{problem}"
        );
    }
}

#[tokio::test]
async fn what_is_too_large_for_etcd_is_told_and_harms_nothing() {
    let etcd = Etcd::start().unwrap();
    let store = open_at(&etcd.endpoint(), &etcd).await;
    store
        .write(put("/a", Expect::Absent, &"x".repeat(1_400_000)))
        .await
        .unwrap();
    for size in [1_700_000, 5_000_000] {
        let refused = store.write(put("/b", Expect::Absent, &"x".repeat(size))).await;
        assert!(matches!(refused, Err(StoreError::TooLarge(_))), "{size}: {refused:?}");
    }
    let revision = store.write(put("/b", Expect::Absent, "1")).await.unwrap();
    assert_eq!(state(&*store, "/b", None).await.unwrap(), [format!("/b=1@{revision}")]);
}

#[tokio::test]
async fn what_others_write_there_is_passed_over_and_no_revision_is_missed() {
    let etcd = Etcd::start().unwrap();
    let store = open_at(&etcd.endpoint(), &etcd).await;
    let mut tail = store.watch(store.revision().await.unwrap()).await.unwrap();
    // "compact_rev_key" = "1": kube-apiserver's.
    let theirs = json!({ "key": "Y29tcGFjdF9yZXZfa2V5", "value": "MQ==" });
    etcd.ask(0, "kv/put", &theirs).unwrap();
    let revision = store.write(put("/a", Expect::Absent, "1")).await.unwrap();
    let theirs = revision.get() - 1;
    assert_eq!(
        drained(&mut tail, 2).await,
        [format!("compact_rev_key=-@{theirs}"), format!("/a=1@{revision}")]
    );
    assert_eq!(state(&*store, "", None).await.unwrap(), [format!("/a=1@{revision}")]);
}

#[tokio::test]
async fn the_state_of_a_cluster_of_k3s_is_refused_and_left_alone() {
    let etcd = Etcd::start().unwrap();
    let ours = open_at(&etcd.endpoint(), &etcd).await;
    ours.write(put("/registry/namespaces/default", Expect::Any, "{}"))
        .await
        .unwrap();
    ours.close().await.unwrap();
    open_at(&etcd.endpoint(), &etcd).await.close().await.unwrap();
    // "/registry/namespaces/kube-system" and the beginning of an object as kube-apiserver writes it.
    let theirs =
        json!({ "key": "L3JlZ2lzdHJ5L25hbWVzcGFjZXMva3ViZS1zeXN0ZW0=", "value": "azhzAAoPCgJ2MRIJTmFtZXNwYWNl" });
    etcd.ask(0, "kv/put", &theirs).unwrap();
    let refused = try_open_at(&etcd.endpoint(), &etcd).await.err().unwrap();
    assert!(
        matches!(&refused, OpenError::EtcdOfOthers { key } if key == "/registry/namespaces/kube-system"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_long_list_comes_whole_page_by_page() {
    let etcd = Etcd::start().unwrap();
    let store = open_at(&etcd.endpoint(), &etcd).await;
    let mut wanted = Vec::new();
    for number in 0..700 {
        let key = format!("/long/{number:04}");
        let revision = store.write(put(&key, Expect::Absent, "x")).await.unwrap();
        wanted.push(format!("{key}=x@{revision}"));
    }
    assert_eq!(state(&*store, "/long/", None).await.unwrap(), wanted);
    let range = server::store::Range {
        prefix: "/long/".into(),
        after: Some("/long/0099".into()),
        limit: Some(300),
    };
    let page = store.list(range, None).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (300, true));
    assert_eq!(&*page.entries[0].key, "/long/0100");
}

/// Of two megabytes, and filled until it takes no more; the keys that are in it.
async fn full() -> (Etcd, Arc<dyn Store>, Vec<(String, Revision)>) {
    let form = Form {
        quota: Some(2 << 20),
        ..Form::default()
    };
    let etcd = Etcd::start_as(form).unwrap();
    let store = open_at(&etcd.endpoint(), &etcd).await;
    let mut written = Vec::new();
    for number in 0..100 {
        let key = format!("/k/{number:02}");
        match store.write(put(&key, Expect::Absent, &"x".repeat(100_000))).await {
            Ok(revision) => written.push((key, revision)),
            Err(StoreError::Full) => return (etcd, store, written),
            Err(other) => panic!("{other}"),
        }
    }
    panic!("it takes more than its quota");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_takes_deletes_and_then_room_can_be_made() {
    let (etcd, store, written) = full().await;
    let mut tail = store.watch(written.last().unwrap().1).await.unwrap();
    // A server that starts now has left no mark yet, and gets no lease for one.
    let fresh = open_at(&etcd.endpoint(), &etcd).await;
    for (store, (key, revision)) in [&store, &fresh].into_iter().zip(&written) {
        let wrong = store.write(delete(key, Expect::At(revision.next()))).await;
        let current = Some(*revision);
        assert!(
            matches!(wrong, Err(StoreError::Conflict { current: seen }) if seen == current),
            "{wrong:?}"
        );
        let gone = store.write(delete(key, Expect::At(*revision))).await.unwrap();
        assert_eq!(drained(&mut tail, 1).await, [format!("{key}=-@{gone}")]);
        let again = store.write(delete(key, Expect::Any)).await;
        assert!(
            matches!(again, Err(StoreError::Conflict { current: None })),
            "{again:?}"
        );
    }
    let more = store.write(put("/k/more", Expect::Absent, "1")).await;
    assert!(
        matches!(more, Err(StoreError::Full)),
        "room is made by its operator: {more:?}"
    );
    for (key, revision) in written.iter().skip(2) {
        store.write(delete(key, Expect::At(*revision))).await.unwrap();
    }
    store.compact(store.revision().await.unwrap()).await.unwrap();
    let alarms = etcd.ask(0, "maintenance/alarm", &json!({ "action": "GET" })).unwrap();
    let member = &alarms["alarms"][0]["memberID"];
    let disarm = json!({ "action": "DEACTIVATE", "memberID": member, "alarm": "NOSPACE" });
    // What is compacted goes a little later.
    let room = async {
        loop {
            etcd.ask(0, "maintenance/defragment", &json!({})).unwrap();
            etcd.ask(0, "maintenance/alarm", &disarm).unwrap();
            if store.write(put("/k/more", Expect::Any, "1")).await.is_ok() {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(Duration::from_secs(30), room).await.unwrap();
}
