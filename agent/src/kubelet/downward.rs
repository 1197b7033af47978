//! A pod's own fields, for environment variables and files (downward API). Pure.
//!
//! Source: Kubernetes v1.36, `pkg/fieldpath` and `pkg/api/v1/resource`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::wire::pod::{Container, Pod, ResourceFieldRef, quantity};
use crate::wire::quantity::Quantity;

/// What only the node knows.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// The pod's.
    pub pod: Option<IpAddr>,
    /// The node's.
    pub host: Option<IpAddr>,
    /// Millicores and bytes that a container without a limit may use.
    pub allocatable: (i64, i64),
}

/// The value of a field path.
///
/// # Errors
/// A text that names the path, if there is no such field.
pub fn field(pod: &Pod, path: &str, addresses: &Addresses) -> Result<String, String> {
    let ip = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|rest| rest.split_once("['")) {
        let map = match map {
            "metadata.labels" => &pod.meta.labels,
            "metadata.annotations" => &pod.meta.annotations,
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.get(key).cloned().unwrap_or_default());
    }
    match path {
        "metadata.name" => Ok(pod.meta.name.clone()),
        "metadata.namespace" => Ok(pod.meta.namespace.clone()),
        "metadata.uid" => Ok(pod.meta.uid.clone()),
        "metadata.labels" => Ok(lines(&pod.meta.labels)),
        "metadata.annotations" => Ok(lines(&pod.meta.annotations)),
        "spec.nodeName" => Ok(pod.spec.node_name.clone()),
        "spec.serviceAccountName" => Ok(pod.spec.service_account_name.clone()),
        "status.hostIP" | "status.hostIPs" => Ok(ip(addresses.host)),
        "status.podIP" | "status.podIPs" => Ok(ip(addresses.pod)),
        _ => Err(format!("unsupported fieldPath: {path}")),
    }
}

/// `key="value"` lines, sorted, values quoted as Go's `%q` does for plain text.
fn lines(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// A container's limit or request, in units of the divisor, rounded up; without a limit, what the node has.
///
/// # Errors
/// A text that names the resource, if it is not one.
pub fn resource(pod: &Pod, own: &Container, at: &ResourceFieldRef, addresses: &Addresses) -> Result<String, String> {
    let container = match at.container_name.as_str() {
        "" => own,
        name => pod
            .all_containers()
            .find(|it| it.name == name)
            .ok_or_else(|| format!("container {name} not found"))?,
    };
    let (kind, name) = at
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported resource {}", at.resource))?;
    let amount = match kind {
        "limits" => {
            let limit = container.resources.limit(name).filter(|it| *it != Quantity::ZERO);
            limit.or_else(|| allocatable(name, addresses))
        }
        "requests" => container.resources.request(name),
        _ => return Err(format!("unsupported resource {}", at.resource)),
    };
    let amount = amount.unwrap_or(Quantity::ZERO);
    let divisor = quantity(&at.divisor).filter(|it| it.milli_value() > 0);
    let value = if name == "cpu" {
        let divisor = divisor.map_or(1000, Quantity::milli_value);
        amount.milli_value().saturating_add(divisor - 1) / divisor
    } else {
        let divisor = divisor.map_or(1, Quantity::value).max(1);
        amount.value().saturating_add(divisor - 1) / divisor
    };
    Ok(value.to_string())
}

/// Source: Kubernetes v1.36, `pkg/api/v1/resource` `MergeContainerResourceLimits`.
fn allocatable(name: &str, addresses: &Addresses) -> Option<Quantity> {
    let (millicores, bytes) = addresses.allocatable;
    match name {
        "cpu" => Quantity::parse(&format!("{millicores}m")).ok(),
        "memory" => Quantity::parse(&bytes.to_string()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_and_resources_are_read_as_kubernetes_does() {
        let pod = Pod::of(&json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u", "labels": {"a": "1", "b": "x y"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}}}]}
        }))
        .unwrap();
        let addresses = Addresses {
            pod: Some([10, 42, 0, 5].into()),
            ..Addresses::default()
        };
        for (path, expected) in [
            ("metadata.labels", "a=\"1\"\nb=\"x y\""),
            ("metadata.labels['b']", "x y"),
            ("metadata.annotations['none']", ""),
            ("status.podIP", "10.42.0.5"),
            ("spec.nodeName", "n"),
        ] {
            assert_eq!(field(&pod, path, &addresses).unwrap(), expected, "{path}");
        }
        assert!(field(&pod, "spec.containers", &addresses).is_err());
        for (resource_name, divisor, expected) in [
            ("limits.cpu", json!(null), "2"),
            ("limits.cpu", json!("1m"), "1500"),
            ("requests.memory", json!("1Mi"), "64"),
        ] {
            let at = ResourceFieldRef {
                resource: resource_name.into(),
                divisor,
                ..ResourceFieldRef::default()
            };
            assert_eq!(
                resource(&pod, &pod.spec.containers[0], &at, &addresses).unwrap(),
                expected,
                "{resource_name}"
            );
        }
        let node = Addresses {
            allocatable: (4000, 1 << 30),
            ..Addresses::default()
        };
        for (name, expected) in [
            ("limits.cpu", "4"),
            ("limits.memory", "1073741824"),
            ("requests.cpu", "0"),
        ] {
            let at = ResourceFieldRef {
                resource: name.into(),
                ..ResourceFieldRef::default()
            };
            assert_eq!(
                resource(&pod, &Container::default(), &at, &node).unwrap(),
                expected,
                "{name}"
            );
        }
    }
}
