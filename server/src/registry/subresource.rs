//! The parts of an object that are written through endpoints of their own: what each shows, and what it may change.
//!
//! Exec, logs, proxy and tokens are not here: they are `http`'s, nothing of them is stored. `binding.rs` and `eviction.rs`
//! are the two that only act.

use agent::wire::object::{self, at, integer, list, text};
use agent::wire::selector::Labels;
use agent::wire::status::{Details, Status};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::request::{Answer, WriteOptions};

use super::resource::{FieldError, Resource};
use super::{Context, Registry};

const QUALITY: &[&str] = &["status", "qosClass"];

/// Which part of an object a write is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    Main,
    Status,
    Scale,
    Approval,
    Finalize,
    EphemeralContainers,
    Resize,
}

impl Part {
    pub(super) fn of(subresource: Option<&str>) -> Result<Self, Status> {
        match subresource {
            None => Ok(Self::Main),
            Some("status") => Ok(Self::Status),
            Some("scale") => Ok(Self::Scale),
            Some("approval") => Ok(Self::Approval),
            Some("finalize") => Ok(Self::Finalize),
            Some("ephemeralcontainers") => Ok(Self::EphemeralContainers),
            Some("resize") => Ok(Self::Resize),
            Some(_) => Err(Status::no_such_route()),
        }
    }

    /// Group, version and kind of bodies.
    pub(super) fn kind(self, row: &Resource) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Scale => ("autoscaling", "v1", "Scale"),
            Self::Main | Self::Status | Self::Approval | Self::Finalize | Self::EphemeralContainers | Self::Resize => {
                (row.group, row.version, row.kind)
            }
        }
    }

    /// A change here may be one of the desired state.
    pub(super) fn counts(self) -> bool {
        match self {
            Self::Main | Self::Scale | Self::EphemeralContainers | Self::Resize => true,
            Self::Status | Self::Approval | Self::Finalize => false,
        }
    }

    /// What a read of the part shows and a patch applies to.
    pub(super) fn view(self, object: &Value, row: &Resource) -> Value {
        match self {
            Self::Scale => scale_of(object, row),
            Self::Main | Self::Status | Self::Approval | Self::Finalize | Self::EphemeralContainers | Self::Resize => {
                object.clone()
            }
        }
    }

    /// The bytes that answer a read or write of the part.
    pub(super) fn answer(self, body: Bytes, object: &Value, row: &Resource) -> Bytes {
        match self {
            Self::Scale => serde_json::to_vec(&scale_of(object, row)).map_or(body, Bytes::from),
            Self::Main | Self::Status | Self::Approval | Self::Finalize | Self::EphemeralContainers | Self::Resize => {
                body
            }
        }
    }

    /// The whole object after the part has become what was asked for.
    pub(super) fn merge(self, asked: Value, old: &Value, row: &Resource) -> Result<Value, Vec<FieldError>> {
        let mut new = old.clone();
        match self {
            Self::Main => {
                new = asked;
                if row.has_status() {
                    copy(&mut new, old, &["status"]);
                }
            }
            Self::Status => {
                copy(&mut new, &asked, &["status"]);
                // The others keep their metadata; these two let it through (core v1.36, `podStatusStrategy`, `nodeStatusStrategy`).
                if row.group.is_empty() && matches!(row.plural, "pods" | "nodes") {
                    copy(&mut new, &asked, &["metadata", "labels"]);
                    copy(&mut new, &asked, &["metadata", "annotations"]);
                }
                // Decided when the pod was made; a report that leaves it out does not undo it.
                if row.group.is_empty() && row.plural == "pods" && text(&new, QUALITY).is_empty() {
                    copy(&mut new, old, QUALITY);
                }
                if row.plural == "certificatesigningrequests" {
                    keep_approvals(&mut new, old);
                }
                // Finalizers are withdrawn through the status endpoint too.
                if list(&asked, &["metadata", "finalizers"]).len() < list(old, &["metadata", "finalizers"]).len() {
                    copy(&mut new, &asked, &["metadata", "finalizers"]);
                }
            }
            Self::Scale => {
                let replicas = integer(&asked, &["spec", "replicas"]).unwrap_or(0);
                if replicas < 0 {
                    let detail = "must be greater than or equal to 0";
                    return Err(vec![FieldError::invalid("spec.replicas", &replicas.into(), detail)]);
                }
                object::set(&mut new, &["spec", "replicas"], replicas);
            }
            Self::Approval => approve(&mut new, &asked, old)?,
            Self::Finalize => copy(&mut new, &asked, &["spec", "finalizers"]),
            Self::EphemeralContainers => {
                add_ephemeral(&asked, old)?;
                copy(&mut new, &asked, &["spec", "ephemeralContainers"]);
            }
            Self::Resize => resize(&mut new, &asked, "containers"),
        }
        Ok(new)
    }
}

fn copy(to: &mut Value, from: &Value, path: &[&str]) {
    match at(from, path) {
        Some(value) => object::set(to, path, value.clone()),
        None => drop(object::remove(to, path)),
    }
}

fn scale_of(object: &Value, row: &Resource) -> Value {
    let metadata = |key: &str| at(object, &["metadata", key]).cloned();
    let mut scale = json!({
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {},
        "spec": {},
        "status": {"replicas": integer(object, &["status", "replicas"]).unwrap_or(0)},
    });
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata(key) {
            object::set(&mut scale, &["metadata", key], value);
        }
    }
    let replicas = integer(object, &["spec", "replicas"]).unwrap_or(0);
    if replicas != 0 {
        object::set(&mut scale, &["spec", "replicas"], replicas);
    }
    let selector = match row.plural {
        "replicationcontrollers" => Labels::describe_map(at(object, &["spec", "selector"])),
        _ => Labels::describe(at(object, &["spec", "selector"])),
    };
    if !selector.is_empty() {
        object::set(&mut scale, &["status", "selector"], selector);
    }
    scale
}

/// A selector as the text that clients select with.
trait Describe {
    fn describe(selector: Option<&Value>) -> String;
    fn describe_map(selector: Option<&Value>) -> String;
}

impl Describe for Labels {
    fn describe(selector: Option<&Value>) -> String {
        let Some(selector) = selector else { return String::new() };
        let mut terms = vec![Self::describe_map(selector.get("matchLabels"))];
        for expression in list(selector, &["matchExpressions"]) {
            let key = text(expression, &["key"]);
            let values: Vec<&str> = list(expression, &["values"]).iter().filter_map(Value::as_str).collect();
            let values = values.join(",");
            terms.push(match text(expression, &["operator"]) {
                "In" => format!("{key} in ({values})"),
                "NotIn" => format!("{key} notin ({values})"),
                "Exists" => key.to_owned(),
                _ => format!("!{key}"),
            });
        }
        terms.retain(|term| !term.is_empty());
        terms.join(",")
    }

    fn describe_map(selector: Option<&Value>) -> String {
        let pairs = selector.and_then(Value::as_object).into_iter().flatten();
        let terms: Vec<String> = pairs
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        terms.join(",")
    }
}

fn is_approval(condition: &Value) -> bool {
    matches!(text(condition, &["type"]), "Approved" | "Denied")
}

/// The status endpoint of a certificate request changes no verdict.
fn keep_approvals(new: &mut Value, old: &Value) {
    let conditions = |object: &Value| list(object, &["status", "conditions"]).to_vec();
    let mut kept: Vec<Value> = conditions(old).into_iter().filter(is_approval).collect();
    kept.extend(conditions(new).into_iter().filter(|one| !is_approval(one)));
    if !kept.is_empty() {
        object::set(new, &["status", "conditions"], kept);
    }
}

/// The approval endpoint changes nothing but the verdict, and a verdict stays.
fn approve(new: &mut Value, asked: &Value, old: &Value) -> Result<(), Vec<FieldError>> {
    let conditions = list(asked, &["status", "conditions"]);
    let verdicts: Vec<&str> = conditions
        .iter()
        .filter(|one| is_approval(one))
        .map(|one| text(one, &["type"]))
        .collect();
    let before = list(old, &["status", "conditions"])
        .iter()
        .filter(|one| is_approval(one));
    let lost = before.clone().any(|one| !verdicts.contains(&text(one, &["type"])));
    if lost {
        let detail = "updates may not remove a condition of type \"Approved\" or \"Denied\"";
        return Err(vec![FieldError::forbidden("status.conditions", detail)]);
    }
    if verdicts.contains(&"Approved") && verdicts.contains(&"Denied") {
        let detail = "Approved and Denied conditions are mutually exclusive";
        return Err(vec![FieldError::invalid(
            "status.conditions",
            &Value::from(verdicts),
            detail,
        )]);
    }
    object::set(new, &["status", "conditions"], conditions.to_vec());
    Ok(())
}

/// Ephemeral containers come and never change or go.
fn add_ephemeral(asked: &Value, old: &Value) -> Result<(), Vec<FieldError>> {
    let mirror = "kubernetes.io/config.mirror";
    if at(old, &["metadata", "annotations", mirror]).is_some() {
        let detail = "static pods do not support ephemeral containers";
        return Err(vec![FieldError::forbidden("", detail)]);
    }
    let after = list(asked, &["spec", "ephemeralContainers"]);
    let mut faults = Vec::new();
    for container in list(old, &["spec", "ephemeralContainers"]) {
        if !after.contains(container) {
            let detail = format!(
                "existing ephemeral containers {:?} may not be removed or changed\n",
                text(container, &["name"])
            );
            faults.push(FieldError::forbidden("spec.ephemeralContainers", &detail));
        }
    }
    let names = |path: &[&str]| -> Vec<String> {
        let containers = list(asked, path).iter();
        containers.map(|one| text(one, &["name"]).to_owned()).collect()
    };
    let mut taken = names(&["spec", "containers"]);
    taken.extend(names(&["spec", "initContainers"]));
    for (index, container) in after.iter().enumerate() {
        let field = |name: &str| format!("spec.ephemeralContainers[{index}].{name}");
        let name = text(container, &["name"]).to_owned();
        if name.is_empty() {
            faults.push(FieldError::required(field("name"), ""));
        } else if taken.contains(&name) {
            faults.push(FieldError::duplicate(field("name"), &name.as_str().into()));
        }
        if text(container, &["image"]).is_empty() {
            faults.push(FieldError::required(field("image"), ""));
        }
        taken.push(name);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// Takes the resources (and resize policies) of containers that exist, and nothing else.
fn resize(new: &mut Value, asked: &Value, containers: &str) {
    let wanted = list(asked, &["spec", containers]);
    let Some(current) = new
        .get_mut("spec")
        .and_then(|spec| spec.get_mut(containers))
        .and_then(Value::as_array_mut)
    else {
        return;
    };
    for container in current {
        let same = |one: &&Value| text(one, &["name"]) == text(container, &["name"]);
        let Some(wanted) = wanted.iter().find(same) else {
            continue;
        };
        copy(container, wanted, &["resources"]);
    }
}

impl Registry {
    /// POST to a subresource: binding and eviction.
    pub(super) async fn create_subresource(
        &self,
        context: Context<'_>,
        mut body: Value,
        options: &WriteOptions,
    ) -> Result<Answer, Status> {
        match context.subresource {
            Some("eviction") => {
                context.decode_as(&mut body, ("policy", "v1", "Eviction"), options)?;
                self.evict(context, &body, options).await
            }
            Some("binding") | None => {
                context.decode_as(&mut body, ("", "v1", "Binding"), options)?;
                self.bind(context, &body, options).await
            }
            Some(_) => Err(Status::no_such_route()),
        }
    }
}

pub(super) fn created() -> Answer {
    let mut status = Status::success(Details::default());
    status.details = None;
    status.code = 201;
    Answer::Status(status)
}
