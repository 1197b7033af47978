//! The roles and bindings that a cluster cannot do without, put right at every start.
//!
//! A rule or a subject that is missing is added; what an operator added stays. An object whose annotation
//! `rbac.authorization.kubernetes.io/autoupdate` is `"false"` is left alone. Source: Kubernetes v1.36,
//! `pkg/registry/rbac/rest/storage_rbac.go` (`PostStartHook`) and `component-helpers/auth/rbac/reconciliation`.

mod controllers;
mod roles;

use std::collections::HashMap;

use agent::wire::object::{at, list, set, text};
use agent::wire::status::{Reason, Status};
use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::{Value, json};

use super::may::Rule;
use crate::cache::Filter;
use crate::request::{Client, What};

/// Report what happened, and count up what has been reported: every controller does.
const EVENTS: &str = "create,get,patch,update core,events.k8s.io events";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const GROUP: &str = "rbac.authorization.k8s.io";
/// Writes in flight: the datastore commits together what arrives together.
const AT_ONCE: usize = 64;

/// A ClusterRole.
#[derive(Clone, Copy, Debug)]
pub struct Role {
    name: &'static str,
    rules: &'static [&'static str],
    /// A label by which other roles gather this one's rules.
    label: &'static str,
    /// The label of the roles that this one is made of.
    gathers: &'static str,
}

/// A ClusterRoleBinding.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    name: &'static str,
    role: &'static str,
    subjects: &'static [&'static str],
}

/// Creates what is missing and completes what is incomplete.
///
/// # Errors
/// The API's [`Status`] of the first write that failed.
pub async fn reconcile(client: &Client) -> Result<(), Status> {
    let (roles, bindings) = wanted();
    for (what, wanted) in [(What::CLUSTER_ROLES, roles), (What::CLUSTER_ROLE_BINDINGS, bindings)] {
        let page = client.list(what, None, Filter::default()).await?;
        let present: HashMap<String, Value> = page
            .items
            .iter()
            .map(|item| item.value())
            .map(|object| (text(&object, &["metadata", "name"]).to_owned(), object))
            .collect();
        let writes = wanted.into_iter().filter_map(|wanted| {
            let name = text(&wanted, &["metadata", "name"]).to_owned();
            match present.get(&name) {
                None => Some((name, wanted, false)),
                Some(found) => completed(found, &wanted).map(|object| (name, object, true)),
            }
        });
        let mut written = stream::iter(writes)
            .map(|(name, object, update)| async move {
                match update {
                    true => client.update(what, "", &name, object).await,
                    false => client.create(what, "", object).await,
                }
            })
            .buffer_unordered(AT_ONCE);
        while let Some(result) = written.next().await {
            match result {
                // Another server does the same; one of us has it done.
                Err(status) if status.is(Reason::AlreadyExists) || status.is(Reason::Conflict) => {}
                Err(status) => return Err(status),
                Ok(_) => {}
            }
        }
    }
    Ok(())
}

/// Every role and every binding, as objects.
fn wanted() -> (Vec<Value>, Vec<Value>) {
    let mut cluster_roles: Vec<Value> = roles::ROLES.iter().map(role_object).collect();
    let mut bindings: Vec<Value> = roles::BINDINGS.iter().map(binding_object).collect();
    for (account, rules) in controllers::CONTROLLERS {
        let name = format!("system:controller:{account}");
        cluster_roles.push(object("ClusterRole", &name, json!({"rules": rules_of(rules)})));
        let subject = subject(&format!("account:kube-system:{account}"));
        bindings.push(object("ClusterRoleBinding", &name, binding_body(&name, &[subject])));
    }
    (cluster_roles, bindings)
}

fn object(kind: &str, name: &str, body: Value) -> Value {
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
            "annotations": {AUTOUPDATE: "true"},
        },
    });
    if let Value::Object(fields) = body {
        for (key, value) in fields {
            set(&mut object, &[&key], value);
        }
    }
    object
}

fn role_object(role: &Role) -> Value {
    let mut rules: Vec<&str> = role.rules.to_vec();
    gather(role.gathers, &mut rules);
    let mut object = object("ClusterRole", role.name, json!({"rules": rules_of(&rules)}));
    if !role.label.is_empty() {
        set(&mut object, &["metadata", "labels", role.label], "true");
    }
    if !role.gathers.is_empty() {
        let selectors = json!([{"matchLabels": {role.gathers: "true"}}]);
        set(&mut object, &["aggregationRule", "clusterRoleSelectors"], selectors);
    }
    object
}

/// The rules of all roles with a label, those that they gather included.
fn gather(label: &str, rules: &mut Vec<&str>) {
    if label.is_empty() {
        return;
    }
    for part in roles::ROLES.iter().filter(|part| part.label == label) {
        rules.extend(part.rules);
        gather(part.gathers, rules);
    }
}

fn rules_of(rules: &[&str]) -> Vec<Value> {
    rules.iter().map(|text| rule(text)).collect()
}

/// One rule from its notation, `VERBS GROUPS RESOURCES [NAMES]` with commas inside and `core` for the core group, or
/// `VERBS url PATHS`.
fn rule(notation: &str) -> Value {
    let mut parts = notation.split(' ').map(|part| part.split(',').collect::<Vec<_>>());
    let mut next = || parts.next().unwrap_or_default();
    let (verbs, groups, resources, names) = (next(), next(), next(), next());
    if groups == ["url"] {
        return json!({"verbs": verbs, "nonResourceURLs": resources});
    }
    let groups: Vec<&str> = groups
        .into_iter()
        .map(|group| if group == "core" { "" } else { group })
        .collect();
    let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": resources});
    if !names.is_empty() {
        set(&mut rule, &["resourceNames"], names);
    }
    rule
}

fn binding_object(binding: &Binding) -> Value {
    let subjects: Vec<Value> = binding.subjects.iter().map(|text| subject(text)).collect();
    object(
        "ClusterRoleBinding",
        binding.name,
        binding_body(binding.role, &subjects),
    )
}

fn binding_body(role: &str, subjects: &[Value]) -> Value {
    let reference = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": role});
    match subjects {
        [] => json!({"roleRef": reference}),
        subjects => json!({"roleRef": reference, "subjects": subjects}),
    }
}

fn subject(notation: &str) -> Value {
    match notation.split_once(':') {
        Some(("account", rest)) => {
            let (namespace, name) = rest.split_once(':').unwrap_or_default();
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
        Some(("group", name)) => json!({"kind": "Group", "apiGroup": GROUP, "name": name}),
        Some((_, name)) => json!({"kind": "User", "apiGroup": GROUP, "name": name}),
        None => json!({"kind": "User", "apiGroup": GROUP, "name": notation}),
    }
}

/// What is there with what it lacks; `None` when it lacks nothing, or is not to be touched.
fn completed(found: &Value, wanted: &Value) -> Option<Value> {
    if at(found, &["metadata", "annotations", AUTOUPDATE]).is_some_and(|value| value == "false") {
        return None;
    }
    let mut object = found.clone();
    let mut changed = false;
    let held = Rule::read_all(found);
    let lacking = |one: &&Value| {
        let mut atoms = Rule::read(one).atoms().into_iter();
        !atoms.all(|atom| held.iter().any(|rule| rule.contains(&atom)))
    };
    let mut rules = list(found, &["rules"]).to_vec();
    let missing: Vec<Value> = list(wanted, &["rules"]).iter().filter(lacking).cloned().collect();
    // What a role gathers is kept right by whoever aggregates, not here.
    if !missing.is_empty() && wanted.get("aggregationRule").is_none() {
        rules.extend(missing);
        set(&mut object, &["rules"], rules);
        changed = true;
    }
    let mut subjects = list(found, &["subjects"]).to_vec();
    let absent = |one: &&Value| !list(found, &["subjects"]).iter().any(|there| same_subject(there, one));
    let missing: Vec<Value> = list(wanted, &["subjects"]).iter().filter(absent).cloned().collect();
    if !missing.is_empty() {
        subjects.extend(missing);
        set(&mut object, &["subjects"], subjects);
        changed = true;
    }
    changed.then_some(object)
}

fn same_subject(one: &Value, other: &Value) -> bool {
    ["kind", "namespace", "name"]
        .iter()
        .all(|key| text(one, &[key]) == text(other, &[key]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::may::{Attributes, Grants, Sources};
    use crate::request::User;

    fn grants() -> Grants {
        let (cluster_roles, cluster_bindings) = wanted();
        Grants::compile(&Sources {
            cluster_roles,
            cluster_bindings,
            ..Sources::default()
        })
    }

    #[test]
    fn notation_becomes_rules_and_subjects() {
        assert_eq!(
            rule("get,list core,apps pods,pods/log a,b"),
            json!({"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods", "pods/log"], "resourceNames": ["a", "b"]})
        );
        assert_eq!(
            rule("get url /x,/y/*"),
            json!({"verbs": ["get"], "nonResourceURLs": ["/x", "/y/*"]})
        );
        assert_eq!(
            subject("account:kube-system:x"),
            json!({"kind": "ServiceAccount", "namespace": "kube-system", "name": "x"})
        );
        assert_eq!(subject("group:system:masters")["name"], "system:masters");
    }

    #[test]
    fn every_rule_has_its_parts_and_every_binding_its_role() {
        let (roles, bindings) = wanted();
        for role in &roles {
            for rule in list(role, &["rules"]) {
                let resource = !list(rule, &["resources"]).is_empty() && !list(rule, &["apiGroups"]).is_empty();
                let path = !list(rule, &["nonResourceURLs"]).is_empty();
                assert!(!list(rule, &["verbs"]).is_empty() && (resource != path), "{role}");
            }
        }
        for binding in &bindings {
            let role = text(binding, &["roleRef", "name"]);
            assert!(
                roles.iter().any(|one| text(one, &["metadata", "name"]) == role),
                "{role}"
            );
        }
    }

    #[test]
    fn the_parts_of_the_control_plane_may_do_their_work() {
        let grants = grants();
        let asked = |verb: &'static str, group: &'static str, resource: &'static str, subresource: &'static str| {
            Attributes::Resource {
                verb,
                group,
                resource,
                subresource,
                namespace: "x",
                name: "y",
                fields: None,
            }
        };
        let account = |name: &str| User::new(&format!("system:serviceaccount:kube-system:{name}"), &[]);
        for (user, asked, expected) in [
            (
                account("deployment-controller"),
                asked("create", "apps", "replicasets", ""),
                true,
            ),
            (
                account("deployment-controller"),
                asked("delete", "", "secrets", ""),
                false,
            ),
            (account("replicaset-controller"), asked("create", "", "pods", ""), true),
            (
                account("generic-garbage-collector"),
                asked("delete", "example.com", "widgets", ""),
                true,
            ),
            (
                User::new("system:kube-scheduler", &[]),
                asked("create", "", "pods", "binding"),
                true,
            ),
            (
                User::new("system:k3s-controller", &[]),
                asked("get", "discovery.k8s.io", "endpointslices", ""),
                true,
            ),
            (User::new("jane", &[]), asked("get", "", "pods", ""), false),
            (
                User::new("jane", &[]),
                asked("create", "authorization.k8s.io", "selfsubjectaccessreviews", ""),
                true,
            ),
        ] {
            assert_eq!(grants.allow(&user, &asked), expected, "{user:?} {asked:?}");
        }
    }

    #[test]
    fn view_edit_and_admin_hold_each_other() {
        let grants = grants();
        let rules = |name: &str| {
            grants
                .rules_of(&json!({"kind": "ClusterRole", "name": name}), "")
                .unwrap()
        };
        for (larger, smaller) in [("edit", "view"), ("admin", "edit"), ("cluster-admin", "admin")] {
            for atom in rules(smaller).iter().flat_map(Rule::atoms) {
                assert!(
                    rules(larger).iter().any(|rule| rule.contains(&atom)),
                    "{larger} lacks {atom:?} of {smaller}"
                );
            }
        }
    }

    #[test]
    fn only_what_is_missing_is_added_and_what_is_locked_is_left() {
        let (roles, bindings) = wanted();
        let whole = roles
            .iter()
            .find(|role| role["metadata"]["name"] == "system:kube-dns")
            .unwrap();
        assert_eq!(completed(whole, whole), None);
        let mut found = whole.clone();
        found["rules"] = json!([{"verbs": ["get"], "apiGroups": ["x"], "resources": ["mine"]}]);
        let repaired = completed(&found, whole).unwrap();
        assert_eq!(list(&repaired, &["rules"]).len(), 2, "the operator's rule stays");
        set(&mut found, &["metadata", "annotations", AUTOUPDATE], "false");
        assert_eq!(completed(&found, whole), None);
        let binding = bindings
            .iter()
            .find(|one| one["metadata"]["name"] == "cluster-admin")
            .unwrap();
        let mut unbound = binding.clone();
        unbound["subjects"] = json!([]);
        assert_eq!(completed(&unbound, binding).unwrap()["subjects"], binding["subjects"]);
    }
}
