//! Defaults that the schema data holds, and the canonical form of quantities and times.
//!
//! Defaults of Go code (`SetDefaults_*`) are `kinds`'. Both walks expect a checked tree and leave alone what does not
//! fit.

use agent::wire::time;
use serde_json::Value;

use super::{Field, Kind, Repeat, Shape, Type, check};

impl Type {
    /// Fills the defaults that the schema data holds (not those of code), in objects that are present.
    ///
    /// An empty string counts as absent, as it does for the strings of Go that are no pointers.
    pub fn fill_defaults(self, value: &mut Value) {
        let Value::Object(map) = value else { return };
        if self.shape() != Shape::Object {
            return;
        }
        for field in self.fields().filter(|field| !field.default().is_empty()) {
            let absent = match map.get(field.name()) {
                None | Some(Value::Null) => true,
                Some(Value::String(text)) => text.is_empty(),
                Some(_) => false,
            };
            // A default that is the type's zero (`""`, `0`) is what absence means already, unless absence has a
            // meaning of its own; Go does not print it.
            if absent
                && !matches!(field.default(), "\"\"" | "0" | "false")
                && let Ok(default) = serde_json::from_str(field.default())
            {
                map.insert(field.name().to_owned(), default);
            }
        }
        for (name, value) in map {
            if let Some(field) = self.field(name) {
                each(field, value, &mut Type::fill_defaults);
            }
        }
    }

    /// Brings quantities to their canonical form and times to UTC in whole seconds (microseconds for `MicroTime`).
    pub fn normalise(self, value: &mut Value) {
        match self.shape() {
            Shape::Object => {
                let Value::Object(map) = value else { return };
                for (name, value) in map {
                    if let Some(field) = self.field(name) {
                        each(field, value, &mut Type::normalise);
                    }
                }
            }
            Shape::Quantity => {
                if let Some(quantity) = check::quantity(value) {
                    *value = quantity.to_string().into();
                }
            }
            Shape::Time => rewrite(value, time::seconds),
            Shape::MicroTime => rewrite(value, time::micros),
            Shape::IntOrString
            | Shape::Raw
            | Shape::Json
            | Shape::SchemaOrBool
            | Shape::SchemaOrArray
            | Shape::SchemaOrStrings => {}
        }
    }
}

fn rewrite(value: &mut Value, write: impl Fn(jiff::Timestamp) -> String) {
    if let Some(at) = value.as_str().and_then(time::parse) {
        *value = write(at).into();
    }
}

/// Does `work` to every message that the member holds.
fn each(field: Field, value: &mut Value, work: &mut dyn FnMut(Type, &mut Value)) {
    let Kind::Message(shape) = field.kind() else { return };
    match (field.repeat(), value) {
        (Repeat::One, value) => work(shape, value),
        (Repeat::List, Value::Array(items)) => items.iter_mut().for_each(|item| work(shape, item)),
        (Repeat::Map, Value::Object(map)) => map.values_mut().for_each(|item| work(shape, item)),
        (Repeat::List | Repeat::Map, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::built_in;
    use super::*;

    #[test]
    fn defaults_fill_what_is_absent_or_empty_in_what_is_present() {
        let pod = built_in().kind("", "v1", "Pod").unwrap();
        let ports = |ports: Value| json!({"spec": {"containers": [{"name": "c", "ports": ports}]}});
        let mut value = ports(json!([{"containerPort": 1}, {"containerPort": 2, "protocol": ""}, {"protocol": "UDP"}]));
        pod.fill_defaults(&mut value);
        assert_eq!(
            value,
            ports(
                json!([{"containerPort": 1, "protocol": "TCP"}, {"containerPort": 2, "protocol": "TCP"}, {"protocol": "UDP"}])
            )
        );
        let mut empty = json!({"metadata": {"name": "x"}});
        pod.fill_defaults(&mut empty);
        assert_eq!(empty, json!({"metadata": {"name": "x"}}));
    }

    #[test]
    fn quantities_and_times_become_canonical() {
        let pod = built_in().kind("", "v1", "Pod").unwrap();
        let mut value = json!({"metadata": {"creationTimestamp": "2026-01-02T03:04:05.6+01:00"},
            "spec": {"containers": [{"resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]}});
        pod.normalise(&mut value);
        let expected = json!({"metadata": {"creationTimestamp": "2026-01-02T02:04:05Z"},
            "spec": {"containers": [{"resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]}});
        assert_eq!(value, expected);
        let lease = built_in().kind("coordination.k8s.io", "v1", "Lease").unwrap();
        let mut value = json!({"spec": {"renewTime": "2026-01-02T03:04:05Z"}});
        lease.normalise(&mut value);
        assert_eq!(value, json!({"spec": {"renewTime": "2026-01-02T03:04:05.000000Z"}}));
    }
}
