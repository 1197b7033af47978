//! The datastore stalls, goes, is read-only or full: reads go on, writes are told to come again, watches miss nothing.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::StreamExt as _;
use serde_json::{Value, json};
use server::registry::{Patience, Settings};
use server::request::{Client, User, What};
use server::store::{Change, Expect, Store, Write};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::faulty::{Faulty, Mode};
use crate::rig::Rig;
use crate::watching::{Lines, MAPS, map};

/// Ends a hopeless wait.
const PATIENCE: Duration = Duration::from_secs(30);

async fn rig(store: &Arc<Faulty>) -> Rig {
    let patience = Patience {
        // A busy machine may take its time over a write that nothing holds up.
        commit: Duration::from_secs(2),
        shown: Duration::from_millis(300),
    };
    let settings = Settings {
        patience,
        ..Settings::default()
    };
    Rig::on(Arc::clone(store) as _, settings).await
}

/// Another server, which the fault does not touch, writes an object.
async fn elsewhere(store: &Faulty, name: &str) {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"by": "another"},
        "metadata": {"name": name, "namespace": "default", "uid": name}});
    let write = Write::new(
        format!("/registry/configmaps/default/{name}"),
        Expect::Any,
        Change::Put(object.to_string().into()),
    );
    store.inner.write(write).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_datastore_is_away_reads_go_on_and_writes_are_told_to_come_again() {
    for (mode, words) in [
        (Mode::Stalls, "may have happened"),
        (Mode::Gone, "connection refused"),
        (Mode::ReadOnly, "readonly"),
        (Mode::Full, "full"),
    ] {
        let store = Faulty::new();
        let rig = rig(&store).await;
        let admin = rig.administrator();
        assert_eq!(admin.post(MAPS, &map("before")).await.code, 201);
        let mut tasks = JoinSet::new();
        let watch = admin.send(&mut tasks, "GET", &format!("{MAPS}?watch=1"), &[], "").await;
        let mut lines = Lines::of(watch);
        assert_eq!(lines.names(1).await, ["ADDED before"]);

        store.be(mode);
        let one = format!("{MAPS}/before");
        let merge = [("content-type", "application/merge-patch+json")];
        let (begun, during) = (Instant::now(), map("during"));
        let (created, patched, deleted) = tokio::join!(
            admin.post(MAPS, &during),
            admin.call("PATCH", &one, &merge, r#"{"data":{"a":"2"}}"#),
            admin.call("DELETE", &one, &[], ""),
        );
        assert!(begun.elapsed() < PATIENCE, "{mode:?}: a request has 60 s");
        for refused in [created, patched, deleted] {
            let (code, reason, message) = refused.refusal();
            assert_eq!((code, &*reason), (503, "ServiceUnavailable"), "{mode:?}: {message}");
            assert!(message.contains(words), "{mode:?}: {message}");
            let seconds: u32 = refused.header("retry-after").parse().unwrap();
            assert!((1..=30).contains(&seconds), "{mode:?}");
        }
        let listed = admin.get(MAPS).await;
        let items = listed.json()["items"].as_array().unwrap().len();
        assert_eq!((listed.code, items), (200, 1), "{mode:?}: reads come from the cache");
        assert_eq!(admin.get(&one).await.json()["data"]["a"], "1");
        assert_eq!(
            admin.get("/livez").await.code,
            200,
            "{mode:?}: nobody restarts a server for this"
        );
        elsewhere(&store, "meanwhile").await;

        store.be(Mode::Works);
        let back = async {
            // That it may have happened is said of what has, too.
            while !matches!(admin.post(MAPS, &map("after")).await.code, 201 | 409) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, back).await.unwrap();
        let seen = lines.names(2).await;
        assert_eq!(
            seen,
            ["ADDED meanwhile", "ADDED after"],
            "{mode:?}: the open watch goes on without a gap"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committed_write_is_acknowledged_although_the_server_cannot_show_it_yet() {
    let store = Faulty::new();
    let rig = rig(&store).await;
    let admin = rig.administrator();
    let mut tasks = JoinSet::new();
    let watch = admin.send(&mut tasks, "GET", &format!("{MAPS}?watch=1"), &[], "").await;
    let mut lines = Lines::of(watch);
    assert_eq!(admin.post(MAPS, &map("contested")).await.code, 201);
    assert_eq!(lines.names(1).await, ["ADDED contested"]);

    store.be(Mode::Silent);
    let made = timeout(PATIENCE, admin.post(MAPS, &map("durable"))).await.unwrap();
    assert_eq!(made.code, 201, "{}", made.text());
    assert!(
        store
            .inner
            .get("/registry/configmaps/default/durable")
            .await
            .unwrap()
            .is_some()
    );
    let revision = made.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();

    // Who asks for at least that state is not shown an older one.
    let one = format!("{MAPS}/durable?resourceVersion={revision}");
    let (code, reason, message) = admin.get(&one).await.refusal();
    assert_eq!((code, &*reason), (504, "Timeout"), "{message}");

    // What was lost against cannot be seen, so nothing can be decided: come again.
    elsewhere(&store, "contested").await;
    let merge = [("content-type", "application/merge-patch+json")];
    let patched = admin
        .call("PATCH", &format!("{MAPS}/contested"), &merge, r#"{"data":{"a":"2"}}"#)
        .await;
    assert_eq!(patched.refusal().0, 503, "{}", patched.text());
    assert_ne!(patched.header("retry-after"), "");
    store
        .inner
        .write(Write::new(
            "/registry/configmaps/default/contested",
            Expect::Any,
            Change::Delete,
        ))
        .await
        .unwrap();
    let deleted = timeout(PATIENCE, admin.call("DELETE", &format!("{MAPS}/contested"), &[], ""))
        .await
        .unwrap();
    assert_eq!(deleted.refusal().0, 503, "{}", deleted.text());

    // In process nobody goes on before he can see what he did.
    let root = Client::new(Arc::clone(&rig.api), User::new("system:apiserver", &["system:masters"]));
    let mut acting: JoinSet<Value> = JoinSet::new();
    acting.spawn(async move {
        let body = json!({"metadata": {"name": "acting"}});
        root.create(What::CONFIG_MAPS, "default", body).await.unwrap()
    });
    sleep(Duration::from_secs(1)).await;
    assert!(
        acting.try_join_next().is_none(),
        "a controller would decide on what it cannot see"
    );

    store.be(Mode::Works);
    timeout(PATIENCE, acting.join_next()).await.unwrap().unwrap().unwrap();
    assert_eq!(admin.get(&one).await.code, 200);
    let seen = lines.names(4).await;
    assert_eq!(
        seen,
        [
            "ADDED durable",
            "MODIFIED contested",
            "DELETED contested",
            "ADDED acting"
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_old_is_marked_so_and_a_write_that_was_done_is_not() {
    let store = Faulty::new();
    let rig = Rig::shared(Arc::clone(&store) as _, Settings::default()).await;
    let admin = rig.administrator();
    let merge = [("content-type", "application/merge-patch+json")];
    let one = format!("{MAPS}/kept");
    assert_eq!(admin.post(MAPS, &map("kept")).await.code, 201);
    assert_eq!(admin.get(&one).await.header("warning"), "");

    store.be(Mode::Vague);
    let dry = format!("{one}?dryRun=All");
    for (what, code, marked, answer) in [
        ("read", 200, true, admin.get(&one).await),
        ("create", 201, false, admin.post(MAPS, &map("new")).await),
        ("create again", 409, true, admin.post(MAPS, &map("new")).await),
        (
            "change",
            200,
            false,
            admin.call("PATCH", &one, &merge, r#"{"data":{"a":"2"}}"#).await,
        ),
        (
            "no change",
            200,
            true,
            admin.call("PATCH", &one, &merge, r#"{"data":{"a":"2"}}"#).await,
        ),
        (
            "dry change",
            200,
            true,
            admin.call("PATCH", &dry, &merge, r#"{"data":{"a":"3"}}"#).await,
        ),
        ("dry delete", 200, true, admin.call("DELETE", &dry, &[], "").await),
        ("delete", 200, false, admin.call("DELETE", &one, &[], "").await),
        ("delete again", 404, true, admin.call("DELETE", &one, &[], "").await),
        (
            "delete what is seen",
            200,
            true,
            admin.call("DELETE", MAPS, &[], "").await,
        ),
    ] {
        assert_eq!(answer.code, code, "{what}: {}", answer.text());
        let warning = answer.header("warning");
        assert_eq!(
            warning.contains("what the server saw last"),
            marked,
            "{what}: {warning}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_ahead_of_the_log_is_gone_unless_nobody_can_tell() {
    for shared in [false, true] {
        let store = Faulty::new();
        let rig = match shared {
            true => Rig::shared(Arc::clone(&store) as _, Settings::default()).await,
            false => Rig::on(Arc::clone(&store) as _, Settings::default()).await,
        };
        let admin = rig.administrator();
        assert_eq!(admin.post(MAPS, &map("last")).await.code, 201);
        let newest = store.inner.revision().await.unwrap();
        let mut tasks = JoinSet::new();
        let from = |revision: u64| format!("{MAPS}?watch=1&resourceVersion={revision}");
        let path = from(newest.get() + 2);
        let mut lines = Lines::of(admin.send(&mut tasks, "GET", &path, &[], "").await);
        let event = lines.next().await.unwrap();
        assert_eq!(
            (&event["type"], &event["object"]["code"]),
            (&json!("ERROR"), &json!(410)),
            "{shared}"
        );
        assert_eq!(event["object"]["reason"], "Expired");
        assert_eq!(lines.next().await, None);
        // The present is not ahead.
        let mut lines = Lines::of(admin.send(&mut tasks, "GET", &from(newest.get()), &[], "").await);
        if shared {
            // Another server has come further, and this one does not know.
            store.be(Mode::Vague);
            let watch = admin.send(&mut tasks, "GET", &path, &[], "").await;
            let mut further = Lines::of(watch);
            for name in ["one", "two", "three"] {
                elsewhere(&store, name).await;
            }
            assert_eq!(further.names(1).await, ["ADDED three"]);
            assert_eq!(lines.names(1).await, ["ADDED one"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_wait_for_the_datastore_keep_no_reader_waiting() {
    /// More than may be under way at once.
    const WRITERS: usize = 250;
    let store = Faulty::new();
    let rig = Rig::on(Arc::clone(&store) as _, Settings::default()).await;
    let group = "rbac.authorization.k8s.io";
    let binding = json!({"metadata": {"name": "crowd"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": group, "kind": "Group", "name": "crowd"}]});
    let bindings = format!("/apis/{group}/v1/clusterrolebindings");
    assert_eq!(rig.administrator().post(&bindings, &binding).await.code, 201);
    let one = rig.named("one", &["crowd"]);
    let allowed = async {
        while one.get(MAPS).await.code != 200 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, allowed).await.unwrap();
    store.be(Mode::Stalls);
    let mut writing = futures_util::stream::FuturesUnordered::new();
    for number in 0..WRITERS {
        let one = &one;
        writing.push(async move { one.post(MAPS, &map(&format!("m{number}"))).await.code });
    }
    // The first that is answered had no place: all the others are under way then.
    let first = async { timeout(PATIENCE, writing.next()).await.unwrap() };
    assert_eq!(first.await, Some(429));
    let reading = timeout(Duration::from_secs(10), one.get(MAPS));
    tokio::select! {
        read = reading => assert_eq!(read.unwrap().code, 200),
        // They are driven on meanwhile.
        () = async { while writing.next().await.is_some() {} } => panic!("the writes have ended"),
    }
}
