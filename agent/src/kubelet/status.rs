//! What a pod's status says, computed from what is so on the node.
//!
//! Pure. Phase and conditions follow Kubernetes v1.36, `pkg/kubelet/kubelet_pods.go` `getPhase` and
//! `pkg/kubelet/status/generate.go`; clients wait on exactly these words.

mod container;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use self::container::container_status;
use super::ports::Attempt;
use super::qos;
use crate::wire::pod::{Condition, Container, ContainerStatus, Ip, Pod, PodStatus, RestartPolicy, Waiting};
use crate::wire::time;

pub use self::container::{container_id, newest};

/// What the worker knows about a container beside its processes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Note {
    /// Why it does not start: reason and message.
    pub waiting: Option<Waiting>,
    /// The back-off it is in after an end.
    pub backing_off: Option<Duration>,
    /// Running, and past its startup probe.
    pub started: bool,
    /// Running, started, and its readiness probe (if any) passes.
    pub ready: bool,
    /// What ended attempts left in their termination message file.
    pub messages: BTreeMap<u32, String>,
}

/// All that the status is made from.
pub struct Facts<'a> {
    /// The pod as wanted.
    pub pod: &'a Pod,
    /// Attempts of all its containers that the runtime remembers.
    pub attempts: &'a [Attempt],
    /// By container name.
    pub notes: &'a BTreeMap<String, Note>,
    /// Sandbox and network are there.
    pub sandbox: bool,
    /// The pod's address.
    pub pod_ip: Option<IpAddr>,
    /// The node's address.
    pub host_ip: Option<IpAddr>,
    /// The kubelet ended it: reason and message (`DeadlineExceeded`).
    pub ended: Option<(&'static str, &'static str)>,
    /// No container of it runs, and none will.
    pub over: bool,
}

/// The status now. `before` is the one last reported: it keeps start time, restart counts and transition times.
pub fn compute(facts: &Facts<'_>, before: &PodStatus, now: Timestamp) -> PodStatus {
    let spec = &facts.pod.spec;
    let initialised = initialised(facts, before);
    let one = |container: &Container| container_status(facts, container, before, initialised);
    let mut init: Vec<ContainerStatus> = spec.init_containers.iter().map(one).collect();
    let main: Vec<ContainerStatus> = spec.containers.iter().map(one).collect();
    for (status, container) in init.iter_mut().zip(&spec.init_containers) {
        if !container.is_sidecar() {
            status.ready = status.state.terminated.as_ref().is_some_and(|end| end.exit_code == 0);
            status.started = status.state.running.is_some();
        }
    }
    let mut phase = phase(facts, &init, &main);
    let said = &facts.pod.status;
    let (reason, message) = match facts.ended {
        Some(ended) => ended,
        None if facts.pod.is_terminal() => (said.reason.as_str(), said.message.as_str()),
        None => ("", ""),
    };
    if facts.ended.is_some() && facts.over {
        phase = "Failed";
    }
    // Terminal phases are final, whoever has said so.
    if let Some(end) = [before.phase.as_str(), said.phase.as_str()]
        .into_iter()
        .find_map(terminal)
    {
        phase = end;
    }
    let ip_list = |ip: Option<IpAddr>| ip.map(|ip| Ip { ip: ip.to_string() }).into_iter().collect::<Vec<_>>();
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let mut status = PodStatus {
        observed_generation: facts.pod.meta.generation,
        phase: phase.into(),
        conditions: vec![],
        message: message.into(),
        reason: reason.into(),
        host_ip: text(facts.host_ip),
        host_ips: ip_list(facts.host_ip),
        pod_ip: text(facts.pod_ip),
        pod_ips: ip_list(facts.pod_ip),
        start_time: before.start_time.clone().or_else(|| Some(time::seconds(now))),
        init_container_statuses: init,
        container_statuses: main,
        qos_class: qos::class(spec).into(),
    };
    status.conditions = conditions(facts, &status, initialised, before, now);
    status
}

/// All init containers are done (sidecars: started).
fn initialised(facts: &Facts<'_>, before: &PodStatus) -> bool {
    let spec = &facts.pod.spec;
    let exited_well = |name: &str| newest(facts.attempts, name).is_some_and(|it| !it.running && it.exit_code == 0);
    let remembered = |name: &str| before.container(name).is_some_and(|status| status.ready);
    spec.containers
        .iter()
        .any(|it| newest(facts.attempts, &it.name).is_some())
        || spec.init_containers.iter().all(|it| match it.is_sidecar() {
            true => facts.notes.get(&it.name).is_some_and(|note| note.started),
            false => exited_well(&it.name) || (facts.over && remembered(&it.name)),
        })
}

fn terminal(phase: &str) -> Option<&'static str> {
    match phase {
        "Failed" => Some("Failed"),
        "Succeeded" => Some("Succeeded"),
        _ => None,
    }
}

fn phase(facts: &Facts<'_>, init: &[ContainerStatus], main: &[ContainerStatus]) -> &'static str {
    let policy = facts.pod.spec.restart_policy;
    let failed = |status: &ContainerStatus| status.state.terminated.as_ref().is_some_and(|end| end.exit_code != 0);
    let started = main
        .iter()
        .any(|it| it.state.running.is_some() || it.state.terminated.is_some() || it.last_state.terminated.is_some());
    for (status, container) in init.iter().zip(&facts.pod.spec.init_containers) {
        if started {
            break;
        }
        match container.is_sidecar() {
            true if !status.started => return "Pending",
            true => {}
            false if failed(status) && policy == RestartPolicy::Never => return "Failed",
            false if !status.ready => return "Pending",
            false => {}
        }
    }
    let running = main.iter().filter(|it| it.state.running.is_some()).count();
    let waiting = main
        .iter()
        .any(|it| it.state.waiting.is_some() && it.last_state.terminated.is_none());
    let stopped = main.iter().all(|it| it.state.terminated.is_some());
    match () {
        () if waiting => "Pending",
        () if running > 0 || !stopped => "Running",
        () if policy == RestartPolicy::Always && !facts.over => "Running",
        () if !facts.over => "Running", // sidecars still end; the terminal phase comes with the last process
        () if main.iter().any(failed) => match policy {
            RestartPolicy::OnFailure | RestartPolicy::Never | RestartPolicy::Always => "Failed",
        },
        () => "Succeeded",
    }
}

fn conditions(
    facts: &Facts<'_>,
    status: &PodStatus,
    initialised: bool,
    before: &PodStatus,
    now: Timestamp,
) -> Vec<Condition> {
    let terminal = match status.phase.as_str() {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    let names = |statuses: &mut dyn Iterator<Item = &ContainerStatus>| {
        let names: Vec<&str> = statuses.map(|it| it.name.as_str()).collect();
        names.join(" ")
    };
    let incomplete = names(&mut status.init_container_statuses.iter().filter(|it| !it.ready));
    let sidecar = |name: &str| {
        facts
            .pod
            .spec
            .init_containers
            .iter()
            .any(|it| it.name == name && it.is_sidecar())
    };
    let sidecars = status.init_container_statuses.iter().filter(|it| sidecar(&it.name));
    let unready = names(&mut sidecars.chain(&status.container_statuses).filter(|it| !it.ready));
    let no = |reason: &str, message: String| (false, reason.to_owned(), message);
    let yes = || (true, String::new(), String::new());

    let init = match (terminal, initialised) {
        (Some("PodCompleted"), _) => (true, "PodCompleted".to_owned(), String::new()),
        (_, true) => yes(),
        (_, false) => no(
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{incomplete}]"),
        ),
    };
    let containers = match terminal {
        Some(word) => no(word, String::new()),
        None if unready.is_empty() => yes(),
        None => no(
            "ContainersNotReady",
            format!("containers with unready status: [{unready}]"),
        ),
    };
    let gate = facts.pod.spec.readiness_gates.iter().find(|gate| {
        let kind = gate.condition_type.as_str();
        facts
            .pod
            .status
            .condition(kind)
            .is_none_or(|condition| condition.status != "True")
    });
    let ready = match (&containers, gate) {
        ((true, ..), Some(gate)) => {
            let kind = &gate.condition_type;
            no(
                "ReadinessGatesNotReady",
                format!("corresponding condition of pod readiness gate \"{kind}\" does not exist."),
            )
        }
        _ => containers.clone(),
    };
    let sandbox = if facts.sandbox { yes() } else { no("", String::new()) };
    [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", init),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", yes()),
    ]
    .into_iter()
    .map(|(kind, (holds, reason, message))| {
        let status = if holds { "True" } else { "False" };
        let old = before.condition(kind).filter(|old| old.status == status);
        let since = old.and_then(|old| old.last_transition_time.clone());
        Condition {
            kind: kind.into(),
            status: status.into(),
            observed_generation: facts.pod.meta.generation,
            last_transition_time: since.or_else(|| Some(time::seconds(now))),
            reason,
            message,
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(policy: &str, init: &[&str], main: &[&str]) -> Pod {
        let containers = |names: &[&str]| {
            names
                .iter()
                .map(|name| json!({"name": name, "image": "i"}))
                .collect::<Vec<_>>()
        };
        Pod::of(&json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u"},
            "spec": {"restartPolicy": policy, "initContainers": containers(init), "containers": containers(main)},
        }))
        .unwrap()
    }

    fn attempt(name: &str, attempt: u32, exit: Option<i32>) -> Attempt {
        Attempt {
            container: name.into(),
            attempt,
            id: format!("{name}-{attempt}"),
            running: exit.is_none(),
            exit_code: exit.unwrap_or(0),
            started: time::parse("2026-01-01T00:00:00Z"),
            ..Attempt::default()
        }
    }

    fn note(ready: bool) -> Note {
        Note {
            started: true,
            ready,
            ..Note::default()
        }
    }

    fn run(pod: &Pod, attempts: &[Attempt], over: bool, before: &PodStatus) -> PodStatus {
        let notes = pod.all_containers().map(|it| (it.name.clone(), note(true))).collect();
        let facts = Facts {
            pod,
            attempts,
            notes: &notes,
            sandbox: !over,
            pod_ip: None,
            host_ip: None,
            ended: None,
            over,
        };
        compute(&facts, before, time::parse("2026-01-01T00:00:09Z").unwrap())
    }

    #[test]
    fn the_phase_follows_policy_and_ends() {
        let end = |name: &str, code| attempt(name, 0, Some(code));
        type Case = (&'static str, &'static [&'static str], Vec<Attempt>, bool, &'static str);
        let cases: Vec<Case> = vec![
            ("Always", &[], vec![], false, "Pending"),
            ("Always", &[], vec![attempt("a", 0, None)], false, "Pending"),
            (
                "Always",
                &[],
                vec![attempt("a", 0, None), attempt("b", 0, None)],
                false,
                "Running",
            ),
            ("Always", &[], vec![end("a", 0), end("b", 0)], false, "Running"),
            ("Never", &[], vec![end("a", 0), end("b", 0)], true, "Succeeded"),
            ("Never", &[], vec![end("a", 0), end("b", 0)], false, "Running"),
            ("Never", &[], vec![end("a", 0), end("b", 1)], true, "Failed"),
            ("Never", &[], vec![end("a", 1), attempt("b", 0, None)], false, "Running"),
            ("OnFailure", &[], vec![end("a", 0), end("b", 1)], false, "Running"),
            ("OnFailure", &[], vec![end("a", 0), end("b", 0)], true, "Succeeded"),
            ("Always", &["i"], vec![attempt("i", 0, None)], false, "Pending"),
            ("Always", &["i"], vec![end("i", 1)], false, "Pending"),
            ("Never", &["i"], vec![end("i", 1)], true, "Failed"),
            (
                "Never",
                &["i"],
                vec![end("i", 0), attempt("a", 0, None), attempt("b", 0, None)],
                false,
                "Running",
            ),
        ];
        for (policy, init, attempts, over, expected) in cases {
            let status = run(&pod(policy, init, &["a", "b"]), &attempts, over, &PodStatus::default());
            assert_eq!(status.phase, expected, "{policy} {init:?} {attempts:?}");
        }
    }

    #[test]
    fn a_running_ready_pod_has_the_five_conditions_true() {
        let status = run(
            &pod("Always", &[], &["a"]),
            &[attempt("a", 0, None)],
            false,
            &PodStatus::default(),
        );
        let all: Vec<(&str, &str)> = status
            .conditions
            .iter()
            .map(|it| (it.kind.as_str(), it.status.as_str()))
            .collect();
        assert_eq!(
            all,
            [
                ("PodReadyToStartContainers", "True"),
                ("Initialized", "True"),
                ("Ready", "True"),
                ("ContainersReady", "True"),
                ("PodScheduled", "True")
            ]
        );
        assert_eq!(status.container_statuses[0].container_id, "amphipod://a-0");
        assert_eq!(status.qos_class, "BestEffort");
    }

    #[test]
    fn unready_containers_are_named_and_transition_times_are_kept() {
        let pod = pod("Always", &[], &["a", "b"]);
        let first = run(&pod, &[attempt("a", 0, None)], false, &PodStatus::default());
        let ready = first.condition("Ready").unwrap();
        assert_eq!(ready.message, "containers with unready status: [b]");
        let mut before = first.clone();
        before.conditions[2].last_transition_time = Some("2025-01-01T00:00:00Z".into());
        before.start_time = Some("2025-01-01T00:00:00Z".into());
        let second = run(&pod, &[attempt("a", 0, None)], false, &before);
        assert_eq!(
            second.condition("Ready").unwrap().last_transition_time.as_deref(),
            Some("2025-01-01T00:00:00Z")
        );
        assert_eq!(second.start_time.as_deref(), Some("2025-01-01T00:00:00Z"));
    }

    #[test]
    fn a_crash_loop_waits_and_remembers_the_end() {
        let pod = pod("Always", &[], &["a"]);
        let notes = BTreeMap::from([(
            "a".into(),
            Note {
                backing_off: Some(Duration::from_secs(80)),
                ..Note::default()
            },
        )]);
        let attempts = [attempt("a", 3, Some(1))];
        let facts = Facts {
            pod: &pod,
            attempts: &attempts,
            notes: &notes,
            sandbox: true,
            pod_ip: None,
            host_ip: None,
            ended: None,
            over: false,
        };
        let status = compute(&facts, &PodStatus::default(), Timestamp::UNIX_EPOCH);
        let container = &status.container_statuses[0];
        let waiting = container.state.waiting.as_ref().unwrap();
        assert_eq!(waiting.reason, "CrashLoopBackOff");
        assert_eq!(
            waiting.message,
            "back-off 1m20s restarting failed container=a pod=web_default(u)"
        );
        assert_eq!(container.last_state.terminated.as_ref().unwrap().reason, "Error");
        assert_eq!((container.restart_count, status.phase.as_str()), (3, "Running"));
    }

    #[test]
    fn init_containers_hold_the_others_back() {
        let status = run(
            &pod("Always", &["i"], &["a"]),
            &[attempt("i", 0, None)],
            false,
            &PodStatus::default(),
        );
        assert_eq!(
            status.container_statuses[0].state.waiting.as_ref().unwrap().reason,
            "PodInitializing"
        );
        let condition = status.condition("Initialized").unwrap();
        assert_eq!(condition.message, "containers with incomplete status: [i]");
    }

    #[test]
    fn a_finished_pod_keeps_its_last_report_after_its_sandbox_is_gone() {
        let pod = pod("Never", &[], &["a"]);
        let before = run(&pod, &[attempt("a", 0, Some(3))], true, &PodStatus::default());
        let after = run(&pod, &[], true, &before);
        assert_eq!(after.phase, "Failed");
        assert_eq!(
            after.container_statuses[0].state.terminated.as_ref().unwrap().exit_code,
            3
        );
        let condition = after.condition("Ready").unwrap();
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("False", "PodFailed")
        );
    }
}
