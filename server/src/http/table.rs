//! Forms of an object other than itself: a `Table`, and `PartialObjectMetadata`. Pure.
//!
//! The columns of each kind are `kinds::columns`' to know; here is what every table has.

use agent::wire::object::set;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::columns::{self, Column, Table};
use crate::registry::resource::Resource;

/// What a row carries of its object: `includeObject`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// Reads the parameter; what it does not know is the default.
    pub fn read(parameter: Option<&str>) -> Self {
        match parameter {
            Some("None") => Self::None,
            Some("Object") => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// A complete Table of objects; `version` is `v1` or `v1beta1`.
pub fn whole(
    resource: &Resource,
    objects: &[Value],
    metadata: &Value,
    (include, version): (Include, &str),
    now: Timestamp,
) -> Value {
    let Table { columns, rows } = columns::table(resource, objects, now);
    let column = |column: &Column| {
        json!({
            "name": column.name,
            "type": column.kind,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        })
    };
    let row = |(object, cells): (&Value, Vec<Value>)| {
        let mut row = json!({"cells": cells});
        if let Some(carried) = carried(object, include, version) {
            set(&mut row, &["object"], carried);
        }
        row
    };
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": metadata,
        "columnDefinitions": columns.iter().map(column).collect::<Vec<_>>(),
        "rows": objects.iter().zip(rows).map(row).collect::<Vec<_>>(),
    })
}

/// What a row carries of its object.
pub fn carried(object: &Value, include: Include, version: &str) -> Option<Value> {
    match include {
        Include::None => None,
        Include::Metadata => Some(json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": format!("meta.k8s.io/{version}"),
            "metadata": object.get("metadata"),
        })),
        Include::Object => Some(object.clone()),
    }
}

/// The bytes of `metadata` inside an object's JSON; `{}` when it has none.
///
/// Stored objects begin `{"apiVersion":…,"kind":…,"metadata":{`, so the first match is the object's own.
pub fn metadata(body: &[u8]) -> &[u8] {
    const KEY: &[u8] = b"\"metadata\":{";
    let Some(at) = body.windows(KEY.len()).position(|window| window == KEY) else {
        return b"{}";
    };
    let start = at + KEY.len() - 1;
    let rest = body.get(start..).unwrap_or_default();
    let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
    for (index, byte) in rest.iter().enumerate() {
        match (quoted, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => quoted = false,
            (true, _) => {}
            (false, b'"') => quoted = true,
            (false, b'{') => depth += 1,
            (false, b'}') => {
                depth -= 1;
                if depth == 0 {
                    return rest.get(..=index).unwrap_or_default();
                }
            }
            (false, _) => {}
        }
    }
    b"{}"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_cut_out_whole() {
        for (body, expected) in [
            (
                r#"{"apiVersion":"v1","kind":"A","metadata":{"name":"}\"{","labels":{"a":"b"}},"x":{"metadata":{}}}"#,
                r#"{"name":"}\"{","labels":{"a":"b"}}"#,
            ),
            (r#"{"kind":"A"}"#, "{}"),
            (r#"{"metadata":{"name":"#, "{}"),
        ] {
            assert_eq!(metadata(body.as_bytes()), expected.as_bytes(), "{body}");
        }
    }

    #[test]
    fn a_row_carries_what_was_asked_for() {
        let row = crate::kinds::find("coordination.k8s.io", "v1", "leases").unwrap();
        let object = [json!({"metadata": {"name": "web"}, "spec": {"x": 1}})];
        let table = |include| whole(&row, &object, &json!({}), (include, "v1"), Timestamp::UNIX_EPOCH);
        assert_eq!(table(Include::Metadata)["rows"][0]["cells"][0], "web");
        assert_eq!(
            table(Include::Metadata)["rows"][0]["object"]["kind"],
            "PartialObjectMetadata"
        );
        assert!(table(Include::Metadata)["rows"][0]["object"].get("spec").is_none());
        assert_eq!(table(Include::Object)["rows"][0]["object"], object[0]);
        assert!(table(Include::None)["rows"][0].get("object").is_none());
        assert_eq!(table(Include::None)["columnDefinitions"][0]["format"], "name");
    }
}
