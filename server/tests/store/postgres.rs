//! PostgreSQL: the contract, and what is true when the database is away or has lost something.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, Weak};
use std::time::{Duration, Instant};

use agent::units::Revision;
use server::store::endpoint::Tls;
use server::store::{Expect, OpenError, Store};
use tests::database::{Postgres, SqlServer as _};
use tokio::time::{sleep, timeout};

use crate::contract::{self, Backend};
use crate::sql::{
    Common, Database, Fragile, clusters_of_k3s_are_refused, is_refused, try_open,
    who_is_stopped_holds_nobody_up_for_long,
};
use crate::trouble;

fn database() -> Database<Postgres> {
    static COMMON: Common<Postgres> = Mutex::new(Weak::new());
    Database::new(&COMMON)
}

contract::of_all!(database());
contract::of_lasting!(database());
contract::of_shared!(database());
trouble::of_fragile!(Fragile::<Postgres>::new("?sslmode=disable"));

#[tokio::test]
async fn the_certificate_is_verified_when_its_authority_is_named() {
    let database = database();
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
async fn a_database_with_a_cluster_of_k3s_is_refused_and_left_as_it_is() {
    clusters_of_k3s_are_refused(
        database(),
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
    )
    .await;
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_once_and_without_the_password() {
    let database = database();
    let good = database.endpoint("");
    for (bad, says) in [
        (good.replace("s3cret", "wrong"), "password"),
        (good.replace("admin", "nobody"), "password"),
        (database.endpoint("?sslmode=verify-full"), "--datastore-cafile"),
        (
            database.endpoint("?sslrootcert=system&sslmode=disable"),
            "--datastore-cafile",
        ),
        (database.endpoint("?sslmode=perhaps"), "sslmode"),
        (database.endpoint("?unheard=of"), "unheard"),
    ] {
        is_refused(&bad, says).await;
    }
    drop(try_open(&good, &Tls::default()).await.unwrap());
    database.sql("UPDATE amphipod_mark SET revision = 99 WHERE name = 'format'");
    let problem = try_open(&good, &Tls::default()).await.map(drop).unwrap_err();
    assert!(problem.to_string().contains("format 99"), "{problem}");
}

#[tokio::test]
async fn a_user_without_rights_on_the_schema_can_serve_once_the_tables_are_there() {
    let database = database();
    drop(database.open().await);
    database.sql(
        "CREATE ROLE plain LOGIN PASSWORD 'plain';
         GRANT SELECT, INSERT, UPDATE, DELETE ON amphipod_log, amphipod_mark TO plain",
    );
    let endpoint = database
        .endpoint("")
        .replace("admin:s3cret%2Fof%20a%20test", "plain:plain");
    let store = try_open(&endpoint, &Tls::default()).await.unwrap();
    let put = contract::put("/a", Expect::Absent, "1");
    assert_eq!(store.write(put).await.unwrap().get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_while_it_holds_the_lock_does_not_hold_the_others_up_for_long() {
    let database = database();
    let own = database.server.listens();
    let place = |way: SocketAddr| {
        database
            .endpoint("?sslmode=disable")
            .replace(&format!("@{own}/"), &format!("@{way}/"))
    };
    // The key goes with what is read under the lock.
    who_is_stopped_holds_nobody_up_for_long(&database, own, place, b"/stopped").await;
}

/// A server that takes connections and says nothing.
fn silent() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// How many have connected to it since the last look.
fn callers(silent: &TcpListener) -> usize {
    std::iter::from_fn(|| silent.accept().ok()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_hosts_a_silent_one_costs_its_time_once() {
    let (server, silent) = (Postgres::start(), silent());
    let own = server.listens();
    let both = format!("@{},{own}/", silent.local_addr().unwrap());
    let endpoint = server.endpoint("kubernetes", "").replace(&format!("@{own}/"), &both);
    let tls = Tls::default();
    let opening = try_open(&endpoint, &tls);
    let store = timeout(Duration::from_secs(60), opening).await.unwrap().unwrap();
    let first = store.write(contract::put("/a", Expect::Absent, "1")).await.unwrap();
    assert!(callers(&silent) > 0, "it comes first");
    for number in 0..3 {
        server.cut_connections("kubernetes");
        let written = store.write(contract::put(&format!("/b{number}"), Expect::Absent, "1"));
        let written = timeout(Duration::from_secs(30), written).await.unwrap();
        assert!(written.is_ok(), "{written:?}");
        assert!(
            store
                .get("/a")
                .await
                .unwrap()
                .is_some_and(|entry| entry.revision == first)
        );
    }
    assert_eq!(callers(&silent), 0, "whoever failed last comes last");
}

#[tokio::test]
async fn a_start_waits_a_bounded_time_for_a_server_that_says_nothing() {
    let silent = silent();
    let address = silent.local_addr().unwrap();
    for endpoint in [
        format!("postgres://k3s:k3s@{address}/kubernetes"),
        format!("mysql://k3s:k3s@tcp({address})/kubernetes"),
    ] {
        let parsed = server::store::endpoint::parse(&endpoint, false).unwrap();
        let tls = Tls::default();
        let opening = server::store::open(&parsed, &tls, std::path::Path::new("/nonexistent/file"));
        let opened = timeout(Duration::from_secs(45), opening).await;
        let problem = opened.expect("it is said after a while").map(drop).unwrap_err();
        assert!(matches!(problem, OpenError::Away { .. }), "{problem}");
    }
}

/// Makes the database refuse to notify, as YugabyteDB does: the function is there, and raises.
fn refuse_to_notify(database: &Database<Postgres>) {
    database.sql(
        "CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE plpgsql
             AS $$ BEGIN RAISE EXCEPTION 'notifications are switched off'; END $$;
         DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$",
    );
}

#[tokio::test]
async fn writes_go_on_and_reach_the_others_where_notifications_are_refused() {
    let database = database();
    drop(database.open().await);
    refuse_to_notify(&database);
    let (here, there) = (database.open().await, database.open().await);
    let mut tail = there.watch(there.revision().await.unwrap()).await.unwrap();
    let revision = here.write(contract::put("/a", Expect::Absent, "1")).await.unwrap();
    let seen = timeout(Duration::from_secs(10), contract::drained(&mut tail, 1)).await;
    assert_eq!(seen.unwrap(), [format!("/a=1@{revision}")]);
    assert_eq!(told(&*here), revision, "servers tell each other instead");
}

/// What this server would tell the others itself.
fn told(store: &dyn Store) -> Revision {
    *store.commits().unwrap().borrow()
}

#[tokio::test]
async fn servers_do_not_tell_each_other_what_the_database_tells() {
    // As long as it is held the server runs.
    let database = database();
    let store = database.open().await;
    store.write(contract::put("/a", Expect::Absent, "1")).await.unwrap();
    assert_eq!(told(&*store), Revision::ZERO);
}

#[tokio::test]
async fn a_refusal_to_notify_that_passes_leaves_nobody_mute_and_nobody_looking() {
    let database = database();
    drop(database.open().await);
    refuse_to_notify(&database);
    let here = database.open().await;
    // Its writer connects with that.
    here.write(contract::put("/a", Expect::Absent, "1")).await.unwrap();
    database.sql("DROP FUNCTION public.pg_notify(text, text)");
    // It looks once a second, and so soon only when it is told.
    let there = database.open().await;
    let mut tail = there.watch(there.revision().await.unwrap()).await.unwrap();
    let (begun, mut told) = (Instant::now(), 0);
    while told < 5 {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not tell");
        let written = Instant::now();
        here.write(contract::put("/a", Expect::Any, "1")).await.unwrap();
        contract::drained(&mut tail, 1).await;
        told = if written.elapsed() < Duration::from_millis(500) {
            told + 1
        } else {
            0
        };
    }
    // What both of them ask is a few transactions a second, where `here` alone asked for fifty.
    let transactions = || -> u64 {
        let count = database.sql("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()");
        count.trim().parse().unwrap()
    };
    loop {
        // Without any it would ask less by itself.
        here.write(contract::put("/a", Expect::Any, "1")).await.unwrap();
        let before = transactions();
        sleep(Duration::from_secs(4)).await;
        let asked = transactions() - before;
        if asked < 60 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{asked} in 4 s");
    }
}
