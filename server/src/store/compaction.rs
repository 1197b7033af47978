//! How much history a log keeps that several servers share: the same whichever backend it is in. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use agent::units::Revision;

/// How often, and how long history is kept. Source: kube-apiserver, `--etcd-compaction-interval`.
pub const EVERY: Duration = Duration::from_secs(300);
/// So many revisions are kept at least, for those who were away for a moment.
const HISTORY: u64 = 1000;

/// What was newest a whole turn ago, unless that is too near.
pub fn target(seen: &mut VecDeque<Revision>, newest: Revision) -> Revision {
    seen.push_back(newest);
    let past = if seen.len() > 1 { seen.pop_front() } else { None };
    let kept = Revision::new(newest.get().saturating_sub(HISTORY));
    past.unwrap_or(Revision::ZERO).min(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_turn_old_goes_but_for_the_last_thousand() {
        let mut seen = VecDeque::new();
        let turns = [(5000, 0), (9000, 5000), (9100, 8100), (9100, 8100), (20_000, 9100)];
        for (newest, wanted) in turns {
            assert_eq!(target(&mut seen, Revision::new(newest)).get(), wanted, "{newest}");
        }
    }
}
