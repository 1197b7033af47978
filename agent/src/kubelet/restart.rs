//! When a container that ended starts again: policy, back-off and its reset.
//!
//! Pure. Time is monotonic: a board whose clock jumps must neither hammer nor sleep for a year. Source: Kubernetes v1.36,
//! `pkg/kubelet/kuberuntime` `doBackOff` and client-go `flowcontrol.Backoff`.

use std::time::{Duration, Instant};

use crate::wire::pod::RestartPolicy;

/// The first delay.
const INITIAL: Duration = Duration::from_secs(10);
/// The longest delay.
const LONGEST: Duration = Duration::from_secs(300);
/// Having run this long, a container starts with a clean record.
const RESET_AFTER: Duration = Duration::from_secs(600);

/// How long to wait before the restart that follows `restarts` restarts in a row: none, 10 s, 20 s, ... 5 min.
pub fn restart_delay(restarts: u32) -> Duration {
    match restarts {
        0 => Duration::ZERO,
        1..=5 => INITIAL * (1 << (restarts - 1)),
        _ => LONGEST,
    }
}

/// Whether a container that ended with `exit_code` runs again.
pub fn restarts(policy: RestartPolicy, exit_code: i32) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// One container's record of ends and restarts, since this process has known it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Record {
    in_a_row: u32,
    started: Option<Instant>,
    ended: Option<(u32, Instant)>,
}

impl Record {
    /// Attempt `attempt` was started.
    pub fn note_start(&mut self, attempt: u32, now: Instant) {
        if attempt > 0 {
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
        self.started = Some(now);
        self.ended = None;
    }

    /// Attempt `attempt` was seen to have ended; only the first notice counts.
    pub fn note_end(&mut self, attempt: u32, now: Instant) {
        if self.ended.is_some_and(|(known, _)| known == attempt) {
            return;
        }
        if self
            .started
            .is_some_and(|started| now.duration_since(started) >= RESET_AFTER)
        {
            self.in_a_row = 0;
        }
        self.ended = Some((attempt, now));
    }

    /// Attempt `attempt` was seen running; found running after a restart of ours, it counts from now.
    pub fn note_running(&mut self, now: Instant) {
        self.started.get_or_insert(now);
    }

    /// When the ended container may start again; `None` while none has ended.
    pub fn due(&self) -> Option<Instant> {
        self.ended.map(|(_, at)| at + restart_delay(self.in_a_row))
    }

    /// The delay that applies now, for the message of `CrashLoopBackOff`.
    pub fn delay(&self) -> Duration {
        restart_delay(self.in_a_row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_delay_doubles_up_to_five_minutes() {
        for (restarts, seconds) in [(0, 0), (1, 10), (2, 20), (3, 40), (5, 160), (6, 300), (u32::MAX, 300)] {
            assert_eq!(
                restart_delay(restarts),
                Duration::from_secs(seconds),
                "restarts: {restarts}"
            );
        }
    }

    #[test]
    fn the_policy_decides_by_exit_code() {
        use RestartPolicy::{Always, Never, OnFailure};
        for (policy, code, again) in [
            (Always, 0, true),
            (Always, 1, true),
            (OnFailure, 0, false),
            (OnFailure, 137, true),
            (Never, 0, false),
            (Never, 1, false),
        ] {
            assert_eq!(restarts(policy, code), again, "{policy:?} {code}");
        }
    }

    #[test]
    fn ten_minutes_of_running_clear_the_record() {
        let begin = Instant::now();
        let mut record = Record::default();
        record.note_start(0, begin);
        record.note_end(0, begin + Duration::from_secs(1));
        assert_eq!(
            record.due(),
            Some(begin + Duration::from_secs(1)),
            "the first restart is immediate"
        );
        record.note_start(1, begin + Duration::from_secs(1));
        record.note_end(1, begin + Duration::from_secs(2));
        record.note_end(1, begin + Duration::from_secs(9));
        assert_eq!(
            record.due(),
            Some(begin + Duration::from_secs(12)),
            "a second notice changes nothing"
        );
        record.note_start(2, begin + Duration::from_secs(12));
        record.note_end(2, begin + Duration::from_secs(612));
        assert_eq!(record.delay(), Duration::ZERO);
    }
}
