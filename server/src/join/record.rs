//! A node's password record as the cluster keeps it: the Secret `kube-system/<node>.node-password.k3s` (3.2).
//!
//! Reading, making, tying to its Node and deleting, through the API as the supervisor. What is to be done is
//! `node_password`'s to decide. K3s reads and writes the same Secrets.

use std::collections::BTreeMap;

use agent::wire::object::{list, set, text};
use agent::wire::status::{Reason, Status};
use agent::wire::time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::node_password::{Only, Record};
use super::reenrol::Window;
use crate::cache::{Filter, Item};
use crate::request::{Client, DeleteOptions, Patch, What};

/// Where they lie.
pub const NAMESPACE: &str = "kube-system";
/// What a Secret's name has after the node's.
pub const SUFFIX: &str = ".node-password.k3s";
/// Type of the Secrets.
pub const TYPE: &str = "k3s.cattle.io/node-password";
/// Annotation: hash of the public key of the node's client certificate.
const KEY: &str = "amphipod.io/client-key";
/// Annotation: the version of the record that its node came by last, while it was tied to no Node.
const CAME: &str = "amphipod.io/came-by";
/// Annotation: until when the node may register with another password.
const REENROL: &str = "amphipod.io/reenrol-until";
/// Annotation: when an operator said so.
const OPENED: &str = "amphipod.io/reenrol-opened";

/// The name of a node's Secret.
pub fn name(node: &str) -> String {
    format!("{node}{SUFFIX}")
}

/// The record of one node.
///
/// # Errors
/// What the API says, except that there is none.
pub async fn get(client: &Client, node: &str) -> Result<Option<Record>, Status> {
    match client.get(What::SECRETS, NAMESPACE, &name(node)).await {
        Ok(secret) => Ok(Some(read(&secret))),
        Err(status) if status.is(Reason::NotFound) => Ok(None),
        Err(status) => Err(status),
    }
}

/// The node whose record this Secret is.
pub fn node_of(item: &Item) -> Option<&str> {
    last(&item.key).strip_suffix(SUFFIX)
}

/// All records by node.
///
/// # Errors
/// What the API says.
pub async fn all(client: &Client) -> Result<BTreeMap<String, Record>, Status> {
    let page = client.list(What::SECRETS, Some(NAMESPACE), Filter::default()).await?;
    let record = |item: &std::sync::Arc<Item>| Some((node_of(item)?.to_owned(), read(&item.value())));
    Ok(page.items.iter().filter_map(record).collect())
}

/// Uids of all Nodes by name.
///
/// # Errors
/// What the API says.
pub async fn nodes(client: &Client) -> Result<BTreeMap<String, String>, Status> {
    let page = client.list(What::NODES, None, Filter::default()).await?;
    let node = |item: &std::sync::Arc<Item>| (last(&item.key).to_owned(), item.index.uid.to_string());
    Ok(page.items.iter().map(node).collect())
}

/// The uid of one Node.
///
/// # Errors
/// What the API says, except that there is none.
pub async fn node_uid(client: &Client, node: &str) -> Result<Option<String>, Status> {
    match client.get(What::NODES, "", node).await {
        Ok(object) => Ok(Some(text(&object, &["metadata", "uid"]).to_owned())),
        Err(status) if status.is(Reason::NotFound) => Ok(None),
        Err(status) => Err(status),
    }
}

/// Makes a record of hash, owner and key; the rest is the API's to fill in.
///
/// # Errors
/// What the API says; `AlreadyExists` when somebody was first.
pub async fn create(client: &Client, node: &str, record: &Record) -> Result<(), Status> {
    client
        .create(What::SECRETS, NAMESPACE, secret(node, record))
        .await
        .map(drop)
}

/// Makes a record as [`create`] does, in the place of the one of this version, in one step: a record is sealed, as K3s' is,
/// and between its deletion and the next one the name would be whoever's came first.
///
/// # Errors
/// What the API says; `AlreadyExists` when the node has another record by now, one on which something was noted, or none.
pub async fn replace(client: &Client, node: &str, version: &str, record: &Record) -> Result<(), Status> {
    client
        .replace(What::SECRETS, NAMESPACE, version, secret(node, record))
        .await
        .map(drop)
}

fn secret(node: &str, record: &Record) -> Value {
    let mut secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": name(node), "namespace": NAMESPACE },
        "type": TYPE,
        "immutable": true,
        "data": { "hash": STANDARD.encode(&record.hash) },
    });
    if let Some(uid) = &record.owner {
        set(&mut secret, &["metadata", "ownerReferences"], owned_by(node, uid));
    }
    if let Some(key) = &record.key {
        set(&mut secret, &["metadata", "annotations", KEY], key.as_str());
    }
    secret
}

/// Notes that the node of this record has come, if it is tied to no Node, and which key its client certificate is for, so
/// that it can prove later who it is. What was decided of the record without knowing that is not done any more.
///
/// # Errors
/// What the API says; `Conflict` when the record is not the one that is meant.
pub async fn note(client: &Client, node: &str, record: &Record, key: Option<&str>) -> Result<(), Status> {
    let mut annotations = json!({});
    if record.owner.is_none() {
        // No clock is asked: it may be the same time again.
        set(&mut annotations, &[CAME], record.version.as_str());
    }
    if let Some(key) = key {
        set(&mut annotations, &[KEY], key);
    }
    patch(client, node, &record.itself(), json!({ "annotations": annotations })).await
}

/// Ties a record to its Node, so that it goes when the Node goes.
///
/// # Errors
/// What the API says; `Conflict` when the record is not the one that is meant.
pub async fn tie(client: &Client, node: &str, only: &Only, uid: &str) -> Result<(), Status> {
    let tied = json!({ "ownerReferences": owned_by(node, uid), "annotations": { CAME: null } });
    patch(client, node, only, tied).await
}

/// Takes the window off a record.
///
/// # Errors
/// What the API says; `Conflict` when the record is not the one that is meant.
pub async fn close(client: &Client, node: &str, only: &Only) -> Result<(), Status> {
    patch(
        client,
        node,
        only,
        json!({ "annotations": { REENROL: null, OPENED: null } }),
    )
    .await
}

/// Changes the metadata of this record and of none that was made since under its name.
async fn patch(client: &Client, node: &str, only: &Only, mut metadata: Value) -> Result<(), Status> {
    set(&mut metadata, &["uid"], only.uid.as_str());
    if let Some(version) = &only.version {
        set(&mut metadata, &["resourceVersion"], version.as_str());
    }
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    client
        .patch(What::SECRETS, NAMESPACE, &name(node), None, patch)
        .await
        .map(drop)
}

/// Deletes a record.
///
/// # Errors
/// What the API says; `Conflict` when the record is not the one that is meant.
pub async fn forget(client: &Client, node: &str, only: &Only) -> Result<(), Status> {
    let options = DeleteOptions {
        uid: Some(only.uid.clone()),
        resource_version: only.version.clone(),
        ..DeleteOptions::default()
    };
    client
        .delete(What::SECRETS, NAMESPACE, &name(node), options)
        .await
        .map(drop)
}

fn owned_by(node: &str, uid: &str) -> Value {
    json!([{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": uid }])
}

/// The record in a Secret. A Secret that somebody damaged reads as a hash that fits no password.
pub fn read(secret: &Value) -> Record {
    let hash = STANDARD.decode(text(secret, &["data", "hash"])).unwrap_or_default();
    let owner = list(secret, &["metadata", "ownerReferences"])
        .iter()
        .find(|owner| text(owner, &["kind"]) == "Node");
    let annotation = |key| Some(text(secret, &["metadata", "annotations", key])).filter(|text| !text.is_empty());
    Record {
        uid: text(secret, &["metadata", "uid"]).to_owned(),
        version: text(secret, &["metadata", "resourceVersion"]).to_owned(),
        hash: String::from_utf8(hash).unwrap_or_default(),
        owner: owner.map(|owner| text(owner, &["uid"]).to_owned()),
        created: time::parse(text(secret, &["metadata", "creationTimestamp"])).unwrap_or(Timestamp::UNIX_EPOCH),
        key: annotation(KEY).map(str::to_owned),
        window: annotation(REENROL).and_then(time::parse).map(|until| Window {
            opened: annotation(OPENED).and_then(time::parse),
            until,
        }),
    }
}

/// The merge patch that writes a window into a Secret; to the second.
pub fn with_window(window: &Window) -> Value {
    let opened = window.opened.map(time::seconds);
    json!({ "metadata": { "annotations": { REENROL: time::seconds(window.until), OPENED: opened } } })
}

fn last(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinSet;

    use super::*;
    use crate::scratch;
    use crate::store::memory::Memory;

    #[tokio::test]
    async fn what_is_decided_of_a_record_is_not_done_to_the_next_of_its_name() {
        let mut serving = JoinSet::new();
        let client = scratch::client(Arc::new(Memory::new()), &mut serving).await;
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
        client.create(What::NAMESPACES, "", namespace).await.unwrap();
        let present = async || get(&client, "pi").await.unwrap().unwrap();
        let record = |hash: &str| Record {
            hash: hash.to_owned(),
            ..Record::default()
        };
        create(&client, "pi", &record("first")).await.unwrap();
        let first = present().await;
        note(&client, "pi", &first, Some("k1")).await.unwrap();
        for before in [first.clone(), present().await] {
            note(&client, "pi", &before, None).await.unwrap();
            let late = tie(&client, "pi", &before.unchanged(), "u1").await.unwrap_err();
            assert!(late.is(Reason::Conflict), "its node has come since: {late:?}");
        }
        tie(&client, "pi", &present().await.unchanged(), "u1").await.unwrap();
        let tied = present().await;
        assert_eq!((tied.key.as_deref(), tied.owner.as_deref()), (Some("k1"), Some("u1")));
        note(&client, "pi", &tied, Some("k1")).await.unwrap();
        assert_eq!(present().await, tied, "there is nothing to note");

        let unchanged = forget(&client, "pi", &first.unchanged()).await.unwrap_err();
        assert!(unchanged.is(Reason::Conflict), "it was tied since: {unchanged:?}");
        assert_eq!(present().await, tied);
        forget(&client, "pi", &first.itself()).await.unwrap();
        create(&client, "pi", &record("second")).await.unwrap();
        let second = present().await;
        let only = first.itself();
        for overtaken in [
            note(&client, "pi", &first, Some("k1")).await,
            tie(&client, "pi", &only, "u1").await,
            close(&client, "pi", &only).await,
            forget(&client, "pi", &only).await,
        ] {
            assert!(
                overtaken.as_ref().is_err_and(|status| status.is(Reason::Conflict)),
                "{overtaken:?}"
            );
        }
        assert_eq!(present().await, second, "another machine's");

        note(&client, "pi", &second, None).await.unwrap();
        let late = replace(&client, "pi", &second.version, &record("late")).await;
        let late = late.unwrap_err();
        assert!(late.is(Reason::AlreadyExists), "decided before its node came: {late:?}");
        let second = present().await;
        replace(&client, "pi", &second.version, &record("third")).await.unwrap();
        let third = present().await;
        assert!(third.hash == "third" && third.uid != second.uid, "{third:?}");
        let late = replace(&client, "pi", &second.version, &record("late"))
            .await
            .unwrap_err();
        assert!(late.is(Reason::AlreadyExists), "{late:?}");
        tie(&client, "pi", &second.itself(), "u1").await.unwrap_err();
        assert_eq!(present().await, third);
        forget(&client, "pi", &third.unchanged()).await.unwrap();
        let gone = forget(&client, "pi", &third.itself()).await.unwrap_err();
        assert!(gone.is(Reason::NotFound), "{gone:?}");
        let gone = replace(&client, "pi", &third.version, &record("late"))
            .await
            .unwrap_err();
        assert!(gone.is(Reason::AlreadyExists), "{gone:?}");
    }

    #[test]
    fn secrets_of_k3s_are_read() {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "immutable": true,
            "metadata": { "name": "pi.node-password.k3s", "creationTimestamp": "2026-11-25T00:00:00Z",
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "pi", "uid": "u1" }] },
            "data": { "hash": "JDE6MDA6NDo4OjE6QUFBQQ==" },
        });
        let record = read(&secret);
        assert_eq!(record.hash, "$1:00:4:8:1:AAAA");
        assert_eq!(record.owner.as_deref(), Some("u1"));
        assert_eq!(record.created, "2026-11-25T00:00:00Z".parse::<Timestamp>().unwrap());
        assert_eq!((record.key, record.window), (None, None));
        assert_eq!(read(&json!({})).hash, "");
    }

    #[test]
    fn a_window_is_read_as_it_was_written() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        for opened in [Some(at("2026-11-25T00:00:00Z")), None] {
            let until = at("2026-11-25T00:10:00Z");
            let window = Window { opened, until };
            assert_eq!(read(&with_window(&window)).window, Some(window));
        }
    }
}
