//! One pod's worker: looks, lets `pod.rs` decide, acts, reports, waits. One task per pod, joined by `pods.rs`.
//!
//! Everything it knows beside the runtime's records is in [`Worker`]; after a restart of the agent it is built again from
//! what is so. Nothing here waits for a server longer than one request. `care.rs` remembers containers, `setup.rs` makes
//! and removes what they need, `start.rs` and `end.rs` begin and end them.

mod care;
mod end;
mod setup;
mod start;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep_until;

use self::care::{Care, Hook, again, role};
use self::setup::SetUp;
use super::act::{Target, act};
use super::clock;
use super::event::About;
use super::host::Host;
use super::objects::Objects;
use super::pod::{Action, Life, PodSeen, Wanted};
use super::ports::Attempt;
use super::probe::Kind;
use super::status::{self, Facts, Note, newest};
use super::translate::log_dir;
use super::volume::token::Tokens;
use crate::runtime::PodState;
use crate::wire::pod::{Container, Pod, PodStatus};
use crate::wire::time;

/// What is asked of a pod.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The pod as the API last had it.
    pub pod: Arc<Pod>,
    /// The API does not have it any more.
    pub gone: bool,
    /// It is from the disk: the API has not been heard yet, and may know better how the pod was.
    pub kept: bool,
}

/// Looks at the runtime after this, even if it has not called.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// After the runtime failed to answer or to clean up.
const RETRY: Duration = Duration::from_secs(2);
/// Kubernetes' default.
const DEFAULT_GRACE: i64 = 30;
/// What a pod that is given no time gets. Source: Kubernetes v1.36, `pkg/kubelet/pod_workers.go` `calculateEffectiveGracePeriod`.
const SHORTEST_GRACE: Duration = Duration::from_secs(1);

/// What a task of a worker came back with.
enum Done {
    /// A probe of an attempt.
    Probe(String, u32, Kind, Result<(), String>),
    /// A `postStart` hook of an attempt.
    Hook(String, u32, Result<(), String>),
    /// An attempt has the signal to end, and so much time to heed it.
    Told(String, u32, Instant),
    /// Volumes are up to date, or not.
    Refreshed(Box<(Objects, Tokens)>),
    /// Nothing to hear: the next look shows it.
    Nothing,
}

enum Turn {
    /// Something was done: look again.
    Again,
    /// Wait until then at the latest.
    Wait(Instant),
    /// The pod is gone.
    Over,
}

/// Runs a pod to its end. Returns once nothing of it is left on the node.
pub async fn work(host: Arc<Host>, mut desired: watch::Receiver<Desired>, nudge: Arc<Notify>) {
    let first = desired.borrow_and_update().clone();
    let latest = desired.clone();
    let mut network = host.network.clone();
    let mut worker = Worker::new(host, first, latest, clock::now(), Timestamp::now());
    loop {
        let wake = match worker.turn(clock::now()).await {
            Turn::Again => clock::now(),
            Turn::Wait(at) => at,
            Turn::Over => return,
        };
        tokio::select! {
            changed = desired.changed() => match changed {
                Ok(()) => worker.want(desired.borrow_and_update().clone()),
                Err(_) => return, // the kubelet stops; the pod goes on
            },
            () = nudge.notified() => {}
            Some(done) = worker.background.join_next() => worker.hear(done, clock::now()),
            Ok(()) = network.changed() => worker.setup.forgive(),
            () = sleep_until(wake.into()) => {}
        }
    }
}

/// As whole seconds, and not none at all.
fn grace(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).max(SHORTEST_GRACE)
}

struct Worker {
    host: Arc<Host>,
    pod: Arc<Pod>,
    /// As the API has it now, also where that is no reason to look.
    latest: watch::Receiver<Desired>,
    gone: bool,
    kept: bool,
    life: Life,
    cares: BTreeMap<String, Care>,
    /// As last computed.
    status: PodStatus,
    reported: bool,
    setup: SetUp,
    objects: Objects,
    tokens: Tokens,
    /// When it came to this node.
    came: Instant,
    /// When it began, for `activeDeadlineSeconds`.
    began: Instant,
    past_deadline: bool,
    background: JoinSet<Done>,
}

impl Worker {
    fn new(host: Arc<Host>, desired: Desired, latest: watch::Receiver<Desired>, now: Instant, wall: Timestamp) -> Self {
        let status = desired.pod.status.clone();
        let start = status.start_time.as_deref().and_then(time::parse);
        let age = start.map_or(Duration::ZERO, |at| wall.duration_since(at).unsigned_abs());
        Self {
            host,
            gone: desired.gone,
            kept: desired.kept,
            // Also one that is over: it may have been declared so while the agent was away, and its processes run on.
            life: Life::Live,
            pod: desired.pod,
            latest,
            cares: BTreeMap::new(),
            status,
            reported: false,
            setup: SetUp::default(),
            objects: Objects::default(),
            tokens: Tokens::default(),
            came: now,
            began: now.checked_sub(age).unwrap_or(now),
            past_deadline: false,
            background: JoinSet::new(),
        }
    }

    fn want(&mut self, desired: Desired) {
        if self.kept && !desired.kept && !desired.gone {
            self.recall(&desired.pod);
        }
        self.kept = desired.kept;
        self.pod = desired.pod;
        self.gone = desired.gone;
    }

    /// Takes over what the API remembers: an agent that has started again must not say that what was in service is not.
    fn recall(&mut self, pod: &Pod) {
        self.status = pod.status.clone();
        self.reported = false;
        for care in self.cares.values_mut().filter(|care| care.kill_at.is_none()) {
            care.attempt = None; // looked at anew, with this status before its eyes
        }
    }

    /// Looks and acts once.
    async fn turn(&mut self, now: Instant) -> Turn {
        let state = match self.host.containers.pod(&self.pod.meta.uid).await {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(pod = %self.pod.key(), %error, "the runtime does not say how the pod is");
                return Turn::Wait(now + RETRY);
            }
        };
        let attempts = self.attempts(state.as_ref());
        self.read_messages(&attempts).await;
        let wall = Timestamp::now();
        self.observe(&attempts, now, wall);
        let seen = self.seen(state.as_ref(), &attempts, now);
        let (life, plan) = self.life.step(&seen, now);
        self.life = life;
        self.report(&attempts, now, wall);
        let mut acted = false;
        for action in &plan.actions {
            acted |= match *action {
                Action::SetUp => self.set_up(state.as_ref(), now).await,
                Action::Start(index) => self.start(index, &attempts, now).await,
                Action::End(index) => self.end(index, &attempts, now),
                Action::Turn(index) => self.turn_has_come(index),
                Action::Kill(index) => self.kill(index).await,
                Action::TearDown => self.tear_down(now).await,
                Action::Farewell => {
                    self.say_farewell().await;
                    return Turn::Over;
                }
            };
        }
        if acted {
            return Turn::Again;
        }
        self.probe(now);
        self.refresh_volumes(now);
        Turn::Wait(self.next_look(plan.wake, now))
    }

    /// The runtime's records, and attempts that it refused.
    fn attempts(&self, state: Option<&PodState>) -> Vec<Attempt> {
        let mut all = state.map(Attempt::all).unwrap_or_default();
        for refused in self.cares.values().filter_map(|care| care.refused.as_ref()) {
            let known = newest(&all, &refused.container);
            if known.is_none_or(|known| known.attempt < refused.attempt) {
                all.push(refused.clone());
            }
        }
        all
    }

    fn observe(&mut self, attempts: &[Attempt], now: Instant, wall: Timestamp) {
        for it in self.pod.all_containers() {
            let care = self.cares.entry(it.name.clone()).or_default();
            let newest = newest(attempts, &it.name);
            care.observe(it, newest, self.status.container(&it.name), now, wall);
        }
        let limit = self.pod.spec.active_deadline_seconds;
        let limit = limit.and_then(|it| u64::try_from(it).ok()).map(Duration::from_secs);
        let lives = self.life == Life::Live && !self.pod.is_terminal();
        self.past_deadline |= lives && limit.is_some_and(|limit| now >= self.began + limit);
    }

    fn wanted(&self) -> Wanted {
        match () {
            () if self.gone || self.pod.meta.deletion_timestamp.is_some() => Wanted::Delete {
                grace: grace(self.asked_grace()),
            },
            // Whoever says that a pod is over (one that cleans up after lost nodes) means its processes too.
            () if self.past_deadline || self.pod.is_terminal() => Wanted::End {
                grace: grace(self.own_grace()),
            },
            () => Wanted::Run,
        }
    }

    /// What who deletes the pod gives it, in seconds, else what is its own.
    fn asked_grace(&self) -> i64 {
        let asked = self.pod.meta.deletion_grace_period_seconds;
        asked.unwrap_or_else(|| self.own_grace())
    }

    /// What the pod itself says that its containers need to end, in seconds.
    fn own_grace(&self) -> i64 {
        self.pod.spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE)
    }

    fn seen(&mut self, state: Option<&PodState>, attempts: &[Attempt], now: Instant) -> PodSeen {
        let alive = state.is_some_and(|state| state.shim_alive);
        self.setup.look(alive);
        let policy = self.pod.spec.restart_policy;
        let containers = self.pod.all_containers().enumerate().map(|(index, it)| {
            let care = self.cares.get(&it.name).cloned().unwrap_or_default();
            let before = self.status.container(&it.name);
            care.seen(role(&self.pod, index), policy, newest(attempts, &it.name), before)
        });
        PodSeen {
            wanted: self.wanted(),
            sandbox: self.setup.done,
            remains: self.setup.remains,
            setup_not_before: self.setup.not_before.filter(|at| *at > now),
            policy,
            grace: grace(self.own_grace()),
            containers: containers.collect(),
        }
    }

    fn is_over(&self, attempts: &[Attempt]) -> bool {
        !matches!(self.life, Life::Live) && !attempts.iter().any(|attempt| attempt.running)
    }

    /// The pod's own address.
    fn ip(&self) -> Option<IpAddr> {
        if self.pod.spec.host_network {
            return self.host.settings.main_ip();
        }
        self.setup.ip
    }

    fn report(&mut self, attempts: &[Attempt], now: Instant, wall: Timestamp) {
        let over = self.is_over(attempts);
        let notes = self.notes(attempts, now);
        // What stands since before this run of the agent has kept its address, whatever holds its set-up up.
        let remembered: Option<IpAddr> = self.status.pod_ip.parse().ok().filter(|_| over || self.setup.standing);
        let facts = Facts {
            pod: &self.pod,
            attempts,
            notes: &notes,
            sandbox: self.setup.done || (self.setup.standing && remembered.is_some()),
            pod_ip: self.ip().or(remembered),
            host_ip: self.host.settings.main_ip(),
            ended: self.past_deadline.then_some((
                "DeadlineExceeded",
                "Pod was active on the node longer than the specified deadline",
            )),
            over,
        };
        let status = status::compute(&facts, &self.status, wall);
        if self.reported && status == self.status {
            return;
        }
        self.status = status;
        self.reported = true;
        self.host.roll.report(&self.pod.meta.uid, &self.status);
        if !self.gone && !self.kept {
            self.host.reports.report(&self.pod, &self.status);
            // The reporter hears only of pods that it has in its book, and this one may have been changed before it was.
            let latest = self.latest.borrow().clone();
            if !latest.kept {
                self.host.reports.heard(&latest.pod);
            }
        }
    }

    fn notes(&mut self, attempts: &[Attempt], now: Instant) -> BTreeMap<String, Note> {
        let (pod, live) = (self.pod.clone(), self.life == Life::Live);
        let mut notes = BTreeMap::new();
        for (index, it) in pod.all_containers().enumerate() {
            let newest = newest(attempts, &it.name);
            let code = newest.map_or(0, |attempt| attempt.exit_code);
            let again = live && again(role(&pod, index), pod.spec.restart_policy, code);
            let Some(care) = self.cares.get_mut(&it.name) else {
                continue;
            };
            let note = care.note(newest, again, now);
            if note.backing_off.is_some() && care.announced != care.attempt {
                care.announced = care.attempt;
                let (name, namespace, uid) = (&pod.meta.name, &pod.meta.namespace, &pod.meta.uid);
                let text = format!(
                    "Back-off restarting failed container {} in pod {name}_{namespace}({uid})",
                    it.name
                );
                self.host.events.warning(About::container(&pod, it), "BackOff", text);
            }
            notes.insert(it.name.clone(), note);
        }
        notes
    }

    /// A pod that is not set up has no address to ask at: that is no fault of its containers.
    fn probes_at_all(&self) -> bool {
        self.life == Life::Live && self.setup.done
    }

    /// Sends off the probes that are due.
    fn probe(&mut self, now: Instant) {
        if !self.probes_at_all() {
            return;
        }
        let pod = self.pod.clone();
        for it in pod.all_containers() {
            let target = self.target(&it.name);
            let Some(care) = self.cares.get_mut(&it.name).filter(|care| care.is_probed()) else {
                continue;
            };
            let Some(attempt) = care.attempt else { continue };
            for due in care.probes.due(now) {
                let target = target.clone();
                self.background.spawn(async move {
                    let result = act(&target, &due.handler, due.timeout).await;
                    Done::Probe(target.container, attempt, due.kind, result)
                });
            }
        }
    }

    fn target(&self, container: &str) -> Target {
        Target {
            containers: self.host.containers.clone(),
            pod: self.pod.clone(),
            container: container.into(),
            ip: self.ip(),
        }
    }

    fn container(&self, name: &str) -> Option<&Container> {
        self.pod.all_containers().find(|it| it.name == name)
    }

    fn hear(&mut self, done: Result<Done, JoinError>, now: Instant) {
        match done {
            Ok(Done::Probe(name, attempt, kind, result)) => self.hear_probe(&name, attempt, kind, result, now),
            Ok(Done::Hook(name, attempt, result)) => self.hear_hook(&name, attempt, result),
            Ok(Done::Told(name, attempt, until)) => self.told(&name, attempt, until, now),
            Ok(Done::Refreshed(refreshed)) => self.refreshed(refreshed.0, refreshed.1),
            Ok(Done::Nothing) => {}
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(pod = %self.pod.key(), %error, "a task of a pod has failed"),
        }
    }

    fn hear_probe(&mut self, name: &str, attempt: u32, kind: Kind, result: Result<(), String>, now: Instant) {
        let Some(care) = self.cares.get_mut(name).filter(|care| care.attempt == Some(attempt)) else {
            return;
        };
        care.probes.observe(kind, result.is_ok(), now);
        if let (Err(why), Some(it)) = (result, self.container(name)) {
            let text = format!("{} probe failed: {why}", kind.name());
            self.host
                .events
                .warning(About::container(&self.pod, it), "Unhealthy", text);
        }
    }

    /// A hook may end before the attempt that it belongs to has been looked at: only what was sent off counts.
    fn hear_hook(&mut self, name: &str, attempt: u32, result: Result<(), String>) {
        let flying = Hook::Flying(attempt);
        let Some(care) = self.cares.get_mut(name).filter(|care| care.hook == flying) else {
            return;
        };
        care.hook = if result.is_ok() { Hook::Done } else { Hook::Failed };
        if let (Err(why), Some(it)) = (result, self.container(name)) {
            let text = format!("PostStartHook failed: {why}");
            self.host
                .events
                .warning(About::container(&self.pod, it), "FailedPostStartHook", text);
        }
    }

    fn next_look(&self, planned: Option<Instant>, now: Instant) -> Instant {
        let deadline = match self.life {
            Life::Live => self.pod.spec.active_deadline_seconds,
            Life::Stopping { .. } | Life::Finished | Life::Gone => None,
        };
        let deadline = deadline
            .and_then(|it| u64::try_from(it).ok())
            .map(|it| self.began + Duration::from_secs(it));
        let probes = self.probes_at_all();
        let cares = self.cares.values().filter_map(|care| care.next_change(now, probes));
        let others = [
            planned,
            deadline.filter(|at| *at > now),
            self.setup.next(self.life == Life::Live, now),
        ];
        let soonest = cares.chain(others.into_iter().flatten()).min();
        soonest.map_or(now + LOOK_AGAIN, |at| at.min(now + LOOK_AGAIN))
    }

    async fn say_farewell(&mut self) {
        let meta = &self.pod.meta;
        let logs = log_dir(&self.host.settings.logs, &meta.namespace, &meta.name, &meta.uid);
        if let Err(error) = super::disk::remove_folder(&logs).await {
            tracing::warn!(pod = %self.pod.key(), %error, "the logs of a pod that has gone stay");
        }
        self.host.keeper.forget(self.host.kept_objects(&meta.uid));
        self.host.keeper.forget(self.host.kept_pods().join(&meta.uid));
        if self.gone {
            self.host.reports.forget(&meta.uid);
        } else {
            self.host.reports.finish(&self.pod);
        }
        tracing::info!(pod = %self.pod.key(), "nothing of the pod is left here");
    }
}
