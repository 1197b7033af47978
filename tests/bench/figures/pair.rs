//! Two servers without nodes on one datastore, each on a host of its own, and their API as its administrator sees it.

use std::any::Any;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use agent::api::Endpoint;
use agent::api::transport::Link;
use agent::join::trust::{self, Shown};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use tests::database::etcd::{Etcd, Form};
use tests::database::{MariaDb, Postgres, SqlServer as _, flags};
use tests::lab::{BACKYARD, Lab};
use tokio::time::{sleep, timeout};

/// Their hosts.
pub const SERVERS: [&str; 2] = ["a", "b"];
/// Longer than any answer of a server that works takes.
pub const GIVES_UP: Duration = Duration::from_secs(1);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(2);
/// The longest that a server's start may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What servers can share.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    PostgreSql,
    MariaDb,
    /// Of one member.
    Etcd,
}

impl Kind {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::PostgreSql => "PostgreSQL",
            Self::MariaDb => "MariaDB",
            Self::Etcd => "etcd",
        }
    }
}

/// A datastore in the lab's backyard.
struct Database {
    /// What a server is given.
    flags: Vec<String>,
    _runs: Box<dyn Any>,
}

impl Database {
    fn start(kind: Kind) -> Self {
        match kind {
            Kind::PostgreSql => {
                let server = Postgres::start_at(BACKYARD);
                let flags = flags(&server.endpoint("cluster", ""), &server.certificates.ca);
                Self::running(flags, server)
            }
            Kind::MariaDb => {
                let server = MariaDb::start_at(BACKYARD);
                let flags = flags(&server.endpoint("cluster", ""), &server.certificates.ca);
                Self::running(flags, server)
            }
            Kind::Etcd => {
                let form = Form {
                    address: Some(BACKYARD),
                    ..Form::default()
                };
                let etcd = Etcd::start_as(form).unwrap();
                Self::running(vec![format!("--datastore-endpoint={}", etcd.endpoint())], etcd)
            }
        }
    }

    fn running(flags: Vec<String>, runs: impl Any) -> Self {
        let _runs = Box::new(runs);
        Self { flags, _runs }
    }
}

/// The hosts, and the database behind them.
pub struct Pair {
    pub lab: Lab,
    database: Database,
}

impl Pair {
    /// Both answer when this returns.
    pub async fn start(kind: Kind) -> Self {
        let mut lab = Lab::new();
        lab.add_backyard();
        let database = Database::start(kind);
        for name in SERVERS {
            lab.add_host(name);
            lab.join_backyard(name);
        }
        let mut pair = Self { lab, database };
        for name in SERVERS {
            pair.start_server(name).await;
        }
        pair
    }

    pub async fn start_server(&mut self, name: &str) {
        let mut given = vec!["--disable-agent"];
        given.extend(self.database.flags.iter().map(String::as_str));
        self.lab.start_server_with(name, &given);
        let certificate = self.lab.file(name, "lib/k3s/server/tls/client-admin.crt");
        let written = async {
            while !certificate.exists() {
                sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, written)
            .await
            .expect("the server has no certificates");
        answered(&self.endpoint(&self.lab.address(name), 6443)).await;
    }

    /// As the administrator.
    pub fn endpoint(&self, host: &str, port: u16) -> Endpoint {
        Endpoint {
            host: host.to_owned(),
            port,
            tls: Some(self.administrator()),
        }
    }

    /// Who the administrator is, and whom he trusts.
    pub fn administrator(&self) -> Arc<rustls::ClientConfig> {
        let read = |name: &str| fs::read(self.lab.file(SERVERS[0], &format!("lib/k3s/server/tls/{name}"))).unwrap();
        let (chain, key) = (read("client-admin.crt"), read("client-admin.key"));
        let shown = Shown {
            chain: &chain,
            key: &key,
        };
        trust::bundle(&read("server-ca.crt"), Some(shown), &Default::default()).unwrap()
    }
}

/// Asks until there is an answer.
pub async fn answered(endpoint: &Endpoint) {
    let asking = async {
        while !ask_anew(endpoint).await {
            sleep(PAUSE).await;
        }
    };
    timeout(PATIENCE, asking).await.expect("there is never an answer");
}

/// Whether there is an answer on a new connection.
pub async fn ask_anew(endpoint: &Endpoint) -> bool {
    let asking = async {
        match endpoint.connect().await {
            Ok(mut link) => ask(&mut link).await,
            Err(_) => false,
        }
    };
    timeout(GIVES_UP, asking).await.unwrap_or(false)
}

/// Whether there is an answer on this connection.
pub async fn ask(link: &mut Link) -> bool {
    let request = Request::get("/api/v1/namespaces/default")
        .header("host", "localhost")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let answer = timeout(GIVES_UP, link.ask(request)).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.head.status == 200))
}
