//! ConfigMaps and Secrets: keys, size, and what immutable means.
//!
//! Source: Kubernetes v1.36 `pkg/apis/core/validation` (`ValidateSecret`, `ValidateConfigMap` and their updates).

use agent::wire::object::{self, at, text};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::fault::{Faults, same};
use super::fill::blank;
use crate::registry::resource::{FieldError, Rules};

/// Source: `core.MaxSecretSize`; ConfigMaps have the same.
const MOST_BYTES: usize = 1024 * 1024;

/// Rules of config maps.
#[derive(Debug)]
pub(super) struct ConfigMap;
/// Rules of secrets.
#[derive(Debug)]
pub(super) struct Secret;

fn members<'v>(object: &'v Value, key: &str) -> impl Iterator<Item = (&'v String, &'v Value)> {
    object
        .get(key)
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::iter)
}

impl Rules for ConfigMap {
    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let mut size = 0;
        for (key, value) in members(new, "data") {
            faults.data_key("data", key);
            size += value.as_str().map_or(0, str::len);
            if at(new, &["binaryData", key]).is_some() {
                let detail = "duplicate of key present in binaryData";
                faults.push(FieldError::invalid(
                    format!("data[{key}]"),
                    &key.as_str().into(),
                    detail,
                ));
            }
        }
        for (key, value) in members(new, "binaryData") {
            faults.data_key("binaryData", key);
            size += decoded(value, &format!("binaryData[{key}]"), &mut faults);
        }
        if size > MOST_BYTES {
            faults.push(FieldError::too_long("", MOST_BYTES));
        }
        if let Some(old) = old {
            sealed(new, old, &["data", "binaryData"], &mut faults);
        }
        faults.all()
    }
}

impl Rules for Secret {
    fn default(&self, secret: &mut Value) {
        blank(secret, &["type"], "Opaque");
        let Some(Value::Object(plain)) = object::remove(secret, &["stringData"]) else {
            return;
        };
        for (key, value) in plain {
            let bytes = value.as_str().unwrap_or_default().as_bytes();
            object::set(secret, &["data", &key], STANDARD.encode(bytes));
        }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let mut size = 0;
        for (key, value) in members(new, "data") {
            faults.data_key("data", key);
            size += decoded(value, &format!("data[{key}]"), &mut faults);
        }
        if size > MOST_BYTES {
            faults.push(FieldError::too_long("data", MOST_BYTES));
        }
        by_type(new, &mut faults);
        if let Some(old) = old {
            faults.immutable(new, old, &["type"]);
            sealed(new, old, &["data"], &mut faults);
        }
        faults.all()
    }
}

fn decoded(value: &Value, field: &str, faults: &mut Faults) -> usize {
    let text = value.as_str().unwrap_or_default();
    match STANDARD.decode(text) {
        Ok(bytes) => bytes.len(),
        Err(error) => {
            faults.push(FieldError::invalid(
                field,
                &"".into(),
                &format!("illegal base64 data: {error}"),
            ));
            0
        }
    }
}

fn by_type(secret: &Value, faults: &mut Faults) {
    let needed: &[&str] = match text(secret, &["type"]) {
        "kubernetes.io/service-account-token" => {
            let annotation = ["metadata", "annotations", "kubernetes.io/service-account.name"];
            if text(secret, &annotation).is_empty() {
                let field = "metadata.annotations[kubernetes.io/service-account.name]";
                faults.push(FieldError::required(field, ""));
            }
            &[]
        }
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/basic-auth" => {
            if at(secret, &["data", "username"]).is_none() && at(secret, &["data", "password"]).is_none() {
                faults.push(FieldError::required("data[username]", ""));
                faults.push(FieldError::required("data[password]", ""));
            }
            &[]
        }
        _ => &[],
    };
    for key in needed {
        if at(secret, &["data", key]).is_none() {
            faults.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
}

/// What is immutable stays so, with all it holds.
fn sealed(new: &Value, old: &Value, parts: &[&str], faults: &mut Faults) {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return;
    }
    const WHY: &str = "field is immutable when `immutable` is set";
    if new.get("immutable") != Some(&Value::Bool(true)) {
        faults.push(FieldError::forbidden("immutable", WHY));
    }
    for part in parts {
        if !same(new.get(*part), old.get(*part)) {
            faults.push(FieldError::forbidden(*part, WHY));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(faults: Vec<FieldError>) -> Vec<String> {
        faults
            .into_iter()
            .map(|fault| format!("{}: {}", fault.field, fault.text))
            .collect()
    }

    #[test]
    fn plain_text_of_a_secret_becomes_data() {
        let mut secret = json!({"data": {"a": "eA=="}, "stringData": {"b": "hi"}});
        Secret.default(&mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "eA==", "b": "aGk="}}));
        assert_eq!(Secret.check(&secret, None), []);
    }

    #[test]
    fn keys_and_sizes_are_bounded() {
        let map = json!({"data": {"a b": "x", "..": "x", "fine-.key": "x"}, "binaryData": {"fine-.key": "eA=="}});
        let faults = texts(ConfigMap.check(&map, None));
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert_eq!(faults[0], "data[..]: Invalid value: \"..\": must not start with '..'");
        assert!(faults[1].starts_with("data[a b]: Invalid value: \"a b\": a valid config key must consist of"));
        let big = json!({"data": {"a": "x".repeat(MOST_BYTES + 1)}});
        assert_eq!(
            texts(ConfigMap.check(&big, None)),
            [": Too long: may not be more than 1048576 bytes"]
        );
    }

    #[test]
    fn what_is_immutable_stays() {
        let old = json!({"data": {"a": "1"}, "immutable": true});
        for (new, fields) in [
            (
                json!({"data": {"a": "1"}, "immutable": true, "metadata": {"labels": {}}}),
                vec![],
            ),
            (json!({"data": {"a": "2"}, "immutable": true}), vec!["data"]),
            (json!({"data": {"a": "1"}}), vec!["immutable"]),
        ] {
            let faults = ConfigMap.check(&new, Some(&old));
            let found: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
            assert_eq!(found, fields, "{new}");
        }
    }

    #[test]
    fn a_secret_of_a_type_has_what_the_type_needs() {
        let secret = json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "eA=="}});
        assert_eq!(texts(Secret.check(&secret, None)), ["data[tls.key]: Required value"]);
        let other = json!({"type": "Opaque"});
        assert_eq!(
            texts(Secret.check(&other, Some(&json!({"type": "x"})))),
            ["type: Invalid value: \"Opaque\": field is immutable"]
        );
    }
}
