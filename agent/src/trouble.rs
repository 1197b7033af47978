//! How often something is said that goes on: a node may be out of reach for weeks, its parts try on every few seconds, and its
//! log is on a card that wears out.
//!
//! Pure; whoever tries asks here how loudly to say that it failed.

use std::time::{Duration, Instant};

/// The first pause between two lines about the same trouble; it doubles.
const FIRST: Duration = Duration::from_secs(60);
/// The longest: who begins to read a log sees soon what is wrong.
const LONGEST: Duration = Duration::from_secs(600);

/// One thing that works or does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// When it is said again, and how long after that once more.
    next: Option<(Instant, Duration)>,
}

impl Trouble {
    /// It fails now. Returns whether that is worth a line: when it begins, after a minute, two, four, and then every ten.
    pub fn is_news(&mut self, now: Instant) -> bool {
        let pause = match self.next {
            Some((at, _)) if now < at => return false,
            Some((_, pause)) => pause,
            None => FIRST,
        };
        self.next = Some((now + pause, (pause * 2).min(LONGEST)));
        true
    }

    /// It works now: the next failure is news.
    pub fn ends(&mut self) {
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_said_ever_more_seldom_and_at_once_when_it_is_new() {
        let (mut trouble, begun) = (Trouble::default(), Instant::now());
        let mut said = Vec::new();
        for second in (0..4000).step_by(5) {
            if trouble.is_news(begun + Duration::from_secs(second)) {
                said.push(second);
            }
        }
        assert_eq!(said, [0, 60, 180, 420, 900, 1500, 2100, 2700, 3300, 3900]);
        trouble.ends();
        assert!(trouble.is_news(begun + Duration::from_secs(4000)));
    }
}
