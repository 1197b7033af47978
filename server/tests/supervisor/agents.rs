//! The agent's own way in: what it says while it is refused, what it keeps, and what it makes of a clock that is wrong.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::config::{Config, Secret, ServerUrl};
use agent::join::{Address, Clock, Files, Identity, Joined, Joiner};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use server::request::What;
use tracing::instrument::WithSubscriber as _;

use crate::rig::{Cluster, until};

/// A machine that joins, and its files.
pub struct Machine {
    pub config: Config,
    identity: Identity,
    pub files: Files,
    folder: PathBuf,
}

impl Machine {
    pub fn new(cluster: &Cluster, node: &str, machine: &str, token: &str) -> Self {
        let folder = cluster.dir.join(machine);
        let port = cluster.server().address.port();
        let mut config = Config::new(ServerUrl::new("127.0.0.1", port), node);
        config.token = Some(Secret::new(token));
        Self {
            config,
            identity: Identity::open(&folder.join("etc"), node, false).unwrap(),
            files: Files::create(folder.join("agent")).unwrap(),
            folder,
        }
    }

    pub fn joiner(&self, clock: Clock) -> Joiner<'_> {
        let server = &self.config.server;
        Joiner {
            config: &self.config,
            identity: &self.identity,
            files: &self.files,
            address: Address {
                host: server.host().to_owned(),
                port: server.port(),
                shown: server.to_string(),
            },
            clock: Arc::new(clock),
        }
    }

    fn password(&self) -> String {
        std::fs::read_to_string(self.folder.join("etc/password")).unwrap()
    }

    /// Joins as the running agent does, until it works; what it says on the way goes to `log`.
    async fn joins(&self, log: &Log) -> Joined {
        let (log, joiner) = (log.clone(), self.joiner(Clock::default()));
        let said = tracing_subscriber::fmt().with_ansi(false);
        let said = said.with_writer(move || log.clone()).finish();
        joiner.join(|| None, || ()).with_subscriber(said).await
    }

    /// Is refused at least twice, with these words each time, and stays what it is.
    async fn is_refused(&self, words: &[&str]) {
        let (log, before) = (Log::default(), self.password());
        tokio::select! {
            _ = self.joins(&log) => panic!("it joined with what must be refused: {words:?}"),
            () = until(|| log.refusals().len() > 1) => {}
        }
        assert_eq!(self.password(), before);
        for line in log.refusals() {
            for word in words.iter().chain(&["retry_s="]) {
                assert!(line.contains(word), "{word} is missing in: {line}");
            }
            assert!(!line.contains(":wrong"), "a secret is not repeated: {line}");
        }
    }
}

/// What an operator reads.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn refusals(&self) -> Vec<String> {
        let text = self.text();
        let refusals = text.lines().filter(|line| line.contains("cannot join the cluster"));
        refusals.map(str::to_owned).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_agent_says_why_keeps_asking_and_keeps_its_identity() {
    let cluster = Cluster::start("refused").await;
    let full = cluster.file("node-token").trim().to_owned();
    let (pinned, _) = full.split_once("::").unwrap();
    let (hash, false_hash) = (pinned.strip_prefix("K10").unwrap(), "0".repeat(64));
    let wrong_token = Machine::new(&cluster, "a", "a", &format!("{pinned}::server:wrong"));
    let other_cluster = Machine::new(&cluster, "b", "b", &format!("K10{false_hash}::server:secret"));
    let token_words = ["does not accept the token", "server/node-token"];
    let hash_words = ["does not match the Cluster CA", &false_hash, hash, "server/node-token"];
    tokio::join!(
        wrong_token.is_refused(&token_words),
        other_cluster.is_refused(&hash_words)
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_hash_whoever_answers_is_trusted_once_and_said_aloud() {
    let (cluster, impostor) = (Cluster::start("first").await, Cluster::start("impostor").await);
    let mut machine = Machine::new(&cluster, "pi", "pi", "secret");
    let warning = "no CA hash";
    for (time, warned) in [("first", true), ("second", false)] {
        let log = Log::default();
        machine.joins(&log).await;
        assert_eq!(log.text().contains(warning), warned, "{time}: {}", log.text());
    }
    cluster.register("pi").await;
    let hash = |cluster: &Cluster| {
        let token = cluster.file("node-token");
        token
            .split_once("::")
            .unwrap()
            .0
            .strip_prefix("K10")
            .unwrap()
            .to_owned()
    };
    let elsewhere = Address {
        host: "127.0.0.1".to_owned(),
        port: impostor.server().address.port(),
        shown: machine.config.server.to_string(),
    };
    let kept = std::fs::read(machine.files.server_ca()).unwrap();
    for token in [Some("secret"), Some("K10:::secret"), None] {
        machine.config.token = token.map(Secret::new);
        let joiner = Joiner {
            address: elsewhere.clone(),
            ..machine.joiner(Clock::default())
        };
        let error = joiner.once().await.err().unwrap().to_string();
        for word in [
            &hash(&cluster),
            &hash(&impostor),
            "K10",
            "server/node-token",
            "server-ca.crt",
        ] {
            assert!(error.contains(word), "{token:?}: {word} is missing in: {error}");
        }
        assert_eq!(std::fs::read(machine.files.server_ca()).unwrap(), kept, "{token:?}");
        let again = machine.joiner(Clock::default()).once().await;
        again.unwrap_or_else(|error| panic!("{token:?} at its own server: {error}"));
    }
    machine.config.token = Some(Secret::new(impostor.file("node-token").trim()));
    let joiner = Joiner {
        address: elsewhere,
        ..machine.joiner(Clock::default())
    };
    joiner.once().await.expect("the full token is the cure");
    impostor.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_name_is_taken_joins_by_itself_once_the_name_is_free() {
    let cluster = Cluster::start("name").await;
    let token = cluster.file("node-token").trim().to_owned();
    let first = Machine::new(&cluster, "pi", "first", &token);
    first.joiner(Clock::default()).once().await.unwrap();
    let second = Machine::new(&cluster, "pi", "second", &token);
    let cure = ["node password rejected", "kubectl delete node pi", "pi"];
    second.is_refused(&cure).await;
    let (log, before) = (Log::default(), second.password());
    let helping = async {
        until(|| !log.refusals().is_empty()).await;
        cluster
            .delete(What::SECRETS, "kube-system", "pi.node-password.k3s")
            .await;
    };
    let (joined, ()) = tokio::join!(second.joins(&log), helping);
    assert_eq!((joined.identity.node_name.as_str(), second.password()), ("pi", before));
    cluster.stop().await;
}

/// A system clock that stands.
#[derive(Debug)]
struct Stopped(UnixTime);

impl Stopped {
    fn at(hours: u64) -> Arc<Self> {
        Arc::new(Self(UnixTime::since_unix_epoch(Duration::from_secs(hours * 3600))))
    }
}

impl TimeProvider for Stopped {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_board_without_a_clock_joins_and_one_in_a_false_future_says_what_is_wrong() {
    let cluster = Cluster::start("clock").await;
    let token = cluster.file("node-token").trim().to_owned();
    for (name, floor) in [("new", 0), ("known", 1_700_000_000)] {
        let machine = Machine::new(&cluster, name, name, &token);
        let joiner = machine.joiner(Clock::new(Stopped::at(1), floor));
        let joined = joiner.once().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let answer = joined.client.get(&format!("/api/v1/nodes/{name}")).await.unwrap_err();
        assert_eq!(
            answer.status().unwrap().code,
            404,
            "the API is reached by the same clock"
        );
        assert!(
            joiner.clock.floor() > 1_700_000_000,
            "the server has said what time it is"
        );
    }
    let machine = Machine::new(&cluster, "future", "future", &token);
    let joiner = machine.joiner(Clock::new(Stopped::at(200 * 365 * 24), 0));
    let error = joiner.once().await.err().unwrap().to_string();
    assert!(error.contains("look at the clock"), "{error}");
    assert_eq!(joiner.clock.floor(), 0, "a false future leaves no trace");
    cluster.stop().await;
}
