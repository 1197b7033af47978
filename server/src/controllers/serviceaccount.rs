//! Gives every namespace what its pods need to talk to the API: the ServiceAccount `default` and the cluster's CA.
//!
//! Source: Kubernetes v1.36 `pkg/controller/serviceaccount/serviceaccounts_controller.go`,
//! `pkg/controller/certificates/rootcacertpublisher/publisher.go`.

use agent::wire::object::Meta;
use serde_json::json;

use super::action::{Action, Plan, Taken};
use super::runner::{Controller, Source};
use super::world::{Key, World, terminating};
use crate::cache::Item;
use crate::request::What;

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";

/// The controller.
#[derive(Debug)]
pub struct ServiceAccounts {
    /// PEM of the CA that signs the API's serving certificate.
    pub root_ca: String,
}

impl Controller for ServiceAccounts {
    fn name(&self) -> &'static str {
        "service-account-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::own(What::NAMESPACES),
            Source::of(What::SERVICE_ACCOUNTS, |_, _, item| namespace_if_named(item, ACCOUNT)),
            Source::of(What::CONFIG_MAPS, |_, _, item| namespace_if_named(item, ROOT_CA)),
        ]
    }

    fn plan(&self, world: &dyn World, key: &Key) -> Plan {
        let mut plan = Plan::default();
        let alive = world
            .get(What::NAMESPACES, "", &key.name)
            .is_some_and(|one| !terminating(&Meta::of(&one)));
        if !alive {
            return plan;
        }
        if world.get(What::SERVICE_ACCOUNTS, &key.name, ACCOUNT).is_none() {
            let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": key.name}});
            plan.push(Action::Create {
                what: What::SERVICE_ACCOUNTS,
                object,
                taken: Taken::Done,
                told: None,
            });
        }
        let data = json!({"ca.crt": self.root_ca});
        match world.get(What::CONFIG_MAPS, &key.name, ROOT_CA) {
            None => plan.push(Action::Create {
                what: What::CONFIG_MAPS,
                object: json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {
                        "name": ROOT_CA, "namespace": key.name,
                        "annotations": {"kubernetes.io/description": DESCRIPTION},
                    },
                    "data": data,
                }),
                taken: Taken::Done,
                told: None,
            }),
            Some(mut present) if present.get("data") != Some(&data) => {
                agent::wire::object::set(&mut present, &["data"], data);
                plan.push(Action::Update {
                    what: What::CONFIG_MAPS,
                    subresource: None,
                    object: present,
                });
            }
            Some(_) => {}
        }
        plan
    }
}

/// What `kubectl describe` says about the map.
const DESCRIPTION: &str = "Holds the CA bundle that verifies this cluster's API server; kept up to date, do not edit.";

fn namespace_if_named(item: &Item, name: &str) -> Vec<Key> {
    let mut parts = item.key.rsplit('/');
    match (parts.next(), parts.next()) {
        (Some(found), Some(namespace)) if found == name => vec![Key {
            namespace: String::new(),
            name: namespace.to_owned(),
        }],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::world::fake::Objects;
    use super::*;

    fn plan(objects: Vec<(What, Value)>) -> Plan {
        let controller = ServiceAccounts { root_ca: "PEM".into() };
        controller.plan(
            &Objects::new(objects),
            &Key {
                namespace: String::new(),
                name: "shop".into(),
            },
        )
    }

    fn named(name: &str, namespace: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": namespace}})
    }

    #[test]
    fn a_new_namespace_gets_both_and_a_complete_one_nothing() {
        assert_eq!(plan(vec![(What::NAMESPACES, named("shop", ""))]).actions.len(), 2);
        let mut map = named(ROOT_CA, "shop");
        map["data"] = json!({"ca.crt": "PEM"});
        let complete = vec![
            (What::NAMESPACES, named("shop", "")),
            (What::SERVICE_ACCOUNTS, named(ACCOUNT, "shop")),
            (What::CONFIG_MAPS, map),
        ];
        assert!(plan(complete).actions.is_empty());
        assert!(plan(Vec::new()).actions.is_empty(), "a namespace that is gone");
    }

    #[test]
    fn an_edited_ca_is_put_right() {
        let mut map = named(ROOT_CA, "shop");
        map["data"] = json!({"ca.crt": "other"});
        let objects = vec![
            (What::NAMESPACES, named("shop", "")),
            (What::SERVICE_ACCOUNTS, named(ACCOUNT, "shop")),
            (What::CONFIG_MAPS, map),
        ];
        let plan = plan(objects);
        assert!(
            matches!(plan.actions.as_slice(), [Action::Update { object, .. }] if object["data"]["ca.crt"] == "PEM")
        );
    }
}
