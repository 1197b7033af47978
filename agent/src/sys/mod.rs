//! System calls: the only place with `unsafe`, each use with its reason.
//!
//! Thin and safe to call: file descriptors are owned or borrowed, never bare numbers.

pub mod netlink;
pub mod netns;
pub mod nftables;
pub mod notice;
pub mod passing;
pub mod process;
pub mod terminal;
pub mod tree;
