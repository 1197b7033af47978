//! PostgreSQL: the contract, and what is true when the database is away or has lost something.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use server::store::endpoint::{Tls, parse};
use server::store::{OpenError, Store, open};
use tests::database::Postgres;

use crate::contract::{self, Backend};
use crate::trouble;

/// A server for all tests that leave it alone; it ends with the last of them.
fn common() -> Arc<Postgres> {
    static SERVER: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    server.upgrade().unwrap_or_else(|| {
        let started = Arc::new(Postgres::start());
        *server = Arc::downgrade(&started);
        started
    })
}

/// A database of a test's own. Opening it makes it.
struct Database {
    server: Arc<Postgres>,
    name: String,
}

impl Database {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self {
            server: common(),
            name: format!("of test {}", COUNT.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn endpoint(&self, parameters: &str) -> String {
        self.server.endpoint(&self.name.replace(' ', "%20"), parameters)
    }

    fn sql(&self, text: &str) -> String {
        self.server.sql(&self.name.replace(' ', "%20"), text)
    }
}

async fn try_open(endpoint: &str, tls: &Tls) -> Result<Arc<dyn Store>, OpenError> {
    let endpoint = parse(endpoint, !tls.is_empty()).unwrap();
    open(&endpoint, tls, std::path::Path::new("/nowhere")).await
}

impl Backend for Database {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        async { try_open(&self.endpoint(""), &Tls::default()).await.unwrap() }.boxed()
    }
}

contract::of_all!(Database::new());
contract::of_lasting!(Database::new());
contract::of_shared!(Database::new());

/// A server of a test's own, which ends and comes back.
struct Fragile(Mutex<Postgres>);

impl Fragile {
    fn new() -> Self {
        Self(Mutex::new(Postgres::start()))
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Postgres> {
        self.0.lock().unwrap()
    }
}

impl Backend for Fragile {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        let endpoint = self.server().endpoint("kubernetes", "?sslmode=disable");
        async move { try_open(&endpoint, &Tls::default()).await.unwrap() }.boxed()
    }
}

impl trouble::Fragile for Fragile {
    fn kill(&self) {
        self.server().kill();
    }

    fn start_again(&self) {
        self.server().start_again();
    }

    fn pause(&self) {
        self.server().pause();
    }

    fn resume(&self) {
        self.server().resume();
    }

    fn cut_connections(&self) {
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND application_name = 'k3s'";
        self.server().sql("kubernetes", others);
    }

    fn lose_writes_after(&self, revision: u64) {
        let text = format!(
            "DELETE FROM amphipod_log WHERE revision > {revision};
             UPDATE amphipod_mark SET revision = {revision} WHERE name = 'newest'"
        );
        self.server().sql("kubernetes", &text);
    }
}

trouble::of_fragile!(Fragile::new());

#[tokio::test]
async fn the_certificate_is_verified_when_its_authority_is_named() {
    let database = Database::new();
    let certificates = &database.server.certificates;
    let whole = Tls {
        ca: Some(certificates.ca.clone()),
        cert: Some(certificates.client.clone()),
        key: Some(certificates.client_key.clone()),
    };
    let store = try_open(&database.endpoint(""), &whole).await.unwrap();
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'k3s' AND datname = current_database() AND ssl AND client_dn = '/CN=client'";
    assert_ne!(database.sql(encrypted).trim(), "0");
    store.close().await.unwrap();
    let other = Tls {
        ca: Some(certificates.client.clone()),
        ..Tls::default()
    };
    let problem = try_open(&database.endpoint(""), &other).await.map(drop).unwrap_err();
    assert!(matches!(problem, OpenError::Refused { .. }), "{problem}");
    let half = Tls {
        cert: Some(certificates.client.clone()),
        ..whole.clone()
    };
    let half = Tls { key: None, ..half };
    assert!(matches!(
        try_open(&database.endpoint(""), &half).await,
        Err(OpenError::Refused { .. })
    ));
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_once_and_without_the_password() {
    let database = Database::new();
    let good = database.endpoint("");
    for (bad, says) in [
        (good.replace("s3cret", "wrong"), "password"),
        (good.replace("admin", "nobody"), "password"),
        (database.endpoint("?sslmode=verify-full"), "--datastore-cafile"),
        (database.endpoint("?sslmode=perhaps"), "sslmode"),
        (database.endpoint("?unheard=of"), "unheard"),
    ] {
        let problem = try_open(&bad, &Tls::default()).await.map(drop).unwrap_err();
        assert!(matches!(problem, OpenError::Refused { .. }), "{problem}");
        let text = format!("{problem} {problem:?}");
        assert!(
            text.contains(says) && !text.contains("s3cret") && !text.contains("wrong"),
            "{text}"
        );
    }
    drop(try_open(&good, &Tls::default()).await.unwrap());
    database.sql("UPDATE amphipod_mark SET revision = 99 WHERE name = 'format'");
    let problem = try_open(&good, &Tls::default()).await.map(drop).unwrap_err();
    assert!(problem.to_string().contains("format 99"), "{problem}");
}

#[tokio::test]
async fn a_user_without_rights_on_the_schema_can_serve_once_the_tables_are_there() {
    let database = Database::new();
    drop(database.open().await);
    database.sql(
        "CREATE ROLE plain LOGIN PASSWORD 'plain';
         GRANT SELECT, INSERT, UPDATE, DELETE ON amphipod_log, amphipod_mark TO plain",
    );
    let endpoint = database
        .endpoint("")
        .replace("admin:s3cret%2Fof%20a%20test", "plain:plain");
    let store = try_open(&endpoint, &Tls::default()).await.unwrap();
    let put = contract::put("/a", server::store::Expect::Absent, "1");
    assert_eq!(store.write(put).await.unwrap().get(), 1);
}
