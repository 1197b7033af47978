//! A Deployment's status: counts, and the conditions `Available` and `Progressing` that `kubectl rollout status` reads.
//!
//! Source: Kubernetes v1.36 `pkg/controller/deployment/progress.go`, `sync.go` (`calculateStatus`).

use std::time::Duration;

use agent::wire::object::{Meta, at, integer, list, set, text};
use agent::wire::selector::Labels;
use agent::wire::time;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::action::Action;
use super::super::world::World;
use super::scale::Limits;
use super::{replicas, template_of};
use crate::request::What;

const EXCEEDED: &str = "ProgressDeadlineExceeded";
const COMPLETE: &str = "NewReplicaSetAvailable";
/// The new set could not be made.
pub const CREATE_ERROR: &str = "ReplicaSetCreateError";
/// So many seconds mean that nobody wants to know of progress. Source: `util/deployment_util.go`, `HasProgressDeadline`.
const NO_DEADLINE: i64 = i32::MAX as i64;

/// The write that brings the status up to date, if it is not; `again` is when a deadline passes.
pub fn update(deployment: &Value, world: &dyn World, again: &mut Option<Duration>) -> Option<Action> {
    let meta = Meta::of(deployment);
    let all = world.list(What::REPLICA_SETS, Some(&meta.namespace), &Labels::everything());
    let is_ours = |one: &Value| Meta::of(one).controller().is_some_and(|owner| owner.uid == meta.uid);
    let all: Vec<Value> = all.filter(is_ours).collect();
    let ours: Vec<&Value> = all.iter().collect();
    let new = ours
        .iter()
        .copied()
        .find(|one| template_of(one) == template_of(deployment));
    let counts = Counts::of(&ours, new);
    let mut status = json!({"observedGeneration": meta.generation});
    for (field, count) in [
        ("replicas", counts.total),
        ("updatedReplicas", counts.updated),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
        ("unavailableReplicas", (counts.wanted_by_sets - counts.available).max(0)),
    ] {
        if count > 0 {
            set(&mut status, &[field], count);
        }
    }
    if let Some(collisions) = integer(deployment, &["status", "collisionCount"]) {
        set(&mut status, &["collisionCount"], collisions);
    }
    let now = world.now();
    let conditions = vec![
        available(deployment, &counts, now),
        progressing(deployment, &counts, new, now, again),
        failing(&ours, new),
    ];
    set(
        &mut status,
        &["conditions"],
        conditions.into_iter().flatten().collect::<Vec<Value>>(),
    );
    (deployment.get("status") != Some(&status)).then(|| {
        let mut updated = deployment.clone();
        set(&mut updated, &["status"], status);
        Action::status(What::DEPLOYMENTS, updated)
    })
}

/// The write that says why there is no new set, if that is not said already.
pub fn creation_failed(deployment: &Value, message: &str, now: Timestamp) -> Option<Action> {
    if deadline(deployment) == NO_DEADLINE {
        return None;
    }
    let before = existing(deployment, "Progressing");
    let failed = condition("Progressing", "False", CREATE_ERROR, message, before, now);
    if before == Some(&failed) {
        return None;
    }
    let others = list(deployment, &["status", "conditions"]).iter();
    let mut conditions: Vec<Value> = others
        .filter(|one| text(one, &["type"]) != "Progressing")
        .cloned()
        .collect();
    conditions.push(failed);
    let mut updated = deployment.clone();
    set(&mut updated, &["status", "conditions"], conditions);
    Some(Action::status(What::DEPLOYMENTS, updated))
}

/// Whether the rollout had reached its end when the status was last written: only then are old sets forgotten.
///
/// Source: Kubernetes v1.36 `util/deployment_util.go`, `DeploymentComplete`.
pub fn is_complete(deployment: &Value) -> bool {
    let wanted = replicas(deployment);
    let counted = |field| integer(deployment, &["status", field]).unwrap_or(0) == wanted;
    ["updatedReplicas", "replicas", "availableReplicas"]
        .into_iter()
        .all(counted)
        && integer(deployment, &["status", "observedGeneration"]) >= integer(deployment, &["metadata", "generation"])
}

fn deadline(deployment: &Value) -> i64 {
    integer(deployment, &["spec", "progressDeadlineSeconds"]).unwrap_or(600)
}

struct Counts {
    wanted_by_sets: i64,
    total: i64,
    updated: i64,
    ready: i64,
    available: i64,
}

impl Counts {
    fn of(sets: &[&Value], new: Option<&Value>) -> Self {
        let sum = |field: &str| {
            sets.iter()
                .map(|one| integer(one, &["status", field]).unwrap_or(0))
                .sum()
        };
        Self {
            wanted_by_sets: sets.iter().map(|one| replicas(one)).sum(),
            total: sum("replicas"),
            updated: new.map_or(0, |one| integer(one, &["status", "replicas"]).unwrap_or(0)),
            ready: sum("readyReplicas"),
            available: sum("availableReplicas"),
        }
    }
}

fn existing<'a>(deployment: &'a Value, kind: &str) -> Option<&'a Value> {
    list(deployment, &["status", "conditions"])
        .iter()
        .find(|condition| text(condition, &["type"]) == kind)
}

fn condition(kind: &str, status: &str, reason: &str, message: &str, before: Option<&Value>, now: Timestamp) -> Value {
    let now = time::seconds(now);
    let same_status = before.filter(|before| text(before, &["status"]) == status);
    let unchanged =
        same_status.filter(|before| text(before, &["reason"]) == reason && text(before, &["message"]) == message);
    let kept =
        |seen: Option<&Value>, field: &str| seen.map_or_else(|| now.clone(), |seen| text(seen, &[field]).to_owned());
    json!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastUpdateTime": kept(unchanged, "lastUpdateTime"),
        "lastTransitionTime": kept(same_status, "lastTransitionTime"),
    })
}

fn available(deployment: &Value, counts: &Counts, now: Timestamp) -> Option<Value> {
    let limits = Limits::of(deployment);
    let before = existing(deployment, "Available");
    Some(if counts.available >= limits.wanted - limits.unavailable {
        let message = "Deployment has minimum availability.";
        condition("Available", "True", "MinimumReplicasAvailable", message, before, now)
    } else {
        let message = "Deployment does not have minimum availability.";
        condition("Available", "False", "MinimumReplicasUnavailable", message, before, now)
    })
}

fn progressing(
    deployment: &Value,
    counts: &Counts,
    new: Option<&Value>,
    now: Timestamp,
    again: &mut Option<Duration>,
) -> Option<Value> {
    if deadline(deployment) == NO_DEADLINE {
        return None;
    }
    let before = existing(deployment, "Progressing");
    let reason = before.map_or("", |before| text(before, &["reason"]));
    if at(deployment, &["spec", "paused"]) == Some(&Value::Bool(true)) {
        if reason == EXCEEDED {
            return before.cloned(); // a pause does not hide that
        }
        return Some(condition(
            "Progressing",
            "Unknown",
            "DeploymentPaused",
            "Deployment is paused",
            before,
            now,
        ));
    }
    let fresh = |status: &str, reason: &str, message: &str| {
        let mut fresh = condition("Progressing", status, reason, message, before, now);
        set(&mut fresh, &["lastUpdateTime"], time::seconds(now));
        Some(fresh)
    };
    if reason == "DeploymentPaused" {
        // The pause does not count towards the deadline.
        return fresh("Unknown", "DeploymentResumed", "Deployment is resumed");
    }
    let seen = |field: &str| integer(deployment, &["status", field]).unwrap_or(0);
    let moved = counts.updated > seen("updatedReplicas")
        || counts.ready > seen("readyReplicas")
        || counts.available > seen("availableReplicas")
        || counts.total - counts.updated < seen("replicas") - seen("updatedReplicas");
    let Some(new) = new else {
        // A Recreate waits for the pods of the older sets; what is said of those is not said of what comes.
        return match before {
            Some(_) if moved || reason == EXCEEDED => {
                let name = text(deployment, &["metadata", "name"]);
                fresh(
                    "True",
                    "ReplicaSetUpdated",
                    &format!("Deployment \"{name}\" is progressing."),
                )
            }
            before => before.cloned(),
        };
    };
    let name = text(new, &["metadata", "name"]);
    let wanted = replicas(deployment);
    let complete = counts.updated == wanted && counts.total == wanted && counts.available == wanted;
    if complete {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        return Some(condition("Progressing", "True", COMPLETE, &message, before, now));
    }
    // Each text names its set, so one that does not is about an older one.
    let of_another = !before.is_some_and(|before| text(before, &["message"]).contains(&format!("\"{name}\"")));
    if (of_another && reason != "DeploymentResumed") || reason == CREATE_ERROR {
        let message = format!("Created new replica set \"{name}\"");
        return fresh("True", "NewReplicaSetCreated", &message);
    }
    if reason == COMPLETE && counts.total == counts.updated {
        return before.cloned(); // pods that fail later, and a new size, are no rollout and have no deadline
    }
    if moved || reason == COMPLETE {
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        return fresh("True", "ReplicaSetUpdated", &message);
    }
    overdue(deployment, before?, name, now, again)
}

/// That pods cannot be made, as the sets say it: the present one first.
fn failing(sets: &[&Value], new: Option<&Value>) -> Option<Value> {
    let of = |one: &Value| existing(one, "ReplicaFailure").cloned();
    new.and_then(of).or_else(|| sets.iter().find_map(|one| of(one)))
}

/// The condition as it was, or that the deadline has passed.
fn overdue(
    deployment: &Value,
    before: &Value,
    name: &str,
    now: Timestamp,
    again: &mut Option<Duration>,
) -> Option<Value> {
    let since = time::parse(text(before, &["lastUpdateTime"])).unwrap_or(now);
    let left = deadline(deployment) - (now.as_second() - since.as_second());
    if left <= 0 {
        let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
        return Some(condition("Progressing", "False", EXCEEDED, &message, Some(before), now));
    }
    let left = Duration::from_secs(u64::try_from(left).unwrap_or(1));
    *again = Some(again.map_or(left, |again| again.min(left)));
    Some(before.clone())
}
