//! Whether something is alive, judged by whether it is seen to change: by one's own monotonic clock, never by what it says
//! of the time.
//!
//! Pure: the present is an argument. What is seen for the first time counts as alive from then on, because nobody knows
//! how old it is.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// What was seen of each name, and since when.
#[derive(Clone, Debug, Default)]
pub struct Pulses(HashMap<String, Pulse>);

/// The last change of one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pulse {
    stamp: String,
    since: Instant,
}

impl Pulse {
    /// Seen now.
    pub fn new(stamp: &str, now: Instant) -> Self {
        let stamp = stamp.to_owned();
        Self { stamp, since: now }
    }

    /// Seen again: that it changed counts, that it is there does not.
    pub fn beat(&mut self, stamp: &str, now: Instant) {
        if self.stamp != stamp {
            *self = Self::new(stamp, now);
        }
    }

    /// When it is dead, unless it changes.
    pub fn ends(&self, after: Duration) -> Instant {
        self.since + after
    }
}

impl Pulses {
    /// Takes in what is there now; what is not is forgotten.
    pub fn see<'a>(&mut self, all: impl Iterator<Item = (&'a str, &'a str)>, now: Instant) {
        let mut before = std::mem::take(&mut self.0);
        for (name, stamp) in all {
            let mut pulse = before.remove(name).unwrap_or_else(|| Pulse::new(stamp, now));
            pulse.beat(stamp, now);
            self.0.insert(name.to_owned(), pulse);
        }
    }

    /// We could not look for a while: nobody's silence counts.
    pub fn forgive(&mut self, now: Instant) {
        self.0.values_mut().for_each(|pulse| pulse.since = now);
    }

    /// Whether one was seen to change in the last `after`.
    pub fn is_alive(&self, name: &str, after: Duration, now: Instant) -> bool {
        self.0.get(name).is_some_and(|pulse| now < pulse.ends(after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(10);

    #[test]
    fn what_changes_lives_and_what_only_is_there_dies() {
        let (mut pulses, start) = (Pulses::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        pulses.see([("a", "1"), ("b", "1")].into_iter(), at(0));
        pulses.see([("a", "2"), ("b", "1")].into_iter(), at(5));
        assert!(pulses.is_alive("b", AFTER, at(9)));
        assert!(!pulses.is_alive("b", AFTER, at(10)));
        assert!(pulses.is_alive("a", AFTER, at(14)) && !pulses.is_alive("a", AFTER, at(15)));
        pulses.see([("b", "2")].into_iter(), at(20));
        assert!(pulses.is_alive("b", AFTER, at(20)), "it came back");
        assert!(!pulses.is_alive("a", AFTER, at(20)), "it is gone");
    }

    #[test]
    fn who_could_not_look_begins_anew() {
        let (mut pulses, start) = (Pulses::default(), Instant::now());
        pulses.see([("a", "1")].into_iter(), start);
        let later = start + AFTER * 5;
        assert!(!pulses.is_alive("a", AFTER, later));
        pulses.forgive(later);
        assert!(pulses.is_alive("a", AFTER, later));
    }
}
