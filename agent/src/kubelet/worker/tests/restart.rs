//! What becomes of containers that end by themselves, or that probes give up on; and of an agent that starts again.

use std::time::Duration;

use serde_json::{Value, json};

use super::{about, exec, named, one, seconds};
use crate::kubelet::testing::node::{Rig, path};
use crate::runtime::Status;

#[tokio::test(start_paused = true)]
async fn a_container_that_crashes_is_started_again_ever_later() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    for (crash, delay) in [0, 10, 20, 40, 80, 160, 300, 300].into_iter().enumerate() {
        let attempt = i64::try_from(crash).unwrap();
        rig.until("it runs", |rig| {
            rig.restarts("web", "c") == attempt && !rig.container("web", "c")["state"]["running"].is_null()
        })
        .await;
        rig.fake.end("web", "c", 7);
        let starts = rig.started().len();
        if delay > 0 {
            rig.until("it waits", |rig| rig.reason("web", "c") == "CrashLoopBackOff")
                .await;
            let end = &rig.container("web", "c")["lastState"]["terminated"];
            assert_eq!((&end["exitCode"], &end["reason"]), (&json!(7), &json!("Error")));
        }
        let took = rig
            .until("it is started again", |rig| rig.started().len() > starts)
            .await;
        assert!(
            about(took, seconds(delay)),
            "crash {crash}: {took:?} instead of {delay} s"
        );
    }
    assert_eq!(rig.phase("web"), "Running");
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_of_running_clear_the_record() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    for starts in 1..4 {
        rig.until("it runs", |rig| rig.started().len() == starts).await;
        rig.fake.end("web", "c", 1);
    }
    rig.until("it runs", |rig| rig.started().len() == 4).await;
    tokio::time::sleep(seconds(601)).await;
    rig.fake.end("web", "c", 1);
    let took = rig.until("it is started again", |rig| rig.started().len() == 5).await;
    assert!(took < seconds(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_policy_says_what_follows_an_end() {
    for (policy, code, again, phase) in [
        ("Always", 0, true, "Running"),
        ("Always", 1, true, "Running"),
        ("OnFailure", 0, false, "Succeeded"),
        ("OnFailure", 1, true, "Running"),
        ("Never", 0, false, "Succeeded"),
        ("Never", 1, false, "Failed"),
    ] {
        let rig = Rig::start();
        rig.run("job", one(policy, json!({})));
        rig.until("it runs", |rig| rig.phase("job") == "Running").await;
        rig.fake.end("job", "c", code);
        tokio::time::sleep(seconds(60)).await;
        let case = format!("{policy}, exit code {code}");
        assert_eq!(rig.started().len() > 1, again, "{case}");
        assert_eq!(rig.phase("job"), phase, "{case}");
        assert_eq!(
            rig.fake.state("job").is_some(),
            again,
            "{case}: what is over leaves no processes"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_lasts_too_long_is_ended_and_has_failed() {
    let rig = Rig::start();
    let mut spec = one("OnFailure", json!({}));
    spec["activeDeadlineSeconds"] = json!(20);
    rig.run("job", spec);
    let took = rig.until("it is ended", |rig| rig.signals() == ["c 15"]).await;
    assert!(about(took, seconds(20)), "{took:?}");
    rig.until("it has failed", |rig| rig.phase("job") == "Failed").await;
    assert_eq!(rig.pod("job")["status"]["reason"], "DeadlineExceeded");
    tokio::time::sleep(seconds(60)).await;
    assert_eq!(rig.started(), ["c 0"]);
}

/// A probe that runs `check` every second.
fn check(more: Value) -> Value {
    let mut probe = json!({"exec": {"command": ["check"]}, "periodSeconds": 1});
    if let (Value::Object(probe), Value::Object(more)) = (&mut probe, more) {
        probe.extend(more);
    }
    probe
}

#[tokio::test(start_paused = true)]
async fn a_container_that_fails_its_liveness_probe_is_ended_and_started_again() {
    let rig = Rig::start();
    rig.run(
        "web",
        one(
            "Always",
            json!({"livenessProbe": check(json!({"failureThreshold": 3}))}),
        ),
    );
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    tokio::time::sleep(seconds(30)).await;
    assert_eq!(rig.signals(), [""; 0], "it is well");
    rig.behave("check", 1, Duration::ZERO);
    let took = rig.until("it is ended", |rig| rig.signals() == ["c 15"]).await;
    assert!(
        took >= seconds(2) && took <= seconds(4),
        "after three failures: {took:?}"
    );
    rig.behave("check", 0, Duration::ZERO);
    rig.until("it runs again", |rig| rig.restarts("web", "c") == 1).await;
    let events = rig.api.events();
    assert!(events.contains(&"Unhealthy".to_owned()) && events.contains(&"Killing".to_owned()));
    tokio::time::sleep(seconds(30)).await;
    assert_eq!(rig.signals(), ["c 15"]);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_a_probe_and_ignores_its_end_is_killed_after_the_probes_own_grace() {
    let rig = Rig::start();
    *rig.fake.obedient.lock().unwrap() = false;
    let probe = check(json!({"failureThreshold": 1, "terminationGracePeriodSeconds": 3, "timeoutSeconds": 2}));
    rig.behave("check", 0, seconds(60));
    rig.run("web", one("Always", json!({"livenessProbe": probe})));
    rig.until("it is asked to end", |rig| rig.signals() == ["c 15"]).await;
    let took = rig.until("it is killed", |rig| rig.signals() == ["c 15", "c 9"]).await;
    assert!(about(took, seconds(3)), "{took:?}");
    rig.until("it runs again", |rig| rig.restarts("web", "c") == 1).await;
}

/// A worker that looks without a rest keeps this time from passing: the test would never end.
#[tokio::test(start_paused = true)]
async fn who_waits_for_its_next_start_is_not_asked_and_costs_nothing() {
    let rig = Rig::start();
    let greeted = json!({"readinessProbe": check(json!({})), "lifecycle": {"postStart": exec("greet")}});
    rig.behave("greet", 0, seconds(30));
    rig.run("web", one("Always", greeted));
    rig.until("it is greeted", |rig| rig.commands() == ["c greet"]).await;
    tokio::time::sleep(seconds(20)).await;
    assert_eq!(rig.commands(), ["c greet"], "who is being greeted is not asked");
    rig.behave("greet", 0, Duration::ZERO);
    rig.until("it is ready", |rig| rig.container("web", "c")["ready"] == true)
        .await;
    for _ in 0..2 {
        let starts = rig.started().len();
        rig.fake.end("web", "c", 1);
        rig.until("it runs again", |rig| rig.started().len() > starts).await;
    }
    rig.fake.end("web", "c", 1);
    let asked = rig.commands().len();
    tokio::time::sleep(seconds(15)).await;
    assert_eq!(rig.commands().len(), asked, "it waits for 20 s");
}

/// As above: a refresh that falls due while the pod ends must not be waited for.
#[tokio::test(start_paused = true)]
async fn a_pod_that_takes_its_time_to_end_costs_nothing_either() {
    let rig = Rig::start();
    *rig.fake.obedient.lock().unwrap() = false;
    rig.api
        .put("/api/v1/namespaces/ns/configmaps/settings", json!({"data": {"a": "1"}}));
    let mut pod = one("Always", json!({}));
    pod["volumes"] = json!([{"name": "v", "configMap": {"name": "settings"}}]);
    rig.run("web", pod);
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.delete("web", 200);
    let took = rig.until_gone("web").await;
    assert!(about(took, seconds(200)), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_its_probe_and_leaves_the_container_alone() {
    let rig = Rig::start();
    rig.behave("check", 1, Duration::ZERO);
    rig.run("web", one("Always", json!({"readinessProbe": check(json!({}))})));
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    let ready = |rig: &Rig| rig.container("web", "c")["ready"] == true;
    tokio::time::sleep(seconds(60)).await;
    assert!(!ready(&rig));
    for code in [0, 1, 0] {
        rig.behave("check", code, Duration::ZERO);
        rig.until("it follows", |rig| ready(rig) == (code == 0)).await;
        let pod = rig.pod("web");
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let condition = conditions.iter().find(|it| it["type"] == "Ready").unwrap();
        assert_eq!(condition["status"], if code == 0 { "True" } else { "False" });
    }
    assert_eq!((rig.signals(), rig.restarts("web", "c")), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn other_probes_wait_for_the_startup_probe() {
    let rig = Rig::start();
    rig.behave("check", 1, Duration::ZERO);
    let liveness = json!({"exec": {"command": ["alive"]}, "periodSeconds": 1});
    let startup = check(json!({"failureThreshold": 30}));
    rig.run(
        "web",
        one("Always", json!({"startupProbe": startup, "livenessProbe": liveness})),
    );
    rig.until("it is asked often", |rig| rig.commands().len() > 5).await;
    assert!(!rig.commands().contains(&"c alive".to_owned()));
    assert_eq!(rig.container("web", "c")["started"], false);
    rig.behave("check", 0, Duration::ZERO);
    rig.until("it has started", |rig| rig.container("web", "c")["started"] == true)
        .await;
    let asked = rig.commands().iter().filter(|it| *it == "c check").count();
    rig.until("others are asked", |rig| rig.commands().contains(&"c alive".to_owned()))
        .await;
    tokio::time::sleep(seconds(10)).await;
    let after = rig.commands().iter().filter(|it| *it == "c check").count();
    assert_eq!(after, asked, "what has started is not asked whether it has");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_again_adopts_what_runs() {
    let mut rig = Rig::start();
    let pod = json!({"containers": [named("c", json!({"readinessProbe": exec("check")})), named("d", json!({}))]});
    rig.run("web", pod);
    rig.until("it is ready", |rig| rig.container("web", "c")["ready"] == true)
        .await;
    let before = rig.pod("web");
    rig.agent_dies().await;
    rig.fake.end("web", "d", 1); // while nobody looks
    rig.behave("check", 0, seconds(1)); // an answer takes a moment now
    rig.agent_starts();
    rig.until("what ended meanwhile is noticed", |rig| rig.restarts("web", "d") == 1)
        .await;
    assert_eq!(rig.started(), ["c 0", "d 0", "d 1"]);
    assert_eq!(rig.signals(), [""; 0]);
    let (c, ip) = (rig.container("web", "c"), rig.pod("web")["status"]["podIP"].clone());
    assert_eq!(c["ready"], true, "a restart of ours takes nothing out of service");
    assert_eq!(
        (&ip, &c["containerID"]),
        (
            &before["status"]["podIP"],
            &before["status"]["containerStatuses"][0]["containerID"]
        )
    );
    let state = rig.fake.state("web").unwrap();
    assert!(
        state
            .containers
            .iter()
            .any(|it| it.name == "c" && it.status == Status::Running)
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_all_is_started_again_but_what_must_not_run_twice() {
    let mut rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.run("job", one("Never", json!({})));
    rig.until("both run", |rig| {
        rig.phase("web") == "Running" && rig.phase("job") == "Running"
    })
    .await;
    tokio::time::sleep(seconds(1)).await; // what is kept on disk is kept in the background
    rig.agent_dies().await;
    rig.fake.reboot();
    rig.agent_starts();
    rig.until("the one runs again", |rig| rig.started().len() == 3).await;
    rig.until("the other is lost", |rig| rig.phase("job") == "Failed").await;
    assert_eq!(rig.started().len(), 3);
    let end = &rig.container("job", "c")["state"]["terminated"];
    assert_eq!(
        (&end["exitCode"], &end["reason"]),
        (&json!(137), &json!("ContainerStatusUnknown"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_may_show_the_past_ends_no_pod() {
    let mut rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    tokio::time::sleep(seconds(1)).await; // what is kept on disk is kept in the background
    rig.agent_dies().await;
    rig.api.lag(true);
    rig.agent_starts();
    tokio::time::sleep(seconds(60)).await;
    assert!(rig.fake.state("web").is_some(), "it is not listed, and runs on");
    assert_eq!((rig.signals(), rig.started().len()), (vec![], 1));
    rig.delete("web", 0);
    rig.api.lag(false);
    rig.until("the present ends it", |rig| rig.fake.state("web").is_none())
        .await;
    rig.until_gone("web").await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_is_nobodys_is_swept_away() {
    let mut rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.run("old", one("Always", json!({})));
    rig.until("both run", |rig| {
        rig.phase("web") == "Running" && rig.phase("old") == "Running"
    })
    .await;
    rig.agent_dies().await;
    rig.delete("old", 0);
    rig.agent_starts();
    rig.until("it is gone", |rig| rig.fake.state("old").is_none()).await;
    rig.until_gone("old").await;
    assert!(rig.fake.state("web").is_some());
}

#[tokio::test(start_paused = true)]
async fn who_runs_and_is_nobodys_is_asked_to_end_before_it_is_killed() {
    for (obedient, least, most) in [(true, 0, 1), (false, 2, 3)] {
        let mut rig = with_strays(one("Always", json!({})), &["old"]).await;
        *rig.fake.obedient.lock().unwrap() = obedient;
        rig.agent_starts();
        let took = rig.until("it is gone", |rig| rig.fake.state("old").is_none()).await;
        assert!(took >= seconds(least) && took <= seconds(most), "{took:?}");
        assert_eq!(rig.signals(), ["c 15"]);
        rig.until_gone("old").await;
        assert!(rig.fake.state("other").is_some());
    }
}

/// A node on which `old` runs, and `other` with one container; those of `strays` are nobody's any more when its agent starts again.
async fn with_strays(old: Value, strays: &[&str]) -> Rig {
    let mut rig = Rig::start();
    rig.run("old", old);
    rig.run("other", one("Always", json!({})));
    rig.until("both run", |rig| {
        rig.phase("old") == "Running" && rig.phase("other") == "Running"
    })
    .await;
    tokio::time::sleep(seconds(1)).await; // what is kept on disk is kept in the background
    rig.agent_dies().await;
    for name in strays {
        rig.delete(name, 0);
        rig.forget_kept(name);
    }
    *rig.fake.obedient.lock().unwrap() = false;
    rig
}

#[tokio::test(start_paused = true)]
async fn a_shim_that_does_not_answer_holds_up_nobodys_end() {
    let containers = ["a", "b", "d", "e", "f"].map(|name| named(name, json!({})));
    let mut rig = with_strays(json!({"containers": containers}), &["old", "other"]).await;
    rig.fake.hung.lock().unwrap().insert("old".into());
    rig.agent_starts();
    let took = rig
        .until("the other is gone", |rig| rig.fake.state("other").is_none())
        .await;
    assert!(about(took, seconds(2)), "{took:?}");
    assert_eq!(rig.signals(), ["a 15", "b 15", "d 15", "e 15", "f 15", "c 15"]);
    // One answer that does not come, for all of it.
    let took = rig.until("it is gone", |rig| rig.fake.state("old").is_none()).await;
    assert!(about(took, seconds(30)), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shim_that_does_not_answer_holds_up_no_new_pod_and_its_own_pod_until_it_is_gone() {
    let mut rig = with_strays(one("Always", json!({})), &["old"]).await;
    rig.fake.hung.lock().unwrap().insert("old".into());
    rig.agent_starts();
    rig.until("its removal begins", |rig| rig.signals().len() == 1).await;
    rig.run("new", one("Always", json!({})));
    let took = rig.until("the new pod runs", |rig| rig.phase("new") == "Running").await;
    assert!(took < seconds(2), "{took:?}");
    // Who did not know of it now does.
    let before = rig.started().len();
    rig.run("old", one("Always", json!({})));
    let took = rig.until("it begins anew", |rig| rig.started().len() > before).await;
    assert!(took > seconds(30) && took < seconds(32), "{took:?}");
    rig.until("it runs", |rig| rig.phase("old") == "Running").await;
    assert_eq!(rig.restarts("old", "c"), 0);
    assert_eq!(rig.network.attached(), ["new", "old", "other"]);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_looked_at_is_not_taken_for_ended() {
    let mut rig = with_strays(one("Always", json!({})), &["old", "other"]).await;
    let unreadable = |rig: &Rig, so| *rig.fake.unreadable.lock().unwrap() = so;
    unreadable(&rig, true);
    rig.agent_starts();
    tokio::time::sleep(seconds(5)).await;
    assert_eq!(rig.network.attached(), ["old", "other"], "addresses that may be in use");
    unreadable(&rig, false);
    rig.network_goes();
    rig.until("they are asked", |rig| rig.signals().len() == 2).await;
    unreadable(&rig, true);
    let took = rig.until("they are gone", |rig| rig.fake.state("old").is_none()).await;
    assert!(about(took, seconds(2)), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_status_names_the_image_that_runs_and_not_the_one_that_is_asked_for_now() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.fake.images.lock().unwrap().insert("j".into());
    let mut pod = rig.pod("web");
    pod["spec"]["containers"][0]["image"] = json!("j");
    pod["metadata"]["generation"] = json!(2);
    rig.api.put(&path("web"), pod);
    rig.until("it is seen", |rig| rig.pod("web")["status"]["observedGeneration"] == 2)
        .await;
    assert_eq!(rig.container("web", "c")["image"], "i");
    rig.fake.end("web", "c", 1);
    rig.until("it is started again", |rig| rig.restarts("web", "c") == 1)
        .await;
    assert_eq!(rig.container("web", "c")["image"], "j");
}
