//! Reads the sources of crate k8s-openapi: every type's JSON schema, its group, version and kind.
//!
//! The crate's schemas are macro calls that are JSON but for references; this reads exactly what its generator writes
//! and fails on anything else, so that a new release cannot be misread.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use crate::model::{Field, Gvk, Kind, Message, Model, Repeat, Shape};

/// A JSON schema in the source.
#[derive(Clone, Debug)]
enum Node {
    Text(String),
    Flag,
    List(Vec<Node>),
    Object(BTreeMap<String, Node>),
    /// A type by its Rust path, and the description beside the reference.
    Reference(String, String),
}

/// What one source file holds.
struct Source {
    rust: String,
    name: String,
    schema: Node,
    gvk: Option<(String, String, String)>,
    list: Option<String>,
}

/// Reads all types of one Kubernetes version's folder.
pub fn read(folder: &Path) -> Result<Model> {
    let mut sources = Vec::new();
    walk(folder, "crate", &mut sources)?;
    let names: BTreeMap<String, String> = sources
        .iter()
        .map(|source| (source.rust.clone(), source.name.clone()))
        .collect();
    let mut model = Model::default();
    for source in &sources {
        let message = message(&source.name, &source.schema, &names).with_context(|| source.name.clone())?;
        model.messages.insert(source.name.clone(), message);
        let Some((group, version, kind)) = &source.gvk else {
            continue;
        };
        let gvk = |kind: &str, message: &str| Gvk {
            group: group.clone(),
            version: version.clone(),
            kind: kind.to_owned(),
            message: message.to_owned(),
        };
        model.kinds.push(gvk(kind, &source.name));
        if let Some(list) = &source.list {
            let name = format!("{}{list}", source.name.strip_suffix(kind.as_str()).unwrap_or(""));
            model.kinds.push(gvk(list, &name));
            model.messages.insert(name, list_of(&source.name, kind, list));
        }
    }
    Ok(model)
}

fn walk(folder: &Path, module: &str, into: &mut Vec<Source>) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            walk(&path, &format!("{module}::{name}"), into)?;
        } else if name != "mod.rs" {
            let text = fs::read_to_string(&path)?;
            if let Some(source) = source(&text, module).with_context(|| path.display().to_string())? {
                into.push(source);
            }
        }
    }
    Ok(())
}

fn source(text: &str, module: &str) -> Result<Option<Source>> {
    let Some((before, after)) = text.split_once("JsonSchema for ") else {
        return Ok(None);
    };
    let type_name = after.split([' ', '<']).next().ok_or_else(|| anyhow!("no type name"))?;
    let (_, call) = after
        .split_once("json_schema!(")
        .ok_or_else(|| anyhow!("no json_schema!"))?;
    let name = after
        .split('"')
        .nth(1)
        .ok_or_else(|| anyhow!("no schema name"))?
        .to_owned();
    let constant = |what: &str| {
        let (_, rest) = before.split_once(&format!("const {what}: &'static str = \""))?;
        rest.split('"').next().map(str::to_owned)
    };
    let gvk = constant("GROUP").zip(constant("VERSION")).zip(constant("KIND"));
    Ok(Some(Source {
        rust: format!("{module}::{type_name}"),
        name,
        schema: Reader { rest: call }.node()?,
        gvk: gvk.map(|((group, version), kind)| (group, version, kind)),
        list: constant("LIST_KIND"),
    }))
}

/// A cursor in the macro's text.
struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn skip(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn need(&mut self, token: &str) -> Result<()> {
        if self.skip(token) {
            return Ok(());
        }
        let near: String = self.rest.chars().take(60).collect();
        bail!("expected {token:?} at {near:?}")
    }

    fn node(&mut self) -> Result<Node> {
        if self.skip("{") {
            let mut members = BTreeMap::new();
            while !self.skip("}") {
                let key = self.text()?;
                self.need(":")?;
                members.insert(key, self.node()?);
                self.skip(",");
            }
            return Ok(Node::Object(members));
        }
        if self.skip("[") {
            let mut items = Vec::new();
            while !self.skip("]") {
                items.push(self.node()?);
                self.skip(",");
            }
            return Ok(Node::List(items));
        }
        if self.skip("true") {
            return Ok(Node::Flag);
        }
        if self.skip("({") {
            self.need("let mut schema_obj =")?;
            let path = self.reference()?;
            self.need(";")?;
            self.need("schema_obj.ensure_object().insert(\"description\".into(),")?;
            let text = self.text()?;
            self.need(".into());")?;
            self.need("schema_obj")?;
            self.need("})")?;
            return Ok(Node::Reference(path, text));
        }
        if self.skip("(") {
            let path = self.reference()?;
            self.need(")")?;
            return Ok(Node::Reference(path, String::new()));
        }
        if self.rest.trim_start().starts_with("__gen") {
            return Ok(Node::Reference(self.reference()?, String::new()));
        }
        Ok(Node::Text(self.text()?))
    }

    fn reference(&mut self) -> Result<String> {
        self.need("__gen.subschema_for::<")?;
        let (path, rest) = self
            .rest
            .split_once(">()")
            .ok_or_else(|| anyhow!("unterminated reference"))?;
        self.rest = rest;
        Ok(path.to_owned())
    }

    /// A Rust string literal, of the escapes that its writer uses.
    fn text(&mut self) -> Result<String> {
        self.need("\"")?;
        let mut out = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, char)) = chars.next() {
            match char {
                '"' => {
                    self.rest = self.rest.get(at + 1..).unwrap_or_default();
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => out.push('\n'),
                    Some((_, 't')) => out.push('\t'),
                    Some((_, same @ ('"' | '\\' | '\''))) => out.push(same),
                    other => bail!("unknown escape {other:?}"),
                },
                other => out.push(other),
            }
        }
        bail!("unterminated string")
    }
}

fn message(name: &str, schema: &Node, names: &BTreeMap<String, String>) -> Result<Message> {
    let Node::Object(members) = schema else {
        bail!("schema is not an object")
    };
    let mut message = Message {
        shape: shape(name),
        text: text(members.get("description")),
        ..Message::default()
    };
    if let Some(Node::Object(properties)) = members.get("properties") {
        for (key, node) in properties {
            let field = field(node, names).with_context(|| key.clone())?;
            message.fields.insert(key.clone(), field);
        }
    }
    if let Some(Node::List(required)) = members.get("required") {
        for one in required {
            let Node::Text(one) = one else {
                bail!("required is not text")
            };
            let field = message.fields.get_mut(one).ok_or_else(|| anyhow!("no {one}"))?;
            field.required = true;
        }
    }
    Ok(message)
}

/// Types whose JSON is not an object of their members. Source: spec 3.6; apimachinery v0.36 `MarshalJSON` methods.
fn shape(name: &str) -> Shape {
    let short = name.rsplit('.').next().unwrap_or_default();
    match short {
        "IntOrString" => Shape::IntOrString,
        "Quantity" => Shape::Quantity,
        "Time" => Shape::Time,
        "MicroTime" => Shape::MicroTime,
        "RawExtension" | "FieldsV1" | "Patch" => Shape::Raw,
        "JSON" => Shape::Json,
        "JSONSchemaPropsOrBool" => Shape::SchemaOrBool,
        "JSONSchemaPropsOrArray" => Shape::SchemaOrArray,
        "JSONSchemaPropsOrStringArray" => Shape::SchemaOrStrings,
        _ => Shape::Object,
    }
}

fn text(node: Option<&Node>) -> String {
    match node {
        Some(Node::Text(text)) => text.clone(),
        _ => String::new(),
    }
}

fn field(node: &Node, names: &BTreeMap<String, String>) -> Result<Field> {
    let mut field = Field::default();
    let mut inner = node;
    if let Node::Object(members) = node {
        field.text = text(members.get("description"));
        if let Some(items) = members.get("items") {
            field.repeat = Repeat::List;
            inner = items;
        } else if let Some(values) = members.get("additionalProperties") {
            field.repeat = Repeat::Map;
            inner = values;
        }
    }
    match inner {
        Node::Reference(path, beside) => {
            field.kind = Kind::Message;
            field.message = names.get(path).ok_or_else(|| anyhow!("no type {path}"))?.clone();
            if field.text.is_empty() {
                field.text.clone_from(beside);
            }
        }
        Node::Object(members) => field.kind = scalar(members, field.repeat)?,
        other => bail!("unexpected {other:?}"),
    }
    Ok(field)
}

fn scalar(members: &BTreeMap<String, Node>, repeat: Repeat) -> Result<Kind> {
    let (kind, format) = (text(members.get("type")), text(members.get("format")));
    Ok(match (kind.as_str(), format.as_str()) {
        ("string", "") => Kind::String,
        ("string", "byte") => Kind::Bytes,
        ("boolean", "") => Kind::Bool,
        ("integer", "int32") => Kind::Int32,
        ("integer", "int64") => Kind::Int64,
        ("number", "double") => Kind::Number,
        ("object", "") => Kind::Any,
        ("array", "") if repeat == Repeat::Map => Kind::StringList,
        other => bail!("unknown type {other:?}"),
    })
}

/// The list of a kind. The crate has one generic list; upstream has one type each, all alike.
fn list_of(item: &str, kind: &str, list: &str) -> Message {
    const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
    let plain = |text: &str| Field {
        kind: Kind::String,
        text: text.to_owned(),
        ..Field::default()
    };
    let fields = [
        ("apiVersion", plain(API_VERSION_TEXT)),
        ("kind", plain(KIND_TEXT)),
        (
            "metadata",
            Field {
                kind: Kind::Message,
                message: META.to_owned(),
                tag: 1,
                text: "Standard list metadata.".to_owned(),
                ..Field::default()
            },
        ),
        (
            "items",
            Field {
                kind: Kind::Message,
                repeat: Repeat::List,
                message: item.to_owned(),
                tag: 2,
                required: true,
                text: format!("The {kind} objects."),
                ..Field::default()
            },
        ),
    ];
    Message {
        text: format!("{list} is a list of {kind} objects."),
        fields: fields.map(|(name, field)| (name.to_owned(), field)).into(),
        ..Message::default()
    }
}

const API_VERSION_TEXT: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND_TEXT: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
