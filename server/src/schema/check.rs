//! Does a JSON tree fit its type? Unknown fields and wrong JSON types are reported, unknown fields and nulls removed.
//!
//! Ranges, formats and what one field means for another are `kinds`'. Source: sigs.k8s.io/json and the `UnmarshalJSON`
//! methods of apimachinery v1.36.

use agent::wire::{quantity::Quantity, time};
use base64::Engine as _;
use serde_json::{Map, Value};

use super::{Field, Kind, Repeat, Shape, Type, built_in};

/// More faults than anyone reads; the rest of a hostile body is not recorded.
const FAULTS_LIMIT: usize = 100;
/// The type that schemas of custom resources consist of.
const SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// What [`Type::check`] found. Paths are written as Kubernetes prints them: `spec.containers[0].image`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Checked {
    /// Fields that the type does not have; they were removed. At most a hundred.
    pub unknown: Vec<String>,
    /// Values of the wrong JSON type; they were left as they were. Any of these makes the request a 400. At most a
    /// hundred.
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
    pub fn check(self, value: &mut Value) -> Checked {
        let mut walk = Walk::default();
        walk.message(self, value);
        walk.checked
    }
}

/// What a value is, in the words of [`Mistyped`].
pub(super) fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

/// The type of the schemas in custom resource definitions.
pub(super) fn schema_type() -> Option<Type> {
    built_in().named(SCHEMA)
}

#[derive(Default)]
struct Walk {
    path: String,
    checked: Checked,
}

impl Walk {
    /// Does `work` one step deeper in the path.
    fn within(&mut self, step: std::fmt::Arguments<'_>, work: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        // Writing to a string cannot fail.
        let _ = std::fmt::Write::write_fmt(&mut self.path, step);
        work(self);
        self.path.truncate(length);
    }

    fn member(&mut self, name: &str, work: impl FnOnce(&mut Self)) {
        if self.path.is_empty() {
            self.within(format_args!("{name}"), work);
        } else {
            self.within(format_args!(".{name}"), work);
        }
    }

    fn need(&mut self, fits: bool, expected: &'static str, value: &Value) {
        if !fits && self.checked.mistyped.len() < FAULTS_LIMIT {
            let path = self.path.clone();
            let found = name_of(value);
            self.checked.mistyped.push(Mistyped { path, expected, found });
        }
    }

    fn message(&mut self, shape: Type, value: &mut Value) {
        match (shape.shape(), value) {
            (Shape::Object, Value::Object(map)) => self.object(shape, map),
            (Shape::IntOrString, value) => {
                whole(value);
                let fits = value.is_string() || value.as_i64().is_some_and(|number| i32::try_from(number).is_ok());
                self.need(fits, "integer or string", value);
            }
            (Shape::Quantity, value) => self.need(quantity(value).is_some(), "quantity", value),
            (Shape::Time | Shape::MicroTime, value) => {
                let fits = value.as_str().is_some_and(|text| time::parse(text).is_some());
                self.need(fits, "time", value);
            }
            (Shape::Raw | Shape::Json, _) | (Shape::SchemaOrBool, Value::Bool(_)) => {}
            (Shape::SchemaOrArray, Value::Array(items)) => self.items(items, |walk, item| walk.schema(item)),
            (Shape::SchemaOrStrings, Value::Array(items)) => {
                self.items(items, |walk, item| walk.need(item.is_string(), "string", item));
            }
            (Shape::SchemaOrBool | Shape::SchemaOrArray | Shape::SchemaOrStrings, value) => self.schema(value),
            (Shape::Object, value) => self.need(false, "object", value),
        }
    }

    fn schema(&mut self, value: &mut Value) {
        if let Some(shape) = schema_type() {
            self.message(shape, value);
        }
    }

    fn object(&mut self, shape: Type, map: &mut Map<String, Value>) {
        map.retain(|name, value| {
            let Some(field) = shape.field(name) else {
                if self.checked.unknown.len() < FAULTS_LIMIT {
                    self.member(name, |walk| walk.checked.unknown.push(walk.path.clone()));
                }
                return false;
            };
            if !value.is_null() {
                self.member(name, |walk| walk.field(field, value));
            }
            !value.is_null()
        });
    }

    fn field(&mut self, field: Field, value: &mut Value) {
        match (field.repeat(), value) {
            (Repeat::One, value) => self.one(field.kind(), value),
            (Repeat::List, Value::Array(items)) => self.items(items, |walk, item| {
                void(field.kind(), item);
                walk.one(field.kind(), item);
            }),
            (Repeat::List, value) => self.need(false, "list", value),
            (Repeat::Map, Value::Object(map)) => {
                for (key, value) in map {
                    void(field.kind(), value);
                    self.member(key, |walk| walk.one(field.kind(), value));
                }
            }
            (Repeat::Map, value) => self.need(false, "object", value),
        }
    }

    fn items(&mut self, items: &mut [Value], work: impl Fn(&mut Self, &mut Value)) {
        for (index, item) in items.iter_mut().enumerate() {
            self.within(format_args!("[{index}]"), |walk| work(walk, item));
        }
    }

    fn one(&mut self, kind: Kind, value: &mut Value) {
        if matches!(kind, Kind::Int32 | Kind::Int64) {
            whole(value);
        }
        match kind {
            Kind::Message(shape) => self.message(shape, value),
            Kind::String => self.need(value.is_string(), "string", value),
            Kind::Bool => self.need(value.is_boolean(), "boolean", value),
            Kind::Int32 => {
                let fits = value.as_i64().is_some_and(|number| i32::try_from(number).is_ok());
                self.need(fits, "32-bit integer", value);
            }
            Kind::Int64 => self.need(value.is_i64(), "integer", value),
            Kind::Number => self.need(value.is_number(), "number", value),
            Kind::Bytes => {
                let engine = &base64::engine::general_purpose::STANDARD;
                let fits = value.as_str().is_some_and(|text| engine.decode(text).is_ok());
                self.need(fits, "base64 string", value);
            }
            Kind::Any => {}
            Kind::StringList => match value {
                Value::Array(items) => self.items(items, |walk, item| walk.one(Kind::String, item)),
                other => self.need(false, "list", other),
            },
        }
    }
}

/// `1.0` is the integer 1, as apimachinery reads it; other fractions stay what they are.
fn whole(value: &mut Value) {
    if !value.is_f64() {
        return;
    }
    let exact = |number: &f64| number.fract() == 0.0 && number.abs() < MOST_EXACT;
    let digits = value.as_f64().filter(exact).map(|number| format!("{number:.0}"));
    if let Some(integer) = digits.and_then(|digits| digits.parse::<i64>().ok()) {
        *value = integer.into();
    }
}

/// 2^53: beyond it not every integer has a double of its own.
const MOST_EXACT: f64 = 9_007_199_254_740_992.0;

/// A null in a list or map is the zero value of its type, as in Go.
fn void(kind: Kind, value: &mut Value) {
    if !value.is_null() {
        return;
    }
    *value = match kind {
        Kind::Message(shape) => match shape.shape() {
            Shape::Object => Value::Object(Map::new()),
            Shape::Quantity => "0".into(),
            Shape::IntOrString => 0.into(),
            _ => return,
        },
        Kind::String | Kind::Bytes => "".into(),
        Kind::Bool => false.into(),
        Kind::Int32 | Kind::Int64 | Kind::Number => 0.into(),
        Kind::StringList => Value::Array(Vec::new()),
        Kind::Any => return,
    };
}

/// Go takes a bare number for a quantity, too.
pub(super) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(kind: (&str, &str, &str), mut value: Value) -> (Value, Vec<String>, Vec<String>) {
        let checked = built_in().kind(kind.0, kind.1, kind.2).unwrap().check(&mut value);
        let mistyped = checked.mistyped.iter().map(ToString::to_string).collect();
        (value, checked.unknown, mistyped)
    }

    const POD: (&str, &str, &str) = ("", "v1", "Pod");

    #[test]
    fn unknown_fields_and_nulls_are_removed_and_only_the_former_named() {
        let (value, unknown, mistyped) = check(
            POD,
            json!({"apiVersion": "v1", "kind": "Pod", "x": null, "~objectMeta": {},
                "metadata": {"name": "a", "creationTimestamp": null, "labels": {"any/key": "v", "null": null}},
                "spec": {"containers": [{"name": "c", "imagee": "i"}, null], "foo": 1}}),
        );
        let expected = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "labels": {"any/key": "v", "null": ""}},
            "spec": {"containers": [{"name": "c"}, {}]}});
        assert_eq!(value, expected);
        assert_eq!(unknown, ["spec.containers[0].imagee", "spec.foo", "x", "~objectMeta"]);
        assert_eq!(mistyped, [""; 0]);
    }

    #[test]
    fn each_wrong_type_is_named_with_its_path() {
        let container = |body: Value| json!({"spec": {"containers": [body]}});
        for (body, message) in [
            (json!([]), "cannot read list into field  of type object"),
            (json!({"spec": 1}), "cannot read number into field spec of type object"),
            (
                json!({"spec": {"priority": "1"}}),
                "cannot read string into field spec.priority of type 32-bit integer",
            ),
            (
                json!({"spec": {"priority": 1.5}}),
                "cannot read number into field spec.priority of type 32-bit integer",
            ),
            (
                json!({"spec": {"priority": 2_147_483_648_u64}}),
                "cannot read number into field spec.priority of type 32-bit integer",
            ),
            (
                json!({"spec": {"containers": {}}}),
                "cannot read object into field spec.containers of type list",
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                "cannot read number into field metadata.labels.a of type string",
            ),
            (
                json!({"metadata": {"creationTimestamp": "today"}}),
                "cannot read string into field metadata.creationTimestamp of type time",
            ),
            (
                container(json!({"resources": {"limits": {"cpu": "x"}}})),
                "cannot read string into field spec.containers[0].resources.limits.cpu of type quantity",
            ),
            (
                container(json!({"livenessProbe": {"httpGet": {"port": true}}})),
                "cannot read boolean into field spec.containers[0].livenessProbe.httpGet.port of type integer or string",
            ),
            (
                container(json!({"tty": "yes"})),
                "cannot read string into field spec.containers[0].tty of type boolean",
            ),
        ] {
            assert_eq!(check(POD, body.clone()).2, [message], "{body}");
        }
    }

    #[test]
    fn numbers_quantities_and_schemas_are_taken_in_every_form() {
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": 1.5, "memory": "1Gi"}},
            "readinessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 3}}]}});
        assert_eq!(check(POD, pod.clone()), (pod, vec![], vec![]));
        let schema = json!({"type": "object", "additionalProperties": false,
            "properties": {"a": {"additionalProperties": {"type": "string"}, "default": {"x": null}, "x-kubernetes-int-or-string": true}}});
        let crd = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}});
        let kind = ("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        assert_eq!(check(kind, crd.clone()), (crd, vec![], vec![]));
    }

    #[test]
    fn an_integer_may_be_written_with_a_point_and_nothing_behind_it() {
        let pod = json!({"spec": {"priority": 1.0, "terminationGracePeriodSeconds": 3e1,
            "containers": [{"name": "c", "readinessProbe": {"tcpSocket": {"port": 80.0}}}]}});
        let (pod, _, mistyped) = check(POD, pod);
        assert_eq!(mistyped, [""; 0]);
        let spec = &pod["spec"];
        let port = &spec["containers"][0]["readinessProbe"]["tcpSocket"]["port"];
        let read = [&spec["priority"], &spec["terminationGracePeriodSeconds"], port];
        assert_eq!(read, [&json!(1), &json!(30), &json!(80)]);
        for beyond in [1e300, 1e16, -1e16, 0.1] {
            assert_eq!(check(POD, json!({"spec": {"priority": beyond}})).2.len(), 1, "{beyond}");
        }
    }

    #[test]
    fn bytes_must_be_base64() {
        let secret = ("", "v1", "Secret");
        assert_eq!(check(secret, json!({"data": {"a": "aGk="}})).2, [""; 0]);
        assert_eq!(
            check(secret, json!({"data": {"a": "?"}})).2,
            ["cannot read string into field data.a of type base64 string"]
        );
    }

    #[test]
    fn a_hostile_body_cannot_fill_the_report() {
        let map: Map<String, Value> = (0..1000).map(|index| (format!("x{index}"), 1.into())).collect();
        assert_eq!(check(POD, Value::Object(map)).1.len(), FAULTS_LIMIT);
    }
}
