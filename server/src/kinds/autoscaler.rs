//! HorizontalPodAutoscalers of `autoscaling/v1`, which are stored as those of `v2`; their rules are in `policy.rs`.
//!
//! The older form has a field for the one metric it knows, the use of CPU; all else that the newer form says is in its
//! annotations, as JSON in the words of the older form. Source: Kubernetes v1.36 `pkg/apis/autoscaling/v1/conversion.go`
//! and `pkg/apis/autoscaling/annotations.go`.

use agent::wire::object::{at, integer, list, remove, set, text};
use serde_json::{Map, Value, json};

use crate::registry::resource::View;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const ANNOTATIONS: [&str; 4] = [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR];

const WANTED: &[&str] = &["resource", "target", "averageUtilization"];
const FOUND: &[&str] = &["resource", "current", "averageUtilization"];

/// Where one kind of metric has its parts: in the older form, and in the newer one.
type Parts = &'static [(&'static str, &'static [&'static str])];

/// What is wanted of each kind of metric.
const WANTED_PARTS: &[(&str, Parts)] = &[
    (
        "resource",
        &[
            ("name", &["name"]),
            ("targetAverageUtilization", &["target", "averageUtilization"]),
            ("targetAverageValue", &["target", "averageValue"]),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", &["name"]),
            ("container", &["container"]),
            ("targetAverageUtilization", &["target", "averageUtilization"]),
            ("targetAverageValue", &["target", "averageValue"]),
        ],
    ),
    (
        "pods",
        &[
            ("metricName", &["metric", "name"]),
            ("selector", &["metric", "selector"]),
            ("targetAverageValue", &["target", "averageValue"]),
        ],
    ),
    (
        "object",
        &[
            ("target", &["describedObject"]),
            ("metricName", &["metric", "name"]),
            ("selector", &["metric", "selector"]),
            ("targetValue", &["target", "value"]),
            ("averageValue", &["target", "averageValue"]),
        ],
    ),
    (
        "external",
        &[
            ("metricName", &["metric", "name"]),
            ("metricSelector", &["metric", "selector"]),
            ("targetValue", &["target", "value"]),
            ("targetAverageValue", &["target", "averageValue"]),
        ],
    ),
];

/// What is found of each kind of metric.
const FOUND_PARTS: &[(&str, Parts)] = &[
    (
        "resource",
        &[
            ("name", &["name"]),
            ("currentAverageUtilization", &["current", "averageUtilization"]),
            ("currentAverageValue", &["current", "averageValue"]),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", &["name"]),
            ("container", &["container"]),
            ("currentAverageUtilization", &["current", "averageUtilization"]),
            ("currentAverageValue", &["current", "averageValue"]),
        ],
    ),
    (
        "pods",
        &[
            ("metricName", &["metric", "name"]),
            ("selector", &["metric", "selector"]),
            ("currentAverageValue", &["current", "averageValue"]),
        ],
    ),
    (
        "object",
        &[
            ("target", &["describedObject"]),
            ("metricName", &["metric", "name"]),
            ("selector", &["metric", "selector"]),
            ("currentValue", &["current", "value"]),
            ("averageValue", &["current", "averageValue"]),
        ],
    ),
    (
        "external",
        &[
            ("metricName", &["metric", "name"]),
            ("metricSelector", &["metric", "selector"]),
            ("currentValue", &["current", "value"]),
            ("currentAverageValue", &["current", "averageValue"]),
        ],
    ),
];

/// `autoscaling/v1`.
pub(super) static VIEW: View = View {
    of: ("autoscaling", "v2", "horizontalpodautoscalers"),
    selectors: &[],
    notes: &ANNOTATIONS,
    store,
    show,
    check: |_, _| Vec::new(),
};

/// What cannot be read in an annotation goes with it.
fn store(object: &mut Value) {
    let mut metrics: Vec<Value> = list(&noted(object, METRICS), &[])
        .iter()
        .map(|metric| newer(metric, WANTED_PARTS, target_type))
        .collect();
    if let Some(percent) = remove(object, &["spec", "targetCPUUtilizationPercentage"]) {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    put(object, &["spec", "metrics"], metrics);
    let mut current: Vec<Value> = list(&noted(object, CURRENT_METRICS), &[])
        .iter()
        .map(|metric| newer(metric, FOUND_PARTS, |_, _| None))
        .collect();
    if let Some(percent) = remove(object, &["status", "currentCPUUtilizationPercentage"])
        && current.is_empty()
    {
        let found = json!({"averageUtilization": percent});
        current.push(json!({"type": "Resource", "resource": {"name": "cpu", "current": found}}));
    }
    put(object, &["status", "currentMetrics"], current);
    let conditions = list(&noted(object, CONDITIONS), &[]).to_vec();
    put(object, &["status", "conditions"], conditions);
    let behavior = noted(object, BEHAVIOR);
    if behavior.as_object().is_some_and(|members| !members.is_empty()) {
        set(object, &["spec", "behavior"], spelt(behavior, lower));
    }
    forget(object);
}

fn show(object: &mut Value) {
    forget(object);
    let metrics = list(object, &["spec", "metrics"]).to_vec();
    remove(object, &["spec", "metrics"]);
    let of_cpu = |metric: &&Value| is_cpu(metric, WANTED);
    if let Some(percent) = metrics.iter().find(of_cpu).and_then(|metric| integer(metric, WANTED)) {
        set(object, &["spec", "targetCPUUtilizationPercentage"], percent);
    }
    let others = metrics.iter().filter(|metric| !of_cpu(metric));
    note_all(
        object,
        METRICS,
        others.map(|metric| older(metric, WANTED_PARTS)).collect(),
    );
    let current = list(object, &["status", "currentMetrics"]).to_vec();
    remove(object, &["status", "currentMetrics"]);
    let last = current.iter().rfind(|metric| is_cpu(metric, FOUND));
    if let Some(percent) = last.and_then(|metric| integer(metric, FOUND)) {
        set(object, &["status", "currentCPUUtilizationPercentage"], percent);
    }
    note_all(
        object,
        CURRENT_METRICS,
        current.iter().map(|one| older(one, FOUND_PARTS)).collect(),
    );
    let conditions = list(object, &["status", "conditions"]).to_vec();
    remove(object, &["status", "conditions"]);
    note_all(object, CONDITIONS, conditions);
    if let Some(behavior) = remove(object, &["spec", "behavior"]) {
        note(object, BEHAVIOR, &spelt(behavior, upper));
    }
}

/// A metric that is about the use of CPU, in percent of what was asked for.
fn is_cpu(metric: &Value, percent: &[&str]) -> bool {
    text(metric, &["type"]) == "Resource"
        && text(metric, &["resource", "name"]) == "cpu"
        && integer(metric, percent).is_some()
}

fn noted(object: &Value, key: &str) -> Value {
    let words = text(object, &["metadata", "annotations", key]);
    serde_json::from_str(words).unwrap_or_default()
}

fn note(object: &mut Value, key: &str, value: &Value) {
    set(object, &["metadata", "annotations", key], value.to_string());
}

fn note_all(object: &mut Value, key: &str, values: Vec<Value>) {
    if !values.is_empty() {
        note(object, key, &values.into());
    }
}

fn put(object: &mut Value, path: &[&str], values: Vec<Value>) {
    if !values.is_empty() {
        set(object, path, values);
    }
}

/// Takes the annotations off that only this conversion writes.
fn forget(object: &mut Value) {
    for key in ANNOTATIONS {
        remove(object, &["metadata", "annotations", key]);
    }
    let annotations = at(object, &["metadata", "annotations"]).and_then(Value::as_object);
    if annotations.is_some_and(Map::is_empty) {
        remove(object, &["metadata", "annotations"]);
    }
}

fn older(metric: &Value, kinds: &[(&str, Parts)]) -> Value {
    let mut out = json!({"type": text(metric, &["type"])});
    for &(kind, parts) in kinds {
        let Some(from) = metric.get(kind) else { continue };
        for &(old, new) in parts {
            if let Some(value) = at(from, new) {
                set(&mut out, &[kind, old], value.clone());
            }
        }
    }
    out
}

/// What is of another type than it should be stays that, for the check of types to see.
fn newer(metric: &Value, kinds: &[(&str, Parts)], target: fn(&str, &Value) -> Option<&'static str>) -> Value {
    if !metric.is_object() && !metric.is_null() {
        return metric.clone();
    }
    let given = |key: &str| metric.get(key).filter(|value| !value.is_null());
    let mut out = json!({"type": given("type").unwrap_or(&"".into())});
    for &(kind, parts) in kinds {
        let Some(from) = given(kind) else { continue };
        if !from.is_object() {
            set(&mut out, &[kind], from.clone());
            continue;
        }
        for &(old, new) in parts {
            if let Some(value) = from.get(old) {
                let path: Vec<&str> = std::iter::once(kind).chain(new.iter().copied()).collect();
                set(&mut out, &path, value.clone());
            }
        }
        if let Some(target) = target(kind, from) {
            set(&mut out, &[kind, "target", "type"], target);
        }
    }
    out
}

/// What the older form says by which of its fields there are.
fn target_type(kind: &str, metric: &Value) -> Option<&'static str> {
    let has = |key: &str| metric.get(key).is_some_and(|value| !value.is_null());
    let whole = (kind == "object" && !has("averageValue")) || (kind == "external" && has("targetValue"));
    Some(match kind {
        _ if whole => "Value",
        "resource" | "containerResource" if has("targetAverageUtilization") => "Utilization",
        _ => "AverageValue",
    })
}

/// The same tree under keys that begin with another letter: the behaviour is noted in the names of Go's fields.
fn spelt(value: Value, key: fn(&str) -> String) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .map(|(name, value)| (key(&name), spelt(value, key)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.into_iter().map(|item| spelt(item, key)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

fn upper(key: &str) -> String {
    let mut letters = key.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

fn lower(key: &str) -> String {
    let mut letters = key.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_older_form_has_no_field_for_is_in_its_annotations_and_comes_back() {
        let metric = json!({"name": "hits", "selector": {"matchLabels": {"a": "b"}}});
        let stored = json!({
            "metadata": {"name": "h", "annotations": {"mine": "stays"}},
            "spec": {"maxReplicas": 5, "scaleTargetRef": {"kind": "Deployment", "name": "web"},
                "metrics": [
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                    {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "a",
                        "target": {"type": "Utilization", "averageUtilization": 50}}},
                    {"type": "Pods", "pods": {"metric": metric, "target": {"type": "AverageValue", "averageValue": "1"}}},
                    {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": metric,
                        "target": {"type": "Value", "value": "2"}}},
                    {"type": "External", "external": {"metric": metric, "target": {"type": "AverageValue", "averageValue": "3"}}},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
                ],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60, "selectPolicy": "Max",
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]}}},
            "status": {"desiredReplicas": 2,
                "currentMetrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 35, "averageValue": "350m"}}},
                    {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": metric,
                        "current": {"value": "2"}}},
                ],
                "conditions": [{"type": "AbleToScale", "status": "True", "reason": "Ready"}]},
        });
        let mut shown = stored.clone();
        show(&mut shown);
        assert_eq!(
            shown["spec"],
            json!({"maxReplicas": 5, "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "targetCPUUtilizationPercentage": 70})
        );
        assert_eq!(
            shown["status"],
            json!({"desiredReplicas": 2, "currentCPUUtilizationPercentage": 35})
        );
        let noted = |key: &str| noted(&shown, key);
        assert_eq!(
            noted(METRICS)[0],
            json!({"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}})
        );
        assert_eq!(
            noted(METRICS)[3]["object"],
            json!({"target": {"kind": "Service", "name": "s"}, "metricName": "hits", "targetValue": "2",
                "selector": {"matchLabels": {"a": "b"}}})
        );
        assert_eq!(noted(CURRENT_METRICS)[0]["resource"]["currentAverageValue"], "350m");
        assert_eq!(noted(CONDITIONS)[0]["type"], "AbleToScale");
        assert_eq!(
            noted(BEHAVIOR)["ScaleDown"]["Policies"],
            json!([{"Type": "Pods", "Value": 1, "PeriodSeconds": 15}])
        );
        store(&mut shown);
        assert_eq!(shown, stored);
    }

    #[test]
    fn one_metric_needs_no_annotation() {
        let mut object = json!({"metadata": {"name": "h"}, "spec": {"targetCPUUtilizationPercentage": 70},
            "status": {"currentCPUUtilizationPercentage": 30}});
        let before = object.clone();
        store(&mut object);
        assert_eq!(
            object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
            70
        );
        assert_eq!(
            object["status"]["currentMetrics"][0]["resource"]["current"]["averageUtilization"],
            30
        );
        show(&mut object);
        remove(&mut object, &["metadata", "annotations"]);
        assert_eq!(object, before);
    }

    #[test]
    fn what_is_mistyped_in_an_annotation_stays_so() {
        for (words, metrics) in [
            ("[7]", json!([7])),
            (r#"[{"type": 7}]"#, json!([{"type": 7}])),
            (r#"[{"type": "Pods", "pods": 7}]"#, json!([{"type": "Pods", "pods": 7}])),
            (
                r#"[{"type": "Pods", "pods": null}, null]"#,
                json!([{"type": "Pods"}, {"type": ""}]),
            ),
            (
                r#"[{"type": "Pods", "pods": {"metricName": 7}}]"#,
                json!([{"type": "Pods", "pods": {"metric": {"name": 7}, "target": {"type": "AverageValue"}}}]),
            ),
        ] {
            let mut object = json!({"metadata": {"annotations": {METRICS: words}}, "spec": {}});
            store(&mut object);
            assert_eq!(object["spec"]["metrics"], metrics, "{words}");
        }
    }

    #[test]
    fn an_annotation_that_cannot_be_read_is_left_out() {
        for words in ["", "[", "{}", "7", "null", "[7]"] {
            let mut object = json!({"metadata": {"annotations": {BEHAVIOR: words, CONDITIONS: words}}, "spec": {}});
            store(&mut object);
            assert_eq!(object.pointer("/metadata/annotations"), None, "{words}");
        }
    }
}
