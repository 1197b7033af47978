//! Patching.

use serde_json::json;

use super::*;

#[tokio::test]
async fn each_kind_of_patch_does_its_own() {
    let cluster = Cluster::new().await;
    cluster.create(MAPS, config_map("a")).await.unwrap();
    let place = named(MAPS, "a");
    let merged = cluster
        .patch(place, Patch::Merge(json!({"data": {"a": null, "b": "2"}})))
        .await
        .unwrap();
    assert_eq!(merged["data"], json!({"b": "2"}));
    let added = cluster
        .patch(
            place,
            Patch::Json(json!([{"op": "add", "path": "/data/c", "value": "3"}])),
        )
        .await
        .unwrap();
    assert_eq!(added["data"], json!({"b": "2", "c": "3"}));
    let unchanged = cluster.patch(place, Patch::Merge(json!({}))).await.unwrap();
    assert_eq!(unchanged, added);
    let strategic = cluster
        .patch(place, Patch::Strategic(json!({"metadata": {"labels": {"x": "y"}}})))
        .await
        .unwrap();
    assert_eq!(strategic["metadata"]["labels"], json!({"x": "y"}));
    assert_eq!(strategic["data"], added["data"]);
}

#[tokio::test]
async fn a_strategic_patch_finds_a_container_by_its_name() {
    let cluster = Cluster::new().await;
    cluster.create(DEPLOYMENTS, deployment("a")).await.unwrap();
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "nginx:2"}]}}}});
    let patched = cluster
        .patch(named(DEPLOYMENTS, "a"), Patch::Strategic(patch))
        .await
        .unwrap();
    let containers = &patched["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers.as_array().unwrap().len(), 1);
    assert_eq!(containers[0]["image"], "nginx:2");
    assert_eq!(containers[0]["terminationMessagePath"], "/dev/termination-log");
    assert_eq!(patched["metadata"]["generation"], 2);
}

#[tokio::test]
async fn patches_that_cannot_be_are_refused_each_in_its_way() {
    let cluster = Cluster::new().await;
    cluster.create(MAPS, config_map("a")).await.unwrap();
    let place = named(MAPS, "a");
    for (patch, code) in [
        (Patch::Json(json!({})), 400),
        (Patch::Json(json!([{"op": "fly", "path": "/data"}])), 400),
        (
            Patch::Json(json!([{"op": "test", "path": "/data/a", "value": "other"}])),
            422,
        ),
        (Patch::Json(json!([{"op": "remove", "path": "/none"}])), 422),
        (
            Patch::Json(json!([{"op": "replace", "path": "/metadata/name", "value": "b"}])),
            400,
        ),
        (Patch::Merge(json!({"metadata": {"name": "b"}})), 400),
        (Patch::Merge(json!({"metadata": {"uid": "other"}})), 409),
        (Patch::Merge(json!({"metadata": {"resourceVersion": "1"}})), 409),
        (Patch::Merge(json!({"colour": "red"})), 400),
        (Patch::Merge(json!({"data": {"a": 1}})), 400),
        (Patch::Merge(json!({"metadata": {"labels": {"-": "x"}}})), 422),
    ] {
        let status = cluster.patch(place, patch.clone()).await.unwrap_err();
        assert_eq!(status.code, code, "{patch:?}: {status}");
    }
    let status = cluster
        .patch(place, Patch::Json(json!([{"op": "remove", "path": "/none"}])))
        .await
        .unwrap_err();
    assert_eq!(
        status.message,
        "the server rejected our request due to an error in our request"
    );
    let missing = cluster
        .patch(named(MAPS, "none"), Patch::Merge(json!({})))
        .await
        .unwrap_err();
    assert_eq!(missing.code, 404);
}

#[tokio::test]
async fn patches_that_race_are_all_applied() {
    let cluster = Arc::new(Cluster::new().await);
    cluster.create(MAPS, config_map("a")).await.unwrap();
    let mut writers = JoinSet::new();
    for number in 0..4 {
        let cluster = Arc::clone(&cluster);
        let patch = Patch::Merge(json!({"data": {format!("k{number}"): "x"}}));
        writers.spawn(async move { cluster.patch(named(MAPS, "a"), patch).await.map(|_| ()) });
    }
    for result in writers.join_all().await {
        result.unwrap();
    }
    let all = cluster.get(named(MAPS, "a")).await.unwrap();
    assert_eq!(all["data"].as_object().unwrap().len(), 5);
}
