//! Is the database's history still the one that our clients have seen? Pure.
//!
//! A database that failed over to a replica which was behind has lost commits, and its counter has gone back. Whoever
//! finds that makes the counter jump, far past anything that somebody may have seen, and marks what came before as lost:
//! all servers then cut their watchers, and clients list anew instead of going on from a state that never was.

use agent::units::Revision;

use super::database::{Marks, Page, Row, Stamp};

/// How far the counter jumps: more than any database loses, little of a 64-bit number.
const JUMP: u64 = 1_000_000;

/// The newest row that this server has seen or written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    /// Its revision.
    pub revision: Revision,
    /// Whose it was; `None` where there is no row: in the beginning and after a jump.
    pub stamp: Option<Stamp>,
}

impl Seen {
    /// What is known after these rows.
    #[must_use]
    pub fn after(self, row: &Row) -> Self {
        if row.event.revision <= self.revision {
            return self;
        }
        Self {
            revision: row.event.revision,
            stamp: Some(row.stamp),
        }
    }
}

/// True if what was seen is not in the database's history. `found` is the stamp of the row at `seen.revision`; the marks
/// were read after it.
pub fn is_broken(seen: &Seen, marks: &Marks, found: Option<Stamp>) -> bool {
    if marks.oldest > seen.revision {
        // Somebody has found out already.
        return false;
    }
    if marks.newest < seen.revision {
        return true;
    }
    match (seen.stamp, found) {
        (Some(ours), Some(theirs)) => ours != theirs,
        // Compaction may have taken it; only that may.
        (Some(_), None) => marks.floor() < seen.revision,
        (None, _) => false,
    }
}

/// Where the counter goes on after a loss.
pub fn jump(seen: &Seen, marks: &Marks) -> Revision {
    Revision::new(marks.newest.max(seen.revision).get().saturating_add(JUMP))
}

/// What to do with a page that was read from `position`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Its rows are what comes next.
    GoOn,
    /// What comes next is gone: whoever waits for it must begin anew, after `newest`.
    Cut,
}

/// Judges a page.
pub fn step(position: Revision, page: &Page) -> Step {
    let mut next = position;
    let dense = page.rows.iter().all(|row| {
        next = next.next();
        row.event.revision == next
    });
    // At the end of the log compaction leaves no later row that would show the hole: a tombstone may be gone.
    let forgotten = page.rows.is_empty() && page.marks.compacted > position;
    if dense && !forgotten && page.marks.oldest <= position {
        Step::GoOn
    } else {
        Step::Cut
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Event;
    use super::*;

    fn row(revision: u64, stamp: i64) -> Row {
        Row {
            event: Event {
                key: "k".into(),
                revision: Revision::new(revision),
                created: Revision::new(1),
                value: None,
            },
            previous: Revision::ZERO,
            ttl: None,
            stamp: Stamp(stamp),
        }
    }

    fn marks(newest: u64, compacted: u64) -> Marks {
        Marks {
            newest: Revision::new(newest),
            compacted: Revision::new(compacted),
            oldest: Revision::ZERO,
        }
    }

    #[test]
    fn a_history_is_broken_when_what_was_seen_is_not_in_it() {
        let seen = Seen::default().after(&row(50, 7));
        for (broken, newest, compacted, found) in [
            (false, 50, 0, Some(7)),
            (false, 90, 0, Some(7)),
            (true, 49, 0, None),
            (true, 90, 0, Some(8)),
            (true, 90, 0, None),
            (true, 90, 49, None),
            (false, 90, 50, None),
        ] {
            let found = found.map(Stamp);
            assert_eq!(
                is_broken(&seen, &marks(newest, compacted), found),
                broken,
                "{newest} {compacted} {found:?}"
            );
        }
        assert!(
            !is_broken(&Seen::default(), &marks(0, 0), None),
            "an empty log is nobody's loss"
        );
    }

    #[test]
    fn the_counter_jumps_past_everything_seen_by_anyone() {
        let seen = Seen::default().after(&row(50, 7));
        assert_eq!(jump(&seen, &marks(40, 0)).get(), 1_000_050);
        assert_eq!(jump(&seen, &marks(60, 0)).get(), 1_000_060);
    }

    #[test]
    fn what_was_seen_never_goes_back() {
        let seen = Seen::default().after(&row(50, 7));
        assert_eq!(seen.after(&row(49, 8)), seen);
    }

    #[test]
    fn a_hole_in_the_rows_and_a_lost_history_end_the_watches() {
        let at = Revision::new(4);
        let page = |revisions: &[u64], oldest| Page {
            rows: revisions.iter().map(|revision| row(*revision, 1)).collect(),
            marks: Marks {
                newest: Revision::new(9),
                oldest: Revision::new(oldest),
                ..Marks::default()
            },
        };
        assert_eq!(step(at, &page(&[], 0)), Step::GoOn);
        assert_eq!(step(at, &page(&[5, 6], 4)), Step::GoOn);
        assert_eq!(step(at, &page(&[6], 0)), Step::Cut);
        assert_eq!(step(at, &page(&[5, 7], 0)), Step::Cut);
        assert_eq!(step(at, &page(&[5, 6], 5)), Step::Cut);
        assert_eq!(step(at, &page(&[], 5)), Step::Cut);
        let compacted = |rows: &[u64], compacted| {
            let mut page = page(rows, 0);
            page.marks.compacted = Revision::new(compacted);
            page
        };
        assert_eq!(step(at, &compacted(&[], 4)), Step::GoOn);
        assert_eq!(step(at, &compacted(&[], 5)), Step::Cut, "a tombstone was the last row");
        assert_eq!(step(at, &compacted(&[5, 6], 5)), Step::GoOn);
    }
}
