//! Answers for clients that take protobuf and nothing else.

use serde_json::{Value, json};
use server::schema::protobuf::{decode, encode};

use crate::client::Answer;
use crate::rig::Rig;

const MEDIA: &str = "application/vnd.kubernetes.protobuf";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn tree(answer: &Answer) -> Value {
    assert_eq!(answer.header("content-type"), MEDIA, "{}", answer.text());
    decode(&answer.body, ("", "")).unwrap()
}

/// The next varint, taken off the front.
fn varint(bytes: &mut &[u8]) -> usize {
    let (mut number, mut shift) = (0, 0);
    while let Some((byte, rest)) = bytes.split_first() {
        *bytes = rest;
        number |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

/// The frames of a watch: each event's type and object.
fn frames(mut bytes: &[u8]) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (mut event, rest) = rest.split_at(u32::from_be_bytes(*length).try_into().unwrap());
        bytes = rest;
        assert_eq!(varint(&mut event), 0x0a);
        let length = varint(&mut event);
        let (kind, mut event) = event.split_at(length);
        // The object is a `RawExtension`: a message with bytes in it.
        assert_eq!(varint(&mut event), 0x12);
        assert_eq!(varint(&mut event), event.len());
        assert_eq!(varint(&mut event), 0x0a);
        assert_eq!(varint(&mut event), event.len());
        events.push((
            String::from_utf8(kind.to_vec()).unwrap(),
            decode(event, ("", "")).unwrap(),
        ));
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_lists_watches_and_errors_come_in_protobuf_if_nothing_else_is_taken() {
    let rig = Rig::start().await;
    let user = rig.administrator();
    let only = [("accept", MEDIA), ("content-type", MEDIA)];
    for name in ["a", "b"] {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": name}});
        let made = user.call("POST", MAPS, &only, encode(&map).unwrap()).await;
        assert_eq!((made.code, tree(&made)["data"]["k"].as_str()), (201, Some(name)));
    }
    let one = tree(&user.call("GET", &format!("{MAPS}/a"), &only, "").await);
    assert_eq!((&one["kind"], &one["data"]), (&json!("ConfigMap"), &json!({"k": "a"})));

    let list = tree(&user.call("GET", MAPS, &only, "").await);
    let names: Vec<&str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect();
    assert_eq!((list["kind"].as_str(), names), (Some("ConfigMapList"), vec!["a", "b"]));
    assert_eq!(list["metadata"]["resourceVersion"], list_version(&user.get(MAPS).await));

    let partial = format!("{MEDIA};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let list = tree(&user.call("GET", MAPS, &[("accept", &partial)], "").await);
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][1]["metadata"]["name"], "b");

    let path = format!("{MAPS}?watch=1&resourceVersion=0&timeoutSeconds=1");
    let watch = user.call("GET", &path, &only, "").await;
    assert_eq!(watch.header("content-type"), format!("{MEDIA};stream=watch"));
    let events = frames(&watch.body);
    let seen: Vec<(&str, &Value)> = events
        .iter()
        .map(|(kind, object)| (kind.as_str(), &object["metadata"]["name"]))
        .collect();
    assert_eq!(seen, [("ADDED", &json!("a")), ("ADDED", &json!("b"))]);

    let missing = user.call("GET", &format!("{MAPS}/nope"), &only, "").await;
    let status = tree(&missing);
    assert_eq!((missing.code, &status["reason"]), (404, &json!("NotFound")));
    assert_eq!(status["details"]["name"], "nope");

    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "other"}});
    let path = format!("{MAPS}/a");
    let refused = user.call("DELETE", &path, &only, encode(&options).unwrap()).await;
    assert_eq!((refused.code, &tree(&refused)["reason"]), (409, &json!("Conflict")));
    let gone = user.call("DELETE", &path, &only, "").await;
    assert_eq!((gone.code, &tree(&gone)["status"]), (200, &json!("Success")));
}

fn list_version(answer: &Answer) -> Value {
    answer.json()["metadata"]["resourceVersion"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn json_goes_first_and_broken_protobuf_is_a_bad_request() {
    let rig = Rig::start().await;
    let user = rig.administrator();
    let both = format!("{MEDIA},application/json");
    let answer = user.call("GET", MAPS, &[("accept", &both)], "").await;
    assert_eq!(answer.header("content-type"), "application/json");
    let broken = user.call("POST", MAPS, &[("content-type", MEDIA)], "k8s\0broken").await;
    let (code, reason, message) = broken.refusal();
    assert_eq!((code, reason.as_str()), (400, "BadRequest"));
    assert!(message.starts_with("malformed protobuf body:"), "{message}");
    let other = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}});
    let wrong = user
        .call("POST", MAPS, &[("content-type", MEDIA)], encode(&other).unwrap())
        .await;
    assert_eq!(wrong.code, 400, "{}", wrong.text());
}
