//! What is known of each built-in kind: the table of rows, and one file of rules per kind that has any.
//!
//! A kind without rules of its own has a row in `built_in.rs` and no file. Rules are pure; what needs to look at other
//! objects is admission's.

mod autoscaler;
mod batch;
pub mod bootstrap_token;
mod built_in;
pub mod columns;
mod container_check;
mod data;
mod event;
mod extension;
mod fault;
mod fill;
mod grant;
mod heartbeat;
mod index;
mod namespace;
mod network;
mod node;
mod pod;
mod pod_check;
mod pod_spec;
mod policy;
mod service;
mod volume;
mod workload;

use std::sync::{Arc, LazyLock};

use crate::registry::resource::{Resource, View};

pub use index::{indexer, of_key};

/// All built-in rows, in the order of discovery.
pub fn table() -> &'static [Arc<Resource>] {
    static TABLE: LazyLock<Vec<Arc<Resource>>> = LazyLock::new(|| built_in::rows().into_iter().map(Arc::new).collect());
    &TABLE
}

/// The row of a group, version and plural name.
pub fn find(group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
    let wanted = |row: &&Arc<Resource>| row.plural == plural && row.group == group && row.version == version;
    table().iter().find(wanted).cloned()
}

/// The row that a view's objects are stored by.
pub fn stored(view: &View) -> Option<Arc<Resource>> {
    let (group, version, plural) = view.of;
    find(group, version, plural)
}

/// The row of a group, version and kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<Arc<Resource>> {
    let wanted = |row: &&Arc<Resource>| row.kind == kind && row.group == group && row.version == version;
    table().iter().find(wanted).cloned()
}
