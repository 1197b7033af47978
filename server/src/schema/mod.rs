//! What a schema can say: fields and their types, list keys, defaults, protobuf tags, descriptions.
//!
//! One embedded table, written by `schema-gen`, answers for every built-in kind of Kubernetes v1.36. It is read in place:
//! nothing is parsed at start, nothing of it is on the heap. Rules that no schema can say are `kinds`'.

pub mod check;
mod fill;
pub mod json;
pub mod merge;
pub mod openapi;
pub mod protobuf;
pub mod table;

pub use check::{Checked, Mistyped};
pub use merge::MergeError;
pub use table::{Field, Kind, ListType, Repeat, Schema, Shape, Type, built_in};
