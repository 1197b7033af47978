//! Updating.

use serde_json::json;

use super::*;

#[tokio::test]
async fn an_update_keeps_identity_and_counts_changes_of_the_desired_state() {
    let cluster = Cluster::new().await;
    let made = cluster.create(DEPLOYMENTS, deployment("a")).await.unwrap();
    let mut body = made.clone();
    body["metadata"]["labels"] = json!({"x": "y"});
    body["metadata"]["creationTimestamp"] = "2000-01-01T00:00:00Z".into();
    let labelled = cluster.update(named(DEPLOYMENTS, "a"), body).await.unwrap();
    assert_eq!(labelled["metadata"]["generation"], 1);
    assert_eq!(
        labelled["metadata"]["creationTimestamp"],
        made["metadata"]["creationTimestamp"]
    );
    let mut body = labelled.clone();
    body["spec"]["replicas"] = 3.into();
    let scaled = cluster.update(named(DEPLOYMENTS, "a"), body).await.unwrap();
    assert_eq!(scaled["metadata"]["generation"], 2);
    assert_eq!(scaled["metadata"]["uid"], made["metadata"]["uid"]);
}

#[tokio::test]
async fn a_stale_revision_or_another_uid_is_a_conflict() {
    let cluster = Cluster::new().await;
    let made = cluster.create(MAPS, config_map("a")).await.unwrap();
    let mut body = made.clone();
    body["data"]["a"] = "2".into();
    cluster.update(named(MAPS, "a"), body.clone()).await.unwrap();
    body["data"]["a"] = "3".into();
    let status = cluster.update(named(MAPS, "a"), body.clone()).await.unwrap_err();
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert_eq!(
        status.message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    body["metadata"]["resourceVersion"] = "".into();
    assert_eq!(
        cluster.update(named(MAPS, "a"), body.clone()).await.unwrap()["data"]["a"],
        "3"
    );
    body["metadata"]["uid"] = "other".into();
    let status = cluster.update(named(MAPS, "a"), body).await.unwrap_err();
    assert!(
        status
            .message
            .contains("Precondition failed: UID in precondition: other, UID in object meta: "),
        "{status}"
    );
}

#[tokio::test]
async fn what_changes_nothing_is_not_written() {
    let cluster = Cluster::new().await;
    let made = cluster.create(MAPS, config_map("a")).await.unwrap();
    let again = cluster.update(named(MAPS, "a"), config_map("a")).await.unwrap();
    assert_eq!(again, made);
}

#[tokio::test]
async fn some_kinds_come_to_be_by_update_and_the_others_are_missing() {
    let cluster = Cluster::new().await;
    assert_eq!(
        cluster
            .update(named(MAPS, "a"), config_map("a"))
            .await
            .unwrap_err()
            .code,
        404
    );
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}});
    let place = ("leases", "default", "l", "");
    let answer = cluster
        .run(
            place,
            Operation::Update {
                body: lease.clone(),
                options: strict(),
            },
        )
        .await
        .unwrap();
    assert!(matches!(answer, Answer::Object { code: 201, .. }));
    let status = cluster.update(place, lease).await.unwrap_err();
    assert_eq!(
        status.message,
        "Lease.coordination.k8s.io \"l\" is invalid: metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
    );
}

#[tokio::test]
async fn path_and_body_must_agree() {
    let cluster = Cluster::new().await;
    cluster.create(MAPS, config_map("a")).await.unwrap();
    let status = cluster.update(named(MAPS, "a"), config_map("b")).await.unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (400, "the name of the object (b) does not match the name on the URL (a)")
    );
}

#[tokio::test]
async fn immutable_fields_stay() {
    let cluster = Cluster::new().await;
    let mut made = cluster.create(DEPLOYMENTS, deployment("a")).await.unwrap();
    made["spec"]["selector"]["matchLabels"]["x"] = "y".into();
    made["spec"]["template"]["metadata"]["labels"]["x"] = "y".into();
    let status = cluster.update(named(DEPLOYMENTS, "a"), made).await.unwrap_err();
    assert_eq!(status.code, 422);
    assert!(status.message.ends_with("field is immutable"), "{status}");
}

#[tokio::test]
async fn writers_that_race_without_a_revision_both_win_and_with_one_only_one() {
    let cluster = Arc::new(Cluster::new().await);
    let made = cluster.create(MAPS, config_map("a")).await.unwrap();
    let mut writers = JoinSet::new();
    for number in 10..30 {
        let (cluster, mut body) = (Arc::clone(&cluster), made.clone());
        body["data"]["a"] = number.to_string().into();
        writers.spawn(async move { cluster.update(named(MAPS, "a"), body).await.is_ok() });
    }
    let won = writers.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_lost_finalizer_lets_a_dying_object_go() {
    let cluster = Cluster::new().await;
    let mut body = config_map("a");
    body["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create(MAPS, body).await.unwrap();
    cluster
        .delete(named(MAPS, "a"), DeleteOptions::default())
        .await
        .unwrap();
    let mut dying = cluster.get(named(MAPS, "a")).await.unwrap();
    assert!(dying["metadata"]["deletionTimestamp"].is_string());
    let mut more = dying.clone();
    more["metadata"]["finalizers"] = json!(["example.com/hold", "example.com/more"]);
    let status = cluster.update(named(MAPS, "a"), more).await.unwrap_err();
    assert!(
        status
            .message
            .contains("no new finalizers can be added if the object is being deleted"),
        "{status}"
    );
    dying["metadata"].as_object_mut().unwrap().remove("finalizers");
    cluster.update(named(MAPS, "a"), dying).await.unwrap();
    assert_eq!(cluster.get(named(MAPS, "a")).await.unwrap_err().code, 404);
}
