//! What a worker remembers of one container beside its processes: back-off, probes, failures. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::kubelet::pod::{Role, Seen, State};
use crate::kubelet::ports::Attempt;
use crate::kubelet::probe::Probes;
use crate::kubelet::restart::{self, Record};
use crate::kubelet::status::{Note, container_id};
use crate::wire::pod::{Container, ContainerStatus, Pod, RestartPolicy, Waiting};

/// How long a fresh failure is shown under its own name before the back-off is.
const FRESH: Duration = Duration::from_secs(3);
/// A missing ConfigMap is asked for again after this at most.
const LONGEST_CONFIG_DELAY: Duration = Duration::from_secs(15);

/// Why a container did not start.
#[derive(Clone, Debug)]
pub struct Failure {
    waiting: Waiting,
    later: Option<Waiting>,
    since: Instant,
    /// Not again before.
    pub not_before: Instant,
    count: u32,
}

/// The `postStart` hook of the newest attempt.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Hook {
    /// There is none, or it is done.
    #[default]
    Done,
    /// That of this attempt is on its way.
    Flying(u32),
    /// The container must end for it.
    Failed,
}

/// What a worker and the task that asks an attempt to end tell each other.
#[derive(Debug, Default)]
pub struct Parting {
    /// The `preStop` hook has come to its end.
    pub hook_done: AtomicBool,
    /// The turn has come.
    pub turn: Notify,
}

/// What a worker remembers of one container.
#[derive(Clone, Debug, Default)]
pub struct Care {
    /// Ends and restarts.
    pub record: Record,
    /// The attempt that all below is about.
    pub attempt: Option<u32>,
    /// Its process lives.
    pub running: bool,
    /// Its probes.
    pub probes: Probes,
    /// Its `postStart` hook.
    pub hook: Hook,
    /// It was asked to end and is killed then.
    pub kill_at: Option<Instant>,
    /// What asks it: the `preStop` hook and the signal.
    pub asking: Option<AbortHandle>,
    /// What it and whoever asks it tell each other.
    pub parting: Arc<Parting>,
    /// Its turn to get the signal has come.
    pub in_turn: bool,
    /// Why the next attempt does not start.
    pub failure: Option<Failure>,
    /// An attempt that the runtime refused and has no record of.
    pub refused: Option<Attempt>,
    /// Last words by attempt.
    pub messages: BTreeMap<u32, String>,
    /// The attempt whose back-off has been announced.
    pub announced: Option<u32>,
}

/// Waits before trying to start again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Patience {
    /// An image: 10 s, 20 s, … 5 min.
    Image,
    /// Something that somebody may make any time: 1 s, 2 s, … 15 s.
    Config,
}

impl Care {
    /// Takes note of the newest attempt. `before`: the container's status as last reported.
    pub fn observe(
        &mut self,
        it: &Container,
        newest: Option<&Attempt>,
        before: Option<&ContainerStatus>,
        now: Instant,
        wall: Timestamp,
    ) {
        let number = newest.map(|attempt| attempt.attempt);
        if number != self.attempt {
            self.attempt = number;
            self.kill_at = None;
            self.parting = Arc::default();
            self.in_turn = false;
            self.probes = newest
                .map(|attempt| probes(it, attempt, before, now, wall))
                .unwrap_or_default();
        }
        self.running = newest.is_some_and(|attempt| attempt.running);
        match newest {
            Some(attempt) if attempt.running => self.record.note_running(now),
            Some(attempt) => {
                self.kill_at = None;
                self.record.note_end(attempt.attempt, now);
            }
            None => {}
        }
    }

    /// Whether its probes are carried out: what has ended, is ending or is still being greeted is not asked how it is.
    pub fn is_probed(&self) -> bool {
        self.running && self.hook == Hook::Done && self.kill_at.is_none()
    }

    /// It runs, and whatever had to happen first has happened.
    pub fn started(&self, running: bool) -> bool {
        running && self.hook == Hook::Done && self.probes.started()
    }

    /// For the state machine.
    pub fn seen(
        &self,
        role: Role,
        policy: RestartPolicy,
        newest: Option<&Attempt>,
        before: Option<&ContainerStatus>,
    ) -> Seen {
        let state = match newest {
            Some(attempt) if attempt.running => State::Running,
            Some(attempt) => State::Exited {
                code: attempt.exit_code,
            },
            None => forgotten(role, policy, before),
        };
        let running = state == State::Running;
        let due = match state {
            State::Exited { .. } => self.record.due(),
            State::Absent | State::Running => None,
        };
        Seen {
            role,
            state,
            started: self.started(running),
            unhealthy: running && (self.hook == Hook::Failed || self.probes.given_up().is_some()),
            kill_at: self.kill_at,
            in_turn: self.in_turn,
            not_before: due.max(self.failure.as_ref().map(|it| it.not_before)),
        }
    }

    /// For the status. `again`: it will be started again.
    pub fn note(&self, newest: Option<&Attempt>, again: bool, now: Instant) -> Note {
        let running = newest.is_some_and(|attempt| attempt.running);
        let started = self.started(running);
        let backing_off = newest.filter(|attempt| !attempt.running && again);
        let backing_off = backing_off.and_then(|_| self.record.due()).filter(|due| *due > now);
        Note {
            waiting: self.failure.as_ref().map(|it| it.shown(now)),
            backing_off: backing_off.map(|_| self.record.delay()),
            started,
            ready: started && self.probes.ready(),
            messages: self.messages.clone(),
        }
    }

    /// It did not start. `later`: how it is shown once the failure is no news any more.
    pub fn fail(&mut self, waiting: Waiting, later: Option<Waiting>, patience: Patience, now: Instant) {
        let count = self.failure.as_ref().map_or(0, |it| it.count).saturating_add(1);
        let delay = match patience {
            Patience::Image => restart::restart_delay(count),
            Patience::Config => Duration::from_secs(1 << (count - 1).min(4)).min(LONGEST_CONFIG_DELAY),
        };
        self.failure = Some(Failure {
            waiting,
            later,
            since: now,
            not_before: now + delay,
            count,
        });
    }

    /// When what is shown changes by itself, or a probe is due if there are any now.
    pub fn next_change(&self, now: Instant, probes: bool) -> Option<Instant> {
        let turns = self
            .failure
            .as_ref()
            .filter(|it| it.later.is_some())
            .map(|it| it.since + FRESH);
        let turns = turns.filter(|at| *at > now);
        let probe = self.probes.next().filter(|_| probes && self.is_probed());
        [turns, probe].into_iter().flatten().min()
    }
}

impl Failure {
    fn shown(&self, now: Instant) -> Waiting {
        match &self.later {
            Some(later) if now >= self.since + FRESH => later.clone(),
            _ => self.waiting.clone(),
        }
    }
}

/// Whether a container that has ended so is started again while its pod lives.
pub fn again(role: Role, policy: RestartPolicy, code: i32) -> bool {
    match role {
        Role::Init => code != 0 && policy != RestartPolicy::Never,
        Role::Sidecar => true,
        Role::Main => restart::restarts(policy, code),
    }
}

/// The role of a container by its place among init containers, then containers.
pub fn role(pod: &Pod, index: usize) -> Role {
    match pod.spec.init_containers.get(index) {
        Some(it) if it.is_sidecar() => Role::Sidecar,
        Some(_) => Role::Init,
        None => Role::Main,
    }
}

/// A container that the runtime has no record of. After a reboot all is started again, but what must not run twice.
fn forgotten(role: Role, policy: RestartPolicy, before: Option<&ContainerStatus>) -> State {
    let ran = before.filter(|status| !status.container_id.is_empty());
    match (role, policy, ran) {
        (Role::Main, RestartPolicy::Never | RestartPolicy::OnFailure, Some(status)) => {
            let ended = status
                .state
                .terminated
                .as_ref()
                .or(status.last_state.terminated.as_ref());
            State::Exited {
                code: ended.map_or(137, |end| end.exit_code),
            }
        }
        _ => State::Absent,
    }
}

fn probes(it: &Container, newest: &Attempt, before: Option<&ContainerStatus>, now: Instant, wall: Timestamp) -> Probes {
    let ran = newest.started.map(|at| wall.duration_since(at).unsigned_abs());
    let began = ran.and_then(|ran| now.checked_sub(ran)).unwrap_or(now);
    let known = before.filter(|status| status.container_id == container_id(&newest.id));
    Probes::new(it, began, known.map(|status| (status.started, status.ready)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pod::{ContainerState, Terminated};

    #[test]
    fn what_must_not_run_twice_is_taken_for_ended_after_a_reboot() {
        use RestartPolicy::{Always, Never, OnFailure};
        let ran = |ended: Option<i32>| ContainerStatus {
            container_id: "amphipod://x".into(),
            state: ContainerState {
                terminated: ended.map(|exit_code| Terminated {
                    exit_code,
                    ..Terminated::default()
                }),
                ..ContainerState::default()
            },
            ..ContainerStatus::default()
        };
        for (role, policy, before, expected) in [
            (Role::Main, Always, Some(ran(None)), State::Absent),
            (Role::Main, Never, None, State::Absent),
            (Role::Main, Never, Some(ran(None)), State::Exited { code: 137 }),
            (Role::Main, OnFailure, Some(ran(Some(0))), State::Exited { code: 0 }),
            (Role::Init, Never, Some(ran(Some(0))), State::Absent),
        ] {
            assert_eq!(
                forgotten(role, policy, before.as_ref()),
                expected,
                "{role:?} {policy:?} {before:?}"
            );
        }
    }

    #[test]
    fn a_failure_is_news_first_and_back_off_after() {
        let now = Instant::now();
        let mut care = Care::default();
        let named = |reason: &str| Waiting {
            reason: reason.into(),
            message: String::new(),
        };
        for (count, delay) in [(1, 10), (2, 20), (3, 40)] {
            care.fail(
                named("ErrImagePull"),
                Some(named("ImagePullBackOff")),
                Patience::Image,
                now,
            );
            let failure = care.failure.as_ref().unwrap();
            assert_eq!(failure.not_before, now + Duration::from_secs(delay), "failure {count}");
            assert_eq!(failure.shown(now).reason, "ErrImagePull");
            assert_eq!(failure.shown(now + FRESH).reason, "ImagePullBackOff");
        }
        assert_eq!(care.next_change(now, true), Some(now + FRESH));
        assert_eq!(care.next_change(now + FRESH, true), None);
    }

    #[test]
    fn a_missing_object_is_asked_for_often() {
        let now = Instant::now();
        let mut care = Care::default();
        for delay in [1, 2, 4, 8, 15, 15] {
            care.fail(Waiting::default(), None, Patience::Config, now);
            assert_eq!(
                care.failure.as_ref().unwrap().not_before,
                now + Duration::from_secs(delay)
            );
        }
    }
}
