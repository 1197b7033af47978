//! Joins the two crates and the hand-written facts into one model.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, bail};

use crate::model::{Field, Gvk, Kind, ListType, Message, Model, Repeat, Shape};
use crate::proto::{PbField, PbMessage, PbMessages, field_key, key};

/// Facts that no crate holds, one a line; each file names its source.
const FACTS: [&str; 2] = [include_str!("../delta.txt"), include_str!("../presence.txt")];

/// Go constants that defaults refer to. Source: k8s.io/api v0.36, `core/v1/types.go`.
const CONSTANTS: [(&str, &str); 2] = [
    ("AzureDataDiskCachingReadWrite", "\"ReadWrite\""),
    ("AzureSharedBlobDisk", "\"Shared\""),
];

/// Messages that OpenAPI does not list and yet cross the wire as bodies: options, and what they hold.
const EXTRA: [(&str, &str, &str); 20] = [
    ("io.k8s.apimachinery.pkg.apis.meta.v1.", "", "CreateOptions"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.", "", "GetOptions"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.", "", "ListOptions"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.", "", "PatchOptions"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.", "", "UpdateOptions"),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.",
        "meta.k8s.io/v1",
        "PartialObjectMetadata",
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.",
        "meta.k8s.io/v1",
        "PartialObjectMetadataList",
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.",
        "meta.k8s.io/v1beta1",
        "PartialObjectMetadata",
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.",
        "meta.k8s.io/v1beta1",
        "PartialObjectMetadataList",
    ),
    ("io.k8s.api.core.v1.", "v1", "NodeProxyOptions"),
    ("io.k8s.api.core.v1.", "v1", "PodAttachOptions"),
    ("io.k8s.api.core.v1.", "v1", "PodExecOptions"),
    ("io.k8s.api.core.v1.", "v1", "PodLogOptions"),
    ("io.k8s.api.core.v1.", "v1", "PodPortForwardOptions"),
    ("io.k8s.api.core.v1.", "v1", "PodProxyOptions"),
    ("io.k8s.api.core.v1.", "v1", "RangeAllocation"),
    ("io.k8s.api.core.v1.", "v1", "SerializedReference"),
    ("io.k8s.api.core.v1.", "v1", "ServiceProxyOptions"),
    ("io.k8s.api.admission.v1.", "admission.k8s.io/v1", "AdmissionReview"),
    (
        "io.k8s.api.apidiscovery.v2.",
        "apidiscovery.k8s.io/v2",
        "APIGroupDiscovery",
    ),
];

/// What has no protobuf form. Source: apimachinery v0.36 `version.Info` is JSON only.
const JSON_ONLY: &str = "io.k8s.apimachinery.pkg.version.Info.";

/// Makes the model whole: tags, nesting, markers, kinds of their own.
///
/// # Errors
/// A fact about what is not there, and a member that protobuf could not carry.
pub fn join(model: &mut Model, protos: &PbMessages) -> Result<()> {
    for name in model.messages.keys().cloned().collect::<Vec<_>>() {
        if let Some(proto) = protos.get(&key(&name)) {
            tag_message(model, &name, proto, protos)?;
        }
    }
    extra(model, protos)?;
    nest_by_hand(model, protos)?;
    print_required(model);
    for file in FACTS {
        facts(model, file)?;
    }
    meta_kinds(model);
    model.kinds.sort();
    model.kinds.dedup();
    let untagged = untagged(model);
    if !untagged.is_empty() {
        bail!("no protobuf tag, see delta.txt: {}", untagged.join(" "));
    }
    Ok(())
}

/// What OpenAPI requires is what Go prints even when zero (`json` tags without `omitempty`); `presence.txt` has the rest.
fn print_required(model: &mut Model) {
    for field in model
        .messages
        .values_mut()
        .flat_map(|message| message.fields.values_mut())
    {
        let scalar = matches!(
            field.kind,
            Kind::String | Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Number
        );
        field.always = scalar && field.required && field.repeat == Repeat::One;
    }
}

fn tag_message(model: &mut Model, name: &str, proto: &PbMessage, protos: &PbMessages) -> Result<()> {
    let message = model.messages.get_mut(name).ok_or_else(|| anyhow!("no {name}"))?;
    message.atomic = proto
        .markers
        .iter()
        .any(|(marker, value)| marker == "structType" && value == "atomic");
    if message.shape != Shape::Object {
        return Ok(());
    }
    let by_key: BTreeMap<String, String> = message
        .fields
        .keys()
        .map(|json| (field_key(json), json.clone()))
        .collect();
    let mut nested = Vec::new();
    for field in &proto.fields {
        match by_key
            .get(&field_key(&field.name))
            .and_then(|json| message.fields.get_mut(json))
        {
            Some(known) => mark(known, field).with_context(|| format!("{name}.{}", field.name))?,
            None if field.form.starts_with("message, optional") => nested.push(field.clone()),
            // Gone from the JSON form, or newer than this version: never on our wire.
            None => {}
        }
    }
    for field in nested {
        if protos.contains_key(&field.message) {
            nest(model, name, &field, protos)?;
        }
    }
    Ok(())
}

/// A message whose JSON members are the parent's: declared with the parent's own fields.
fn nest(model: &mut Model, parent: &str, field: &PbField, protos: &PbMessages) -> Result<()> {
    let proto = protos
        .get(&field.message)
        .ok_or_else(|| anyhow!("no {}", field.message))?;
    let members = model
        .messages
        .get(parent)
        .ok_or_else(|| anyhow!("no {parent}"))?
        .fields
        .clone();
    let by_key: BTreeMap<String, &String> = members.keys().map(|json| (field_key(json), json)).collect();
    if !proto
        .fields
        .iter()
        .any(|inner| by_key.contains_key(&field_key(&inner.name)))
    {
        return Ok(()); // an object of a newer or older version
    }
    let existing = model.messages.keys().find(|known| key(known) == field.message).cloned();
    let name = match existing {
        Some(name) => name,
        None => {
            let name = format!("{parent}~{}", field.name);
            let mut message = Message {
                hidden: true,
                ..Message::default()
            };
            for inner in &proto.fields {
                if let Some((json, member)) = by_key
                    .get(&field_key(&inner.name))
                    .and_then(|json| members.get_key_value(*json))
                {
                    message.fields.insert(json.clone(), member.clone());
                }
            }
            model.messages.insert(name.clone(), message);
            tag_message(model, &name, proto, protos)?;
            name
        }
    };
    // Markers of the nested message hold for the parent's JSON members too.
    let inner = model
        .messages
        .get(&name)
        .ok_or_else(|| anyhow!("no {name}"))?
        .fields
        .clone();
    let message = model.messages.get_mut(parent).ok_or_else(|| anyhow!("no {parent}"))?;
    for (json, member) in inner {
        if let Some(own) = message.fields.get_mut(&json)
            && own.tag == 0
        {
            let text = own.text.clone();
            let required = own.required;
            *own = member;
            (own.tag, own.text, own.required) = (0, text, required);
        }
    }
    message.fields.insert(
        format!("~{}", field.name),
        Field {
            inline: true,
            tag: field.tag,
            kind: Kind::Message,
            message: name,
            ..Field::default()
        },
    );
    Ok(())
}

/// Nesting that a name cannot show: see `delta.txt` on `rule`.
fn nest_by_hand(model: &mut Model, protos: &PbMessages) -> Result<()> {
    for name in model.messages.keys().cloned().collect::<Vec<_>>() {
        let Some(proto) = protos.get(&key(&name)) else { continue };
        for field in &proto.fields {
            let nested = format!("~{}", field.name);
            let message = model.messages.get(&name).ok_or_else(|| anyhow!("no {name}"))?;
            if let Some(own) = message.fields.get(&nested)
                && !model.messages.contains_key(&own.message)
            {
                bail!("{name}: nothing to nest for {nested}");
            }
        }
    }
    Ok(())
}

fn mark(field: &mut Field, proto: &PbField) -> Result<()> {
    field.tag = proto.tag;
    if field.kind == Kind::String && field.repeat == Repeat::List && proto.form.starts_with("message, optional") {
        field.kind = Kind::StringList;
        field.repeat = Repeat::One;
    }
    for (name, value) in &proto.markers {
        match name.as_str() {
            "listType" => field.list = list_type(value)?,
            "listMapKey" if field.keys.is_empty() => field.keys.clone_from(value),
            "listMapKey" => field.keys = format!("{},{value}", field.keys),
            "mapType" => field.map.clone_from(value),
            "patchStrategy" => field.strategy.clone_from(value),
            "patchMergeKey" => field.merge_key.clone_from(value),
            "default" => field.default = default_text(value)?,
            _ => {}
        }
    }
    Ok(())
}

fn list_type(value: &str) -> Result<ListType> {
    Ok(match value {
        "atomic" => ListType::Atomic,
        "set" => ListType::Set,
        "map" => ListType::Map,
        other => bail!("unknown list type {other:?}"),
    })
}

/// A default is JSON; a reference to a Go constant is resolved here.
fn default_text(value: &str) -> Result<String> {
    if let Some(constant) = value.strip_prefix("ref(") {
        let known = CONSTANTS
            .iter()
            .find(|(name, _)| constant.strip_suffix(')') == Some(*name));
        let (_, json) = known.ok_or_else(|| anyhow!("default is an unknown constant: {constant}"))?;
        return Ok((*json).to_owned());
    }
    serde_json::from_str::<serde_json::Value>(value)
        .map(|value| value.to_string())
        .with_context(|| format!("default {value}"))
}

/// Messages outside OpenAPI, by their proto names.
fn extra(model: &mut Model, protos: &PbMessages) -> Result<()> {
    for (prefix, api_version, kind) in EXTRA {
        let name = format!("{prefix}{kind}");
        proto_message(model, &name, protos)?;
        if let Some(message) = model.messages.get_mut(&name) {
            for own in ["apiVersion", "kind"] {
                message.fields.entry(own.to_owned()).or_insert_with(|| Field {
                    kind: Kind::String,
                    ..Field::default()
                });
            }
        }
        if let Some((group, version)) = group_version(api_version) {
            model.kinds.push(Gvk {
                group,
                version,
                kind: kind.to_owned(),
                message: name,
            });
        }
    }
    Ok(())
}

fn group_version(api_version: &str) -> Option<(String, String)> {
    match api_version.split_once('/') {
        Some((group, version)) => Some((group.to_owned(), version.to_owned())),
        None => (!api_version.is_empty()).then(|| (String::new(), api_version.to_owned())),
    }
}

fn proto_message(model: &mut Model, name: &str, protos: &PbMessages) -> Result<()> {
    if model.messages.contains_key(name) {
        return Ok(());
    }
    let proto = protos.get(&key(name)).ok_or_else(|| anyhow!("no message {name}"))?;
    model.messages.insert(
        name.to_owned(),
        Message {
            hidden: true,
            ..Message::default()
        },
    );
    let mut fields = BTreeMap::new();
    for field in &proto.fields {
        let mut made = Field {
            required: !field.markers.iter().any(|(marker, _)| marker == "optional"),
            ..Field::default()
        };
        (made.kind, made.repeat) = kind_of(&field.form)?;
        if made.kind == Kind::Message {
            let known = model.messages.keys().find(|known| key(known) == field.message).cloned();
            made.message = match known {
                Some(name) => name,
                None => {
                    let cased = proper_case(&field.message);
                    proto_message(model, &cased, protos)?;
                    cased
                }
            };
        }
        mark(&mut made, field)?;
        made.required &= made.repeat == Repeat::One && made.kind != Kind::Message;
        fields.insert(camel(&field.name), made);
    }
    model.messages.insert(
        name.to_owned(),
        Message {
            hidden: true,
            fields,
            ..Message::default()
        },
    );
    Ok(())
}

/// A definition name for a key; only hidden messages get one, so its case is nobody's concern.
fn proper_case(key: &str) -> String {
    format!("io.k8s.{key}")
}

fn kind_of(form: &str) -> Result<(Kind, Repeat)> {
    let (base, repeat) = if let Some(map) = form.strip_prefix("btree_map = \"string, ") {
        (map.split('"').next().unwrap_or_default(), Repeat::Map)
    } else {
        let repeat = if form.contains("repeated") {
            Repeat::List
        } else {
            Repeat::One
        };
        (form.split([',', ' ']).next().unwrap_or_default(), repeat)
    };
    let kind = match base {
        "message" => Kind::Message,
        "string" => Kind::String,
        "bool" => Kind::Bool,
        "int32" => Kind::Int32,
        "int64" => Kind::Int64,
        "double" => Kind::Number,
        "bytes" => Kind::Bytes,
        other => bail!("unknown form {other:?}"),
    };
    Ok((kind, repeat))
}

fn camel(snake: &str) -> String {
    let mut out = String::new();
    for (index, word) in snake.split('_').enumerate() {
        let mut chars = word.chars();
        match chars.next() {
            Some(first) if index > 0 => out.extend(first.to_uppercase().chain(chars)),
            Some(first) => out.extend(std::iter::once(first).chain(chars)),
            None => {}
        }
    }
    out
}

/// `DeleteOptions` and its kin belong to `v1`, where they are looked up for every other version.
fn meta_kinds(model: &mut Model) {
    for kind in [
        "DeleteOptions",
        "WatchEvent",
        "CreateOptions",
        "GetOptions",
        "ListOptions",
        "PatchOptions",
        "UpdateOptions",
    ] {
        model.kinds.push(Gvk {
            group: String::new(),
            version: "v1".to_owned(),
            kind: kind.to_owned(),
            message: format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"),
        });
    }
}

/// Reads `DEFINITION.FIELD name=value …` lines; `DEFINITION` alone speaks of the message.
fn facts(model: &mut Model, file: &str) -> Result<()> {
    for line in file.lines() {
        let line = line.split(" #").next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        fact(model, line).with_context(|| line.to_owned())?;
    }
    Ok(())
}

fn fact(model: &mut Model, line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let path = words.next().ok_or_else(|| anyhow!("empty line"))?;
    if let Some(message) = model.messages.get_mut(path) {
        for word in words {
            match word.split_once('=') {
                Some(("struct", "atomic")) => message.atomic = true,
                Some(("pointers", names)) => each(message, names, |field| {
                    field.pointer = true;
                    field.always = false;
                })?,
                Some(("always", names)) => each(message, names, |field| field.always = true)?,
                Some(("omitted", names)) => each(message, names, |field| field.always = false)?,
                Some(("rename", names)) => rename(message, names)?,
                Some(("text", pair)) => text(message, pair)?,
                Some(("tags", pairs)) => {
                    for pair in pairs.split(',') {
                        let (name, tag) = pair.split_once(':').ok_or_else(|| anyhow!("{pair}"))?;
                        let tag = tag.parse()?;
                        each(message, name, |field| field.tag = tag)?;
                    }
                }
                _ => bail!("unknown fact {word}"),
            }
        }
        return Ok(());
    }
    let (name, member) = path.rsplit_once('.').ok_or_else(|| anyhow!("not a field"))?;
    let message = model.messages.get_mut(name).ok_or_else(|| anyhow!("no {name}"))?;
    let field = message.fields.get_mut(member).ok_or_else(|| anyhow!("no {member}"))?;
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("tag", value) => field.tag = value.parse()?,
            ("list", value) => field.list = list_type(value)?,
            ("keys", value) => field.keys = value.to_owned(),
            ("map", value) => field.map = value.to_owned(),
            ("strategy", value) => field.strategy = value.to_owned(),
            ("merge", value) => field.merge_key = value.to_owned(),
            ("default", value) => field.default = default_text(value)?,
            (other, _) => bail!("unknown fact {other}"),
        }
    }
    Ok(())
}

fn rename(message: &mut Message, pair: &str) -> Result<()> {
    let (old, new) = pair.split_once(':').ok_or_else(|| anyhow!("{pair}"))?;
    let field = message.fields.remove(old).ok_or_else(|| anyhow!("no {old}"))?;
    message.fields.insert(new.to_owned(), field);
    Ok(())
}

/// A member that the crate does not have: a string with a tag.
fn text(message: &mut Message, pair: &str) -> Result<()> {
    let (name, tag) = pair.split_once(':').ok_or_else(|| anyhow!("{pair}"))?;
    let field = Field {
        kind: Kind::String,
        tag: tag.parse()?,
        ..Field::default()
    };
    match message.fields.insert(name.to_owned(), field) {
        None => Ok(()),
        Some(_) => bail!("{name} is there already"),
    }
}

fn each(message: &mut Message, names: &str, change: impl Fn(&mut Field)) -> Result<()> {
    for name in names.split(',') {
        change(message.fields.get_mut(name).ok_or_else(|| anyhow!("no {name}"))?);
    }
    Ok(())
}

/// Fields that protobuf could not carry.
fn untagged(model: &Model) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, message) in &model.messages {
        if message.shape != Shape::Object {
            continue;
        }
        let nested: BTreeSet<&String> = message
            .fields
            .values()
            .filter(|field| field.inline)
            .filter_map(|field| model.messages.get(&field.message))
            .flat_map(|inner| inner.fields.keys())
            .collect();
        for (field, known) in &message.fields {
            let typed = field == "apiVersion" || field == "kind";
            let path = format!("{name}.{field}");
            if known.tag == 0 && !typed && !nested.contains(field) && !path.starts_with(JSON_ONLY) {
                missing.push(path);
            }
        }
    }
    missing
}
