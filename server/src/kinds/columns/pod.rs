//! Pods: how many containers are ready, and one word for what the pod is up to.

use agent::wire::object::{at, integer, list, text};
use agent::wire::time;
use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, NAME, Shown, cell, since};

const COLUMNS: &[Shown] = &[
    NAME,
    Shown::text("Ready", "Containers that are ready, of all", |pod, now| {
        let Seen { ready, total, .. } = look(pod, now);
        cell::of(ready, total)
    }),
    Shown::text("Status", "What the pod is up to", |pod, now| look(pod, now).word.into()),
    Shown::text(
        "Restarts",
        "How often containers began anew, and when last",
        |pod, now| look(pod, now).restarts.into(),
    ),
    AGE,
    Shown::text("IP", "Address of the pod", |pod, _| {
        cell::text_or_none(pod, &["status", "podIP"])
    })
    .wide(),
    Shown::text("Node", "Where it runs", |pod, _| {
        cell::text_or_none(pod, &["spec", "nodeName"])
    })
    .wide(),
    Shown::text("Nominated Node", "Where room is being made for it", |pod, _| {
        cell::text_or_none(pod, &["status", "nominatedNodeName"])
    })
    .wide(),
    Shown::text(
        "Readiness Gates",
        "Further conditions of readiness that hold, of all",
        |pod, _| gates(pod),
    )
    .wide(),
];

/// The columns, if it is this kind.
pub fn columns(group: &str, plural: &str) -> Option<&'static [Shown]> {
    (group.is_empty() && plural == "pods").then_some(COLUMNS)
}

struct Seen {
    ready: i64,
    total: i64,
    word: String,
    restarts: String,
}

/// Counts restarts, and remembers when the last container ended before one.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += integer(status, &["restartCount"]).unwrap_or(0);
        let ended = time::parse(text(status, &["lastState", "terminated", "finishedAt"]));
        self.last = self.last.max(ended);
    }

    fn shown(&self, now: Timestamp) -> String {
        match self.last.filter(|_| self.count > 0) {
            Some(last) => format!("{} ({} ago)", self.count, since(&time::seconds(last), now)),
            None => self.count.to_string(),
        }
    }
}

/// Source: Kubernetes v1.36 `pkg/printers/internalversion/printers.go`, `printPod`.
fn look(pod: &Value, now: Timestamp) -> Seen {
    let mut total = i64::try_from(list(pod, &["spec", "containers"]).len()).unwrap_or(0);
    let mut word = first_of([text(pod, &["status", "reason"]), text(pod, &["status", "phase"])]).to_owned();
    let gated = list(pod, &["status", "conditions"])
        .iter()
        .any(|one| text(one, &["type"]) == "PodScheduled" && text(one, &["reason"]) == "SchedulingGated");
    if gated {
        "SchedulingGated".clone_into(&mut word);
    }
    let sidecars: Vec<&str> = list(pod, &["spec", "initContainers"])
        .iter()
        .filter(|one| text(one, &["restartPolicy"]) == "Always")
        .map(|one| text(one, &["name"]))
        .collect();
    total += i64::try_from(sidecars.len()).unwrap_or(0);
    let mut ready = 0;
    let mut restarts = Restarts::default();
    let mut sidecar_restarts = Restarts::default();
    let mut initializing = None;
    let inits = list(pod, &["status", "initContainerStatuses"]);
    for (number, status) in inits.iter().enumerate() {
        restarts.add(status);
        let sidecar = sidecars.contains(&text(status, &["name"]));
        if sidecar {
            sidecar_restarts.add(status);
        }
        if integer(status, &["state", "terminated", "exitCode"]) == Some(0) {
            continue;
        }
        if sidecar && truth(status, "started") {
            ready += i64::from(truth(status, "ready"));
            continue;
        }
        let all = list(pod, &["spec", "initContainers"]).len();
        initializing = Some(init_word(status, number, all));
        break;
    }
    let initialized = initializing.is_none() || holds(pod, "Initialized");
    word = initializing.unwrap_or(word);
    // A sidecar may fall back into starting while the containers that waited for it run.
    if initialized {
        restarts = sidecar_restarts;
        let mut running = false;
        for status in list(pod, &["status", "containerStatuses"]).iter().rev() {
            restarts.add(status);
            if let Some(reason) = container_word(status) {
                word = reason;
            } else if truth(status, "ready") && at(status, &["state", "running"]).is_some() {
                running = true;
                ready += 1;
            }
        }
        if word == "Completed" && running {
            word = if holds(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if at(pod, &["metadata", "deletionTimestamp"]).is_some_and(|time| !time.is_null()) {
        word = match text(pod, &["status", "reason"]) {
            "NodeLost" => "Unknown".to_owned(),
            _ if matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed") => word,
            _ => "Terminating".to_owned(),
        };
    }
    Seen {
        ready,
        total,
        word,
        restarts: restarts.shown(now),
    }
}

fn init_word(status: &Value, number: usize, all: usize) -> String {
    if let Some(ended) = at(status, &["state", "terminated"]) {
        return format!("Init:{}", ended_word(ended));
    }
    match text(status, &["state", "waiting", "reason"]) {
        "" | "PodInitializing" => format!("Init:{number}/{all}"),
        reason => format!("Init:{reason}"),
    }
}

fn container_word(status: &Value) -> Option<String> {
    let waiting = text(status, &["state", "waiting", "reason"]);
    if !waiting.is_empty() {
        return Some(waiting.to_owned());
    }
    at(status, &["state", "terminated"]).map(ended_word)
}

fn ended_word(ended: &Value) -> String {
    let signal = integer(ended, &["signal"]).unwrap_or(0);
    match text(ended, &["reason"]) {
        "" if signal != 0 => format!("Signal:{signal}"),
        "" => format!("ExitCode:{}", integer(ended, &["exitCode"]).unwrap_or(0)),
        reason => reason.to_owned(),
    }
}

fn gates(pod: &Value) -> Value {
    let gates = list(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return cell::NONE.into();
    }
    let holding = gates.iter().filter(|gate| holds(pod, text(gate, &["conditionType"])));
    let count = |number: usize| i64::try_from(number).unwrap_or(0);
    cell::of(count(holding.count()), count(gates.len()))
}

/// Whether a condition of the pod is true.
fn holds(pod: &Value, condition: &str) -> bool {
    list(pod, &["status", "conditions"])
        .iter()
        .any(|one| text(one, &["type"]) == condition && text(one, &["status"]) == "True")
}

fn truth(value: &Value, field: &str) -> bool {
    value.get(field).and_then(Value::as_bool).unwrap_or(false)
}

fn first_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> &'a str {
    texts.into_iter().find(|text| !text.is_empty()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: Value) -> Value {
        json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}, "status": status})
    }

    fn shown(pod: &Value) -> String {
        let seen = look(pod, "2026-11-25T12:00:00Z".parse().unwrap());
        format!("{}/{} {} {}", seen.ready, seen.total, seen.word, seen.restarts)
    }

    #[test]
    fn a_pod_is_told_in_one_word() {
        let running = json!({"name": "a", "ready": true, "state": {"running": {}}});
        let done = json!({"name": "b", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let crashed = json!({
            "name": "b", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-11-25T11:59:15Z"}},
        });
        let killed = json!({"name": "b", "state": {"terminated": {"exitCode": 137, "signal": 9}}});
        for (status, wanted) in [
            (json!({"phase": "Pending"}), "0/2 Pending 0"),
            (json!({"phase": "Failed", "reason": "Evicted"}), "0/2 Evicted 0"),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                "0/2 Init:0/1 0",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 2}}}]}),
                "0/2 Init:ExitCode:2 0",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [running, crashed]}),
                "1/2 CrashLoopBackOff 3 (45s ago)",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [running, done]}),
                "1/2 NotReady 0",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [running, killed]}),
                "1/2 Signal:9 0",
            ),
        ] {
            assert_eq!(shown(&pod(status.clone())), wanted, "{status}");
        }
        let mut going = pod(json!({"phase": "Running"}));
        going["metadata"] = json!({"deletionTimestamp": "2026-11-25T12:00:00Z"});
        assert_eq!(shown(&going), "0/2 Terminating 0");
    }

    #[test]
    fn a_sidecar_that_crashes_in_a_running_pod_hides_no_container() {
        let crashed = json!({
            "name": "i", "started": false, "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-11-25T11:59:15Z"}},
        });
        let running = json!({"name": "a", "ready": true, "restartCount": 1, "state": {"running": {}}});
        let waiting = json!({"name": "a", "state": {"waiting": {"reason": "PodInitializing"}}});
        for (main, initialized, wanted) in [
            (&running, "True", "1/2 Init:CrashLoopBackOff 5 (45s ago)"),
            (&waiting, "False", "0/2 Init:CrashLoopBackOff 4 (45s ago)"),
            (&waiting, "True", "0/2 PodInitializing 4 (45s ago)"),
        ] {
            let pod = json!({
                "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i", "restartPolicy": "Always"}]},
                "status": {
                    "phase": "Running", "conditions": [{"type": "Initialized", "status": initialized}],
                    "initContainerStatuses": [crashed], "containerStatuses": [main],
                },
            });
            assert_eq!(shown(&pod), wanted, "{pod}");
        }
    }
}
