//! Filling what is absent in a tree of JSON: the words that defaults are written in.

use agent::wire::object::{self, at};
use serde_json::{Value, json};

/// Sets the value at a path unless there is one.
pub(super) fn absent(object: &mut Value, path: &[&str], value: impl Into<Value>) {
    if at(object, path).is_none_or(Value::is_null) {
        object::set(object, path, value);
    }
}

/// Sets the text at a path unless there is some.
pub(super) fn blank(object: &mut Value, path: &[&str], value: &str) {
    if object::text(object, path).is_empty() {
        object::set(object, path, value);
    }
}

/// What is at a path, to be changed.
pub(super) fn below<'v>(object: &'v mut Value, path: &[&str]) -> Option<&'v mut Value> {
    path.iter().try_fold(object, |value, key| value.get_mut(*key))
}

/// The elements of the list at a path, to be changed.
pub(super) fn each<'v>(object: &'v mut Value, path: &[&str]) -> impl Iterator<Item = &'v mut Value> {
    below(object, path).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Copies the value at a path, or its absence.
pub(super) fn copy(to: &mut Value, from: &Value, path: &[&str]) {
    match at(from, path) {
        Some(value) => object::set(to, path, value.clone()),
        None => drop(object::remove(to, path)),
    }
}

/// An empty object where there is none.
pub(super) fn object(value: &mut Value, path: &[&str]) {
    if !at(value, path).is_some_and(Value::is_object) {
        object::set(value, path, json!({}));
    }
}
