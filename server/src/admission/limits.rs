//! LimitRanger: defaults for containers that ask for nothing, and bounds for containers, pods and claims.
//!
//! Source: Kubernetes v1.36 `plugin/pkg/admission/limitranger/admission.go`.

use std::collections::BTreeMap;

use agent::wire::object::{self, at, list, text};
use agent::wire::quantity::Quantity;
use agent::wire::status::Status;
use serde_json::{Map, Value};

use super::Request;
use crate::cache::{Cache, Filter};

/// Amounts by resource.
type Amounts = BTreeMap<String, Quantity>;

pub(super) fn ranges(cache: &Cache, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
    let (pod, claim) = (
        request.creates("", "pods"),
        request.creates("", "persistentvolumeclaims"),
    );
    if !pod && !claim {
        return Ok(());
    }
    let prefix = format!("/registry/limitranges/{}/", request.namespace.unwrap_or_default());
    let Ok(page) = cache.list(&prefix, &Filter::default(), None, None, None) else {
        return Ok(());
    };
    for item in &page.items {
        let range = item.value();
        let limits = list(&range, &["spec", "limits"]);
        let faults = if pod {
            of_pod(limits, object)
        } else {
            of_claim(limits, object)
        };
        match faults.as_slice() {
            [] => {}
            [fault] => return Err(request.forbidden(fault)),
            several => return Err(request.forbidden(&format!("[{}]", several.join(", ")))),
        }
    }
    Ok(())
}

fn of_pod(limits: &[Value], pod: &mut Value) -> Vec<String> {
    for limit in limits.iter().filter(|limit| text(limit, &["type"]) == "Container") {
        for container in containers_mut(pod) {
            fill(limit, container);
        }
    }
    let mut faults = Vec::new();
    for limit in limits {
        match text(limit, &["type"]) {
            "Container" => {
                for container in list(pod, &["spec", "containers"])
                    .iter()
                    .chain(list(pod, &["spec", "initContainers"]))
                {
                    let requests = amounts(container, &["resources", "requests"]);
                    faults.extend(bound(limit, &requests, &amounts(container, &["resources", "limits"])));
                }
            }
            "Pod" => faults.extend(bound(limit, &of_all(pod, "requests"), &of_all(pod, "limits"))),
            _ => {}
        }
    }
    faults
}

fn of_claim(limits: &[Value], claim: &Value) -> Vec<String> {
    let requests = amounts(claim, &["spec", "resources", "requests"]);
    let limits = limits
        .iter()
        .filter(|limit| text(limit, &["type"]) == "PersistentVolumeClaim");
    // A claim has no limits; what it asks for is what it gets.
    limits.flat_map(|limit| bound(limit, &requests, &requests)).collect()
}

fn containers_mut(pod: &mut Value) -> impl Iterator<Item = &mut Value> {
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut).into_iter().flatten();
    let lists = spec.filter(|(key, _)| matches!(key.as_str(), "containers" | "initContainers"));
    lists.filter_map(|(_, list)| list.as_array_mut()).flatten()
}

/// What a pod needs at once: the sum of its containers, or its greediest init container where that is more.
fn of_all(pod: &Value, kind: &str) -> Amounts {
    let mut sum = Amounts::new();
    for container in list(pod, &["spec", "containers"]) {
        for (resource, amount) in amounts(container, &["resources", kind]) {
            let so_far = sum.get(&resource).copied().unwrap_or(Quantity::ZERO);
            sum.insert(resource, so_far.plus(amount));
        }
    }
    for container in list(pod, &["spec", "initContainers"]) {
        for (resource, amount) in amounts(container, &["resources", kind]) {
            if sum.get(&resource).is_none_or(|so_far| *so_far < amount) {
                sum.insert(resource, amount);
            }
        }
    }
    sum
}

fn fill(limit: &Value, container: &mut Value) {
    for (from, to) in [("default", "limits"), ("defaultRequest", "requests")] {
        for (resource, amount) in members(limit, &[from]) {
            if at(container, &["resources", to, &resource]).is_none() {
                object::set(container, &["resources", to, resource.as_str()], amount);
            }
        }
    }
}

fn bound(limit: &Value, requests: &Amounts, limits: &Amounts) -> Vec<String> {
    let kind = text(limit, &["type"]);
    let mut faults = Vec::new();
    for (resource, least) in amounts(limit, &["min"]) {
        let (request, most) = (requests.get(&resource), limits.get(&resource));
        let rule = format!("minimum {resource} usage per {kind} is {least}");
        match (request, most) {
            (None, _) => faults.push(format!("{rule}.  No request is specified")),
            (Some(request), _) if *request < least => faults.push(format!("{rule}, but request is {request}")),
            (_, Some(most)) if *most < least => faults.push(format!("{rule}, but limit is {most}")),
            (Some(_), _) => {}
        }
    }
    for (resource, most) in amounts(limit, &["max"]) {
        let rule = format!("maximum {resource} usage per {kind} is {most}");
        match (limits.get(&resource), requests.get(&resource)) {
            (None, _) => faults.push(format!("{rule}.  No limit is specified")),
            (Some(limit), _) if *limit > most => faults.push(format!("{rule}, but limit is {limit}")),
            (_, Some(request)) if *request > most => faults.push(format!("{rule}, but request is {request}")),
            (Some(_), _) => {}
        }
    }
    for (resource, most) in amounts(limit, &["maxLimitRequestRatio"]) {
        let rule = format!("{resource} max limit to request ratio per {kind} is {most}, but");
        match (positive(requests, &resource), positive(limits, &resource)) {
            (None, _) => faults.push(format!("{rule} no request is specified or request is 0")),
            (_, None) => faults.push(format!("{rule} no limit is specified or limit is 0")),
            // In thousandths: exact, where a ratio of floats would not be.
            (Some(request), Some(limit)) if limit.saturating_mul(1000) > most.milli_value().saturating_mul(request) => {
                let ratio = limit.saturating_mul(1000) / request;
                faults.push(format!(
                    "{rule} provided ratio is {}.{:03}000",
                    ratio / 1000,
                    ratio % 1000
                ));
            }
            (Some(_), Some(_)) => {}
        }
    }
    faults
}

fn positive(amounts: &Amounts, resource: &str) -> Option<i64> {
    amounts
        .get(resource)
        .map(|amount| amount.milli_value())
        .filter(|amount| *amount > 0)
}

fn amounts(value: &Value, path: &[&str]) -> Amounts {
    let read = |(resource, amount): (String, Value)| Some((resource, Quantity::parse(amount.as_str()?).ok()?));
    members(value, path).into_iter().filter_map(read).collect()
}

fn members(value: &Value, path: &[&str]) -> Map<String, Value> {
    at(value, path).and_then(Value::as_object).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_that_asks_for_nothing_gets_the_default() {
        let limit = json!({"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}});
        let mut pod = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(of_pod(&[limit], &mut pod), Vec::<String>::new());
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
        );
    }

    #[test]
    fn bounds_are_kept_in_upstreams_words() {
        for (limit, resources, fault) in [
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!({"limits": {"cpu": "2"}}),
                "maximum cpu usage per Container is 1, but limit is 2",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!({}),
                "maximum cpu usage per Container is 1.  No limit is specified",
            ),
            (
                json!({"type": "Container", "min": {"memory": "1Gi"}}),
                json!({"requests": {"memory": "1Mi"}}),
                "minimum memory usage per Container is 1Gi, but request is 1Mi",
            ),
            (
                json!({"type": "Pod", "max": {"cpu": "3"}}),
                json!({"limits": {"cpu": "2"}}),
                "maximum cpu usage per Pod is 3, but limit is 4",
            ),
            (
                json!({"type": "Pod", "max": {"cpu": "4"}}),
                json!({"limits": {"cpu": "2"}}),
                "",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"limits": {"cpu": "1"}, "requests": {"cpu": "250m"}}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "4"}}),
                json!({"limits": {"cpu": "1"}, "requests": {"cpu": "250m"}}),
                "",
            ),
        ] {
            let mut pod = json!({"spec": {"containers": [{"resources": resources}, {"resources": resources}]}});
            let faults = of_pod(std::slice::from_ref(&limit), &mut pod);
            assert_eq!(faults.first().map_or("", String::as_str), fault, "{limit} {resources}");
        }
    }

    #[test]
    fn a_claim_is_bounded_by_what_it_asks_for() {
        let limit = json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "5Gi"}});
        for (storage, fine) in [("500Mi", false), ("2Gi", true), ("10Gi", false)] {
            let claim = json!({"spec": {"resources": {"requests": {"storage": storage}}}});
            assert_eq!(
                of_claim(std::slice::from_ref(&limit), &claim).is_empty(),
                fine,
                "{storage}"
            );
        }
    }
}
