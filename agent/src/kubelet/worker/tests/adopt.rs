//! An agent that starts again under pods that run: what is missing by then is no reason to end them.

use serde_json::{Value, json};

use super::{exec, named, seconds};
use crate::kubelet::testing::node::Rig;

const SETTINGS: &str = "/api/v1/namespaces/ns/configmaps/settings";

/// A pod with a volume of a ConfigMap, and with probes.
async fn settled() -> Rig {
    let rig = Rig::start();
    rig.api.put(SETTINGS, json!({"data": {"a": "1"}}));
    let mut probe = exec("check");
    probe["periodSeconds"] = json!(1);
    let spec = json!({
        "volumes": [{"name": "v", "configMap": {"name": "settings"}}],
        "containers": [named("c", json!({"livenessProbe": probe, "readinessProbe": probe}))],
    });
    rig.run("web", spec);
    rig.until("it is ready", |rig| rig.container("web", "c")["ready"] == true)
        .await;
    tokio::time::sleep(seconds(1)).await;
    rig
}

fn ip(rig: &Rig) -> Value {
    rig.pod("web")["status"]["podIP"].clone()
}

#[tokio::test(start_paused = true)]
async fn what_runs_goes_on_without_a_config_map_that_was_deleted() {
    let mut rig = settled().await;
    rig.agent_dies().await;
    rig.api.lose(SETTINGS);
    rig.agent_starts();
    rig.until("it is told", |rig| rig.api.events().contains(&"FailedMount".to_owned()))
        .await;
    for _ in 0..120 {
        assert_eq!((ip(&rig), rig.signals()), (json!("10.42.0.2"), vec![]));
        assert_eq!(rig.container("web", "c")["ready"], true);
        tokio::time::sleep(seconds(1)).await;
    }
    assert_eq!(rig.file("web", "volumes/kubernetes.io~configmap/v/a"), "1");
    rig.fake.end("web", "c", 1);
    rig.until("it is tended as ever", |rig| rig.started().len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn what_runs_keeps_its_address_while_there_is_no_network_yet() {
    let mut rig = settled().await;
    rig.agent_dies().await;
    rig.network_goes();
    rig.agent_starts();
    let asked = rig.commands().len();
    for _ in 0..120 {
        assert_eq!((ip(&rig), rig.signals()), (json!("10.42.0.2"), vec![]));
        assert_eq!(rig.container("web", "c")["ready"], true);
        tokio::time::sleep(seconds(1)).await;
    }
    assert_eq!(rig.commands().len(), asked, "nobody knows yet where to ask");
    rig.network_comes();
    rig.until("it is asked again", |rig| rig.commands().len() > asked).await;
    tokio::time::sleep(seconds(60)).await;
    assert_eq!((ip(&rig), rig.started().len()), (json!("10.42.0.2"), 1));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_a_container_holds_stays_while_there_is_no_other() {
    let mut rig = Rig::start();
    let token = json!({"spec": {"expirationSeconds": 3600}, "status": {"token": "secret"}});
    rig.api.grant(token);
    let volume = json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}});
    rig.run(
        "web",
        json!({"volumes": [volume], "containers": [named("c", json!({}))]}),
    );
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    tokio::time::sleep(seconds(1)).await;
    let held = |rig: &Rig| rig.file("web", "volumes/kubernetes.io~projected/v/token");
    assert_eq!(held(&rig), "secret");
    rig.agent_dies().await;
    rig.api.unplug();
    rig.agent_starts();
    tokio::time::sleep(seconds(300)).await;
    assert_eq!(held(&rig), "secret", "nobody answers");
    rig.api.plug();
    rig.api.refuse_tokens();
    tokio::time::sleep(seconds(300)).await;
    assert_eq!(held(&rig), "secret", "its account is gone");
    assert_eq!((rig.started().len(), rig.signals().len()), (1, 0));
    rig.delete("web", 0); // secrets are in memory that is mounted
    rig.until_gone("web").await;
}
