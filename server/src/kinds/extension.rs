//! What extends the API: webhook configurations, aggregated services, custom resource definitions.
//!
//! Source: Kubernetes v1.36 `pkg/apis/admissionregistration/v1/defaults.go`, kube-aggregator `pkg/apis/apiregistration`,
//! apiextensions-apiserver `pkg/apis/apiextensions/v1/defaults.go`. None of them is acted upon here.

use agent::wire::object::{self, at, list, text};
use serde_json::{Value, json};

use super::fault::Faults;
use super::fill::{absent, below, blank, each, object as ensure};
use crate::registry::resource::{FieldError, Rules};

/// Rules of webhook configurations.
#[derive(Debug)]
pub(super) struct Webhooks {
    /// They may change the object, and be called again after others did.
    pub(super) mutating: bool,
}
/// Rules of aggregated services.
#[derive(Debug)]
pub(super) struct ApiService;
/// Rules of custom resource definitions.
#[derive(Debug)]
pub(super) struct Definition;

impl Rules for Webhooks {
    fn default(&self, configuration: &mut Value) {
        for hook in each(configuration, &["webhooks"]) {
            blank(hook, &["failurePolicy"], "Fail");
            blank(hook, &["matchPolicy"], "Equivalent");
            ensure(hook, &["namespaceSelector"]);
            ensure(hook, &["objectSelector"]);
            absent(hook, &["timeoutSeconds"], 10);
            if self.mutating {
                blank(hook, &["reinvocationPolicy"], "Never");
            }
            if let Some(service) = below(hook, &["clientConfig", "service"]) {
                absent(service, &["port"], 443);
            }
            for rule in each(hook, &["rules"]) {
                blank(rule, &["scope"], "*");
            }
        }
    }

    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        for (index, hook) in list(new, &["webhooks"]).iter().enumerate() {
            let field = format!("webhooks[{index}]");
            faults.required(hook, &["name"], &field);
            faults.one_of(hook, &["failurePolicy"], &field, &["Fail", "Ignore"]);
            faults.one_of(hook, &["sideEffects"], &field, &["None", "NoneOnDryRun"]);
            faults.required(hook, &["sideEffects"], &field);
            faults.within(hook, &["timeoutSeconds"], &field, 1, 30);
            if list(hook, &["admissionReviewVersions"]).is_empty() {
                let detail = "must specify one of v1, v1beta1";
                faults.push(FieldError::required(format!("{field}.admissionReviewVersions"), detail));
            }
        }
        faults.all()
    }
}

impl Rules for ApiService {
    fn default(&self, service: &mut Value) {
        if let Some(backend) = below(service, &["spec", "service"]) {
            absent(backend, &["port"], 443);
        }
    }

    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let wanted = format!("{}.{}", text(new, &["spec", "version"]), text(new, &["spec", "group"]));
        let name = text(new, &["metadata", "name"]);
        if name != wanted {
            let detail = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
            faults.push(FieldError::invalid("metadata.name", &name.into(), &detail));
        }
        faults.all()
    }
}

impl Rules for Definition {
    fn default(&self, definition: &mut Value) {
        ensure(definition, &["spec"]);
        let kind = text(definition, &["spec", "names", "kind"]).to_owned();
        if !kind.is_empty() {
            blank(definition, &["spec", "names", "singular"], &kind.to_lowercase());
            blank(definition, &["spec", "names", "listKind"], &format!("{kind}List"));
        }
        if at(definition, &["spec", "conversion"]).is_none() {
            object::set(definition, &["spec", "conversion"], json!({"strategy": "None"}));
        }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let plural = text(new, &["spec", "names", "plural"]);
        let group = text(new, &["spec", "group"]);
        let name = text(new, &["metadata", "name"]);
        if name != format!("{plural}.{group}") {
            let detail = "must be spec.names.plural+\".\"+spec.group";
            faults.push(FieldError::invalid("metadata.name", &name.into(), detail));
        }
        faults.required(new, &["spec", "group"], "");
        faults.required(new, &["spec", "names", "plural"], "");
        faults.required(new, &["spec", "names", "kind"], "");
        faults.required(new, &["spec", "scope"], "");
        faults.one_of(new, &["spec", "scope"], "", &["Cluster", "Namespaced"]);
        let versions = list(new, &["spec", "versions"]);
        let stored = versions
            .iter()
            .filter(|version| version.get("storage") == Some(&Value::Bool(true)));
        if stored.count() != 1 {
            let value = at(new, &["spec", "versions"]).cloned().unwrap_or_default();
            let detail = "must have exactly one version marked as storage version";
            faults.push(FieldError::invalid("spec.versions", &value, detail));
        }
        if let Some(old) = old {
            faults.immutable(new, old, &["spec", "scope"]);
            faults.immutable(new, old, &["spec", "group"]);
        }
        faults.all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_gets_its_defaults() {
        let mut hooks = json!({"webhooks": [{"name": "a", "clientConfig": {"service": {"name": "s"}}, "rules": [{}]}]});
        Webhooks { mutating: true }.default(&mut hooks);
        assert_eq!(
            hooks["webhooks"][0],
            json!({"name": "a", "clientConfig": {"service": {"name": "s", "port": 443}}, "rules": [{"scope": "*"}],
                "failurePolicy": "Fail", "matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {},
                "timeoutSeconds": 10, "reinvocationPolicy": "Never"})
        );
        let fields: Vec<String> = Webhooks { mutating: true }
            .check(&hooks, None)
            .into_iter()
            .map(|fault| fault.field)
            .collect();
        assert_eq!(
            fields,
            ["webhooks[0].sideEffects", "webhooks[0].admissionReviewVersions"]
        );
    }

    #[test]
    fn a_definition_is_named_after_what_it_defines() {
        let mut widget = json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"}, "versions": [{"name": "v1", "served": true, "storage": true}]}});
        Definition.default(&mut widget);
        assert_eq!(widget["spec"]["names"]["listKind"], "WidgetList");
        assert_eq!(Definition.check(&widget, None), []);
        widget["metadata"]["name"] = "other".into();
        assert_eq!(
            Definition.check(&widget, None)[0].text,
            "Invalid value: \"other\": must be spec.names.plural+\".\"+spec.group"
        );
    }
}
