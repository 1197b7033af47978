//! What the generator knows about a type before it is packed.

use std::collections::BTreeMap;

/// JSON type of one value; with it the protobuf type is known too.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// Any JSON at all.
    #[default]
    Any = 0,
    /// A string.
    String = 1,
    /// A boolean.
    Bool = 2,
    /// An integer of 32 bits.
    Int32 = 3,
    /// An integer of 64 bits.
    Int64 = 4,
    /// A double.
    Number = 5,
    /// Bytes, base64 in JSON.
    Bytes = 6,
    /// Another message.
    Message = 7,
    /// A list of strings that is a message of its own in protobuf.
    StringList = 8,
}

/// How often a field's value occurs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub enum Repeat {
    /// Once.
    #[default]
    One = 0,
    /// JSON array.
    List = 1,
    /// JSON object from strings.
    Map = 2,
}

/// Forms that are not a JSON object with named members.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub enum Shape {
    /// An object with members.
    #[default]
    Object = 0,
    /// Integer or string.
    IntOrString = 1,
    /// A quantity.
    Quantity = 2,
    /// An instant in whole seconds.
    Time = 3,
    /// An instant in microseconds.
    MicroTime = 4,
    /// An object kept as it is; protobuf holds its JSON text.
    Raw = 5,
    /// Any JSON kept as it is; protobuf holds its JSON text.
    Json = 6,
    /// A schema or a boolean.
    SchemaOrBool = 7,
    /// A schema or a list of schemas.
    SchemaOrArray = 8,
    /// A schema or a list of strings.
    SchemaOrStrings = 9,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub enum ListType {
    /// Not said.
    #[default]
    Unset = 0,
    /// Replaced whole.
    Atomic = 1,
    /// Scalars, each once.
    Set = 2,
    /// Elements with keys.
    Map = 3,
}

/// A member.
#[derive(Clone, Debug, Default)]
pub struct Field {
    /// Nested in protobuf, but its members are the parent's in JSON.
    pub inline: bool,
    /// Protobuf tag; 0 if none.
    pub tag: u16,
    pub kind: Kind,
    pub repeat: Repeat,
    /// Name of the message for [`Kind::Message`].
    pub message: String,
    pub required: bool,
    /// A pointer in Go: absent and zero differ.
    pub pointer: bool,
    /// Printed even when zero.
    pub always: bool,
    pub list: ListType,
    pub keys: String,
    /// `atomic`, `granular` or empty.
    pub map: String,
    /// `merge`, `retainKeys`, `replace`; comma-separated.
    pub strategy: String,
    pub merge_key: String,
    /// JSON text.
    pub default: String,
    pub text: String,
}

/// A message type.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub shape: Shape,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
    /// Not in OpenAPI: only protobuf, or query options.
    pub hidden: bool,
    pub text: String,
    pub fields: BTreeMap<String, Field>,
}

/// A group, version and kind, and the message that is its body.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Gvk {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub message: String,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// By OpenAPI definition name, `io.k8s.api.core.v1.Pod`.
    pub messages: BTreeMap<String, Message>,
    pub kinds: Vec<Gvk>,
}
