//! The parts of an object that are written through endpoints of their own: what each shows, and what it may change.
//!
//! Exec, logs, proxy and tokens are not here: they are `http`'s, nothing of them is stored.

use agent::wire::object::{self, at, integer, list, text};
use agent::wire::selector::Labels;
use agent::wire::status::{Details, Reason, Status};
use agent::wire::time;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::admission::{Request, Verb};
use crate::request::{Answer, DeleteOptions, WriteOptions};
use crate::store::{Change, Expect, StoreError};

use super::resource::{FieldError, Keep, Resource};
use super::{Context, Registry, store_failure, stored};

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

    async fn bind(&self, context: Context<'_>, binding: &Value, options: &WriteOptions) -> Result<Answer, Status> {
        let given = text(binding, &["metadata", "name"]);
        let name = context.name.unwrap_or(given);
        if name != given && !given.is_empty() {
            let text = format!("the name of the object ({given}) does not match the name on the URL ({name})");
            return Err(Status::failure(Reason::BadRequest, text));
        }
        let node = text(binding, &["target", "name"]);
        if node.is_empty() {
            let fault = FieldError::required("target.name", "");
            return Err(Status::invalid(
                "",
                "Binding",
                name,
                &[(fault.reason, fault.field, fault.text)],
            ));
        }
        let row = crate::kinds::find("", "v1", "pods").ok_or_else(Status::no_such_route)?;
        let context = Context { row: &row, ..context };
        let key = context.key(name);
        loop {
            let item = self.cache.get(&key).ok_or_else(|| context.not_found(name))?;
            let old = item.value();
            let uid = text(binding, &["metadata", "uid"]);
            let current = text(&old, &["metadata", "uid"]);
            if !uid.is_empty() && uid != current {
                return Err(context.conflict(name, &super::update::uid_mismatch(uid, current)));
            }
            let mut new = bound(&old, binding, node, self.world.now()).map_err(|why| context.conflict(name, &why))?;
            let request = Request {
                user: context.user,
                row: context.row,
                namespace: context.namespace,
                name,
                subresource: Some("binding"),
                verb: Verb::Update,
                old: Some(&old),
            };
            self.admission.admit(&request, &mut new)?;
            if !options.dry_run {
                let change = Change::Put(stored::encode(&new));
                match self.write(&key, Expect::At(item.revision), change, Keep::DURABLE).await {
                    Ok(_) => {}
                    Err(StoreError::Conflict { .. }) => continue,
                    Err(error) => return Err(store_failure(&error)),
                }
            }
            return Ok(created());
        }
    }

    /// Deletes a pod that may be disturbed; budgets are asked first.
    async fn evict(&self, context: Context<'_>, eviction: &Value, options: &WriteOptions) -> Result<Answer, Status> {
        let name = context.named()?;
        let pod = self
            .cache
            .get(&context.key(name))
            .ok_or_else(|| context.not_found(name))?;
        self.check_budgets(&context, &pod.value())?;
        let asked = |path: &[&str]| at(eviction, path).and_then(Value::as_str).map(str::to_owned);
        let delete = DeleteOptions {
            grace: integer(eviction, &["deleteOptions", "gracePeriodSeconds"]),
            propagation: asked(&["deleteOptions", "propagationPolicy"]),
            uid: asked(&["deleteOptions", "preconditions", "uid"]),
            resource_version: asked(&["deleteOptions", "preconditions", "resourceVersion"]),
            dry_run: options.dry_run,
        };
        let context = Context {
            subresource: None,
            ..context
        };
        self.delete(context, &delete).await?;
        Ok(created())
    }

    /// 429 while a budget that selects the pod allows no disruption.
    fn check_budgets(&self, context: &Context<'_>, pod: &Value) -> Result<(), Status> {
        let over = matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed" | "Pending")
            || at(pod, &["metadata", "deletionTimestamp"]).is_some();
        if over {
            return Ok(());
        }
        let prefix = format!(
            "/registry/poddisruptionbudgets/{}/",
            context.namespace.unwrap_or_default()
        );
        let everything = crate::cache::Filter::default();
        let budgets = self.cache.list(&prefix, &everything, None, None, None);
        let budgets = budgets.map_err(|error| Status::internal(error))?;
        let selects = |budget: &Value| {
            let selector = at(budget, &["spec", "selector"]).cloned().unwrap_or_default();
            let selector: Option<agent::wire::selector::LabelSelector> = serde_json::from_value(selector).ok();
            let labels = selector.and_then(|selector| Labels::try_from(&selector).ok());
            labels.is_some_and(|labels| {
                labels.matches(|key| at(pod, &["metadata", "labels", key]).and_then(Value::as_str))
            })
        };
        let budgets = budgets.items.iter().map(|item| item.value());
        let matching: Vec<Value> = budgets.filter(selects).collect();
        match matching.as_slice() {
            [] => Ok(()),
            [budget] if integer(budget, &["status", "disruptionsAllowed"]).unwrap_or(0) > 0 => Ok(()),
            [budget] => {
                let name = text(budget, &["metadata", "name"]);
                let text = "Cannot evict pod as it would violate the pod's disruption budget.";
                let detail = format!("The disruption budget {name} does not allow evicting pods currently");
                Err(Status::failure(Reason::TooManyRequests, text).cause("DisruptionBudget", detail, ""))
            }
            _ => Err(Status::internal(
                "this pod has more than one PodDisruptionBudget, which the eviction subresource does not support",
            )),
        }
    }
}

/// The pod on its node, or why it cannot go there.
fn bound(old: &Value, binding: &Value, node: &str, now: jiff::Timestamp) -> Result<Value, String> {
    let name = text(old, &["metadata", "name"]);
    if at(old, &["metadata", "deletionTimestamp"]).is_some() {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let present = text(old, &["spec", "nodeName"]);
    if !present.is_empty() {
        return Err(format!("pod {name} is already assigned to node {present:?}"));
    }
    if !list(old, &["spec", "schedulingGates"]).is_empty() {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut new = old.clone();
    object::set(&mut new, &["spec", "nodeName"], node);
    for map in ["annotations", "labels"] {
        let pairs = at(binding, &["metadata", map]).and_then(Value::as_object);
        for (key, value) in pairs.into_iter().flatten() {
            object::set(&mut new, &["metadata", map, key.as_str()], value.clone());
        }
    }
    let mut conditions = list(old, &["status", "conditions"]).to_vec();
    conditions.retain(|condition| text(condition, &["type"]) != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled",
        "status": "True",
        "lastTransitionTime": time::seconds(now),
    }));
    object::set(&mut new, &["status", "conditions"], conditions);
    Ok(new)
}

fn created() -> Answer {
    let mut status = Status::success(Details::default());
    status.details = None;
    status.code = 201;
    Answer::Status(status)
}
