//! Patch documents applied to trees: RFC 6902 and RFC 7386 here, strategic merge by the schema.

use agent::wire::status::{Reason, Status};
use serde_json::{Map, Value};

use crate::request::Patch;
use crate::schema;

use super::Context;

/// Source: apiserver v1.36 `endpoints/handlers/patch.go`, `maxJSONPatchOperations`.
const OPERATIONS_LIMIT: usize = 10_000;
/// What all copies of one patch may add up to, in bytes of JSON: a few that copy each other's results would else fill
/// the memory. Source: as above, `jsonpatch.AccumulatedCopySizeLimit`.
const COPIES_LIMIT: usize = 3 * 1024 * 1024;

/// The patched object. The result is not checked against its type yet.
pub(super) fn apply(
    mut object: Value,
    patch: &Patch,
    context: &Context<'_>,
    (group, version, kind): (&str, &str, &str),
) -> Result<Value, Status> {
    match patch {
        Patch::Merge(patch) => merge(&mut object, patch),
        Patch::Strategic(patch) => {
            let shape = schema::built_in().kind(group, version, kind);
            let shape = shape.ok_or_else(|| Status::internal(format!("no schema for kind {kind}")))?;
            shape
                .strategic_merge(&mut object, patch.clone())
                .map_err(|error| Status::failure(Reason::BadRequest, error.to_string()))?;
        }
        Patch::Json(patch) => json(&mut object, patch).map_err(|error| match error {
            JsonPatchError::Malformed(text) => Status::failure(Reason::BadRequest, text),
            JsonPatchError::TooLong(count) => Status::failure(
                Reason::RequestEntityTooLarge,
                format!("The allowed maximum operations in a JSON patch is {OPERATIONS_LIMIT}, got {count}"),
            ),
            JsonPatchError::Refused(why) => {
                let text = "the server rejected our request due to an error in our request";
                Status::failure(Reason::Invalid, text)
                    .about(context.row.group, context.row.plural, context.name.unwrap_or_default())
                    .cause("", why, "")
            }
        })?,
    }
    Ok(object)
}

/// RFC 7386: nulls delete, objects merge, the rest replaces.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

#[derive(Debug, Eq, PartialEq)]
enum JsonPatchError {
    /// 400.
    Malformed(String),
    /// 413.
    TooLong(usize),
    /// 422: well formed, but not for this object.
    Refused(String),
}

/// RFC 6902, all operations or an error.
fn json(target: &mut Value, patch: &Value) -> Result<(), JsonPatchError> {
    let malformed = |text: &str| JsonPatchError::Malformed(text.to_owned());
    let operations = patch
        .as_array()
        .ok_or_else(|| malformed("a JSON patch is a list of operations"))?;
    if operations.len() > OPERATIONS_LIMIT {
        return Err(JsonPatchError::TooLong(operations.len()));
    }
    let mut copies = 0;
    for operation in operations {
        let part = |key: &str| operation.get(key).and_then(Value::as_str);
        let path = pointer(part("path").ok_or_else(|| malformed("a JSON patch operation lacks its path"))?)?;
        let from = || pointer(part("from").ok_or_else(|| malformed("a JSON patch operation lacks its from"))?);
        let value = || {
            let value = operation.get("value").cloned();
            value.ok_or_else(|| malformed("a JSON patch operation lacks its value"))
        };
        match part("op") {
            Some("add") => add(target, &path, value()?)?,
            Some("remove") => drop(take(target, &path)?),
            Some("replace") => *find(target, &path)? = value()?,
            Some("move") => {
                let moved = take(target, &from()?)?;
                add(target, &path, moved)?;
            }
            Some("copy") => {
                let copied = find(target, &from()?)?.clone();
                copies += size(&copied);
                if copies > COPIES_LIMIT {
                    return Err(refused(
                        "the accumulated size increase of copy operations is too large",
                        &path,
                    ));
                }
                add(target, &path, copied)?;
            }
            Some("test") => {
                let wanted = value()?;
                // A missing member equals null, as in the library upstream uses.
                let found = find(target, &path).map_or(Value::Null, |found| found.clone());
                if found != wanted {
                    return Err(refused("testing value failed", &path));
                }
            }
            _ => return Err(malformed("a JSON patch operation has an unknown op")),
        }
    }
    Ok(())
}

/// About how long the value is as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(text) => text.len() + 2,
        Value::Array(list) => list.iter().map(|one| size(one) + 1).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(key, one)| key.len() + size(one) + 4).sum::<usize>() + 2,
    }
}

fn refused(what: &str, path: &[String]) -> JsonPatchError {
    JsonPatchError::Refused(format!("{what}: /{}", path.join("/")))
}

/// RFC 6901.
fn pointer(text: &str) -> Result<Vec<String>, JsonPatchError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let rest = text
        .strip_prefix('/')
        .ok_or_else(|| JsonPatchError::Malformed(format!("{text:?} is not a JSON pointer")))?;
    let unescape = |step: &str| step.replace("~1", "/").replace("~0", "~");
    Ok(rest.split('/').map(unescape).collect())
}

fn find<'v>(target: &'v mut Value, path: &[String]) -> Result<&'v mut Value, JsonPatchError> {
    let mut place = target;
    for step in path {
        let next = match place {
            Value::Object(map) => map.get_mut(step),
            Value::Array(list) => index(step).and_then(|index| list.get_mut(index)),
            _ => None,
        };
        place = next.ok_or_else(|| refused("missing path", path))?;
    }
    Ok(place)
}

fn add(target: &mut Value, path: &[String], value: Value) -> Result<(), JsonPatchError> {
    let Some((last, parents)) = path.split_last() else {
        *target = value;
        return Ok(());
    };
    match find(target, parents)? {
        Value::Object(map) => drop(map.insert(last.clone(), value)),
        Value::Array(list) if last == "-" => list.push(value),
        Value::Array(list) => {
            let at = index(last).filter(|at| *at <= list.len());
            list.insert(at.ok_or_else(|| refused("no such index", path))?, value);
        }
        _ => return Err(refused("missing path", path)),
    }
    Ok(())
}

fn take(target: &mut Value, path: &[String]) -> Result<Value, JsonPatchError> {
    let missing = || refused("missing path", path);
    let (last, parents) = path.split_last().ok_or_else(missing)?;
    match find(target, parents)? {
        Value::Object(map) => map.remove(last).ok_or_else(missing),
        Value::Array(list) => {
            let at = index(last).filter(|at| *at < list.len());
            Ok(list.remove(at.ok_or_else(missing)?))
        }
        _ => Err(missing()),
    }
}

fn index(step: &str) -> Option<usize> {
    let canonical = step == "0" || !step.starts_with(['0', '+']);
    canonical.then(|| step.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn json_patches_do_what_the_standard_says() {
        let start = json!({"a": {"b": [1, 2]}, "x/y": 1, "m~n": 2});
        for (patch, result) in [
            (
                json!([{"op": "add", "path": "/a/b/1", "value": 9}]),
                json!({"a": {"b": [1, 9, 2]}, "x/y": 1, "m~n": 2}),
            ),
            (
                json!([{"op": "add", "path": "/a/b/-", "value": 9}]),
                json!({"a": {"b": [1, 2, 9]}, "x/y": 1, "m~n": 2}),
            ),
            (
                json!([{"op": "remove", "path": "/a/b/0"}]),
                json!({"a": {"b": [2]}, "x/y": 1, "m~n": 2}),
            ),
            (
                json!([{"op": "replace", "path": "/x~1y", "value": 5}]),
                json!({"a": {"b": [1, 2]}, "x/y": 5, "m~n": 2}),
            ),
            (
                json!([{"op": "move", "from": "/m~0n", "path": "/a/c"}]),
                json!({"a": {"b": [1, 2], "c": 2}, "x/y": 1}),
            ),
            (
                json!([{"op": "copy", "from": "/a/b", "path": "/c"}]),
                json!({"a": {"b": [1, 2]}, "c": [1, 2], "x/y": 1, "m~n": 2}),
            ),
            (
                json!([{"op": "test", "path": "/a/b/0", "value": 1}, {"op": "test", "path": "/none", "value": null}]),
                start.clone(),
            ),
        ] {
            let mut object = start.clone();
            assert_eq!(json(&mut object, &patch), Ok(()), "{patch}");
            assert_eq!(object, result, "{patch}");
        }
    }

    #[test]
    fn json_patches_that_do_not_fit_are_refused_and_broken_ones_are_bad() {
        let refusals = [
            json!([{"op": "add", "path": "/no/such", "value": 1}]),
            json!([{"op": "remove", "path": "/none"}]),
            json!([{"op": "replace", "path": "/none", "value": 1}]),
            json!([{"op": "add", "path": "/l/3", "value": 1}]),
            json!([{"op": "add", "path": "/l/01", "value": 1}]),
            json!([{"op": "test", "path": "/l/0", "value": 2}]),
        ];
        for patch in refusals {
            let error = json(&mut json!({"l": [1]}), &patch).unwrap_err();
            assert!(matches!(error, JsonPatchError::Refused(_)), "{patch}: {error:?}");
        }
        for patch in [
            json!({}),
            json!([{"op": "add"}]),
            json!([{"op": "jump", "path": "/a"}]),
            json!([{"op": "add", "path": "a", "value": 1}]),
        ] {
            let error = json(&mut json!({"l": [1]}), &patch).unwrap_err();
            assert!(matches!(error, JsonPatchError::Malformed(_)), "{patch}: {error:?}");
        }
    }

    #[test]
    fn a_merge_patch_deletes_with_null_and_replaces_lists() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        merge(
            &mut object,
            &json!({"a": {"b": null, "d": {"e": null, "f": 1}}, "l": [3]}),
        );
        assert_eq!(object, json!({"a": {"c": 2, "d": {"f": 1}}, "l": [3]}));
    }

    #[test]
    fn copies_of_copies_are_bounded() {
        let mut patch = vec![json!({"op": "add", "path": "/a", "value": ["x".repeat(1024)]})];
        patch.extend((0..40).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"})));
        let error = json(&mut json!({}), &patch.into()).unwrap_err();
        assert!(
            matches!(&error, JsonPatchError::Refused(why) if why.contains("copy operations")),
            "{error:?}"
        );
    }

    /// Trees without nulls, as objects are after they were checked.
    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c/~]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c/~]{1,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn map() -> impl Strategy<Value = Value> {
        prop::collection::btree_map("[a-c/~]{1,2}", tree(), 0..5)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    /// The merge patch that leads from one object to another.
    fn difference(from: &Value, to: &Value) -> Value {
        let (Value::Object(before), Value::Object(after)) = (from, to) else {
            return to.clone();
        };
        let gone = before
            .keys()
            .filter(|key| !after.contains_key(*key))
            .map(|key| (key.clone(), Value::Null));
        let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
        let changed = changed.map(|(key, value)| match before.get(key) {
            Some(old) if old.is_object() && value.is_object() => (key.clone(), difference(old, value)),
            _ => (key.clone(), value.clone()),
        });
        gone.chain(changed).collect::<Map<_, _>>().into()
    }

    fn path_of(key: &str) -> String {
        format!("/{}", key.replace('~', "~0").replace('/', "~1"))
    }

    proptest! {
        #[test]
        fn no_pointer_panics(path in "[/a0-9~-]{0,12}", op in "(add|remove|replace|move|copy|test)") {
            let patch = json!([{"op": op, "path": path, "from": "/a", "value": 1}]);
            let _ = json(&mut json!({"a": [1, {"0": 2}], "": 3}), &patch);
        }

        #[test]
        fn a_merge_patch_leads_from_any_object_to_any_other(from in map(), to in map()) {
            let mut object = from.clone();
            merge(&mut object, &difference(&from, &to));
            prop_assert_eq!(object, to);
        }

        #[test]
        fn a_merge_patch_applied_twice_is_applied_once(object in map(), patch in map()) {
            let mut once = object;
            merge(&mut once, &patch);
            let mut twice = once.clone();
            merge(&mut twice, &patch);
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn what_is_added_is_found_and_removed_again(object in map(), key in "[d-f][/~]{0,2}", value in tree()) {
            let path = path_of(&key);
            let mut changed = object.clone();
            let there = json!([{"op": "add", "path": path, "value": value}, {"op": "test", "path": path, "value": value}]);
            prop_assert_eq!(json(&mut changed, &there), Ok(()));
            prop_assert_eq!(changed.get(&key), Some(&value));
            prop_assert_eq!(json(&mut changed, &json!([{"op": "remove", "path": path}])), Ok(()));
            prop_assert_eq!(changed, object);
        }

        #[test]
        fn to_move_is_to_copy_and_remove(object in map(), to in "[d-f]{1,2}") {
            let from = object.as_object().and_then(|map| map.keys().next().cloned());
            let Some(from) = from.map(|key| path_of(&key)) else { return Ok(()) };
            let (mut moved, mut copied) = (object.clone(), object);
            let to = path_of(&to);
            prop_assert_eq!(json(&mut moved, &json!([{"op": "move", "from": from, "path": to}])), Ok(()));
            let both = json!([{"op": "copy", "from": from, "path": to}, {"op": "remove", "path": from}]);
            prop_assert_eq!(json(&mut copied, &both), Ok(()));
            prop_assert_eq!(moved, copied);
        }
    }
}
