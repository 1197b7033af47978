//! Empties a namespace that is to go, then lets it go.
//!
//! Source: Kubernetes v1.36 `pkg/controller/namespace/deletion/namespaced_resources_deleter.go`.

use std::collections::BTreeSet;
use std::time::Duration;

use agent::wire::object::{Meta, list, set};
use agent::wire::selector::Labels;
use serde_json::{Value, json};

use super::action::{Action, Plan};
use super::runner::{Controller, Source};
use super::world::{Key, World, terminating};
use crate::kinds;
use crate::request::What;

const FINALIZER: &str = "kubernetes";
/// Between two looks while content is still going: pods take their grace.
const PATIENCE: Duration = Duration::from_millis(500);

/// The controller.
#[derive(Debug)]
pub struct Namespaces;

impl Controller for Namespaces {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::own(What::NAMESPACES)]
    }

    fn plan(&self, world: &dyn World, key: &Key) -> Plan {
        let mut plan = Plan::default();
        let Some(namespace) = world.get(What::NAMESPACES, "", &key.name) else {
            return plan;
        };
        if !terminating(&Meta::of(&namespace)) || !holds(&namespace) {
            return plan;
        }
        let content = content(world, &key.name);
        if content.is_empty() {
            plan.push(finalize(namespace));
            return plan;
        }
        for (what, object) in &content {
            if !terminating(&Meta::of(object)) {
                plan.push(Action::delete_whatever(*what, object));
            }
        }
        plan.after(PATIENCE);
        plan
    }
}

fn holds(namespace: &Value) -> bool {
    list(namespace, &["spec", "finalizers"])
        .iter()
        .any(|one| one == FINALIZER)
}

/// Everything in the namespace, pods first: they end properly while their secrets and config are still there.
fn content(world: &dyn World, namespace: &str) -> Vec<(What, Value)> {
    let mut seen = BTreeSet::new();
    let mut rows: Vec<_> = kinds::table()
        .iter()
        .filter(|row| row.namespaced && row.verbs.contains(&"delete") && seen.insert(row.prefix))
        .collect();
    rows.sort_by_key(|row| row.plural != "pods");
    let of_row = |row: &crate::registry::resource::Resource| {
        let what = What {
            group: row.group,
            version: row.version,
            plural: row.plural,
        };
        world
            .list(what, Some(namespace), &Labels::everything())
            .map(move |object| (what, object))
    };
    let pods: Vec<_> = rows.iter().take(1).flat_map(|row| of_row(row)).collect();
    match pods.is_empty() {
        true => rows.iter().skip(1).flat_map(|row| of_row(row)).collect(),
        false => pods,
    }
}

fn finalize(mut namespace: Value) -> Action {
    let kept: Vec<Value> = list(&namespace, &["spec", "finalizers"])
        .iter()
        .filter(|one| **one != FINALIZER)
        .cloned()
        .collect();
    set(&mut namespace, &["spec", "finalizers"], json!(kept));
    Action::Update {
        what: What::NAMESPACES,
        subresource: Some("finalize"),
        object: namespace,
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::fake::Objects;
    use super::*;

    fn namespace(deleted: bool) -> Value {
        let mut object =
            json!({"kind": "Namespace", "metadata": {"name": "shop"}, "spec": {"finalizers": ["kubernetes"]}});
        if deleted {
            object["metadata"]["deletionTimestamp"] = json!("2026-11-25T11:00:00Z");
        }
        object
    }

    fn plan(objects: Vec<(What, Value)>) -> Plan {
        Namespaces.plan(
            &Objects::new(objects),
            &Key {
                namespace: String::new(),
                name: "shop".into(),
            },
        )
    }

    fn inside(name: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "shop"}})
    }

    #[test]
    fn a_living_namespace_is_left_alone() {
        assert!(
            plan(vec![(What::NAMESPACES, namespace(false)), (What::PODS, inside("p"))])
                .actions
                .is_empty()
        );
    }

    #[test]
    fn pods_go_before_what_they_need() {
        let all = vec![
            (What::NAMESPACES, namespace(true)),
            (What::SECRETS, inside("s")),
            (What::PODS, inside("p")),
        ];
        let plan = plan(all);
        assert!(
            matches!(plan.actions.as_slice(), [Action::Delete { what: What::PODS, .. }]),
            "{plan:?}"
        );
        assert!(plan.again.is_some());
    }

    #[test]
    fn an_empty_namespace_is_finalized() {
        let plan = plan(vec![(What::NAMESPACES, namespace(true))]);
        let [
            Action::Update {
                subresource: Some("finalize"),
                object,
                ..
            },
        ] = plan.actions.as_slice()
        else {
            panic!("{plan:?}")
        };
        assert_eq!(object["spec"]["finalizers"], json!([]));
    }
}
