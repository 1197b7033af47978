//! System calls: the only place with `unsafe`, each use with its reason.

pub mod netlink;
pub mod netns;
pub mod nftables;
