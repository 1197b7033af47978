//! Events, and their newer form `events.k8s.io/v1`, which is stored as the older one.
//!
//! Written often, worth little a while later, so not worth a disk's time. Source: Kubernetes v1.36
//! `pkg/apis/core/validation/events.go`, `pkg/apis/events/v1/conversion.go` and `pkg/registry/core/event/strategy.go`;
//! the hour is the default of kube-apiserver's `--event-ttl`.

use std::time::Duration;

use agent::wire::object::{at, integer, text};
use agent::wire::selector::is_label_key;
use serde_json::Value;

use super::fault::{Faults, same};
use super::fill::blank;
use crate::registry::LABEL_KEY_TEXT;
use crate::registry::resource::{FieldError, Keep, Rules, View};

const EVENT_LIFE: Duration = Duration::from_secs(3600);
const WORD_LIMIT: usize = 128;
const NOTE_LIMIT: usize = 1024;
const ELSEWHERE: &str = "does not match event.namespace";

/// The members that the two forms have under different names: in `events.k8s.io/v1`, and as stored.
const RENAMED: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// Members that an update in the newer form may not change; all but the series, that is.
const FIXED: &[&str] = &[
    "involvedObject",
    "reason",
    "message",
    "source",
    "firstTimestamp",
    "lastTimestamp",
    "count",
    "type",
    "eventTime",
    "action",
    "related",
    "reportingComponent",
    "reportingInstance",
];

/// `events.k8s.io/v1`.
pub(super) static VIEW: View = View {
    of: ("", "v1", "events"),
    selectors: &[
        ("regarding.kind", "involvedObject.kind"),
        ("regarding.namespace", "involvedObject.namespace"),
        ("regarding.name", "involvedObject.name"),
        ("regarding.uid", "involvedObject.uid"),
        ("regarding.apiVersion", "involvedObject.apiVersion"),
        ("regarding.resourceVersion", "involvedObject.resourceVersion"),
        ("regarding.fieldPath", "involvedObject.fieldPath"),
        ("reason", "reason"),
        ("reportingController", "reportingComponent"),
        ("type", "type"),
    ],
    notes: &[],
    store: |event| RENAMED.iter().for_each(|(new, old)| rename(event, new, old)),
    show: |event| {
        RENAMED.iter().for_each(|(new, old)| rename(event, old, new));
        // The older form always has these two, this one only with something in them.
        for key in ["reportingController", "reportingInstance"] {
            if text(event, &[key]).is_empty() {
                agent::wire::object::remove(event, &[key]);
            }
        }
    },
    check: |new, old| match old {
        None => check_new(new),
        Some(old) => check_change(new, old),
    },
};

/// Rules of events.
#[derive(Debug)]
pub(super) struct Event;

impl Rules for Event {
    fn default(&self, event: &mut Value) {
        blank(event, &["reportingComponent"], "");
        blank(event, &["reportingInstance"], "");
    }

    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let own = text(new, &["metadata", "namespace"]);
        let about = text(new, &["involvedObject", "namespace"]);
        let mut faults = Faults::default();
        // Only recorders of the newer kind say when it happened; they say all the rest as well.
        let newer = !text(new, &["eventTime"]).is_empty();
        let fits = match (about, own) {
            ("", "default") => true,
            ("", "kube-system") => newer,
            ("", _) => false,
            _ => newer || own == about,
        };
        if !fits {
            faults.push(FieldError::invalid(
                "involvedObject.namespace",
                &about.into(),
                ELSEWHERE,
            ));
        }
        if newer {
            check_words(new, &mut faults);
        }
        faults.all()
    }

    fn keep(&self, _new: &Value, _old: Option<&Value>) -> Keep {
        Keep::passing(EVENT_LIFE)
    }
}

fn rename(event: &mut Value, from: &str, to: &str) {
    if let Some(members) = event.as_object_mut()
        && let Some(value) = members.remove(from)
    {
        members.insert(to.to_owned(), value);
    }
}

fn check_words(event: &Value, faults: &mut Faults) {
    let controller = text(event, &["reportingComponent"]);
    if controller.is_empty() {
        faults.push(FieldError::required("reportingController", ""));
    }
    if !is_label_key(controller) {
        let fault = FieldError::invalid("reportingController", &controller.into(), LABEL_KEY_TEXT);
        faults.push(fault);
    }
    for (key, needed, limit) in [
        ("reportingInstance", true, WORD_LIMIT),
        ("action", true, WORD_LIMIT),
        ("reason", true, WORD_LIMIT),
        ("message", false, NOTE_LIMIT),
    ] {
        let words = text(event, &[key]);
        if needed && words.is_empty() {
            faults.push(FieldError::required(key, ""));
        }
        if words.len() > limit {
            let detail = format!("can have at most {limit} characters");
            faults.push(FieldError::invalid(key, &"".into(), &detail));
        }
    }
}

/// What a new event in the newer form must have, and may not.
fn check_new(event: &Value) -> Vec<FieldError> {
    let mut faults = Faults::default();
    check_series(event, &mut faults);
    faults.required(event, &["eventTime"], "");
    let kind = text(event, &["type"]);
    if !matches!(kind, "Normal" | "Warning") {
        let detail = format!("has invalid value: {kind}");
        faults.push(FieldError::invalid("type", &"".into(), &detail));
    }
    for key in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        let set = match event.get(key) {
            Some(Value::Object(source)) => source.values().any(|value| value != ""),
            Some(value) => !value.is_null() && value != 0 && value != "",
            None => false,
        };
        if set {
            faults.push(FieldError::invalid(key, &"".into(), "needs to be unset"));
        }
    }
    faults.all()
}

/// An event in the newer form happens again, or it is another event.
fn check_change(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut faults = Faults::default();
    if !same(new.get("series"), old.get("series")) {
        check_series(new, &mut faults);
    }
    for key in FIXED {
        faults.immutable(new, old, &[*key]);
    }
    faults.all()
}

fn check_series(event: &Value, faults: &mut Faults) {
    if at(event, &["series"]).is_none_or(Value::is_null) {
        return;
    }
    if integer(event, &["series", "count"]).unwrap_or(0) < 2 {
        faults.push(FieldError::invalid("series.count", &"".into(), "should be at least 2"));
    }
    faults.required(event, &["series", "lastObservedTime"], "");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn newer() -> Value {
        json!({"metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": "a", "kind": "Pod", "name": "p"},
            "eventTime": "2026-11-25T11:00:00.000001Z", "reportingComponent": "example.com/proxy", "reportingInstance": "proxy-1",
            "action": "Sync", "reason": "Synced", "type": "Normal"})
    }

    fn fields(faults: &[FieldError]) -> Vec<&str> {
        faults.iter().map(|fault| fault.field.as_str()).collect()
    }

    #[test]
    fn an_event_lives_where_its_object_does() {
        for (own, about, fine, newer_is) in [
            ("a", json!({"namespace": "a"}), true, true),
            ("a", json!({"namespace": "b"}), false, true),
            ("default", json!({"kind": "Node"}), true, true),
            ("kube-system", json!({"kind": "Node"}), false, true),
            ("a", json!({"kind": "Node"}), false, false),
        ] {
            let event = json!({"metadata": {"namespace": own}, "involvedObject": about});
            assert_eq!(Event.check(&event, None).is_empty(), fine, "{event}");
            let mut event = newer();
            event["metadata"]["namespace"] = own.into();
            event["involvedObject"] = about;
            assert_eq!(Event.check(&event, None).is_empty(), newer_is, "{event}");
        }
    }

    #[test]
    fn who_says_when_says_by_whom_what_and_why() {
        assert_eq!(Event.check(&newer(), None), []);
        for key in ["reportingComponent", "reportingInstance", "action", "reason"] {
            let mut event = newer();
            event[key] = "".into();
            assert!(!Event.check(&event, None).is_empty(), "{key}");
            event[key] = "x".repeat(129).into();
            assert_eq!(Event.check(&event, None).len(), 1, "{key}");
        }
        let mut event = newer();
        event["message"] = "x".repeat(1024).into();
        assert_eq!(Event.check(&event, None), []);
        event["message"] = "x".repeat(1025).into();
        assert_eq!(fields(&Event.check(&event, None)), ["message"]);
    }

    #[test]
    fn a_new_event_in_the_newer_form_has_none_of_what_is_deprecated() {
        assert_eq!(check_new(&newer()), []);
        let mut event = newer();
        for (key, value) in [
            ("firstTimestamp", json!("2026-11-25T11:00:00Z")),
            ("lastTimestamp", json!("2026-11-25T11:00:00Z")),
            ("count", json!(1)),
            ("source", json!({"host": "edge"})),
            ("type", json!("Odd")),
            ("series", json!({"count": 1})),
            ("eventTime", json!(null)),
        ] {
            event[key] = value;
        }
        let all = [
            "series.count",
            "series.lastObservedTime",
            "eventTime",
            "type",
            "firstTimestamp",
            "lastTimestamp",
            "count",
            "source",
        ];
        assert_eq!(fields(&check_new(&event)), all);
        event = newer();
        (event["count"], event["source"]) = (json!(0), json!({"component": ""}));
        assert_eq!(check_new(&event), []);
    }

    #[test]
    fn only_the_series_of_an_event_in_the_newer_form_changes() {
        let mut event = newer();
        event["series"] = json!({"count": 2, "lastObservedTime": "2026-11-25T11:01:00.000000Z"});
        assert_eq!(check_change(&event, &newer()), []);
        event["series"] = json!({"count": 1});
        event["reason"] = "Other".into();
        let wanted = ["series.count", "series.lastObservedTime", "reason"];
        assert_eq!(fields(&check_change(&event, &newer())), wanted);
    }

    #[test]
    fn both_forms_lead_to_each_other() {
        let stored = json!({"involvedObject": {"name": "p"}, "message": "m", "reportingComponent": "c", "reportingInstance": "i",
            "source": {"component": "s"}, "firstTimestamp": "f", "lastTimestamp": "l", "count": 3, "eventTime": "e",
            "series": {"count": 2}, "related": {"name": "r"}, "action": "a", "reason": "r", "type": "Normal"});
        let shown = json!({"regarding": {"name": "p"}, "note": "m", "reportingController": "c", "reportingInstance": "i",
            "deprecatedSource": {"component": "s"}, "deprecatedFirstTimestamp": "f", "deprecatedLastTimestamp": "l",
            "deprecatedCount": 3, "eventTime": "e", "series": {"count": 2}, "related": {"name": "r"}, "action": "a",
            "reason": "r", "type": "Normal"});
        let mut event = stored.clone();
        (VIEW.show)(&mut event);
        assert_eq!(event, shown);
        (VIEW.store)(&mut event);
        assert_eq!(event, stored);
    }

    #[test]
    fn events_pass() {
        assert_eq!(Event.keep(&Value::Null, None), Keep::passing(Duration::from_secs(3600)));
    }
}
