//! How pods are brought to their end.

use std::time::Duration;

use serde_json::{Value, json};

use super::{about, exec, named, one, seconds};
use crate::kubelet::testing::node::Rig;

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_asked_to_end_and_leaves_nothing() {
    let rig = Rig::start();
    rig.run("web", one("Always", json!({})));
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.delete("web", 30);
    let took = rig.until_gone("web").await;
    assert!(took < seconds(1), "{took:?}");
    assert_eq!(rig.signals(), ["c 15"]);
    assert!(rig.api.events().contains(&"Killing".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_end_in_time_is_killed() {
    let rig = Rig::start();
    *rig.fake.obedient.lock().unwrap() = false;
    rig.run("web", one("Always", json!({})));
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.delete("web", 7);
    rig.until("it is asked", |rig| rig.signals() == ["c 15"]).await;
    let took = rig.until("it is killed", |rig| rig.signals() == ["c 15", "c 9"]).await;
    assert!(about(took, seconds(7)), "{took:?}");
    rig.until_gone("web").await;
}

#[tokio::test(start_paused = true)]
async fn who_is_given_no_time_has_a_second_for_the_hook_and_two_after_the_signal() {
    for obedient in [true, false] {
        let rig = Rig::start();
        *rig.fake.obedient.lock().unwrap() = obedient;
        rig.behave("farewell", 0, seconds(60));
        let mut spec = polite();
        spec["terminationGracePeriodSeconds"] = json!(0);
        rig.run("web", spec);
        rig.until("it runs", |rig| rig.phase("web") == "Running").await;
        // Such a deletion takes the object away at once.
        rig.delete("web", 0);
        let took = rig.until("it is asked", |rig| rig.signals() == ["c 15"]).await;
        assert!(about(took, seconds(1)), "its preStop hook has a second: {took:?}");
        assert_eq!(rig.commands(), ["c farewell"]);
        let took = rig.until("it is over", |rig| rig.fake.state("web").is_none()).await;
        let expected: &[&str] = if obedient { &["c 15"] } else { &["c 15", "c 9"] };
        assert_eq!(rig.signals(), expected);
        assert!(about(took, seconds(if obedient { 0 } else { 2 })), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_without_a_grace_that_is_restarted_has_no_time_for_its_hook() {
    let rig = Rig::start();
    let probe = json!({"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 1});
    let container = json!({"livenessProbe": probe, "lifecycle": {"preStop": exec("farewell")}});
    rig.behave("check", 1, Duration::ZERO);
    let mut spec = one("Always", container);
    spec["terminationGracePeriodSeconds"] = json!(0);
    rig.run("web", spec);
    rig.until("it is restarted", |rig| rig.restarts("web", "c") == 1).await;
    assert!(!rig.commands().contains(&"c farewell".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_second_delete_shortens_the_wait() {
    let rig = Rig::start();
    *rig.fake.obedient.lock().unwrap() = false;
    rig.run("web", one("Always", json!({})));
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.delete("web", 600);
    rig.until("it is asked", |rig| rig.signals() == ["c 15"]).await;
    tokio::time::sleep(seconds(5)).await;
    rig.delete("web", 2);
    let killed = ["c 15", "c 15", "c 9"]; // asked anew: it has less time than it was told
    let took = rig.until("it is killed", |rig| rig.signals() == killed).await;
    assert!(about(took, seconds(2)), "{took:?}");
    rig.until_gone("web").await;
}

#[tokio::test(start_paused = true)]
async fn containers_end_together_and_sidecars_after_them() {
    let rig = Rig::start();
    let spec = json!({
        "initContainers": [named("s", json!({"restartPolicy": "Always"}))],
        "containers": [named("c", json!({})), named("d", json!({}))],
    });
    rig.run("web", spec);
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.delete("web", 30);
    rig.until_gone("web").await;
    assert_eq!(rig.signals()[2..], ["s 15"]);
    assert_eq!(rig.signals().len(), 3);
}

/// A pod whose container runs `farewell` before it ends.
fn polite() -> Value {
    one("Always", json!({"lifecycle": {"preStop": exec("farewell")}}))
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_runs_before_the_signal_and_within_the_grace() {
    for (lasts, grace, expected) in [(3, 30, 3), (60, 5, 5)] {
        let rig = Rig::start();
        rig.behave("farewell", 0, seconds(lasts));
        rig.run("web", polite());
        rig.until("it runs", |rig| rig.phase("web") == "Running").await;
        rig.delete("web", grace);
        let case = format!("a hook of {lasts} s, {grace} s of grace");
        let took = rig.until(&case, |rig| !rig.signals().is_empty()).await;
        assert!(about(took, seconds(expected)), "{case}: {took:?}");
        rig.until_gone("web").await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_its_pre_stop_hook_a_container_has_what_is_left_of_the_grace_and_two_seconds_at_least() {
    // The hook's end is the signal; how long after it the kill comes.
    for (lasts, grace, left) in [(3, 30, 27), (4, 5, 2), (5, 5, 2), (60, 5, 2)] {
        for obedient in [true, false] {
            let rig = Rig::start();
            rig.behave("farewell", 0, seconds(lasts));
            *rig.fake.obedient.lock().unwrap() = obedient;
            rig.run("web", polite());
            rig.until("it runs", |rig| rig.phase("web") == "Running").await;
            rig.delete("web", grace);
            let case = format!("a hook of {lasts} s, {grace} s of grace, obedient: {obedient}");
            rig.until(&case, |rig| rig.signals() == ["c 15"]).await;
            let took = rig.until_gone("web").await;
            let expected: &[&str] = if obedient { &["c 15"] } else { &["c 15", "c 9"] };
            assert_eq!(rig.signals(), expected, "{case}");
            assert!(
                about(took, seconds(if obedient { 0 } else { left })),
                "{case}: {took:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_delete_cuts_a_pre_stop_hook_short() {
    let rig = Rig::start();
    rig.behave("farewell", 0, seconds(300));
    rig.run("web", polite());
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.delete("web", 600);
    rig.until("it says farewell", |rig| rig.commands() == ["c farewell"])
        .await;
    rig.delete("web", 3);
    let took = rig.until("it is asked", |rig| rig.signals() == ["c 15"]).await;
    assert!(about(took, seconds(3)), "{took:?}");
    rig.until_gone("web").await;
    assert_eq!(rig.signals(), ["c 15"]);
}

#[tokio::test(start_paused = true)]
async fn sidecars_are_asked_also_when_the_others_use_up_the_time() {
    let rig = Rig::start();
    *rig.fake.obedient.lock().unwrap() = false;
    let spec = json!({
        "initContainers": [named("s", json!({"restartPolicy": "Always"}))],
        "containers": [named("c", json!({}))],
    });
    rig.run("web", spec);
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.delete("web", 5);
    rig.until_gone("web").await;
    let mut signals = rig.signals();
    signals.sort();
    assert_eq!(signals, ["c 15", "c 9", "s 15", "s 9"]);
}

#[tokio::test(start_paused = true)]
async fn the_hook_of_a_sidecar_runs_at_once_and_its_signal_waits_for_its_turn() {
    // How long the hook lasts, whether the other heeds its signal, and when the sidecar has its own.
    for (lasts, heeds, signalled) in [(3, true, 3), (3, false, 10), (0, true, 0), (60, true, 10)] {
        let rig = Rig::start();
        rig.behave("bye", 0, seconds(lasts));
        *rig.fake.obedient.lock().unwrap() = heeds;
        let sidecar = json!({"restartPolicy": "Always", "lifecycle": {"preStop": exec("bye")}});
        let spec = json!({"initContainers": [named("s", sidecar)], "containers": [named("c", json!({}))]});
        rig.run("web", spec);
        rig.until("it runs", |rig| rig.phase("web") == "Running").await;
        rig.delete("web", 10);
        let case = format!("a hook of {lasts} s, heeding: {heeds}");
        let took = rig.until(&case, |rig| rig.commands() == ["s bye"]).await;
        assert!(about(took, seconds(0)), "{case}: {took:?}");
        let took = rig.until(&case, |rig| rig.signals().contains(&"s 15".into())).await;
        assert!(about(took, seconds(signalled)), "{case}: {took:?}");
        let took = rig.until_gone("web").await;
        assert!(about(took, seconds(if heeds { 0 } else { 2 })), "{case}: {took:?}");
        assert_eq!(rig.commands(), ["s bye"], "{case}: once");
        assert_eq!(rig.signals().contains(&"s 9".into()), !heeds, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_sidecar_of_a_pod_that_has_completed_has_the_pods_own_grace() {
    for grace in [5, 100] {
        let rig = Rig::start();
        *rig.fake.obedient.lock().unwrap() = false;
        let sidecar = named("s", json!({"restartPolicy": "Always"}));
        rig.run(
            "job",
            json!({
                "restartPolicy": "Never", "terminationGracePeriodSeconds": grace,
                "initContainers": [sidecar], "containers": [named("c", json!({}))],
            }),
        );
        rig.until("it runs", |rig| rig.phase("job") == "Running").await;
        rig.fake.end("job", "c", 0);
        rig.until("it is asked", |rig| rig.signals() == ["s 15"]).await;
        let took = rig.until("it is killed", |rig| rig.signals() == ["s 15", "s 9"]).await;
        assert!(about(took, seconds(grace)), "{took:?} instead of {grace} s");
        rig.until("it is done", |rig| rig.phase("job") == "Succeeded").await;
    }
}

#[tokio::test(start_paused = true)]
async fn sidecars_end_in_the_reverse_of_their_order() {
    let rig = Rig::start();
    let sidecar = |name| named(name, json!({"restartPolicy": "Always"}));
    let spec = json!({"initContainers": [sidecar("s"), sidecar("t")], "containers": [named("c", json!({}))]});
    rig.run("web", spec);
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.delete("web", 30);
    rig.until_gone("web").await;
    assert_eq!(rig.signals(), ["c 15", "t 15", "s 15"]);
}

/// A pipe that keeps whoever opens it to write until this is dropped, also when it has been unlinked by then: a test that fails
/// waits for them at its end.
struct StillDisk(std::path::PathBuf);

impl StillDisk {
    fn at(pipe: &std::path::Path) -> Self {
        let other = std::env::temp_dir().join(format!("amphipod-still-{}", std::process::id()));
        std::fs::hard_link(pipe, &other).unwrap();
        Self(other)
    }
}

impl Drop for StillDisk {
    fn drop(&mut self) {
        // Both ends, and for good: it is opened more than once to write, also after the test's end.
        if let Ok(moves) = std::fs::File::options().read(true).write(true).open(&self.0) {
            let _ = std::os::fd::IntoRawFd::into_raw_fd(moves);
        }
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_stands_still_keeps_no_signal_back() {
    let rig = Rig::start();
    rig.run("web", polite());
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    // Whoever opens a pipe to write waits for a reader: so does the note that the hook has run.
    let pipe = rig.path("web", "hooks/c-0.pre-stop.tmp");
    std::fs::create_dir_all(pipe.parent().unwrap()).unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let disk = StillDisk::at(&pipe);
    rig.delete("web", 30);
    let begun = std::time::Instant::now();
    // The paused clock stands while a thread waits for the disk.
    while rig.signals().is_empty() && begun.elapsed() < seconds(10) {
        tokio::task::yield_now().await;
    }
    let signals = rig.signals();
    drop(disk);
    assert_eq!(signals, ["c 15"]);
    rig.until_gone("web").await;
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_that_fails_is_told_of_and_stops_nothing() {
    let rig = Rig::start();
    rig.behave("farewell", 1, Duration::ZERO);
    rig.run("web", polite());
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.delete("web", 30);
    rig.until_gone("web").await;
    assert!(rig.api.events().contains(&"FailedPreStopHook".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_that_has_run_is_not_run_again_by_an_agent_that_starts_again() {
    let mut rig = Rig::start();
    *rig.fake.obedient.lock().unwrap() = false; // it takes its time to end
    rig.run("web", polite());
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.delete("web", 30);
    rig.until("it is asked to end", |rig| rig.signals() == ["c 15"]).await;
    rig.agent_dies().await;
    rig.agent_starts();
    rig.until("it is asked once more", |rig| rig.signals() == ["c 15", "c 15"])
        .await;
    rig.until("it is killed", |rig| rig.signals() == ["c 15", "c 15", "c 9"])
        .await;
    assert_eq!(rig.commands(), ["c farewell"]);
    rig.until_gone("web").await;
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_that_was_cut_off_is_run_again() {
    let mut rig = Rig::start();
    rig.behave("farewell", 0, seconds(10));
    rig.run("web", polite());
    rig.until("it runs", |rig| rig.phase("web") == "Running").await;
    rig.delete("web", 30);
    rig.until("it says farewell", |rig| rig.commands() == ["c farewell"])
        .await;
    tokio::time::sleep(seconds(5)).await;
    rig.agent_dies().await;
    rig.agent_starts();
    rig.until_gone("web").await;
    assert_eq!(rig.commands(), ["c farewell", "c farewell"]);
    assert_eq!(rig.signals(), ["c 15"], "not before the hook was through");
}

#[tokio::test(start_paused = true)]
async fn every_attempt_has_its_own_farewell() {
    let rig = Rig::start();
    let probe = json!({"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 1});
    let container = json!({"livenessProbe": probe, "lifecycle": {"preStop": exec("farewell")}});
    rig.behave("check", 1, Duration::ZERO);
    rig.run("web", one("Always", container));
    rig.until("it is restarted twice", |rig| rig.restarts("web", "c") == 2)
        .await;
    let farewells = rig.commands().iter().filter(|it| *it == "c farewell").count();
    let ends = rig.signals().len();
    assert!(
        farewells >= 2 && (ends..=ends + 1).contains(&farewells),
        "{farewells} farewells, {ends} ends"
    );
}
