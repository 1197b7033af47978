//! What others write into a pod's status: put right where it is the kubelet's, left alone where it is not.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{about, exec, one, seconds};
use crate::kubelet::testing::node::{Rig, path};
use crate::wire::object::list;

fn condition(rig: &Rig, kind: &str) -> Value {
    let pod = rig.pod("web");
    let found = list(&pod, &["status", "conditions"])
        .iter()
        .find(|it| it["type"] == kind)
        .cloned();
    found.unwrap_or_default()
}

fn ready(rig: &Rig) -> bool {
    condition(rig, "Ready")["status"] == "True"
}

/// What a server does to the pods of a node that it has not heard of for long.
fn unready(rig: &Rig) {
    let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    rig.api
        .change(&path("web"), &json!({"status": {"conditions": [condition]}}));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_heard_again_says_that_its_pods_are_ready() {
    let mut rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.until("it is ready", ready).await;
    tokio::time::sleep(seconds(1)).await;
    unready(&rig);
    let took = rig.until("it is ready again", ready).await;
    assert!(took < seconds(1), "{took:?}");
    // Out of reach while it happens, and across a restart.
    for restarted in [false, true] {
        rig.api.unplug();
        tokio::time::sleep(seconds(600)).await;
        if restarted {
            rig.agent_dies().await;
        }
        unready(&rig);
        rig.api.plug();
        if restarted {
            rig.agent_starts();
        }
        rig.until("it is ready again", ready).await;
    }
    assert_eq!((rig.started(), rig.signals()), (vec!["c 0".to_owned()], vec![]));
}

#[tokio::test(start_paused = true)]
async fn other_parts_of_a_status_are_put_right_too() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.until("it is ready", ready).await;
    tokio::time::sleep(seconds(1)).await;
    let before = rig.pod("web")["status"].clone();
    rig.api.change(
        &path("web"),
        &json!({"status": {"podIP": null, "containerStatuses": null, "phase": "Pending", "reason": "NodeLost"}}),
    );
    rig.until("it is as before", |rig| rig.pod("web")["status"] == before)
        .await;
}

#[tokio::test(start_paused = true)]
async fn conditions_of_others_stay_and_start_no_quarrel() {
    let rig = Rig::start();
    let mut spec = one("Always", json!({}));
    spec["readinessGates"] = json!([{"conditionType": "example.com/gate"}]);
    rig.run("web", spec);
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    tokio::time::sleep(seconds(1)).await;
    let theirs = json!([
        {"type": "DisruptionTarget", "status": "True", "reason": "Drained"},
        {"type": "PodScheduled", "status": "False", "reason": "Strange"},
        {"type": "example.com/gate", "status": "True"},
    ]);
    rig.api.change(&path("web"), &json!({"status": {"conditions": theirs}}));
    rig.until("its gate opens", ready).await;
    let scheduled = condition(&rig, "PodScheduled");
    assert_eq!(
        (&scheduled["status"], &scheduled["reason"]),
        (&json!("False"), &json!("Strange"))
    );
    let patches = rig.api.patches("web");
    rig.api.change(&path("web"), &json!({"status": {"conditions": theirs}}));
    tokio::time::sleep(seconds(600)).await;
    assert_eq!(rig.api.patches("web"), patches);
    for kind in ["DisruptionTarget", "example.com/gate"] {
        assert_eq!(condition(&rig, kind)["status"], "True", "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_is_put_right_also_while_a_pod_that_cannot_be_read_ends() {
    let rig = Rig::start();
    *rig.fake.obedient.lock().unwrap() = false;
    rig.run("web", one("Always", json!({})));
    rig.until("it is ready", ready).await;
    tokio::time::sleep(seconds(1)).await;
    let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let change = json!({
        "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 60},
        "spec": {"terminationGracePeriodSeconds": "soon"},
        "status": {"conditions": [condition]},
    });
    rig.api.change(&path("web"), &change);
    let took = rig.until("it is ready again", ready).await;
    assert!(took < seconds(50), "{took:?}");
    assert_eq!(rig.signals(), ["c 15"]);
    rig.until_gone("web").await;
}

#[tokio::test(start_paused = true)]
async fn who_disagrees_for_ever_is_answered_ever_more_seldom() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.until("it is ready", ready).await;
    tokio::time::sleep(seconds(1)).await;
    let patches = rig.api.patches("web");
    let disagreeing = async {
        loop {
            rig.until("it is put right", ready).await;
            unready(&rig);
        }
    };
    let _: Result<(), _> = timeout(seconds(3600), disagreeing).await;
    let answers = rig.api.patches("web") - patches;
    assert!((10..20).contains(&answers), "{answers} in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_holds_again_has_no_reason_for_the_contrary() {
    let rig = Rig::start();
    rig.behave("check", 1, Duration::ZERO);
    let mut probe = exec("check");
    probe["periodSeconds"] = json!(1);
    rig.run("web", one("Always", json!({"readinessProbe": probe})));
    rig.until("it is told", |rig| {
        condition(rig, "Ready")["reason"] == "ContainersNotReady"
    })
    .await;
    rig.behave("check", 0, Duration::ZERO);
    rig.until("it is ready", ready).await;
    let now = condition(&rig, "Ready");
    assert!(now["reason"].is_null() && now["message"].is_null(), "{now}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_somebody_declares_failed_ends_and_stays_so() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.until("it is ready", ready).await;
    tokio::time::sleep(seconds(1)).await;
    rig.api.change(
        &path("web"),
        &json!({"status": {"phase": "Failed", "reason": "NodeLost"}}),
    );
    rig.until("it is ended", |rig| rig.signals() == ["c 15"]).await;
    rig.until("nothing runs", |rig| rig.fake.state("web").is_none()).await;
    tokio::time::sleep(seconds(60)).await;
    assert_eq!((rig.phase("web").as_str(), rig.started().len()), ("Failed", 1));
    assert_eq!(rig.pod("web")["status"]["reason"], "NodeLost");
    assert!(!ready(&rig));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_declared_failed_has_its_grace_from_an_agent_that_starts_again() {
    for noticed in [true, false] {
        let mut rig = Rig::start();
        *rig.fake.obedient.lock().unwrap() = false;
        let mut spec = one("Always", json!({}));
        spec["terminationGracePeriodSeconds"] = json!(20);
        spec["activeDeadlineSeconds"] = json!(100);
        rig.run("web", spec);
        rig.until("it is ready", ready).await;
        tokio::time::sleep(seconds(1)).await;
        let failed = json!({"status": {"phase": "Failed", "reason": "NodeLost"}});
        if noticed {
            rig.api.change(&path("web"), &failed);
            rig.until("it is asked", |rig| rig.signals() == ["c 15"]).await;
            tokio::time::sleep(seconds(5)).await;
            rig.agent_dies().await;
        } else {
            rig.agent_dies().await;
            rig.api.change(&path("web"), &failed);
        }
        tokio::time::sleep(seconds(200)).await;
        rig.fake.signals.lock().unwrap().clear();
        rig.agent_starts();
        rig.until("it is asked", |rig| rig.signals() == ["c 15"]).await;
        let took = rig.until("it is killed", |rig| rig.signals() == ["c 15", "c 9"]).await;
        assert!(about(took, seconds(20)), "{took:?}, noticed: {noticed}");
        rig.until("nothing runs", |rig| rig.fake.state("web").is_none()).await;
        tokio::time::sleep(seconds(1)).await;
        assert_eq!((rig.phase("web").as_str(), rig.started().len()), ("Failed", 1));
        assert_eq!(rig.pod("web")["status"]["reason"], "NodeLost", "and not its deadline");
    }
}
