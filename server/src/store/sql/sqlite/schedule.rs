//! When the log makes a snapshot of itself by itself, and which ones stay. Pure.
//!
//! A card wears out by what is written to it: at most [`A_DAY`] goes to snapshots, or one whole state a day if that is
//! more, and nothing while nothing has changed. They are what is left when the file is damaged.

use std::time::Duration;

use agent::units::Revision;

/// Bytes a day that snapshots may write: with what an idle server writes otherwise, below 20 MB.
const A_DAY: u64 = 8 << 20;
const DAY: u64 = 24 * 60 * 60;
/// The first one comes soon: without any, damage is final.
pub const FIRST: Duration = Duration::from_secs(60);
/// After one could not be made.
pub const AGAIN: Duration = Duration::from_secs(10 * 60);
const SHORTEST: u64 = 60 * 60;
/// How many stay, if they take no more bytes than this; the newest stays whatever it takes.
const KEPT: usize = 4;
const KEPT_BYTES: u64 = 64 << 20;
/// What must be free beside twice the snapshot: room for the log goes first.
const RESERVE: u64 = 16 << 20;

/// Between two snapshots of this size.
pub fn interval(size: u64) -> Duration {
    Duration::from_secs(
        size.saturating_mul(DAY)
            .checked_div(A_DAY)
            .unwrap_or(DAY)
            .clamp(SHORTEST, DAY),
    )
}

/// When the first one after a start is due. `age`: of the newest one by the clock; `None`: there is none, or the clock
/// says that it is yet to be made.
pub fn first(newest: Option<(Option<Duration>, u64)>) -> Duration {
    match newest {
        Some((Some(age), size)) => interval(size).saturating_sub(age).max(FIRST),
        Some((None, _)) | None => FIRST,
    }
}

/// Whether there is room for one of this size.
pub fn fits(free: u64, size: u64) -> bool {
    free >= size.saturating_mul(2).saturating_add(RESERVE)
}

/// Which of these, newest first, have to go; by size in bytes.
pub fn surplus(all: &[(Revision, u64)]) -> Vec<Revision> {
    let mut total = 0_u64;
    let goes = |(number, (revision, size)): (usize, &(Revision, u64))| {
        total = total.saturating_add(*size);
        (number > 0 && (number >= KEPT || total > KEPT_BYTES)).then_some(*revision)
    };
    all.iter().enumerate().filter_map(goes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_write_eight_mebibytes_a_day_or_one_state() {
        for (size, hours) in [
            (0, 1),
            (300 << 10, 1),
            (1 << 20, 3),
            (4 << 20, 12),
            (8 << 20, 24),
            (1 << 40, 24),
        ] {
            assert_eq!(interval(size), Duration::from_secs(hours * 3600), "{size}");
            let written = size * 24 / hours;
            assert!(written <= A_DAY.max(size), "{size}: {written}");
        }
    }

    #[test]
    fn the_first_one_after_a_start_is_due_when_the_last_is_old_or_from_the_future() {
        let day = Duration::from_secs(DAY);
        let half = Duration::from_secs(1800);
        assert_eq!(first(None), FIRST);
        assert_eq!(first(Some((None, 1))), FIRST);
        assert_eq!(first(Some((Some(day), 1))), FIRST);
        assert_eq!(first(Some((Some(half), 1))), half);
    }

    #[test]
    fn the_newest_stays_and_older_ones_while_they_are_few_and_small() {
        let all = |size| {
            (1..=6)
                .rev()
                .map(|number| (Revision::new(number), size))
                .collect::<Vec<_>>()
        };
        let gone = |size| {
            surplus(&all(size))
                .iter()
                .map(|revision| revision.get())
                .collect::<Vec<_>>()
        };
        assert_eq!(gone(1), [2, 1]);
        assert_eq!(gone(30 << 20), [4, 3, 2, 1]);
        assert_eq!(gone(100 << 20), [5, 4, 3, 2, 1]);
    }

    #[test]
    fn a_snapshot_leaves_room_for_the_log() {
        assert!(fits(20 << 20, 1 << 20));
        assert!(!fits(17 << 20, 1 << 20));
    }
}
