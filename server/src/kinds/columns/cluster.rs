//! What belongs to the cluster itself: namespaces, accounts, roles, leases, policies.

use agent::wire::object::{at, list, text};
use serde_json::Value;

use super::{AGE, CREATED_AT, NAME, Shown, cell, since};

const NAMESPACES: &[Shown] = &[
    NAME,
    Shown::text("Status", "Phase", |object, _| cell::text(object, &["status", "phase"])),
    AGE,
];
const SERVICE_ACCOUNTS: &[Shown] = &[NAME, AGE];
const LEASES: &[Shown] = &[
    NAME,
    Shown::text("Holder", "Who has it", |object, _| {
        cell::text(object, &["spec", "holderIdentity"])
    }),
    AGE,
];
const PRIORITY_CLASSES: &[Shown] = &[
    NAME,
    Shown::number("Value", "Higher goes first", |object, _| {
        cell::number(object, &["value"])
    }),
    Shown::text("Global-Default", "Whether pods without a class get it", |object, _| {
        cell::boolean(object, &["globalDefault"])
    }),
    AGE,
    Shown::text("PreemptionPolicy", "Whether it may displace others", |object, _| {
        cell::text(object, &["preemptionPolicy"])
    }),
];
const RUNTIME_CLASSES: &[Shown] = &[
    NAME,
    Shown::text("Handler", "What runs its pods", |object, _| {
        cell::text(object, &["handler"])
    }),
    AGE,
];
const ROLES: &[Shown] = &[NAME, CREATED_AT];
const BINDINGS: &[Shown] = &[
    NAME,
    Shown::text("Role", "What is granted", |object, _| {
        format!(
            "{}/{}",
            text(object, &["roleRef", "kind"]),
            text(object, &["roleRef", "name"])
        )
        .into()
    }),
    AGE,
    Shown::text("Users", "To whom", |object, _| subjects(object, "User")).wide(),
    Shown::text("Groups", "To whom", |object, _| subjects(object, "Group")).wide(),
    Shown::text("ServiceAccounts", "To whom", |object, _| {
        subjects(object, "ServiceAccount")
    })
    .wide(),
];
const QUOTAS: &[Shown] = &[
    NAME,
    Shown::text("Request", "Used, of what may be requested", |object, _| {
        quota(object, false).into()
    }),
    Shown::text("Limit", "Used, of what may be the limit", |object, _| {
        quota(object, true).into()
    }),
    AGE,
];
const AUTOSCALERS: &[Shown] = &[
    NAME,
    Shown::text("Reference", "What it scales", |object, _| {
        let target = |field| text(object, &["spec", "scaleTargetRef", field]);
        format!("{}/{}", target("kind"), target("name")).into()
    }),
    Shown::text("Targets", "What it holds", |object, _| targets(object)),
    Shown::text("MinPods", "At least", |object, _| {
        cell::scalar(object, &["spec", "minReplicas"]).map_or("<unset>".into(), Value::from)
    }),
    Shown::number("MaxPods", "At most", |object, _| {
        cell::number(object, &["spec", "maxReplicas"])
    }),
    Shown::number("Replicas", "Now", |object, _| {
        cell::number(object, &["status", "currentReplicas"])
    }),
    AGE,
];
const BUDGETS: &[Shown] = &[
    NAME,
    Shown::text("Min Available", "So many must stay", |object, _| {
        not_given(object, "minAvailable")
    }),
    Shown::text("Max Unavailable", "So many may go", |object, _| {
        not_given(object, "maxUnavailable")
    }),
    Shown::number("Allowed Disruptions", "So many may go now", |object, _| {
        cell::number(object, &["status", "disruptionsAllowed"])
    }),
    AGE,
];
const SIGNING_REQUESTS: &[Shown] = &[
    NAME,
    AGE,
    Shown::text("SignerName", "Who is to sign", |object, _| {
        cell::text(object, &["spec", "signerName"])
    }),
    Shown::text("Requestor", "Who asks", |object, _| {
        cell::text(object, &["spec", "username"])
    }),
    Shown::text("RequestedDuration", "For how long", |object, _| {
        cell::scalar(object, &["spec", "expirationSeconds"])
            .and_then(|seconds| seconds.parse().ok())
            .map_or(cell::NONE.into(), |seconds| agent::wire::time::age(seconds).into())
    }),
    Shown::text("Condition", "How far it is", |object, _| signing(object).into()),
];
const API_SERVICES: &[Shown] = &[
    NAME,
    Shown::text("Service", "Who serves it", |object, _| {
        match text(object, &["spec", "service", "name"]) {
            "" => "Local".into(),
            name => format!("{}/{name}", text(object, &["spec", "service", "namespace"])).into(),
        }
    }),
    Shown::text("Available", "Whether it answers", |object, _| {
        let conditions = list(object, &["status", "conditions"]);
        let available = conditions.iter().find(|one| text(one, &["type"]) == "Available");
        available.map_or("Unknown".into(), |one| cell::text(one, &["status"]))
    }),
    AGE,
];
const COMPONENT_STATUSES: &[Shown] = &[
    NAME,
    Shown::text("Age", "", |object, now| {
        since(text(object, &["metadata", "creationTimestamp"]), now).into()
    }),
];

/// The columns of a kind that is one of these.
pub fn columns(group: &str, plural: &str) -> Option<&'static [Shown]> {
    Some(match (group, plural) {
        ("", "namespaces") => NAMESPACES,
        ("", "serviceaccounts") => SERVICE_ACCOUNTS,
        ("", "resourcequotas") => QUOTAS,
        ("", "limitranges") => ROLES,
        ("", "componentstatuses") => COMPONENT_STATUSES,
        ("coordination.k8s.io", "leases") => LEASES,
        ("scheduling.k8s.io", "priorityclasses") => PRIORITY_CLASSES,
        ("node.k8s.io", "runtimeclasses") => RUNTIME_CLASSES,
        ("rbac.authorization.k8s.io", "roles" | "clusterroles") => ROLES,
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => BINDINGS,
        ("autoscaling", "horizontalpodautoscalers") => AUTOSCALERS,
        ("policy", "poddisruptionbudgets") => BUDGETS,
        ("certificates.k8s.io", "certificatesigningrequests") => SIGNING_REQUESTS,
        ("apiregistration.k8s.io", "apiservices") => API_SERVICES,
        ("apiextensions.k8s.io", "customresourcedefinitions") => ROLES,
        _ => return None,
    })
}

fn subjects(binding: &Value, kind: &str) -> Value {
    let of_kind = list(binding, &["subjects"])
        .iter()
        .filter(|one| text(one, &["kind"]) == kind);
    let name = |one: &Value| match text(one, &["namespace"]) {
        "" => text(one, &["name"]).to_owned(),
        namespace => format!("{namespace}/{}", text(one, &["name"])),
    };
    let names: Vec<String> = of_kind.map(name).collect();
    names.join(", ").into()
}

fn quota(object: &Value, limits: bool) -> String {
    let hard = at(object, &["status", "hard"]).and_then(Value::as_object);
    let chosen = hard
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("limits.") == limits);
    let used = |name: &str| cell::scalar(object, &["status", "used", name]).unwrap_or_else(|| "0".into());
    let one = |(name, most): (&String, &Value)| format!("{name}: {}/{}", used(name), most.as_str().unwrap_or_default());
    let all: Vec<String> = chosen.map(one).collect();
    all.join(", ")
}

fn targets(object: &Value) -> Value {
    let metrics = list(object, &["spec", "metrics"]);
    let one = |metric: &Value| {
        let name = text(metric, &["resource", "name"]);
        let wanted = cell::scalar(metric, &["resource", "target", "averageUtilization"]);
        let now = list(object, &["status", "currentMetrics"])
            .iter()
            .find(|current| text(current, &["resource", "name"]) == name)
            .and_then(|current| cell::scalar(current, &["resource", "current", "averageUtilization"]));
        let percent = |value: Option<String>| value.map_or("<unknown>".to_owned(), |value| format!("{value}%"));
        format!("{name}: {}/{}", percent(now), percent(wanted))
    };
    let all: Vec<String> = metrics.iter().map(one).collect();
    cell::or_none(all.join(", "))
}

fn not_given(object: &Value, field: &str) -> Value {
    cell::scalar(object, &["spec", field]).map_or("N/A".into(), Value::from)
}

fn signing(object: &Value) -> String {
    let conditions = list(object, &["status", "conditions"])
        .iter()
        .map(|one| text(one, &["type"]));
    let mut words: Vec<&str> = conditions.collect();
    if words.is_empty() {
        words.push("Pending");
    }
    if !text(object, &["status", "certificate"]).is_empty() {
        words.push("Issued");
    }
    words.join(",")
}
