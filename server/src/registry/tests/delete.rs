//! Deleting.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::*;
use crate::store::refusing::Refusing;

fn code(answer: &Answer) -> u16 {
    match answer {
        Answer::Object { code, .. } => *code,
        Answer::Status(_) | Answer::List { .. } | Answer::Watch(_) => 0,
    }
}

#[tokio::test]
async fn a_deleted_object_is_gone_and_the_answer_says_which() {
    let cluster = Cluster::new().await;
    let made = cluster.create(MAPS, config_map("a")).await.unwrap();
    let answer = cluster
        .delete(named(MAPS, "a"), DeleteOptions::default())
        .await
        .unwrap();
    let status = value(&answer);
    assert_eq!(status["status"], "Success");
    assert_eq!(
        status["details"],
        json!({"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]})
    );
    let status = cluster
        .delete(named(MAPS, "a"), DeleteOptions::default())
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (404, "configmaps \"a\" not found")
    );
}

#[tokio::test]
async fn what_the_datastore_has_not_and_the_cache_shows_is_not_deleted_for_ever() {
    let store: Arc<Refusing> = Arc::default();
    let cluster = Cluster::on(Arc::clone(&store) as _, 1, Settings::default()).await;
    let namespace = json!({"metadata": {"name": "default"}});
    cluster.create(("namespaces", "", "", ""), namespace).await.unwrap();
    cluster.create(MAPS, config_map("a")).await.unwrap();
    store.lose("/registry/configmaps/");
    let deleting = cluster.delete(named(MAPS, "a"), DeleteOptions::default());
    let status = timeout(Duration::from_secs(10), deleting)
        .await
        .unwrap()
        .map(drop)
        .unwrap_err();
    assert_eq!(status.code, 409, "{status}");
}

#[tokio::test]
async fn preconditions_protect_from_deleting_another() {
    let cluster = Cluster::new().await;
    let made = cluster.create(MAPS, config_map("a")).await.unwrap();
    let uid = DeleteOptions {
        uid: Some("other".into()),
        ..DeleteOptions::default()
    };
    assert_eq!(
        cluster
            .delete(named(MAPS, "a"), uid)
            .await
            .map(|_| ())
            .unwrap_err()
            .code,
        409
    );
    let revision = DeleteOptions {
        resource_version: Some("1".into()),
        ..DeleteOptions::default()
    };
    let status = cluster
        .delete(named(MAPS, "a"), revision)
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(
        status
            .message
            .contains("Precondition failed: ResourceVersion in precondition: 1,"),
        "{status}"
    );
    let right = DeleteOptions {
        uid: made["metadata"]["uid"].as_str().map(str::to_owned),
        resource_version: made["metadata"]["resourceVersion"].as_str().map(str::to_owned),
        ..DeleteOptions::default()
    };
    cluster.delete(named(MAPS, "a"), right).await.unwrap();
}

#[tokio::test]
async fn propagation_is_left_to_the_garbage_collector() {
    let cluster = Cluster::new().await;
    for (policy, finalizer, answered) in [("Foreground", "foregroundDeletion", 202), ("Orphan", "orphan", 200)] {
        cluster.create(DEPLOYMENTS, deployment("a")).await.unwrap();
        let options = DeleteOptions {
            propagation: Some(policy.into()),
            ..DeleteOptions::default()
        };
        let answer = cluster.delete(named(DEPLOYMENTS, "a"), options).await.unwrap();
        assert_eq!(code(&answer), answered);
        let mut dying = value(&answer);
        assert_eq!(dying["metadata"]["finalizers"], json!([finalizer]));
        assert_eq!(dying["metadata"]["generation"], 2);
        dying["metadata"]["finalizers"] = json!([]);
        cluster.update(named(DEPLOYMENTS, "a"), dying).await.unwrap();
        assert_eq!(cluster.get(named(DEPLOYMENTS, "a")).await.unwrap_err().code, 404);
    }
    cluster.create(DEPLOYMENTS, deployment("a")).await.unwrap();
    let options = DeleteOptions {
        propagation: Some("Sideways".into()),
        ..DeleteOptions::default()
    };
    assert_eq!(
        cluster
            .delete(named(DEPLOYMENTS, "a"), options)
            .await
            .map(|_| ())
            .unwrap_err()
            .code,
        422
    );
}

#[tokio::test]
async fn a_job_goes_without_its_pods_and_says_so() {
    let cluster = Cluster::new().await;
    let jobs = ("jobs", "default", "", "");
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]}});
    for (propagation, warned) in [(None, 1), (Some("Orphan"), 0)] {
        let name = if warned == 1 { "a" } else { "b" };
        cluster
            .create(
                jobs,
                json!({"metadata": {"name": name}, "spec": {"template": template}}),
            )
            .await
            .unwrap();
        let options = DeleteOptions {
            propagation: propagation.map(str::to_owned),
            ..DeleteOptions::default()
        };
        match cluster.delete(named(jobs, name), options).await.unwrap() {
            Answer::Object { warnings, .. } => assert_eq!(warnings.len(), warned, "{propagation:?}"),
            _ => panic!("a job that is gone at once"),
        }
        let dying = cluster.get(named(jobs, name)).await.unwrap();
        assert_eq!(dying["metadata"]["finalizers"], json!(["orphan"]));
    }
}

#[tokio::test]
async fn a_collection_goes_as_selected() {
    let cluster = Cluster::new().await;
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut body = config_map(name);
        body["metadata"]["labels"] = json!({ "l": label });
        cluster.create(MAPS, body).await.unwrap();
    }
    let list = ListOptions {
        filter: crate::cache::Filter {
            labels: agent::wire::selector::Labels::parse("l=x").unwrap(),
            ..crate::cache::Filter::default()
        },
        ..ListOptions::default()
    };
    let options = DeleteOptions::default();
    let answer = cluster
        .run(MAPS, Operation::DeleteCollection { list, options })
        .await
        .unwrap();
    let Answer::List { page, .. } = answer else {
        panic!("no list")
    };
    assert_eq!(names(&page), ["a", "c"]);
    let (page, _) = cluster.list(MAPS, ListOptions::default()).await.unwrap();
    assert_eq!(names(&page), ["b"]);
}

#[tokio::test]
async fn a_dry_run_deletes_nothing() {
    let cluster = Cluster::new().await;
    cluster.create(MAPS, config_map("a")).await.unwrap();
    let options = DeleteOptions {
        dry_run: true,
        ..DeleteOptions::default()
    };
    cluster.delete(named(MAPS, "a"), options).await.unwrap();
    cluster.get(named(MAPS, "a")).await.unwrap();
}

#[tokio::test]
async fn a_namespace_goes_in_two_steps_and_the_first_ones_stay() {
    let cluster = Cluster::new().await;
    let spaces = ("namespaces", "", "", "");
    let status = cluster
        .delete(named(spaces, "default"), DeleteOptions::default())
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(
        status.message,
        "namespaces \"default\" is forbidden: this namespace may not be deleted"
    );
    cluster
        .create(spaces, json!({"metadata": {"name": "a"}}))
        .await
        .unwrap();
    let dying = value(
        &cluster
            .delete(named(spaces, "a"), DeleteOptions::default())
            .await
            .unwrap(),
    );
    assert_eq!(dying["status"]["phase"], "Terminating");
    assert_eq!(dying["spec"]["finalizers"], json!(["kubernetes"]));
    let mut done = dying.clone();
    done["spec"]["finalizers"] = json!([]);
    cluster.update(part(spaces, "a", "finalize"), done).await.unwrap();
    assert_eq!(cluster.get(named(spaces, "a")).await.unwrap_err().code, 404);
}

#[tokio::test]
async fn a_verb_or_part_that_a_kind_does_not_have_is_refused() {
    let cluster = Cluster::new().await;
    let operation = Operation::DeleteCollection {
        list: ListOptions::default(),
        options: DeleteOptions::default(),
    };
    let status = cluster
        .run(("namespaces", "", "", ""), operation)
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(status.code, 405);
    let status = cluster.get(part(MAPS, "a", "status")).await.unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (404, "the server could not find the requested resource")
    );
}
