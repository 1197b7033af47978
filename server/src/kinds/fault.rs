//! Collecting the faults of an object: the words that checks are written in. Texts are upstream's.

use std::collections::BTreeSet;

use agent::wire::object::{at, integer, list, text};
use agent::wire::quantity::Quantity;
use agent::wire::selector::{LabelSelector, Labels, is_dns_label, is_label_key, is_label_value};
use serde_json::{Value, json};

use crate::registry::name_fault;
use crate::registry::resource::{FieldError, Names};

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const KEY_LENGTH: usize = 253;

/// The faults found so far.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<FieldError>);

impl Faults {
    pub(super) fn all(self) -> Vec<FieldError> {
        self.0
    }

    pub(super) fn push(&mut self, fault: FieldError) {
        self.0.push(fault);
    }

    /// Text that must be there.
    pub(super) fn required(&mut self, object: &Value, path: &[&str], root: &str) {
        if text(object, path).is_empty() {
            self.push(FieldError::required(join(root, path), ""));
        }
    }

    /// Text that is one of a few; absent is fine.
    pub(super) fn one_of(&mut self, object: &Value, path: &[&str], root: &str, supported: &[&str]) {
        let given = text(object, path);
        if !given.is_empty() && !supported.contains(&given) {
            let supported: BTreeSet<&str> = supported.iter().copied().collect();
            self.push(FieldError::not_supported(join(root, path), &given.into(), &supported));
        }
    }

    /// A number that may not be below zero; absent is fine.
    pub(super) fn not_negative(&mut self, object: &Value, path: &[&str], root: &str) {
        if let Some(number) = integer(object, path).filter(|number| *number < 0) {
            self.push(FieldError::invalid(join(root, path), &number.into(), NOT_NEGATIVE));
        }
    }

    /// A number within bounds; absent is fine.
    pub(super) fn within(&mut self, object: &Value, path: &[&str], root: &str, least: i64, most: i64) {
        if let Some(number) = integer(object, path).filter(|number| !(least..=most).contains(number)) {
            let detail = format!("must be between {least} and {most}, inclusive");
            self.push(FieldError::invalid(join(root, path), &number.into(), &detail));
        }
    }

    /// What an update may not change.
    pub(super) fn immutable(&mut self, new: &Value, old: &Value, path: &[&str]) {
        self.immutable_because(new, old, path, "field is immutable");
    }

    /// The same, in other words.
    pub(super) fn immutable_because(&mut self, new: &Value, old: &Value, path: &[&str], why: &str) {
        if !same(at(new, path), at(old, path)) {
            let value = at(new, path).cloned().unwrap_or_default();
            self.push(FieldError::invalid(join("", path), &value, why));
        }
    }

    /// A DNS label, such as the name of a container.
    pub(super) fn label_name(&mut self, field: String, name: &str) {
        if let Some(detail) = name_fault(name, Names::Label).filter(|_| !is_dns_label(name)) {
            self.push(FieldError::invalid(field, &name.into(), detail));
        }
    }

    /// A key of a ConfigMap or Secret.
    pub(super) fn data_key(&mut self, field: &str, key: &str) {
        let fine = key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        let detail = match key {
            "." => "must not be '.'",
            key if key.starts_with("..") => "must not start with '..'",
            key if key.len() > KEY_LENGTH => "must be no more than 253 bytes",
            key if key.is_empty() || !fine => {
                "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
            }
            _ => return,
        };
        self.push(FieldError::invalid(format!("{field}[{key}]"), &key.into(), detail));
    }

    /// A port's number, which must be there.
    pub(super) fn port(&mut self, field: String, port: Option<i64>) {
        match port {
            None | Some(0) => self.push(FieldError::required(field, "")),
            Some(1..=65535) => {}
            Some(other) => {
                let detail = "must be between 1 and 65535, inclusive";
                self.push(FieldError::invalid(field, &other.into(), detail));
            }
        }
    }

    /// A label selector as objects carry it: well formed, and not empty unless it may be.
    pub(super) fn selector(&mut self, object: &Value, path: &[&str], root: &str, may_be_empty: bool) {
        let field = join(root, path);
        let Some(selector) = at(object, path) else {
            if !may_be_empty {
                self.push(FieldError::required(field, ""));
            }
            return;
        };
        let pairs = at(selector, &["matchLabels"]).and_then(Value::as_object);
        let expressions = list(selector, &["matchExpressions"]);
        if !may_be_empty && pairs.is_none_or(serde_json::Map::is_empty) && expressions.is_empty() {
            let detail = "empty selector is invalid for deployment";
            self.push(FieldError::invalid(field.as_str(), selector, detail));
        }
        for (key, value) in pairs.into_iter().flatten() {
            if !is_label_key(key) || !value.as_str().is_some_and(is_label_value) {
                let detail = "must be a valid label key and value";
                self.push(FieldError::invalid(
                    format!("{field}.matchLabels"),
                    &json!({key: value}),
                    detail,
                ));
            }
        }
        for (index, expression) in expressions.iter().enumerate() {
            let field = |part: &str| format!("{field}.matchExpressions[{index}].{part}");
            let values = list(expression, &["values"]);
            match text(expression, &["operator"]) {
                "In" | "NotIn" if values.is_empty() => {
                    let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                    self.push(FieldError::required(field("values"), detail));
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    self.push(FieldError::forbidden(field("values"), detail));
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                other => {
                    let detail = "not a valid selector operator";
                    self.push(FieldError::invalid(field("operator"), &other.into(), detail));
                }
            }
            let key = text(expression, &["key"]);
            if !is_label_key(key) {
                self.push(FieldError::invalid(
                    field("key"),
                    &key.into(),
                    "must be a valid label key",
                ));
            }
        }
    }

    /// Quantities of a map; each must read, and none may be below zero.
    pub(super) fn quantities(&mut self, object: &Value, path: &[&str], root: &str) {
        for (name, amount) in at(object, path).and_then(Value::as_object).into_iter().flatten() {
            let field = format!("{}[{name}]", join(root, path));
            match quantity(amount) {
                None => {
                    let detail =
                        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
                    self.push(FieldError::invalid(field, amount, detail));
                }
                Some(amount_read) if amount_read < Quantity::ZERO => {
                    self.push(FieldError::invalid(field, amount, NOT_NEGATIVE));
                }
                Some(_) => {}
            }
        }
    }
}

/// A quantity written as text or as a number.
pub(super) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

/// Whether a selector in an object selects these labels; what cannot be read selects nothing.
pub(super) fn selects(selector: &Value, labels: Option<&Value>) -> bool {
    let selector: Option<LabelSelector> = serde_json::from_value(selector.clone()).ok();
    let selector = selector.and_then(|selector| Labels::try_from(&selector).ok());
    selector.is_some_and(|selector| selector.matches(|key| labels?.get(key)?.as_str()))
}

/// A path below a root, as errors print it.
pub(super) fn join(root: &str, path: &[&str]) -> String {
    let parts = std::iter::once(root).chain(path.iter().copied());
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}

/// Equal, where an empty container equals none.
pub(super) fn same(left: Option<&Value>, right: Option<&Value>) -> bool {
    fn solid(value: Option<&Value>) -> Option<&Value> {
        value.filter(|value| match value {
            Value::Null => false,
            Value::Object(map) => !map.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::String(text) => !text.is_empty(),
            Value::Bool(_) | Value::Number(_) => true,
        })
    }
    solid(left) == solid(right)
}
