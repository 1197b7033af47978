//! Roles, bindings and certificate requests: who is granted what, and for ever to whom.
//!
//! Source: Kubernetes v1.36 `pkg/apis/rbac/{v1/defaults.go,validation}`, `pkg/registry/certificates`.

use agent::wire::object::{self, at, list, text};
use serde_json::{Value, json};

use super::fault::Faults;
use super::fill::{absent, blank, copy, each};
use crate::registry::resource::{FieldError, Rules};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Rules of roles and cluster roles.
#[derive(Debug)]
pub(super) struct Role;
/// Rules of both kinds of bindings.
#[derive(Debug)]
pub(super) struct Binding {
    /// A cluster role is all it can refer to.
    pub(super) cluster: bool,
}
/// Rules of certificate requests.
#[derive(Debug)]
pub(super) struct CertificateRequest;

impl Rules for Role {
    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        for (index, rule) in list(new, &["rules"]).iter().enumerate() {
            let field = format!("rules[{index}]");
            if list(rule, &["verbs"]).is_empty() {
                faults.push(FieldError::required(
                    format!("{field}.verbs"),
                    "verbs must contain at least one value",
                ));
            }
            if !list(rule, &["nonResourceURLs"]).is_empty() {
                continue;
            }
            if list(rule, &["apiGroups"]).is_empty() {
                let detail = "resource rules must supply at least one api group";
                faults.push(FieldError::required(format!("{field}.apiGroups"), detail));
            }
            if list(rule, &["resources"]).is_empty() {
                let detail = "resource rules must supply at least one resource";
                faults.push(FieldError::required(format!("{field}.resources"), detail));
            }
        }
        faults.all()
    }
}

impl Rules for Binding {
    fn default(&self, binding: &mut Value) {
        blank(binding, &["roleRef", "apiGroup"], GROUP);
        for subject in each(binding, &["subjects"]) {
            if matches!(text(subject, &["kind"]), "User" | "Group") {
                blank(subject, &["apiGroup"], GROUP);
            }
        }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let kinds: &[&str] = if self.cluster {
            &["ClusterRole"]
        } else {
            &["ClusterRole", "Role"]
        };
        faults.required(new, &["roleRef", "kind"], "");
        faults.one_of(new, &["roleRef", "kind"], "", kinds);
        faults.one_of(new, &["roleRef", "apiGroup"], "", &[GROUP]);
        faults.required(new, &["roleRef", "name"], "");
        for (index, subject) in list(new, &["subjects"]).iter().enumerate() {
            let field = format!("subjects[{index}]");
            faults.required(subject, &["name"], &field);
            faults.required(subject, &["kind"], &field);
            faults.one_of(subject, &["kind"], &field, &["Group", "ServiceAccount", "User"]);
            let account = text(subject, &["kind"]) == "ServiceAccount";
            if self.cluster && account && text(subject, &["namespace"]).is_empty() {
                faults.push(FieldError::required(format!("{field}.namespace"), ""));
            }
        }
        if let Some(old) = old {
            faults.immutable_because(new, old, &["roleRef"], "cannot change roleRef");
        }
        faults.all()
    }
}

impl Rules for CertificateRequest {
    fn default(&self, request: &mut Value) {
        if at(request, &["spec", "usages"]).is_none() && at(request, &["spec"]).is_some() {
            absent(
                request,
                &["spec", "usages"],
                json!(["digital signature", "key encipherment"]),
            );
        }
    }

    /// What was asked for stays as it was asked.
    fn prepare(&self, request: &mut Value, old: Option<&Value>) {
        if let Some(old) = old {
            copy(request, old, &["spec"]);
        } else {
            object::remove(request, &["status"]);
        }
    }

    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        faults.required(new, &["spec", "signerName"], "");
        let signer = text(new, &["spec", "signerName"]);
        if !signer.is_empty() && !signer.contains('/') {
            let detail = "must be a fully qualified domain and path of the form \"example.com/signer-name\"";
            faults.push(FieldError::invalid("spec.signerName", &signer.into(), detail));
        }
        if text(new, &["spec", "request"]).is_empty() {
            let detail = "PEM block type must be CERTIFICATE REQUEST";
            faults.push(FieldError::invalid("spec.request", &"".into(), detail));
        }
        if let Some(seconds) = object::integer(new, &["spec", "expirationSeconds"]).filter(|seconds| *seconds < 600) {
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            faults.push(FieldError::invalid("spec.expirationSeconds", &seconds.into(), detail));
        }
        faults.all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_is_for_ever_to_one_role() {
        let rules = Binding { cluster: true };
        let mut old =
            json!({"roleRef": {"kind": "ClusterRole", "name": "a"}, "subjects": [{"kind": "User", "name": "u"}]});
        rules.default(&mut old);
        assert_eq!(old["subjects"][0]["apiGroup"], GROUP);
        assert_eq!(rules.check(&old, None), []);
        let mut new = old.clone();
        new["roleRef"]["name"] = "b".into();
        let faults = rules.check(&new, Some(&old));
        assert!(faults[0].text.ends_with(": cannot change roleRef"), "{faults:?}");
    }

    #[test]
    fn a_rule_says_which_verbs_on_what() {
        let role = json!({"rules": [{"nonResourceURLs": ["/x"], "verbs": ["get"]}, {"apiGroups": [""]}]});
        let fields: Vec<String> = Role.check(&role, None).into_iter().map(|fault| fault.field).collect();
        assert_eq!(fields, ["rules[1].verbs", "rules[1].resources"]);
    }

    #[test]
    fn a_certificate_request_does_not_change() {
        let old = json!({"spec": {"signerName": "a/b", "request": "x"}});
        let mut new = json!({"spec": {"signerName": "c/d"}});
        CertificateRequest.prepare(&mut new, Some(&old));
        assert_eq!(new, old);
    }
}
