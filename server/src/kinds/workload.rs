//! Deployment, ReplicaSet, StatefulSet, DaemonSet, ReplicationController, PodTemplate, ControllerRevision.
//!
//! Source: Kubernetes v1.36 `pkg/apis/apps/v1/defaults.go`, `pkg/apis/apps/validation/validation.go`.

use agent::wire::object::{at, integer, list, text};
use serde_json::{Value, json};

use super::fault::{Faults, same, selects};
use super::fill::{absent, blank, copy, each, object as ensure};
use super::{pod_check, pod_spec};
use crate::registry::resource::{FieldError, Rules};

const TEMPLATE: &[&str] = &["spec", "template"];
const SELECTOR: &[&str] = &["spec", "selector"];

/// Rules of deployments.
#[derive(Debug)]
pub(super) struct Deployment;
/// Rules of replica sets.
#[derive(Debug)]
pub(super) struct ReplicaSet;
/// Rules of stateful sets.
#[derive(Debug)]
pub(super) struct StatefulSet;
/// Rules of daemon sets.
#[derive(Debug)]
pub(super) struct DaemonSet;
/// Rules of replication controllers.
#[derive(Debug)]
pub(super) struct ReplicationController;
/// Rules of bare templates.
#[derive(Debug)]
pub(super) struct PodTemplate;
/// Rules of kept revisions.
#[derive(Debug)]
pub(super) struct ControllerRevision;

impl Rules for Deployment {
    fn default(&self, object: &mut Value) {
        ensure(object, &["spec"]);
        pod_spec::fill_template(object, TEMPLATE);
        absent(object, &["spec", "replicas"], 1);
        blank(object, &["spec", "strategy", "type"], "RollingUpdate");
        if text(object, &["spec", "strategy", "type"]) == "RollingUpdate" {
            for key in ["maxUnavailable", "maxSurge"] {
                absent(object, &["spec", "strategy", "rollingUpdate", key], "25%");
            }
        }
        absent(object, &["spec", "revisionHistoryLimit"], 10);
        absent(object, &["spec", "progressDeadlineSeconds"], 600);
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        common(new, old, &mut faults);
        strategy(new, &mut faults);
        for key in [
            "replicas",
            "minReadySeconds",
            "revisionHistoryLimit",
            "progressDeadlineSeconds",
        ] {
            faults.not_negative(new, &["spec", key], "");
        }
        let ready = integer(new, &["spec", "minReadySeconds"]).unwrap_or(0);
        let deadline = integer(new, &["spec", "progressDeadlineSeconds"]);
        if let Some(deadline) = deadline.filter(|deadline| *deadline >= 0 && *deadline <= ready) {
            let detail = "must be greater than minReadySeconds";
            faults.push(FieldError::invalid(
                "spec.progressDeadlineSeconds",
                &deadline.into(),
                detail,
            ));
        }
        faults.all()
    }

    /// A deployment's annotations go into its replica sets. Source: `pkg/registry/apps/deployment/strategy.go`.
    fn changed(&self, new: &Value, old: &Value) -> bool {
        let part = |object: &Value, path: &[&str]| at(object, path).cloned();
        part(new, &["spec"]) != part(old, &["spec"])
            || !same(
                at(new, &["metadata", "annotations"]),
                at(old, &["metadata", "annotations"]),
            )
    }
}

impl Rules for ReplicaSet {
    fn default(&self, object: &mut Value) {
        ensure(object, &["spec"]);
        pod_spec::fill_template(object, TEMPLATE);
        absent(object, &["spec", "replicas"], 1);
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        common(new, old, &mut faults);
        for key in ["replicas", "minReadySeconds"] {
            faults.not_negative(new, &["spec", key], "");
        }
        faults.all()
    }
}

impl Rules for StatefulSet {
    fn default(&self, object: &mut Value) {
        ensure(object, &["spec"]);
        pod_spec::fill_template(object, TEMPLATE);
        absent(object, &["spec", "replicas"], 1);
        blank(object, &["spec", "podManagementPolicy"], "OrderedReady");
        blank(object, &["spec", "updateStrategy", "type"], "RollingUpdate");
        if text(object, &["spec", "updateStrategy", "type"]) == "RollingUpdate" {
            absent(object, &["spec", "updateStrategy", "rollingUpdate", "partition"], 0);
        }
        absent(object, &["spec", "revisionHistoryLimit"], 10);
        for when in ["whenDeleted", "whenScaled"] {
            blank(
                object,
                &["spec", "persistentVolumeClaimRetentionPolicy", when],
                "Retain",
            );
        }
        for claim in each(object, &["spec", "volumeClaimTemplates"]) {
            blank(claim, &["apiVersion"], "v1");
            blank(claim, &["kind"], "PersistentVolumeClaim");
            blank(claim, &["spec", "volumeMode"], "Filesystem");
            blank(claim, &["status", "phase"], "Pending");
        }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        common(new, None, &mut faults);
        for key in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
            faults.not_negative(new, &["spec", key], "");
        }
        faults.one_of(new, &["spec", "podManagementPolicy"], "", &["OrderedReady", "Parallel"]);
        faults.one_of(
            new,
            &["spec", "updateStrategy", "type"],
            "",
            &["RollingUpdate", "OnDelete"],
        );
        if let Some(old) = old {
            let mut leveled = new.clone();
            for key in MUTABLE_OF_STATEFUL_SET {
                copy(&mut leveled, old, &["spec", key]);
            }
            if at(&leveled, &["spec"]) != at(old, &["spec"]) {
                faults.push(FieldError::forbidden("spec", FIXED_OF_STATEFUL_SET));
            }
        }
        faults.all()
    }
}

const MUTABLE_OF_STATEFUL_SET: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];
const FIXED_OF_STATEFUL_SET: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

impl Rules for DaemonSet {
    fn default(&self, object: &mut Value) {
        ensure(object, &["spec"]);
        pod_spec::fill_template(object, TEMPLATE);
        blank(object, &["spec", "updateStrategy", "type"], "RollingUpdate");
        if text(object, &["spec", "updateStrategy", "type"]) == "RollingUpdate" {
            absent(
                object,
                &["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"],
                1,
            );
            absent(object, &["spec", "updateStrategy", "rollingUpdate", "maxSurge"], 0);
        }
        absent(object, &["spec", "revisionHistoryLimit"], 10);
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        common(new, old, &mut faults);
        for key in ["minReadySeconds", "revisionHistoryLimit"] {
            faults.not_negative(new, &["spec", key], "");
        }
        faults.one_of(
            new,
            &["spec", "updateStrategy", "type"],
            "",
            &["RollingUpdate", "OnDelete"],
        );
        faults.all()
    }
}

impl Rules for ReplicationController {
    fn default(&self, object: &mut Value) {
        ensure(object, &["spec"]);
        pod_spec::fill_template(object, TEMPLATE);
        absent(object, &["spec", "replicas"], 1);
        let labels = at(object, &["spec", "template", "metadata", "labels"]).cloned();
        if let Some(labels) = labels {
            absent(object, &["spec", "selector"], labels.clone());
            absent(object, &["metadata", "labels"], labels);
        }
    }

    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let selector = at(new, SELECTOR).cloned().unwrap_or_default();
        if same(Some(&selector), None) {
            faults.push(FieldError::required("spec.selector", ""));
        }
        template(new, &json!({ "matchLabels": selector }), &mut faults);
        for key in ["replicas", "minReadySeconds"] {
            faults.not_negative(new, &["spec", key], "");
        }
        faults.all()
    }
}

impl Rules for PodTemplate {
    fn default(&self, object: &mut Value) {
        pod_spec::fill_template(object, &["template"]);
    }

    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        pod_check::template(new, &["template"], &mut faults);
        faults.all()
    }
}

impl Rules for ControllerRevision {
    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        faults.not_negative(new, &["revision"], "");
        if let Some(old) = old {
            faults.immutable(new, old, &["data"]);
        }
        faults.all()
    }
}

/// Selector and template: there, agreeing, and the selector for ever the same.
fn common(new: &Value, old: Option<&Value>, faults: &mut Faults) {
    faults.selector(new, SELECTOR, "", false);
    let selector = at(new, SELECTOR).cloned().unwrap_or_default();
    template(new, &selector, faults);
    if let Some(old) = old {
        faults.immutable(new, old, SELECTOR);
    }
}

fn template(new: &Value, selector: &Value, faults: &mut Faults) {
    if at(new, TEMPLATE).is_none() {
        return faults.push(FieldError::required("spec.template", ""));
    }
    let labels = at(new, &["spec", "template", "metadata", "labels"]);
    if !same(Some(selector), None) && !selects(selector, labels) {
        let detail = "`selector` does not match template `labels`";
        let labels = labels.cloned().unwrap_or_default();
        faults.push(FieldError::invalid("spec.template.metadata.labels", &labels, detail));
    }
    let claims = list(new, &["spec", "volumeClaimTemplates"]).iter();
    let claims: Vec<&str> = claims.map(|claim| text(claim, &["metadata", "name"])).collect();
    pod_check::template_with(new, TEMPLATE, &claims, faults);
    let policy = text(new, &["spec", "template", "spec", "restartPolicy"]);
    if !matches!(policy, "" | "Always") {
        let supported = std::collections::BTreeSet::from(["Always"]);
        let field = "spec.template.spec.restartPolicy";
        faults.push(FieldError::not_supported(field, &policy.into(), &supported));
    }
    if at(new, &["spec", "template", "spec", "activeDeadlineSeconds"]).is_some() {
        let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
        faults.push(FieldError::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            detail,
        ));
    }
}

fn strategy(new: &Value, faults: &mut Faults) {
    let root = "spec.strategy";
    let Some(strategy) = at(new, &["spec", "strategy"]) else {
        return;
    };
    faults.one_of(strategy, &["type"], root, &["Recreate", "RollingUpdate"]);
    let rolling = at(strategy, &["rollingUpdate"]);
    if text(strategy, &["type"]) == "Recreate" && rolling.is_some() {
        let detail = "may not be specified when strategy `type` is 'Recreate'";
        return faults.push(FieldError::forbidden("spec.strategy.rollingUpdate", detail));
    }
    let Some(rolling) = rolling else { return };
    let zero = |key: &str| match rolling.get(key) {
        Some(Value::Number(number)) => number.as_i64() == Some(0),
        Some(Value::String(text)) => text.trim_end_matches('%').parse() == Ok(0),
        _ => true,
    };
    for key in ["maxUnavailable", "maxSurge"] {
        let value = rolling.get(key).cloned().unwrap_or_default();
        let percent = value.as_str().is_none_or(|text| {
            let number = text.strip_suffix('%').and_then(|number| number.parse::<u32>().ok());
            number.is_some_and(|number| key == "maxSurge" || number <= 100)
        });
        let field = format!("{root}.rollingUpdate.{key}");
        if !percent {
            let detail = "must be an integer or percentage (e.g '5%')";
            faults.push(FieldError::invalid(field, &value, detail));
        } else if value.as_i64().is_some_and(|number| number < 0) {
            faults.push(FieldError::invalid(field, &value, "must be greater than or equal to 0"));
        }
    }
    if zero("maxUnavailable") && zero("maxSurge") {
        let detail = "may not be 0 when `maxSurge` is 0";
        let value = rolling.get("maxUnavailable").cloned().unwrap_or_default();
        faults.push(FieldError::invalid(
            "spec.strategy.rollingUpdate.maxUnavailable",
            &value,
            detail,
        ));
    }
}

#[cfg(test)]
mod tests {
    use agent::wire::object::{self, list};

    use super::*;

    fn deployment(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "web"}, "spec": spec});
        Deployment.default(&mut object);
        object
    }

    fn web() -> Value {
        deployment(json!({"selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "b"}]}}}))
    }

    fn texts(faults: &[FieldError]) -> Vec<String> {
        faults
            .iter()
            .map(|fault| format!("{}: {}", fault.field, fault.text))
            .collect()
    }

    #[test]
    fn a_deployment_gets_its_defaults() {
        let web = web();
        assert_eq!(Deployment.check(&web, None), []);
        assert_eq!(
            web["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(
            (&web["spec"]["replicas"], &web["spec"]["revisionHistoryLimit"]),
            (&json!(1), &json!(10))
        );
        assert_eq!(web["spec"]["template"]["spec"]["restartPolicy"], "Always");
        assert!(web["spec"]["template"]["spec"].get("enableServiceLinks").is_none());
    }

    #[test]
    fn a_deployment_and_its_template_must_agree() {
        assert_eq!(
            texts(&Deployment.check(&deployment(json!({})), None)),
            ["spec.selector: Required value", "spec.template: Required value"]
        );
        let mut other = web();
        other["spec"]["template"]["metadata"]["labels"]["app"] = "db".into();
        other["spec"]["replicas"] = (-1).into();
        other["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
        assert_eq!(
            texts(&Deployment.check(&other, None)),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"db\"}: `selector` does not match template `labels`",
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }

    #[test]
    fn a_selector_is_for_ever() {
        let (old, mut new) = (web(), web());
        new["spec"]["selector"]["matchLabels"]["tier"] = "x".into();
        new["spec"]["template"]["metadata"]["labels"]["tier"] = "x".into();
        assert_eq!(
            texts(&Deployment.check(&new, Some(&old))),
            ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"web\",\"tier\":\"x\"}}: field is immutable"]
        );
    }

    #[test]
    fn strategies_are_checked() {
        for (strategy, fault) in [
            (json!({"type": "Recreate"}), ""),
            (
                json!({"type": "Recreate", "rollingUpdate": {}}),
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
            (
                json!({"type": "Sideways"}),
                "spec.strategy.type: Unsupported value: \"Sideways\": supported values: \"Recreate\", \"RollingUpdate\"",
            ),
            (
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
            ),
            (
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "x"}}),
                "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"x\": must be an integer or percentage (e.g '5%')",
            ),
        ] {
            let mut web = web();
            web["spec"]["strategy"] = strategy;
            Deployment.default(&mut web);
            assert_eq!(
                texts(&Deployment.check(&web, None)).first().map_or("", String::as_str),
                fault
            );
        }
    }

    #[test]
    fn annotations_of_a_deployment_are_part_of_what_is_wanted() {
        let (old, mut new) = (web(), web());
        assert!(!Deployment.changed(&new, &old));
        new["metadata"]["annotations"] = json!({"a": "b"});
        assert!(Deployment.changed(&new, &old));
    }

    #[test]
    fn a_stateful_sets_claims_are_volumes_of_its_pods() {
        let mut set = web();
        object::remove(&mut set, &["spec", "strategy"]);
        set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/data"}]);
        StatefulSet.default(&mut set);
        assert_eq!(
            texts(&StatefulSet.check(&set, None)).len(),
            1,
            "there is no such volume"
        );
        set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {}}]);
        assert_eq!(texts(&StatefulSet.check(&set, None)), Vec::<String>::new());
    }

    #[test]
    fn little_of_a_stateful_set_may_change() {
        let mut old = web();
        object::remove(&mut old, &["spec", "strategy"]);
        old["spec"]["serviceName"] = "web".into();
        StatefulSet.default(&mut old);
        let mut new = old.clone();
        new["spec"]["replicas"] = 5.into();
        assert_eq!(texts(&StatefulSet.check(&new, Some(&old))), Vec::<String>::new());
        new["spec"]["serviceName"] = "other".into();
        let faults = texts(&StatefulSet.check(&new, Some(&old)));
        assert!(faults[0].starts_with("spec: Forbidden: updates to statefulset spec for fields other than 'replicas'"));
        assert_eq!(list(&new, &["spec", "volumeClaimTemplates"]).len(), 0);
    }
}
