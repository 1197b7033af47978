//! Leases: written often, worth little a while later, so not worth a disk's time.
//!
//! Source: Kubernetes v1.36 `pkg/apis/coordination/validation`.

use serde_json::Value;

use super::fault::Faults;
use crate::registry::resource::{FieldError, Keep, Rules};

/// Rules of leases.
#[derive(Debug)]
pub(super) struct Lease;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_do_not_wait_for_the_disk() {
        assert_eq!(Lease.keep(&Value::Null, None), Keep::VOLATILE);
    }
}
