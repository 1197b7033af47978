//! Protobuf to JSON, one type at a time.
//!
//! The result is what Go prints after reading the same bytes: a zero that is no pointer and not always printed is left
//! out, and so is the zero time. Unknown tags are skipped; a value that comes twice is the last one, a message that comes
//! twice is both merged (proto2). Source: gogo-protobuf's `Unmarshal` and the `MarshalJSON` methods of apimachinery v0.36.

use agent::wire::time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use super::super::json::{self, MAX_DEPTH};
use super::super::{Field, Kind, Repeat, Shape, Type, built_in};
use super::DecodeError;
use super::DecodeError::Malformed;
use super::wire::{Reader, Wire};
use super::{SCHEMA, envelope};

/// Values that one body may hold. Two bytes can stand for a value of a hundred in memory; no object that may be stored
/// (1.5 MiB) comes near.
const MAX_VALUES: usize = 400_000;

/// What is left of the bounds of one body.
pub struct Decoder {
    values: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { values: MAX_VALUES }
    }
}

impl Decoder {
    /// Reads a message's members into `into`. `depth`: how deep in the JSON tree that is.
    pub fn message(
        &mut self,
        shape: Type,
        bytes: &[u8],
        into: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), DecodeError> {
        if depth > MAX_DEPTH {
            return Err(Malformed("it is nested too deeply"));
        }
        let mut reader = Reader::new(bytes);
        while let Some((tag, wire)) = reader.next()? {
            // What a newer version has is not ours to keep.
            if let Some(field) = shape.tagged(tag) {
                self.member(field, wire, into, depth + 1)?;
            }
        }
        Ok(())
    }

    fn member(
        &mut self,
        field: Field,
        wire: Wire<'_>,
        into: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), DecodeError> {
        if field.inline() {
            return match field.kind() {
                Kind::Message(inner) => self.message(inner, wire.bytes()?, into, depth),
                _ => Ok(()),
            };
        }
        match field.repeat() {
            Repeat::One => self.one(field, wire, into, depth),
            Repeat::List => {
                let list = into.entry(field.name()).or_insert_with(|| Value::Array(Vec::new()));
                match list {
                    Value::Array(items) => self.items(field.kind(), wire, items, depth + 1),
                    _ => Ok(()),
                }
            }
            Repeat::Map => {
                let map = into.entry(field.name()).or_insert_with(|| Value::Object(Map::new()));
                match map {
                    Value::Object(entries) => self.entry(field.kind(), wire.bytes()?, entries, depth + 1),
                    _ => Ok(()),
                }
            }
        }
    }

    fn one(
        &mut self,
        field: Field,
        wire: Wire<'_>,
        into: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), DecodeError> {
        self.spend()?;
        let value = match field.kind() {
            Kind::Message(inner) if inner.shape() == Shape::Object => {
                let mut map = match into.remove(field.name()) {
                    Some(Value::Object(map)) => map,
                    Some(_) | None => Map::new(),
                };
                self.message(inner, wire.bytes()?, &mut map, depth)?;
                Value::Object(map)
            }
            Kind::Message(inner) => self.special(inner, wire.bytes()?, depth)?,
            Kind::StringList => self.strings(wire.bytes()?)?,
            kind => match scalar(kind, wire)? {
                zero if is_zero(&zero) && !field.pointer() && !field.always() => Value::Null,
                value => value,
            },
        };
        match value {
            Value::Null => into.remove(field.name()),
            value => into.insert(field.name().to_owned(), value),
        };
        Ok(())
    }

    fn items(&mut self, kind: Kind, wire: Wire<'_>, items: &mut Vec<Value>, depth: usize) -> Result<(), DecodeError> {
        match (kind, wire) {
            (Kind::Bool | Kind::Int32 | Kind::Int64, Wire::Bytes(packed)) => {
                let mut reader = Reader::new(packed);
                while let Some(number) = reader.packed()? {
                    self.spend()?;
                    items.push(scalar(kind, Wire::Varint(number))?);
                }
            }
            (kind, wire) => items.push(self.item(kind, wire, depth)?),
        }
        Ok(())
    }

    fn entry(
        &mut self,
        kind: Kind,
        bytes: &[u8],
        entries: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), DecodeError> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader::new(bytes);
        while let Some((tag, wire)) = reader.next()? {
            match tag {
                1 => key = lossy(wire.bytes()?),
                2 => value = Some(wire),
                _ => {}
            }
        }
        let value = match value {
            Some(wire) => self.item(kind, wire, depth)?,
            None => self.item(kind, zero(kind), depth)?,
        };
        entries.insert(key, value);
        Ok(())
    }

    /// One value of a list or a map: zero is a value there.
    fn item(&mut self, kind: Kind, wire: Wire<'_>, depth: usize) -> Result<Value, DecodeError> {
        self.spend()?;
        match kind {
            Kind::Message(inner) => self.special(inner, wire.bytes()?, depth),
            Kind::StringList => self.strings(wire.bytes()?),
            kind => scalar(kind, wire),
        }
    }

    fn strings(&mut self, bytes: &[u8]) -> Result<Value, DecodeError> {
        let mut items = Vec::new();
        let mut reader = Reader::new(bytes);
        while let Some((tag, wire)) = reader.next()? {
            if tag == 1 {
                self.spend()?;
                items.push(lossy(wire.bytes()?).into());
            }
        }
        Ok(Value::Array(items))
    }

    fn spend(&mut self) -> Result<(), DecodeError> {
        self.values = self.values.checked_sub(1).ok_or(Malformed("it has too many values"))?;
        Ok(())
    }

    /// A message of any shape; null for what Go prints as null.
    fn special(&mut self, shape: Type, bytes: &[u8], depth: usize) -> Result<Value, DecodeError> {
        match shape.shape() {
            Shape::Object => {
                let mut map = Map::new();
                self.message(shape, bytes, &mut map, depth)?;
                Ok(Value::Object(map))
            }
            Shape::IntOrString => int_or_string(bytes),
            Shape::Quantity => {
                let text = last(bytes, 1)?.map(Wire::bytes).transpose()?.map(lossy);
                Ok(text
                    .filter(|text| !text.is_empty())
                    .map_or_else(|| "0".into(), Value::from))
            }
            Shape::Time => instant(bytes, time::seconds),
            Shape::MicroTime => instant(bytes, time::micros),
            Shape::Raw | Shape::Json => match last(bytes, 1)?.map(Wire::bytes).transpose()? {
                None | Some([]) => Ok(Value::Null),
                // An object in an object, as a webhook or a watch holds it.
                Some(raw) if raw.starts_with(envelope::MAGIC) => envelope::decode_nested(self, raw, depth),
                Some(raw) => json::parse_at(raw, depth)
                    .map(|parsed| parsed.value)
                    .map_err(|_| Malformed("a raw value is not JSON")),
            },
            Shape::SchemaOrBool => match last(bytes, 2)? {
                Some(schema) => self.schema(schema, depth),
                None => Ok(last(bytes, 1)?.map_or(Ok(0), Wire::varint)?.ne(&0).into()),
            },
            Shape::SchemaOrArray | Shape::SchemaOrStrings => {
                let (mut items, mut schema) = (Vec::new(), Value::Null);
                let mut reader = Reader::new(bytes);
                while let Some((tag, wire)) = reader.next()? {
                    match (tag, shape.shape()) {
                        (1, _) => schema = self.schema(wire, depth)?,
                        (2, Shape::SchemaOrStrings) => items.push(self.item(Kind::String, wire, depth + 1)?),
                        (2, _) => items.push(self.schema(wire, depth + 1)?),
                        _ => {}
                    }
                }
                match items.is_empty() {
                    true => Ok(schema),
                    false => Ok(Value::Array(items)),
                }
            }
        }
    }

    fn schema(&mut self, wire: Wire<'_>, depth: usize) -> Result<Value, DecodeError> {
        let schema = built_in()
            .named(SCHEMA)
            .ok_or(Malformed("there is no JSON schema type"))?;
        self.item(Kind::Message(schema), wire, depth)
    }
}

/// The last record of a tag.
fn last(bytes: &[u8], wanted: u32) -> Result<Option<Wire<'_>>, DecodeError> {
    let (mut reader, mut found) = (Reader::new(bytes), None);
    while let Some((tag, wire)) = reader.next()? {
        if tag == wanted {
            found = Some(wire);
        }
    }
    Ok(found)
}

fn scalar(kind: Kind, wire: Wire<'_>) -> Result<Value, DecodeError> {
    Ok(match kind {
        Kind::String => lossy(wire.bytes()?).into(),
        Kind::Bytes => STANDARD.encode(wire.bytes()?).into(),
        Kind::Bool => (wire.varint()? != 0).into(),
        Kind::Int32 => low_half(wire.varint()?).into(),
        Kind::Int64 => wire.varint()?.cast_signed().into(),
        Kind::Number => match wire {
            Wire::Fixed64(bits) => double(f64::from_bits(bits))?,
            Wire::Varint(_) | Wire::Bytes(_) | Wire::Other => {
                return Err(Malformed("a number has the wrong wire type"));
            }
        },
        // No member with a tag is any of these.
        Kind::Any | Kind::Message(_) | Kind::StringList => Value::Null,
    })
}

/// Go prints a whole number without a point.
fn double(number: f64) -> Result<Value, DecodeError> {
    if number.fract() == 0.0
        && let Ok(whole) = format!("{number:.0}").parse::<i64>()
    {
        return Ok(whole.into());
    }
    Number::from_f64(number)
        .map(Value::Number)
        .ok_or(Malformed("a number is not finite"))
}

/// What a map's entry without a value holds.
const fn zero(kind: Kind) -> Wire<'static> {
    match kind {
        Kind::Bool | Kind::Int32 | Kind::Int64 => Wire::Varint(0),
        Kind::Number => Wire::Fixed64(0),
        Kind::Any | Kind::String | Kind::Bytes | Kind::Message(_) | Kind::StringList => Wire::Bytes(&[]),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(_) | Value::Object(_) => false,
    }
}

/// The kubelet cuts messages at a number of bytes, so half a character is no reason to refuse an event; Go prints the
/// same replacement character.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// As Go converts to `int32`.
fn low_half(number: u64) -> i32 {
    u32::try_from(number & u64::from(u32::MAX))
        .unwrap_or_default()
        .cast_signed()
}

fn int_or_string(bytes: &[u8]) -> Result<Value, DecodeError> {
    match last(bytes, 1)?.map_or(Ok(0), Wire::varint)? {
        0 => Ok(low_half(last(bytes, 2)?.map_or(Ok(0), Wire::varint)?).into()),
        1 => Ok(lossy(last(bytes, 3)?.map_or(Ok(&[][..]), Wire::bytes)?).into()),
        _ => Err(Malformed("neither an integer nor a string")),
    }
}

/// Only a message without members is the zero time: `seconds: 0` is 1970.
fn instant(bytes: &[u8], write: impl Fn(Timestamp) -> String) -> Result<Value, DecodeError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let number = |tag| last(bytes, tag)?.map_or(Ok(0), Wire::varint);
    let (seconds, nanos) = (number(1)?.cast_signed(), low_half(number(2)?));
    let at = Timestamp::new(seconds, nanos.clamp(0, 999_999_999)).map_err(|_| Malformed("a time is out of range"))?;
    Ok(write(at).into())
}
