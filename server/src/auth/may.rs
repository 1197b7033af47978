//! Role-based access control: which verbs on which resources the roles bound to a user grant. Pure.
//!
//! [`Grants`] is compiled from roles and bindings and replaced whole when one of them changes (`guard`). Rules only allow; what
//! nothing allows is forbidden.
//!
//! Source: Kubernetes v1.36, `plugin/pkg/auth/authorizer/rbac` and `pkg/apis/rbac/v1/evaluation_helpers.go`.

use std::collections::HashMap;
use std::sync::Arc;

use agent::wire::object::{at, list, text};
use agent::wire::selector::{Fields, LabelSelector, Labels};
use agent::wire::status::{Reason, Status};
use serde::Deserialize as _;
use serde_json::Value;

use crate::request::{Call, Operation, Target, User};

/// What authorization looks at: the request, reduced.
#[derive(Clone, Copy, Debug)]
pub enum Attributes<'a> {
    /// A resource or a subresource.
    Resource {
        /// `get`, `list`, …
        verb: &'a str,
        /// Empty for core.
        group: &'a str,
        /// `pods`.
        resource: &'a str,
        /// Empty for none.
        subresource: &'a str,
        /// Empty for cluster scope and for all namespaces.
        namespace: &'a str,
        /// Empty for collections.
        name: &'a str,
        /// What a list or a watch is limited to.
        fields: Option<&'a Fields>,
    },
    /// A path outside the resources.
    Path {
        /// The lower-cased method.
        verb: &'a str,
        /// `/healthz`.
        path: &'a str,
    },
}

/// One rule of a role.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rule {
    /// `*` is any.
    pub verbs: Vec<String>,
    /// `*` is any.
    pub groups: Vec<String>,
    /// `pods`, `pods/log`, `*`, `*/scale`.
    pub resources: Vec<String>,
    /// Empty: all.
    pub names: Vec<String>,
    /// Exact, or a prefix before a final `*`.
    pub paths: Vec<String>,
}

#[derive(Debug)]
struct Grant {
    /// `None`: everywhere.
    namespace: Option<Box<str>>,
    rules: Arc<[Rule]>,
}

/// Everything that roles and bindings grant, by whom they grant it to.
#[derive(Debug, Default)]
pub struct Grants {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    roles: HashMap<(String, String), Arc<[Rule]>>,
}

/// The objects that [`Grants`] are made of.
#[derive(Debug, Default)]
pub struct Sources {
    /// ClusterRoles.
    pub cluster_roles: Vec<Value>,
    /// Roles.
    pub roles: Vec<Value>,
    /// ClusterRoleBindings.
    pub cluster_bindings: Vec<Value>,
    /// RoleBindings.
    pub bindings: Vec<Value>,
}

impl<'a> Attributes<'a> {
    /// Of a call.
    pub fn of(call: &'a Call) -> Self {
        let (verb, fields) = match &call.operation {
            Operation::Get { .. } => ("get", None),
            Operation::List(options) => ("list", Some(&options.filter.fields)),
            Operation::Watch { filter, .. } => ("watch", Some(&filter.fields)),
            Operation::Create { .. } => ("create", None),
            Operation::Update { .. } => ("update", None),
            Operation::Patch { .. } => ("patch", None),
            Operation::Delete(_) => ("delete", None),
            Operation::DeleteCollection { list, .. } => ("deletecollection", Some(&list.filter.fields)),
        };
        Self::on(verb, &call.target, fields)
    }

    /// Of a verb on a target. A list or watch of one object by its name carries that name.
    pub fn on(verb: &'a str, target: &'a Target, fields: Option<&'a Fields>) -> Self {
        let selected = match verb {
            "list" | "watch" => fields.and_then(|fields| fields.required("metadata.name")),
            _ => None,
        };
        let name = target.name.as_deref().or(selected).unwrap_or_default();
        let own = target.resource.group.is_empty() && target.resource.plural == "namespaces";
        Self::Resource {
            verb,
            group: target.resource.group,
            resource: target.resource.plural,
            subresource: target.subresource.as_deref().unwrap_or_default(),
            namespace: target.namespace.as_deref().unwrap_or(if own { name } else { "" }),
            name,
            fields,
        }
    }

    /// The 403 when it may not.
    pub fn refusal(&self, user: &User) -> Status {
        let who = &user.name;
        match *self {
            Self::Path { verb, path } => {
                let message = format!("forbidden: User \"{who}\" cannot {verb} path \"{path}\"");
                Status::failure(Reason::Forbidden, message).about("", "", "")
            }
            Self::Resource {
                verb,
                group,
                resource,
                subresource,
                namespace,
                name,
                fields: _,
            } => {
                let scope = match namespace {
                    "" => "at the cluster scope".to_owned(),
                    namespace => format!("in the namespace \"{namespace}\""),
                };
                let full = match subresource {
                    "" => resource.to_owned(),
                    subresource => format!("{resource}/{subresource}"),
                };
                let why = format!("User \"{who}\" cannot {verb} resource \"{full}\" in API group \"{group}\" {scope}");
                Status::forbidden(group, resource, name, &why)
            }
        }
    }
}

impl Rule {
    /// Reads one entry of `rules`.
    pub fn read(rule: &Value) -> Self {
        let texts = |key| {
            let texts = list(rule, &[key]).iter().filter_map(Value::as_str);
            texts.map(ToOwned::to_owned).collect()
        };
        Self {
            verbs: texts("verbs"),
            groups: texts("apiGroups"),
            resources: texts("resources"),
            names: texts("resourceNames"),
            paths: texts("nonResourceURLs"),
        }
    }

    /// Reads a role's `rules`.
    pub fn read_all(role: &Value) -> Vec<Self> {
        list(role, &["rules"]).iter().map(Self::read).collect()
    }

    /// Whether this rule allows it.
    pub fn allows(&self, asked: &Attributes<'_>) -> bool {
        match *asked {
            Attributes::Path { verb, path } => has(&self.verbs, verb) && self.paths.iter().any(|one| covers(one, path)),
            Attributes::Resource {
                verb,
                group,
                resource,
                subresource,
                name,
                ..
            } => {
                has(&self.verbs, verb)
                    && has(&self.groups, group)
                    && self.resources.iter().any(|one| names(one, resource, subresource))
                    && (self.names.is_empty() || self.names.iter().any(|one| one == name))
            }
        }
    }

    /// Splits into rules of one verb and one resource or path each: what escalation checks compare.
    pub fn atoms(&self) -> Vec<Self> {
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            let verbs = vec![verb.clone()];
            for path in &self.paths {
                atoms.push(Self {
                    verbs: verbs.clone(),
                    paths: vec![path.clone()],
                    ..Self::default()
                });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let single = |names| Self {
                        verbs: verbs.clone(),
                        groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        names,
                        paths: Vec::new(),
                    };
                    match self.names.as_slice() {
                        [] => atoms.push(single(Vec::new())),
                        names => atoms.extend(names.iter().map(|name| single(vec![name.clone()]))),
                    }
                }
            }
        }
        atoms
    }

    /// Whether holding this rule is holding `atom` (one of [`Rule::atoms`]).
    pub fn contains(&self, atom: &Self) -> bool {
        let all = |mine: &[String], theirs: &[String]| theirs.iter().all(|one| has(mine, one));
        let resource = |one: &String| match one.split_once('/') {
            Some((resource, subresource)) => self.resources.iter().any(|mine| names(mine, resource, subresource)),
            None => self.resources.iter().any(|mine| names(mine, one, "")),
        };
        let named = self.names.is_empty()
            || (!atom.names.is_empty() && atom.names.iter().all(|name| self.names.contains(name)));
        let path = |one: &String| {
            let whole = one.strip_suffix('*').unwrap_or(one);
            self.paths
                .iter()
                .any(|mine| mine == one || (mine.ends_with('*') && covers(mine, whole)))
        };
        all(&self.verbs, &atom.verbs)
            && all(&self.groups, &atom.groups)
            && atom.resources.iter().all(resource)
            && named
            && atom.paths.iter().all(path)
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

fn covers(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

fn names(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match (pattern.split_once('/'), subresource) {
        (None, "") => pattern == resource,
        (None, _) | (Some(_), "") => false,
        (Some((left, right)), subresource) => (left == "*" || left == resource) && right == subresource,
    }
}

impl Grants {
    /// Resolves every binding to its role's rules. A binding whose role is missing grants nothing.
    pub fn compile(sources: &Sources) -> Self {
        let name = |object: &Value| text(object, &["metadata", "name"]).to_owned();
        let space = |object: &Value| text(object, &["metadata", "namespace"]).to_owned();
        let rules = |object: &Value| Arc::from(Rule::read_all(object));
        let gathered = |role: &Value| Arc::from(gathered(role, &sources.cluster_roles));
        let mut grants = Self {
            cluster_roles: sources
                .cluster_roles
                .iter()
                .map(|role| (name(role), gathered(role)))
                .collect(),
            roles: sources
                .roles
                .iter()
                .map(|role| ((space(role), name(role)), rules(role)))
                .collect(),
            ..Self::default()
        };
        for binding in &sources.cluster_bindings {
            grants.bind(binding, None);
        }
        for binding in &sources.bindings {
            grants.bind(binding, Some(&space(binding)));
        }
        grants
    }

    fn bind(&mut self, binding: &Value, namespace: Option<&str>) {
        let Some(rules) = self.rules_of(&binding["roleRef"], namespace.unwrap_or_default()) else {
            return;
        };
        for subject in list(binding, &["subjects"]) {
            let grant = Grant {
                namespace: namespace.map(Into::into),
                rules: rules.clone(),
            };
            let name = text(subject, &["name"]);
            match text(subject, &["kind"]) {
                "User" => self.users.entry(name.to_owned()).or_default().push(grant),
                "Group" => self.groups.entry(name.to_owned()).or_default().push(grant),
                "ServiceAccount" => {
                    let space = match text(subject, &["namespace"]) {
                        "" => namespace.unwrap_or_default(),
                        space => space,
                    };
                    let user = format!("system:serviceaccount:{space}:{name}");
                    self.users.entry(user).or_default().push(grant);
                }
                _ => {}
            }
        }
    }

    /// The rules that a `roleRef` in `namespace` means.
    pub fn rules_of(&self, role: &Value, namespace: &str) -> Option<Arc<[Rule]>> {
        let name = text(role, &["name"]).to_owned();
        match text(role, &["kind"]) {
            "ClusterRole" => self.cluster_roles.get(&name).cloned(),
            "Role" => self.roles.get(&(namespace.to_owned(), name)).cloned(),
            _ => None,
        }
    }

    /// Whether any role bound to the user allows it.
    pub fn allow(&self, user: &User, asked: &Attributes<'_>) -> bool {
        let namespace = match asked {
            Attributes::Resource { namespace, .. } => namespace,
            Attributes::Path { .. } => "",
        };
        self.grants_of(user, namespace)
            .any(|grant| grant.rules.iter().any(|rule| rule.allows(asked)))
    }

    /// Every rule that holds for the user in a namespace (empty: at cluster scope).
    pub fn rules_for<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.grants_of(user, namespace).flat_map(|grant| grant.rules.iter())
    }

    fn grants_of<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = &'a Grant> {
        let own = self.users.get(&user.name).into_iter();
        let shared = user.groups.iter().filter_map(|group| self.groups.get(group));
        own.chain(shared)
            .flatten()
            .filter(move |grant| grant.namespace.as_deref().is_none_or(|only| only == namespace))
    }
}

/// The rules of a cluster role: its own, and those of the roles that its `aggregationRule` selects, level by level.
fn gathered(role: &Value, all: &[Value]) -> Vec<Rule> {
    let mut rules = Rule::read_all(role);
    let mut taken: Vec<&str> = vec![text(role, &["metadata", "name"])];
    let mut open = vec![role];
    while let Some(role) = open.pop() {
        for selector in list(role, &["aggregationRule", "clusterRoleSelectors"]) {
            let selector = LabelSelector::deserialize(selector).unwrap_or_default();
            // An empty selector selects all roles, upstream too.
            let Ok(labels) = Labels::try_from(&selector) else {
                continue;
            };
            for part in all {
                let name = text(part, &["metadata", "name"]);
                if !taken.contains(&name) && labels.matches(|key| at(part, &["metadata", "labels", key])?.as_str()) {
                    taken.push(name);
                    rules.extend(Rule::read_all(part));
                    open.push(part);
                }
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resource<'a>(verb: &'a str, full: &'a str, namespace: &'a str, name: &'a str) -> Attributes<'a> {
        let (resource, subresource) = full.split_once('/').unwrap_or((full, ""));
        Attributes::Resource {
            verb,
            group: "",
            resource,
            subresource,
            namespace,
            name,
            fields: None,
        }
    }

    fn rule(rule: Value) -> Rule {
        Rule::read(&rule)
    }

    #[test]
    fn a_rule_allows_what_it_names_and_nothing_else() {
        let reader = json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/scale"]});
        let one = json!({"verbs": ["*"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]});
        let paths = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/metrics/*"]});
        for (role, asked, expected) in [
            (&reader, resource("get", "pods", "x", "web"), true),
            (&reader, resource("delete", "pods", "x", "web"), false),
            (&reader, resource("get", "pods/log", "x", "web"), false),
            (&reader, resource("get", "widgets/scale", "x", "web"), true),
            (&one, resource("get", "secrets", "x", "a"), true),
            (&one, resource("get", "secrets", "x", "b"), false),
            (&one, resource("create", "secrets", "x", ""), false),
            (&one, resource("list", "secrets", "x", "a"), true),
            (
                &paths,
                Attributes::Path {
                    verb: "get",
                    path: "/metrics/cadvisor",
                },
                true,
            ),
            (
                &paths,
                Attributes::Path {
                    verb: "get",
                    path: "/healthz/ping",
                },
                false,
            ),
            (
                &paths,
                Attributes::Path {
                    verb: "post",
                    path: "/healthz",
                },
                false,
            ),
        ] {
            assert_eq!(rule(role.clone()).allows(&asked), expected, "{role} {asked:?}");
        }
    }

    #[test]
    fn bindings_reach_users_groups_and_service_accounts_in_their_scope() {
        let role = |name: &str, verbs: Value| json!({"metadata": {"name": name, "namespace": "x"}, "rules": [{"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}]});
        let sources = Sources {
            cluster_roles: vec![role("reader", json!(["get"]))],
            roles: vec![role("writer", json!(["update"]))],
            cluster_bindings: vec![
                json!({"roleRef": {"kind": "ClusterRole", "name": "reader"}, "subjects": [{"kind": "Group", "name": "g"}]}),
            ],
            bindings: vec![
                json!({"metadata": {"namespace": "x"}, "roleRef": {"kind": "Role", "name": "writer"}, "subjects": [{"kind": "ServiceAccount", "name": "s"}]}),
                json!({"metadata": {"namespace": "x"}, "roleRef": {"kind": "ClusterRole", "name": "missing"}, "subjects": [{"kind": "User", "name": "u"}]}),
            ],
        };
        let grants = Grants::compile(&sources);
        let member = User::new("u", &["g"]);
        let account = User::new("system:serviceaccount:x:s", &[]);
        assert!(grants.allow(&member, &resource("get", "pods", "y", "p")));
        assert!(!grants.allow(&member, &resource("update", "pods", "x", "p")));
        assert!(grants.allow(&account, &resource("update", "pods", "x", "p")));
        assert!(!grants.allow(&account, &resource("update", "pods", "y", "p")));
        assert!(!grants.allow(&account, &resource("update", "pods", "", "p")));
    }

    #[test]
    fn a_role_gathers_the_rules_of_those_it_selects_and_what_they_gather() {
        let selects = |label: &str| json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        let part = |name: &str, label: &str, verb: &str| {
            json!({
                "metadata": {"name": name, "labels": {label: "true"}},
                "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}],
            })
        };
        let mut middle = part("middle", "to-top", "update");
        middle["aggregationRule"] = selects("to-middle");
        // A circle ends.
        let mut low = part("low", "to-middle", "get");
        low["aggregationRule"] = selects("to-top");
        let top = json!({"metadata": {"name": "top"}, "aggregationRule": selects("to-top")});
        let grants = Grants::compile(&Sources {
            cluster_roles: vec![top, middle, low, part("apart", "other", "delete")],
            cluster_bindings: vec![
                json!({"roleRef": {"kind": "ClusterRole", "name": "top"}, "subjects": [{"kind": "User", "name": "u"}]}),
            ],
            ..Sources::default()
        });
        let user = User::new("u", &[]);
        for (verb, expected) in [("update", true), ("get", true), ("delete", false)] {
            assert_eq!(
                grants.allow(&user, &resource(verb, "pods", "x", "p")),
                expected,
                "{verb}"
            );
        }
    }

    #[test]
    fn holding_all_atoms_of_a_rule_is_holding_it() {
        let wide = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        let named = rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}));
        let all = rule(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]}));
        let star = rule(json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}));
        assert!(all.atoms().iter().all(|atom| wide.contains(atom)));
        assert!(named.atoms().iter().all(|atom| all.contains(atom)));
        assert!(
            !rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}))
                .atoms()
                .iter()
                .all(|atom| named.contains(atom))
        );
        assert!(
            !star.atoms().iter().all(|atom| all.contains(atom)),
            "`*` is more than any list of verbs"
        );
    }

    #[test]
    fn refusals_read_as_clients_expect() {
        let user = User::new("jane", &[]);
        let status = resource("get", "pods/log", "default", "web").refusal(&user);
        assert_eq!(
            status.message,
            "pods \"web\" is forbidden: User \"jane\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"default\""
        );
        let path = Attributes::Path {
            verb: "get",
            path: "/metrics",
        };
        assert_eq!(
            path.refusal(&user).message,
            "forbidden: User \"jane\" cannot get path \"/metrics\""
        );
    }
}
