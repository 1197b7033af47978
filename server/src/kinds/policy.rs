//! Priority classes, runtime classes, disruption budgets, limits and autoscalers.
//!
//! Source: Kubernetes v1.36 `pkg/apis/{scheduling,node,policy,autoscaling}` defaults and validation,
//! `pkg/apis/core/v1/defaults.go` (`SetDefaults_LimitRangeItem`).

use agent::wire::object::{self, at, list, text};
use serde_json::{Map, Value, json};

use super::fault::Faults;
use super::fill::{absent, blank, each, object as ensure};
use crate::registry::resource::{FieldError, Rules};

const USER_MOST: i64 = 1_000_000_000;
const SYSTEM: &str = "system-";
const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];

/// Rules of priority classes.
#[derive(Debug)]
pub(super) struct PriorityClass;
/// Rules of runtime classes.
#[derive(Debug)]
pub(super) struct RuntimeClass;
/// Rules of disruption budgets.
#[derive(Debug)]
pub(super) struct Budget;
/// Rules of limit ranges.
#[derive(Debug)]
pub(super) struct Limits;
/// Rules of autoscalers.
#[derive(Debug)]
pub(super) struct Autoscaler;

impl Rules for PriorityClass {
    fn default(&self, class: &mut Value) {
        blank(class, &["preemptionPolicy"], "PreemptLowerPriority");
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let name = text(new, &["metadata", "name"]);
        let value = object::integer(new, &["value"]).unwrap_or(0);
        if name.starts_with(SYSTEM) {
            if !SYSTEM_CLASSES.contains(&(name, value)) {
                let detail = "priority class names with 'system-' prefix are reserved for system use only. error: unknown system priority class";
                faults.push(FieldError::forbidden("metadata.name", detail));
            }
        } else if value > USER_MOST {
            let detail = format!("maximum allowed value of a user defined priority is {USER_MOST}");
            faults.push(FieldError::forbidden("value", &detail));
        }
        faults.one_of(new, &["preemptionPolicy"], "", &["Never", "PreemptLowerPriority"]);
        if let Some(old) = old {
            if new.get("value") != old.get("value") {
                faults.push(FieldError::forbidden("value", "may not be changed in an update."));
            }
            faults.immutable(new, old, &["preemptionPolicy"]);
        }
        faults.all()
    }
}

impl Rules for RuntimeClass {
    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let handler = text(new, &["handler"]);
        if handler.is_empty() {
            faults.push(FieldError::required("handler", ""));
        } else {
            faults.label_name("handler".to_owned(), handler);
        }
        if let Some(old) = old {
            faults.immutable(new, old, &["handler"]);
        }
        faults.all()
    }
}

impl Rules for Budget {
    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let (least, most) = (at(new, &["spec", "minAvailable"]), at(new, &["spec", "maxUnavailable"]));
        if least.is_some() && most.is_some() {
            let spec = at(new, &["spec"]).cloned().unwrap_or_default();
            let detail = "minAvailable and maxUnavailable cannot be both set";
            faults.push(FieldError::invalid("spec", &spec, detail));
        }
        for key in ["minAvailable", "maxUnavailable"] {
            faults.not_negative(new, &["spec", key], "");
        }
        faults.selector(new, &["spec", "selector"], "", true);
        let policies = ["AlwaysAllow", "IfHealthyBudget"];
        faults.one_of(new, &["spec", "unhealthyPodEvictionPolicy"], "", &policies);
        faults.all()
    }
}

impl Rules for Limits {
    fn default(&self, object: &mut Value) {
        for limit in each(object, &["spec", "limits"]) {
            if text(limit, &["type"]) != "Container" {
                continue;
            }
            for (from, to) in [
                ("max", "default"),
                ("default", "defaultRequest"),
                ("min", "defaultRequest"),
            ] {
                for (resource, amount) in amounts(limit, from) {
                    absent(limit, &[to, &resource], amount);
                }
            }
        }
    }
}

fn amounts(limit: &Value, key: &str) -> Map<String, Value> {
    at(limit, &[key])
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default()
}

impl Rules for Autoscaler {
    fn default(&self, object: &mut Value) {
        ensure(object, &["spec"]);
        absent(object, &["spec", "minReplicas"], 1);
        if list(object, &["spec", "metrics"]).is_empty() {
            let cpu = json!([{"type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
            object::set(object, &["spec", "metrics"], cpu);
        }
    }

    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let number = |key: &str| object::integer(new, &["spec", key]).unwrap_or(0);
        let (least, most) = (number("minReplicas"), number("maxReplicas"));
        if least < 1 {
            let detail = "must be greater than or equal to 1";
            faults.push(FieldError::invalid("spec.minReplicas", &least.into(), detail));
        }
        if most < 1 {
            faults.push(FieldError::invalid(
                "spec.maxReplicas",
                &most.into(),
                "must be greater than 0",
            ));
        } else if most < least {
            let detail = "must be greater than or equal to `minReplicas`";
            faults.push(FieldError::invalid("spec.maxReplicas", &most.into(), detail));
        }
        for key in ["kind", "name"] {
            faults.required(new, &["spec", "scaleTargetRef", key], "");
        }
        faults.all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_is_for_ever_and_the_highest_are_the_systems() {
        for (name, value, fine) in [
            ("mine", 1000, true),
            ("mine", USER_MOST + 1, false),
            ("system-mine", 5, false),
            ("system-node-critical", 2_000_001_000, true),
        ] {
            let class = json!({"metadata": {"name": name}, "value": value});
            assert_eq!(PriorityClass.check(&class, None).is_empty(), fine, "{class}");
        }
        let old = json!({"metadata": {"name": "a"}, "value": 1});
        let new = json!({"metadata": {"name": "a"}, "value": 2});
        assert_eq!(
            PriorityClass.check(&new, Some(&old))[0].text,
            "Forbidden: may not be changed in an update."
        );
    }

    #[test]
    fn limits_fill_each_other() {
        let mut range =
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}}]}});
        Limits.default(&mut range);
        assert_eq!(
            range["spec"]["limits"][0],
            json!({"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}, "default": {"cpu": "1"},
                "defaultRequest": {"cpu": "1", "memory": "1Mi"}})
        );
    }
}
