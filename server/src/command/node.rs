//! `k3s node-password` and `k3s node`: the records that bind a name to a machine.

use agent::api::{Client, PatchType};
use agent::wire::object::text;
use agent::wire::selector::is_dns_subdomain;
use agent::wire::time;
use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::kubeconfig::Cluster;
use super::{duration, failed, table};
use crate::config::admin::Output;
use crate::join::node_password::Record;
use crate::join::reenrol::{LONGEST, Window};
use crate::join::{record, reenrol};

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";

/// All records.
///
/// # Errors
/// What the API says.
pub async fn list(cluster: &Cluster, output: Output) -> anyhow::Result<String> {
    let found = cluster.api.get(SECRETS).await;
    let found = found.map_err(|error| failed("cannot list the records", &error))?;
    Ok(shown(&records(&found), output, Timestamp::now()))
}

/// Not by type: K3s before 2025 made them `Opaque`.
fn records(found: &Value) -> Vec<(String, Record)> {
    let one = |secret: &Value| {
        let node = text(secret, &["metadata", "name"]).strip_suffix(record::SUFFIX)?;
        Some((node.to_owned(), record::read(secret)))
    };
    let items = agent::wire::object::list(found, &["items"]);
    items.iter().filter_map(one).collect()
}

fn shown(all: &[(String, Record)], output: Output, now: Timestamp) -> String {
    let window = |record: &Record| {
        let open = record.window.filter(|window| window.is_open(now));
        open.map(|window| time::seconds(window.until))
    };
    if output == Output::Json {
        let one = |(node, record): &(String, Record)| {
            json!({ "node": node, "created": time::seconds(record.created), "registered": record.owner.is_some(),
                "key": record.key, "reenrolUntil": window(record) })
        };
        return format!("{:#}\n", Value::from_iter(all.iter().map(one)));
    }
    let yes = |so: bool| if so { "yes" } else { "no" }.to_owned();
    let row = |(node, record): &(String, Record)| {
        let age = now.as_second().saturating_sub(record.created.as_second());
        [
            node.clone(),
            yes(record.owner.is_some()),
            yes(record.key.is_some()),
            window(record).unwrap_or_else(|| "-".to_owned()),
            time::age(age),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    table::text(["NAME", "REGISTERED", "KEY KNOWN", "REENROL UNTIL", "AGE"], &rows)
}

/// Deletes records.
///
/// # Errors
/// For the first that cannot be deleted; those before it are gone.
pub async fn delete(cluster: &Cluster, names: &[String]) -> anyhow::Result<String> {
    let mut done = String::new();
    for name in names {
        let gone = cluster.api.delete(&path(name)?, None).await;
        gone.map_err(|error| failed(&format!("cannot delete the record of node {name}"), &error))?;
        done.push_str(&format!(
            "record of node {name} deleted: the next machine that joins under this name has it\n"
        ));
    }
    Ok(done)
}

/// Opens a window.
///
/// # Errors
/// What is wrong, and what to do.
pub async fn reenrol(cluster: &Cluster, name: &str, length: &str) -> anyhow::Result<String> {
    let length = duration::parse(length).context("--for")?;
    if length.is_zero() || length > LONGEST {
        bail!("--for: from 1s to 24h");
    }
    let now = Timestamp::now();
    let until = now.checked_add(length)?;
    let opened = Some(now);
    let patch = record::with_window(&Window { opened, until });
    let patched = cluster.api.patch(&path(name)?, PatchType::Merge, &patch).await;
    patched.map_err(|error| match error.status().map(|status| status.code) {
        Some(404) => anyhow::anyhow!(
            "there is no record of a node {name}, so nothing holds it back: any machine may join under this name \
             (k3s node-password list shows the records)"
        ),
        _ => failed(&format!("cannot open a window for node {name}"), &error),
    })?;
    announce(&cluster.api, name, until, now).await;
    Ok(format!(
        "node {name} may register once with another password until {}; start its agent now\n",
        time::seconds(until)
    ))
}

/// An Event on the Node; that it is lost changes nothing.
async fn announce(api: &Client, name: &str, until: Timestamp, now: Timestamp) {
    let node = api.get(&format!("/api/v1/nodes/{name}")).await.unwrap_or_default();
    let uid = Some(text(&node, &["metadata", "uid"])).filter(|uid| !uid.is_empty());
    let event = reenrol::opened(reenrol::about(name, uid), until).event(now);
    let _ = api.create("/api/v1/namespaces/default/events", &event).await;
}

fn path(name: &str) -> anyhow::Result<String> {
    if !is_dns_subdomain(name) {
        bail!("{name:?} is no name of a node: lower-case letters, digits, '-' and '.'");
    }
    Ok(format!("{SECRETS}/{}", record::name(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_listed_without_their_hashes() {
        let secret = |name: &str, annotations: Value| {
            json!({ "metadata": { "name": name, "creationTimestamp": "2026-11-26T00:00:00Z", "annotations": annotations },
                "data": { "hash": "JDE6MDA6NDo4OjE6QUFBQQ==" } })
        };
        let window = json!({ "amphipod.io/reenrol-until": "2026-11-27T00:10:00Z" });
        let found = json!({ "items": [secret("pi.node-password.k3s", json!({})), secret("other", json!({})),
            secret("roof-3.node-password.k3s", window)] });
        let now = "2026-11-27T00:00:00Z".parse().unwrap();
        let text = shown(&records(&found), Output::Text, now);
        assert_eq!(
            text,
            "NAME     REGISTERED   KEY KNOWN   REENROL UNTIL          AGE\n\
             pi       no           no          -                      24h\n\
             roof-3   no           no          2026-11-27T00:10:00Z   24h\n"
        );
        let json = shown(&records(&found), Output::Json, now);
        let read: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read[1]["reenrolUntil"], "2026-11-27T00:10:00Z");
        assert!(!json.contains("JDE6") && !json.contains("$1:"), "{json}");
    }

    #[test]
    fn a_name_that_is_none_never_becomes_a_path() {
        for name in ["", "..", "a/b", "A"] {
            assert!(path(name).is_err(), "{name}");
        }
    }
}
