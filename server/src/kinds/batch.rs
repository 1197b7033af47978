//! Jobs and cron jobs.
//!
//! Source: Kubernetes v1.36 `pkg/apis/batch/v1/defaults.go`, `pkg/registry/batch/job/strategy.go`,
//! `pkg/apis/batch/validation/validation.go`. Schedules are read by the cron job controller; here only their shape is looked at.

use std::collections::BTreeSet;

use agent::wire::object::{self, at, text};
use serde_json::Value;

use super::fault::{Faults, same, selects};
use super::fill::{absent, below, blank, copy, each, object as ensure};
use super::{pod_check, pod_spec};
use crate::registry::resource::{FieldError, Rules};

const TEMPLATE: &[&str] = &["spec", "template"];
const CRON_TEMPLATE: &[&str] = &["spec", "jobTemplate", "spec", "template"];
/// Eleven fewer than a label: the controller appends a time.
const CRON_NAME_LIMIT: usize = 52;

/// Rules of jobs.
#[derive(Debug)]
pub(super) struct Job;
/// Rules of cron jobs.
#[derive(Debug)]
pub(super) struct CronJob;

impl Rules for Job {
    fn default(&self, job: &mut Value) {
        ensure(job, &["spec"]);
        pod_spec::fill_template(job, TEMPLATE);
        if at(job, &["spec", "completions"]).is_none() && at(job, &["spec", "parallelism"]).is_none() {
            object::set(job, &["spec", "completions"], 1);
        }
        absent(job, &["spec", "parallelism"], 1);
        let unlimited = at(job, &["spec", "backoffLimitPerIndex"]).is_some();
        absent(job, &["spec", "backoffLimit"], if unlimited { i32::MAX } else { 6 });
        blank(job, &["spec", "completionMode"], "NonIndexed");
        absent(job, &["spec", "suspend"], false);
        absent(job, &["spec", "manualSelector"], false);
        let policy = if at(job, &["spec", "podFailurePolicy"]).is_some() {
            "Failed"
        } else {
            "TerminatingOrFailed"
        };
        blank(job, &["spec", "podReplacementPolicy"], policy);
        for rule in each(job, &["spec", "podFailurePolicy", "rules"]) {
            for pattern in each(rule, &["onPodConditions"]) {
                blank(pattern, &["status"], "True");
            }
        }
        if same(at(job, &["metadata", "labels"]), None) {
            copy_labels(job);
        }
    }

    fn prepare(&self, job: &mut Value, old: Option<&Value>) {
        let manual = at(job, &["spec", "manualSelector"]) == Some(&Value::Bool(true));
        if old.is_none() && !manual {
            select_by_uid(job);
        }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        job_spec(new, "spec", at(new, &["spec"]).unwrap_or(&Value::Null), &mut faults);
        if at(new, &["spec", "selector"]).is_none() {
            faults.push(FieldError::required("spec.selector", ""));
        } else if !selects(
            at(new, &["spec", "selector"]).unwrap_or(&Value::Null),
            at(new, &["spec", "template", "metadata", "labels"]),
        ) {
            let labels = at(new, &["spec", "template", "metadata", "labels"])
                .cloned()
                .unwrap_or_default();
            faults.push(FieldError::invalid(
                "spec.template.metadata.labels",
                &labels,
                "`selector` does not match template `labels`",
            ));
        }
        if let Some(old) = old {
            for key in [
                "selector",
                "completionMode",
                "podFailurePolicy",
                "backoffLimitPerIndex",
                "managedBy",
                "successPolicy",
            ] {
                faults.immutable(new, old, &["spec", key]);
            }
            if text(new, &["spec", "completionMode"]) != "Indexed" {
                faults.immutable(new, old, &["spec", "completions"]);
            }
            template_stays(new, old, &mut faults);
        }
        faults.all()
    }

    fn warnings(&self, _new: &Value) -> Vec<String> {
        Vec::new()
    }
}

/// While a job is suspended its pods do not exist, and where they will run may still change.
fn template_stays(new: &Value, old: &Value, faults: &mut Faults) {
    let mut leveled = new.clone();
    if at(old, &["spec", "suspend"]) == Some(&Value::Bool(true)) && at(old, &["status", "startTime"]).is_none() {
        for key in ["nodeSelector", "tolerations", "affinity", "schedulingGates"] {
            copy(&mut leveled, old, &["spec", "template", "spec", key]);
        }
        for key in ["labels", "annotations"] {
            copy(&mut leveled, old, &["spec", "template", "metadata", key]);
        }
    }
    if at(&leveled, TEMPLATE) != at(old, TEMPLATE) {
        let template = at(new, TEMPLATE).cloned().unwrap_or_default();
        faults.push(FieldError::invalid("spec.template", &template, "field is immutable"));
    }
}

/// A job selects its own pods by its uid, which only the server knows.
fn select_by_uid(job: &mut Value) {
    let uid = text(job, &["metadata", "uid"]).to_owned();
    let name = text(job, &["metadata", "name"]).to_owned();
    for (label, value) in [
        ("controller-uid", &uid),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        object::set(job, &["spec", "template", "metadata", "labels", label], value.as_str());
    }
    object::set(
        job,
        &["spec", "selector", "matchLabels", "batch.kubernetes.io/controller-uid"],
        uid,
    );
}

fn copy_labels(job: &mut Value) {
    if let Some(labels) = at(job, &["spec", "template", "metadata", "labels"]).cloned() {
        object::set(job, &["metadata", "labels"], labels);
    }
}

fn job_spec(object: &Value, root: &str, spec: &Value, faults: &mut Faults) {
    for key in [
        "parallelism",
        "completions",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        faults.not_negative(spec, &[key], root);
    }
    faults.one_of(spec, &["completionMode"], root, &["Indexed", "NonIndexed"]);
    if text(spec, &["completionMode"]) == "Indexed" && at(spec, &["completions"]).is_none() {
        let detail = "when completion mode is Indexed";
        faults.push(FieldError::required(format!("{root}.completions"), detail));
    }
    let path: Vec<&str> = root.split('.').chain(["template"]).collect();
    if at(object, &path).is_none() {
        return faults.push(FieldError::required(format!("{root}.template"), ""));
    }
    pod_check::template(object, &path, faults);
    let policy = text(spec, &["template", "spec", "restartPolicy"]);
    if policy == "Always" {
        let supported = BTreeSet::from(["Never", "OnFailure"]);
        let field = format!("{root}.template.spec.restartPolicy");
        // Upstream says Required when nothing was given; by now the default `Always` has taken its place.
        faults.push(FieldError::not_supported(field, &policy.into(), &supported));
    }
}

impl Rules for CronJob {
    fn default(&self, object: &mut Value) {
        ensure(object, &["spec"]);
        blank(object, &["spec", "concurrencyPolicy"], "Allow");
        absent(object, &["spec", "suspend"], false);
        absent(object, &["spec", "successfulJobsHistoryLimit"], 3);
        absent(object, &["spec", "failedJobsHistoryLimit"], 1);
        pod_spec::fill_template(object, CRON_TEMPLATE);
        if let Some(template) = below(object, &["spec", "jobTemplate"]) {
            ensure(template, &["metadata"]);
        }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let name = text(new, &["metadata", "name"]);
        if old.is_none() && name.len() > CRON_NAME_LIMIT {
            let detail = "must be no more than 52 characters";
            faults.push(FieldError::invalid("metadata.name", &name.into(), detail));
        }
        let schedule = text(new, &["spec", "schedule"]);
        if schedule.is_empty() {
            faults.push(FieldError::required("spec.schedule", ""));
        } else if let Some(detail) = schedule_fault(schedule) {
            faults.push(FieldError::invalid("spec.schedule", &schedule.into(), &detail));
        }
        faults.one_of(new, &["spec", "concurrencyPolicy"], "", &["Allow", "Forbid", "Replace"]);
        for key in [
            "startingDeadlineSeconds",
            "successfulJobsHistoryLimit",
            "failedJobsHistoryLimit",
        ] {
            faults.not_negative(new, &["spec", key], "");
        }
        let spec = at(new, &["spec", "jobTemplate", "spec"]).unwrap_or(&Value::Null);
        job_spec(new, "spec.jobTemplate.spec", spec, &mut faults);
        faults.all()
    }
}

/// Five fields of a cron expression, or one of the names that stand for them.
fn schedule_fault(schedule: &str) -> Option<String> {
    if schedule.contains("TZ=") {
        return Some("cannot use TZ or CRON_TZ in schedule, use timeZone field instead".to_owned());
    }
    if schedule.starts_with('@') {
        let names = [
            "@yearly",
            "@annually",
            "@monthly",
            "@weekly",
            "@daily",
            "@midnight",
            "@hourly",
        ];
        let known = names.contains(&schedule) || schedule.starts_with("@every ");
        return (!known).then(|| format!("unrecognized descriptor: {schedule}"));
    }
    let fields = schedule.split_whitespace().count();
    let shape = |field: &str| {
        field
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"*/,-?".contains(&byte))
    };
    match fields {
        5 if schedule.split_whitespace().all(shape) => None,
        5 => Some(format!("failed to parse expression: {schedule}")),
        _ => Some(format!("expected exactly 5 fields, found {fields}: [{schedule}]")),
    }
}

#[cfg(test)]
mod tests {
    use agent::wire::object::list;
    use serde_json::json;

    use super::*;

    fn job() -> Value {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]}}}});
        Job.default(&mut job);
        Job.prepare(&mut job, None);
        job
    }

    #[test]
    fn a_job_selects_its_pods_by_its_uid() {
        let job = job();
        assert_eq!(Job.check(&job, None), []);
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!(
            (&job["spec"]["completions"], &job["spec"]["backoffLimit"]),
            (&json!(1), &json!(6))
        );
        assert_eq!(list(&job, &["spec", "template", "spec", "containers"]).len(), 1);
    }

    #[test]
    fn a_job_that_runs_keeps_its_template_and_a_suspended_one_may_move() {
        let old = job();
        let mut new = old.clone();
        new["spec"]["parallelism"] = 3.into();
        assert_eq!(Job.check(&new, Some(&old)), []);
        new["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
        let faults = Job.check(&new, Some(&old));
        assert_eq!(faults.len(), 1);
        assert!(faults[0].text.ends_with(": field is immutable"));
        let mut suspended = old.clone();
        suspended["spec"]["suspend"] = true.into();
        new["spec"]["suspend"] = true.into();
        assert_eq!(Job.check(&new, Some(&suspended)), []);
    }

    #[test]
    fn a_jobs_pods_do_not_restart_for_ever() {
        let mut job = job();
        job["spec"]["template"]["spec"]["restartPolicy"] = "Always".into();
        assert_eq!(
            Job.check(&job, None)[0].text,
            "Unsupported value: \"Always\": supported values: \"Never\", \"OnFailure\""
        );
    }

    #[test]
    fn schedules_have_five_fields_or_a_name() {
        for (schedule, fine) in [
            ("*/5 * * * *", true),
            ("0 4 1-7 JAN,FEB MON", true),
            ("@daily", true),
            ("@every 5m", true),
            ("@sometimes", false),
            ("* * * *", false),
            ("* * * * $", false),
            ("TZ=UTC * * * * *", false),
        ] {
            assert_eq!(schedule_fault(schedule).is_none(), fine, "{schedule}");
        }
    }
}
