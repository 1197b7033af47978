//! MariaDB, which stands for MySQL: the contract, and what is true when the database is away or has lost something.

use std::sync::{Mutex, Weak};

use server::store::OpenError;
use server::store::endpoint::Tls;
use tests::database::MariaDb;

use crate::contract;
use crate::sql::{Common, Database, Fragile, is_refused, try_open};
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
