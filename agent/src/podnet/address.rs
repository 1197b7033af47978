//! Which pod has which address of the node's range. Pure: the files that make it last are in `book.rs`.
//!
//! The first address of the range is the bridge's, the last is broadcast. A freed address comes back only after the
//! others: a peer that still talks to a pod that has gone should not reach its successor.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 range such as `10.42.1.0/24`; host bits are zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    network: u32,
    prefix: u8,
}

/// Text that is no IPv4 range.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not an IPv4 range: {0:?} (expected something like 10.42.1.0/24)")]
pub struct RangeError(String);

impl Range {
    /// The network's own address.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network)
    }

    /// Length of the prefix in bits, 0 to 32.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The netmask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix))
    }

    /// The first usable address: the node's bridge, every pod's gateway.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network.saturating_add(1))
    }

    /// The last address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network | !mask(self.prefix))
    }

    /// Whether the address lies in the range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.network
    }

    /// The addresses pods can have, in order.
    fn pods(self) -> std::ops::Range<u32> {
        self.network.saturating_add(2)..u32::from(self.broadcast())
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            let address: Ipv4Addr = address.parse().ok()?;
            let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
            Some(Self {
                network: u32::from(address) & mask(prefix),
                prefix,
            })
        });
        parsed.ok_or_else(|| RangeError(text.to_owned()))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

/// Who has which address. One per node.
#[derive(Debug)]
pub struct Addresses {
    range: Range,
    taken: BTreeMap<u32, String>,
    last: u32,
}

impl Addresses {
    /// Nobody has any.
    pub fn new(range: Range) -> Self {
        Self {
            range,
            taken: BTreeMap::new(),
            last: range.network.saturating_add(1),
        }
    }

    /// Notes what was given before a restart. An address outside the range (the node got another one) is not kept.
    pub fn restore(&mut self, pod: &str, address: Ipv4Addr) -> bool {
        let number = u32::from(address);
        let fits = self.range.pods().contains(&number) && !self.taken.contains_key(&number);
        if fits {
            self.taken.insert(number, pod.to_owned());
            self.last = self.last.max(number);
        }
        fits
    }

    /// The pod's address, a new one if it has none; `None` when all are taken.
    pub fn take(&mut self, pod: &str) -> Option<Ipv4Addr> {
        if let Some(address) = self.of(pod) {
            return Some(address);
        }
        let pods = self.range.pods();
        let after = self.last.saturating_add(1).clamp(pods.start, pods.end);
        let free = (after..pods.end)
            .chain(pods.start..after)
            .find(|number| !self.taken.contains_key(number))?;
        self.taken.insert(free, pod.to_owned());
        self.last = free;
        Some(Ipv4Addr::from(free))
    }

    /// The pod's address, if it has one.
    pub fn of(&self, pod: &str) -> Option<Ipv4Addr> {
        self.taken
            .iter()
            .find(|(_, owner)| *owner == pod)
            .map(|(number, _)| Ipv4Addr::from(*number))
    }

    /// Takes the pod's address back.
    pub fn free(&mut self, pod: &str) -> Option<Ipv4Addr> {
        let address = self.of(pod)?;
        self.taken.remove(&u32::from(address));
        Some(address)
    }

    /// The pods that have an address.
    pub fn pods(&self) -> impl Iterator<Item = &str> {
        self.taken.values().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> Range {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_knows_its_edges() {
        let small = range("10.42.1.77/24");
        assert_eq!(small.to_string(), "10.42.1.0/24");
        assert_eq!(small.gateway(), Ipv4Addr::new(10, 42, 1, 1));
        assert_eq!(small.broadcast(), Ipv4Addr::new(10, 42, 1, 255));
        assert!(small.contains(Ipv4Addr::new(10, 42, 1, 9)) && !small.contains(Ipv4Addr::new(10, 42, 2, 9)));
        assert!(range("0.0.0.0/0").contains(Ipv4Addr::new(8, 8, 8, 8)));
        for text in ["", "10.42.0.0", "10.42.0.0/33", "10.42.0/24", "fd00::/56"] {
            assert!(text.parse::<Range>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_pod_keeps_its_address_and_a_freed_one_is_used_last() {
        let mut addresses = Addresses::new(range("10.42.0.0/29"));
        let first = addresses.take("a").unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 42, 0, 2));
        assert_eq!(addresses.take("a"), Some(first));
        for pod in ["b", "c", "d", "e"] {
            assert!(addresses.take(pod).is_some(), "{pod}");
        }
        assert_eq!(addresses.free("a"), Some(first));
        assert_eq!(addresses.take("f"), Some(Ipv4Addr::from(u32::from(first))));
        assert_eq!(addresses.take("g"), None, "the range is full");
    }

    #[test]
    fn restored_addresses_are_not_given_again() {
        let mut addresses = Addresses::new(range("10.42.0.0/24"));
        assert!(addresses.restore("old", Ipv4Addr::new(10, 42, 0, 2)));
        assert!(!addresses.restore("other", Ipv4Addr::new(10, 42, 0, 2)));
        assert!(!addresses.restore("stray", Ipv4Addr::new(10, 43, 0, 2)));
        assert_eq!(addresses.take("new"), Some(Ipv4Addr::new(10, 42, 0, 3)));
    }

    proptest! {
        #[test]
        fn no_two_pods_share_an_address(steps in prop::collection::vec((0_u8..20, any::<bool>()), 0..200)) {
            let mut addresses = Addresses::new(range("10.42.0.0/28"));
            for (pod, take) in steps {
                let pod = format!("pod-{pod}");
                if take { addresses.take(&pod); } else { addresses.free(&pod); }
                let owners: Vec<&str> = addresses.pods().collect();
                let unique: std::collections::BTreeSet<&str> = owners.iter().copied().collect();
                prop_assert_eq!(owners.len(), unique.len());
            }
        }
    }
}
