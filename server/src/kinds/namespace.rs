//! Namespaces: active until asked to go, then terminating until the last of their finalizers lets go.
//!
//! Source: Kubernetes v1.36 `pkg/registry/core/namespace/strategy.go`, `pkg/apis/core/v1/defaults.go`.

use agent::wire::object::{self, list, text};
use serde_json::{Value, json};

use super::fill::copy;
use crate::registry::resource::Rules;

/// Rules of namespaces.
#[derive(Debug)]
pub(super) struct Namespace;

const NAME_LABEL: &str = "kubernetes.io/metadata.name";
const OWN: &str = "kubernetes";

impl Rules for Namespace {
    fn default(&self, namespace: &mut Value) {
        let name = text(namespace, &["metadata", "name"]).to_owned();
        if !name.is_empty() {
            object::set(namespace, &["metadata", "labels", NAME_LABEL], name);
        }
    }

    fn prepare(&self, namespace: &mut Value, old: Option<&Value>) {
        match old {
            None => {
                let mut finalizers = list(namespace, &["spec", "finalizers"]).to_vec();
                if !finalizers.iter().any(|one| one == OWN) {
                    finalizers.push(OWN.into());
                }
                object::set(namespace, &["spec", "finalizers"], finalizers);
                object::set(namespace, &["status"], json!({"phase": "Active"}));
            }
            Some(old) => copy(namespace, old, &["spec", "finalizers"]),
        }
    }

    fn deleting(&self, namespace: &mut Value) {
        object::set(namespace, &["status", "phase"], "Terminating");
    }

    fn held(&self, namespace: &Value) -> bool {
        !list(namespace, &["spec", "finalizers"]).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_born_active_labelled_and_held() {
        let mut namespace = json!({"metadata": {"name": "a"}});
        Namespace.default(&mut namespace);
        Namespace.prepare(&mut namespace, None);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
        assert!(Namespace.held(&namespace));
        Namespace.deleting(&mut namespace);
        assert_eq!(namespace["status"]["phase"], "Terminating");
    }
}
