//! Node passwords: whose name is whose, on disk, in the cluster, and how a name becomes free again.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rcgen::KeyPair;
use server::cache::{ChangeKind, Filter, From, WatchEvent};
use server::join::record::with_window;
use server::join::reenrol::Window;
use server::join::register::Register;
use server::request::{Patch, What};
use server::run::Server;
use server::store::{Change, Expect, Store as _, Write};

use crate::faulty::{Faulty, Mode};
use crate::rig::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_name_is_refused_with_the_node_the_record_and_the_cure() {
    let cluster = Cluster::start("taken").await;
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200, "first come");
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200, "the same machine again");
    let reply = cluster.join("pi", OTHER).await;
    assert_eq!(reply.code, 403);
    let message = reply.message();
    for part in [
        "node name \"pi\" is taken",
        "Secret kube-system/pi.node-password.k3s",
        "cred/node-passwd",
        "kubectl delete node pi",
        "--with-node-id",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains(OTHER) && !message.contains(PASSWORD));
    assert_eq!(cluster.join("pi-2", OTHER).await.code, 200, "another name");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_secret_node_or_row_lets_the_next_machine_have_the_name() {
    let cluster = Cluster::start("cure").await;
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200);
    cluster
        .delete(What::SECRETS, "kube-system", "pi.node-password.k3s")
        .await;
    assert_eq!(cluster.join("pi", OTHER).await.code, 200, "the Secret was deleted");

    cluster.register("pi").await;
    let secret = owned(&cluster, "pi").await;
    assert_eq!(secret["type"], "k3s.cattle.io/node-password");
    assert_eq!(secret["immutable"], true);
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 403);
    cluster.delete(What::NODES, "", "pi").await;
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200, "the Node was deleted");

    let path = cluster.dir.join("server/cred/node-passwd");
    let client = &cluster.server().client;
    let secret = client.get(What::SECRETS, "kube-system", "pi.node-password.k3s").await;
    let hash = STANDARD
        .decode(secret.unwrap()["data"]["hash"].as_str().unwrap())
        .unwrap();
    // Of this record: to take out the row of the one before says nothing of it.
    let row = format!("{},pi,pi,\n", String::from_utf8(hash).unwrap());
    until(|| std::fs::read_to_string(&path).is_ok_and(|text| text == row)).await;
    assert_eq!(cluster.join("pi", OTHER).await.code, 403);
    std::fs::write(&path, "").unwrap();
    assert_eq!(cluster.join("pi", OTHER).await.code, 200, "its row was taken out");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_node_is_still_to_come_binds_whatever_clock_it_was_made_by() {
    let store = Faulty::new();
    let cluster = Cluster::start_on("clocks", Arc::clone(&store) as _).await;
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200);
    let path = roll(&cluster);
    until(|| has_row(&path, "pi")).await;
    let (client, name) = (&cluster.server().client, "pi.node-password.k3s");
    let made = || async {
        let secret = client.get(What::SECRETS, "kube-system", name).await.unwrap();
        secret["metadata"]["creationTimestamp"].as_str().unwrap().to_owned()
    };
    // As by a server that booted in 1970, or that is behind this one.
    let long_ago = "1970-01-01T00:00:20Z";
    let key = format!("/registry/secrets/kube-system/{name}");
    let entry = store.get(&key).await.unwrap().unwrap();
    let text = String::from_utf8(entry.value.to_vec()).unwrap();
    let aged = text.replace(&made().await, long_ago);
    let write = Write::new(key, Expect::At(entry.revision), Change::Put(aged.into()));
    store.write(write).await.unwrap();
    while made().await != long_ago {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A new record has all of them looked after.
    assert_eq!(cluster.join("box", PASSWORD).await.code, 200);
    until(|| has_row(&path, "box")).await;
    assert_eq!(made().await, long_ago, "the same record");
    assert_eq!(cluster.join("pi", OTHER).await.code, 403);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_knows_its_nodes() {
    let mut cluster = Cluster::start("restart").await;
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200);
    let token = cluster.file("token");
    cluster.server.take().unwrap().stop().await.unwrap();
    cluster.server = Some(Server::start(&Cluster::config(&cluster.dir)).await.unwrap());
    assert_eq!(cluster.file("token"), token);
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200);
    assert_eq!(cluster.join("pi", OTHER).await.code, 403);
    cluster.stop().await;
}

/// The file of password records.
fn roll(cluster: &Cluster) -> std::path::PathBuf {
    cluster.dir.join("server/cred/node-passwd")
}

fn has_row(path: &std::path::Path, node: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line.contains(&format!(",{node},"))))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_taken_out_while_the_server_was_stopped_frees_that_name_only() {
    let mut cluster = Cluster::start("stopped").await;
    for node in ["pi", "box"] {
        assert_eq!(cluster.join(node, PASSWORD).await.code, 200);
    }
    let path = roll(&cluster);
    until(|| has_row(&path, "pi") && has_row(&path, "box")).await;
    cluster.server.take().unwrap().stop().await.unwrap();
    let rows = std::fs::read_to_string(&path).unwrap();
    let kept: String = rows
        .lines()
        .filter(|row| !row.contains(",pi,"))
        .map(|row| format!("{row}\n"))
        .collect();
    std::fs::write(&path, kept).unwrap();
    cluster.server = Some(Server::start(&Cluster::config(&cluster.dir)).await.unwrap());
    assert_eq!(cluster.join("box", OTHER).await.code, 403, "its row is there");
    assert_eq!(cluster.join("pi", OTHER).await.code, 200, "its row was taken out");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_missing_cut_or_empty_is_rebuilt_and_forgets_nobody() {
    let cluster = Cluster::start("rebuilt").await;
    for node in ["pi", "box"] {
        assert_eq!(cluster.join(node, PASSWORD).await.code, 200);
    }
    let path = roll(&cluster);
    let whole = || has_row(&path, "pi") && has_row(&path, "box");
    for damage in ["missing", "cut", "empty"] {
        until(whole).await;
        let text = std::fs::read_to_string(&path).unwrap();
        match damage {
            "missing" => std::fs::remove_file(&path).unwrap(),
            "cut" => std::fs::write(&path, &text[..text.len() - 9]).unwrap(),
            _ => std::fs::write(&path, "").unwrap(),
        }
        for node in ["pi", "box"] {
            assert_eq!(cluster.join(node, OTHER).await.code, 403, "{damage}: {node}");
            assert_eq!(cluster.join(node, PASSWORD).await.code, 200, "{damage}: {node}");
        }
    }
    until(whole).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_server_shows_the_same_records_and_heeds_a_row_taken_out_anywhere() {
    let cluster = Cluster::start("mirrors").await;
    let second = cluster.dir.join("second");
    std::fs::create_dir_all(&second).unwrap();
    let (_register, keeper) = Register::new(cluster.server().client.clone(), None, &second).unwrap();
    let mut keeping = tokio::task::JoinSet::new();
    keeping.spawn(keeper.run());
    let (first, second) = (roll(&cluster), second.join("node-passwd"));
    until(|| second.exists()).await;
    for node in ["pi", "box"] {
        assert_eq!(cluster.join(node, PASSWORD).await.code, 200);
    }
    let same = || {
        let text = |path| std::fs::read_to_string(path).unwrap_or_default();
        has_row(&first, "pi") && has_row(&first, "box") && text(&first) == text(&second)
    };
    until(same).await;
    cluster
        .delete(What::SECRETS, "kube-system", "pi.node-password.k3s")
        .await;
    until(|| !has_row(&first, "pi") && !has_row(&second, "pi")).await;
    assert_eq!(cluster.join("pi", OTHER).await.code, 200);
    until(same).await;
    // At the second server, while the node asks the first: that one's own file is as it was.
    let text = std::fs::read_to_string(&second).unwrap();
    let kept = text.lines().filter(|row| !row.contains(",pi,"));
    std::fs::write(&second, kept.map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let free = async {
        while cluster.join("pi", PASSWORD).await.code != 200 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    // Without a look at the file it would be the next sweep, after a minute.
    tokio::time::timeout(Duration::from_secs(30), free).await.unwrap();
    assert_eq!(cluster.join("box", OTHER).await.code, 403, "its row is there");
    until(same).await;
    keeping.shutdown().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_password_proves_who_it_is_with_its_old_key() {
    let cluster = Cluster::start("proof").await;
    let key = KeyPair::generate().unwrap();
    let token = basic("node", "secret");
    let ask = |password: &str, key: &KeyPair| cluster.certificate_request("pi", password, Some(&token), key);
    let reply = cluster.send(ask(PASSWORD, &key), None).await;
    let held = Certificate {
        chain: reply.body,
        key: key.serialize_pem(),
    };
    let stranger = cluster.joined("box").await;
    assert_eq!(
        cluster.send(ask(OTHER, &key), None).await.code,
        403,
        "the public key is no proof"
    );
    let reply = cluster.send(ask(OTHER, &key), Some(&stranger)).await;
    assert_eq!(reply.code, 403, "another node's certificate is none either");
    assert_eq!(cluster.send(ask(OTHER, &key), Some(&held)).await.code, 200);
    assert_eq!(
        cluster.send(ask(PASSWORD, &key), None).await.code,
        403,
        "the old password is gone"
    );
    assert_eq!(cluster.send(ask(OTHER, &key), None).await.code, 200);

    cluster
        .delete(What::SECRETS, "kube-system", "pi.node-password.k3s")
        .await;
    let newer = KeyPair::generate().unwrap();
    assert_eq!(
        cluster.send(ask(PASSWORD, &newer), None).await.code,
        200,
        "another machine"
    );
    let reply = cluster.send(ask(OTHER, &key), Some(&held)).await;
    assert_eq!(
        reply.code, 403,
        "who had the name before has a certificate, and not the name"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_nobodys_at_no_moment_of_a_registration_anew() {
    let cluster = Cluster::start("anew").await;
    let held = cluster.joined("pi").await;
    let path = roll(&cluster);
    until(|| has_row(&path, "pi")).await;
    let before = std::fs::read_to_string(&path).unwrap();
    let client = &cluster.server().client;
    let secrets = client.watch(What::SECRETS, Some("kube-system"), Filter::default(), From::Now);
    let mut secrets = secrets.await.unwrap();

    let key = KeyPair::from_pem(&held.key).unwrap();
    let ask = cluster.certificate_request("pi", OTHER, Some(&basic("node", "secret")), &key);
    assert_eq!(cluster.send(ask, Some(&held)).await.code, 200);
    let (kind, item) = loop {
        match secrets.next().await.unwrap() {
            WatchEvent::Change(kind, item) if item.key.ends_with("/pi.node-password.k3s") => break (kind, item),
            WatchEvent::Change(..) | WatchEvent::Bookmark { .. } => {}
        }
    };
    assert_eq!(kind, ChangeKind::Modified, "it is neither deleted nor made");
    let secret = item.value();
    assert_eq!(secret["immutable"], true);
    assert!(secret["metadata"]["annotations"]["amphipod.io/client-key"].is_string());
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 403);
    // Long before the minute is over after which all records are looked at.
    until(|| has_row(&path, "pi") && std::fs::read_to_string(&path).unwrap() != before).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_look_tells_nodes_to_come_again_and_changes_nothing() {
    for mode in [Mode::Gone, Mode::Stalls] {
        let store = Faulty::new();
        let cluster = Cluster::start_on(&format!("{mode:?}"), Arc::clone(&store) as _).await;
        assert_eq!(cluster.join("pi", PASSWORD).await.code, 200);
        let held = cluster.joined("gone").await;
        let path = roll(&cluster);
        until(|| has_row(&path, "pi") && has_row(&path, "gone")).await;
        let rows = std::fs::read_to_string(&path).unwrap();

        store.be(mode);
        let renewal = cluster.certificate_request("gone", PASSWORD, None, &KeyPair::generate().unwrap());
        // Its Node may have come, the record may have gone, or a window may have been opened, elsewhere.
        let (new, other, node) = tokio::join!(
            cluster.join("new", PASSWORD),
            cluster.join("pi", OTHER),
            cluster.send(renewal, Some(&held)),
        );
        for (reply, words) in [
            (new, "cannot check the password of node \"new\" now"),
            (other, "cannot check the password of node \"pi\" now"),
            (node, "cannot look for node \"gone\" now"),
        ] {
            assert_eq!(reply.code, 503, "{mode:?}: {reply:?}");
            assert!(reply.message().contains(words), "{mode:?}: {reply:?}");
            assert!(reply.retry_after.is_some(), "{mode:?}: {reply:?}");
        }
        if mode == Mode::Gone {
            let known = cluster.join("pi", PASSWORD).await;
            assert_eq!(
                known.code, 200,
                "what was seen last is good enough to let in: {known:?}"
            );
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), rows, "{mode:?}");

        store.be(Mode::Works);
        // Its follower is back when it can say no.
        let mut reply = cluster.join("pi", OTHER).await;
        for _ in 0..600 {
            if reply.code != 503 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            reply = cluster.join("pi", OTHER).await;
        }
        assert_eq!(reply.code, 403, "{mode:?}: {reply:?}");
        assert_eq!(cluster.join("pi", PASSWORD).await.code, 200, "{mode:?}");
        assert_eq!(
            cluster.join("new", OTHER).await.code,
            200,
            "{mode:?}: it never was there"
        );
        cluster.stop().await;
    }
}

/// A window, as `k3s node reenrol` opens it; without `opened`, as it did before.
async fn open(cluster: &Cluster, node: &str, opened: Option<Timestamp>, until: Timestamp) {
    let patch = Patch::Merge(with_window(&Window { opened, until }));
    let (client, name) = (&cluster.server().client, format!("{node}.node-password.k3s"));
    let patched = client.patch(What::SECRETS, "kube-system", &name, None, patch);
    patched.await.unwrap();
}

async fn has_window(cluster: &Cluster, node: &str) -> bool {
    let (client, name) = (&cluster.server().client, format!("{node}.node-password.k3s"));
    let secret = client.get(What::SECRETS, "kube-system", &name).await.unwrap();
    let annotation = |name| !secret["metadata"]["annotations"][name].is_null();
    annotation("amphipod.io/reenrol-until") || annotation("amphipod.io/reenrol-opened")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_nobody_used_is_taken_off_and_another_stays() {
    let cluster = Cluster::start("lapsed").await;
    for node in ["pi", "box"] {
        assert_eq!(cluster.join(node, PASSWORD).await.code, 200);
    }
    let now = Timestamp::now().as_second();
    let at = |second| Timestamp::from_second(second).unwrap();
    // Its dates are those of a clock that is wrong: only that it is a second long counts.
    open(&cluster, "pi", Some(at(now + 86_400)), at(now + 86_401)).await;
    open(&cluster, "box", Some(at(now - 900)), at(now - 300)).await;
    let taken_off = async {
        for number in 0.. {
            if !has_window(&cluster, "pi").await {
                break;
            }
            // The records are looked after when there is a new one; without it, each minute.
            assert_eq!(cluster.join(&format!("n{number}"), PASSWORD).await.code, 200);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), taken_off).await.unwrap();
    assert!(
        has_window(&cluster, "box").await,
        "over by this server's clock, which may be ahead of all others"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_lets_one_machine_in_and_closes() {
    let cluster = Cluster::start("window").await;
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 200);
    cluster.register("pi").await;
    owned(&cluster, "pi").await;
    let at = |minutes: i64| Timestamp::from_second(Timestamp::now().as_second() + 60 * minutes).unwrap();
    for (opened, until, what) in [
        (None, at(-1), "over"),
        (None, at(60 * 25), "longer than any"),
        // As to a server whose clock stepped back since.
        (
            Some(at(60 * 24 * 300)),
            at(60 * 24 * 300 + 10),
            "to be opened next year",
        ),
    ] {
        open(&cluster, "pi", opened, until).await;
        assert_eq!(cluster.join("pi", OTHER).await.code, 403, "{what}");
    }
    open(&cluster, "pi", Some(at(0)), at(10)).await;
    assert_eq!(cluster.join("pi", OTHER).await.code, 200);
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 403, "closed after use");
    assert_eq!(cluster.join("pi", OTHER).await.code, 200);
    owned(&cluster, "pi").await;
    assert!(!has_window(&cluster, "pi").await);
    let events = cluster
        .server()
        .client
        .list(What::EVENTS, Some("default"), Filter::default());
    let events = events.await.unwrap();
    let reasons: Vec<String> = events
        .items
        .iter()
        .map(|item| item.value()["reason"].to_string())
        .collect();
    for reason in ["\"NodeReenrolled\"", "\"NodePasswordValidationFailed\""] {
        assert!(reasons.iter().any(|found| found == reason), "{reason}: {reasons:?}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_damaged_password_file_gets_in_by_its_key_and_is_told_what_helps_without_it() {
    let cluster = Cluster::start("damaged").await;
    agent_joins(&cluster, "pi", "machine", "secret").await.unwrap();
    let path = cluster.dir.join("machine/etc/password");
    let whole = std::fs::read_to_string(&path).unwrap();

    let cert = cluster.dir.join("machine/agent/client-kubelet.crt");
    let aside = cluster.dir.join("client-kubelet.crt");
    std::fs::rename(&cert, &aside).unwrap();
    std::fs::write(&path, &whole[..10]).unwrap();
    let error = agent_joins(&cluster, "pi", "machine", "secret").await.err().unwrap();
    for part in ["node name \"pi\" is taken", "k3s node reenrol pi", "is damaged"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        &whole[..10],
        "it can still be put back"
    );

    std::fs::rename(&aside, &cert).unwrap();
    agent_joins(&cluster, "pi", "machine", "secret").await.unwrap();
    let settled = std::fs::read_to_string(&path).unwrap();
    assert!(
        settled.len() == whole.len() && settled != whole,
        "a password that the server knows"
    );
    agent_joins(&cluster, "pi", "machine", "secret").await.unwrap();
    assert_eq!(
        cluster.join("pi", whole.trim()).await.code,
        403,
        "the lost one is worth nothing"
    );
    cluster.stop().await;
}
