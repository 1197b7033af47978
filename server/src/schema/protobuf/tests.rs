//! The transcoder against what Go wrote, and against bytes that nobody wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::built_in;
use super::*;

/// An object in both forms.
struct Vector {
    name: String,
    json: Value,
    protobuf: Vec<u8>,
}

/// Every kind with every member set, by Kubernetes.
fn full() -> &'static [Vector] {
    static FULL: LazyLock<Vec<Vector>> = LazyLock::new(unpack);
    &FULL
}

fn unpack() -> Vec<Vector> {
    let packed = include_bytes!("fixtures/kubernetes-v1.36.3.tar.gz");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice()));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(name, bytes);
    }
    let vector = |name: &String| {
        let name = name.strip_suffix(".pb")?.to_owned();
        Some(Vector {
            json: serde_json::from_slice(&files[&format!("{name}.json")]).unwrap(),
            protobuf: files[&format!("{name}.pb")].clone(),
            name,
        })
    };
    files.keys().filter_map(vector).collect()
}

/// Few members, zeros and odd forms, by Go.
fn sparse() -> &'static [Vector] {
    static SPARSE: LazyLock<Vec<Vector>> = LazyLock::new(read_lines);
    &SPARSE
}

fn read_lines() -> Vec<Vector> {
    let lines = include_str!("fixtures/sparse.jsonl").lines();
    let vector = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        Vector {
            name: format!("{} {}", value["json"]["apiVersion"], value["json"]["kind"]),
            json: value["json"].clone(),
            protobuf: STANDARD.decode(value["protobuf"].as_str().unwrap()).unwrap(),
        }
    };
    lines.map(vector).collect()
}

/// Without what protobuf cannot say: null members and empty lists. A null in a list stays.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null() && **value != json!([]))
            .map(|(key, value)| (key.clone(), plain(value)))
            .collect(),
        Value::Array(items) => items.iter().map(plain).collect(),
        other => other.clone(),
    }
}

fn read(bytes: &[u8]) -> Result<Value, DecodeError> {
    decode(bytes, ("", ""))
}

#[test]
fn every_kind_has_a_vector() {
    let name = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();
    let seen: BTreeSet<(String, String)> = full()
        .iter()
        .chain(sparse())
        .map(|vector| (name(&vector.json, "apiVersion"), name(&vector.json, "kind")))
        .collect();
    for (group, version, kind, _) in built_in().kinds() {
        let api_version = match group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        let known = seen.contains(&(api_version.clone(), kind.to_owned()));
        let alike = kind.ends_with("List") || api_version == "meta.k8s.io/v1beta1";
        assert!(known || alike || kind == "WatchEvent", "{api_version} {kind}");
    }
}

#[test]
fn what_go_wrote_is_read_as_go_reads_it() {
    for Vector { name, json, protobuf } in full().iter().chain(sparse()) {
        let got = read(protobuf).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(plain(&got), plain(json), "{name}");
    }
}

#[test]
fn what_is_written_is_what_go_writes_byte_for_byte() {
    for Vector { name, json, protobuf } in full().iter().chain(sparse()) {
        let got = encode(json).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            read(&got).map(|value| plain(&value)),
            Ok(plain(json)),
            "{name}: it does not come back"
        );
        assert!(
            got == *protobuf,
            "{name}:\n{}\n{}",
            got.escape_ascii(),
            protobuf.escape_ascii()
        );
    }
}

#[test]
fn a_list_written_item_by_item_is_the_list_written_at_once() {
    let items: Vec<Value> = (0..300)
        .map(|number| json!({"metadata": {"name": format!("p{number}")}, "spec": {"nodeName": "n".repeat(number)}}))
        .collect();
    for items in [&[][..], &items[..1], &items[..]] {
        let metadata = json!({"resourceVersion": "7", "continue": "next"});
        let whole = json!({"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": items});
        let mut list = List::new("v1", "PodList", &metadata).unwrap();
        for item in items {
            list.push(item).unwrap();
        }
        let (bytes, start) = list.finish();
        assert!(bytes[start..] == encode(&whole).unwrap(), "{} items", items.len());
    }
    let refused = List::new("example.com/v1", "FooList", &json!({})).err();
    assert!(matches!(refused, Some(EncodeError::UnknownKind { .. })), "{refused:?}");
}

/// Source: apimachinery v0.36 `streaming.go`, `framer.go`: four bytes of length, a bare `WatchEvent`.
#[test]
fn a_watch_frame_is_its_length_and_an_event_with_a_whole_object() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
    let frame = watch_frame("ADDED", &pod).unwrap();
    let object = encode(&pod).unwrap();
    let length = object.len();
    let (head, event) = frame.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_be_bytes(*head) as usize, event.len());
    let mut reader = wire::Reader::new(event);
    assert_eq!(reader.next(), Ok(Some((1, wire::Wire::Bytes(b"ADDED")))));
    let Ok(Some((2, wire::Wire::Bytes(raw)))) = reader.next() else {
        panic!("no object")
    };
    assert_eq!(wire::Reader::new(raw).next(), Ok(Some((1, wire::Wire::Bytes(&object)))));
    assert_eq!(reader.next(), Ok(None));
    assert!(length < 127 && raw.len() == length + 2, "{length}");
}

#[test]
fn an_object_in_an_object_is_read_with_its_own_envelope() {
    let event = json!({"apiVersion": "v1", "kind": "WatchEvent", "type": "ADDED", "object": 0});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []}});
    let inner = encode(&pod).unwrap();
    let mut body = Vec::new();
    wire::put_bytes(&mut body, 1, b"ADDED");
    wire::put_message(&mut body, 2, |out| {
        wire::put_bytes(out, 1, &inner);
        Ok::<_, EncodeError>(())
    })
    .unwrap();
    let got = read(&wrap("v1", "WatchEvent", &body)).unwrap();
    assert_eq!(got["object"]["metadata"], pod["metadata"]);
    assert_eq!((&got["type"], &got["object"]["kind"]), (&event["type"], &pod["kind"]));
}

/// A body of ours around bytes of somebody's.
fn wrap(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut names = Vec::new();
    wire::put_bytes(&mut names, 1, api_version.as_bytes());
    wire::put_bytes(&mut names, 2, kind.as_bytes());
    let mut out = b"k8s\0".to_vec();
    wire::put_bytes(&mut out, 1, &names);
    wire::put_bytes(&mut out, 2, raw);
    out
}

#[test]
fn a_body_without_type_is_of_the_type_that_is_expected() {
    let body = wrap("", "", b"\x0a\x03\x0a\x01a");
    assert_eq!(
        decode(&body, ("v1", "ConfigMap")).map(|value| plain(&value)),
        Ok(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}))
    );
    assert!(matches!(read(&body), Err(DecodeError::UnknownKind { .. })));
}

#[test]
fn options_are_known_in_every_group() {
    let got = read(&wrap("example.com/v9", "DeleteOptions", &[0x08, 5])).unwrap();
    assert_eq!(got["gracePeriodSeconds"], 5);
    let error = read(&wrap("example.com/v9", "Pod", &[])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no kind \"Pod\" is registered for version \"example.com/v9\""
    );
}

#[test]
fn a_value_that_comes_again_replaces_and_a_message_that_comes_again_adds() {
    // Name twice, then cleared; labels in two copies of the metadata; packed and loose integers.
    let raw = b"\x0a\x06\x0a\x01a\x0a\x01b\x0a\x07\x5a\x05\x0a\x01k\x12\x00";
    let got = read(&wrap("v1", "ConfigMap", raw)).unwrap();
    assert_eq!(got["metadata"], json!({"name": "b", "labels": {"k": ""}}));
    let cleared = read(&wrap("v1", "ConfigMap", b"\x0a\x05\x0a\x01a\x0a\x00")).unwrap();
    assert_eq!(cleared["metadata"], json!({}));
    // PodSecurityContext.supplementalGroups is tag 4; spec 2, securityContext 14.
    let groups = [&[0x20, 1][..], &[0x22, 2, 2, 3]].concat();
    let spec = [&[0x72, 6][..], &groups].concat();
    let raw = [&[0x12, 8][..], &spec].concat();
    let pod = read(&wrap("v1", "Pod", &raw)).unwrap();
    assert_eq!(pod["spec"]["securityContext"]["supplementalGroups"], json!([1, 2, 3]));
}

#[test]
fn half_a_character_is_replaced_and_unknown_tags_are_stepped_over() {
    let raw = b"\x0a\x06\x0a\x01\xc3\xfa\x3f\x00\xf8\x3f\x01";
    let got = read(&wrap("v1", "ConfigMap", raw)).unwrap();
    assert_eq!(got["metadata"]["name"], "\u{fffd}");
}

#[test]
fn bodies_that_are_none_are_refused() {
    let pod = |raw: &[u8]| wrap("v1", "Pod", raw);
    let crd = |raw: &[u8]| wrap("apiextensions.k8s.io/v1", "CustomResourceDefinition", raw);
    for (name, body) in [
        ("nothing", Vec::new()),
        ("only magic", b"k8s\0".to_vec()),
        ("JSON", b"{}".to_vec()),
        ("another wire type", pod(&[0x08, 1])),
        ("a message breaks off", pod(&[0x0a, 9, 1])),
        ("another content type", [pod(b""), b"\x22\x03cbo".to_vec()].concat()),
        ("compressed", [pod(b""), b"\x1a\x04gzip".to_vec()].concat()),
        (
            "raw JSON that is none",
            wrap("apps/v1", "ControllerRevision", b"\x12\x03\x0a\x01{"),
        ),
        (
            "no such integer or string",
            wrap("policy/v1", "PodDisruptionBudget", b"\x12\x04\x0a\x02\x08\x05"),
        ),
        (
            "a time beyond all times",
            pod(b"\x0a\x0d\x42\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x10\x00"),
        ),
        (
            "a type that is not text",
            [b"k8s\0".to_vec(), b"\x0a\x03\x0a\x01\xff".to_vec()].concat(),
        ),
        ("a schema within schemas", crd(&nested(0x12, 5000))),
    ] {
        assert!(
            matches!(read(&body), Err(DecodeError::Malformed(_))),
            "{name}: {:?}",
            read(&body)
        );
    }
}

/// A CRD's `spec.versions[0].schema.openAPIV3Schema.not.not…`, `depth` times.
fn nested(spec: u8, depth: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    let field = |tag: u16, inner: &[u8]| {
        let mut out = Vec::new();
        wire::put_bytes(&mut out, tag, inner);
        out
    };
    for _ in 0..depth {
        bytes = field(28, &bytes);
    }
    for tag in [1, 4, 7, u16::from(spec >> 3)] {
        bytes = field(tag, &bytes);
    }
    bytes
}

#[test]
fn a_schema_as_deep_as_json_may_be_is_read() {
    let body = wrap("apiextensions.k8s.io/v1", "CustomResourceDefinition", &nested(0x12, 80));
    let got = read(&body).unwrap();
    let text = got.to_string();
    assert_eq!(text.matches("\"not\"").count(), 80, "{text}");
    assert!(super::super::json::parse(text.as_bytes()).is_ok());
}

#[test]
fn a_small_body_cannot_become_a_huge_tree() {
    // An empty container, `12 00`, a million times: more than any object that may be stored.
    let containers = [0x12, 0].repeat(1_000_000);
    let mut raw = Vec::new();
    wire::put_bytes(&mut raw, 2, &containers);
    assert_eq!(
        read(&wrap("v1", "Pod", &raw)),
        Err(DecodeError::Malformed("it has too many values"))
    );
}

#[test]
fn an_object_that_does_not_fit_its_type_is_not_written() {
    for (name, spec) in [
        ("replicas", json!({"replicas": "3"})),
        ("replicas", json!({"replicas": 1.5})),
        ("selector", json!({"selector": []})),
        ("paused", json!({"paused": 1})),
        ("matchLabels", json!({"selector": {"matchLabels": {"a": 1}}})),
    ] {
        let value = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec});
        assert_eq!(encode(&value), Err(EncodeError::Mistyped(name)));
    }
    let custom = encode(&json!({"apiVersion": "example.com/v1", "kind": "Foo"}));
    assert!(matches!(custom, Err(EncodeError::UnknownKind { .. })), "{custom:?}");
}

#[test]
fn an_empty_object_of_every_kind_is_written_and_comes_back() {
    for (group, version, kind, _) in built_in().kinds() {
        let api_version = [group, version].join("/");
        let api_version = api_version.trim_start_matches('/');
        let value = json!({"apiVersion": api_version, "kind": kind});
        let bytes = encode(&value).unwrap();
        let back = read(&bytes).unwrap_or_else(|error| panic!("{api_version} {kind}: {error}"));
        assert_eq!(encode(&back), Ok(bytes), "{api_version} {kind}");
    }
}

/// Takes away members by the bits of `choice`.
fn thin(value: &mut Value, choice: &mut impl Iterator<Item = bool>) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind") || choice.next().unwrap_or(true));
            map.values_mut().for_each(|value| thin(value, choice));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| thin(value, choice)),
        _ => {}
    }
}

proptest! {
    #[test]
    fn what_is_written_stays_the_same_when_it_is_read_and_written_again(
        at in any::<proptest::sample::Index>(),
        choice in proptest::collection::vec(any::<bool>(), 50..400),
    ) {
        let mut value = at.get(full()).json.clone();
        thin(&mut value, &mut choice.into_iter());
        let bytes = encode(&value).unwrap();
        let back = read(&bytes).unwrap();
        prop_assert_eq!(encode(&back), Ok(bytes));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
        let _ = read(&wrap("v1", "Pod", &bytes));
        let _ = read(&wrap("apiextensions.k8s.io/v1", "CustomResourceDefinition", &bytes));
    }

    #[test]
    fn a_broken_body_is_refused_or_is_an_object_like_any_other(
        at in any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = at.get(full()).protobuf.clone();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if cut.index(4) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(value) = read(&bytes) {
            let once = encode(&value).unwrap();
            let back = read(&once).unwrap();
            prop_assert_eq!(encode(&back), Ok(once));
        }
    }
}
