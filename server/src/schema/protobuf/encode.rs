//! JSON to protobuf, one type at a time, as Go writes it: by tag, maps by key, and every single value that is no pointer
//! even when it is zero.
//!
//! The tree has been checked against its type, or comes from the store; members that the type does not have are left out.
//! Source: gogo-protobuf's `Marshal` and the `UnmarshalJSON` methods of apimachinery v0.36.

use agent::wire::time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::super::{Field, Kind, Repeat, Shape, Type, built_in};
use super::EncodeError;
use super::EncodeError::Mistyped;
use super::SCHEMA;
use super::wire::{put_bytes, put_double, put_message, put_number};

/// In nanoseconds.
const SECOND: i128 = 1_000_000_000;

/// Writes a message's members.
pub fn message(out: &mut Vec<u8>, shape: Type, members: &Map<String, Value>) -> Result<(), EncodeError> {
    for field in shape.fields_by_tag().filter(|field| field.tag() != 0) {
        if field.inline() {
            if let Kind::Message(inner) = field.kind() {
                put_message(out, field.tag(), |out| message(out, inner, members))?;
            }
            continue;
        }
        let value = members.get(field.name()).filter(|value| !value.is_null());
        match (field.repeat(), value) {
            (Repeat::One, value) => one(out, field, value)?,
            (Repeat::List, Some(Value::Array(items))) => {
                for item in items {
                    item_of(out, (field.tag(), field.kind()), field.name(), item)?;
                }
            }
            (Repeat::Map, Some(Value::Object(entries))) => map(out, field, entries)?,
            (Repeat::List | Repeat::Map, None) => {}
            (Repeat::List | Repeat::Map, Some(_)) => return Err(Mistyped(field.name())),
        }
    }
    Ok(())
}

fn one(out: &mut Vec<u8>, field: Field, value: Option<&Value>) -> Result<(), EncodeError> {
    // Bytes and lists are slices in Go: without a value they are not written.
    let slice = matches!(field.kind(), Kind::Bytes | Kind::StringList | Kind::Any);
    match value {
        None if field.pointer() || slice => Ok(()),
        None => item_of(out, (field.tag(), field.kind()), field.name(), &Value::Null),
        Some(value) => item_of(out, (field.tag(), field.kind()), field.name(), value),
    }
}

fn map(out: &mut Vec<u8>, field: Field, entries: &Map<String, Value>) -> Result<(), EncodeError> {
    let mut sorted: Vec<(&String, &Value)> = entries.iter().collect();
    sorted.sort_unstable_by_key(|(key, _)| *key);
    for (key, value) in sorted {
        put_message(out, field.tag(), |out| {
            put_bytes(out, 1, key.as_bytes());
            item_of(out, (2, field.kind()), field.name(), value)
        })?;
    }
    Ok(())
}

/// One value with its tag; null is the zero of its type. `name`: for the error.
fn item_of(out: &mut Vec<u8>, (tag, kind): (u16, Kind), name: &'static str, value: &Value) -> Result<(), EncodeError> {
    let mistyped = || Mistyped(name);
    match (kind, value) {
        (Kind::String | Kind::Bytes, Value::Null) => put_bytes(out, tag, b""),
        (Kind::String, Value::String(text)) => put_bytes(out, tag, text.as_bytes()),
        (Kind::Bytes, Value::String(text)) => {
            let bytes = STANDARD.decode(text).map_err(|_| mistyped())?;
            put_bytes(out, tag, &bytes);
        }
        (Kind::Bool | Kind::Int32 | Kind::Int64, Value::Null) => put_number(out, tag, 0),
        (Kind::Bool, Value::Bool(value)) => put_number(out, tag, u64::from(*value)),
        (Kind::Int32 | Kind::Int64, Value::Number(number)) => {
            let number = number.as_i64().ok_or_else(mistyped)?;
            put_number(out, tag, number.cast_unsigned());
        }
        (Kind::Number, Value::Null) => put_double(out, tag, 0.0),
        (Kind::Number, Value::Number(number)) => put_double(out, tag, number.as_f64().ok_or_else(mistyped)?),
        (Kind::StringList, Value::Null) => put_bytes(out, tag, b""),
        (Kind::StringList, Value::Array(items)) => put_message(out, tag, |out| {
            items
                .iter()
                .try_for_each(|item| item_of(out, (1, Kind::String), name, item))
        })?,
        (Kind::Message(inner), value) => put_message(out, tag, |out| special(out, inner, name, value))?,
        _ => return Err(mistyped()),
    }
    Ok(())
}

/// A message of any shape.
fn special(out: &mut Vec<u8>, shape: Type, name: &'static str, value: &Value) -> Result<(), EncodeError> {
    let mistyped = || Mistyped(name);
    match (shape.shape(), value) {
        (Shape::Object, Value::Object(members)) => message(out, shape, members),
        (Shape::Object, Value::Null) => message(out, shape, &Map::new()),
        (Shape::IntOrString, value) => int_or_string(out, value).ok_or_else(mistyped),
        (Shape::Quantity, Value::String(text)) => {
            put_bytes(out, 1, text.as_bytes());
            Ok(())
        }
        (Shape::Quantity, Value::Number(number)) => {
            put_bytes(out, 1, number.to_string().as_bytes());
            Ok(())
        }
        (Shape::Quantity, Value::Null) => {
            put_bytes(out, 1, b"0");
            Ok(())
        }
        (Shape::Time | Shape::MicroTime, Value::Null) => Ok(()),
        (Shape::Time, Value::String(text)) => {
            let at = time::parse(text).ok_or_else(mistyped)?;
            instant(out, at, SECOND).ok_or_else(mistyped)
        }
        (Shape::MicroTime, Value::String(text)) => {
            let at = time::parse(text).ok_or_else(mistyped)?;
            instant(out, at, 1000).ok_or_else(mistyped)
        }
        (Shape::Raw | Shape::Json, Value::Null) => Ok(()),
        (Shape::Raw | Shape::Json, value) => {
            put_bytes(out, 1, value.to_string().as_bytes());
            Ok(())
        }
        (Shape::SchemaOrBool, Value::Bool(allows)) => {
            put_number(out, 1, u64::from(*allows));
            Ok(())
        }
        (Shape::SchemaOrBool, value) => {
            put_number(out, 1, 1);
            schema(out, 2, name, value)
        }
        (Shape::SchemaOrArray, Value::Array(items)) => items.iter().try_for_each(|item| schema(out, 2, name, item)),
        (Shape::SchemaOrStrings, Value::Array(items)) => items
            .iter()
            .try_for_each(|item| item_of(out, (2, Kind::String), name, item)),
        (Shape::SchemaOrArray | Shape::SchemaOrStrings, Value::Null) => Ok(()),
        (Shape::SchemaOrArray | Shape::SchemaOrStrings, value) => schema(out, 1, name, value),
        _ => Err(mistyped()),
    }
}

fn schema(out: &mut Vec<u8>, tag: u16, name: &'static str, value: &Value) -> Result<(), EncodeError> {
    let schema = built_in().named(SCHEMA).ok_or(Mistyped(name))?;
    item_of(out, (tag, Kind::Message(schema)), name, value)
}

/// Type, integer and string: all three are written always.
fn int_or_string(out: &mut Vec<u8>, value: &Value) -> Option<()> {
    let (kind, number, text) = match value {
        Value::Null => (0, 0, ""),
        Value::Number(number) => (0, i32::try_from(number.as_i64()?).ok()?, ""),
        Value::String(text) => (1, 0, text.as_str()),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    put_number(out, 1, kind);
    put_number(out, 2, i64::from(number).cast_unsigned());
    put_bytes(out, 3, text.as_bytes());
    Some(())
}

/// Whole seconds and what is left of the one begun, which never counts backwards. `unit`: nanoseconds that count.
fn instant(out: &mut Vec<u8>, at: Timestamp, unit: i128) -> Option<()> {
    let nanos = at.as_nanosecond();
    let rest = nanos.rem_euclid(SECOND) / unit * unit;
    put_number(out, 1, i64::try_from(nanos.div_euclid(SECOND)).ok()?.cast_unsigned());
    put_number(out, 2, u64::try_from(rest).ok()?);
    Some(())
}
