//! Lists and watches over the wire, in both versions of HTTP.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::rig::Rig;

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Events as lines, one at a time.
pub struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    pub fn of(response: Response<Incoming>) -> Self {
        assert_eq!(response.status(), 200);
        Self {
            body: response.into_body(),
            rest: Vec::new(),
        }
    }

    /// The next event; `None` when the stream has ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame())
                .await
                .unwrap();
            match frame {
                Some(frame) => self.rest.extend_from_slice(frame.unwrap().data_ref().unwrap()),
                None => return None,
            }
        }
    }

    pub async fn names(&mut self, count: usize) -> Vec<String> {
        let mut names = Vec::new();
        for _ in 0..count {
            let event = self.next().await.unwrap();
            let name = event["object"]["metadata"]["name"].as_str().unwrap_or("-").to_owned();
            names.push(format!("{} {name}", event["type"].as_str().unwrap()));
        }
        names
    }
}

pub fn map(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "data": {"a": "1"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_the_state_marks_its_end_and_goes_on() {
    let rig = Rig::start().await;
    for second_version in [false, true] {
        let mut admin = rig.administrator();
        admin.second_version = second_version;
        assert_eq!(admin.post(MAPS, &map("a")).await.code, 201);
        let mut tasks = JoinSet::new();
        let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        let response = admin.send(&mut tasks, "GET", &format!("{MAPS}?{query}"), &[], "").await;
        let mut lines = Lines::of(response);
        assert_eq!(lines.names(1).await, ["ADDED a"]);
        let mark = lines.next().await.unwrap();
        assert_eq!(mark["type"], "BOOKMARK");
        assert_eq!(
            mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
            "true"
        );
        assert_eq!(admin.post(MAPS, &map("b")).await.code, 201);
        assert_eq!(admin.call("DELETE", &format!("{MAPS}/a"), &[], "").await.code, 200);
        assert_eq!(admin.call("DELETE", &format!("{MAPS}/b"), &[], "").await.code, 200);
        assert_eq!(lines.names(3).await, ["ADDED b", "DELETED a", "DELETED b"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_by_its_timeout_after_a_last_bookmark() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    let mut tasks = JoinSet::new();
    let path = format!("{MAPS}?watch=1&timeoutSeconds=3&allowWatchBookmarks=true");
    let mut lines = Lines::of(admin.send(&mut tasks, "GET", &path, &[], "").await);
    let event = lines.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["kind"]),
        (&json!("BOOKMARK"), &json!("ConfigMap"))
    );
    assert_eq!(lines.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_wants_to_last_for_ever_is_served_and_ends_one_day() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    assert_eq!(admin.post(MAPS, &map("a")).await.code, 201);
    let mut tasks = JoinSet::new();
    let path = format!("{MAPS}?watch=1&timeoutSeconds={}", i64::MAX);
    let mut lines = Lines::of(admin.send(&mut tasks, "GET", &path, &[], "").await);
    assert_eq!(lines.names(1).await, ["ADDED a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_a_forgotten_past_says_that_it_is_gone() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    let mut tasks = JoinSet::new();
    let path = format!("{MAPS}?watch=1&resourceVersion=1");
    let mut lines = Lines::of(admin.send(&mut tasks, "GET", &path, &[], "").await);
    let event = lines.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(event["object"]["reason"], "Expired");
    assert_eq!(lines.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_watch_names_its_columns_once() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    for name in ["a", "b"] {
        assert_eq!(admin.post(MAPS, &map(name)).await.code, 201);
    }
    let mut tasks = JoinSet::new();
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let mut lines = Lines::of(
        admin
            .send(&mut tasks, "GET", &format!("{MAPS}?watch=1"), &accept, "")
            .await,
    );
    let (first, second) = (lines.next().await.unwrap(), lines.next().await.unwrap());
    assert!(first["object"]["columnDefinitions"].is_array());
    assert_eq!(second["object"].get("columnDefinitions"), None);
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_comes_in_pages_that_together_are_the_list() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    for number in 0..7 {
        assert_eq!(admin.post(MAPS, &map(&format!("m{number}"))).await.code, 201);
    }
    let (mut names, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = admin.get(&format!("{MAPS}?limit=3&continue={token}")).await.json();
        assert_eq!(
            (&page["kind"], &page["apiVersion"]),
            (&json!("ConfigMapList"), &json!("v1"))
        );
        let items = page["items"].as_array().unwrap();
        names.extend(
            items
                .iter()
                .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        pages += 1;
        match page["metadata"]["continue"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
        // What comes between pages does not show in them.
        admin.post(MAPS, &map(&format!("z{pages}"))).await;
    }
    assert_eq!((names.len(), pages), (7, 3), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_compressed_for_who_takes_that() {
    let rig = Rig::start().await;
    let admin = rig.administrator();
    for number in 0..4 {
        let body = json!({"metadata": {"name": format!("big{number}")}, "data": {"a": "x".repeat(100_000)}});
        assert_eq!(admin.post(MAPS, &body).await.code, 201);
    }
    let zipped = admin.call("GET", MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(zipped.header("content-encoding"), "gzip");
    assert!(zipped.body.len() < 20_000);
    let plain = admin.get(MAPS).await;
    assert_eq!(plain.header("content-encoding"), "");
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&zipped.body[..]), &mut text).unwrap();
    assert_eq!(text, plain.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_ends_watches_and_refuses_the_ready_check() {
    let mut rig = Rig::start().await;
    let mut tasks = JoinSet::new();
    let path = format!("{MAPS}?watch=1");
    let mut lines = Lines::of(rig.administrator().send(&mut tasks, "GET", &path, &[], "").await);
    rig.stop.send_replace(true);
    assert_eq!(lines.next().await, None);
    // The listener's task ends by itself; the others run as long as they are let.
    let ended = tokio::time::timeout(Duration::from_secs(5), rig.tasks.join_next()).await;
    assert!(ended.unwrap().unwrap().is_ok());
}
