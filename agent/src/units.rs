//! Numbers with a meaning: sizes and revisions that cannot pass for one another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A size in bytes. Built only from a named unit, so pages or mebibytes cannot pass for bytes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Bytes(u64);

impl Bytes {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many kibibytes (1024 bytes); more than fits is capped.
    pub const fn kib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 10))
    }

    /// So many mebibytes (1024 kibibytes); more than fits is capped.
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 20))
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A position in the cluster's one sequence of writes: the `resourceVersion` of objects and lists.
///
/// Decimal without leading zeros on the wire (Kubernetes compares two of them as numbers since v1.35). Zero is
/// "before the first write".
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Revision(u64);

impl Revision {
    /// Before the first write.
    pub const ZERO: Self = Self(0);

    /// The `number`th write.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The revision right after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Reads what [`fmt::Display`] writes; `None` for anything else, signs and leading zeros included.
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
        canonical.then(|| text.parse().ok().map(Self)).flatten()
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_reads_only_what_it_writes() {
        for text in ["0", "1", "18446744073709551615"] {
            assert_eq!(
                Revision::parse(text).map(|revision| revision.to_string()).as_deref(),
                Some(text)
            );
        }
        for text in ["", "00", "01", "+1", "-1", " 1", "1x", "18446744073709551616"] {
            assert_eq!(Revision::parse(text), None, "{text:?}");
        }
    }
}
