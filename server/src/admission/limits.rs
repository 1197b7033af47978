//! LimitRanger: defaults for containers that ask for nothing, and bounds for those that do.
//!
//! Source: Kubernetes v1.36 `plugin/pkg/admission/limitranger/admission.go`. Ratios, and limits of type `Pod` and of claims,
//! are not looked at yet.

use agent::wire::object::{self, at, list, text};
use agent::wire::quantity::Quantity;
use agent::wire::status::Status;
use serde_json::{Map, Value};

use crate::cache::{Cache, Filter};

use super::Request;

pub(super) fn ranges(cache: &Cache, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
    if !request.creates("", "pods") {
        return Ok(());
    }
    let prefix = format!("/registry/limitranges/{}/", request.namespace.unwrap_or_default());
    let Ok(page) = cache.list(&prefix, &Filter::default(), None, None, None) else {
        return Ok(());
    };
    for item in &page.items {
        for limit in list(&item.value(), &["spec", "limits"]) {
            if text(limit, &["type"]) == "Container" {
                apply(limit, pod).map_err(|why| request.forbidden(&why))?;
            }
        }
    }
    Ok(())
}

fn apply(limit: &Value, pod: &mut Value) -> Result<(), String> {
    for containers in ["containers", "initContainers"] {
        let containers = pod.get_mut("spec").and_then(|spec| spec.get_mut(containers));
        for container in containers.and_then(Value::as_array_mut).into_iter().flatten() {
            fill(limit, container);
            bound(limit, container)?;
        }
    }
    Ok(())
}

fn fill(limit: &Value, container: &mut Value) {
    for (resource, amount) in amounts(limit, &["default"]) {
        if at(container, &["resources", "limits", &resource]).is_none() {
            object::set(container, &["resources", "limits", resource.as_str()], amount);
        }
    }
    let asked = amounts(container, &["resources", "requests"]);
    // A request that is not given is the limit, as the pod's own defaults would have it.
    for (resource, amount) in amounts(limit, &["defaultRequest"]) {
        if !asked.contains_key(&resource) {
            object::set(container, &["resources", "requests", resource.as_str()], amount);
        }
    }
}

fn bound(limit: &Value, container: &Value) -> Result<(), String> {
    let amount = |value: Option<&Value>| {
        value
            .and_then(Value::as_str)
            .and_then(|text| Quantity::parse(text).ok())
    };
    for (resource, least) in amounts(limit, &["min"]) {
        let asked = amount(at(container, &["resources", "requests", &resource]));
        let Some(least) = amount(Some(&least)) else { continue };
        match asked {
            None => {
                return Err(format!(
                    "minimum {resource} usage per Container is {least}.  No request is specified"
                ));
            }
            Some(asked) if asked < least => {
                return Err(format!(
                    "minimum {resource} usage per Container is {least}, but request is {asked}"
                ));
            }
            Some(_) => {}
        }
    }
    for (resource, most) in amounts(limit, &["max"]) {
        let asked = amount(at(container, &["resources", "limits", &resource]));
        let Some(most) = amount(Some(&most)) else { continue };
        match asked {
            None => {
                return Err(format!(
                    "maximum {resource} usage per Container is {most}.  No limit is specified"
                ));
            }
            Some(asked) if asked > most => {
                return Err(format!(
                    "maximum {resource} usage per Container is {most}, but limit is {asked}"
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn amounts(value: &Value, path: &[&str]) -> Map<String, Value> {
    at(value, path).and_then(Value::as_object).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_that_asks_for_nothing_gets_the_default_and_one_that_asks_too_much_nothing() {
        let limit = json!({"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}});
        let mut pod = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(apply(&limit, &mut pod), Ok(()));
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
        );
        let mut greedy = json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "2"}}}]}});
        assert_eq!(
            apply(&limit, &mut greedy),
            Err("maximum cpu usage per Container is 1, but limit is 2".to_owned())
        );
    }
}
