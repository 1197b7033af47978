//! One pod's life on this node: what to do next, given what is seen.
//!
//! Pure: [`Life::step`] decides, `worker.rs` acts and looks again; a failed action shows in the next observation. Level,
//! not edge: the same observation twice gives the same answer. Source of the order of init containers, sidecars and
//! restarts: Kubernetes v1.36, `pkg/kubelet/kuberuntime` `computePodActions`.

use std::time::{Duration, Instant};

use super::restart;
use crate::wire::pod::RestartPolicy;

/// One pod's life. `Stopping` leads to `Finished` or `Gone`, never back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Life {
    /// Starting or running.
    Live,
    /// Being terminated, killed at the deadline.
    Stopping {
        /// When patience ends.
        deadline: Instant,
    },
    /// Every container has ended for good; the object stays until somebody deletes it.
    Finished,
    /// Nothing is left here.
    Gone,
}

/// What is asked of the pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wanted {
    /// It shall run.
    Run,
    /// It is over (a deadline passed), but the object stays.
    End {
        /// How long its processes may take.
        grace: Duration,
    },
    /// It is being deleted, or is no longer in the API.
    Delete {
        /// How long its processes may take.
        grace: Duration,
    },
}

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Runs to completion before the next.
    Init,
    /// Init container with `restartPolicy: Always`.
    Sidecar,
    /// Ordinary container.
    Main,
}

/// A container's newest attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Never started here.
    Absent,
    /// Running.
    Running,
    /// Ended.
    Exited {
        /// Its exit code.
        code: i32,
    },
}

/// One container as observed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen {
    /// Its role.
    pub role: Role,
    /// Its newest attempt.
    pub state: State,
    /// Running, and the startup probe (if any) has passed.
    pub started: bool,
    /// A liveness or startup probe has given up on it: it is to be killed and (by policy) restarted.
    pub unhealthy: bool,
    /// When it is killed, if it was asked to end.
    pub kill_at: Option<Instant>,
    /// Asked to end, and told that its turn to get the signal has come.
    pub in_turn: bool,
    /// Not to be started before: back-off after an end, or after a failed start (image, config).
    pub not_before: Option<Instant>,
}

/// The pod as observed.
#[derive(Clone, Debug)]
pub struct PodSeen {
    /// What is asked.
    pub wanted: Wanted,
    /// Volumes, sandbox and network are there.
    pub sandbox: bool,
    /// Anything of the pod is left on the node: sandbox, network, volumes.
    pub remains: bool,
    /// Setting up failed: not again before.
    pub setup_not_before: Option<Instant>,
    /// Restart policy of the pod.
    pub policy: RestartPolicy,
    /// How long the sidecars of a pod that has completed may take. Source: Kubernetes v1.36, `pkg/kubelet/kuberuntime`
    /// `computePodActions`, which ends such a pod without a grace of its own.
    pub grace: Duration,
    /// Init containers in order, then the others.
    pub containers: Vec<Seen>,
}

/// What to do now; containers are named by their index in [`PodSeen::containers`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Volumes, sandbox, network.
    SetUp,
    /// Start the next attempt of a container.
    Start(usize),
    /// Ask one container to end: it is unhealthy, or the pod stops. Once more if it has less time than it was told. A sidecar of
    /// a pod that stops runs its hook, and gets its signal at its turn or when the time is up.
    End(usize),
    /// All that a sidecar serves have ended.
    Turn(usize),
    /// Kill one container: its time is up.
    Kill(usize),
    /// Remove sandbox and network and volumes.
    TearDown,
    /// Nothing is left: tell the API.
    Farewell,
}

/// Actions for now, and when to look again at the latest even if nothing happens.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// Look again then.
    pub wake: Option<Instant>,
}

impl Plan {
    fn only(action: Action) -> Self {
        Self {
            actions: vec![action],
            wake: None,
        }
    }

    fn wait_until(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
    }
}

/// How the containers of a live pod stand.
enum Standing {
    /// Some still run or will.
    Open(Plan),
    /// All have ended for good (sidecars may still run).
    Over,
}

impl Life {
    /// The next state, and what to do.
    pub fn step(self, seen: &PodSeen, now: Instant) -> (Self, Plan) {
        match (self, seen.wanted) {
            (Self::Live, Wanted::Run) => live(seen, now),
            (Self::Live, Wanted::End { grace } | Wanted::Delete { grace }) => stopping(seen, now + grace, true, now),
            (Self::Stopping { deadline }, wanted) => {
                // A later delete may only shorten the time that is left.
                let left = match wanted {
                    Wanted::Delete { grace } | Wanted::End { grace } => deadline.min(now + grace),
                    Wanted::Run => deadline,
                };
                stopping(seen, left, left < deadline, now)
            }
            (Self::Finished, Wanted::Delete { .. }) if !seen.remains => (Self::Gone, Plan::only(Action::Farewell)),
            (Self::Finished, _) if seen.remains => (self, Plan::only(Action::TearDown)),
            (Self::Finished | Self::Gone, _) => (self, Plan::default()),
        }
    }
}

fn live(seen: &PodSeen, now: Instant) -> (Life, Plan) {
    match containers(seen, now) {
        Standing::Over => stopping(seen, now + seen.grace, true, now),
        Standing::Open(plan) if seen.sandbox => (Life::Live, plan),
        Standing::Open(_) => (Life::Live, set_up(seen, now)),
    }
}

fn set_up(seen: &PodSeen, now: Instant) -> Plan {
    match seen.setup_not_before {
        Some(at) if at > now => Plan {
            actions: vec![],
            wake: Some(at),
        },
        _ => Plan::only(Action::SetUp),
    }
}

fn any_running(seen: &PodSeen) -> bool {
    seen.containers
        .iter()
        .any(|container| container.state == State::Running)
}

/// `news`: the containers do not know of this deadline yet.
fn stopping(seen: &PodSeen, deadline: Instant, news: bool, now: Instant) -> (Life, Plan) {
    let same = Life::Stopping { deadline };
    match (any_running(seen), seen.remains, seen.wanted) {
        (true, _, _) => (same, end(seen, news, now)),
        (false, true, _) => (same, Plan::only(Action::TearDown)),
        (false, false, Wanted::Delete { .. }) => (Life::Gone, Plan::only(Action::Farewell)),
        (false, false, Wanted::Run | Wanted::End { .. }) => (Life::Finished, Plan::default()),
    }
}

/// Asks all that run to end; each is killed when its own time is up, which is later than the deadline for one that got its
/// signal just before it. The turn of a sidecar has come once none that was started after it runs.
///
/// Source: Kubernetes v1.36, `pkg/kubelet/kuberuntime` `killContainer`, `newTerminationOrdering`.
fn end(seen: &PodSeen, news: bool, now: Instant) -> Plan {
    let mut plan = Plan::default();
    let mut later_run = false;
    for (index, it) in seen.containers.iter().enumerate().rev() {
        if it.state != State::Running {
            continue;
        }
        match it.kill_at {
            Some(at) if now >= at => {
                plan.actions.push(Action::Kill(index));
                plan.wait_until(now + KILL_RETRY);
            }
            Some(at) if !news => {
                if it.role == Role::Sidecar && !it.in_turn && !later_run {
                    plan.actions.push(Action::Turn(index));
                }
                plan.wait_until(at);
            }
            None | Some(_) => plan.actions.push(Action::End(index)),
        }
        later_run = true;
    }
    plan
}

/// A process in uninterruptible sleep takes its time; asking again is cheap.
const KILL_RETRY: Duration = Duration::from_secs(2);

fn containers(seen: &PodSeen, now: Instant) -> Standing {
    let mut plan = Plan::default();
    let mut open = false;
    // Once a main container has been started, initialisation is history and is not repeated in this sandbox.
    let initialised = |container: &Seen| container.role == Role::Main && container.state != State::Absent;
    let skip_init = seen.containers.iter().any(initialised);
    for (index, container) in seen.containers.iter().enumerate() {
        match (container.role, container.state) {
            (Role::Init, _) if skip_init => {}
            (Role::Init, State::Exited { code: 0 }) => {}
            (Role::Init, State::Exited { .. }) if seen.policy == RestartPolicy::Never => return Standing::Over,
            (Role::Init, _) => {
                tend(index, container, &mut plan, now);
                return Standing::Open(plan);
            }
            (Role::Sidecar, _) => {
                tend(index, container, &mut plan, now);
                if !container.started && !skip_init {
                    return Standing::Open(plan);
                }
            }
            (Role::Main, State::Exited { code }) if !restart::restarts(seen.policy, code) => {}
            (Role::Main, _) => {
                open = true;
                tend(index, container, &mut plan, now);
            }
        }
    }
    if open { Standing::Open(plan) } else { Standing::Over }
}

/// Starts, ends or kills one container that shall run.
fn tend(index: usize, container: &Seen, plan: &mut Plan, now: Instant) {
    match container.state {
        State::Running => match (container.unhealthy, container.kill_at) {
            (_, Some(at)) if now >= at => {
                plan.actions.push(Action::Kill(index));
                plan.wait_until(now + KILL_RETRY);
            }
            (_, Some(at)) => plan.wait_until(at),
            (true, None) => plan.actions.push(Action::End(index)),
            (false, None) => {}
        },
        State::Absent | State::Exited { .. } => match container.not_before {
            Some(at) if at > now => plan.wait_until(at),
            _ => plan.actions.push(Action::Start(index)),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn container(role: Role, state: State) -> Seen {
        let started = state == State::Running;
        Seen {
            role,
            state,
            started,
            unhealthy: false,
            kill_at: None,
            in_turn: false,
            not_before: None,
        }
    }

    fn seen(wanted: Wanted, policy: RestartPolicy, containers: Vec<Seen>) -> PodSeen {
        PodSeen {
            wanted,
            sandbox: true,
            remains: true,
            setup_not_before: None,
            policy,
            grace: Duration::from_secs(30),
            containers,
        }
    }

    const DELETE: Wanted = Wanted::Delete {
        grace: Duration::from_secs(30),
    };

    #[test]
    fn containers_start_in_the_order_of_their_roles() {
        use Role::{Init, Main, Sidecar};
        use State::{Absent, Exited, Running};
        let (done, bad) = (Exited { code: 0 }, Exited { code: 1 });
        type Case<'a> = (&'a [(Role, State)], &'a [usize]);
        let cases: &[Case<'_>] = &[
            (&[(Init, Absent), (Init, Absent), (Main, Absent)], &[0]),
            (&[(Init, Running), (Init, Absent), (Main, Absent)], &[]),
            (&[(Init, done), (Init, Absent), (Main, Absent)], &[1]),
            (&[(Init, bad), (Init, Absent), (Main, Absent)], &[0]),
            (&[(Init, done), (Init, done), (Main, Absent), (Main, Absent)], &[2, 3]),
            (&[(Sidecar, Absent), (Main, Absent)], &[0]),
            (&[(Sidecar, Running), (Main, Absent)], &[1]),
            (&[(Sidecar, bad), (Main, Running)], &[0]),
            (&[(Init, Absent), (Main, Running)], &[]),
            (&[(Main, done), (Main, Running)], &[0]),
        ];
        for (states, starts) in cases {
            let all = states.iter().map(|&(role, state)| container(role, state)).collect();
            let (life, plan) = Life::Live.step(&seen(Wanted::Run, RestartPolicy::Always, all), Instant::now());
            let expected: Vec<Action> = starts.iter().map(|&index| Action::Start(index)).collect();
            assert_eq!((life, plan.actions), (Life::Live, expected), "{states:?}");
        }
    }

    #[test]
    fn a_pod_without_a_sandbox_is_set_up_first_and_not_too_often() {
        let now = Instant::now();
        let mut it = seen(
            Wanted::Run,
            RestartPolicy::Always,
            vec![container(Role::Main, State::Absent)],
        );
        it.sandbox = false;
        assert_eq!(Life::Live.step(&it, now).1, Plan::only(Action::SetUp));
        let later = now + Duration::from_secs(5);
        it.setup_not_before = Some(later);
        assert_eq!(
            Life::Live.step(&it, now).1,
            Plan {
                actions: vec![],
                wake: Some(later)
            }
        );
    }

    #[test]
    fn a_completed_pod_ends_its_sidecars_and_stays_as_an_object() {
        let now = Instant::now();
        let containers = vec![
            container(Role::Sidecar, State::Running),
            container(Role::Main, State::Exited { code: 0 }),
        ];
        let mut it = seen(Wanted::Run, RestartPolicy::OnFailure, containers);
        let (life, plan) = Life::Live.step(&it, now);
        assert!(matches!(life, Life::Stopping { .. }), "{life:?}");
        assert_eq!(plan.actions, [Action::End(0)]);
        it.containers[0] = container(Role::Sidecar, State::Exited { code: 0 });
        let (life, plan) = life.step(&it, now);
        assert_eq!(plan.actions, [Action::TearDown]);
        it.remains = false;
        let (life, _) = life.step(&it, now);
        assert_eq!(life, Life::Finished);
        it.wanted = DELETE;
        assert_eq!(life.step(&it, now), (Life::Gone, Plan::only(Action::Farewell)));
    }

    #[test]
    fn a_deletion_asks_waits_kills_and_says_farewell() {
        let now = Instant::now();
        let mut it = seen(
            DELETE,
            RestartPolicy::Always,
            vec![container(Role::Main, State::Running)],
        );
        let (life, plan) = Life::Live.step(&it, now);
        assert_eq!(plan.actions, [Action::End(0)]);
        it.containers[0].kill_at = Some(now + Duration::from_secs(30));
        let (life, plan) = life.step(&it, now + Duration::from_secs(1));
        assert_eq!(plan.actions, []);
        let (life, plan) = life.step(&it, now + Duration::from_secs(30));
        assert_eq!(plan.actions, [Action::Kill(0)]);
        it.containers[0].state = State::Exited { code: 137 };
        let (life, plan) = life.step(&it, now + Duration::from_secs(31));
        assert_eq!(plan.actions, [Action::TearDown]);
        it.remains = false;
        assert_eq!(life.step(&it, now), (Life::Gone, Plan::only(Action::Farewell)));
    }

    #[test]
    fn a_pod_of_which_nothing_runs_is_taken_away_without_a_wait() {
        let now = Instant::now();
        for wanted in [
            DELETE,
            Wanted::End {
                grace: Duration::from_secs(30),
            },
        ] {
            let it = seen(
                wanted,
                RestartPolicy::Always,
                vec![container(Role::Main, State::Absent)],
            );
            let (life, plan) = Life::Live.step(&it, now);
            assert!(matches!(life, Life::Stopping { .. }), "{life:?}");
            assert_eq!(plan.actions, [Action::TearDown], "{wanted:?}");
        }
        let done = vec![container(Role::Main, State::Exited { code: 0 })];
        let it = seen(Wanted::Run, RestartPolicy::Never, done);
        assert_eq!(Life::Live.step(&it, now).1.actions, [Action::TearDown]);
    }

    #[test]
    fn sidecars_have_their_turn_after_the_containers_they_serve_the_last_first() {
        let now = Instant::now();
        let containers = vec![
            container(Role::Sidecar, State::Running),
            container(Role::Sidecar, State::Running),
            container(Role::Main, State::Running),
        ];
        let mut it = seen(DELETE, RestartPolicy::Always, containers);
        let (life, plan) = Life::Live.step(&it, now);
        assert_eq!(plan.actions, [Action::End(2), Action::End(1), Action::End(0)]);
        for container in &mut it.containers {
            container.kill_at = Some(now + Duration::from_secs(32));
        }
        assert_eq!(life.step(&it, now).1.actions, []);
        for (ended, turn) in [(2, Some(1)), (1, Some(0)), (0, None)] {
            it.containers[ended].state = State::Exited { code: 0 };
            let Some(next) = turn else { continue };
            assert_eq!(life.step(&it, now).1.actions, [Action::Turn(next)]);
            it.containers[next].in_turn = true;
            assert_eq!(life.step(&it, now).1.actions, [], "told once");
        }
    }

    #[test]
    fn a_second_delete_shortens_the_grace_and_never_lengthens_it() {
        let now = Instant::now();
        let stopping = Life::Stopping {
            deadline: now + Duration::from_secs(30),
        };
        for (grace, expected) in [(0, 0), (5, 5), (300, 30)] {
            let wanted = Wanted::Delete {
                grace: Duration::from_secs(grace),
            };
            let mut it = seen(
                wanted,
                RestartPolicy::Always,
                vec![container(Role::Main, State::Running)],
            );
            it.containers[0].kill_at = Some(now + Duration::from_secs(30));
            let deadline = now + Duration::from_secs(expected);
            let (life, plan) = stopping.step(&it, now);
            assert_eq!(life, Life::Stopping { deadline }, "grace {grace}");
            let told: &[Action] = if expected < 30 { &[Action::End(0)] } else { &[] };
            assert_eq!(plan.actions, told, "grace {grace}");
            assert_eq!(life.step(&it, now).1.actions, [], "once");
        }
    }

    #[test]
    fn an_unhealthy_container_is_asked_then_killed() {
        let now = Instant::now();
        let mut it = seen(
            Wanted::Run,
            RestartPolicy::Always,
            vec![container(Role::Main, State::Running)],
        );
        it.containers[0].unhealthy = true;
        assert_eq!(Life::Live.step(&it, now).1.actions, [Action::End(0)]);
        it.containers[0].kill_at = Some(now + Duration::from_secs(30));
        assert_eq!(Life::Live.step(&it, now).1.actions, []);
        assert_eq!(
            Life::Live.step(&it, now + Duration::from_secs(30)).1.actions,
            [Action::Kill(0)]
        );
    }

    fn any_container() -> impl Strategy<Value = Seen> {
        let role = prop_oneof![Just(Role::Init), Just(Role::Sidecar), Just(Role::Main)];
        let state = prop_oneof![
            Just(State::Absent),
            Just(State::Running),
            (0..3i32).prop_map(|code| State::Exited { code })
        ];
        (role, state, any::<bool>(), any::<bool>()).prop_map(|(role, state, started, unhealthy)| Seen {
            role,
            state,
            started: started && state == State::Running,
            unhealthy,
            kill_at: None,
            in_turn: false,
            not_before: None,
        })
    }

    fn any_seen() -> impl Strategy<Value = PodSeen> {
        let wanted = prop_oneof![
            Just(Wanted::Run),
            Just(DELETE),
            Just(Wanted::End {
                grace: Duration::from_secs(1)
            })
        ];
        let policy = prop_oneof![
            Just(RestartPolicy::Always),
            Just(RestartPolicy::OnFailure),
            Just(RestartPolicy::Never)
        ];
        (wanted, any::<bool>(), any::<bool>(), policy, vec(any_container(), 1..5)).prop_map(
            |(wanted, sandbox, remains, policy, containers)| PodSeen {
                wanted,
                sandbox,
                remains: remains || sandbox,
                setup_not_before: None,
                policy,
                grace: Duration::from_secs(30),
                containers,
            },
        )
    }

    fn starts(plan: &Plan) -> bool {
        plan.actions
            .iter()
            .any(|action| matches!(action, Action::Start(_) | Action::SetUp))
    }

    proptest! {
        #[test]
        fn a_pod_once_stopping_never_runs_again(history in vec(any_seen(), 0..50)) {
            let now = Instant::now();
            let mut life = Life::Stopping { deadline: now };
            for seen in &history {
                let (next, plan) = life.step(seen, now);
                prop_assert!(!starts(&plan), "{plan:?}");
                prop_assert_ne!(next, Life::Live);
                life = next;
            }
        }

        #[test]
        fn restarts_never_exceed_policy(seen in any_seen()) {
            let (_, plan) = Life::Live.step(&seen, Instant::now());
            for action in plan.actions {
                let Action::Start(index) = action else { continue };
                let container = &seen.containers[index];
                if let (Role::Main | Role::Init, State::Exited { code }) = (container.role, container.state) {
                    prop_assert!(restart::restarts(seen.policy, code) || container.role == Role::Init && code != 0
                        && seen.policy != RestartPolicy::Never);
                }
                prop_assert_ne!(container.state, State::Running);
            }
        }
    }
}
