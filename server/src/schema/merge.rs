//! Strategic merge patch: objects merge, lists merge by key where the schema says so, and `$`-directives say the rest.
//!
//! Source: Kubernetes v1.36 apimachinery `pkg/util/strategicpatch/patch.go`.

use serde_json::{Map, Value};

use super::{Field, Kind, Repeat, Shape, Type};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DROP: &str = "$deleteFromPrimitiveList/";

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
            return Err(MergeError::Directive(
                "a strategic merge patch is a JSON object".to_owned(),
            ));
        };
        merge_object(Some(self), as_object(target), patch)
    }
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(members) => members,
        _ => unreachable!("it was made an object above"),
    }
}

fn merge_object(
    of: Option<Type>,
    target: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<(), MergeError> {
    match patch
        .remove(PATCH)
        .as_ref()
        .map(|word| word.as_str().unwrap_or_default())
    {
        None | Some("merge") => {}
        Some("replace") => {
            target.clear();
            target.extend(patch);
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some(other) => return Err(unknown_directive(other)),
    }
    if let Some(kept) = patch.remove(RETAIN) {
        retain_keys(target, &patch, &kept)?;
    }
    for (name, value) in std::mem::take(&mut patch) {
        if let Some(list) = name.strip_prefix(DROP) {
            drop_values(target, list, &value)?;
        } else if let Some(list) = name.strip_prefix(ORDER) {
            // Applied below, when the list is merged.
            patch.insert(list.to_owned(), Value::Null);
            patch.insert(name, value);
        } else if value.is_null() {
            target.remove(&name);
        } else {
            let field = of.and_then(|of| of.field(&name));
            merge_member(field, target.entry(name).or_insert(Value::Null), value)?;
        }
    }
    for (name, order) in patch {
        let Some(list) = name.strip_prefix(ORDER) else { continue };
        let (Some(Value::Array(values)), Value::Array(order)) = (target.get_mut(list), &order) else {
            continue;
        };
        let key = of.and_then(|of| of.field(list)).map_or("", Field::merge_key);
        sort(values, order, key);
    }
    Ok(())
}

fn merge_member(field: Option<Field>, target: &mut Value, patch: Value) -> Result<(), MergeError> {
    match patch {
        Value::Object(members) => {
            let whole = field.is_some_and(replaced);
            if whole && !members.contains_key(PATCH) {
                *target = Value::Object(members);
                return Ok(());
            }
            match field.map(Field::repeat) {
                Some(Repeat::Map) => merge_map(field, as_object(target), members),
                _ => merge_object(field.and_then(message), as_object(target), members),
            }
        }
        Value::Array(values) => match field.filter(|field| field.repeat() == Repeat::List && field.merges()) {
            Some(field) if field.merge_key().is_empty() => {
                merge_scalars(target, values);
                Ok(())
            }
            Some(field) => merge_list(field, target, values),
            None => {
                *target = Value::Array(values);
                Ok(())
            }
        },
        scalar => {
            *target = scalar;
            Ok(())
        }
    }
}

/// Its new value takes the place of the old one.
fn replaced(field: Field) -> bool {
    let atomic = matches!(field.kind(), Kind::Message(inner) if inner.atomic());
    (atomic || field.atomic()) && !field.merges()
}

fn message(field: Field) -> Option<Type> {
    match field.kind() {
        Kind::Message(inner) if inner.shape() == Shape::Object => Some(inner),
        _ => None,
    }
}

/// A map from any name: entries merge, nulls remove.
fn merge_map(
    field: Option<Field>,
    target: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<(), MergeError> {
    match patch
        .remove(PATCH)
        .as_ref()
        .map(|word| word.as_str().unwrap_or_default())
    {
        None | Some("merge") => {}
        Some("replace" | "delete") => target.clear(),
        Some(other) => return Err(unknown_directive(other)),
    }
    for (name, value) in patch {
        match value {
            Value::Null => {
                target.remove(&name);
            }
            Value::Object(members) => {
                let inner = as_object(target.entry(name).or_insert(Value::Null));
                merge_object(field.and_then(message), inner, members)?;
            }
            other => {
                target.insert(name, other);
            }
        }
    }
    Ok(())
}

fn merge_scalars(target: &mut Value, values: Vec<Value>) {
    let mut merged = match target.take() {
        Value::Array(present) => present,
        _ => Vec::new(),
    };
    for value in values {
        if !merged.contains(&value) {
            merged.push(value);
        }
    }
    *target = Value::Array(merged);
}

fn merge_list(field: Field, target: &mut Value, patch: Vec<Value>) -> Result<(), MergeError> {
    let key = field.merge_key();
    let mut merged = match target.take() {
        Value::Array(present) => present,
        _ => Vec::new(),
    };
    let directive = |element: &Value| element.get(PATCH).and_then(Value::as_str).map(ToOwned::to_owned);
    if patch
        .iter()
        .any(|element| directive(element).as_deref() == Some("replace"))
    {
        merged.clear();
    }
    for element in patch {
        let what = directive(&element);
        if what.as_deref() == Some("replace") && element.get(key).is_none() {
            continue;
        }
        let Value::Object(mut members) = element else {
            merged.push(element);
            continue;
        };
        let Some(identity) = members.get(key).cloned() else {
            return Err(MergeError::MissingKey {
                element: Value::Object(members).to_string(),
                key: key.to_owned(),
            });
        };
        members.remove(PATCH);
        let is_it = |one: &Value| one.get(key) == Some(&identity);
        match what.as_deref() {
            Some("delete") => merged.retain(|one| !is_it(one)),
            None | Some("merge" | "replace") => {
                if !merged.iter().any(is_it) {
                    merged.push(Value::Object(Map::new()));
                }
                let found = merged
                    .iter_mut()
                    .find(|one| is_it(one) || one.as_object().is_some_and(Map::is_empty));
                if let Some(found) = found {
                    merge_object(message(field), as_object(found), members)?;
                }
            }
            Some(other) => return Err(unknown_directive(other)),
        }
    }
    *target = Value::Array(merged);
    Ok(())
}

fn retain_keys(target: &mut Map<String, Value>, patch: &Map<String, Value>, kept: &Value) -> Result<(), MergeError> {
    let Value::Array(kept) = kept else {
        return Err(MergeError::Directive("$retainKeys must be a list of names".to_owned()));
    };
    let kept: Vec<&str> = kept.iter().filter_map(Value::as_str).collect();
    let unlisted = patch
        .iter()
        .find(|(name, value)| !name.starts_with('$') && !value.is_null() && !kept.contains(&name.as_str()));
    if let Some((name, _)) = unlisted {
        let text = format!("$retainKeys does not list {name}, which the patch sets");
        return Err(MergeError::Directive(text));
    }
    target.retain(|name, _| kept.contains(&name.as_str()));
    Ok(())
}

fn drop_values(target: &mut Map<String, Value>, list: &str, values: &Value) -> Result<(), MergeError> {
    let Value::Array(values) = values else {
        return Err(MergeError::Directive(format!("{DROP}{list} must be a list of values")));
    };
    if let Some(Value::Array(present)) = target.get_mut(list) {
        present.retain(|value| !values.contains(value));
    }
    Ok(())
}

/// Brings the elements that `order` names into that order; the others keep their place relative to those around them.
fn sort(values: &mut Vec<Value>, order: &[Value], key: &str) {
    let identity = |value: &Value| match key {
        "" => value.clone(),
        key => value.get(key).cloned().unwrap_or_default(),
    };
    let wanted: Vec<Value> = order.iter().map(identity).collect();
    let mut named: Vec<(usize, usize, Value)> = Vec::new();
    let mut others: Vec<(usize, Value)> = Vec::new();
    for (place, value) in std::mem::take(values).into_iter().enumerate() {
        match wanted.iter().position(|one| *one == identity(&value)) {
            Some(rank) => named.push((rank, place, value)),
            None => others.push((place, value)),
        }
    }
    named.sort_by_key(|(rank, ..)| *rank);
    let mut others = others.into_iter().peekable();
    for (_, place, value) in named {
        while let Some((_, other)) = others.next_if(|(before, _)| *before < place) {
            values.push(other);
        }
        values.push(value);
    }
    values.extend(others.map(|(_, value)| value));
}

fn unknown_directive(word: &str) -> MergeError {
    MergeError::Directive(format!(
        "unknown directive $patch: {word:?}, want replace, merge or delete"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::built_in;
    use super::*;

    fn merged(kind: &str, target: Value, patch: Value) -> Result<Value, MergeError> {
        let mut target = target;
        let group = if kind == "Deployment" { "apps" } else { "" };
        built_in()
            .kind(group, "v1", kind)
            .unwrap()
            .strategic_merge(&mut target, patch)?;
        Ok(target)
    }

    #[test]
    fn patches_merge_as_kubernetes_says() {
        let containers = |values: Value| json!({"spec": {"containers": values}});
        for (what, target, patch, wanted) in [
            (
                "keyed lists merge by key",
                containers(json!([{"name": "a", "image": "x:1"}, {"name": "b"}])),
                containers(json!([{"name": "a", "image": "x:2"}, {"name": "c"}])),
                containers(json!([{"name": "a", "image": "x:2"}, {"name": "b"}, {"name": "c"}])),
            ),
            (
                "an element is deleted by directive",
                containers(json!([{"name": "a"}, {"name": "b"}])),
                containers(json!([{"$patch": "delete", "name": "a"}])),
                containers(json!([{"name": "b"}])),
            ),
            (
                "a list is replaced by directive",
                containers(json!([{"name": "a"}])),
                containers(json!([{"$patch": "replace"}, {"name": "b"}])),
                containers(json!([{"name": "b"}])),
            ),
            (
                "plain lists are replaced",
                containers(json!([{"name": "a", "args": ["1", "2"]}])),
                containers(json!([{"name": "a", "args": ["3"]}])),
                containers(json!([{"name": "a", "args": ["3"]}])),
            ),
            (
                "nulls remove, labels merge",
                json!({"metadata": {"labels": {"a": "1", "b": "2"}, "annotations": {"x": "y"}}}),
                json!({"metadata": {"labels": {"a": null, "c": "3"}, "annotations": null}}),
                json!({"metadata": {"labels": {"b": "2", "c": "3"}}}),
            ),
            (
                "lists of scalars with a merge strategy are sets",
                json!({"metadata": {"finalizers": ["a", "b"]}}),
                json!({"metadata": {"finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}),
                json!({"metadata": {"finalizers": ["b", "c"]}}),
            ),
            (
                "the order is set where it is given",
                containers(json!([{"name": "a"}, {"name": "s"}, {"name": "b"}])),
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "tty": true}]}}),
                containers(json!([{"name": "s"}, {"name": "b", "tty": true}, {"name": "a"}])),
            ),
            (
                "conditions merge by type",
                json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}]}}),
                json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}]}}),
            ),
        ] {
            let got = merged("Pod", target, patch).unwrap();
            assert!(sorted_finalizers(&got) == sorted_finalizers(&wanted), "{what}: {got}");
        }
    }

    /// A patch's parts have no order of their own; a set has none either.
    fn sorted_finalizers(value: &Value) -> Value {
        let mut value = value.clone();
        if let Some(Value::Array(list)) = value.pointer_mut("/metadata/finalizers") {
            list.sort_by_key(ToString::to_string);
        }
        value
    }

    #[test]
    fn retained_keys_are_all_that_stays() {
        let target = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        let got = merged("Deployment", target, patch).unwrap();
        assert_eq!(got, json!({"spec": {"strategy": {"type": "Recreate"}}}));
    }

    #[test]
    fn a_patch_that_makes_no_sense_is_refused() {
        let target = json!({"spec": {"containers": [{"name": "a"}]}});
        let no_key = merged("Pod", target.clone(), json!({"spec": {"containers": [{"image": "x"}]}})).unwrap_err();
        assert_eq!(
            no_key.to_string(),
            r#"map: {"image":"x"} does not contain declared merge key: name"#
        );
        assert!(merged("Pod", target.clone(), json!({"spec": {"$patch": "explode"}})).is_err());
        assert!(merged("Pod", target, json!([1])).is_err());
    }
}
