//! How many bytes of history the log holds, so that compaction bounds them whatever the size of objects. Pure.

use std::collections::VecDeque;

use agent::units::Revision;

/// Counted together: a few hundred entries stand for any history.
const BUCKET: usize = 256 << 10;
/// History takes at most so much, and compaction leaves half.
pub const MOST: usize = 16 << 20;

/// What has been written since the compacted revision.
#[derive(Debug, Default)]
pub struct Growth {
    /// Up to which revision, how many bytes; the oldest first.
    buckets: VecDeque<(Revision, usize)>,
    total: usize,
}

impl Growth {
    /// Takes in a row.
    pub fn add(&mut self, revision: Revision, bytes: usize) {
        self.total = self.total.saturating_add(bytes);
        match self.buckets.back_mut() {
            Some((up_to, sum)) if *sum < BUCKET => {
                *up_to = (*up_to).max(revision);
                *sum = sum.saturating_add(bytes);
            }
            _ => self.buckets.push_back((revision, bytes)),
        }
    }

    /// Compaction has come to here.
    pub fn compacted(&mut self, to: Revision) {
        while let Some((_, bytes)) = self.buckets.pop_front_if(|(up_to, _)| *up_to <= to) {
            self.total = self.total.saturating_sub(bytes);
        }
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.total
    }

    /// Where compaction has to go, if there is too much.
    pub fn target(&self) -> Option<Revision> {
        if self.total <= MOST {
            return None;
        }
        let mut left = self.total;
        let enough = self.buckets.iter().find(|(_, bytes)| {
            left = left.saturating_sub(*bytes);
            left <= MOST / 2
        });
        enough.map(|(up_to, _)| *up_to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_history_is_halved() {
        let mut growth = Growth::default();
        for number in 1..=1600_u64 {
            growth.add(Revision::new(number), 10 << 10);
        }
        assert_eq!((growth.target(), growth.buckets.len()), (None, 62));
        for number in 1601..=1700 {
            growth.add(Revision::new(number), 10 << 10);
        }
        let target = growth.target().unwrap();
        growth.compacted(target);
        assert!((7 << 20..=8 << 20).contains(&growth.bytes()), "{}", growth.bytes());
        assert_eq!(growth.target(), None);
        growth.add(Revision::new(1701), 100 << 20);
        assert_eq!(
            growth.target(),
            Some(Revision::new(1701)),
            "one object may be the most of it"
        );
        growth.compacted(Revision::new(1701));
        assert_eq!(growth.bytes(), 0);
    }
}
