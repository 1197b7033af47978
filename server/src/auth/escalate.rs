//! Nobody grants what he does not hold: writes to roles and bindings.
//!
//! Who has the verb `escalate` on a role, or `bind` on the role of a binding, may. Source: Kubernetes v1.36,
//! `pkg/registry/rbac/{role,clusterrole,rolebinding,clusterrolebinding}/policybased` and `.../escalation_check.go`.

use agent::wire::object::text;
use agent::wire::status::Status;
use serde_json::Value;

use super::guard::Authorizer;
use super::may::{Attributes, Rule};
use crate::registry::resource::Resource;
use crate::request::{Target, User};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Whether writes to a resource grant something.
pub fn grants(resource: &Resource) -> bool {
    let kinds = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];
    resource.group == GROUP && kinds.contains(&resource.plural)
}

impl Authorizer {
    /// Refuses a write of a role or a binding (`new`, over `old`) that grants more than the user holds.
    ///
    /// # Errors
    /// 403 with what is not held, 404 for a binding to a role that is not there.
    pub fn may_grant(&self, user: &User, target: &Target, new: &Value, old: Option<&Value>) -> Result<(), Status> {
        if user.groups.iter().any(|group| group == "system:masters") {
            return Ok(());
        }
        let plural = target.resource.plural;
        let namespace = target.namespace.as_deref().unwrap_or_default();
        let written = target
            .name
            .as_deref()
            .unwrap_or_else(|| text(new, &["metadata", "name"]));
        let granting = match plural {
            "roles" | "clusterroles" => {
                let same = |key: &str| old.is_some_and(|old| old.get(key) == new.get(key));
                if (same("rules") && same("aggregationRule")) || self.has(user, "escalate", plural, namespace, written)
                {
                    return Ok(());
                }
                let mut rules = Rule::read_all(new);
                if new.get("aggregationRule").is_some_and(|rule| !rule.is_null()) && !same("aggregationRule") {
                    // Whatever is gathered one day.
                    rules.extend(everything());
                }
                rules
            }
            _ => {
                let reference = new.get("roleRef").unwrap_or(&Value::Null);
                let same = |key: &str| old.is_some_and(|old| old.get(key) == new.get(key));
                let (of, within) = match text(reference, &["kind"]) {
                    "Role" => ("roles", namespace),
                    _ => ("clusterroles", ""),
                };
                let role = text(reference, &["name"]);
                if (same("subjects") && same("roleRef")) || self.has(user, "bind", of, within, role) {
                    return Ok(());
                }
                let rules = self.grants().rules_of(reference, namespace);
                rules.ok_or_else(|| Status::not_found(GROUP, of, role))?.to_vec()
            }
        };
        let held = self.rules_for(user, namespace);
        let lacking = |atom: &Rule| !held.iter().any(|rule| rule.contains(atom));
        let missing: Vec<String> = granting
            .iter()
            .flat_map(Rule::atoms)
            .filter(lacking)
            .map(|atom| shown(&atom))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let why = format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            user.groups,
            missing.join("\n")
        );
        Err(Status::forbidden(GROUP, plural, written, &why))
    }

    fn has(&self, user: &User, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let asked = Attributes::Resource {
            verb,
            group: GROUP,
            resource,
            subresource: "",
            namespace,
            name,
            fields: None,
        };
        self.allows(user, &asked)
    }
}

fn everything() -> [Rule; 2] {
    let any = || vec!["*".to_owned()];
    let resources = Rule {
        verbs: any(),
        groups: any(),
        resources: any(),
        ..Rule::default()
    };
    let paths = Rule {
        verbs: any(),
        paths: any(),
        ..Rule::default()
    };
    [resources, paths]
}

/// A rule as upstream prints it.
fn shown(rule: &Rule) -> String {
    let mut parts = Vec::new();
    for (name, values) in [
        ("NonResourceURLs", &rule.paths),
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.names),
        ("Verbs", &rule.verbs),
    ] {
        if !values.is_empty() {
            parts.push(format!("{name}:{values:?}"));
        }
    }
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_shown_as_upstream_shows_it() {
        let rule = Rule {
            verbs: vec!["get".to_owned()],
            groups: vec![String::new()],
            resources: vec!["pods".to_owned()],
            ..Rule::default()
        };
        assert_eq!(shown(&rule), r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#);
    }
}
