//! Pods: how they begin, what of them may change, how they go.
//!
//! Source: Kubernetes v1.36 `pkg/registry/core/pod/strategy.go`, `pkg/apis/core/validation` (`ValidatePodUpdate`).

use agent::wire::object::{self, at, integer, list, text};
use serde_json::{Value, json};

use super::fault::Faults;
use super::fill::{below, copy, each};
use super::{pod_check, pod_spec};
use crate::registry::resource::{FieldError, Rules};

/// Rules of pods.
#[derive(Debug)]
pub(super) struct Pod;

/// The start of the text upstream refuses an update with; the difference follows there.
const FIXED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

impl Rules for Pod {
    fn default(&self, pod: &mut Value) {
        if let Some(spec) = pod.get_mut("spec") {
            pod_spec::fill(spec);
            pod_spec::fill_pod(spec);
        }
    }

    fn prepare(&self, pod: &mut Value, old: Option<&Value>) {
        if old.is_none() {
            let quality = pod_spec::quality(at(pod, &["spec"]).unwrap_or(&Value::Null));
            object::set(pod, &["status"], json!({"phase": "Pending", "qosClass": quality}));
            object::remove(pod, &["spec", "ephemeralContainers"]);
            if !list(pod, &["spec", "schedulingGates"]).is_empty() {
                let gated = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates"}]);
                object::set(pod, &["status", "conditions"], gated);
            }
        }
    }

    fn check(&self, pod: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        pod_check::spec(pod, "spec", &mut faults);
        if let Some(old) = old {
            check_change(pod, old, &mut faults);
        }
        faults.all()
    }

    fn grace(&self, pod: &Value, asked: Option<i64>) -> i64 {
        let nowhere = text(pod, &["spec", "nodeName"]).is_empty();
        if nowhere || matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed") {
            return 0;
        }
        let own = || integer(pod, &["spec", "terminationGracePeriodSeconds"]);
        match asked.or_else(own).unwrap_or(0) {
            negative if negative < 0 => 1,
            seconds => seconds,
        }
    }
}

/// What may change is made equal; whatever then still differs may not.
fn check_change(new: &Value, old: &Value, faults: &mut Faults) {
    if list(new, &["spec", "containers"]).len() != list(old, &["spec", "containers"]).len() {
        let detail = "pod updates may not add or remove containers";
        faults.push(FieldError::forbidden("spec.containers", detail));
        return;
    }
    let mut leveled = new.clone();
    for containers in ["containers", "initContainers"] {
        let before = list(old, &["spec", containers]);
        for (container, before) in each(&mut leveled, &["spec", containers]).zip(before) {
            copy(container, before, &["image"]);
        }
    }
    deadline(new, old, faults);
    tolerations(new, old, faults);
    gates(new, old, faults);
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        copy(&mut leveled, old, &["spec", field]);
    }
    if integer(old, &["spec", "terminationGracePeriodSeconds"]).is_some_and(|seconds| seconds < 0)
        && integer(new, &["spec", "terminationGracePeriodSeconds"]) == Some(1)
    {
        copy(&mut leveled, old, &["spec", "terminationGracePeriodSeconds"]);
    }
    // A gated pod's placement is still open; upstream lets it be narrowed.
    if !list(old, &["spec", "schedulingGates"]).is_empty() {
        for field in ["nodeSelector", "affinity"] {
            copy(&mut leveled, old, &["spec", field]);
        }
    }
    let changed = below(&mut leveled, &["spec"]).map(std::mem::take);
    if changed.as_ref() != at(old, &["spec"]) {
        let fields = difference(changed.as_ref(), at(old, &["spec"]));
        faults.push(FieldError::forbidden("spec", &format!("{FIXED}\n{fields}")));
    }
}

/// The names of the fields that differ, for the person who reads the refusal.
fn difference(new: Option<&Value>, old: Option<&Value>) -> String {
    let empty = serde_json::Map::new();
    let map = |value: Option<&Value>| {
        value
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_else(|| empty.clone())
    };
    let (new, old) = (map(new), map(old));
    let mut fields: Vec<&str> = new.keys().chain(old.keys()).map(String::as_str).collect();
    fields.retain(|field| new.get(*field) != old.get(*field));
    fields.sort_unstable();
    fields.dedup();
    fields.join(", ")
}

fn deadline(new: &Value, old: &Value, faults: &mut Faults) {
    const PATH: &[&str] = &["spec", "activeDeadlineSeconds"];
    let Some(before) = integer(old, PATH) else { return };
    match integer(new, PATH) {
        Some(after) if after <= before => {}
        Some(after) => {
            let detail = "must be less than or equal to previous value";
            faults.push(FieldError::invalid("spec.activeDeadlineSeconds", &after.into(), detail));
        }
        None => {
            let detail = "must not update from a positive integer to nil value";
            faults.push(FieldError::invalid("spec.activeDeadlineSeconds", &Value::Null, detail));
        }
    }
}

fn tolerations(new: &Value, old: &Value, faults: &mut Faults) {
    let after = list(new, &["spec", "tolerations"]);
    // The time of one may change, the rest of it may not.
    let core = |toleration: &Value| {
        let mut toleration = toleration.clone();
        object::remove(&mut toleration, &["tolerationSeconds"]);
        toleration
    };
    let kept = |before: &Value| after.iter().any(|one| core(one) == core(before));
    if !list(old, &["spec", "tolerations"]).iter().all(kept) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        faults.push(FieldError::forbidden("spec.tolerations", detail));
    }
}

fn gates(new: &Value, old: &Value, faults: &mut Faults) {
    let before = list(old, &["spec", "schedulingGates"]);
    for gate in list(new, &["spec", "schedulingGates"]) {
        if !before.contains(gate) {
            let detail = format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                text(gate, &["name"])
            );
            faults.push(FieldError::forbidden("spec.schedulingGates", &detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "a"}, "spec": spec});
        Pod.default(&mut pod);
        pod
    }

    #[test]
    fn a_new_pod_is_pending_whatever_it_says() {
        let mut new = pod(json!({"containers": [{"name": "a", "image": "b"}]}));
        new["status"] = json!({"phase": "Running", "podIP": "1.2.3.4"});
        Pod.prepare(&mut new, None);
        assert_eq!(new["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    }

    #[test]
    fn little_of_a_pod_may_change() {
        let old = pod(
            json!({"containers": [{"name": "a", "image": "b"}], "activeDeadlineSeconds": 10,
            "tolerations": [{"key": "k", "operator": "Exists"}]}),
        );
        let faults = |change: &dyn Fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new);
            let faults = Pod.check(&new, Some(&old));
            faults
                .into_iter()
                .map(|fault| format!("{}: {}", fault.field, fault.text))
                .collect::<Vec<_>>()
                .join("; ")
        };
        assert_eq!(faults(&|pod| pod["spec"]["containers"][0]["image"] = "c".into()), "");
        assert_eq!(faults(&|pod| pod["spec"]["activeDeadlineSeconds"] = 5.into()), "");
        assert_eq!(
            faults(&|pod| pod["spec"]["activeDeadlineSeconds"] = 50.into()),
            "spec.activeDeadlineSeconds: Invalid value: 50: must be less than or equal to previous value"
        );
        assert_eq!(
            faults(&|pod| pod["spec"]["tolerations"]
                .as_array_mut()
                .unwrap()
                .push(json!({"key": "x", "operator": "Exists"}))),
            ""
        );
        assert_eq!(
            faults(&|pod| pod["spec"]["tolerations"] = json!([])),
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
        );
        let refusal = faults(&|pod| pod["spec"]["nodeName"] = "n".into());
        assert!(
            refusal.starts_with(
                "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"
            )
        );
        assert!(refusal.ends_with("\nnodeName"), "{refusal}");
        assert_eq!(
            faults(&|pod| pod["spec"]["containers"]
                .as_array_mut()
                .unwrap()
                .push(json!({"name": "x", "image": "y", "imagePullPolicy": "Always",
                "terminationMessagePolicy": "File"}))),
            "spec.containers: Forbidden: pod updates may not add or remove containers"
        );
    }

    #[test]
    fn grace_is_for_pods_that_run_somewhere() {
        for (pod, asked, seconds) in [
            (json!({"spec": {"terminationGracePeriodSeconds": 30}}), None, 0),
            (
                json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}}),
                None,
                30,
            ),
            (
                json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}}),
                Some(5),
                5,
            ),
            (json!({"spec": {"nodeName": "n"}}), Some(-5), 1),
            (
                json!({"spec": {"nodeName": "n"}, "status": {"phase": "Succeeded"}}),
                Some(5),
                0,
            ),
        ] {
            assert_eq!(Pod.grace(&pod, asked), seconds, "{pod} {asked:?}");
        }
    }
}
