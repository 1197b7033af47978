//! `metadata` as the server keeps it: what it stamps, what an update may not change, what is well formed.
//!
//! Source: apimachinery v1.36 `pkg/api/validation/objectmeta.go`, apiserver `pkg/registry/rest/{create,update}.go`.

use agent::wire::object::{self, at, integer, list, text};
use agent::wire::selector::{is_dns_label, is_dns_subdomain, is_label_key, is_label_value};
use agent::wire::time;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::resource::{FieldError, Names, Resource};

const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
const GENERATED_BASE_LIMIT: usize = 58;
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

const SUBDOMAIN_TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_TEXT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LETTER_LABEL_TEXT: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE_TEXT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
pub(crate) const LABEL_KEY_TEXT: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

/// Five letters that spell no word, from sixteen random bytes.
pub(crate) fn suffix(random: [u8; 16]) -> String {
    random
        .chunks(3)
        .take(SUFFIX_LENGTH)
        .map(|chunk| {
            let number = chunk.iter().fold(0_usize, |sum, byte| sum * 256 + usize::from(*byte));
            char::from(*SUFFIX_ALPHABET.get(number % SUFFIX_ALPHABET.len()).unwrap_or(&b'x'))
        })
        .collect()
}

/// A name from `generateName`.
pub(super) fn generated_name(base: &str, random: [u8; 16]) -> String {
    let cut: String = base.chars().take(GENERATED_BASE_LIMIT).collect();
    cut + &suffix(random)
}

/// A random UUID, version 4.
pub(crate) fn uuid(mut random: [u8; 16]) -> String {
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut random;
    *version = (*version & 0x0f) | 0x40;
    *variant = (*variant & 0x3f) | 0x80;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

/// What the server alone decides about a new object.
pub(super) fn stamp(object: &mut Value, row: &Resource, now: Timestamp, random: [u8; 16]) {
    for field in [
        "resourceVersion",
        "selfLink",
        "managedFields",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        object::remove(object, &["metadata", field]);
    }
    object::set(object, &["metadata", "uid"], uuid(random));
    object::set(object, &["metadata", "creationTimestamp"], time::seconds(now));
    if row.generation {
        object::set(object, &["metadata", "generation"], 1);
    }
}

/// Keeps what an update may not change: identity, birth, death.
pub(super) fn keep(new: &mut Value, old: &Value) {
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ] {
        match at(old, &["metadata", field]) {
            Some(value) => object::set(new, &["metadata", field], value.clone()),
            None => drop(object::remove(new, &["metadata", field])),
        }
    }
    object::remove(new, &["metadata", "selfLink"]);
    object::remove(new, &["metadata", "managedFields"]);
}

/// One generation on.
pub(super) fn raise(object: &mut Value) {
    let next = integer(object, &["metadata", "generation"]).unwrap_or(0) + 1;
    object::set(object, &["metadata", "generation"], next);
}

/// All faults of `metadata`.
pub(super) fn check(new: &Value, old: Option<&Value>, row: &Resource) -> Vec<FieldError> {
    let mut faults = Vec::new();
    check_name(new, old, row, &mut faults);
    check_labels(new, &["metadata", "labels"], "metadata.labels", &mut faults);
    check_annotations(new, &mut faults);
    check_owners(new, &mut faults);
    check_finalizers(new, old, &mut faults);
    faults
}

fn check_name(new: &Value, old: Option<&Value>, row: &Resource, faults: &mut Vec<FieldError>) {
    let name = text(new, &["metadata", "name"]);
    if old.is_some() {
        return;
    }
    if name.is_empty() {
        faults.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
        return;
    }
    if let Some(detail) = name_fault(name, row.names) {
        faults.push(FieldError::invalid("metadata.name", &name.into(), detail));
    }
}

/// Why the name cannot be one, if so.
pub(crate) fn name_fault(name: &str, names: Names) -> Option<&'static str> {
    if name.contains('/') || name.contains('%') || name == "." || name == ".." {
        return Some("may not be '.' or '..', and may not contain '/' or '%'");
    }
    match names {
        Names::PathSegment => None,
        Names::Subdomain => (!is_dns_subdomain(name)).then_some(SUBDOMAIN_TEXT),
        Names::Label if name.len() > 63 => Some("must be no more than 63 bytes"),
        Names::Label => (!is_dns_label(name)).then_some(LABEL_TEXT),
        Names::LabelWithLetter if name.len() > 63 => Some("must be no more than 63 bytes"),
        Names::LabelWithLetter => {
            let letter = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
            (!letter || !is_dns_label(name)).then_some(LETTER_LABEL_TEXT)
        }
    }
}

/// Faults of a map of labels anywhere in an object.
pub(crate) fn check_labels(object: &Value, path: &[&str], field: &str, faults: &mut Vec<FieldError>) {
    for (key, value) in members(object, path) {
        if !is_label_key(key) {
            faults.push(FieldError::invalid(field, &key.as_str().into(), LABEL_KEY_TEXT));
        }
        if !value.as_str().is_some_and(is_label_value) {
            faults.push(FieldError::invalid(field, value, LABEL_VALUE_TEXT));
        }
    }
}

fn check_annotations(object: &Value, faults: &mut Vec<FieldError>) {
    let mut size = 0;
    for (key, value) in members(object, &["metadata", "annotations"]) {
        size += key.len() + value.as_str().map_or(0, str::len);
        // Upstream lowers the key before the check.
        if !is_label_key(&key.to_lowercase()) {
            faults.push(FieldError::invalid(
                "metadata.annotations",
                &key.as_str().into(),
                LABEL_KEY_TEXT,
            ));
        }
    }
    if size > ANNOTATIONS_LIMIT {
        faults.push(FieldError::too_long("metadata.annotations", ANNOTATIONS_LIMIT));
    }
}

fn check_owners(object: &Value, faults: &mut Vec<FieldError>) {
    let mut controllers = 0;
    for (index, owner) in list(object, &["metadata", "ownerReferences"]).iter().enumerate() {
        for (key, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "kind must not be empty"),
            ("name", "name must not be empty"),
            ("uid", "uid must not be empty"),
        ] {
            if text(owner, &[key]).is_empty() {
                let field = format!("metadata.ownerReferences[{index}].{key}");
                faults.push(FieldError::invalid(field, &"".into(), detail));
            }
        }
        controllers += usize::from(at(owner, &["controller"]) == Some(&Value::Bool(true)));
    }
    if controllers > 1 {
        faults.push(FieldError::invalid(
            "metadata.ownerReferences",
            &Value::from(controllers),
            "Only one reference can have Controller set to true",
        ));
    }
}

fn check_finalizers(new: &Value, old: Option<&Value>, faults: &mut Vec<FieldError>) {
    let finalizers = list(new, &["metadata", "finalizers"]);
    for (index, finalizer) in finalizers.iter().enumerate() {
        if !finalizer.as_str().is_some_and(is_label_key) {
            faults.push(FieldError::invalid(
                format!("metadata.finalizers[{index}]"),
                finalizer,
                LABEL_KEY_TEXT,
            ));
        }
    }
    let Some(old) = old.filter(|old| at(old, &["metadata", "deletionTimestamp"]).is_some()) else {
        return;
    };
    let before = list(old, &["metadata", "finalizers"]);
    let added: Vec<&str> = finalizers
        .iter()
        .filter(|one| !before.contains(one))
        .filter_map(Value::as_str)
        .collect();
    if !added.is_empty() {
        let detail =
            format!("no new finalizers can be added if the object is being deleted, found new finalizers {added:?}");
        faults.push(FieldError::forbidden("metadata.finalizers", &detail));
    }
}

fn members<'v>(object: &'v Value, path: &[&str]) -> impl Iterator<Item = (&'v String, &'v Value)> {
    at(object, path)
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::iter)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_follow_their_kind() {
        for (name, names, fine) in [
            ("web-1.example", Names::Subdomain, true),
            ("Web", Names::Subdomain, false),
            ("a.b", Names::Label, false),
            ("1a", Names::Label, true),
            ("1a", Names::LabelWithLetter, false),
            ("a1", Names::LabelWithLetter, true),
            ("system:node", Names::PathSegment, true),
            ("a/b", Names::PathSegment, false),
            ("..", Names::PathSegment, false),
            (&"a".repeat(64), Names::Label, false),
        ] {
            assert_eq!(name_fault(name, names).is_none(), fine, "{name} as {names:?}");
        }
    }

    #[test]
    fn faults_of_metadata_name_their_fields() {
        let row = crate::kinds::find("", "v1", "configmaps").unwrap();
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "u", "controller": true});
        let object = json!({"metadata": {"name": "A", "labels": {"-": "b c"}, "annotations": {"Ok/Fine": "x"},
            "ownerReferences": [owner, owner, {"kind": "Pod"}], "finalizers": ["a b"]}});
        let faults = check(&object, None, &row);
        let fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "metadata.name",
                "metadata.labels",
                "metadata.labels",
                "metadata.ownerReferences[2].apiVersion",
                "metadata.ownerReferences[2].name",
                "metadata.ownerReferences[2].uid",
                "metadata.ownerReferences",
                "metadata.finalizers[0]",
            ]
        );
    }

    #[test]
    fn no_finalizer_joins_a_dying_object() {
        let row = crate::kinds::find("", "v1", "configmaps").unwrap();
        let old = json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b", "c/d"]}});
        let fewer = json!({"metadata": {"name": "a", "finalizers": ["a/b"]}});
        let more = json!({"metadata": {"name": "a", "finalizers": ["a/b", "x/y"]}});
        assert_eq!(check(&fewer, Some(&old), &row), []);
        let faults = check(&more, Some(&old), &row);
        assert_eq!(faults.len(), 1);
        assert_eq!(
            faults[0].text,
            "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers [\"x/y\"]"
        );
    }

    #[test]
    fn uids_are_version_four_and_suffixes_spell_nothing() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid([0; 16]), "00000000-0000-4000-8000-000000000000");
        assert_eq!(suffix([0; 16]), "bbbbb");
        assert_eq!(generated_name(&"x".repeat(70), [0; 16]).len(), 63);
    }
}
