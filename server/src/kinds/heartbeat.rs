//! Leases and Events: written often, worth little a while later, so not worth a disk's time.
//!
//! Source: Kubernetes v1.36 `pkg/apis/coordination/validation`, `pkg/apis/core/validation/events.go`; the hour is the
//! default of kube-apiserver's `--event-ttl`.

use std::time::Duration;

use agent::wire::object::{at, text};
use serde_json::Value;

use super::fault::Faults;
use super::fill::blank;
use crate::registry::resource::{FieldError, Keep, Rules};

const EVENT_LIFE: Duration = Duration::from_secs(3600);

/// Rules of leases.
#[derive(Debug)]
pub(super) struct Lease;
/// Rules of events.
#[derive(Debug)]
pub(super) struct Event;

impl Rules for Lease {
    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let seconds = agent::wire::object::integer(new, &["spec", "leaseDurationSeconds"]);
        if let Some(seconds) = seconds.filter(|seconds| *seconds <= 0) {
            let detail = "must be greater than 0";
            faults.push(FieldError::invalid(
                "spec.leaseDurationSeconds",
                &seconds.into(),
                detail,
            ));
        }
        faults.not_negative(new, &["spec", "leaseTransitions"], "");
        faults.all()
    }

    fn keep(&self, _new: &Value, _old: Option<&Value>) -> Keep {
        Keep::VOLATILE
    }
}

impl Rules for Event {
    fn default(&self, event: &mut Value) {
        if event.get("reportingComponent").is_none() {
            blank(event, &["reportingComponent"], "");
        }
        blank(event, &["reportingInstance"], "");
    }

    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let (own, about) = (
            text(new, &["metadata", "namespace"]),
            text(new, &["involvedObject", "namespace"]),
        );
        if about.is_empty() && at(new, &["involvedObject"]).is_some() {
            if own != "default" && own != "kube-system" {
                let detail = "does not match event.namespace";
                faults.push(FieldError::invalid("involvedObject.namespace", &about.into(), detail));
            }
        } else if own != about {
            let detail = "does not match event.namespace";
            faults.push(FieldError::invalid("involvedObject.namespace", &about.into(), detail));
        }
        faults.all()
    }

    fn keep(&self, _new: &Value, _old: Option<&Value>) -> Keep {
        Keep::passing(EVENT_LIFE)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_lives_where_its_object_does() {
        for (own, about, fine) in [
            ("a", json!({"namespace": "a"}), true),
            ("a", json!({"namespace": "b"}), false),
            ("default", json!({"kind": "Node"}), true),
            ("a", json!({"kind": "Node"}), false),
        ] {
            let event = json!({"metadata": {"namespace": own}, "involvedObject": about});
            assert_eq!(Event.check(&event, None).is_empty(), fine, "{event}");
        }
    }

    #[test]
    fn heartbeats_do_not_wait_for_the_disk_and_events_pass() {
        assert_eq!(Lease.keep(&Value::Null, None), Keep::VOLATILE);
        assert_eq!(Event.keep(&Value::Null, None), Keep::passing(Duration::from_secs(3600)));
    }
}
