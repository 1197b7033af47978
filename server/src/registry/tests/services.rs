//! Services: addresses and ports.

use serde_json::json;

use super::*;

const SERVICES: Place<'static> = ("services", "default", "", "");

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn each_service_has_an_address_of_its_own_and_gives_it_back() {
    let cluster = Arc::new(Cluster::new().await);
    let mut makers = JoinSet::new();
    for number in 0..30 {
        let cluster = Arc::clone(&cluster);
        let body = service(
            &format!("s{number}"),
            json!({"type": "NodePort", "ports": [{"port": 80}]}),
        );
        makers.spawn(async move { cluster.create(SERVICES, body).await.unwrap() });
    }
    let made = makers.join_all().await;
    let addresses: std::collections::BTreeSet<&str> = made
        .iter()
        .map(|one| one["spec"]["clusterIP"].as_str().unwrap())
        .collect();
    let ports: std::collections::BTreeSet<i64> = made
        .iter()
        .map(|one| one["spec"]["ports"][0]["nodePort"].as_i64().unwrap())
        .collect();
    assert_eq!((addresses.len(), ports.len()), (30, 30));
    assert!(addresses.iter().all(|address| address.starts_with("10.43.")));
    let ip = made[0]["spec"]["clusterIP"].as_str().unwrap();
    let asking = service("twin", json!({"clusterIP": ip, "ports": [{"port": 80}]}));
    let status = cluster.create(SERVICES, asking.clone()).await.unwrap_err();
    assert!(status.message.contains("provided IP is already allocated"), "{status}");
    let name = made[0]["metadata"]["name"].as_str().unwrap();
    cluster
        .delete(named(SERVICES, name), DeleteOptions::default())
        .await
        .unwrap();
    cluster.create(SERVICES, asking).await.unwrap();
}

#[tokio::test]
async fn applying_a_service_again_keeps_its_address() {
    let cluster = Cluster::new().await;
    let body = service("s", json!({"ports": [{"port": 80}]}));
    let made = cluster.create(SERVICES, body.clone()).await.unwrap();
    let again = cluster.update(named(SERVICES, "s"), body).await.unwrap();
    assert_eq!(again, made);
    assert_eq!(made["spec"]["clusterIPs"], json!([made["spec"]["clusterIP"]]));
    let headless = cluster
        .create(
            SERVICES,
            service("h", json!({"clusterIP": "None", "selector": {"a": "b"}})),
        )
        .await
        .unwrap();
    assert_eq!(
        (&headless["spec"]["clusterIP"], &headless["spec"]["clusterIPs"]),
        (&json!("None"), &json!(["None"]))
    );
}
