//! Strategic merge patch: merge keys, `$patch`, `$retainKeys`, `$setElementOrder/…`, `$deleteFromPrimitiveList/…`.
//!
//! Where the schema does not know a field, objects merge and the rest replaces; [`Type::check`] refuses the field
//! afterwards. Source: apimachinery v1.36 `strategicpatch.StrategicMergeMapPatch` and its notes on element order.

use serde_json::{Map, Value};

use super::check::name_of;
use super::{Field, Kind, Repeat, Shape, Type};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

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
    pub fn strategic_merge(self, target: &mut Value, patch: Value) -> Result<(), MergeError> {
        let Value::Object(patch) = patch else {
            return Err(mistyped("", "object", &patch));
        };
        object(Values::Members(self), as_object(target), patch)
    }
}

fn mistyped(path: &str, expected: &'static str, found: &Value) -> MergeError {
    MergeError::Mistyped {
        path: path.to_owned(),
        expected,
        found: name_of(found),
    }
}

/// What is known of an object's values.
#[derive(Clone, Copy)]
enum Values {
    /// Members of a type.
    Members(Type),
    /// A map: all values are of this type.
    All(Type),
    /// Nothing is known, or they are scalars.
    Plain,
}

impl Values {
    fn of(kind: Kind, repeat: Repeat) -> Self {
        match (kind, repeat) {
            (Kind::Message(shape), Repeat::Map) => Self::All(shape),
            (Kind::Message(shape), Repeat::One | Repeat::List) if shape.shape() == Shape::Object => {
                Self::Members(shape)
            }
            _ => Self::Plain,
        }
    }

    fn field(self, name: &str) -> Option<Field> {
        match self {
            Self::Members(shape) => shape.field(name),
            Self::All(_) | Self::Plain => None,
        }
    }

    fn under(self, name: &str) -> Self {
        match self {
            Self::Members(shape) => shape
                .field(name)
                .map_or(Self::Plain, |field| Self::of(field.kind(), field.repeat())),
            Self::All(shape) => Self::of(Kind::Message(shape), Repeat::One),
            Self::Plain => Self::Plain,
        }
    }
}

/// The value as an object; anything else becomes an empty one.
fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object above"),
    }
}

fn object(values: Values, target: &mut Map<String, Value>, mut patch: Map<String, Value>) -> Result<(), MergeError> {
    if let Some(directive) = patch.remove(PATCH) {
        match directive.as_str() {
            Some("replace") => {
                target.clear();
            }
            Some("delete") => {
                target.clear();
                return Ok(());
            }
            Some("merge") => {}
            _ => {
                return Err(MergeError::Directive(format!(
                    "Unknown patch directive in map: {directive}"
                )));
            }
        }
    }
    if let Some(kept) = patch.remove(RETAIN_KEYS) {
        retain(target, &patch, &kept)?;
    }
    let mut orders = Map::new();
    let (directives, members): (Vec<_>, Vec<_>) = patch
        .into_iter()
        .partition(|(key, _)| key.starts_with('$') && key.contains('/'));
    for (key, value) in directives {
        if let Some(name) = key.strip_prefix(DELETE) {
            subtract(target, name, &value)?;
        } else if let Some(name) = key.strip_prefix(ORDER) {
            orders.insert(name.to_owned(), value);
        } else {
            return Err(MergeError::Directive(format!("Unknown patch directive: {key}")));
        }
    }
    for (name, value) in members {
        let order = orders.remove(&name);
        member(values, target, &name, value, order)?;
    }
    // What is left only orders: a list that the patch does not touch.
    for (name, order) in orders {
        if let Some(list) = target.get_mut(&name).filter(|list| list.is_array()) {
            let key = values.field(&name).map_or("", Field::merge_key);
            let Value::Array(current) = list.take() else { continue };
            *list = Value::Array(arrange(current.clone(), &current, &ordered(&name, order)?, key));
        }
    }
    Ok(())
}

fn retain(target: &mut Map<String, Value>, patch: &Map<String, Value>, kept: &Value) -> Result<(), MergeError> {
    let Value::Array(kept) = kept else {
        return Err(MergeError::Directive(format!(
            "{RETAIN_KEYS} must be a list, not a {}",
            name_of(kept)
        )));
    };
    let listed = |name: &str| kept.iter().any(|one| one.as_str() == Some(name));
    if patch.keys().any(|name| !name.starts_with('$') && !listed(name)) {
        return Err(MergeError::Directive(format!(
            "the list of {RETAIN_KEYS} must contain every key that the patch sets"
        )));
    }
    target.retain(|name, _| listed(name));
    Ok(())
}

fn subtract(target: &mut Map<String, Value>, name: &str, gone: &Value) -> Result<(), MergeError> {
    let Value::Array(gone) = gone else {
        return Err(mistyped(&format!("{DELETE}{name}"), "list", gone));
    };
    if let Some(Value::Array(items)) = target.get_mut(name) {
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}

fn ordered(name: &str, order: Value) -> Result<Vec<Value>, MergeError> {
    match order {
        Value::Array(order) => Ok(order),
        other => Err(mistyped(&format!("{ORDER}{name}"), "list", &other)),
    }
}

fn member(
    values: Values,
    target: &mut Map<String, Value>,
    name: &str,
    value: Value,
    order: Option<Value>,
) -> Result<(), MergeError> {
    let field = values.field(name);
    match value {
        Value::Null => {
            target.remove(name);
        }
        Value::Object(patch) if !field.is_some_and(replaces) => {
            if patch.get(PATCH).and_then(Value::as_str) == Some("delete") {
                target.remove(name);
                return Ok(());
            }
            let place = target.entry(name.to_owned()).or_insert(Value::Null);
            object(values.under(name), as_object(place), patch)?;
        }
        Value::Array(patch) if field.is_some_and(Field::merges) => {
            let key = field.map_or("", Field::merge_key);
            let order = order.map(|order| ordered(name, order)).transpose()?;
            let place = target.entry(name.to_owned()).or_insert(Value::Null);
            let current = match place.take() {
                Value::Array(current) => current,
                Value::Null => Vec::new(),
                other => return Err(mistyped(name, name_of(&other), &Value::Array(patch))),
            };
            *place = Value::Array(list(values.under(name), key, current, patch, order)?);
        }
        value => {
            target.insert(name.to_owned(), value);
        }
    }
    Ok(())
}

/// Values that are one thing to Kubernetes although they are objects in JSON.
fn replaces(field: Field) -> bool {
    match field.kind() {
        Kind::Message(shape) => field.repeat() == Repeat::One && shape.shape() != Shape::Object,
        Kind::Any
        | Kind::String
        | Kind::Bool
        | Kind::Int32
        | Kind::Int64
        | Kind::Number
        | Kind::Bytes
        | Kind::StringList => false,
    }
}

/// Whether two elements are the same one: by key, or scalars by value.
fn same(one: &Value, other: &Value, key: &str) -> bool {
    if key.is_empty() {
        return one == other;
    }
    one.get(key).is_some_and(|value| other.get(key) == Some(value))
}

fn list(
    values: Values,
    key: &str,
    current: Vec<Value>,
    patch: Vec<Value>,
    order: Option<Vec<Value>>,
) -> Result<Vec<Value>, MergeError> {
    let mut merged = current.clone();
    let mut wanted = Vec::new();
    let mut replace = false;
    for element in patch {
        let directive = element
            .get(PATCH)
            .map(|directive| directive.as_str().unwrap_or_default().to_owned());
        match directive.as_deref() {
            Some("replace") => replace = true,
            Some("delete") => {
                keyed(&element, key)?;
                merged.retain(|item| !same(item, &element, key));
            }
            Some("merge") | None => wanted.push(element),
            Some(other) => {
                return Err(MergeError::Directive(format!(
                    "Unknown patch directive in list: {other:?}"
                )));
            }
        }
    }
    if replace {
        merged.clear();
    }
    for element in &wanted {
        keyed(element, key)?;
        let known = merged.iter_mut().find(|item| same(item, element, key));
        match (known, element) {
            (Some(item), Value::Object(fields)) => object(values, as_object(item), fields.clone())?,
            (None, Value::Object(fields)) => {
                let mut item = Map::new();
                object(values, &mut item, fields.clone())?;
                merged.push(Value::Object(item));
            }
            (None, scalar) => merged.push(scalar.clone()),
            (Some(_), _) => {}
        }
    }
    if replace {
        return Ok(merged);
    }
    let order = match order {
        Some(order) => {
            let listed = |element: &&Value| !order.iter().any(|one| same(one, element, key));
            if let Some(missing) = wanted.iter().find(listed) {
                return Err(MergeError::Directive(format!(
                    "The order in patch list: {missing} is not in the {ORDER} list"
                )));
            }
            order
        }
        None => wanted,
    };
    Ok(arrange(merged, &current, &order, key))
}

fn keyed(element: &Value, key: &str) -> Result<(), MergeError> {
    if key.is_empty() || element.get(key).is_some_and(|value| !value.is_null()) {
        return Ok(());
    }
    Err(MergeError::MissingKey {
        element: element.to_string(),
        key: key.to_owned(),
    })
}

/// Elements in `order` keep that order among themselves, the others that of `current`; of one of each, the second kind
/// goes first only if it was before the first in `current`.
fn arrange(merged: Vec<Value>, current: &[Value], order: &[Value], key: &str) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|one| same(one, item, key));
    let (mut first, mut rest): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(order, item).is_some());
    first.sort_by_cached_key(|item| place(order, item));
    rest.sort_by_cached_key(|item| place(current, item));
    let mut out = Vec::with_capacity(first.len() + rest.len());
    let (mut first, mut rest) = (first.into_iter().peekable(), rest.into_iter().peekable());
    loop {
        let from_rest = match (first.peek(), rest.peek()) {
            (None, None) => return out,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some(listed), Some(other)) => match (place(current, other), place(current, listed)) {
                (Some(other), Some(listed)) => other < listed,
                _ => false,
            },
        };
        out.extend(if from_rest { rest.next() } else { first.next() });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::built_in;
    use super::*;

    fn merge(kind: (&str, &str, &str), mut target: Value, patch: Value) -> Result<Value, String> {
        let shape = built_in().kind(kind.0, kind.1, kind.2).unwrap();
        shape
            .strategic_merge(&mut target, patch)
            .map_err(|error| error.to_string())?;
        Ok(target)
    }

    fn pod(target: Value, patch: Value) -> Result<Value, String> {
        let wrap = |spec: Value| json!({"spec": spec});
        merge(("", "v1", "Pod"), wrap(target), wrap(patch)).map(|merged| merged["spec"].clone())
    }

    #[test]
    fn keyed_lists_merge_by_their_key_and_new_elements_come_first() {
        let nginx = json!({"containers": [{"name": "nginx", "image": "nginx:1", "ports": [{"containerPort": 80}]}]});
        assert_eq!(
            pod(
                nginx.clone(),
                json!({"containers": [{"name": "redis", "image": "redis"}]})
            )
            .unwrap(),
            json!({"containers": [{"name": "redis", "image": "redis"},
                {"name": "nginx", "image": "nginx:1", "ports": [{"containerPort": 80}]}]})
        );
        assert_eq!(
            pod(
                nginx,
                json!({"containers": [{"name": "nginx", "image": "nginx:2", "ports": [{"containerPort": 443}]}]})
            )
            .unwrap(),
            json!({"containers": [{"name": "nginx", "image": "nginx:2", "ports": [{"containerPort": 443}, {"containerPort": 80}]}]})
        );
    }

    #[test]
    fn atomic_lists_are_replaced() {
        let before =
            json!({"tolerations": [{"key": "a"}, {"key": "b"}], "containers": [{"name": "c", "command": ["x", "y"]}]});
        let patch = json!({"tolerations": [{"key": "c"}], "containers": [{"name": "c", "command": ["z"]}]});
        assert_eq!(pod(before, patch.clone()).unwrap(), patch);
    }

    #[test]
    fn directives_do_what_they_say() {
        let c =
            |names: &[&str]| json!({"containers": names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()});
        for (before, patch, after) in [
            (
                c(&["a", "b"]),
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                c(&["b"]),
            ),
            (
                c(&["a", "b"]),
                json!({"containers": [{"$patch": "replace"}, {"name": "x"}]}),
                c(&["x"]),
            ),
            (
                c(&["a", "b"]),
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
                c(&["b", "a"]),
            ),
            (
                c(&["a", "b"]),
                json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "n"}, {"name": "b"}], "containers": [{"name": "n"}]}),
                c(&["a", "n", "b"]),
            ),
            (
                c(&["own", "b"]),
                json!({"$setElementOrder/containers": [{"name": "n"}, {"name": "b"}], "containers": [{"name": "n"}]}),
                c(&["n", "own", "b"]),
            ),
            (
                json!({"nodeSelector": {"a": "1", "b": "2"}}),
                json!({"nodeSelector": {"a": null, "c": "3"}}),
                json!({"nodeSelector": {"b": "2", "c": "3"}}),
            ),
            (
                json!({"nodeSelector": {"a": "1"}}),
                json!({"nodeSelector": {"$patch": "replace", "c": "3"}}),
                json!({"nodeSelector": {"c": "3"}}),
            ),
            (
                json!({"nodeSelector": {"a": "1"}}),
                json!({"nodeSelector": {"$patch": "delete"}}),
                json!({}),
            ),
            (
                json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
                json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}),
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
            ),
            (
                json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}]}),
                json!({"containers": [{"name": "a", "resources": {"limits": {"memory": "1Gi"}}}]}),
                json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}),
            ),
        ] {
            assert_eq!(pod(before.clone(), patch.clone()), Ok(after), "{before} + {patch}");
        }
    }

    #[test]
    fn lists_of_scalars_unite_and_shrink() {
        let meta = |finalizers: Value| json!({"metadata": finalizers});
        let kind = ("", "v1", "ConfigMap");
        assert_eq!(
            merge(
                kind,
                meta(json!({"finalizers": ["a", "b"]})),
                meta(json!({"finalizers": ["c", "b"]}))
            )
            .unwrap(),
            meta(json!({"finalizers": ["c", "a", "b"]}))
        );
        assert_eq!(
            merge(
                kind,
                meta(json!({"finalizers": ["a", "b"]})),
                meta(json!({"$deleteFromPrimitiveList/finalizers": ["a"]}))
            )
            .unwrap(),
            meta(json!({"finalizers": ["b"]}))
        );
    }

    #[test]
    fn statuses_merge_as_the_node_agent_relies_on() {
        let before = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "a"}]}});
        let patch = json!({"status": {"$setElementOrder/conditions": [{"type": "Ready"}, {"type": "PodScheduled"}],
            "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"name": "b"}]}});
        let after = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "b"}]}});
        assert_eq!(merge(("", "v1", "Pod"), before, patch), Ok(after));
    }

    #[test]
    fn a_deployment_changes_its_strategy_by_retained_keys() {
        let spec = |strategy: Value| json!({"spec": {"strategy": strategy}});
        let before = spec(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}));
        let patch = spec(json!({"$retainKeys": ["type"], "type": "Recreate"}));
        let after = spec(json!({"type": "Recreate"}));
        assert_eq!(merge(("apps", "v1", "Deployment"), before, patch), Ok(after));
    }

    #[test]
    fn bad_patches_are_refused_in_words() {
        for (patch, message) in [
            (
                json!({"containers": [{"image": "x"}]}),
                "map: {\"image\":\"x\"} does not contain declared merge key: name",
            ),
            (
                json!({"containers": [{"$patch": "delete"}]}),
                "map: {\"$patch\":\"delete\"} does not contain declared merge key: name",
            ),
            (
                json!({"nodeSelector": {"$patch": "burn"}}),
                "Unknown patch directive in map: \"burn\"",
            ),
            (
                json!({"containers": [{"name": "x", "$patch": "burn"}]}),
                "Unknown patch directive in list: \"burn\"",
            ),
            (
                json!({"$setElementOrder/containers": 1, "containers": []}),
                "cannot merge number into field $setElementOrder/containers of type list",
            ),
            (
                json!({"$deleteFromPrimitiveList/finalizers": 1}),
                "cannot merge number into field $deleteFromPrimitiveList/finalizers of type list",
            ),
        ] {
            assert_eq!(pod(json!({}), patch.clone()), Err(message.to_owned()), "{patch}");
        }
    }
}
