//! When a node's certificates are to be renewed. Pure but for [`windows`].

use std::fs;

use super::clock::Window;
use super::files::{Certificate, Files};
use crate::wire::join::certificates;

/// How much later than now a certificate may begin, in seconds: clocks differ.
const SKEW: u64 = 300;

/// From when to when the kubelet's certificates on disk are good; `None` for what cannot be read.
pub fn windows(files: &Files) -> [Option<Window>; 2] {
    [Certificate::ClientKubelet, Certificate::ServingKubelet].map(|which| {
        let pem = fs::read(files.cert(which)).unwrap_or_default();
        certificates(&pem).first().and_then(|der| Window::of(der))
    })
}

/// No clock that is right shows less than this (2026-01-01).
const PLAUSIBLE_SINCE: u64 = 1_767_225_600;

/// A third of a year, for which servers sign.
const LONGEST: u64 = 122 * 86_400;

/// Whether one of them is to be renewed: it cannot be read, it ends before it begins, a third of its time is left, or it begins
/// later than it is, because a clock was ahead when it was signed.
///
/// `system`: what the system clock shows. `floor`: what time it is at least, should that not know. The beginning of this
/// node's own certificates is part of it, so it cannot say that they begin too late; `told`, the time by the server that
/// answered last, can. Two clocks that stand in 1970 say nothing of it. All in seconds since 1970.
pub fn is_due(own: &[Option<Window>], system: u64, floor: u64, told: u64) -> bool {
    let now = system.max(told);
    let early = |window: &Window| now >= PLAUSIBLE_SINCE && window.from > now.saturating_add(SKEW);
    let due = |window: &Window| window.is_empty() || runs_out(*window, now.max(floor)) || early(window);
    own.iter().any(|window| window.as_ref().is_none_or(due))
}

/// Whether a certificate that was just signed has ended: by the system clock if that can be right and the certificate has begun by
/// it, or else also by the floor. A floor may be false (a server's clock was ahead), and makes nothing of a clock that is right.
///
/// `system`, `floor`: as of [`is_due`].
pub fn is_over(window: Window, system: u64, floor: u64) -> bool {
    let knows = system >= PLAUSIBLE_SINCE.max(window.from);
    window.until < if knows { system } else { system.max(floor) }
}

/// Less than a third of its time is left, or less than 122 days: some K3s servers sign from when their authority begins.
fn runs_out(window: Window, now: u64) -> bool {
    window.until.saturating_sub(now) < (window.until.saturating_sub(window.from) / 3).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::TempDir;

    const DAY: u64 = 86_400;
    /// The first of January 2026.
    const BEGIN: u64 = 1_767_225_600;

    #[test]
    fn a_certificate_is_renewed_in_its_last_third() {
        let window = Window {
            from: BEGIN,
            until: BEGIN + 364 * DAY,
        };
        for (day, due) in [(0, false), (240, false), (244, true), (400, true)] {
            let now = BEGIN + day * DAY;
            for (system, floor, told) in [(now, 0, 0), (0, 0, now), (now, BEGIN, now), (BEGIN, now, 0)] {
                let own = [Some(window); 2];
                assert_eq!(
                    is_due(&own, system, floor, told),
                    due,
                    "day {day}: {system} {floor} {told}"
                );
            }
        }
        assert!(is_due(&[Some(window), None], BEGIN, 0, 0), "one that cannot be read");
        // As of an authority that is three years old.
        let long = Some(Window {
            from: BEGIN - 3 * 365 * DAY,
            until: BEGIN + 365 * DAY,
        });
        for (day, due) in [(0, false), (242, false), (244, true)] {
            assert_eq!(is_due(&[long; 2], BEGIN + day * DAY, 0, 0), due, "day {day}");
        }
    }

    #[test]
    fn a_certificate_that_a_clock_ahead_has_signed_is_renewed() {
        for (begins_in, told, due) in [
            (0, 0, false),
            (120, 0, false),
            (DAY, 0, true),
            // A board whose clock is behind, on a server whose is right.
            (DAY, BEGIN + DAY, false),
        ] {
            let from = BEGIN + begins_in;
            let until = from + 365 * DAY;
            let own = [Some(Window { from, until })];
            // The floor of a start that found this certificate.
            assert_eq!(
                is_due(&own, BEGIN, from, told),
                due,
                "begins in {begins_in} s, told {told}"
            );
        }
    }

    #[test]
    fn a_certificate_that_ends_before_it_begins_is_renewed_and_one_of_a_world_without_clocks_is_not() {
        let window = |from, until| [Some(Window { from, until })];
        for now in [0, BEGIN, BEGIN + 365 * DAY] {
            assert!(is_due(&window(BEGIN, 365 * DAY), now, 0, now), "at {now}");
        }
        let good = window(BEGIN, BEGIN + 365 * DAY);
        for (system, told, due) in [(0, 0, false), (0, 700, false), (700, 0, false), (0, BEGIN, false)] {
            assert_eq!(is_due(&good, system, BEGIN, told), due, "{system}, told {told}");
        }
    }

    #[test]
    fn a_false_floor_ends_no_certificate_that_is_good_by_a_right_clock() {
        let (from, until) = (BEGIN, BEGIN + 365 * DAY);
        for (system, floor, over) in [
            (BEGIN + DAY, BEGIN, false),
            (BEGIN + DAY, until + DAY, false),
            (until + DAY, BEGIN, true),
            // A board that boots in 1970, and one whose clock is behind the certificate: the floor is all there is.
            (0, BEGIN, false),
            (0, until + DAY, true),
            (BEGIN - 1, until + DAY, true),
        ] {
            assert_eq!(
                is_over(Window { from, until }, system, floor),
                over,
                "{system}, {floor}"
            );
        }
        // By a clock in 1970, as the board's is too, it would be good for long.
        let until = 365 * DAY;
        assert!(is_over(Window { from: 0, until }, DAY, BEGIN));
    }

    #[test]
    fn what_is_on_disk_says_from_when_to_when_it_is_good() {
        let scratch = TempDir::new("renewal");
        let files = Files::create(scratch.path().to_owned()).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 12, 31);
        let own = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        fs::write(files.cert(Certificate::ClientKubelet), own.pem()).unwrap();
        fs::write(files.cert(Certificate::ServingKubelet), &own.pem()[..100]).unwrap();
        let found = Window {
            from: BEGIN,
            until: BEGIN + 364 * DAY,
        };
        assert_eq!(windows(&files), [Some(found), None]);
    }
}
