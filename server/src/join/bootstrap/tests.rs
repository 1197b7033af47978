//! Servers that meet on one datastore: who is first, who follows, who is turned away.

mod race;

use std::sync::Arc;

use super::*;
use crate::join::passwd::Passwd;
use crate::join::pki::{Names, Pki};
use crate::scratch::Scratch;
use crate::store::memory::Memory;

fn given(token: Option<&str>) -> Given {
    Given {
        token: token.map(Secret::new),
        agent_token: None,
    }
}

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

/// As a server starts: settle, then certificates and passwords from what is on disk.
async fn start(store: &dyn Store, dir: &Path, token: Option<&str>) -> Result<(Pki, Passwd), BootstrapError> {
    let settled = settle(store, dir, &given(token), now()).await?;
    let pki = Pki::load_or_create(dir, &Names::default(), now())?;
    let passwd = Passwd::load_or_create(dir, &settled, &pki.token_hash())?;
    Ok((pki, passwd))
}

fn shared(pki: &Pki) -> [String; 4] {
    [
        pki.client_ca_pem(),
        pki.server_ca_pem(),
        pki.request_header_ca_pem(),
        pki.service_key_pem(),
    ]
    .map(str::to_owned)
}

/// A record beside those that there are, as K3s makes it.
async fn create(store: &dyn Store, key: &str, record: &Record, secret: &Secret) -> Result<Revision, BootstrapError> {
    put_at(store, Expect::Absent, key, record, secret).await
}

async fn keys(store: &dyn Store) -> Vec<String> {
    records(store)
        .await
        .unwrap()
        .iter()
        .map(|entry| entry.key.to_string())
        .collect()
}

#[tokio::test]
async fn a_second_server_needs_only_the_token_to_be_the_same_cluster() {
    let (store, one, two) = (Memory::new(), Scratch::new("boot-one"), Scratch::new("boot-two"));
    let (first, _) = start(&store, &one.0, Some("secret")).await.unwrap();
    let (second, passwd) = start(&store, &two.0, Some("secret")).await.unwrap();
    assert_eq!(shared(&first), shared(&second));
    assert!(passwd.check("node", "secret").is_some());
    let read = |scratch: &Scratch, name: &str| std::fs::read_to_string(scratch.0.join(name)).unwrap();
    for name in [
        "tls/etcd/server-ca.key",
        "tls/etcd/peer-ca.crt",
        "cred/ipsec.psk",
        "token",
    ] {
        assert_eq!(read(&one, name), read(&two, name), "{name}");
    }
    assert_eq!(read(&one, "cred/ipsec.psk").trim().len(), 96);
    // A token of the secure form is for this cluster only.
    let three = Scratch::new("boot-three");
    start(&store, &three.0, Some(read(&one, "token").trim())).await.unwrap();
    let foreign = format!("K10{}::server:secret", "0".repeat(64));
    let error = start(&store, &three.0, Some(&foreign)).await.err().unwrap();
    assert!(matches!(error, BootstrapError::OtherCluster { .. }), "{error}");
}

#[tokio::test]
async fn an_agent_token_given_to_one_server_counts_on_all_from_their_next_start() {
    let (store, one, two) = (
        Memory::new(),
        Scratch::new("boot-agent-a"),
        Scratch::new("boot-agent-b"),
    );
    let start = async |dir: &Scratch, agents: Option<&str>| {
        let given = Given {
            agent_token: agents.map(Secret::new),
            ..given(Some("secret"))
        };
        let settled = settle(&store, &dir.0, &given, now()).await.unwrap();
        Passwd::load_or_create(&dir.0, &settled, &"0".repeat(64)).unwrap()
    };
    let agents_join_with = |passwd: &Passwd| {
        let all = ["secret", "agents", "others"];
        let good: Vec<&str> = all
            .into_iter()
            .filter(|text| passwd.check("node", text).is_some())
            .collect();
        assert!(passwd.check("server", "secret").is_some() && passwd.check("server", "agents").is_none());
        good.join(",")
    };
    for (dir, agents, expected) in [
        // The first server has it from the beginning, the second is given none.
        (&one, Some("agents"), "agents"),
        (&two, None, "agents"),
        (&one, None, "agents"),
        // It becomes another one on a cluster that exists.
        (&two, Some("others"), "others"),
        (&one, None, "others"),
        // The cluster's own takes it away again.
        (&one, Some("secret"), "secret"),
        (&two, None, "secret"),
        (&two, Some("agents"), "agents"),
        (&one, None, "agents"),
    ] {
        assert_eq!(agents_join_with(&start(dir, agents).await), expected, "{agents:?}");
    }
    let revision = store.revision().await.unwrap();
    start(&one, Some("agents")).await;
    assert_eq!(store.revision().await.unwrap(), revision, "nothing was written");
}

#[tokio::test]
async fn a_restart_changes_nothing_and_brings_back_what_was_lost() {
    let (store, dir) = (Memory::new(), Scratch::new("boot-again"));
    let (first, _) = start(&store, &dir.0, None).await.unwrap();
    let revision = store.revision().await.unwrap();
    std::fs::remove_dir_all(dir.0.join("tls")).unwrap();
    let (again, _) = start(&store, &dir.0, None).await.unwrap();
    assert_eq!(shared(&first), shared(&again));
    assert_eq!(store.revision().await.unwrap(), revision, "nothing was written");
}

#[tokio::test]
async fn a_wrong_token_or_none_is_told_and_changes_nothing() {
    let (store, one, two) = (Memory::new(), Scratch::new("boot-right"), Scratch::new("boot-wrong"));
    start(&store, &one.0, Some("secret")).await.unwrap();
    let revision = store.revision().await.unwrap();
    for (token, hint) in [(Some("other"), "not that of the cluster"), (None, "was given no token")] {
        let error = start(&store, &two.0, token).await.err().unwrap().to_string();
        assert!(error.contains(hint) && error.contains("server/token"), "{error}");
        assert!(!error.contains("secret") && !error.contains("other:"), "{error}");
        assert_eq!(std::fs::read_dir(&two.0).unwrap().count(), 0);
        assert_eq!(store.revision().await.unwrap(), revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_first_servers_at_once_agree_on_one_identity() {
    for round in 0..2 {
        let store: Arc<Memory> = Arc::default();
        let starts = ["a", "b", "c"].map(|name| {
            let store = Arc::clone(&store);
            async move {
                let dir = Scratch::new(&format!("boot-race-{round}-{name}"));
                tokio::task::yield_now().await;
                let (pki, _) = start(&*store, &dir.0, Some("secret")).await.unwrap();
                shared(&pki)
            }
        });
        let [a, b, c] = starts;
        let (a, b, c) = tokio::join!(a, b, c);
        assert!(a == b && b == c);
        assert_eq!(keys(&*store).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_first_servers_at_once_with_different_tokens_or_none_one_is_first() {
    for tokens in [[Some("a"), Some("b"), Some("c")], [None, None, None]] {
        let store: Arc<Memory> = Arc::default();
        let starts = [0, 1, 2].map(|number| {
            let (store, token) = (Arc::clone(&store), tokens[number]);
            async move {
                let dir = Scratch::new(&format!("boot-race-tokens-{}-{number}", token.is_some()));
                let started = start(&*store, &dir.0, token).await.map(drop);
                (started, std::fs::read_dir(&dir.0).unwrap().count())
            }
        });
        let [a, b, c] = starts;
        let (a, b, c) = tokio::join!(a, b, c);
        let all = [a, b, c];
        assert_eq!(all.iter().filter(|(started, _)| started.is_ok()).count(), 1);
        assert_eq!(keys(&*store).await.len(), 1);
        for (started, files) in all {
            match started {
                Ok(()) => {}
                Err(BootstrapError::WrongToken | BootstrapError::NoToken) => assert_eq!(files, 0),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_server_that_died_is_waited_for_and_cannot_come_back_as_another_first() {
    let (store, dir) = (Memory::new(), Scratch::new("boot-place"));
    let place = |expect| Write::new("/amphipod/first", expect, Change::Put(Bytes::from_static(b"{}")));
    let held = store.write(place(Expect::Absent)).await.unwrap();
    let begun = tokio::time::Instant::now();
    start(&store, &dir.0, Some("second")).await.unwrap();
    assert!(begun.elapsed() >= LOCK_PAUSE * LOCK_TRIES);
    // It was only asleep, and wakes up where it put its record.
    let change = Change::Move {
        from: "/amphipod/first".into(),
        at: held,
        value: Bytes::from_static(b"first"),
    };
    let late = write(&store, &record::key(&Secret::new("first")), Expect::Absent, change).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })));
    assert_eq!(keys(&store).await, [record::key(&Secret::new("second"))]);
    let left = Range::default();
    let left = store.list(left, None).await.unwrap().entries.len();
    assert_eq!(left, 1, "nothing but the record");
}

/// A datastore with an object in it.
async fn populated() -> Memory {
    let store = Memory::new();
    let put = Change::Put(Bytes::from_static(b"{}"));
    write(&store, "/registry/namespaces/default", Expect::Absent, put)
        .await
        .unwrap();
    store
}

async fn everything(store: &dyn Store) -> Vec<Entry> {
    store.list(Range::default(), None).await.unwrap().entries
}

#[tokio::test]
async fn a_datastore_with_objects_and_no_record_is_refused_and_left_alone() {
    let (store, dir) = (populated().await, Scratch::new("boot-no-record"));
    let before = everything(&store).await;
    let error = start(&store, &dir.0, Some("secret")).await.err().unwrap();
    assert!(matches!(error, BootstrapError::NoIdentity(_)), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("/bootstrap/") && error.contains("backup") && !error.contains("secret"),
        "{error}"
    );
    let error = start(&store, &dir.0, None).await.err().unwrap();
    assert!(matches!(error, BootstrapError::NoToken), "{error}");
    // Some of the files are not all of them.
    let source = Scratch::new("boot-no-record-source");
    start(&Memory::new(), &source.0, Some("secret")).await.unwrap();
    std::fs::create_dir_all(dir.0.join("tls")).unwrap();
    for name in ["client-ca", "server-ca", "request-header-ca"] {
        for end in ["crt", "key"] {
            let file = format!("tls/{name}.{end}");
            std::fs::copy(source.0.join(&file), dir.0.join(&file)).unwrap();
        }
    }
    let error = start(&store, &dir.0, Some("secret")).await.err().unwrap();
    assert!(matches!(error, BootstrapError::NoIdentity(_)), "{error}");
    assert_eq!(
        everything(&store).await,
        before,
        "also the key by which a server is first is gone"
    );
    assert!(!dir.0.join("cred").exists() && !dir.0.join("token").exists());
}

#[tokio::test]
async fn a_server_with_the_clusters_files_puts_a_lost_record_back() {
    let dir = Scratch::new("boot-put-back");
    let (before, _) = start(&Memory::new(), &dir.0, None).await.unwrap();
    let store = populated().await;
    let (after, _) = start(&store, &dir.0, None).await.unwrap();
    assert_eq!(shared(&before), shared(&after));
    assert_eq!(keys(&store).await.len(), 1);
    let secret = passwd::known_secret(&dir.0, &Given::default()).unwrap().unwrap();
    let second = Scratch::new("boot-put-back-second");
    let (second, _) = start(&store, &second.0, Some(secret.expose())).await.unwrap();
    assert_eq!(shared(&before), shared(&second));
}

#[tokio::test]
async fn of_two_first_servers_with_different_tokens_the_earlier_stays() {
    let (store, dir) = (Memory::new(), Scratch::new("boot-two-tokens"));
    start(&store, &dir.0, Some("first")).await.unwrap();
    // The other one has looked before the first was done, and wants to put its own record now.
    let late = Scratch::new("boot-late");
    let secret = Secret::new("late");
    let put = first::put(&store, &late.0, &given(Some("late")), Some(&secret), now()).await;
    assert!(put.unwrap().is_none());
    assert_eq!(keys(&store).await, [record::key(&Secret::new("first"))]);
    assert_eq!(std::fs::read_dir(&late.0).unwrap().count(), 0);
}

#[tokio::test]
async fn a_crash_after_the_record_is_put_leaves_the_secret_that_opens_it() {
    let (store, dir) = (Memory::new(), Scratch::new("boot-crash"));
    let secret = passwd::random_secret().unwrap();
    first::put(&store, &dir.0, &given(None), Some(&secret), now())
        .await
        .unwrap()
        .unwrap();
    let (_, passwd) = start(&store, &dir.0, None).await.unwrap();
    assert!(passwd.check("server", secret.expose()).is_some());
}

#[tokio::test]
async fn custom_authorities_are_recorded_as_they_lie_there() {
    let (store, source) = (Memory::new(), Scratch::new("boot-source"));
    let (made, _) = start(&Memory::new(), &source.0, Some("secret")).await.unwrap();
    let dir = Scratch::new("boot-custom");
    std::fs::create_dir_all(dir.0.join("tls")).unwrap();
    for name in ["tls/server-ca.crt", "tls/server-ca.key"] {
        std::fs::copy(source.0.join(name), dir.0.join(name)).unwrap();
    }
    let (pki, _) = start(&store, &dir.0, Some("secret")).await.unwrap();
    assert_eq!(pki.server_ca_pem(), made.server_ca_pem());
    assert_ne!(pki.client_ca_pem(), made.client_ca_pem());
}

#[tokio::test]
async fn records_of_old_k3s_servers_are_sealed_anew() {
    let (store, source) = (Memory::new(), Scratch::new("boot-old-source"));
    start(&store, &source.0, Some("secret")).await.unwrap();
    let entry = records(&store).await.unwrap().remove(0);
    let content = Record::open(&Secret::new("secret"), &entry.value).unwrap();
    let full = format!(
        "K10{}::server:secret",
        ca_hash(disk::server_ca(&content).unwrap().as_bytes())
    );
    for old in ["", full.as_str()] {
        let store = Memory::new();
        let old = Secret::new(old);
        create(&store, &record::key(&old), &content, &old).await.unwrap();
        let dir = Scratch::new("boot-old");
        start(&store, &dir.0, Some(&full)).await.unwrap();
        assert_eq!(keys(&store).await, [record::key(&Secret::new("secret"))]);
    }
}

#[tokio::test]
async fn a_token_of_another_cluster_leaves_an_old_record_as_it_lies() {
    let (store, source, dir) = (Memory::new(), Scratch::new("boot-pin-source"), Scratch::new("boot-pin"));
    start(&store, &source.0, Some("secret")).await.unwrap();
    let entry = records(&store).await.unwrap().remove(0);
    let content = Record::open(&Secret::new("secret"), &entry.value).unwrap();
    let (store, old) = (Memory::new(), Secret::new(""));
    create(&store, &record::key(&old), &content, &old).await.unwrap();
    let shown = async || -> Vec<_> {
        let all = records(&store).await.unwrap().into_iter();
        all.map(|entry| (entry.key, entry.value, entry.revision)).collect()
    };
    let before = shown().await;
    let foreign = format!("K10{}::server:secret", "0".repeat(64));
    let error = start(&store, &dir.0, Some(&foreign)).await.err().unwrap();
    assert!(matches!(error, BootstrapError::OtherCluster { .. }), "{error}");
    assert_eq!(shown().await, before, "keys and values");
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_lock_of_a_k3s_server_that_died_is_waited_for_and_then_lifted() {
    let (store, dir) = (Memory::new(), Scratch::new("boot-lock"));
    let write = Write::new(
        record::key(&Secret::new("secret")),
        Expect::Absent,
        Change::Put(Bytes::new()),
    );
    store.write(write).await.unwrap();
    let begun = tokio::time::Instant::now();
    settle(&store, &dir.0, &given(Some("secret")), now()).await.unwrap();
    assert!(begun.elapsed() >= LOCK_PAUSE * LOCK_TRIES);
    assert_eq!(records(&store).await.unwrap().len(), 1);
}

const ROWS: &str = "new,node,node,k3s:agent\nnew,server,server,k3s:server\n";

async fn turned(store: &dyn Store, old: &str, new: &str) -> Result<(), BootstrapError> {
    rotate(store, &Secret::new(old), &Secret::new(new), ROWS, now()).await
}

#[tokio::test]
async fn a_rotated_token_opens_the_record_and_the_old_one_does_not() {
    let (store, dir) = (Memory::new(), Scratch::new("boot-rotate"));
    let (before, _) = start(&store, &dir.0, Some("old")).await.unwrap();
    let wrong = turned(&store, "new", "old").await;
    assert!(matches!(wrong, Err(BootstrapError::WrongToken)));
    turned(&store, "old", "new").await.unwrap();
    assert_eq!(keys(&store).await, [record::key(&Secret::new("new"))]);
    let (after, _) = start(&store, &dir.0, Some("new")).await.unwrap();
    assert_eq!(shared(&before), shared(&after));
    let refused = start(&store, &dir.0, Some("old")).await;
    assert!(matches!(refused, Err(BootstrapError::WrongToken)));
    let entry = records(&store).await.unwrap().remove(0);
    let record = Record::open(&Secret::new("new"), &entry.value).unwrap();
    assert_eq!(
        record.0["PasswdFile"].content,
        ROWS.as_bytes(),
        "the old one is not in it"
    );
}

#[tokio::test]
async fn a_rotation_keeps_an_agents_secret_that_this_server_does_not_know_yet() {
    let (store, dir) = (Memory::new(), Scratch::new("boot-rotate-agents"));
    start(&store, &dir.0, Some("old")).await.unwrap();
    let with_agents = Given {
        agent_token: Some(Secret::new("agents")),
        ..given(Some("old"))
    };
    let other = Scratch::new("boot-rotate-agents-other");
    settle(&store, &other.0, &with_agents, now()).await.unwrap();
    turned(&store, "old", "new").await.unwrap();
    let settled = settle(&store, &dir.0, &given(Some("new")), now()).await.unwrap();
    assert_eq!(settled.agent_token, Some(Secret::new("agents")));
}

#[tokio::test]
async fn of_two_rotations_at_once_one_is_the_token_and_the_other_is_told() {
    let (store, dir) = (Memory::new(), Scratch::new("boot-rotate-race"));
    start(&store, &dir.0, Some("old")).await.unwrap();
    let present = records(&store).await.unwrap();
    let found = find(&present, &Secret::new("old"), &Given::default()).unwrap();
    turned(&store, "old", "first").await.unwrap();
    // The second one read the record before the first was done.
    let record = opened(&found).unwrap();
    let late = move_to(&store, found.entry, &record, &Secret::new("second")).await;
    let raced = matches!(late, Err(BootstrapError::Store(StoreError::Conflict { .. })));
    assert!(raced && keys(&store).await == [record::key(&Secret::new("first"))]);
    // It died over that; its next start has the token it had, which is none any more.
    passwd_next(&dir, "second");
    assert_eq!(resume(&store, &dir.0).await.unwrap(), Outcome::Forgotten);
    assert_eq!(keys(&store).await, [record::key(&Secret::new("first"))]);
    start(&store, &dir.0, Some("first")).await.unwrap();
}

#[tokio::test]
async fn a_rotation_that_was_forgotten_cannot_come_to_be_afterwards() {
    let (store, dir) = (Memory::new(), Scratch::new("boot-rotate-late"));
    start(&store, &dir.0, Some("old")).await.unwrap();
    let present = records(&store).await.unwrap();
    let found = find(&present, &Secret::new("old"), &Given::default()).unwrap();
    let record = opened(&found).unwrap();
    passwd_next(&dir, "new");
    assert_eq!(resume(&store, &dir.0).await.unwrap(), Outcome::Forgotten);
    // The database had held the move back.
    let late = move_to(&store, found.entry, &record, &Secret::new("new")).await;
    assert!(matches!(late, Err(BootstrapError::Store(StoreError::Conflict { .. }))));
    start(&store, &dir.0, Some("old")).await.unwrap();
}

/// As `Passwd::prepare` leaves it.
fn passwd_next(dir: &Scratch, next: &str) {
    let text = format!("K10{}::server:{next}\n", "0".repeat(64));
    std::fs::write(dir.0.join("token.next"), text).unwrap();
}

#[tokio::test]
async fn what_a_dead_rotation_of_k3s_left_costs_nobody_the_record() {
    let (store, dir) = (Memory::new(), Scratch::new("boot-rotate-leftover"));
    let (before, _) = start(&store, &dir.0, Some("old")).await.unwrap();
    let present = records(&store).await.unwrap();
    let record = opened(&find(&present, &Secret::new("old"), &Given::default()).unwrap()).unwrap();
    let left = Secret::new("left");
    create(&store, &record::key(&left), &record, &left).await.unwrap();
    let taken = turned(&store, "old", "left").await;
    assert!(matches!(taken, Err(BootstrapError::Raced)));
    // The server dies right after the datastore has moved the record.
    passwd_next(&dir, "new");
    turned(&store, "old", "new").await.unwrap();
    assert_eq!(resume(&store, &dir.0).await.unwrap(), Outcome::Finished);
    let mut kept = [record::key(&left), record::key(&Secret::new("new"))];
    kept.sort();
    assert_eq!(keys(&store).await, kept);
    let (after, _) = start(&store, &dir.0, None).await.unwrap();
    assert_eq!(shared(&before), shared(&after));
}

#[tokio::test]
async fn a_rotation_cut_off_anywhere_is_finished_or_forgotten_by_the_next_start() {
    for cut in 0..4 {
        let (store, dir) = (Memory::new(), Scratch::new(&format!("boot-rotate-cut-{cut}")));
        start(&store, &dir.0, None).await.unwrap();
        let old = passwd::known_secret(&dir.0, &Given::default()).unwrap().unwrap();
        let new = Secret::new("new");
        let before = keys(&store).await;
        // Everything a rotation does, up to the cut.
        let steps: Vec<usize> = (0..cut).collect();
        for step in &steps {
            let present = records(&store).await.unwrap();
            match step {
                0 => passwd_next(&dir, "new"),
                1 => {
                    let found = find(&present, &old, &Given::default()).unwrap();
                    let record = opened(&found).unwrap();
                    move_to(&store, found.entry, &record, &new).await.unwrap();
                }
                _ => {
                    let rows = passwd::rotated_file(&dir.0, &new).unwrap();
                    std::fs::write(dir.0.join("cred/passwd"), rows).unwrap();
                }
            }
        }
        let (_, passwd) = start(&store, &dir.0, None).await.unwrap();
        let done = cut > 1;
        let expected = if done { vec![record::key(&new)] } else { before };
        assert_eq!(keys(&store).await, expected, "cut after {cut} steps");
        assert_eq!(passwd.check("node", "new").is_some(), done, "cut after {cut} steps");
        assert_eq!(
            passwd.check("node", old.expose()).is_none(),
            done,
            "cut after {cut} steps"
        );
        assert!(!dir.0.join("token.next").exists(), "cut after {cut} steps");
    }
}
