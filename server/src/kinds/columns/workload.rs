//! What makes pods: deployments, sets and jobs.

use agent::wire::object::{at, integer, list, text};
use agent::wire::time;
use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, NAME, Shown, cell, since};

const CONTAINERS: Shown = Shown::text("Containers", "Names in the pod template", |object, _| {
    template(object, "name")
})
.wide();
const IMAGES: Shown = Shown::text("Images", "Images in the pod template", |object, _| {
    template(object, "image")
})
.wide();
const SELECTOR: Shown = Shown::text("Selector", "Which pods are meant", |object, _| {
    cell::selector(at(object, &["spec", "selector"]))
})
.wide();
const READY_OF_WANTED: Shown = Shown::text("Ready", "Pods that are ready, of those wanted", |object, _| {
    cell::of(status(object, "readyReplicas"), replicas(object))
});

const DESIRED: Shown = Shown::number("Desired", "Pods wanted", |object, _| replicas(object).into());
const CURRENT: Shown = Shown::number("Current", "Pods there are", |object, _| {
    cell::number(object, &["status", "replicas"])
});
const READY: Shown = Shown::number("Ready", "Pods that are ready", |object, _| {
    cell::number(object, &["status", "readyReplicas"])
});

const DEPLOYMENTS: &[Shown] = &[
    NAME,
    READY_OF_WANTED,
    Shown::number("Up-to-date", "Pods after the present template", |object, _| {
        cell::number(object, &["status", "updatedReplicas"])
    }),
    Shown::number("Available", "Pods that have been ready long enough", |object, _| {
        cell::number(object, &["status", "availableReplicas"])
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const REPLICA_SETS: &[Shown] = &[NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR];

const REPLICATION_CONTROLLERS: &[Shown] = &[
    NAME,
    DESIRED,
    CURRENT,
    READY,
    AGE,
    CONTAINERS,
    IMAGES,
    Shown::text("Selector", "Which pods are meant", |object, _| {
        cell::or_none(cell::map(at(object, &["spec", "selector"])).join(","))
    })
    .wide(),
];

const STATEFUL_SETS: &[Shown] = &[NAME, READY_OF_WANTED, AGE, CONTAINERS, IMAGES];

const DAEMON_SETS: &[Shown] = &[
    NAME,
    Shown::number("Desired", "Nodes that should run a pod", |object, _| {
        cell::number(object, &["status", "desiredNumberScheduled"])
    }),
    Shown::number("Current", "Nodes that run one", |object, _| {
        cell::number(object, &["status", "currentNumberScheduled"])
    }),
    Shown::number("Ready", "Pods that are ready", |object, _| {
        cell::number(object, &["status", "numberReady"])
    }),
    Shown::number("Up-to-date", "Pods after the present template", |object, _| {
        cell::number(object, &["status", "updatedNumberScheduled"])
    }),
    Shown::number("Available", "Pods that have been ready long enough", |object, _| {
        cell::number(object, &["status", "numberAvailable"])
    }),
    Shown::text("Node Selector", "Which nodes are meant", |object, _| {
        let selector = at(object, &["spec", "template", "spec", "nodeSelector"]);
        cell::or_none(cell::map(selector).join(","))
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const JOBS: &[Shown] = &[
    NAME,
    Shown::text("Status", "How far it is", |job, _| job_status(job).into()),
    Shown::text("Completions", "Pods that succeeded, of those wanted", |job, _| {
        completions(job)
    }),
    Shown::text("Duration", "How long it took, or runs already", |job, now| {
        duration(job, now)
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const CRON_JOBS: &[Shown] = &[
    NAME,
    Shown::text("Schedule", "When it runs", |object, _| {
        cell::text(object, &["spec", "schedule"])
    }),
    Shown::text("Timezone", "In which zone", |object, _| {
        cell::text_or_none(object, &["spec", "timeZone"])
    }),
    Shown::text("Suspend", "Whether it is held", |object, _| {
        cell::boolean(object, &["spec", "suspend"])
    }),
    Shown::number("Active", "Jobs that run now", |object, _| {
        list(object, &["status", "active"]).len().into()
    }),
    Shown::text("Last Schedule", "Time since it was last due", |object, now| match text(
        object,
        &["status", "lastScheduleTime"],
    ) {
        "" => cell::NONE.into(),
        last => since(last, now).into(),
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The columns of a kind that is one of these.
pub fn columns(group: &str, plural: &str) -> Option<&'static [Shown]> {
    Some(match (group, plural) {
        ("apps", "deployments") => DEPLOYMENTS,
        ("apps", "replicasets") => REPLICA_SETS,
        ("", "replicationcontrollers") => REPLICATION_CONTROLLERS,
        ("apps", "statefulsets") => STATEFUL_SETS,
        ("apps", "daemonsets") => DAEMON_SETS,
        ("batch", "jobs") => JOBS,
        ("batch", "cronjobs") => CRON_JOBS,
        _ => return None,
    })
}

fn replicas(object: &Value) -> i64 {
    integer(object, &["spec", "replicas"]).unwrap_or(0)
}

fn status(object: &Value, field: &str) -> i64 {
    integer(object, &["status", field]).unwrap_or(0)
}

/// A field of each container in the pod template, a cron job's included.
fn template(object: &Value, field: &str) -> Value {
    let direct = list(object, &["spec", "template", "spec", "containers"]);
    let nested = list(
        object,
        &["spec", "jobTemplate", "spec", "template", "spec", "containers"],
    );
    cell::joined(direct.iter().chain(nested).map(|one| text(one, &[field]))).into()
}

fn job_status(job: &Value) -> &'static str {
    let holds = |kind: &str| {
        list(job, &["status", "conditions"])
            .iter()
            .any(|one| text(one, &["type"]) == kind && text(one, &["status"]) == "True")
    };
    match () {
        () if holds("Complete") => "Complete",
        () if holds("Failed") => "Failed",
        () if !text(job, &["metadata", "deletionTimestamp"]).is_empty() => "Terminating",
        () if holds("Suspended") => "Suspended",
        () if holds("FailureTarget") => "FailureTarget",
        () if holds("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(job: &Value) -> Value {
    let succeeded = status(job, "succeeded");
    match (
        integer(job, &["spec", "completions"]),
        integer(job, &["spec", "parallelism"]),
    ) {
        (Some(wanted), _) => cell::of(succeeded, wanted),
        (None, Some(parallel)) if parallel > 1 => format!("{succeeded}/1 of {parallel}").into(),
        (None, _) => cell::of(succeeded, 1),
    }
}

fn duration(job: &Value, now: Timestamp) -> Value {
    let Some(start) = time::parse(text(job, &["status", "startTime"])) else {
        return "".into();
    };
    let end = time::parse(text(job, &["status", "completionTime"])).unwrap_or(now);
    time::age(end.as_second().saturating_sub(start.as_second())).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::table;
    use crate::kinds;

    #[test]
    fn a_deployment_shows_what_kubectl_users_know() {
        let row = kinds::find("apps", "v1", "deployments").unwrap();
        let web = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-11-25T11:58:00Z"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"spec": {"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y:2"}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2},
        });
        let table = table(&row, &[web], "2026-11-25T12:00:00Z".parse().unwrap());
        let names: Vec<_> = table.columns.iter().map(|one| &*one.name).collect();
        assert_eq!(
            names,
            [
                "Name",
                "Ready",
                "Up-to-date",
                "Available",
                "Age",
                "Containers",
                "Images",
                "Selector"
            ]
        );
        assert_eq!(
            table.rows,
            [vec![
                json!("web"),
                json!("2/3"),
                json!(3),
                json!(2),
                json!("2m"),
                json!("a,b"),
                json!("x:1,y:2"),
                json!("app=web")
            ]]
        );
        assert_eq!(
            table.columns.iter().map(|one| one.priority).collect::<Vec<_>>(),
            [0, 0, 0, 0, 0, 1, 1, 1]
        );
    }
}
