//! Getting, listing, watching.

use agent::wire::selector::{Fields, Labels};
use serde_json::json;

use super::*;
use crate::cache::{ChangeKind, Filter, From, WatchEvent};

fn by(labels: &str, fields: &str) -> ListOptions {
    ListOptions {
        filter: Filter {
            labels: Labels::parse(labels).unwrap(),
            fields: Fields::parse(fields).unwrap(),
        },
        ..ListOptions::default()
    }
}

#[tokio::test]
async fn a_list_is_in_order_and_selected_by_label_and_field() {
    let cluster = Cluster::new().await;
    for name in ["c", "a", "b"] {
        let mut body = pod(name);
        body["metadata"]["labels"]["name"] = name.into();
        cluster.create(PODS, body).await.unwrap();
    }
    for (labels, fields, found) in [
        ("", "", &["a", "b", "c"][..]),
        ("name in (a,c)", "", &["a", "c"]),
        ("", "metadata.name=b", &["b"]),
        ("", "metadata.name=none", &[]),
        ("", "spec.nodeName=", &["a", "b", "c"]),
        ("name!=a", "metadata.name!=b,status.phase=Pending", &["c"]),
        ("", "metadata.namespace=other", &[]),
    ] {
        let (page, token) = cluster.list(PODS, by(labels, fields)).await.unwrap();
        assert_eq!((names(&page).as_slice(), token), (found, None), "{labels} {fields}");
    }
    let (everywhere, _) = cluster
        .list(("pods", "", "", ""), by("", "metadata.name=b"))
        .await
        .unwrap();
    assert_eq!(names(&everywhere), ["b"]);
    let status = cluster
        .list(PODS, by("", "spec.colour=red"))
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (400, "field label not supported: spec.colour")
    );
}

#[tokio::test]
async fn pages_show_one_state_although_the_world_moves_on() {
    let cluster = Cluster::new().await;
    for number in 0..5 {
        cluster.create(MAPS, config_map(&format!("m{number}"))).await.unwrap();
    }
    let (mut seen, mut token, mut revisions) = (Vec::new(), None, Vec::new());
    loop {
        let options = ListOptions {
            limit: Some(2),
            continue_token: token,
            ..ListOptions::default()
        };
        let (page, next) = cluster.list(MAPS, options).await.unwrap();
        seen.extend(names(&page).into_iter().map(str::to_owned));
        revisions.push(page.revision);
        // Neither the new nor the removed one may show.
        let extra = format!("m{}x", revisions.len());
        cluster.create(MAPS, config_map(&extra)).await.unwrap();
        if revisions.len() == 1 {
            cluster
                .delete(named(MAPS, "m4"), DeleteOptions::default())
                .await
                .unwrap();
        }
        token = next;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["m0", "m1", "m2", "m3", "m4"]);
    assert!(revisions.iter().all(|revision| *revision == revisions[0]));
}

#[tokio::test]
async fn what_is_not_there_yet_is_waited_for_and_then_refused() {
    let cluster = Cluster::new().await;
    cluster.create(MAPS, config_map("a")).await.unwrap();
    tokio::time::pause();
    let get = |revision: &str| Operation::Get {
        resource_version: Some(revision.to_owned()),
    };
    let status = cluster.object(named(MAPS, "a"), get("9999")).await.unwrap_err();
    assert_eq!((status.code, status.reason.as_str()), (504, "Timeout"));
    assert!(
        status
            .message
            .starts_with("Too large resource version: 9999, current: "),
        "{status}"
    );
    let details = status.details.unwrap();
    assert_eq!(
        (details.retry_after_seconds, details.causes[0].reason.as_str()),
        (1, "ResourceVersionTooLarge")
    );
    for fine in ["0", "1", ""] {
        cluster.object(named(MAPS, "a"), get(fine)).await.unwrap();
    }
    assert_eq!(cluster.object(named(MAPS, "a"), get("x")).await.unwrap_err().code, 400);
}

#[tokio::test]
async fn a_watch_tells_what_happens_to_what_is_selected() {
    let cluster = Cluster::new().await;
    cluster.create(MAPS, config_map("before")).await.unwrap();
    let operation = Operation::Watch {
        filter: Filter::default(),
        from: From::State { bookmark: true },
        bookmarks: true,
    };
    let Answer::Watch(mut watch) = cluster.run(MAPS, operation).await.unwrap() else {
        panic!("no watch");
    };
    let mut told = Vec::new();
    let made = cluster.create(MAPS, config_map("a")).await.unwrap();
    cluster
        .patch(named(MAPS, "a"), Patch::Merge(json!({"data": {"b": "2"}})))
        .await
        .unwrap();
    cluster
        .delete(named(MAPS, "a"), DeleteOptions::default())
        .await
        .unwrap();
    while told.len() < 5 {
        told.push(match watch.next().await.unwrap() {
            WatchEvent::Change(kind, item) => format!("{kind:?} {}", item.field("metadata.name")),
            WatchEvent::Bookmark { initial_events_end, .. } => format!("Bookmark {initial_events_end}"),
        });
    }
    assert_eq!(
        told,
        ["Added before", "Bookmark true", "Added a", "Modified a", "Deleted a"]
    );
    let revision = agent::units::Revision::parse(made["metadata"]["resourceVersion"].as_str().unwrap()).unwrap();
    let operation = Operation::Watch {
        filter: Filter::default(),
        from: From::After(revision),
        bookmarks: false,
    };
    let Answer::Watch(mut watch) = cluster.run(named(MAPS, "a"), operation).await.unwrap() else {
        panic!("no watch");
    };
    let event = watch.next().await.unwrap();
    assert!(
        matches!(event, WatchEvent::Change(ChangeKind::Modified, _)),
        "{event:?}"
    );
}
