//! A resource as one row of a table: all that is not in its schema and is not code of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::store::Durability;

/// One served resource. Built-in rows live for ever (`kinds/built_in.rs`); CRDs add rows at run time.
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
    /// What it can do beside its verbs.
    pub subresources: &'static [Subresource],
    /// What it can do; virtual review resources have `["create"]` and are answered before the registry.
    pub verbs: &'static [&'static str],
    /// Selectable fields beside `metadata.name` and `metadata.namespace`: what selectors call them and where they are.
    pub fields: &'static [SelectableField],
    /// Store prefix with slashes, `/registry/pods/`.
    pub prefix: &'static str,
    /// What names are made of.
    pub names: Names,
    /// `metadata.generation` counts changes of the desired state.
    pub generation: bool,
    /// PUT to a missing object creates it.
    pub create_on_update: bool,
    /// PUT without `resourceVersion` overwrites whatever is there; otherwise it is refused.
    pub unconditional_update: bool,
    /// A deletion that removes the object answers with the object instead of a `Status`.
    pub returns_deleted: bool,
    /// Dependents are orphaned unless a deletion says otherwise.
    pub orphans: bool,
    /// What no schema says.
    pub rules: &'static dyn Rules,
    /// It is another row's objects in another group or version; all but those two and this is then as in that row.
    pub view: Option<&'static View>,
}

/// Another row's objects in another form: created, changed, listed and watched in either, stored in that row's.
///
/// Both conversions are pure, leave `apiVersion` and `kind` alone, and must lead back to what they were given.
#[derive(Debug)]
pub struct View {
    /// Group, version and plural name of the row that they are stored by.
    pub of: (&'static str, &'static str, &'static str),
    /// What field selectors call a field in this form, and in the stored one.
    pub selectors: &'static [(&'static str, &'static str)],
    /// Annotations in which this form has what it has no field for, and which [`View::store`] takes in.
    pub notes: &'static [&'static str],
    /// Turns this form into the stored one.
    pub store: fn(&mut Value),
    /// Turns the stored form into this one.
    pub show: fn(&mut Value),
    /// What is a fault in this form only, beside those that the rules find: of the new and the old object as stored.
    pub check: fn(&Value, Option<&Value>) -> Vec<FieldError>,
}

/// A field that `fieldSelector` knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SelectableField {
    /// What selectors call it: `spec.nodeName`.
    pub name: &'static str,
    /// Where it is, as JSON keys.
    pub path: &'static [&'static str],
    /// What it is when it is absent or empty.
    pub absent: Absent,
}

/// What a field that has nothing in it is for selectors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Absent {
    /// This text.
    Is(&'static str),
    /// The same as the row's field of this name.
    As(&'static str),
}

/// What the name of an object may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Names {
    /// At most 253, lower case alphanumerics, `-` and `.`.
    Subdomain,
    /// At most 63, lower case alphanumerics and `-`.
    Label,
    /// A label that begins with a letter.
    LabelWithLetter,
    /// Anything that is one segment of a path.
    PathSegment,
}

/// How a write is kept: on disk before it is acknowledged, or later; for ever, or for a while.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Keep {
    /// How soon on disk.
    pub durability: Durability,
    /// Deleted so long after the write.
    pub ttl: Option<Duration>,
}

impl Keep {
    /// On disk at once, for ever.
    pub const DURABLE: Self = Self {
        durability: Durability::Durable,
        ttl: None,
    };
    /// On disk when convenient, for ever.
    pub const VOLATILE: Self = Self {
        durability: Durability::Volatile,
        ttl: None,
    };

    /// On disk when convenient, and gone so long after this write.
    pub const fn passing(life: Duration) -> Self {
        Self {
            durability: Durability::Volatile,
            ttl: Some(life),
        }
    }
}

/// `apps/v1`, or `v1` for core, whose group is empty.
pub fn api_version(group: &str, version: &str) -> String {
    match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    }
}

impl Resource {
    /// Group, version and kind of its objects.
    pub fn group_version_kind(&self) -> (&'static str, &'static str, &'static str) {
        (self.group, self.version, self.kind)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|one| one.name == name)
    }

    /// Has a status that only its own endpoint writes.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// `apps/v1`, or `v1` for core.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// The store key of an object.
    pub fn key(&self, namespace: Option<&str>, name: &str) -> String {
        match namespace {
            Some(namespace) if self.namespaced => format!("{}{namespace}/{name}", self.prefix),
            _ => format!("{}{name}", self.prefix),
        }
    }

    /// Where the objects of one namespace, or all of them, begin in the store.
    pub fn range(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) if self.namespaced => format!("{}{namespace}/", self.prefix),
            _ => self.prefix.to_owned(),
        }
    }
}

/// A subresource of a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Subresource {
    /// `status`.
    pub name: &'static str,
    /// Group, version and kind of its body when they differ from the parent's, such as `autoscaling`, `v1`, `Scale`.
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

    /// Refers to what is not there.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueNotFound",
            field: field.into(),
            text: format!("Not found: {value}"),
        }
    }

    /// More than fits.
    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        Self {
            reason: "FieldValueTooLong",
            field: field.into(),
            text: format!("Too long: may not be more than {limit} bytes"),
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
    /// Fills defaults that the schema cannot express. Runs on every write, before admission; must be idempotent.
    fn default(&self, _object: &mut Value) {}

    /// Clears what a client may not set, keeps what an update may not lose. `old` is `None` on create. Not run for
    /// writes to subresources.
    fn prepare(&self, _new: &mut Value, _old: Option<&Value>) {}

    /// All faults at once, each with its field path. Not run for writes to subresources.
    fn check(&self, _new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        Vec::new()
    }

    /// The desired state differs, so that `metadata.generation` goes up: anything but metadata and status.
    fn changed(&self, new: &Value, old: &Value) -> bool {
        let beside = |key: &str| matches!(key, "metadata" | "status" | "apiVersion" | "kind");
        let differs = |from: &Value, to: &Value| {
            let members = from.as_object().into_iter().flatten();
            members
                .into_iter()
                .any(|(key, value)| !beside(key) && to.get(key) != Some(value))
        };
        differs(new, old) || differs(old, new)
    }

    /// A new object brings its status along: nodes report themselves in one write.
    fn born_with_status(&self) -> bool {
        false
    }

    /// Advice that goes along with the answer to a write.
    fn warnings(&self, _new: &Value) -> Vec<String> {
        Vec::new()
    }

    /// How this write is kept.
    fn keep(&self, _new: &Value, _old: Option<&Value>) -> Keep {
        Keep::DURABLE
    }

    /// Seconds between the request to delete and the removal, from what the deletion asks for; 0: at once.
    fn grace(&self, _object: &Value, _asked: Option<i64>) -> i64 {
        0
    }

    /// Marks an object that has just been asked to go.
    fn deleting(&self, _object: &mut Value) {}

    /// Something beside `metadata.finalizers` still holds the object (a namespace's own finalizers).
    fn held(&self, _object: &Value) -> bool {
        false
    }
}

/// No rules of its own.
#[derive(Debug)]
pub struct NoRules;

impl Rules for NoRules {}
