//! Probes: when one is due and what a row of results means. Pure; `act.rs` carries them out.
//!
//! Source: Kubernetes v1.36, `pkg/kubelet/prober/worker.go`.

use std::time::{Duration, Instant};

use crate::wire::pod::{Container, Handler, Probe};

/// What a probe is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Holds the others back until it passes once.
    Startup,
    /// Restarts the container when it fails.
    Liveness,
    /// Takes the container out of service while it fails.
    Readiness,
}

impl Kind {
    /// As events have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// One probe of one attempt of a container.
#[derive(Clone, Debug)]
pub struct Tracker {
    /// What it is for.
    pub kind: Kind,
    /// What it does.
    pub handler: Handler,
    /// How long it may take.
    pub timeout: Duration,
    /// Seconds for the container to end when this probe has given up on it.
    pub grace: Option<Duration>,
    period: Duration,
    passes: u32,
    failures: u32,
    row: (bool, u32),
    /// What the last row that was long enough said.
    verdict: Option<bool>,
    next: Instant,
    flying: bool,
}

impl Tracker {
    /// `began`: when the container started. Zeros in the probe are Kubernetes' defaults.
    fn new(kind: Kind, probe: &Probe, began: Instant) -> Self {
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let seconds = |value: u32| Duration::from_secs(u64::from(value));
        let grace = probe.termination_grace_period_seconds;
        Self {
            kind,
            handler: probe.handler.clone(),
            timeout: seconds(or(probe.timeout_seconds, 1)),
            grace: grace.and_then(|it| u64::try_from(it).ok()).map(Duration::from_secs),
            period: seconds(or(probe.period_seconds, 10)),
            passes: or(probe.success_threshold, 1),
            failures: or(probe.failure_threshold, 3),
            row: (true, 0),
            verdict: None,
            next: began + seconds(probe.initial_delay_seconds),
            flying: false,
        }
    }

    /// A result has come.
    pub fn observe(&mut self, passed: bool, now: Instant) {
        self.flying = false;
        self.next = self.next.max(now); // a slow probe is not made up for
        let length = if self.row.0 == passed {
            self.row.1.saturating_add(1)
        } else {
            1
        };
        self.row = (passed, length);
        if length >= if passed { self.passes } else { self.failures } {
            self.verdict = Some(passed);
        }
    }
}

/// All probes of one attempt of a container.
#[derive(Clone, Debug, Default)]
pub struct Probes(Vec<Tracker>);

impl Probes {
    /// Those of a container that began at `began`. `known`: what an earlier run of this process reported of the same
    /// attempt (started, ready), so that a restart of ours takes nothing out of service.
    pub fn new(container: &Container, began: Instant, known: Option<(bool, bool)>) -> Self {
        let mut all = Vec::new();
        for (kind, probe) in [
            (Kind::Startup, &container.startup_probe),
            (Kind::Liveness, &container.liveness_probe),
            (Kind::Readiness, &container.readiness_probe),
        ] {
            let Some(probe) = probe else { continue };
            let mut tracker = Tracker::new(kind, probe, began);
            tracker.verdict = match (kind, known) {
                (Kind::Startup, Some((true, _))) | (Kind::Readiness, Some((_, true))) => Some(true),
                _ => None,
            };
            all.push(tracker);
        }
        Self(all)
    }

    fn verdict(&self, kind: Kind) -> Option<Option<bool>> {
        self.0.iter().find(|it| it.kind == kind).map(|it| it.verdict)
    }

    /// The startup probe has passed, or there is none.
    pub fn started(&self) -> bool {
        self.verdict(Kind::Startup).is_none_or(|verdict| verdict == Some(true))
    }

    /// In service, as far as probes say.
    pub fn ready(&self) -> bool {
        self.started()
            && self
                .verdict(Kind::Readiness)
                .is_none_or(|verdict| verdict == Some(true))
    }

    /// The probe that has given up on the container.
    pub fn given_up(&self) -> Option<&Tracker> {
        let fatal = |it: &&Tracker| it.kind != Kind::Readiness && it.verdict == Some(false);
        self.0.iter().find(fatal)
    }

    /// Those to carry out now; they count as on their way until [`Probes::observe`].
    pub fn due(&mut self, now: Instant) -> Vec<Tracker> {
        let started = self.started();
        let mut due = Vec::new();
        for it in self.0.iter_mut().filter(|it| it.active(started)) {
            if it.next <= now && !it.flying {
                it.flying = true;
                it.next = now + it.period;
                due.push(it.clone());
            }
        }
        due
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        let started = self.started();
        let waiting = self.0.iter().filter(|it| it.active(started) && !it.flying);
        waiting.map(|it| it.next).min()
    }

    /// A result has come.
    pub fn observe(&mut self, kind: Kind, passed: bool, now: Instant) {
        if let Some(it) = self.0.iter_mut().find(|it| it.kind == kind) {
            it.observe(passed, now);
        }
    }
}

impl Tracker {
    fn active(&self, started: bool) -> bool {
        match self.kind {
            Kind::Startup => self.verdict.is_none(),
            Kind::Liveness => started && self.verdict != Some(false),
            Kind::Readiness => started,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;

    fn container(probes: serde_json::Value) -> Container {
        Container::deserialize(&probes).unwrap()
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn readiness_follows_rows_of_results() {
        let now = Instant::now();
        let it = container(
            json!({"readinessProbe": {"tcpSocket": {"port": 1}, "failureThreshold": 2, "successThreshold": 2}}),
        );
        let mut probes = Probes::new(&it, now, None);
        for (passed, ready) in [
            (true, false),
            (true, true),
            (false, true),
            (true, true),
            (false, true),
            (false, false),
        ] {
            probes.observe(Kind::Readiness, passed, now);
            assert_eq!(probes.ready(), ready);
        }
        assert!(
            probes.given_up().is_none(),
            "a failing readiness probe restarts nothing"
        );
    }

    #[test]
    fn nothing_else_is_probed_before_the_startup_probe_has_passed() {
        let now = Instant::now();
        let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 5});
        let it = container(json!({"startupProbe": probe, "livenessProbe": probe, "readinessProbe": probe}));
        let mut probes = Probes::new(&it, now, None);
        let kinds = |due: Vec<Tracker>| due.iter().map(|it| it.kind).collect::<Vec<_>>();
        assert_eq!(kinds(probes.due(now)), [Kind::Startup]);
        assert_eq!(kinds(probes.due(now + seconds(60))), [], "one at a time");
        probes.observe(Kind::Startup, true, now);
        assert_eq!(kinds(probes.due(now)), [Kind::Liveness, Kind::Readiness]);
        assert_eq!(probes.next(), None, "both are on their way");
        probes.observe(Kind::Liveness, true, now);
        assert_eq!(probes.next(), Some(now + seconds(5)));
    }

    #[test]
    fn a_container_is_given_up_after_its_threshold() {
        let now = Instant::now();
        let it = container(json!({"livenessProbe": {"exec": {"command": ["x"]}, "terminationGracePeriodSeconds": 7}}));
        let mut probes = Probes::new(&it, now, None);
        for count in 1..=3 {
            assert!(probes.given_up().is_none());
            probes.observe(Kind::Liveness, false, now);
            assert_eq!(probes.given_up().is_some(), count == 3);
        }
        assert_eq!(probes.given_up().unwrap().grace, Some(seconds(7)));
        assert_eq!(probes.next(), None, "it is not asked any more");
    }

    #[test]
    fn the_first_probe_waits_for_the_initial_delay() {
        let now = Instant::now();
        let it = container(json!({"livenessProbe": {"exec": {"command": ["x"]}, "initialDelaySeconds": 3}}));
        let mut probes = Probes::new(&it, now, None);
        assert!(probes.due(now + seconds(2)).is_empty());
        assert_eq!(probes.due(now + seconds(3)).len(), 1);
    }

    #[test]
    fn an_adopted_container_stays_in_service() {
        let it = container(
            json!({"readinessProbe": {"exec": {"command": ["x"]}}, "startupProbe": {"exec": {"command": ["x"]}}}),
        );
        let adopted = Probes::new(&it, Instant::now(), Some((true, true)));
        assert!(adopted.started() && adopted.ready());
        let fresh = Probes::new(&it, Instant::now(), Some((false, false)));
        assert!(!fresh.started() && !fresh.ready());
    }
}
