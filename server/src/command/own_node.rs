//! A server's own node after a restore onto another machine of the same name.
//!
//! A backup has the record of the node's password, and the password is in a file of the machine that was backed up. Without
//! that file the node would be refused on the cluster's own server. See `docs/decisions/0009-own-node-after-restore.md`.

use std::path::Path;

use agent::wire::object::text;
use serde_json::Value;

use crate::join::{node_password, record};
use crate::store::sql::sqlite::Sqlite;
use crate::store::{Change, Expect, Range, Store, StoreError, Write};

/// Where Nodes lie, and the records.
const NODES: &str = "/registry/minions/";
const RECORDS: &str = "/registry/secrets/kube-system/";
/// Every server's node has it.
const ROLE: &str = "node-role.kubernetes.io/control-plane";

/// This machine as a node.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// What it is called.
    pub name: &'a str,
    /// The password that it has, if it has one.
    pub password: Option<&'a str>,
}

/// Removes the record of the restored server's own node from the log at `path`, which nobody has open, if this machine has
/// that node's name and not its password. Returns what is to be said of it.
///
/// # Errors
/// What the store says; the restore stays as it is then.
pub async fn let_in(path: &Path, here: Here<'_>) -> Result<String, StoreError> {
    let store = Sqlite::open_whole(path).map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let said = let_in_to(&store, here).await;
    store.close().await?;
    said
}

async fn let_in_to(store: &dyn Store, here: Here<'_>) -> Result<String, StoreError> {
    let mut said = String::new();
    let nodes = Range {
        prefix: NODES.to_owned(),
        ..Range::default()
    };
    for node in store.list(nodes, None).await?.entries {
        let object: Value = serde_json::from_slice(&node.value).unwrap_or_default();
        let name = text(&object, &["metadata", "name"]);
        let Some(kept) = store.get(&format!("{RECORDS}{}", record::name(name))).await? else {
            continue;
        };
        if object
            .pointer("/metadata/labels")
            .is_none_or(|labels| labels.get(ROLE).is_none())
        {
            if name == here.name {
                said.push_str(&format!(
                    "node {name}, as this machine is called, was another machine than the server: give this one another name \
                     (--node-name), or, if it is to be that node, run \"k3s node-password delete {name}\" when the server runs\n"
                ));
            }
            continue;
        }
        if name != here.name {
            said.push_str(&format!(
                "the own node of the server that was backed up is {name}, and this machine is called {}: if the server is to \
                 run as {name} here (--node-name), and its node is refused, run \"k3s node-password delete {name}\"\n",
                here.name
            ));
            continue;
        }
        let secret: Value = serde_json::from_slice(&kept.value).unwrap_or_default();
        let known = record::read(&secret).hash;
        if here
            .password
            .is_some_and(|password| node_password::verify(&known, password) == Ok(true))
        {
            continue;
        }
        let removal = Write::new(kept.key, Expect::At(kept.revision), Change::Delete);
        store.write(removal).await?;
        said.push_str(&format!(
            "node {name} had its password on the machine that was backed up: its record is removed, and this machine joins as \
             {name} with a password of its own\n"
        ));
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::store::memory::Memory;

    async fn restored() -> Memory {
        let store = Memory::new();
        for (name, role) in [("box", true), ("pi", false)] {
            let labels = if role { json!({ ROLE: "true" }) } else { json!({}) };
            let node = json!({ "metadata": { "name": name, "labels": labels } });
            let hash = node_password::hash(&format!("password of {name}"), [7; 8]).unwrap();
            let secret = json!({ "data": { "hash": STANDARD.encode(hash) } });
            let record = format!("{RECORDS}{}", record::name(name));
            for (key, object) in [(format!("{NODES}{name}"), node), (record, secret)] {
                let write = Write::new(key, Expect::Absent, Change::Put(Bytes::from(object.to_string())));
                store.write(write).await.unwrap();
            }
        }
        store
    }

    async fn records(store: &Memory) -> String {
        let range = Range {
            prefix: RECORDS.to_owned(),
            ..Range::default()
        };
        let found = store.list(range, None).await.unwrap().entries;
        let names = found.iter().filter_map(|entry| entry.key.strip_prefix(RECORDS));
        names
            .filter_map(|name| name.strip_suffix(record::SUFFIX))
            .collect::<Vec<_>>()
            .join(",")
    }

    #[tokio::test]
    async fn only_the_servers_own_node_is_let_in_and_only_where_nobody_has_its_password() {
        for (name, password, left, says) in [
            ("box", None, "pi", "joins as box"),
            ("box", Some("another"), "pi", "joins as box"),
            ("box", Some("password of box"), "box,pi", ""),
            // Another machine has that name, and may come back.
            ("pi", None, "box,pi", "k3s node-password delete pi"),
            ("new", None, "box,pi", "k3s node-password delete box"),
        ] {
            let store = restored().await;
            let said = let_in_to(&store, Here { name, password }).await.unwrap();
            assert_eq!(records(&store).await, left, "{name} {password:?}");
            assert!(
                said.contains(says) && said.is_empty() == says.is_empty(),
                "{name}: {said}"
            );
            let again = let_in_to(&store, Here { name, password }).await.unwrap();
            assert!(!again.contains("removed"), "{again}");
        }
    }
}
