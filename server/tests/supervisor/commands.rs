//! The commands of an administrator against a running server: tokens that expire, records of nodes, windows.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use agent::units::Revision;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use server::cache::{Filter, From};
use server::config::{self, Command};
use server::join::record;
use server::kinds::bootstrap_token::{BootstrapToken, from_random};
use server::request::What;
use tokio::time::{sleep, timeout};

use crate::rig::*;

/// Ends a hopeless wait.
const PATIENCE: Duration = Duration::from_secs(60);

impl Cluster {
    /// `k3s LINE`, with this cluster's kubeconfig.
    pub async fn k3s(&self, line: &str) -> Result<String, String> {
        let kubeconfig = self.dir.join("k3s.yaml");
        let line = format!("k3s {line} --kubeconfig {}", kubeconfig.display());
        match config::parse(line.split_whitespace().map(Into::into), &config::surroundings()) {
            Ok(Command::Admin(admin)) => server::command::run(*admin).await.map_err(|error| format!("{error:#}")),
            other => panic!("{other:?}"),
        }
    }

    async fn join_with(&self, node: &str, token: &str) -> Reply {
        let token = agent::wire::token::Token::parse(token).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let request = self.certificate_request(node, PASSWORD, Some(&token.authorization("node")), &key);
        self.send(request, None).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_token_joins_until_it_is_deleted() {
    let cluster = Cluster::start("bootstrap").await;
    let made = cluster.k3s("token create --description roof --ttl 2h").await.unwrap();
    let token = made.trim();
    let pinned = cluster.file("node-token");
    let (hash, _) = pinned.split_once("::").unwrap();
    assert!(
        token.starts_with(&format!("{hash}::")),
        "{token}: pins this cluster's authority"
    );
    agent_joins(&cluster, "pi", "machine", token).await.unwrap();

    let (_, bare) = token.split_once("::").unwrap();
    let (id, secret) = bare.split_once('.').unwrap();
    let listed = cluster.k3s("token list").await.unwrap();
    assert!(
        listed.contains(id) && listed.contains("roof") && !listed.contains(secret),
        "{listed}"
    );
    let json: Value = serde_json::from_str(&cluster.k3s("token list -o json").await.unwrap()).unwrap();
    assert_eq!(json[0]["id"], id);
    assert_eq!(json[0]["groups"][0], "system:bootstrappers:k3s:default-node-token");

    let again = cluster.k3s(&format!("token create {bare}")).await.unwrap_err();
    assert!(again.contains("already exists"), "{again}");
    cluster.k3s(&format!("token delete {bare}")).await.unwrap();
    let reply = cluster.join_with("box", token).await;
    assert_eq!(reply.code, 401, "{reply:?}");
    let gone = cluster.k3s(&format!("token delete {id}")).await.unwrap_err();
    assert!(gone.contains("not found"), "{gone}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expired_is_refused_as_such_and_cleaned_away() {
    let cluster = Cluster::start("expired").await;
    let token = |byte, seconds| BootstrapToken {
        token: from_random([byte; 22]),
        description: String::new(),
        expires: Some(Timestamp::now() + SignedDuration::from_secs(seconds)),
        usages: vec!["authentication".to_owned()],
        groups: Vec::new(),
    };
    let client = &cluster.server().client;
    let make = async |made: &BootstrapToken| {
        let made = client.create(What::SECRETS, "kube-system", made.secret());
        made.await.unwrap();
    };
    let signing = BootstrapToken {
        usages: vec!["signing".to_owned()],
        ..token(0, 3600)
    };
    make(&signing).await;
    let reply = cluster.join_with("pi", signing.token.text().expose()).await;
    assert_eq!(reply.code, 401, "a token for signing logs nobody in");
    let mut ended = Vec::new();
    // Its end counts by whole seconds: it is cleaned away soon after, or in the same moment. Then nobody knows it, and another one
    // has to do.
    let refused = async {
        for byte in 1.. {
            let short = token(byte, 1);
            make(&short).await;
            ended.push(format!("bootstrap-token-{}", short.token.id));
            let said = loop {
                let reply = cluster.join_with("pi", short.token.text().expose()).await;
                if reply.code == 401 {
                    break reply.message();
                }
            };
            if said.contains("expired") {
                break;
            }
        }
    };
    timeout(PATIENCE, refused).await.unwrap();
    let cleaned = async {
        for name in &ended {
            while client.get(What::SECRETS, "kube-system", name).await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
        }
    };
    timeout(PATIENCE, cleaned).await.unwrap();
    let name = format!("bootstrap-token-{}", signing.token.id);
    client.get(What::SECRETS, "kube-system", &name).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_listed_and_deleted_and_a_window_lets_a_reflashed_box_in() {
    let cluster = Cluster::start("records").await;
    for node in ["pi", "box"] {
        cluster.joined(node).await;
    }
    let listed = cluster.k3s("node-password list").await.unwrap();
    assert!(
        listed.contains("pi") && listed.contains("box") && !listed.contains("$1:"),
        "{listed}"
    );
    let json: Value = serde_json::from_str(&cluster.k3s("node-password list -o json").await.unwrap()).unwrap();
    assert_eq!(
        (json[0]["node"].as_str(), json[0]["key"].is_string()),
        (Some("box"), true)
    );

    assert_eq!(cluster.join("pi", OTHER).await.code, 403);
    let opened = cluster.k3s("node reenrol pi --for 10m").await.unwrap();
    assert!(opened.contains("node pi may register once"), "{opened}");
    let name = "pi.node-password.k3s";
    let record = cluster.server().client.get(What::SECRETS, "kube-system", name).await;
    let window = record::read(&record.unwrap()).window.unwrap();
    assert_eq!(window.length(), Duration::from_secs(600), "{window:?}");
    assert_eq!(cluster.join("box", OTHER).await.code, 403, "another node's window");
    assert_eq!(cluster.join("pi", OTHER).await.code, 200);
    assert_eq!(cluster.join("pi", PASSWORD).await.code, 403, "closed");

    cluster.k3s("node-password delete box").await.unwrap();
    assert_eq!(cluster.join("box", OTHER).await.code, 200);
    for (line, hint) in [
        ("node-password delete nobody", "not found"),
        ("node reenrol nobody", "no record of a node nobody"),
        ("node reenrol pi --for 48h", "from 1s to 24h"),
        ("node reenrol pi --for soon", "no duration"),
        ("node reenrol A/B", "no name of a node"),
    ] {
        let error = cluster.k3s(line).await.unwrap_err();
        assert!(error.contains(hint), "{line}: {error}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_is_backed_up_and_restored_and_goes_on() {
    let cluster = Cluster::start("control").await;
    let client = &cluster.server().client;
    cluster.register("kept").await;
    let dir = cluster.dir.display();
    // As in a backup of a version that did not have them yet, by a server somewhere else.
    let first = [
        (What::CLUSTER_ROLES, "", "view"),
        (What::ENDPOINTS, "default", "kubernetes"),
    ];
    for (what, namespace, name) in first {
        client.delete(what, namespace, name, Default::default()).await.unwrap();
    }
    let mode = std::fs::metadata(cluster.dir.join("server/control.sock")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    let said = offline(&format!("backup -d {dir} {dir}/monday.db")).await.unwrap();
    assert!(said.contains("read back and whole"), "{said}");
    let again = offline(&format!("backup -d {dir} {dir}/monday.db")).await.unwrap_err();
    assert!(again.contains("is there already"), "{again}");
    let said = offline(&format!("backup -d {dir}")).await.unwrap();
    assert!(said.contains("server/db/backups/"), "{said}");

    cluster.register("lost").await;
    let node = client.get(What::NODES, "", "kept").await.unwrap();
    let before = agent::wire::object::text(&node, &["metadata", "resourceVersion"]).to_owned();
    std::fs::write(cluster.dir.join("bad.db"), "no database").unwrap();
    let refused = offline(&format!("restore -d {dir} {dir}/bad.db")).await.unwrap_err();
    assert!(refused.contains("not a database"), "{refused}");
    client.get(What::NODES, "", "lost").await.unwrap();

    let said = offline(&format!("restore -d {dir} {dir}/monday.db")).await.unwrap();
    assert!(said.contains("the server runs on with it"), "{said}");
    // At once: the answer waits until the server shows it.
    let gone = client.get(What::NODES, "", "lost").await.unwrap_err();
    assert_eq!(gone.code, 404, "{gone:?}");
    client.get(What::NODES, "", "kept").await.unwrap();
    for (what, namespace, name) in first {
        client.get(what, namespace, name).await.unwrap();
    }
    let from = From::After(Revision::new(before.parse().unwrap()));
    let watch = client.watch(What::NODES, None, Filter::default(), from).await;
    assert_eq!(watch.err().map(|status| status.code), Some(410));
    let events = client
        .list(What::EVENTS, Some("default"), Filter::default())
        .await
        .unwrap();
    let told = events.items.iter().any(|event| {
        let event = event.value();
        event["reason"] == "DatastoreRestored"
            && event["type"] == "Warning"
            && event["involvedObject"]["kind"] == "Node"
    });
    assert!(told, "{:?}", events.items);
    cluster.register("after").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_is_not_given_the_state_of_another_cluster() {
    let (cluster, other) = (Cluster::start("control-one").await, Cluster::start("control-two").await);
    let (dir, theirs) = (cluster.dir.display(), other.dir.display());
    offline(&format!("backup -d {theirs} {theirs}/other.db")).await.unwrap();
    cluster.register("kept").await;
    let refused = offline(&format!("restore -d {dir} {theirs}/other.db"))
        .await
        .unwrap_err();
    assert!(
        refused.contains("another cluster") && refused.contains("stop it"),
        "{refused}"
    );
    cluster.server().client.get(What::NODES, "", "kept").await.unwrap();
    other.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datastore_that_is_not_a_file_of_ours_is_backed_up_by_its_own_tool() {
    let dir = std::env::temp_dir().join(format!("amphipod-supervisor-external-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.yaml"), "").unwrap();
    let mut config = Cluster::config(&dir);
    config.datastore.endpoint = server::store::endpoint::parse("postgres://u:p@127.0.0.1/k3s", false).unwrap();
    let store = std::sync::Arc::new(server::store::memory::Memory::new());
    let server = server::run::Server::start_on(&config, store).await.unwrap();
    for line in ["backup -d", "restore f -d"] {
        let refused = offline(&format!("{line} {}", dir.display())).await.unwrap_err();
        assert!(refused.contains("pg_dump"), "{refused}");
    }
    server.stop().await.unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

/// `k3s LINE`, whatever the cluster does.
async fn offline(line: &str) -> Result<String, String> {
    let line = format!("k3s {line}");
    match config::parse(line.split_whitespace().map(Into::into), &config::surroundings()) {
        Ok(Command::Admin(admin)) => server::command::run(*admin).await.map_err(|error| format!("{error:#}")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_backed_up_comes_back_on_another_machine_with_its_token() {
    let mut cluster = Cluster::start("backup").await;
    cluster.register("pi").await;
    let (dir, file) = (cluster.dir.clone(), cluster.dir.join("monday.db"));
    let line = format!("backup -d {} {}", dir.display(), file.display());
    let authority = cluster.file("tls/server-ca.crt");
    cluster.server.take().unwrap().stop().await.unwrap();
    let said = offline(&line).await.unwrap();
    assert!(
        said.contains("read back and whole") && said.contains("server/token"),
        "{said}"
    );

    // Another machine: nothing but the file and the token.
    let other = dir.join("other");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("config.yaml"), "").unwrap();
    let said = offline(&format!("restore -d {} {}", other.display(), file.display()))
        .await
        .unwrap();
    assert!(said.contains("--token"), "{said}");
    let server = server::run::Server::start(&Cluster::config(&other)).await.unwrap();
    server.client.get(What::NODES, "", "pi").await.unwrap();
    assert_eq!(
        std::fs::read_to_string(other.join("server/tls/server-ca.crt")).unwrap(),
        authority
    );
    server.stop().await.unwrap();
}
