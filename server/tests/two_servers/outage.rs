//! A real database stands still under two servers, and comes back.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};
use server::cache::{Filter, From, WatchEvent};
use server::join::pki::{Own, Pki};
use server::request::What;
use server::run::Server;
use tests::database::{Postgres, SqlServer as _};
use tokio::time::timeout;

use crate::relay::{authorities, call, get, own};
use crate::{Machines, PATIENCE, map, until};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Code, `Retry-After` and message of the answer to a POST.
async fn post(pki: &Pki, at: &Server, name: &str) -> (u16, String, String) {
    let request = Request::post(MAPS)
        .header("host", "server")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(map(name).to_string())))
        .unwrap();
    let (parts, body) = call(pki, Some(own(pki, Own::Admin)), at, request).await;
    let retry = parts.headers.get("retry-after");
    let retry = retry.map_or("", |value| value.to_str().unwrap()).to_owned();
    let body: Value = serde_json::from_str(&body).unwrap();
    (
        parts.status.as_u16(),
        retry,
        body["message"].as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_that_hangs_stops_no_server_and_no_watch() {
    let (machines, mut database) = (Machines::new("postgres"), Postgres::start());
    let [a, b] = machines
        .start_both(&database.endpoint("outage", "?sslmode=disable"))
        .await;
    let pki = Arc::new(authorities(&a, &machines.dir("authorities")));
    let admin = || Some(own(&pki, Own::Admin));
    assert_eq!(post(&pki, &a, "before").await.0, 201);
    until("the other server shows it", async || {
        b.client.get(What::CONFIG_MAPS, "default", "before").await.is_ok()
    })
    .await;
    let watching = b
        .client
        .watch(What::CONFIG_MAPS, Some("default"), Filter::default(), From::Now);
    let mut maps = watching.await.unwrap();

    database.pause();
    let (one, other) = tokio::join!(post(&pki, &a, "during-a"), post(&pki, &b, "during-b"));
    for (code, retry, message) in [one, other] {
        assert_eq!(code, 503, "{message}");
        assert!(retry.parse::<u32>().is_ok_and(|seconds| seconds > 0), "{retry:?}");
    }
    for server in [&a, &b] {
        let (code, body) = get(&pki, admin(), server, &format!("{MAPS}/before")).await;
        assert_eq!(code, 200, "{body}");
        assert_eq!(get(&pki, admin(), server, "/livez").await.0, 200);
    }

    database.resume();
    until("writes are taken again, by both servers", async || {
        let taken = |code| matches!(code, 201 | 409);
        taken(post(&pki, &a, "after-a").await.0) && taken(post(&pki, &b, "after-b").await.0)
    })
    .await;
    let mut missing = vec!["after-a", "after-b"];
    let seen = async {
        while !missing.is_empty() {
            match maps.next().await.expect("the watch goes on") {
                WatchEvent::Change(_, item) => missing.retain(|name| json!(name) != item.value()["metadata"]["name"]),
                WatchEvent::Bookmark { .. } => {}
            }
        }
    };
    timeout(PATIENCE, seen).await.unwrap();
    a.stop().await.unwrap();
    b.stop().await.unwrap();
}
