//! Reads `table.bin` in place: types, their members, and which kind is which type.
//!
//! `schema-gen`'s `write.rs` says how the file is laid out. Nothing is built at start and nothing is on the heap; a
//! broken file reads as one without types, and the tests of this module fail.

/// Written by `cargo run -p schema-gen`.
static TABLE: &[u8] = include_bytes!("table.bin");

const HEADER: usize = 24;
const MESSAGE: usize = 16;
const FIELD: usize = 28;
const KIND: usize = 16;
const MESSAGES_AT: usize = HEADER;
const FIELDS_AT: usize = MESSAGES_AT + word(8) as usize * MESSAGE;
const KINDS_AT: usize = FIELDS_AT + word(12) as usize * FIELD;
const POOL_AT: usize = KINDS_AT + word(16) as usize * KIND;

const fn tail(at: usize) -> &'static [u8] {
    match TABLE.split_at_checked(at) {
        Some((_, tail)) => tail,
        None => &[],
    }
}

const fn word(at: usize) -> u32 {
    match tail(at).first_chunk() {
        Some(bytes) => u32::from_le_bytes(*bytes),
        None => 0,
    }
}

const fn half(at: usize) -> u16 {
    match tail(at).first_chunk() {
        Some(bytes) => u16::from_le_bytes(*bytes),
        None => 0,
    }
}

const fn byte(at: usize) -> u8 {
    match tail(at).first() {
        Some(byte) => *byte,
        None => 0,
    }
}

/// A string of the pool; `at` is where its offset is kept.
fn bytes(at: usize) -> &'static [u8] {
    let at = POOL_AT + word(at) as usize;
    tail(at + 2).get(..usize::from(half(at))).unwrap_or_default()
}

fn text(at: usize) -> &'static str {
    std::str::from_utf8(bytes(at)).unwrap_or_default()
}

/// The place among `count` records where `order` says `Equal`.
fn find(count: usize, order: impl Fn(usize) -> std::cmp::Ordering) -> Option<usize> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        match order(middle) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => return Some(middle),
        }
    }
    None
}

/// The whole table, to tell one from another.
pub(super) fn raw() -> &'static [u8] {
    TABLE
}

/// A set of types.
#[derive(Debug)]
pub struct Schema(());

/// The types of every built-in kind.
pub fn built_in() -> &'static Schema {
    static BUILT_IN: Schema = Schema(());
    &BUILT_IN
}

impl Schema {
    /// The type of a kind; `group` is empty for core.
    pub fn kind(&'static self, group: &str, version: &str, kind: &str) -> Option<Type> {
        let wanted = [group.as_bytes(), version.as_bytes(), kind.as_bytes()];
        let at = |index: usize| KINDS_AT + index * KIND;
        let found = find(word(16) as usize, |index| {
            [bytes(at(index)), bytes(at(index) + 4), bytes(at(index) + 8)].cmp(&wanted)
        })?;
        Some(Type(half(at(found) + 12)))
    }

    /// Every kind: group, version, kind, type.
    pub fn kinds(&'static self) -> impl Iterator<Item = (&'static str, &'static str, &'static str, Type)> {
        (0..word(16) as usize).map(|index| {
            let at = KINDS_AT + index * KIND;
            (text(at), text(at + 4), text(at + 8), Type(half(at + 12)))
        })
    }

    /// A type by its name in OpenAPI, `io.k8s.api.core.v1.Pod`.
    pub fn named(&'static self, name: &str) -> Option<Type> {
        let at = |index: usize| MESSAGES_AT + index * MESSAGE;
        let found = find(word(8) as usize, |index| bytes(at(index)).cmp(name.as_bytes()))?;
        u16::try_from(found).ok().map(Type)
    }
}

/// A handle on one message type.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Type(u16);

/// How a type is written in JSON.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// An object with members.
    Object,
    /// An integer or a string.
    IntOrString,
    /// A quantity.
    Quantity,
    /// An instant in whole seconds.
    Time,
    /// An instant in microseconds.
    MicroTime,
    /// An object kept as it is; protobuf holds its JSON text.
    Raw,
    /// Any JSON kept as it is; protobuf holds its JSON text.
    Json,
    /// A JSON schema or a boolean.
    SchemaOrBool,
    /// A JSON schema or a list of them.
    SchemaOrArray,
    /// A JSON schema or a list of strings.
    SchemaOrStrings,
}

impl Type {
    const fn at(self) -> usize {
        MESSAGES_AT + self.0 as usize * MESSAGE
    }

    /// Its name in OpenAPI.
    pub fn name(self) -> &'static str {
        text(self.at())
    }

    /// How it is written in JSON.
    pub fn shape(self) -> Shape {
        match byte(self.at() + 12) {
            1 => Shape::IntOrString,
            2 => Shape::Quantity,
            3 => Shape::Time,
            4 => Shape::MicroTime,
            5 => Shape::Raw,
            6 => Shape::Json,
            7 => Shape::SchemaOrBool,
            8 => Shape::SchemaOrArray,
            9 => Shape::SchemaOrStrings,
            _ => Shape::Object,
        }
    }

    /// `x-kubernetes-map-type: atomic`.
    pub fn atomic(self) -> bool {
        byte(self.at() + 13) & 1 != 0
    }

    /// Not in OpenAPI: only in protobuf, or options of a query.
    pub fn hidden(self) -> bool {
        byte(self.at() + 13) & 2 != 0
    }

    /// Number of its description.
    pub(super) fn text(self) -> u16 {
        half(self.at() + 10)
    }

    fn range(self) -> std::ops::Range<usize> {
        let first = word(self.at() + 4) as usize;
        first..first + usize::from(half(self.at() + 8))
    }

    /// Its members by JSON name, and the messages that protobuf nests (see [`Field::inline`]).
    pub fn fields(self) -> impl Iterator<Item = Field> {
        self.range().map(|index| Field(FIELDS_AT + index * FIELD))
    }

    /// Its members by protobuf tag; those without one (`apiVersion`, what protobuf nests) come first.
    pub fn fields_by_tag(self) -> impl Iterator<Item = Field> {
        let range = self.range();
        range.clone().map(move |index| Self::placed(range.start, index))
    }

    /// A member by its protobuf tag.
    pub fn tagged(self, tag: u32) -> Option<Field> {
        let range = self.range();
        let field = |index: usize| Self::placed(range.start, range.start + index);
        find(range.len(), |index| u32::from(field(index).tag()).cmp(&tag)).map(field)
    }

    /// The `index`-th record's place by tag, as a member.
    fn placed(first: usize, index: usize) -> Field {
        let place = usize::from(byte(FIELDS_AT + index * FIELD + 15));
        Field(FIELDS_AT + (first + place) * FIELD)
    }

    /// A member by its JSON name.
    pub fn field(self, name: &str) -> Option<Field> {
        let range = self.range();
        let at = |index: usize| FIELDS_AT + (range.start + index) * FIELD;
        let found = find(range.len(), |index| bytes(at(index)).cmp(name.as_bytes()))?;
        Some(Field(at(found))).filter(|field| !field.inline())
    }
}

/// A handle on one member of a type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Field(usize);

/// JSON type of one value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Any JSON object at all.
    Any,
    /// A string.
    String,
    /// A boolean.
    Bool,
    /// An integer of 32 bits.
    Int32,
    /// An integer of 64 bits.
    Int64,
    /// A double.
    Number,
    /// Bytes, base64 in JSON.
    Bytes,
    /// Another type.
    Message(Type),
    /// A list of strings that is a message of its own in protobuf.
    StringList,
}

/// How often a member's value occurs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Repeat {
    /// Once.
    One,
    /// In a JSON array.
    List,
    /// In a JSON object, by string.
    Map,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ListType {
    /// Not said.
    Unset,
    /// Replaced whole.
    Atomic,
    /// Scalars, each once.
    Set,
    /// Elements with keys.
    Map,
}

impl Field {
    /// Its JSON name; `~` and a word for one that protobuf nests.
    pub fn name(self) -> &'static str {
        text(self.0)
    }

    /// Its protobuf tag; 0 if it has none.
    pub fn tag(self) -> u16 {
        half(self.0 + 4)
    }

    /// Type of its value, or of each of its values.
    pub fn kind(self) -> Kind {
        match byte(self.0 + 10) {
            1 => Kind::String,
            2 => Kind::Bool,
            3 => Kind::Int32,
            4 => Kind::Int64,
            5 => Kind::Number,
            6 => Kind::Bytes,
            7 => Kind::Message(Type(half(self.0 + 6))),
            8 => Kind::StringList,
            _ => Kind::Any,
        }
    }

    /// How often it occurs.
    pub fn repeat(self) -> Repeat {
        match byte(self.0 + 11) {
            1 => Repeat::List,
            2 => Repeat::Map,
            _ => Repeat::One,
        }
    }

    fn flag(self, bit: u16) -> bool {
        half(self.0 + 12) & (1 << bit) != 0
    }

    /// Nested in protobuf, but its members are the parent's in JSON.
    pub fn inline(self) -> bool {
        self.flag(0)
    }

    /// OpenAPI's `required`.
    pub fn required(self) -> bool {
        self.flag(1)
    }

    /// A pointer in Go: absent and zero differ. Every other single value is always written in protobuf.
    pub fn pointer(self) -> bool {
        self.flag(2)
    }

    /// A scalar that JSON has even when it is zero.
    pub fn always(self) -> bool {
        self.flag(3)
    }

    /// Strategic merge: elements are merged, not replaced.
    pub fn merges(self) -> bool {
        self.flag(4)
    }

    /// Strategic merge: `$retainKeys` is expected.
    pub fn retains_keys(self) -> bool {
        self.flag(5)
    }

    /// `x-kubernetes-map-type: atomic`.
    pub fn atomic(self) -> bool {
        self.flag(7)
    }

    /// `x-kubernetes-map-type: granular`.
    pub fn granular(self) -> bool {
        self.flag(8)
    }

    /// `x-kubernetes-list-type`.
    pub fn list_type(self) -> ListType {
        match byte(self.0 + 14) {
            1 => ListType::Atomic,
            2 => ListType::Set,
            3 => ListType::Map,
            _ => ListType::Unset,
        }
    }

    /// `x-kubernetes-patch-merge-key`; empty if none.
    pub fn merge_key(self) -> &'static str {
        text(self.0 + 16)
    }

    /// `x-kubernetes-list-map-keys`.
    pub fn keys(self) -> impl Iterator<Item = &'static str> {
        text(self.0 + 20).split(',').filter(|key| !key.is_empty())
    }

    /// Its default as JSON text; empty if none.
    pub fn default(self) -> &'static str {
        text(self.0 + 24)
    }

    /// Number of its description.
    pub(super) fn text(self) -> u16 {
        half(self.0 + 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_kind_a_cluster_cannot_do_without() {
        for (group, version, kind) in [
            ("", "v1", "Pod"),
            ("", "v1", "PodList"),
            ("", "v1", "Event"),
            ("events.k8s.io", "v1", "Event"),
            ("apps", "v1", "Deployment"),
            ("coordination.k8s.io", "v1", "Lease"),
            ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            ("autoscaling", "v1", "Scale"),
            ("policy", "v1", "Eviction"),
        ] {
            let found = built_in().kind(group, version, kind);
            assert!(
                found.is_some_and(|found| found.name().ends_with(kind)),
                "{group}/{version} {kind}"
            );
        }
        assert_eq!(built_in().kind("", "v1", "Table"), None);
    }

    #[test]
    fn every_name_in_the_table_leads_back_to_its_record() {
        for (group, version, kind, shape) in built_in().kinds() {
            assert_eq!(built_in().kind(group, version, kind), Some(shape), "{kind}");
            assert_eq!(built_in().named(shape.name()), Some(shape), "{kind}");
            for field in shape.fields().filter(|field| !field.inline()) {
                assert_eq!(shape.field(field.name()), Some(field), "{kind}.{}", field.name());
            }
        }
    }

    #[test]
    fn every_tag_leads_to_its_member_in_ascending_order() {
        for (_, _, kind, shape) in built_in().kinds() {
            let tags: Vec<u16> = shape.fields_by_tag().map(Field::tag).collect();
            assert!(tags.is_sorted(), "{kind}: {tags:?}");
            assert_eq!(tags.len(), shape.fields().count());
            for field in shape.fields().filter(|field| field.tag() != 0) {
                assert_eq!(
                    shape.tagged(u32::from(field.tag())),
                    Some(field),
                    "{kind}.{}",
                    field.name()
                );
            }
            assert_eq!(shape.tagged(4000), None);
        }
    }

    #[test]
    fn a_member_knows_whether_go_can_leave_it_out() {
        let member = |shape: &str, name: &str| {
            let shape = built_in().named(&format!("io.k8s.api.{shape}")).unwrap();
            let field = shape.field(name).unwrap();
            (field.pointer(), field.always())
        };
        for (shape, name, expected) in [
            ("apps.v1.DeploymentSpec", "replicas", (true, false)),
            ("apps.v1.DeploymentSpec", "paused", (false, false)),
            ("core.v1.ContainerStatus", "restartCount", (false, true)),
            ("core.v1.Container", "name", (false, true)),
            ("core.v1.Container", "resources", (false, false)),
            ("core.v1.Container", "livenessProbe", (true, false)),
            ("core.v1.LocalObjectReference", "name", (false, false)),
            ("rbac.v1.RoleRef", "apiGroup", (false, true)),
        ] {
            assert_eq!(member(shape, name), expected, "{shape}.{name}");
        }
    }

    #[test]
    fn a_member_knows_its_tag_type_and_keys() {
        let pod = built_in().named("io.k8s.api.core.v1.PodSpec").unwrap();
        let containers = pod.field("containers").unwrap();
        assert_eq!((containers.tag(), containers.repeat()), (2, Repeat::List));
        assert!(containers.merges() && containers.required());
        assert_eq!(containers.merge_key(), "name");
        assert_eq!(containers.keys().collect::<Vec<_>>(), ["name"]);
        let Kind::Message(container) = containers.kind() else {
            panic!("containers hold messages")
        };
        assert_eq!(
            container.field("ports").unwrap().keys().collect::<Vec<_>>(),
            ["containerPort", "protocol"]
        );
        assert_eq!(
            built_in()
                .named("io.k8s.api.core.v1.ContainerPort")
                .unwrap()
                .field("protocol")
                .unwrap()
                .default(),
            "\"TCP\""
        );
    }
}
