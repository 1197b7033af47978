//! Waiting: until something is so at last, or for what somebody was promised to be soon.
//!
//! Clusters under test share their processors with each other and with whatever else the machine does. That there something comes a
//! little later than promised says nothing of the programs; that it takes several times as long does. A test waits for that
//! much, and says what came late; `tests/bench/run promises` runs one cluster at a time and holds every promise to the second.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// What any step of a cluster may take on a slow, busy machine. Nothing is timed here; this only ends a hopeless wait.
const PATIENCE: Duration = Duration::from_secs(120);
/// So many times as long as promised a test waits.
const GRACE: u32 = 4;
/// Set, whatever to: what comes late has not come.
const TO_THE_SECOND: &str = "PROMISES_TO_THE_SECOND";

/// Asks again until it is so.
pub fn until(what: &str, is_so: impl FnMut() -> bool) {
    ask(PATIENCE, Instant::now(), what, is_so);
}

/// Asks again until it is so, which somebody was promised to be soon. Returns how long that took.
pub fn within(promised: Duration, what: &str, is_so: impl FnMut() -> bool) -> Duration {
    within_of(promised, Instant::now(), what, is_so)
}

/// The same; the promise counts from `begun` on, when a fault began or ended, whatever was looked at meanwhile. An answer that
/// comes when nobody waits for it any more counts for nothing.
pub fn within_of(promised: Duration, begun: Instant, what: &str, is_so: impl FnMut() -> bool) -> Duration {
    let took = ask(allowed(promised), begun, what, is_so);
    tell_if_late(promised, took, what);
    took
}

/// How long a test waits for what was promised to take so long at most.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark is the same run with another measure"
)]
pub fn allowed(promised: Duration) -> Duration {
    match std::env::var_os(TO_THE_SECOND) {
        Some(_) => promised,
        None => promised * GRACE,
    }
}

/// Says so when something took longer than promised.
pub fn tell_if_late(promised: Duration, took: Duration, what: &str) {
    if took > promised {
        eprintln!("LATE: {took:?}, promised were {promised:?}, until {what}");
    }
}

fn ask(limit: Duration, begun: Instant, what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    loop {
        let so = is_so();
        let took = begun.elapsed();
        assert!(
            took < limit,
            "{took:?} have passed, and {limit:?} were allowed, until {what}"
        );
        if so {
            return took;
        }
        sleep(Duration::from_millis(100));
    }
}
