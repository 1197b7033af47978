//! The OpenAPI v2 document, one for all groups, as JSON or as the protobuf that Go clients ask for.
//!
//! Written definition by definition: no tree of the whole ever exists. Source of its form: Kubernetes v1.36
//! `api/openapi-spec/swagger.json`; of what clients read in it: kubectl v1.32 `explain --output=plaintext-openapiv2`,
//! client-go `discovery.OpenAPISchema`.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    Field, Kind, Repeat, Resource, Schemas, Shape, Type, add_paths, built_in, gnostic, hash_of, inner, own_data, put,
    put_extensions, put_text,
};

/// Content types of patches that we take.
const PATCHES: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
/// Content types of objects.
const TYPES: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];

/// How the document is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Encoding {
    /// JSON.
    Json,
    /// gnostic's `openapi.v2.Document`.
    Protobuf,
}

/// What stands for the document: changes when it does.
pub fn hash(rows: &[&Resource]) -> String {
    hash_of(own_data(), rows.iter().copied())
}

/// The document.
pub fn document(rows: &[&Resource], encoding: Encoding) -> Bytes {
    match encoding {
        Encoding::Json => as_json(rows),
        Encoding::Protobuf => as_protobuf(rows),
    }
}

fn as_json(rows: &[&Resource]) -> Bytes {
    let mut out = String::from(r#"{"swagger":"2.0","info":{"title":"Kubernetes","version":"v1.36"},"paths":"#);
    out.push_str(&Value::Object(paths(rows)).to_string());
    out.push_str(",\"definitions\":{");
    let mut first = true;
    definitions(rows, |name, schema| {
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        out.push_str(&Value::from(name).to_string());
        out.push(':');
        out.push_str(&schema.to_string());
    });
    out.push_str("}}");
    out.into()
}

fn as_protobuf(rows: &[&Resource]) -> Bytes {
    let mut out = Vec::new();
    gnostic::put_head(&mut out, "2.0", ("Kubernetes", "v1.36"));
    gnostic::put(&mut out, 8, |out| {
        for (path, item) in &paths(rows) {
            gnostic::put_path(out, path, item);
        }
    });
    gnostic::put(&mut out, 9, |out| {
        definitions(rows, |name, schema| gnostic::put_named_schema(out, name, schema));
    });
    out.into()
}

/// Every type that the rows need, by name, each made and dropped again.
fn definitions(rows: &[&Resource], mut each: impl FnMut(&str, &Value)) {
    let served: BTreeSet<(&str, &str)> = rows.iter().map(|row| (row.group, row.version)).collect();
    let mut open: Vec<Type> = built_in()
        .kinds()
        .filter(|(group, version, _, _)| served.contains(&(*group, *version)))
        .map(|(_, _, _, message)| message)
        .filter(|message| !message.hidden())
        .collect();
    let mut known = BTreeSet::new();
    while let Some(message) = open.pop() {
        if known.insert(message) {
            open.extend(message.fields().filter(|field| !field.inline()).filter_map(inner));
        }
    }
    let schemas = Schemas::new();
    for message in known {
        each(message.name(), &definition(&schemas, message));
    }
}

fn definition(schemas: &Schemas, message: Type) -> Value {
    let mut schema = match message.shape() {
        Shape::Object | Shape::Raw => json!({"type": "object"}),
        Shape::IntOrString => json!({"type": "string", "format": "int-or-string"}),
        Shape::Quantity => json!({"type": "string"}),
        Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
        // Version 2 has no word for "anything".
        Shape::Json | Shape::SchemaOrBool | Shape::SchemaOrArray | Shape::SchemaOrStrings => json!({}),
    };
    schemas.describe(&mut schema, message, |field| property(schemas, field));
    schema
}

fn property(schemas: &Schemas, field: Field) -> Value {
    let one = match field.kind() {
        Kind::Message(inner) => json!({"$ref": reference(inner)}),
        _ => super::one(field),
    };
    let mut property = match field.repeat() {
        Repeat::One => one,
        Repeat::List => json!({"type": "array", "items": one}),
        Repeat::Map => json!({"type": "object", "additionalProperties": one}),
    };
    put_text(&mut property, schemas.texts.get(field.text()));
    put_extensions(&mut property, field);
    property
}

fn reference(message: Type) -> String {
    format!("#/definitions/{}", message.name())
}

fn paths(rows: &[&Resource]) -> Map<String, Value> {
    let mut paths = Map::new();
    for row in rows {
        if let Some(root) = built_in().kind(row.group, row.version, row.kind) {
            add_paths(&mut paths, row, &|method, action| operation(row, root, method, action));
        }
    }
    for (path, item) in &mut paths {
        let named = ["name", "namespace"]
            .into_iter()
            .filter(|name| path.contains(&format!("{{{name}}}")));
        let parameters: Vec<Value> = named
            .map(|name| json!({"in": "path", "name": name, "required": true, "type": "string", "uniqueItems": true}))
            .collect();
        if !parameters.is_empty() {
            put(item, "parameters", parameters.into());
        }
    }
    paths
}

fn operation(row: &Resource, root: Type, method: &str, action: &str) -> Value {
    let query = |name: &str| json!({"in": "query", "name": name, "type": "string", "uniqueItems": true});
    let body = |schema: Value| json!({"in": "body", "name": "body", "required": true, "schema": schema});
    let mut parameters = Vec::new();
    match method {
        "patch" => parameters.push(body(json!({"type": "object"}))),
        "post" | "put" => parameters.push(body(json!({"$ref": reference(root)}))),
        _ => {}
    }
    if method != "get" {
        parameters.push(query("dryRun"));
    }
    if ["post", "put", "patch"].contains(&method) {
        parameters.extend([query("fieldManager"), query("fieldValidation")]);
    }
    let consumes: &[&str] = if method == "patch" { &PATCHES } else { &["*/*"] };
    json!({
        "tags": [row.api_version()],
        "operationId": format!("{action}{}", row.kind),
        "consumes": consumes,
        "produces": TYPES,
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "schema": {"$ref": reference(root)}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": row.group, "version": row.version, "kind": row.kind},
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::protobuf::wire::Reader;
    use super::*;
    use crate::kinds;

    fn rows() -> Vec<&'static Resource> {
        kinds::table().iter().map(AsRef::as_ref).collect()
    }

    #[test]
    fn the_document_is_json_and_every_reference_leads_somewhere() {
        let bytes = document(&rows(), Encoding::Json);
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        let mut count = 0;
        for reference in text.split("#/definitions/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["definitions"].get(name).is_some(), "{name}");
            count += 1;
        }
        assert!(count > 1000, "{count}");
        assert!(document["definitions"].get("io.k8s.api.core.v1.PodList").is_some());
        let mut names = document["definitions"].as_object().unwrap().keys();
        assert!(!names.any(|name| name.contains('~') || name.ends_with("PodLogOptions")));
    }

    /// Source: Kubernetes v1.36.0 `api/openapi-spec/swagger.json`, the same definitions.
    #[test]
    fn definitions_are_those_that_kubernetes_publishes() {
        let document: Value = serde_json::from_slice(&document(&rows(), Encoding::Json)).unwrap();
        let of = |name: &str| {
            let mut schema = document["definitions"][name].clone();
            schema["description"].take();
            schema
        };
        let plain = |kind: &str, format: &str| json!({"type": kind, "format": format, "description": null});
        assert_eq!(
            of("io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
            plain("string", "int-or-string")
        );
        assert_eq!(
            of("io.k8s.apimachinery.pkg.apis.meta.v1.Time"),
            plain("string", "date-time")
        );
        let volumes = &document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
        assert_eq!(
            *volumes,
            json!({
                "description": "List of volumes that can be mounted by containers belonging to the pod. More info: https://kubernetes.io/docs/concepts/storage/volumes",
                "items": {"$ref": "#/definitions/io.k8s.api.core.v1.Volume"},
                "type": "array",
                "x-kubernetes-list-map-keys": ["name"],
                "x-kubernetes-list-type": "map",
                "x-kubernetes-patch-merge-key": "name",
                "x-kubernetes-patch-strategy": "merge,retainKeys",
            })
        );
        let affinity = &document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["affinity"];
        assert_eq!(affinity["$ref"], "#/definitions/io.k8s.api.core.v1.Affinity");
        let gvk = json!([{"group": "", "version": "v1", "kind": "ConfigMap"}]);
        let map = &document["definitions"]["io.k8s.api.core.v1.ConfigMap"];
        assert_eq!(map["x-kubernetes-group-version-kind"], gvk);
        assert_eq!(
            map["properties"]["data"]["additionalProperties"],
            json!({"type": "string"})
        );
    }

    /// All values of a tag, one message after the other.
    fn all(bytes: &[u8], wanted: u32) -> Vec<&[u8]> {
        let (mut reader, mut found) = (Reader::new(bytes), Vec::new());
        while let Some((tag, wire)) = reader.next().unwrap() {
            if tag == wanted {
                found.push(wire.bytes().unwrap());
            }
        }
        found
    }

    /// The text at the end of a path of tags; empty if there is none.
    fn text<'b>(bytes: &'b [u8], path: &[u32]) -> &'b str {
        let end = path
            .iter()
            .try_fold(bytes, |bytes, tag| all(bytes, *tag).first().copied());
        std::str::from_utf8(end.unwrap_or_default()).unwrap()
    }

    fn same_schema(bytes: &[u8], json: &Value, name: &str) {
        let word = |key: &str| json[key].as_str().unwrap_or_default();
        assert_eq!(text(bytes, &[1]), word("$ref"), "{name}");
        assert_eq!(text(bytes, &[2]), word("format"), "{name}");
        assert_eq!(text(bytes, &[4]), word("description"), "{name}");
        assert_eq!(text(bytes, &[22, 1]), word("type"), "{name}");
        assert_eq!(
            all(bytes, 19).len(),
            json["required"].as_array().map_or(0, Vec::len),
            "{name}"
        );
        for (key, path) in [("additionalProperties", [21, 1]), ("items", [23, 1])] {
            let inner = path
                .iter()
                .try_fold(bytes, |bytes, tag| all(bytes, *tag).first().copied());
            match inner {
                Some(inner) => same_schema(inner, &json[key], name),
                None => assert!(json.get(key).is_none(), "{name}"),
            }
        }
        let empty = Map::new();
        let members = json["properties"].as_object().unwrap_or(&empty);
        let properties = all(bytes, 25).first().map_or(Vec::new(), |inner| all(inner, 1));
        assert_eq!(properties.len(), members.len(), "{name}");
        for property in properties {
            let member = text(property, &[1]);
            same_schema(all(property, 2)[0], &members[member], member);
        }
        let extensions: Map<String, Value> = all(bytes, 31)
            .into_iter()
            .map(|one| {
                (
                    text(one, &[1]).to_owned(),
                    serde_json::from_str(text(one, &[2, 2])).unwrap(),
                )
            })
            .collect();
        let expected = json
            .as_object()
            .unwrap()
            .iter()
            .filter(|(key, _)| key.starts_with("x-"));
        assert_eq!(
            extensions,
            expected.map(|(key, value)| (key.clone(), value.clone())).collect(),
            "{name}"
        );
    }

    #[test]
    fn both_encodings_say_the_same() {
        let json: Value = serde_json::from_slice(&document(&rows(), Encoding::Json)).unwrap();
        let bytes = document(&rows(), Encoding::Protobuf);
        assert_eq!((text(&bytes, &[1]), text(&bytes, &[2, 1])), ("2.0", "Kubernetes"));
        let definitions = all(all(&bytes, 9)[0], 1);
        assert_eq!(definitions.len(), json["definitions"].as_object().unwrap().len());
        for definition in definitions {
            let name = text(definition, &[1]);
            same_schema(all(definition, 2)[0], &json["definitions"][name], name);
        }
        let paths = all(all(&bytes, 8)[0], 2);
        assert_eq!(paths.len(), json["paths"].as_object().unwrap().len());
        for path in paths {
            let name = text(path, &[1]);
            for (tag, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
                let expected = json["paths"][name][method]["operationId"].as_str().unwrap_or_default();
                assert_eq!(text(path, &[2, tag, 5]), expected, "{method} {name}");
            }
        }
    }

    /// The tags of gnostic-models v0.7.0 themselves: what stands in `gnostic.rs` is not asked.
    #[test]
    fn a_path_of_protobuf_has_its_methods_and_parameters_under_their_tags() {
        let bytes = document(&rows(), Encoding::Protobuf);
        let paths = all(all(&bytes, 8)[0], 2);
        let of_pod = "/api/v1/namespaces/{namespace}/pods/{name}";
        let pod = paths.into_iter().find(|path| text(path, &[1]) == of_pod).unwrap();
        let item = all(pod, 2)[0];
        assert_eq!(text(item, &[8, 5]), "patchPod", "PathItem.patch");
        assert!(
            all(item, 6).is_empty() && all(item, 7).is_empty(),
            "neither options nor head"
        );
        let parameters = all(item, 9);
        assert_eq!(parameters.len(), 2);
        for parameter in parameters {
            let mut reader = Reader::new(all(all(all(parameter, 1)[0], 2)[0], 4)[0]);
            let mut tags = Vec::new();
            while let Some((tag, _)) = reader.next().unwrap() {
                tags.push(tag);
            }
            assert_eq!(tags, [1, 2, 4, 5, 19], "required, in, name, type, unique_items");
        }
    }
}
