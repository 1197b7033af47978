//! Checksums of rows and marks: SQLite notices a broken page, not a changed byte in a value. Pure.
//!
//! CRC-32: it finds every burst of up to 32 bits, and any other damage but one in four billion. What is under it must
//! never change: files of older versions carry it.

use agent::units::Revision;
use flate2::Crc;

/// All that a row says.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    /// Of the write.
    pub revision: Revision,
    /// Where.
    pub key: &'a str,
    /// Of the key's creation.
    pub created: Revision,
    /// The row it supersedes.
    pub previous: Revision,
    /// Seconds.
    pub ttl: Option<i64>,
    /// `None`: a tombstone.
    pub value: Option<&'a [u8]>,
}

impl Fields<'_> {
    /// The row's checksum.
    pub fn sum(&self) -> i64 {
        let mut crc = Crc::new();
        for number in [self.revision, self.created, self.previous] {
            crc.update(&number.get().to_le_bytes());
        }
        crc.update(&self.ttl.map_or(-1, |ttl| ttl.max(0)).to_le_bytes());
        crc.update(self.key.as_bytes());
        crc.update(if self.value.is_some() { &[0, 1] } else { &[0, 0] });
        crc.update(self.value.unwrap_or_default());
        i64::from(crc.sum())
    }
}

/// A mark's checksum.
pub fn of_mark(name: &str, revision: Revision) -> i64 {
    let mut crc = Crc::new();
    crc.update(name.as_bytes());
    crc.update(&revision.get().to_le_bytes());
    i64::from(crc.sum())
}

/// Keys with their revisions, in whatever order they come: two sets that are the same have the same digest.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Digest {
    count: u64,
    total: u64,
}

impl Digest {
    /// Takes one in.
    pub fn add(&mut self, key: &str, revision: Revision) {
        let mut crc = Crc::new();
        crc.update(key.as_bytes());
        crc.update(&revision.get().to_le_bytes());
        self.count = self.count.wrapping_add(1);
        self.total = self
            .total
            .wrapping_add(u64::from(crc.sum()).wrapping_mul(revision.get() | 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Fields<'_> = Fields {
        revision: Revision::new(7),
        key: "/a",
        created: Revision::new(5),
        previous: Revision::new(6),
        ttl: None,
        value: Some(b"x"),
    };

    #[test]
    fn a_change_of_anything_changes_the_sum() {
        let two = Revision::new(2);
        let changed = [
            Fields { revision: two, ..ROW },
            Fields { key: "/b", ..ROW },
            Fields { created: two, ..ROW },
            Fields { previous: two, ..ROW },
            Fields { ttl: Some(0), ..ROW },
            Fields { value: None, ..ROW },
            Fields {
                value: Some(b""),
                ..ROW
            },
            Fields {
                value: Some(b"y"),
                ..ROW
            },
            Fields {
                key: "/a\0\u{1}",
                value: Some(b""),
                ..ROW
            },
        ];
        for other in changed {
            assert_ne!(other.sum(), ROW.sum(), "{other:?}");
        }
        assert_eq!(ROW.sum(), 3_154_385_496, "files of older versions carry it");
    }

    #[test]
    fn a_digest_knows_a_set_in_any_order() {
        let of = |keys: &[(&str, u64)]| {
            let mut digest = Digest::default();
            for (key, revision) in keys {
                digest.add(key, Revision::new(*revision));
            }
            digest
        };
        assert_eq!(of(&[("/a", 1), ("/b", 2)]), of(&[("/b", 2), ("/a", 1)]));
        assert_ne!(of(&[("/a", 1), ("/b", 2)]), of(&[("/a", 2), ("/b", 1)]));
        assert_ne!(of(&[("/a", 1)]), of(&[("/a", 1), ("/b", 2)]));
    }
}
