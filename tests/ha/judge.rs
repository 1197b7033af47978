//! Whether what writers were told and what watchers saw fit together: nothing lost, nothing twice, nothing out of order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tests::history;

use crate::load::Deeds;
use crate::watcher::{Sight, View};

/// What a run was, for its test to judge whether it meant anything.
pub struct Verdict {
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Writes that may have happened, and those of them that did.
    pub doubts: usize,
    pub happened: usize,
    /// Requests that were sent away to come again.
    pub refusals: usize,
    /// Reads that the server said may be out of date.
    pub stale: usize,
    /// How often a watch ended, by the server it began at.
    pub interruptions: Vec<(String, usize)>,
}

impl Verdict {
    /// Watches that ended.
    pub fn broken(&self) -> usize {
        self.interruptions.iter().map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            to,
            "{} writes acknowledged, {} in doubt ({} of them happened), {} requests refused, {} reads stale, watches ended:",
            self.acknowledged, self.doubts, self.happened, self.refusals, self.stale
        )?;
        for (at, count) in &self.interruptions {
            write!(to, " {at} {count}")?;
        }
        Ok(())
    }
}

/// Judges the load of one phase.
pub fn judge(phase: &str, deeds: &[Deeds], views: &[View]) -> Verdict {
    let ours = |view: &View| -> Vec<Sight> {
        let prefix = format!("{phase}-");
        let ours = view.sights.iter().filter(|sight| sight.key.starts_with(&prefix));
        ours.cloned().collect()
    };
    for view in views {
        let revisions: Vec<u64> = view.sights.iter().map(|sight| sight.revision).collect();
        let broken = revisions.windows(2).find(|pair| pair[0] >= pair[1]);
        assert_eq!(broken, None, "{phase}: {} saw them out of order", view.at);
        let (seen, first) = (ours(view), ours(&views[0]));
        if seen != first {
            let missing: Vec<_> = first.iter().filter(|sight| !seen.contains(sight)).collect();
            let more: Vec<_> = seen.iter().filter(|sight| !first.contains(sight)).collect();
            let (at, other) = (&view.at, &views[0].at);
            panic!("{phase}: the watcher at {at} missed {missing:?} and had {more:?} beyond the one at {other}");
        }
    }

    let seen = ours(&views[0]);
    let by_revision: BTreeMap<u64, &Sight> = seen.iter().map(|sight| (sight.revision, sight)).collect();
    for (key, value, revision) in deeds.iter().flat_map(|deeds| &deeds.acknowledged) {
        if value.is_some() {
            let sight = by_revision.get(revision);
            let sight = sight.unwrap_or_else(|| panic!("{phase}: {key} at {revision} was acknowledged and is lost"));
            assert_eq!((&sight.key, sight.value), (key, *value), "{phase}: at {revision}");
        }
    }
    let values: Vec<u64> = seen.iter().filter_map(|sight| sight.value).collect();
    let distinct: BTreeSet<u64> = values.iter().copied().collect();
    assert_eq!(distinct.len(), values.len(), "{phase}: a write happened twice");

    let history: Vec<_> = deeds.iter().flat_map(|deeds| deeds.history.iter().cloned()).collect();
    history::check(&history).unwrap_or_else(|violation| panic!("{phase}: {violation}"));

    let sum = |count: fn(&Deeds) -> usize| deeds.iter().map(count).sum::<usize>();
    let (acknowledged, doubts) = (sum(|deeds| deeds.acknowledged.len()), sum(|deeds| deeds.doubts));
    // All but the mark.
    let happened = (seen.len() - 1).checked_sub(acknowledged);
    let happened = happened.unwrap_or_else(|| panic!("{phase}: {acknowledged} acknowledged, {} seen", seen.len() - 1));
    assert!(happened <= doubts, "{phase}: {happened} writes nobody asked for");
    let hasty = deeds
        .iter()
        .flat_map(|deeds| &deeds.refusals)
        .filter(|wait| wait.is_none());
    assert_eq!(hasty.count(), 0, "{phase}: a 503 does not say when to come again");
    Verdict {
        acknowledged,
        doubts,
        happened,
        refusals: sum(|deeds| deeds.refusals.len()),
        stale: sum(|deeds| deeds.stale),
        interruptions: views.iter().map(|view| (view.at.clone(), view.interruptions)).collect(),
    }
}
