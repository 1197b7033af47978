//! MariaDB, which stands for MySQL: the contract, and what is true when the database is away or has lost something.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use server::store::endpoint::Tls;
use server::store::{Expect, OpenError, StoreError};
use tests::database::{MariaDb, SqlServer as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::contract::{self, Backend as _, put};
use crate::sql::{Common, Database, Fragile, clusters_of_k3s_are_refused, is_refused, try_open};
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

/// A way to the database on which a client is stopped once it has sent `word`: it sends nothing more, and does not go.
/// `stopped` is told of it.
async fn stopping_at(
    word: &'static [u8],
    target: SocketAddr,
    stopped: Arc<Notify>,
    tasks: &mut JoinSet<()>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut ways = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(target).await.unwrap();
            let stopped = Arc::clone(&stopped);
            ways.spawn(async move {
                let ((mut asks, mut told), (mut answers, mut asked)) = (client.into_split(), server.into_split());
                let mut buffer = vec![0; 64 << 10];
                let asking = async {
                    while let Ok(count @ 1..) = asks.read(&mut buffer).await {
                        asked.write_all(&buffer[..count]).await.unwrap_or_default();
                        if buffer[..count].windows(word.len()).any(|part| part == word) {
                            stopped.notify_one();
                            return std::future::pending().await;
                        }
                    }
                };
                tokio::join!(asking, async {
                    copy(&mut answers, &mut told).await.map(drop).unwrap_or_default()
                });
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_while_it_holds_the_lock_does_not_hold_the_others_up_for_long() {
    let database = database();
    let mut tasks = JoinSet::new();
    let own = database.server.listens();
    let locked = Arc::new(Notify::new());
    let way = stopping_at(b"FOR UPDATE", own, Arc::clone(&locked), &mut tasks).await;
    let endpoint = database.endpoint("");
    let other = try_open(&endpoint, &Tls::default()).await.unwrap();
    let through = endpoint.replace(&format!("({own})"), &format!("({way})"));
    let stopped = try_open(&through, &Tls::default()).await.unwrap();
    tasks.spawn(async move { drop(stopped.write(put("/a", Expect::Absent, "1")).await) });
    timeout(Duration::from_secs(30), locked.notified()).await.unwrap();
    // Until the database has it, too.
    sleep(Duration::from_secs(1)).await;
    // Longer than this nobody waits for the lock.
    let written = other.write(put("/b", Expect::Absent, "1")).await;
    assert!(written.is_ok(), "{written:?}");
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
