//! MariaDB, which stands for MySQL: the contract, and what is true when the database is away or has lost something.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use server::store::endpoint::{Tls, parse};
use server::store::{OpenError, Store, open};
use tests::database::MariaDb;

use crate::contract::{self, Backend};
use crate::trouble;

/// A server for all tests that leave it alone; it ends with the last of them.
fn common() -> Arc<MariaDb> {
    static SERVER: Mutex<Weak<MariaDb>> = Mutex::new(Weak::new());
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    server.upgrade().unwrap_or_else(|| {
        let started = Arc::new(MariaDb::start());
        *server = Arc::downgrade(&started);
        started
    })
}

/// A database of a test's own. Opening it makes it.
struct Database {
    server: Arc<MariaDb>,
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
        self.server.endpoint(&self.name, parameters)
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
struct Fragile(Mutex<MariaDb>);

impl Fragile {
    fn new() -> Self {
        Self(Mutex::new(MariaDb::start()))
    }

    fn server(&self) -> std::sync::MutexGuard<'_, MariaDb> {
        self.0.lock().unwrap()
    }
}

impl Backend for Fragile {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        let endpoint = self.server().endpoint("kubernetes", "");
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
        self.server().cut_connections("kubernetes");
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
    drop(try_open(&database.endpoint(""), &whole).await.unwrap());
    drop(
        try_open(&database.endpoint("?tls=preferred"), &Tls::default())
            .await
            .unwrap(),
    );
    let other = Tls {
        ca: Some(certificates.client.clone()),
        ..Tls::default()
    };
    let problem = try_open(&database.endpoint(""), &other).await.map(drop).unwrap_err();
    assert!(matches!(problem, OpenError::Refused { .. }), "{problem}");
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_once_and_without_the_password() {
    let database = Database::new();
    let good = database.endpoint("");
    for (bad, says) in [
        (good.replace("s3cret", "wrong"), "denied"),
        (database.endpoint("?tls=perhaps"), "tls="),
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
}
