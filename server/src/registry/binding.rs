//! Putting a pod on a node, once: `pods/NAME/binding` and `bindings`.
//!
//! Source: Kubernetes v1.36 `pkg/registry/core/pod/storage/storage.go` (`BindingREST`, `setPodNodeAndMetadata`).

use agent::wire::object::{self, at, list, text};
use agent::wire::status::{Reason, Status};
use agent::wire::time;
use serde_json::{Value, json};

use super::subresource::created;
use super::update::uid_mismatch;
use super::{Context, FieldError, Registry};
use crate::kinds;
use crate::request::{Answer, WriteOptions};

impl Registry {
    pub(super) async fn bind(
        &self,
        context: Context<'_>,
        binding: &Value,
        options: &WriteOptions,
    ) -> Result<Answer, Status> {
        let given = text(binding, &["metadata", "name"]);
        let name = context.name.unwrap_or(given);
        if name != given && !given.is_empty() {
            let text = format!("the name of the object ({given}) does not match the name on the URL ({name})");
            return Err(Status::failure(Reason::BadRequest, text));
        }
        let node = text(binding, &["target", "name"]);
        if node.is_empty() {
            let fault = FieldError::required("target.name", "");
            let faults = [(fault.reason, fault.field, fault.text)];
            return Err(Status::invalid("", "Binding", name, &faults));
        }
        let row = kinds::find("", "v1", "pods").ok_or_else(Status::no_such_route)?;
        let context = Context {
            row: &row,
            asked: &row,
            subresource: Some("binding"),
            ..context
        };
        let wanted = text(binding, &["metadata", "uid"]);
        self.modify(context, name, options.dry_run, |pod| {
            let current = text(pod, &["metadata", "uid"]);
            if !wanted.is_empty() && wanted != current {
                return Err(context.conflict(name, &uid_mismatch(wanted, current)));
            }
            bound(pod, binding, node, self.world.now()).map_err(|why| context.conflict(name, &why))
        })
        .await?;
        Ok(created())
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
