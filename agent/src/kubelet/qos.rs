//! The quality-of-service class of a pod. Source: Kubernetes v1.36, `pkg/apis/core/v1/helper/qos` `ComputePodQOS`.

use crate::wire::pod::PodSpec;

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn class(spec: &PodSpec) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in spec.init_containers.iter().chain(&spec.containers) {
        for resource in ["cpu", "memory"] {
            let positive = |map: &std::collections::BTreeMap<String, serde_json::Value>| {
                let quantity = map.get(resource).and_then(crate::wire::pod::quantity);
                quantity
                    .map(crate::wire::quantity::Quantity::milli_value)
                    .filter(|value| *value > 0)
            };
            let (limit, request) = (
                positive(&container.resources.limits),
                positive(&container.resources.requests),
            );
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
        (false, _) => "BestEffort",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::wire::pod::Pod;

    #[test]
    fn limits_and_requests_make_the_class() {
        for (resources, expected) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
            (json!({"requests": {"cpu": "10m"}}), "Burstable"),
            (json!({"limits": {"memory": "1Gi"}}), "Burstable"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}),
                "Guaranteed",
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
                "Burstable",
            ),
        ] {
            let object =
                json!({"metadata": {"name": "a", "uid": "u"}, "spec": {"containers": [{"resources": resources}]}});
            assert_eq!(class(&Pod::of(&object).unwrap().spec), expected, "{resources}");
        }
    }
}
