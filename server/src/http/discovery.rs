//! Which groups, versions and resources there are, in the legacy and the aggregated form. Pure: made from the rows.
//!
//! Built when asked for and not kept: clients ask rarely (kubectl caches for hours), and it takes less than a list.
//! Source: Kubernetes v1.36, `apiserver/pkg/endpoints/discovery` and `api/apidiscovery/v2`.

use std::sync::Arc;

use agent::wire::object::set;
use agent::wire::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::negotiate::{Clause, clauses, not_acceptable};
use super::path::Route;
use crate::registry::resource::{Resource, Subresource, api_version};

/// A discovery document.
pub struct Found {
    /// What it is; clients of the aggregated form insist on the echo of what they asked for.
    pub content_type: &'static str,
    /// The document.
    pub body: Value,
}

type Rows = [Arc<Resource>];

/// Answers one of the discovery routes. `address`: `HOST:PORT` of this server.
///
/// # Errors
/// 404 for groups and versions that are not there, 406 for forms that we do not have.
pub fn answer(route: &Route, rows: &Rows, accept: &str, address: &str) -> Result<Found, Status> {
    let plain = |body| {
        negotiate(accept, false)?;
        Ok(Found {
            content_type: "application/json",
            body,
        })
    };
    match route {
        Route::Core | Route::Groups => {
            let core = matches!(route, Route::Core);
            match negotiate(accept, true)? {
                "" if core => plain(core_versions(address)),
                "" => plain(group_list(rows)),
                version => Ok(Found {
                    content_type: match version {
                        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
                    },
                    body: aggregated(rows, core, version),
                }),
            }
        }
        Route::Group(name) => plain(group(rows, name).ok_or_else(Status::no_such_route)?),
        Route::Version(group, version) => plain(resource_list(rows, group, version).ok_or_else(Status::no_such_route)?),
        _ => Err(Status::no_such_route()),
    }
}

/// The version of the aggregated form that is wanted, or nothing for the legacy form.
fn negotiate(accept: &str, aggregated: bool) -> Result<&'static str, Status> {
    let clauses = clauses(accept);
    if clauses.is_empty() {
        return Ok("");
    }
    let wanted = |clause: &Clause| {
        let json = matches!(clause.media.as_str(), "application/json" | "*/*" | "application/*");
        match (clause.get("as"), clause.get("g"), clause.get("v")) {
            _ if !json => None,
            ("", _, _) => Some(""),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") if aggregated => Some("v2"),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") if aggregated => Some("v2beta1"),
            _ => None,
        }
    };
    clauses.iter().find_map(wanted).ok_or_else(not_acceptable)
}

fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// Groups in table order, the core left out.
fn groups(rows: &Rows) -> Vec<&'static str> {
    let mut groups = Vec::new();
    for row in rows.iter().filter(|row| !row.group.is_empty()) {
        if !groups.contains(&row.group) {
            groups.push(row.group);
        }
    }
    groups
}

/// Versions of a group, the preferred one first.
fn versions(rows: &Rows, group: &str) -> Vec<&'static str> {
    let mut versions = Vec::new();
    for row in rows.iter().filter(|row| row.group == group) {
        if !versions.contains(&row.version) {
            versions.push(row.version);
        }
    }
    versions.sort_by_key(|version| std::cmp::Reverse(rank(version)));
    versions
}

/// What makes a version preferred: stable before beta before alpha, then the higher number.
fn rank(version: &str) -> (u8, u32, u32) {
    let digits = |text: &str| text.parse().unwrap_or(0);
    let rest = version.strip_prefix('v').unwrap_or_default();
    let (stage, major, minor) = match (rest.split_once("beta"), rest.split_once("alpha")) {
        (Some((major, minor)), _) => (1, major, minor),
        (_, Some((major, minor))) => (0, major, minor),
        (None, None) => (2, rest, ""),
    };
    (stage, digits(major), digits(minor))
}

fn group_list(rows: &Rows) -> Value {
    let groups: Vec<Value> = groups(rows).iter().filter_map(|name| group_entry(rows, name)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group(rows: &Rows, name: &str) -> Option<Value> {
    let mut group = group_entry(rows, name)?;
    set(&mut group, &["kind"], "APIGroup");
    set(&mut group, &["apiVersion"], "v1");
    Some(group)
}

fn group_entry(rows: &Rows, name: &str) -> Option<Value> {
    let entry = |version: &&str| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    let versions: Vec<Value> = versions(rows, name).iter().map(entry).collect();
    let preferred = versions.first()?.clone();
    Some(json!({"name": name, "versions": versions, "preferredVersion": preferred}))
}

fn resource_list(rows: &Rows, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for row in rows.iter().filter(|row| row.group == group && row.version == version) {
        let mut entry = json!({
            "name": row.plural,
            "singularName": row.singular,
            "namespaced": row.namespaced,
            "kind": row.kind,
            "verbs": row.verbs,
        });
        set_names(&mut entry, row);
        if row.verbs.contains(&"get") {
            set(&mut entry, &["storageVersionHash"], storage_hash(row));
        }
        resources.push(entry);
        resources.extend(row.subresources.iter().map(|one| subresource_entry(row, one)));
    }
    if resources.is_empty() {
        return None;
    }
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version(group, version),
        "resources": resources,
    }))
}

fn subresource_entry(row: &Resource, one: &Subresource) -> Value {
    let (group, version, kind) = one.kind.unwrap_or((row.group, row.version, row.kind));
    let mut entry = json!({
        "name": format!("{}/{}", row.plural, one.name),
        "singularName": "",
        "namespaced": row.namespaced,
        "kind": kind,
        "verbs": one.verbs,
    });
    if (group, version) != (row.group, row.version) {
        set(&mut entry, &["group"], group);
        set(&mut entry, &["version"], version);
    }
    entry
}

fn set_names(entry: &mut Value, row: &Resource) {
    if !row.short.is_empty() {
        set(entry, &["shortNames"], row.short);
    }
    if !row.categories.is_empty() {
        set(entry, &["categories"], row.categories);
    }
}

fn storage_hash(row: &Resource) -> String {
    let (group, version, _) = row.view.map_or((row.group, row.version, row.plural), |view| view.of);
    let sum = digest(&SHA256, format!("{group}/{version}/{}", row.kind).as_bytes());
    STANDARD.encode(sum.as_ref().get(..8).unwrap_or_default())
}

fn aggregated(rows: &Rows, core: bool, form: &str) -> Value {
    let names = if core { vec![""] } else { groups(rows) };
    let item = |name: &&str| {
        let version = |version: &&str| {
            let resources = rows.iter().filter(|row| row.group == *name && row.version == *version);
            json!({
                "version": version,
                "freshness": "Current",
                "resources": resources.map(|row| aggregated_entry(row)).collect::<Vec<_>>(),
            })
        };
        let versions: Vec<Value> = versions(rows, name).iter().map(version).collect();
        // The core has no name, not an empty one.
        let metadata = match *name {
            "" => json!({"creationTimestamp": null}),
            name => json!({"name": name, "creationTimestamp": null}),
        };
        json!({"metadata": metadata, "versions": versions})
    };
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{form}"),
        "metadata": {},
        "items": names.iter().map(item).collect::<Vec<_>>(),
    })
}

fn aggregated_entry(row: &Resource) -> Value {
    let kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let own = (row.group, row.version, row.kind);
    let mut entry = json!({
        "resource": row.plural,
        "responseKind": kind(own),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": row.verbs,
    });
    set_names(&mut entry, row);
    if !row.subresources.is_empty() {
        let subresource = |one: &Subresource| json!({"subresource": one.name, "responseKind": kind(one.kind.unwrap_or(own)), "verbs": one.verbs});
        let all: Vec<Value> = row.subresources.iter().map(subresource).collect();
        set(&mut entry, &["subresources"], all);
    }
    entry
}

/// This machine's architecture in Go's words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn ask(route: &Route, accept: &str) -> Result<Found, Status> {
        answer(route, kinds::table(), accept, "192.0.2.1:6443")
    }

    #[test]
    fn both_forms_are_had_by_their_accept_header() {
        let new = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let old = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
        for (accept, kind, content_type) in [
            (format!("{new},{old},application/json"), "APIGroupDiscoveryList", new),
            (
                "application/json;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io;profile=nopeer".into(),
                "APIGroupDiscoveryList",
                new,
            ),
            (format!("{old},application/json"), "APIGroupDiscoveryList", old),
            ("application/json".into(), "APIGroupList", "application/json"),
            (String::new(), "APIGroupList", "application/json"),
            ("*/*".into(), "APIGroupList", "application/json"),
        ] {
            let found = ask(&Route::Groups, &accept).unwrap();
            assert_eq!(
                (found.body["kind"].as_str(), found.content_type),
                (Some(kind), content_type),
                "{accept}"
            );
        }
        assert_eq!(
            ask(&Route::Groups, "text/html").err().map(|status| status.code),
            Some(406)
        );
    }

    #[test]
    fn every_row_is_listed_once_in_both_forms() {
        let aggregated = aggregated(kinds::table(), false, "v2");
        let items = aggregated["items"].as_array().unwrap();
        let resources = |version: &Value| version["resources"].as_array().unwrap().len();
        let count: usize = items
            .iter()
            .flat_map(|item| item["versions"].as_array().unwrap())
            .map(resources)
            .sum();
        assert_eq!(count, kinds::table().iter().filter(|row| !row.group.is_empty()).count());
        let apps = ask(&Route::Version("apps".into(), "v1".into()), "").unwrap().body;
        let names: Vec<&str> = apps["resources"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|one| one["name"].as_str())
            .collect();
        assert!(
            names.contains(&"deployments") && names.contains(&"deployments/scale"),
            "{names:?}"
        );
        let scale = apps["resources"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["name"] == "deployments/scale")
            .unwrap();
        assert_eq!(
            (&scale["group"], &scale["kind"]),
            (&json!("autoscaling"), &json!("Scale"))
        );
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert_eq!(
            ask(&Route::Group("nope".into()), "").err().map(|status| status.code),
            Some(404)
        );
        assert_eq!(
            ask(&Route::Version("apps".into(), "v9".into()), "")
                .err()
                .map(|status| status.code),
            Some(404)
        );
        assert_eq!(
            ask(&Route::Group("apps".into()), "").unwrap().body["preferredVersion"]["version"],
            "v1"
        );
    }

    #[test]
    fn stable_versions_are_preferred() {
        let mut versions = ["v1beta1", "v2", "v1alpha3", "v1", "v2beta2"];
        versions.sort_by_key(|version| std::cmp::Reverse(rank(version)));
        assert_eq!(versions, ["v2", "v1", "v2beta2", "v1beta1", "v1alpha3"]);
    }
}
