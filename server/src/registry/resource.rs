//! A resource as one row of a table: all that is not in its schema and is not code of its own.

use std::collections::BTreeSet;

use serde_json::Value;

/// One served resource. Built-in rows are `static` (`kinds/built_in.rs`); CRDs add rows at run time.
#[derive(Clone)]
pub struct Resource {
    /// API group, empty for core.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `Pod`.
    pub kind: &'static str,
    /// `pods`.
    pub plural: &'static str,
    /// `pod`.
    pub singular: &'static str,
    /// `po`.
    pub short: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Lives in a namespace.
    pub namespaced: bool,
    /// What it can do beside create, get, list, watch, update, patch, delete, deletecollection.
    pub subresources: &'static [Subresource],
    /// Only these verbs; virtual review resources have `["create"]`.
    pub verbs: &'static [&'static str],
    /// Selectable fields beside `metadata.name` and `metadata.namespace`, such as `spec.nodeName`.
    pub fields: &'static [&'static str],
    /// Store prefix with slashes, `/registry/pods/`.
    pub prefix: &'static str,
    /// `metadata.generation` counts changes of the desired state.
    pub generation: bool,
    /// PUT to a missing object creates it.
    pub create_on_update: bool,
    /// What no schema says.
    pub rules: &'static dyn Rules,
}

/// A subresource of a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Subresource {
    /// `status`.
    pub name: &'static str,
    /// Kind of its body with group and version when it differs from the parent's, such as `autoscaling/v1 Scale`.
    pub kind: Option<(&'static str, &'static str, &'static str)>,
    /// `["get", "patch", "update"]`.
    pub verbs: &'static [&'static str],
}

/// A fault of one field: cause reason, field path, text after the path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FieldError {
    /// `FieldValueRequired` and its kin.
    pub reason: &'static str,
    /// `spec.containers[0].image`.
    pub field: String,
    /// `Required value`, or `Invalid value: "x": must be …`.
    pub text: String,
}

impl FieldError {
    /// The field is missing.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let text = match detail {
            "" => "Required value".to_owned(),
            detail => format!("Required value: {detail}"),
        };
        Self {
            reason: "FieldValueRequired",
            field: field.into(),
            text,
        }
    }

    /// The value cannot be.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            text: format!("Invalid value: {value}: {detail}"),
        }
    }

    /// The field may not be set, or not be changed.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self {
            reason: "FieldValueForbidden",
            field: field.into(),
            text: format!("Forbidden: {detail}"),
        }
    }

    /// Not one of the values there are.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &BTreeSet<&str>) -> Self {
        let list: Vec<String> = supported.iter().map(|one| format!("{one:?}")).collect();
        let text = format!("Unsupported value: {value}: supported values: {}", list.join(", "));
        Self {
            reason: "FieldValueNotSupported",
            field: field.into(),
            text,
        }
    }

    /// Twice the same.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            field: field.into(),
            text: format!("Duplicate value: {value}"),
        }
    }
}

/// What a kind has beyond its schema. All pure: the object in, the object or its faults out.
pub trait Rules: Sync + Send {
    /// Fills defaults that the schema cannot express. Runs on every write, before admission.
    fn default(&self, _object: &mut Value) {}
    /// Clears what a client may not set, keeps what an update may not lose.
    fn prepare(&self, _new: &mut Value, _old: Option<&Value>) {}
    /// All faults at once, each with its field path.
    fn check(&self, _new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        Vec::new()
    }
}

/// No rules of its own.
#[derive(Debug)]
pub struct NoRules;

impl Rules for NoRules {}
