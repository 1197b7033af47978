//! MariaDB, which stands for MySQL: the contract, and what is true when the database is away or has lost something.

use std::net::SocketAddr;
use std::sync::{Mutex, Weak};

use server::store::endpoint::Tls;
use server::store::{Expect, OpenError, StoreError};
use tests::database::{MariaDb, SqlServer as _};

use crate::contract::{self, Backend as _, put};
use crate::sql::{
    Common, Database, Fragile, clusters_of_k3s_are_refused, is_refused, try_open,
    who_is_stopped_holds_nobody_up_for_long,
};
use crate::trouble;

fn database() -> Database<MariaDb> {
    static COMMON: Common<MariaDb> = Mutex::new(Weak::new());
    Database::new(&COMMON)
}

contract::of_all!(database());
contract::of_lasting!(database());
contract::of_shared!(database());
trouble::of_fragile!(Fragile::<MariaDb>::new(""));

#[tokio::test]
async fn the_certificate_is_verified_when_its_authority_is_named() {
    let database = database();
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
async fn a_database_with_a_cluster_of_k3s_is_refused_and_left_as_it_is() {
    clusters_of_k3s_are_refused(database(), "SHOW TABLES").await;
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_once_and_without_the_password() {
    let database = database();
    let good = database.endpoint("");
    for (bad, says) in [
        (good.replace("s3cret", "wrong"), "denied"),
        (database.endpoint("?tls=perhaps"), "tls="),
        (database.endpoint("?unheard=of"), "unheard"),
    ] {
        is_refused(&bad, says).await;
    }
}

#[tokio::test]
async fn a_user_who_must_show_a_certificate_comes_in_by_it_only() {
    let database = database();
    database.server.sql(
        "mysql",
        "CREATE USER certified@'%' IDENTIFIED BY 's3cret/of@a test' REQUIRE X509; GRANT ALL ON *.* TO certified@'%'",
    );
    let endpoint = database.endpoint("").replace("admin", "certified");
    let certificates = &database.server.certificates;
    let bare = Tls {
        ca: Some(certificates.ca.clone()),
        ..Tls::default()
    };
    let problem = try_open(&endpoint, &bare).await.map(drop).unwrap_err();
    assert!(matches!(problem, OpenError::Refused { .. }), "{problem}");
    assert!(problem.to_string().contains("denied"), "{problem}");
    let whole = Tls {
        cert: Some(certificates.client.clone()),
        key: Some(certificates.client_key.clone()),
        ..bare
    };
    drop(try_open(&endpoint, &whole).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_while_it_holds_the_lock_does_not_hold_the_others_up_for_long() {
    let database = database();
    let own = database.server.listens();
    let place = |way: SocketAddr| database.endpoint("").replace(&format!("({own})"), &format!("({way})"));
    who_is_stopped_holds_nobody_up_for_long(&database, own, place, b"FOR UPDATE").await;
}

#[tokio::test]
async fn a_write_of_which_the_last_statements_fail_is_not_acknowledged() {
    let database = database();
    let store = database.open().await;
    let first = store.write(put("/a", Expect::Absent, "1")).await.unwrap();
    // It writes the row, then moves the counter: that fails.
    database.sql(
        "CREATE TRIGGER stuck BEFORE UPDATE ON amphipod_mark FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'stuck'",
    );
    let refused = store.write(put("/a", Expect::At(first), "2")).await;
    assert!(
        matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("stuck")),
        "{refused:?}"
    );
    database.sql("DROP TRIGGER stuck");
    assert_eq!(store.get("/a").await.unwrap().map(|entry| entry.revision), Some(first));
    let second = store.write(put("/a", Expect::At(first), "3")).await.unwrap();
    assert_eq!(second, first.next(), "nothing is left of what was refused");
}
