//! What stands around an object on the wire: the magic number and `runtime.Unknown`, lists, frames of a watch.
//!
//! Source: apimachinery v0.36 `runtime/serializer/protobuf/protobuf.go`, `runtime/types_proto.go` (`NestedMarshalTo`),
//! and `runtime/serializer/codec_factory.go`: the serializer of streams is the raw one, so a frame has no envelope of its
//! own, but the object in it has one.

use serde_json::{Map, Value};

use super::super::{Kind, Type, built_in, json};
use super::DecodeError::Malformed;
use super::decode::Decoder;
use super::wire::{Reader, put_bytes, put_head, put_message};
use super::{DecodeError, EncodeError, encode as types};

/// Before every message that is a body.
pub const MAGIC: &[u8] = b"k8s\0";
/// Go's `ContentTypeProtobuf`; what an empty content type means as well.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// What follows the object: `contentEncoding` and `contentType`, empty.
const TAIL: &[u8] = &[0x1a, 0, 0x22, 0];
/// Room for what stands before a list's members: magic, two heads, `apiVersion` and `kind`.
const HEAD_ROOM: usize = 256;
/// Kinds that every group has, all of one form (`metav1.AddToGroupVersion`).
const EVERYWHERE: [&str; 7] = [
    "DeleteOptions",
    "WatchEvent",
    "CreateOptions",
    "GetOptions",
    "ListOptions",
    "PatchOptions",
    "UpdateOptions",
];

/// The type of a kind; `api_version`: `apps/v1`.
fn type_of(api_version: &str, kind: &str) -> Option<Type> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let own = built_in().kind(group, version, kind);
    own.or_else(|| {
        EVERYWHERE
            .contains(&kind)
            .then(|| built_in().kind("", "v1", kind))
            .flatten()
    })
}

/// Reads a body with its envelope; `apiVersion` and `kind` are in the result. `implied`: those that the place it is sent
/// to stands for, used when the body does not say them.
///
/// # Errors
/// [`DecodeError`].
pub fn decode(bytes: &[u8], implied: (&str, &str)) -> Result<Value, DecodeError> {
    decode_as(&mut Decoder::default(), bytes, implied, 0)
}

/// Reads an object within another.
pub fn decode_nested(decoder: &mut Decoder, bytes: &[u8], depth: usize) -> Result<Value, DecodeError> {
    decode_as(decoder, bytes, ("", ""), depth)
}

fn decode_as(decoder: &mut Decoder, bytes: &[u8], implied: (&str, &str), depth: usize) -> Result<Value, DecodeError> {
    let body = bytes
        .strip_prefix(MAGIC)
        .ok_or(Malformed("it does not begin with k8s\\0"))?;
    if body.is_empty() {
        return Err(Malformed("it is empty"));
    }
    let unknown = Unknown::read(body)?;
    if !unknown.content_encoding.is_empty() {
        return Err(Malformed("its contentEncoding is unknown"));
    }
    let or = |own: &str, implied: &str| if own.is_empty() { implied } else { own }.to_owned();
    let (api_version, kind) = (or(unknown.api_version, implied.0), or(unknown.kind, implied.1));
    let mut members = Map::new();
    match unknown.content_type {
        "" | PROTOBUF => match type_of(&api_version, &kind) {
            Some(shape) => decoder.message(shape, unknown.raw, &mut members, depth)?,
            None => return Err(DecodeError::UnknownKind { api_version, kind }),
        },
        "application/json" => match json::parse_at(unknown.raw, depth).map(|parsed| parsed.value) {
            Ok(Value::Object(parsed)) => members = parsed,
            Ok(_) | Err(_) => return Err(Malformed("its raw value is not a JSON object")),
        },
        _ => return Err(Malformed("its contentType is unknown")),
    }
    members.insert("apiVersion".to_owned(), api_version.into());
    members.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(members))
}

/// `runtime.Unknown`.
#[derive(Default)]
struct Unknown<'b> {
    api_version: &'b str,
    kind: &'b str,
    raw: &'b [u8],
    content_encoding: &'b str,
    content_type: &'b str,
}

impl<'b> Unknown<'b> {
    fn read(bytes: &'b [u8]) -> Result<Self, DecodeError> {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Malformed("its type is not UTF-8"));
        let mut unknown = Self::default();
        let mut reader = Reader::new(bytes);
        while let Some((tag, wire)) = reader.next()? {
            match tag {
                1 => {
                    let mut reader = Reader::new(wire.bytes()?);
                    while let Some((tag, wire)) = reader.next()? {
                        match tag {
                            1 => unknown.api_version = text(wire.bytes()?)?,
                            2 => unknown.kind = text(wire.bytes()?)?,
                            _ => {}
                        }
                    }
                }
                2 => unknown.raw = wire.bytes()?,
                3 => unknown.content_encoding = text(wire.bytes()?)?,
                4 => unknown.content_type = text(wire.bytes()?)?,
                _ => {}
            }
        }
        Ok(unknown)
    }
}

/// Writes an object with its envelope. `apiVersion` and `kind` are taken from the object.
///
/// # Errors
/// [`EncodeError`].
pub fn encode(value: &Value) -> Result<Vec<u8>, EncodeError> {
    let mut out = MAGIC.to_vec();
    put_object(&mut out, value)?;
    Ok(out)
}

fn put_object(out: &mut Vec<u8>, value: &Value) -> Result<(), EncodeError> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let shape = known(api_version, kind)?;
    let members = value.as_object().ok_or(EncodeError::Mistyped("object"))?;
    put_type(out, api_version, kind);
    put_message(out, 2, |out| types::message(out, shape, members))?;
    out.extend_from_slice(TAIL);
    Ok(())
}

fn known(api_version: &str, kind: &str) -> Result<Type, EncodeError> {
    type_of(api_version, kind).ok_or_else(|| EncodeError::UnknownKind {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    })
}

fn put_type(out: &mut Vec<u8>, api_version: &str, kind: &str) {
    let mut inner = Vec::with_capacity(api_version.len() + kind.len() + 4);
    put_bytes(&mut inner, 1, api_version.as_bytes());
    put_bytes(&mut inner, 2, kind.as_bytes());
    put_bytes(out, 1, &inner);
}

/// A list that is written item by item: there is never more than one tree. Its length stands before it, so its bytes
/// are all kept until the end.
pub struct List {
    head: Vec<u8>,
    item: Type,
    bytes: Vec<u8>,
}

impl List {
    /// An empty list. `metadata`: of the list.
    ///
    /// # Errors
    /// [`EncodeError::UnknownKind`] for what has no protobuf form.
    pub fn new(api_version: &str, kind: &str, metadata: &Value) -> Result<Self, EncodeError> {
        let shape = known(api_version, kind)?;
        let item = match shape.field("items").map(super::super::Field::kind) {
            Some(Kind::Message(item)) => item,
            Some(_) | None => return Err(EncodeError::Mistyped("items")),
        };
        let mut head = MAGIC.to_vec();
        put_type(&mut head, api_version, kind);
        let mut bytes = vec![0; HEAD_ROOM];
        let members = Map::from_iter([("metadata".to_owned(), metadata.clone())]);
        types::message(&mut bytes, shape, &members)?;
        Ok(Self { head, item, bytes })
    }

    /// Appends an item.
    ///
    /// # Errors
    /// [`EncodeError::Mistyped`].
    pub fn push(&mut self, item: &Value) -> Result<(), EncodeError> {
        let members = item.as_object().ok_or(EncodeError::Mistyped("items"))?;
        put_message(&mut self.bytes, 2, |out| types::message(out, self.item, members))
    }

    /// The body: what is behind the first so many bytes.
    pub fn finish(mut self) -> (Vec<u8>, usize) {
        put_head(&mut self.head, 2, self.bytes.len() - HEAD_ROOM);
        self.bytes.extend_from_slice(TAIL);
        let start = HEAD_ROOM.saturating_sub(self.head.len());
        self.bytes.splice(start..HEAD_ROOM, self.head);
        (self.bytes, start)
    }
}

/// One event of a watch: its length, and a `WatchEvent` that holds the object with its envelope.
///
/// # Errors
/// [`EncodeError`].
pub fn watch_frame(kind: &str, object: &Value) -> Result<Vec<u8>, EncodeError> {
    let object = encode(object)?;
    let mut out = vec![0; 4];
    put_bytes(&mut out, 1, kind.as_bytes());
    put_message(&mut out, 2, |out| {
        put_bytes(out, 1, &object);
        Ok::<_, EncodeError>(())
    })?;
    let length = u32::try_from(out.len() - 4).map_err(|_| EncodeError::Mistyped("object"))?;
    out.splice(..4, length.to_be_bytes());
    Ok(out)
}
