//! What the status says of each container.

use std::time::Duration;

use super::{Facts, Note};
use crate::kubelet::ports::Attempt;
use crate::wire::pod::{Container, ContainerState, ContainerStatus, Pod, PodStatus, Running, Terminated, Waiting};
use crate::wire::time;

/// The newest attempt of a container.
pub fn newest<'a>(attempts: &'a [Attempt], name: &str) -> Option<&'a Attempt> {
    attempts
        .iter()
        .filter(|it| it.container == name)
        .max_by_key(|it| it.attempt)
}

pub(super) fn container_status(
    facts: &Facts<'_>,
    it: &Container,
    before: &PodStatus,
    initialised: bool,
) -> ContainerStatus {
    let old = before.container(&it.name);
    let default = Note::default();
    let note = facts.notes.get(&it.name).unwrap_or(&default);
    let Some(now) = newest(facts.attempts, &it.name) else {
        return absent_status(facts, it, note, old, initialised);
    };
    let previous = facts
        .attempts
        .iter()
        .filter(|a| a.container == it.name && a.attempt < now.attempt);
    let previous = previous.max_by_key(|a| a.attempt).map(|a| terminated(a, note));
    let last = ContainerState {
        terminated: previous,
        ..ContainerState::default()
    };
    let last = match (&last.terminated, old) {
        (None, Some(old)) if now.attempt > 0 => last_known(old, &now.id),
        _ => last,
    };
    let end = (!now.running).then(|| terminated(now, note));
    let waiting = note
        .waiting
        .clone()
        .or_else(|| note.backing_off.map(|delay| crash_loop(facts.pod, it, delay)));
    let (state, last_state) = match (end, waiting) {
        (None, _) => (
            ContainerState {
                running: Some(running(now)),
                ..ContainerState::default()
            },
            last,
        ),
        (Some(end), Some(waiting)) => (
            ContainerState {
                waiting: Some(waiting),
                ..ContainerState::default()
            },
            ContainerState {
                terminated: Some(end),
                ..ContainerState::default()
            },
        ),
        (Some(end), None) => (
            ContainerState {
                terminated: Some(end),
                ..ContainerState::default()
            },
            last,
        ),
    };
    ContainerStatus {
        name: it.name.clone(),
        state,
        last_state,
        ready: now.running && note.ready,
        restart_count: now.attempt,
        image: now.image.clone(),
        image_id: now.image_id.clone(),
        container_id: container_id(&now.id),
        started: now.running && note.started,
    }
}

/// The end of the attempt before this one, when only the last report remembers it.
fn last_known(old: &ContainerStatus, id: &str) -> ContainerState {
    if old.container_id == container_id(id) {
        return old.last_state.clone();
    }
    match &old.state.terminated {
        Some(_) => ContainerState {
            terminated: old.state.terminated.clone(),
            ..ContainerState::default()
        },
        None => old.last_state.clone(),
    }
}

fn absent_status(
    facts: &Facts<'_>,
    it: &Container,
    note: &Note,
    old: Option<&ContainerStatus>,
    initialised: bool,
) -> ContainerStatus {
    let ran = old.filter(|old| !old.container_id.is_empty());
    if let (true, Some(old)) = (facts.over, ran) {
        return lost(old);
    }
    let is_main = facts.pod.spec.containers.iter().any(|main| main.name == it.name);
    let word = if !facts.pod.spec.init_containers.is_empty() && (!is_main || !initialised) {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let waiting = note.waiting.clone().unwrap_or(Waiting {
        reason: word.into(),
        message: String::new(),
    });
    let last_state = ran.map(|old| match &old.state.terminated {
        Some(_) => old.state.clone(),
        None => old.last_state.clone(),
    });
    ContainerStatus {
        name: it.name.clone(),
        state: ContainerState {
            waiting: Some(waiting),
            ..ContainerState::default()
        },
        last_state: last_state.unwrap_or_default(),
        image: it.image.clone(),
        restart_count: old.map_or(0, |old| old.restart_count),
        ..ContainerStatus::default()
    }
}

/// A container of a pod that is over and of which the runtime remembers nothing: its last report stands, ended.
fn lost(old: &ContainerStatus) -> ContainerStatus {
    let mut status = old.clone();
    status.ready = false;
    status.started = false;
    if status.state.terminated.is_none() {
        let started_at = status.state.running.take().and_then(|run| run.started_at);
        let end = Terminated {
            exit_code: 137,
            reason: "ContainerStatusUnknown".into(),
            message: "The container could not be located when the pod was terminated".into(),
            started_at,
            container_id: status.container_id.clone(),
            ..Terminated::default()
        };
        status.state = ContainerState {
            terminated: Some(end),
            ..ContainerState::default()
        };
    }
    status
}

/// A container's id as the API writes it.
pub fn container_id(id: &str) -> String {
    format!("amphipod://{id}")
}

fn running(attempt: &Attempt) -> Running {
    Running {
        started_at: attempt.started.map(time::seconds),
    }
}

fn terminated(attempt: &Attempt, note: &Note) -> Terminated {
    let reason = match (attempt.oom_killed, attempt.exit_code) {
        _ if attempt.start_error.is_some() => "StartError",
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    let message = note.messages.get(&attempt.attempt).or(attempt.start_error.as_ref());
    Terminated {
        exit_code: attempt.exit_code,
        signal: 0, // a runtime behind CRI reports 128 + n as the exit code and no signal; clients know that form
        reason: reason.into(),
        message: message.cloned().unwrap_or_default(),
        started_at: attempt.started.map(time::seconds),
        finished_at: attempt.finished.map(time::seconds),
        container_id: container_id(&attempt.id),
    }
}

fn crash_loop(pod: &Pod, it: &Container, delay: Duration) -> Waiting {
    let (name, namespace, uid) = (&pod.meta.name, &pod.meta.namespace, &pod.meta.uid);
    let delay = match delay.as_secs() {
        300 => "5m0s".to_owned(),
        seconds if seconds >= 60 => format!("{}m{}s", seconds / 60, seconds % 60),
        seconds => format!("{seconds}s"),
    };
    Waiting {
        reason: "CrashLoopBackOff".into(),
        message: format!(
            "back-off {delay} restarting failed container={} pod={name}_{namespace}({uid})",
            it.name
        ),
    }
}
