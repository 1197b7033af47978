//! OpenAPI v2 as protobuf: the parts of gnostic's `openapi.v2.Document` that our document has.
//!
//! From the same trees as the JSON. Source of the tags: github.com/google/gnostic-models v0.7.0,
//! `openapiv2/OpenAPIv2.proto`; an extension's value is YAML text, and JSON is YAML.

use std::convert::Infallible;

use serde_json::{Map, Value};

use super::super::protobuf::wire::{put_bytes, put_message, put_number};

/// `Document.swagger` and `Document.info`.
pub fn put_head(out: &mut Vec<u8>, swagger: &str, (title, version): (&str, &str)) {
    put_bytes(out, 1, swagger.as_bytes());
    put(out, 2, |out| {
        put_bytes(out, 1, title.as_bytes());
        put_bytes(out, 2, version.as_bytes());
    });
}

/// One of `Paths.path`.
pub fn put_path(out: &mut Vec<u8>, path: &str, item: &Value) {
    named(out, 2, path, |out| {
        for (method, tag) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
            if let Some(operation) = item.get(method) {
                put(out, tag, |out| put_operation(out, operation));
            }
        }
        put_parameters(out, 9, item);
    });
}

/// One of `Definitions.additional_properties` or `Properties.additional_properties`.
pub fn put_named_schema(out: &mut Vec<u8>, name: &str, schema: &Value) {
    named(out, 1, name, |out| put_schema(out, schema));
}

fn put_schema(out: &mut Vec<u8>, schema: &Value) {
    put_text(out, 1, schema, "$ref");
    put_text(out, 2, schema, "format");
    put_text(out, 4, schema, "description");
    put_texts(out, 19, schema, "required");
    if let Some(values) = schema.get("additionalProperties") {
        put(out, 21, |out| put(out, 1, |out| put_schema(out, values)));
    }
    if schema.get("type").is_some() {
        put(out, 22, |out| put_text(out, 1, schema, "type"));
    }
    if let Some(items) = schema.get("items") {
        put(out, 23, |out| put(out, 1, |out| put_schema(out, items)));
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        put(out, 25, |out| {
            for (name, property) in properties {
                put_named_schema(out, name, property);
            }
        });
    }
    put_extensions(out, 31, schema);
}

fn put_operation(out: &mut Vec<u8>, operation: &Value) {
    put_texts(out, 1, operation, "tags");
    put_text(out, 5, operation, "operationId");
    put_texts(out, 6, operation, "produces");
    put_texts(out, 7, operation, "consumes");
    put_parameters(out, 8, operation);
    let responses = operation.get("responses").and_then(Value::as_object);
    put(out, 9, |out| {
        for (code, response) in responses.into_iter().flatten() {
            named(out, 1, code, |out| {
                put(out, 1, |out| {
                    put_text(out, 1, response, "description");
                    if let Some(schema) = response.get("schema") {
                        put(out, 2, |out| put(out, 1, |out| put_schema(out, schema)));
                    }
                });
            });
        }
    });
    put_extensions(out, 13, operation);
}

fn put_parameters(out: &mut Vec<u8>, tag: u16, holder: &Value) {
    for parameter in holder.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        let required = u64::from(parameter.get("required").and_then(Value::as_bool).unwrap_or_default());
        put(out, tag, |out| {
            put(out, 1, |out| match parameter.get("in").and_then(Value::as_str) {
                Some("body") => put(out, 1, |out| {
                    put_text(out, 2, parameter, "name");
                    put_text(out, 3, parameter, "in");
                    put_number(out, 4, required);
                    if let Some(schema) = parameter.get("schema") {
                        put(out, 5, |out| put_schema(out, schema));
                    }
                }),
                Some("path") => put(out, 2, |out| {
                    put(out, 4, |out| {
                        put_number(out, 1, required);
                        put_text(out, 2, parameter, "in");
                        put_text(out, 4, parameter, "name");
                        put_text(out, 5, parameter, "type");
                        put_number(out, 19, 1);
                    })
                }),
                _ => put(out, 2, |out| {
                    put(out, 3, |out| {
                        put_text(out, 2, parameter, "in");
                        put_text(out, 4, parameter, "name");
                        put_text(out, 6, parameter, "type");
                        put_number(out, 20, 1);
                    })
                }),
            })
        });
    }
}

/// Members that begin with `x-`.
fn put_extensions(out: &mut Vec<u8>, tag: u16, holder: &Value) {
    let empty = Map::new();
    let members = holder.as_object().unwrap_or(&empty);
    for (name, value) in members.iter().filter(|(name, _)| name.starts_with("x-")) {
        named(out, tag, name, |out| put_bytes(out, 2, value.to_string().as_bytes()));
    }
}

/// A message of a name (1) and a message (2).
fn named(out: &mut Vec<u8>, tag: u16, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
    put(out, tag, |out| {
        put_bytes(out, 1, name.as_bytes());
        put(out, 2, write);
    });
}

/// A message that `write` writes.
pub fn put(out: &mut Vec<u8>, tag: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let Ok(()) = put_message::<Infallible>(out, tag, |out| {
        write(out);
        Ok(())
    });
}

fn put_text(out: &mut Vec<u8>, tag: u16, holder: &Value, name: &str) {
    if let Some(text) = holder.get(name).and_then(Value::as_str) {
        put_bytes(out, tag, text.as_bytes());
    }
}

fn put_texts(out: &mut Vec<u8>, tag: u16, holder: &Value, name: &str) {
    for text in holder
        .get(name)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        put_bytes(out, tag, text.as_bytes());
    }
}
