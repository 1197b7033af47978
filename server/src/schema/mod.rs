//! What a schema can say: fields and their types, list keys, defaults, protobuf tags, descriptions.
//!
//! One embedded table, written by `schema-gen`, answers for every built-in kind of Kubernetes v1.36. It is read in place:
//! nothing is parsed at start, nothing of it is on the heap. Rules that no schema can say are `kinds`'.

pub mod check;
pub mod json;
pub mod merge;
pub mod openapi;
pub mod protobuf;

pub use check::{Checked, Mistyped};
pub use merge::MergeError;

/// A set of types.
#[derive(Debug)]
pub struct Schema {}

/// The types of every built-in kind.
pub fn built_in() -> &'static Schema {
    static BUILT_IN: Schema = Schema {};
    &BUILT_IN
}

impl Schema {
    /// The type of a kind; `group` is empty for core.
    pub fn kind(&'static self, _group: &str, _version: &str, _kind: &str) -> Option<Type> {
        None
    }
}

/// A handle on one message type.
#[derive(Clone, Copy, Debug)]
pub struct Type {}
