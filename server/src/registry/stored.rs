//! Objects as bytes: `{"apiVersion":…,"kind":…,"metadata":{` first, the rest sorted, compact, without `resourceVersion`.
//!
//! That order lets `resourceVersion` be put in without parsing. `cache` relies on it; change both or neither.

use agent::units::Revision;
use bytes::Bytes;
use serde_json::{Map, Value};

/// What the store gets. `resourceVersion`, `selfLink` and `managedFields` are left out.
pub(super) fn encode(object: &Value) -> Bytes {
    let empty = Map::new();
    let map = object.as_object().unwrap_or(&empty);
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"apiVersion\":");
    append(&mut out, map.get("apiVersion").unwrap_or(&Value::Null));
    out.extend_from_slice(b",\"kind\":");
    append(&mut out, map.get("kind").unwrap_or(&Value::Null));
    out.extend_from_slice(b",\"metadata\":{");
    let metadata = map.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut first = true;
    for (key, value) in metadata {
        if !matches!(key.as_str(), "resourceVersion" | "selfLink" | "managedFields") {
            member(&mut out, &mut first, key, value);
        }
    }
    out.push(b'}');
    for (key, value) in map {
        if !matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
            member(&mut out, &mut false, key, value);
        }
    }
    out.push(b'}');
    out.into()
}

/// What clients get: the same with `metadata.resourceVersion`.
pub(super) fn with_revision(stored: &[u8], revision: Revision) -> Bytes {
    const OPEN: &[u8] = b"\"metadata\":{";
    let Some(start) = stored.windows(OPEN.len()).position(|window| window == OPEN) else {
        return Bytes::copy_from_slice(stored);
    };
    let (head, tail) = stored.split_at(start + OPEN.len());
    let comma = if tail.first() == Some(&b'}') { "" } else { "," };
    [
        head,
        format!("\"resourceVersion\":\"{revision}\"{comma}").as_bytes(),
        tail,
    ]
    .concat()
    .into()
}

fn member(out: &mut Vec<u8>, first: &mut bool, key: &str, value: &Value) {
    if !std::mem::take(first) {
        out.push(b',');
    }
    append(out, &Value::from(key));
    out.push(b':');
    append(out, value);
}

fn append(out: &mut Vec<u8>, value: &Value) {
    // Writing a tree into memory cannot fail: keys are strings and no number is NaN.
    let _ = serde_json::to_writer(out, value);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_stored_begins_with_the_envelope_and_takes_a_revision() {
        let object = json!({"status": {}, "kind": "Pod", "apiVersion": "v1", "data": {"a": "1"},
            "metadata": {"name": "a", "resourceVersion": "3", "managedFields": []}});
        let stored = encode(&object);
        assert_eq!(
            stored,
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"data":{"a":"1"},"status":{}}"#
        );
        assert_eq!(
            with_revision(&stored, Revision::new(7)),
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"7","name":"a"},"data":{"a":"1"},"status":{}}"#
        );
        let bare = encode(&json!({"kind": "X", "apiVersion": "v1"}));
        assert_eq!(
            with_revision(&bare, Revision::new(7)),
            r#"{"apiVersion":"v1","kind":"X","metadata":{"resourceVersion":"7"}}"#
        );
    }
}
