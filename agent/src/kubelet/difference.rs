//! What of a pod's status the API lacks, and the patch that gives it. Pure.
//!
//! A kubelet shares the status with others: conditions of kinds that it does not know are theirs, and stay.

use serde_json::{Map, Value, json};

use crate::wire::object::{list, text};

/// Kept by whoever binds pods; ours only where nobody has written it.
const OF_SCHEDULER: &str = "PodScheduled";

/// Whether the API's status says what ours does. Conditions count by what they say, not by when they turned.
///
/// Source: Kubernetes v1.36, `pkg/kubelet/status` `isPodStatusByKubeletEqual`.
pub fn holds(told: &Value, wanted: &Value) -> bool {
    let empty = Map::new();
    let (old, new) = (told.as_object().unwrap_or(&empty), wanted.as_object().unwrap_or(&empty));
    let mut both = old.keys().chain(new.keys()).filter(|key| *key != "conditions");
    let says = |condition: &Value| ["status", "reason", "message"].map(|field| text(condition, &[field]).to_owned());
    both.all(|key| old.get(key) == new.get(key))
        && list(wanted, &["conditions"]).iter().all(|ours| {
            let theirs = of_kind(list(told, &["conditions"]), ours);
            theirs.is_some_and(|theirs| text(ours, &["type"]) == OF_SCHEDULER || says(theirs) == says(ours))
        })
}

/// A strategic merge patch from one status to another. Conditions merge by type, so those of others stay; addresses
/// merge by `ip`, so old ones are deleted by name; all other lists are replaced.
pub fn difference(told: &Value, wanted: &Value) -> Value {
    let empty = Map::new();
    let (old, new) = (told.as_object().unwrap_or(&empty), wanted.as_object().unwrap_or(&empty));
    let mut patch = lacking(old, new);
    for (key, value) in new.iter().filter(|(key, value)| old.get(*key) != Some(*value)) {
        let value = match (key.as_str(), old.get(key)) {
            ("podIPs" | "hostIPs", Some(before)) => addresses(before, value),
            ("conditions", Some(before)) => match conditions(before, value) {
                changed if changed.is_empty() => continue,
                changed => Value::Array(changed),
            },
            _ => value.clone(),
        };
        patch.insert(key.clone(), value);
    }
    Value::Object(patch)
}

/// What takes away the members that are no more.
fn lacking(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    gone.map(|key| (key.clone(), Value::Null)).collect()
}

fn of_kind<'a>(all: &'a [Value], condition: &Value) -> Option<&'a Value> {
    all.iter().find(|it| text(it, &["type"]) == text(condition, &["type"]))
}

/// Those that differ, but for what another has written of the binding. A merge would leave the reason of yesterday's state with
/// today's: what is no more is named.
fn conditions(old: &Value, new: &Value) -> Vec<Value> {
    let mut changed = Vec::new();
    for wanted in list(new, &[]) {
        match (of_kind(list(old, &[]), wanted), wanted) {
            (Some(known), wanted) if known == wanted || text(wanted, &["type"]) == OF_SCHEDULER => {}
            (Some(Value::Object(known)), Value::Object(wanted)) => {
                let mut patch = lacking(known, wanted);
                patch.extend(wanted.clone());
                changed.push(Value::Object(patch));
            }
            (_, wanted) => changed.push(wanted.clone()),
        }
    }
    changed
}

fn addresses(old: &Value, new: &Value) -> Value {
    let (old, new) = (list(old, &[]), list(new, &[]));
    let gone = old.iter().filter(|it| !new.contains(it));
    let gone = gone.map(|it| json!({"$patch": "delete", "ip": text(it, &["ip"])}));
    Value::Array(gone.chain(new.iter().cloned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(conditions: &[Value]) -> Value {
        json!({"phase": "Running", "conditions": conditions})
    }

    fn condition(kind: &str, status: &str, since: &str) -> Value {
        json!({"type": kind, "status": status, "lastTransitionTime": since})
    }

    #[test]
    fn a_moved_pod_loses_its_old_address() {
        let at = |ip: &str| json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
        assert_eq!(
            difference(&at("10.0.0.1"), &at("10.0.0.2")),
            json!({"podIP": "10.0.0.2", "podIPs": [{"$patch": "delete", "ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]})
        );
        let evicted = json!({"phase": "Failed", "reason": "Evicted"});
        assert_eq!(
            difference(&evicted, &json!({"phase": "Failed"})),
            json!({"reason": null})
        );
    }

    #[test]
    fn conditions_of_others_are_theirs() {
        let ours = status(&[condition("Ready", "True", "1"), condition("PodScheduled", "True", "1")]);
        for (ready, scheduled, more, same) in [
            ("True", "True", "DisruptionTarget", true),
            ("True", "False", "example.com/gate", true),
            ("False", "True", "DisruptionTarget", false),
        ] {
            let theirs = status(&[
                condition("PodScheduled", scheduled, "2"),
                condition(more, "True", "2"),
                condition("Ready", ready, "2"),
            ]);
            assert_eq!(holds(&theirs, &ours), same, "{ready} {scheduled} {more}");
        }
        assert!(
            !holds(&status(&[condition("Ready", "True", "1")]), &ours),
            "nobody else says that it is scheduled"
        );
    }

    #[test]
    fn a_condition_that_turns_loses_its_reason() {
        let mut no = condition("Ready", "False", "1");
        no["reason"] = json!("ContainersNotReady");
        let kept = condition("Initialized", "True", "1");
        let (old, new) = (
            status(&[no, kept.clone()]),
            status(&[condition("Ready", "True", "2"), kept]),
        );
        let turned = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2", "reason": null});
        assert_eq!(difference(&old, &new), json!({"conditions": [turned]}));
        assert_eq!(difference(&new, &new), json!({}));
    }

    #[test]
    fn what_another_has_written_of_the_binding_is_not_written_over() {
        let theirs = condition("PodScheduled", "False", "1");
        let ours = [condition("PodScheduled", "True", "2"), condition("Ready", "True", "2")];
        let (old, new) = (status(&[theirs]), status(&ours));
        assert_eq!(difference(&old, &new), json!({"conditions": [ours[1]]}));
        assert_eq!(
            difference(&status(&[]), &new),
            json!({"conditions": ours}),
            "nobody has"
        );
    }
}
