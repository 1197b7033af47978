//! NamespaceLifecycle: nothing new in a namespace that is missing or going, and some namespaces stay.

use agent::wire::object::{at, text};
use agent::wire::status::Status;

use crate::cache::Cache;

use super::{Request, Verb};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) fn lifecycle(cache: &Cache, request: &Request<'_>) -> Result<(), Status> {
    if request.is("", "namespaces") {
        if request.verb == Verb::Delete && IMMORTAL.contains(&request.name) {
            return Err(request.forbidden("this namespace may not be deleted"));
        }
        return Ok(());
    }
    let Some(namespace) = request
        .namespace
        .filter(|_| request.row.namespaced && request.verb == Verb::Create)
    else {
        return Ok(());
    };
    let Some(item) = cache.get(&format!("/registry/namespaces/{namespace}")) else {
        return Err(Status::not_found("", "namespaces", namespace));
    };
    let object = item.value();
    let going = at(&object, &["metadata", "deletionTimestamp"]).is_some()
        || text(&object, &["status", "phase"]) == "Terminating";
    if going {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let cause = format!("namespace {namespace} is being terminated");
        return Err(request
            .forbidden(&why)
            .cause("NamespaceTerminating", cause, "metadata.namespace"));
    }
    Ok(())
}
