//! OpenAPI documents: v3, one for each group version (here), and v2, one for all (`v2`). Built when asked for and not kept.
//!
//! Source of what clients look at: kubectl v1.32 `explain` (paths, `x-kubernetes-group-version-kind`, properties) and
//! `apply` (the PATCH operation's `fieldValidation` parameter).

mod gnostic;
pub mod v2;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::LazyLock;

use bytes::Bytes;
use flate2::read::GzDecoder;
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};

use super::table;
use super::{Field, Kind, ListType, Repeat, Shape, Type, built_in};
use crate::registry::resource::Resource;

/// Descriptions, packed; `schema-gen` writes them.
static TEXTS: &[u8] = include_bytes!("../text.bin.gz");

/// The body of `/openapi/v3`: where each group version's document is.
pub fn index(rows: &[&Resource]) -> Bytes {
    let versions: BTreeSet<String> = rows.iter().map(|row| row.api_version()).collect();
    let paths: BTreeMap<String, Value> = versions
        .iter()
        .map(|version| {
            let path = path(version);
            let address = format!("/openapi/v3/{path}?hash={}", hash(version, rows));
            (path, json!({"serverRelativeURL": address}))
        })
        .collect();
    json!({"paths": paths}).to_string().into()
}

/// The document of one group version, `v1` or `apps/v1`; `None` if no row belongs to it.
pub fn document(group_version_wanted: &str, rows: &[&Resource]) -> Option<Bytes> {
    let rows: Vec<&Resource> = rows
        .iter()
        .copied()
        .filter(|row| row.api_version() == group_version_wanted)
        .collect();
    if rows.is_empty() {
        return None;
    }
    let mut schemas = Schemas::new();
    let mut paths = Map::new();
    for row in rows {
        if let Some(root) = built_in().kind(row.group, row.version, row.kind) {
            schemas.add(root);
            add_paths(&mut paths, row, &|method, action| operation(row, root, method, action));
        }
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36"},
        "paths": paths,
        "components": {"schemas": schemas.done},
    });
    Some(document.to_string().into())
}

/// The `hash` parameter of a document's address: changes when the document does.
pub fn hash(group_version_wanted: &str, rows: &[&Resource]) -> String {
    let rows = rows.iter().filter(|row| row.api_version() == group_version_wanted);
    hash_of(own_data(), rows.copied())
}

fn own_data() -> &'static [u8] {
    static DATA: LazyLock<Vec<u8>> = LazyLock::new(|| data(table::raw(), TEXTS));
    &DATA
}

/// What stands for the data that all documents are made of.
fn data(table: &[u8], texts: &[u8]) -> Vec<u8> {
    [digest(&SHA256, table).as_ref(), digest(&SHA256, texts).as_ref()].concat()
}

/// `data`: the table and the descriptions. This program's version stands for how a document is made of them.
fn hash_of<'r>(data: &[u8], rows: impl Iterator<Item = &'r Resource>) -> String {
    let mut text = data.to_vec();
    text.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
    for row in rows {
        let scope = if row.namespaced { "namespaced" } else { "cluster" };
        for part in [row.group, row.version, row.kind, row.plural, scope]
            .iter()
            .chain(row.verbs)
        {
            text.push(b' ');
            text.extend_from_slice(part.as_bytes());
        }
    }
    let digest = digest(&SHA256, &text);
    let bytes = digest.as_ref().iter().take(16);
    bytes.map(|byte| format!("{byte:02X}")).collect()
}

fn path(group_version: &str) -> String {
    let folder = if group_version.contains('/') { "apis" } else { "api" };
    format!("{folder}/{group_version}")
}

/// Every description; unpacked for whoever asks and not kept.
struct Texts(Vec<String>);

impl Texts {
    fn unpack() -> Self {
        let mut bytes = Vec::new();
        // Embedded at build time, and a test reads it: what cannot be read is left out.
        let _ = GzDecoder::new(TEXTS).read_to_end(&mut bytes);
        let mut texts = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some((size, tail)) = rest.split_first_chunk() {
            let size = usize::from(u16::from_le_bytes(*size));
            let Some((text, tail)) = tail.split_at_checked(size) else {
                break;
            };
            texts.push(String::from_utf8_lossy(text).into_owned());
            rest = tail;
        }
        Self(texts)
    }

    fn get(&self, number: u16) -> &str {
        self.0.get(usize::from(number)).map_or("", String::as_str)
    }
}

/// Component schemas, each message once.
struct Schemas {
    texts: Texts,
    kinds: BTreeMap<Type, Vec<Value>>,
    done: Map<String, Value>,
}

impl Schemas {
    fn new() -> Self {
        let mut kinds: BTreeMap<Type, Vec<Value>> = BTreeMap::new();
        for (group, version, kind, message) in built_in().kinds() {
            let gvk = json!({"group": group, "version": version, "kind": kind});
            kinds.entry(message).or_default().push(gvk);
        }
        Self {
            texts: Texts::unpack(),
            kinds,
            done: Map::new(),
        }
    }

    /// Adds a message and all that it refers to.
    fn add(&mut self, root: Type) {
        let mut open = vec![root];
        while let Some(message) = open.pop() {
            if self.done.contains_key(message.name()) {
                continue;
            }
            let schema = self.schema(message);
            self.done.insert(message.name().to_owned(), schema);
            open.extend(message.fields().filter(|field| !field.inline()).filter_map(inner));
        }
    }

    fn schema(&self, message: Type) -> Value {
        let mut schema = match message.shape() {
            Shape::Object => json!({"type": "object"}),
            Shape::IntOrString => {
                json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
            }
            Shape::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
            Shape::Raw | Shape::Json | Shape::SchemaOrBool | Shape::SchemaOrArray | Shape::SchemaOrStrings => {
                json!({"x-kubernetes-preserve-unknown-fields": true})
            }
        };
        self.describe(&mut schema, message, |field| self.property(field));
        schema
    }

    /// What both versions say of a type in the same words; `property` says it of a member.
    fn describe(&self, schema: &mut Value, message: Type, property: impl Fn(Field) -> Value) {
        put_text(schema, self.texts.get(message.text()));
        let members = || message.fields().filter(|field| !field.inline());
        if message.shape() == Shape::Object {
            let properties: Map<String, Value> = members()
                .map(|field| (field.name().to_owned(), property(field)))
                .collect();
            let required: Vec<&str> = members().filter(|field| field.required()).map(Field::name).collect();
            if !properties.is_empty() {
                put(schema, "properties", properties.into());
            }
            if !required.is_empty() {
                put(schema, "required", required.into());
            }
        }
        if message.atomic() {
            put(schema, "x-kubernetes-map-type", "atomic".into());
        }
        if let Some(kinds) = self.kinds.get(&message) {
            put(schema, "x-kubernetes-group-version-kind", kinds.clone().into());
        }
    }

    fn property(&self, field: Field) -> Value {
        let one = one(field);
        let mut property = match field.repeat() {
            Repeat::One if one.get("$ref").is_some() => json!({"allOf": [one]}),
            Repeat::One => one,
            Repeat::List => json!({"type": "array", "items": one}),
            Repeat::Map => json!({"type": "object", "additionalProperties": one}),
        };
        put_text(&mut property, self.texts.get(field.text()));
        if let Ok(default) = serde_json::from_str(field.default()) {
            put(&mut property, "default", default);
        }
        put_extensions(&mut property, field);
        property
    }
}

fn inner(field: Field) -> Option<Type> {
    match field.kind() {
        Kind::Message(inner) => Some(inner),
        _ => None,
    }
}

/// How the member merges: the same words in both versions.
fn put_extensions(property: &mut Value, field: Field) {
    let list = match field.list_type() {
        ListType::Unset => None,
        ListType::Atomic => Some("atomic"),
        ListType::Set => Some("set"),
        ListType::Map => Some("map"),
    };
    if let Some(list) = list {
        put(property, "x-kubernetes-list-type", list.into());
    }
    let keys: Vec<&str> = field.keys().collect();
    if !keys.is_empty() {
        put(property, "x-kubernetes-list-map-keys", keys.into());
    }
    if field.atomic() {
        put(property, "x-kubernetes-map-type", "atomic".into());
    }
    let strategies = [(field.merges(), "merge"), (field.retains_keys(), "retainKeys")];
    let strategies: Vec<&str> = strategies
        .into_iter()
        .filter(|(on, _)| *on)
        .map(|(_, name)| name)
        .collect();
    if !strategies.is_empty() {
        put(property, "x-kubernetes-patch-strategy", strategies.join(",").into());
    }
    if !field.merge_key().is_empty() {
        put(property, "x-kubernetes-patch-merge-key", field.merge_key().into());
    }
}

/// One value of a field.
fn one(field: Field) -> Value {
    match field.kind() {
        Kind::Any => json!({"type": "object"}),
        Kind::String => json!({"type": "string"}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 => json!({"type": "integer", "format": "int32"}),
        Kind::Int64 => json!({"type": "integer", "format": "int64"}),
        Kind::Number => json!({"type": "number", "format": "double"}),
        Kind::Bytes => json!({"type": "string", "format": "byte"}),
        Kind::Message(inner) => json!({"$ref": reference(inner)}),
        Kind::StringList => json!({"type": "array", "items": {"type": "string"}}),
    }
}

fn reference(message: Type) -> String {
    format!("#/components/schemas/{}", message.name())
}

fn put(object: &mut Value, name: &str, value: Value) {
    if let Value::Object(members) = object {
        members.insert(name.to_owned(), value);
    }
}

fn put_text(schema: &mut Value, text: &str) {
    if !text.is_empty() {
        put(schema, "description", text.into());
    }
}

/// What a row can do, and where.
/// `operation`: makes one of a method and an action.
fn add_paths(paths: &mut Map<String, Value>, row: &Resource, operation: &dyn Fn(&str, &str) -> Value) {
    let base = path(&row.api_version());
    let collection = match row.namespaced {
        true => format!("/{base}/namespaces/{{namespace}}/{}", row.plural),
        false => format!("/{base}/{}", row.plural),
    };
    let operations = |wanted: &[(&str, &str, &str)]| {
        let mut found = Map::new();
        for (verb, method, action) in wanted {
            if row.verbs.contains(verb) {
                found.insert((*method).to_owned(), operation(method, action));
            }
        }
        found
    };
    let all = operations(&[
        ("list", "get", "list"),
        ("create", "post", "post"),
        ("deletecollection", "delete", "deletecollection"),
    ]);
    let single = operations(&[
        ("get", "get", "get"),
        ("update", "put", "put"),
        ("patch", "patch", "patch"),
        ("delete", "delete", "delete"),
    ]);
    if row.namespaced {
        let everywhere = operations(&[("list", "get", "list")]);
        paths.insert(format!("/{base}/{}", row.plural), everywhere.into());
    }
    paths.insert(format!("{collection}/{{name}}"), single.into());
    paths.insert(collection, all.into());
}

fn operation(row: &Resource, root: Type, method: &str, action: &str) -> Value {
    let media = json!({"application/json": {"schema": {"$ref": reference(root)}}});
    let mut operation = json!({
        "tags": [row.api_version()],
        "operationId": format!("{action}{}", row.kind),
        "responses": {"200": {"description": "OK", "content": media}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": row.group, "version": row.version, "kind": row.kind},
    });
    let parameter =
        |name: &str, kind: &str| json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}});
    let mut parameters = Vec::new();
    if method != "get" {
        parameters.push(parameter("dryRun", "string"));
    }
    if ["post", "put", "patch"].contains(&method) {
        parameters.push(parameter("fieldManager", "string"));
        parameters.push(parameter("fieldValidation", "string"));
        let body = match method {
            "patch" => json!({
                "application/json-patch+json": {"schema": {"type": "object"}},
                "application/merge-patch+json": {"schema": {"type": "object"}},
                "application/strategic-merge-patch+json": {"schema": {"type": "object"}},
            }),
            _ => json!({"*/*": {"schema": {"$ref": reference(root)}}}),
        };
        put(
            &mut operation,
            "requestBody",
            json!({"content": body, "required": true}),
        );
    }
    put(&mut operation, "parameters", parameters.into());
    operation
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn parsed(version: &str) -> Value {
        let rows: Vec<&Resource> = kinds::table().iter().map(AsRef::as_ref).collect();
        serde_json::from_slice(&document(version, &rows).unwrap()).unwrap()
    }

    #[test]
    fn a_document_has_what_kubectl_looks_for() {
        let apps = parsed("apps/v1");
        let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let parameters = patch["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|one| one["name"] == "fieldValidation"), "{patch}");
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let schema = &apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
        assert!(
            schema["description"]
                .as_str()
                .unwrap()
                .starts_with("Deployment enables"),
            "{}",
            schema["description"]
        );
    }

    #[test]
    fn a_document_has_another_address_once_anything_it_is_made_of_changes() {
        let pods = kinds::find("", "v1", "pods").unwrap();
        let nodes = kinds::find("", "v1", "nodes").unwrap();
        let of = |table: &[u8], texts: &[u8], rows: &[&Resource]| hash_of(&data(table, texts), rows.iter().copied());
        let first = of(b"table", b"texts", &[&pods]);
        assert_eq!(first, of(b"table", b"texts", &[&pods]));
        assert_ne!(first, of(b"tablf", b"texts", &[&pods]));
        assert_ne!(first, of(b"table", b"textt", &[&pods]));
        assert_ne!(first, of(b"table", b"texts", &[&nodes]));
        let mut fewer = (*pods).clone();
        fewer.verbs = &["get"];
        assert_ne!(first, of(b"table", b"texts", &[&fewer]));
    }

    #[test]
    fn every_reference_of_every_document_leads_somewhere() {
        let rows: Vec<&Resource> = kinds::table().iter().map(AsRef::as_ref).collect();
        let index: Value = serde_json::from_slice(&index(&rows)).unwrap();
        let versions: BTreeSet<String> = rows.iter().map(|row| row.api_version()).collect();
        assert_eq!(index["paths"].as_object().unwrap().len(), versions.len());
        for version in versions {
            let document = parsed(&version);
            let text = document.to_string();
            for reference in text.split("#/components/schemas/").skip(1) {
                let name = reference.split('"').next().unwrap();
                assert!(
                    document["components"]["schemas"].get(name).is_some(),
                    "{version}: {name}"
                );
            }
        }
    }
}
