//! How pods come up, and what holds them up.

use std::time::Duration;

use serde_json::json;

use super::{about, exec, named, one, seconds};
use crate::kubelet::testing::node::{Rig, path};

#[tokio::test(start_paused = true)]
async fn a_pod_starts_and_is_told_of_once() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    let took = rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    assert!(took < seconds(1), "{took:?}");
    let pod = rig.pod("web");
    assert_eq!(pod["status"]["podIP"], "10.42.0.2");
    assert_eq!(pod["status"]["hostIP"], "192.0.2.1");
    let c = rig.container("web", "c");
    assert_eq!((&c["ready"], &c["started"]), (&json!(true), &json!(true)), "{c}");
    tokio::time::sleep(seconds(120)).await;
    assert_eq!(rig.api.patches("web"), 1, "what does not change is not told again");
    assert_eq!(rig.api.events(), ["Pulled", "Created", "Started"]);
    assert_eq!(rig.started(), ["c 0"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_its_image_and_starts_once_it_is_there() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({"image": "late"})));
    rig.until("its want is told", |rig| rig.reason("web", "c") == "ErrImagePull")
        .await;
    rig.until("it is old news", |rig| rig.reason("web", "c") == "ImagePullBackOff")
        .await;
    assert_eq!(rig.phase("web"), "Pending");
    rig.fake.images.lock().unwrap().insert("late".into());
    let took = rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    assert!(took <= seconds(10), "the first back-off is 10 s, not {took:?}");
    assert_eq!(rig.restarts("web", "c"), 0, "waiting is no restart");
    assert!(rig.api.events().contains(&"BackOff".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_may_not_be_pulled_is_named_as_such() {
    let rig = Rig::start();
    rig.run(
        "web",
        one("Always", json!({"image": "late", "imagePullPolicy": "Never"})),
    );
    rig.until("it is told", |rig| rig.reason("web", "c") == "ErrImageNeverPull")
        .await;
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_one_after_the_other_and_before_the_rest() {
    let rig = Rig::start();
    let spec = json!({
        "initContainers": [named("a", json!({})), named("b", json!({}))],
        "containers": [named("c", json!({})), named("d", json!({}))],
    });
    rig.run("web", spec);
    rig.until("the first runs", |rig| rig.started() == ["a 0"]).await;
    tokio::time::sleep(seconds(60)).await;
    assert_eq!(rig.started(), ["a 0"], "the others wait for its end");
    assert_eq!(rig.reason("web", "c"), "PodInitializing");
    rig.fake.end("web", "a", 0);
    rig.until("the second runs", |rig| rig.started() == ["a 0", "b 0"])
        .await;
    rig.fake.end("web", "b", 0);
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    assert_eq!(rig.started(), ["a 0", "b 0", "c 0", "d 0"]);
    assert_eq!(rig.container("web", "a")["state"]["terminated"]["reason"], "Completed");
}

#[tokio::test(start_paused = true)]
async fn an_init_container_that_fails_is_tried_again_unless_the_policy_forbids_it() {
    for (policy, phase, starts) in [
        ("Always", "Running", &["a 0", "a 1", "c 0"][..]),
        ("OnFailure", "Running", &["a 0", "a 1", "c 0"][..]),
        ("Never", "Failed", &["a 0"][..]),
    ] {
        let rig = Rig::start();
        let spec = json!({
            "restartPolicy": policy,
            "initContainers": [named("a", json!({}))],
            "containers": [named("c", json!({}))],
        });
        rig.run("web", spec);
        rig.until("it runs", |rig| rig.started() == ["a 0"]).await;
        rig.fake.end("web", "a", 3);
        if policy != "Never" {
            rig.until("it runs again", |rig| rig.started() == ["a 0", "a 1"]).await;
            rig.fake.end("web", "a", 0);
        }
        rig.until(policy, |rig| rig.phase("web") == phase).await;
        assert_eq!(rig.started(), starts, "{policy}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_starts_first_and_ends_with_the_work() {
    let rig = Rig::start();
    let probe = json!({"exec": {"command": ["up"]}, "periodSeconds": 1});
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [named("s", json!({"restartPolicy": "Always", "startupProbe": probe}))],
        "containers": [named("c", json!({}))],
    });
    rig.behave("up", 1, Duration::ZERO);
    rig.run("job", spec);
    rig.until("it runs", |rig| rig.started() == ["s 0"]).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(rig.started(), ["s 0"], "the work waits until its sidecar is up");
    rig.behave("up", 0, Duration::ZERO);
    rig.until("the work begins", |rig| rig.started() == ["s 0", "c 0"])
        .await;
    assert_eq!(rig.signals(), [""; 0]);
    rig.fake.end("job", "c", 0);
    rig.until("it is done", |rig| rig.phase("job") == "Succeeded").await;
    assert_eq!(rig.signals(), ["s 15"]);
    rig.until("the node is clean", |rig| rig.fake.state("job").is_none())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_program_that_is_not_there_counts_as_an_attempt_that_failed() {
    for (policy, phase) in [("Always", "Running"), ("Never", "Failed")] {
        let rig = Rig::start();
        rig.run("web", one(policy, json!({"command": ["/no/such/program"]})));
        rig.until(policy, |rig| rig.phase("web") == phase).await;
        let c = rig.container("web", "c");
        let end = match policy {
            "Never" => &c["state"]["terminated"],
            _ => &c["lastState"]["terminated"],
        };
        assert_eq!(
            (&end["exitCode"], &end["reason"]),
            (&json!(128), &json!("StartError")),
            "{c}"
        );
        if policy == "Always" {
            assert_eq!(rig.reason("web", "c"), "CrashLoopBackOff");
            rig.until("it is tried again", |rig| rig.restarts("web", "c") == 2)
                .await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_config_map_is_waited_for() {
    let rig = Rig::start();
    let from = json!([{"configMapRef": {"name": "settings"}}]);
    rig.run("web", one("Always", json!({"envFrom": from})));
    rig.until("its want is told", |rig| {
        rig.reason("web", "c") == "CreateContainerConfigError"
    })
    .await;
    let message = rig.container("web", "c")["state"]["waiting"]["message"].to_string();
    assert!(message.contains("settings"), "{message}");
    rig.api
        .put("/api/v1/namespaces/ns/configmaps/settings", json!({"data": {"A": "1"}}));
    let took = rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    assert!(took <= seconds(15), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_starts_as_soon_as_there_is_a_network() {
    let mut rig = Rig::offline();
    rig.agent_starts();
    rig.run("web", one("Always", json!({})));
    rig.run(
        "host",
        json!({"hostNetwork": true, "containers": [named("c", json!({}))]}),
    );
    rig.until("what needs no network runs", |rig| rig.phase("host") == "Running")
        .await;
    rig.until("its want is told", |rig| {
        rig.api.events().contains(&"NetworkNotReady".to_owned())
    })
    .await;
    tokio::time::sleep(seconds(30)).await;
    assert_eq!(rig.reason("web", "c"), "ContainerCreating");
    rig.network_comes();
    let took = rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    assert!(took < seconds(1), "no back-off outlasts what it waited for: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_deleted_while_it_starts_ends_without_a_rest() {
    let rig = Rig::start();
    *rig.fake.start_takes.lock().unwrap() = seconds(5);
    rig.run("web", one("Always", json!({})));
    rig.until("it is being started", |rig| rig.fake.state("web").is_some())
        .await;
    tokio::time::sleep(seconds(1)).await;
    rig.delete("web", 30);
    let took = rig.until_gone("web").await;
    assert!(about(took, seconds(4)), "as soon as the start is over: {took:?}");
    assert_eq!(
        (rig.started(), rig.signals()),
        (vec!["c 0".into()], vec!["c 15".into()])
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_deleted_before_it_could_start_just_goes() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({"image": "late"})));
    rig.until("it waits", |rig| rig.reason("web", "c") == "ErrImagePull")
        .await;
    rig.delete("web", 30);
    let took = rig.until_gone("web").await;
    assert!(took < seconds(1), "{took:?}");
    assert_eq!(rig.started(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_post_start_hook_holds_readiness_back_and_ends_its_container_if_it_fails() {
    let rig = Rig::start();
    rig.behave("greet", 1, seconds(5));
    rig.run("web", one("Always", json!({"lifecycle": {"postStart": exec("greet")}})));
    rig.until("it is told", |rig| rig.phase("web") == "Running").await;
    assert_eq!(rig.container("web", "c")["ready"], false, "its hook still runs");
    rig.behave("greet", 0, seconds(5)); // the next one
    rig.until("it is ended", |rig| rig.signals() == ["c 15"]).await;
    rig.until("it is ready", |rig| rig.container("web", "c")["ready"] == true)
        .await;
    assert_eq!(rig.restarts("web", "c"), 1);
    assert!(rig.api.events().contains(&"FailedPostStartHook".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_config_map_comes_later_is_looked_for_often() {
    let rig = Rig::start();
    let mut spec = one("Always", json!({}));
    spec["volumes"] = json!([{"name": "v", "configMap": {"name": "settings"}}]);
    rig.run("web", spec);
    tokio::time::sleep(seconds(8)).await;
    assert_eq!(rig.started(), [""; 0]);
    rig.api
        .put("/api/v1/namespaces/ns/configmaps/settings", json!({"data": {"A": "1"}}));
    let took = rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    assert!(took <= seconds(16), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_ends_before_anybody_looks_is_not_forgotten() {
    for round in 0..16 {
        let rig = Rig::start();
        *rig.fake.start_takes.lock().unwrap() = seconds(1);
        let hook = || json!({"lifecycle": {"postStart": exec("greet")}});
        rig.run("web", json!({"containers": [named("c", hook()), named("d", hook())]}));
        rig.until("both run", |rig| rig.started().len() == 2).await;
        tokio::time::sleep(seconds(5)).await;
        for name in ["c", "d"] {
            assert_eq!(rig.container("web", name)["ready"], true, "{name} in round {round}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn events_have_the_words_of_kubernetes() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    tokio::time::sleep(seconds(1)).await;
    let image = "Container image \"i\" already present on machine and can be accessed by the pod";
    assert_eq!(rig.api.messages(), [image, "Container created", "Container started"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_server_starts_what_it_last_knew() {
    let mut rig = Rig::start();
    rig.api
        .put("/api/v1/namespaces/ns/configmaps/settings", json!({"data": {"A": "1"}}));
    let from = json!([{"configMapRef": {"name": "settings"}}]);
    rig.run("web", one("Always", json!({"envFrom": from})));
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    tokio::time::sleep(seconds(1)).await;
    rig.agent_dies().await;
    rig.fake.reboot();
    rig.api.unplug();
    rig.agent_starts();
    rig.until("it runs again", |rig| rig.started().len() == 2).await;
    rig.fake.end("web", "c", 1);
    rig.until("it is tended as ever", |rig| rig.started().len() == 3).await;
    rig.api.plug();
    let took = rig
        .until("the server hears of it", |rig| rig.restarts("web", "c") > 0)
        .await;
    assert!(took <= seconds(11), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_behind_an_absent_cable_ends_when_it_is_back() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.api.unplug();
    rig.delete("web", 0);
    tokio::time::sleep(seconds(600)).await;
    assert_eq!(rig.signals(), [""; 0], "silence is no order");
    rig.api.plug();
    rig.until("it ends", |rig| rig.signals() == ["c 15"]).await;
    rig.until_gone("web").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_cannot_be_read_is_told_of() {
    let rig = Rig::start();
    let mut spec = one("Always", json!({}));
    spec["terminationGracePeriodSeconds"] = json!("soon");
    rig.run("web", spec);
    rig.until("it is told", |rig| {
        rig.api.events().contains(&"FailedToRead".to_owned())
    })
    .await;
    assert_eq!(rig.started(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_can_no_longer_be_read_runs_on() {
    let mut rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    let mut pod = rig.pod("web");
    pod["spec"]["terminationGracePeriodSeconds"] = json!("soon");
    rig.api.put(&path("web"), pod);
    rig.until("it is told", |rig| {
        rig.api.events().contains(&"FailedToRead".to_owned())
    })
    .await;
    rig.agent_dies().await;
    rig.agent_starts(); // it reads what it kept, then lists
    tokio::time::sleep(seconds(120)).await;
    assert_eq!((rig.started(), rig.signals()), (vec!["c 0".to_owned()], vec![]));
    assert!(rig.fake.state("web").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_cannot_be_read_can_be_deleted_whether_it_runs_or_not() {
    for runs in [true, false] {
        let rig = Rig::start();
        let unreadable = || {
            let mut spec = one("Always", json!({}));
            spec["nodeName"] = json!("box");
            spec["terminationGracePeriodSeconds"] = json!("soon");
            spec
        };
        if runs {
            rig.run("web", one("Always", json!({})));
            rig.until("it runs", |rig| rig.phase("web") == "Running").await;
        } else {
            rig.run("web", unreadable());
        }
        let mut pod = rig.pod("web");
        pod["spec"] = unreadable();
        rig.api.put(&path("web"), pod);
        rig.until("it is told", |rig| {
            rig.api.events().contains(&"FailedToRead".to_owned())
        })
        .await;
        rig.delete("web", 30);
        let took = rig.until_gone("web").await;
        assert!(took < seconds(2), "{took:?}, running: {runs}");
        assert_eq!(rig.signals().is_empty(), !runs);
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_probe_is_named_and_kills_nothing() {
    let rig = Rig::start();
    rig.run(
        "web",
        one(
            "Always",
            json!({"livenessProbe": {"grpc": {"port": 1}, "periodSeconds": 1}}),
        ),
    );
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    tokio::time::sleep(seconds(120)).await;
    let count = |reason: &str| rig.api.events().iter().filter(|event| *event == reason).count();
    assert_eq!((count("FieldIgnored"), rig.restarts("web", "c")), (1, 0));
    assert_eq!(rig.signals(), [""; 0]);
}
