//! Strategic merge patch.

use serde_json::Value;

use super::Type;

/// Why a strategic merge patch cannot be applied.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MergeError {
    /// 400: an element of a keyed list has no key.
    #[error("map: {element} does not contain declared merge key: {key}")]
    MissingKey {
        /// The element, as JSON.
        element: String,
        /// The key it lacks.
        key: String,
    },
    /// 400: a `$`-directive is malformed or contradicts the patch.
    #[error("{0}")]
    Directive(String),
    /// 400: the patch has another JSON type than the field.
    #[error("cannot merge {found} into field {path} of type {expected}")]
    Mistyped {
        /// Where.
        path: String,
        /// What the schema wants.
        expected: &'static str,
        /// What the patch has.
        found: &'static str,
    },
}

impl Type {
    /// Applies a strategic merge patch.
    ///
    /// # Errors
    /// [`MergeError`]; the target is then in no defined state.
    pub fn strategic_merge(self, _target: &mut Value, _patch: Value) -> Result<(), MergeError> {
        Err(MergeError::Directive("strategic merge is not there yet".to_owned()))
    }
}
