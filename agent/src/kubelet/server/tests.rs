//! The port over real TLS on loopback, in front of a played runtime.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use tokio::time::{sleep, timeout};

use super::testing::{Authority, Node};

#[tokio::test]
async fn nobody_but_the_control_plane_is_let_in() {
    let node = Node::start().await;
    let authority = &node.authority;
    let paths = ["/healthz", "/pods", "/containerLogs/ns/web/c", "/no/such/path"];
    for path in paths {
        let (code, text) = node.get_as(None, path).await.unwrap();
        assert_eq!((code, text.as_str()), (401, "Unauthorized"), "{path}");
        let other = authority.sign("system:node:other", "system:nodes");
        let (code, text) = node.get_as(Some(other), path).await.unwrap();
        assert_eq!(code, 403, "{path}");
        assert!(text.contains("system:node:other"), "{text}");
        let stranger = Authority::new().sign("system:apiserver", "system:masters");
        assert!(node.get_as(Some(stranger), path).await.is_err(), "{path}");
    }
    let admin = authority.sign("system:admin", "system:masters");
    assert_eq!(node.get_as(Some(admin), "/healthz").await.unwrap(), (200, "ok".into()));
    assert_eq!(node.get("/no/such/path").await.0, 404);
}

#[tokio::test]
async fn a_certificate_renewed_while_serving_is_the_one_shown() {
    let mut node = Node::start().await;
    assert_eq!(node.get("/healthz").await.0, 200);
    let before = std::mem::replace(&mut node.authority, Authority::new());
    node.authority.write(&node.port.settings);
    assert_eq!(node.get("/healthz").await.0, 200);
    node.authority = before;
    let shown = node.authority.sign("system:apiserver", "system:masters");
    assert!(node.get_as(Some(shown), "/healthz").await.is_err());
}

#[tokio::test]
async fn the_node_tells_its_pods_with_their_latest_status() {
    let node = Node::start().await;
    assert_eq!(node.json("/pods").await["items"].as_array().unwrap().len(), 0);
    node.add_pod().await;
    let pods = node.json("/pods").await;
    assert_eq!(pods["kind"], "PodList");
    assert_eq!(pods["items"][0]["metadata"]["labels"]["a"], "b");
    assert_eq!(pods["items"][0]["status"]["phase"], "Running");
}

#[tokio::test]
async fn logs_are_those_of_the_running_attempt_or_of_the_one_before() {
    let node = Node::start().await;
    let pod = node.add_pod().await;
    node.print(&pod, 0, "first life");
    node.fake.end("u", "c", 1);
    node.start_container(1).await;
    for word in ["one", "two", "three"] {
        node.print(&pod, 1, word);
    }
    let about = "container \"d\" in pod \"web\"";
    for (path, code, text) in [
        ("ns/web/c", 200, "one\ntwo\nthree\n".to_owned()),
        ("ns/web/c?tailLines=1", 200, "three\n".to_owned()),
        ("ns/web/c?previous=true", 200, "first life\n".to_owned()),
        (
            "ns/web/c?timestamps=true&limitBytes=35",
            200,
            "2026-01-01T00:00:00.000000001Z one\n".to_owned(),
        ),
        (
            "ns/web/d",
            400,
            format!("{about} is waiting to start: ContainerCreating"),
        ),
        (
            "ns/web/d?previous=true",
            400,
            format!("previous terminated {about} not found"),
        ),
        ("ns/web/x", 404, "container \"x\" not found in pod \"web\"".to_owned()),
        ("ns/nobody/c", 404, "pod \"nobody\" does not exist".to_owned()),
        ("ns/web/c?tailLines=-1", 422, "tailLines must be at least 0".to_owned()),
    ] {
        assert_eq!(
            node.get(&format!("/containerLogs/{path}")).await,
            (code, text),
            "{path}"
        );
    }
    let state = node.fake.state("u").unwrap();
    assert_eq!(state.containers.len(), 2);
    node.fake.forget_containers("u");
    assert_eq!(
        node.get("/containerLogs/ns/web/c").await.1,
        "one\ntwo\nthree\n",
        "its log outlives the sandbox"
    );
}

#[tokio::test]
async fn the_previous_log_is_never_that_of_an_attempt_the_runtime_knows() {
    let node = Node::start().await;
    let pod = node.add_pod().await;
    node.fake.end("u", "c", 1);
    node.fake.forget_containers("u");
    node.start_container(1).await;
    node.print(&pod, 1, "now");
    let path = "/containerLogs/ns/web/c?previous=true";
    let missing = "unable to retrieve container logs for amphipod://c-0";
    assert_eq!(node.get(path).await, (400, missing.to_owned()));
    node.print(&pod, 0, "first life");
    assert_eq!(node.get(path).await, (200, "first life\n".to_owned()));
}

#[tokio::test]
async fn a_followed_log_brings_lines_as_they_come_and_ends_with_its_container() {
    let node = Node::start().await;
    let pod = node.add_pod().await;
    node.print(&pod, 0, "before");
    let shown = node.authority.sign("system:apiserver", "system:masters");
    let request = Request::get("/containerLogs/ns/web/c?follow=true")
        .body(Empty::new())
        .unwrap();
    let (response, _tasks) = node.send(Some(shown), request).await.unwrap();
    let mut body = response.into_body();
    let mut next = async || {
        let frame = body.frame().await?.unwrap();
        Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
    };
    assert_eq!(next().await.as_deref(), Some("before\n"));
    for word in ["one", "two"] {
        node.print(&pod, 0, word);
        assert_eq!(next().await, Some(format!("{word}\n")));
    }
    node.print(&pod, 0, "last words");
    node.fake.end("u", "c", 0);
    assert_eq!(next().await.as_deref(), Some("last words\n"));
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn a_followed_log_ends_though_nobody_tells_and_the_next_attempt_is_busy() {
    let node = Node::start().await;
    let pod = node.add_pod().await;
    node.print(&pod, 0, "before");
    let shown = node.authority.sign("system:apiserver", "system:masters");
    let request = Request::get("/containerLogs/ns/web/c?follow=true");
    let request = request.body(Empty::new()).unwrap();
    let (response, _tasks) = node.send(Some(shown), request).await.unwrap();
    node.fake.forget_containers("u");
    let busy = async {
        loop {
            node.print(&pod, 1, "noise");
            sleep(Duration::from_millis(10)).await;
        }
    };
    let whole = tokio::select! {
        body = timeout(Duration::from_secs(20), response.into_body().collect()) => body.expect("it ends").unwrap(),
        () = busy => return,
    };
    assert_eq!(whole.to_bytes(), "before\n");
}
