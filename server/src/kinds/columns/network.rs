//! Services and what stands behind and before them.

use agent::wire::object::{at, integer, list, text};
use serde_json::Value;

use super::{AGE, NAME, Shown, cell};

const SERVICES: &[Shown] = &[
    NAME,
    Shown::text("Type", "How it is reached", |service, _| {
        cell::text(service, &["spec", "type"])
    }),
    Shown::text("Cluster-IP", "Address inside the cluster", |service, _| {
        cell::text_or_none(service, &["spec", "clusterIP"])
    }),
    Shown::text("External-IP", "Address outside", |service, _| external(service)),
    Shown::text("Port(s)", "Ports, node ports and protocols", |service, _| {
        ports(service)
    }),
    AGE,
    Shown::text("Selector", "Which pods serve it", |service, _| {
        cell::or_none(cell::map(at(service, &["spec", "selector"])).join(","))
    })
    .wide(),
];

const ENDPOINTS: &[Shown] = &[
    NAME,
    Shown::text("Endpoints", "Addresses and ports", |object, _| endpoints(object)),
    AGE,
];

const ENDPOINT_SLICES: &[Shown] = &[
    NAME,
    Shown::text("AddressType", "Kind of address", |slice, _| {
        cell::text(slice, &["addressType"])
    }),
    Shown::text("Ports", "Ports", |slice, _| {
        let ports: Vec<String> = list(slice, &["ports"])
            .iter()
            .filter_map(|one| cell::scalar(one, &["port"]))
            .collect();
        few(&ports, "<unset>")
    }),
    Shown::text("Endpoints", "Addresses", |slice, _| {
        let addresses = list(slice, &["endpoints"])
            .iter()
            .flat_map(|one| list(one, &["addresses"]));
        let addresses: Vec<String> = addresses.filter_map(Value::as_str).map(ToOwned::to_owned).collect();
        few(&addresses, "<unset>")
    }),
    AGE,
];

const ADDRESSES: &[Shown] = &[
    NAME,
    Shown::text("ParentRef", "Whose address it is", |object, _| parent(object)),
    AGE,
];

const INGRESSES: &[Shown] = &[
    NAME,
    Shown::text("Class", "Who serves it", |object, _| {
        cell::text_or_none(object, &["spec", "ingressClassName"])
    }),
    Shown::text("Hosts", "Host names", |object, _| {
        let hosts = list(object, &["spec", "rules"]).iter().map(|one| text(one, &["host"]));
        let hosts = cell::joined(hosts.filter(|host| !host.is_empty()));
        if hosts.is_empty() { "*".into() } else { hosts.into() }
    }),
    Shown::text("Address", "Where it is served", |object, _| {
        load_balancer(object).into()
    }),
    Shown::text("Ports", "Ports", |object, _| {
        let tls = !list(object, &["spec", "tls"]).is_empty();
        if tls { "80, 443" } else { "80" }.into()
    }),
    AGE,
];

const INGRESS_CLASSES: &[Shown] = &[
    NAME,
    Shown::text("Controller", "Who serves it", |object, _| {
        cell::text(object, &["spec", "controller"])
    }),
    Shown::text("Parameters", "Its settings", |object, _| {
        match text(object, &["spec", "parameters", "name"]) {
            "" => cell::NONE.into(),
            name => format!("{}/{name}", text(object, &["spec", "parameters", "kind"])).into(),
        }
    }),
    AGE,
];

const NETWORK_POLICIES: &[Shown] = &[
    NAME,
    Shown::text("Pod-Selector", "Which pods it is about", |object, _| {
        cell::selector(at(object, &["spec", "podSelector"]))
    }),
    AGE,
];

/// The columns of a kind that is one of these.
pub fn columns(group: &str, plural: &str) -> Option<&'static [Shown]> {
    Some(match (group, plural) {
        ("", "services") => SERVICES,
        ("", "endpoints") => ENDPOINTS,
        ("discovery.k8s.io", "endpointslices") => ENDPOINT_SLICES,
        ("networking.k8s.io", "ingresses") => INGRESSES,
        ("networking.k8s.io", "ingressclasses") => INGRESS_CLASSES,
        ("networking.k8s.io", "ipaddresses") => ADDRESSES,
        ("networking.k8s.io", "networkpolicies") => NETWORK_POLICIES,
        _ => return None,
    })
}

fn parent(address: &Value) -> Value {
    let part = |name: &str| text(address, &["spec", "parentRef", name]);
    let resource = match part("group") {
        "" => part("resource").to_owned(),
        group => format!("{}.{group}", part("resource")),
    };
    let parts = [&resource, part("namespace"), part("name")];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    cell::or_none(parts.join("/"))
}

fn load_balancer(object: &Value) -> String {
    let points = list(object, &["status", "loadBalancer", "ingress"]);
    let name = |point| match text(point, &["ip"]) {
        "" => text(point, &["hostname"]),
        ip => ip,
    };
    cell::joined(points.iter().map(name))
}

fn external(service: &Value) -> Value {
    let given = cell::joined(list(service, &["spec", "externalIPs"]).iter().filter_map(Value::as_str));
    match text(service, &["spec", "type"]) {
        "ExternalName" => cell::text_or_none(service, &["spec", "externalName"]),
        "LoadBalancer" => match (load_balancer(service), given) {
            (balanced, given) if balanced.is_empty() && given.is_empty() => "<pending>".into(),
            (balanced, given) if balanced.is_empty() || given.is_empty() => format!("{balanced}{given}").into(),
            (balanced, given) => format!("{balanced},{given}").into(),
        },
        _ => cell::or_none(given),
    }
}

fn ports(service: &Value) -> Value {
    let one = |port: &Value| {
        let number = integer(port, &["port"]).unwrap_or(0);
        let protocol = text(port, &["protocol"]);
        match integer(port, &["nodePort"]) {
            Some(node_port) if node_port > 0 => format!("{number}:{node_port}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    };
    let ports: Vec<String> = list(service, &["spec", "ports"]).iter().map(one).collect();
    cell::or_none(ports.join(","))
}

fn endpoints(object: &Value) -> Value {
    let mut all = Vec::new();
    for subset in list(object, &["subsets"]) {
        let ports = list(subset, &["ports"]);
        for address in list(subset, &["addresses"]) {
            let ip = text(address, &["ip"]);
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(
                ports
                    .iter()
                    .map(|port| format!("{ip}:{}", integer(port, &["port"]).unwrap_or(0))),
            );
        }
    }
    few(&all, cell::NONE)
}

/// The first three, and how many more.
fn few(all: &[String], none: &str) -> Value {
    let shown: Vec<&str> = all.iter().take(3).map(String::as_str).collect();
    match all.len().saturating_sub(3) {
        _ if all.is_empty() => none.into(),
        0 => shown.join(",").into(),
        more => format!("{} + {more} more...", shown.join(",")).into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_show_their_addresses_and_ports() {
        let cluster = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
        assert_eq!(
            (external(&cluster), ports(&cluster)),
            ("<none>".into(), "80/TCP,53/UDP".into())
        );
        let balanced =
            json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}});
        assert_eq!(
            (external(&balanced), ports(&balanced)),
            ("<pending>".into(), "80:30080/TCP".into())
        );
    }

    #[test]
    fn an_address_shows_whose_it_is() {
        let address = json!({"spec": {"parentRef":
            {"group": "", "resource": "services", "namespace": "default", "name": "kubernetes"}}});
        assert_eq!(parent(&address), "services/default/kubernetes");
        assert_eq!(parent(&json!({})), "<none>");
    }

    #[test]
    fn endpoints_show_three_and_count_the_rest() {
        let addresses: Vec<Value> = (1..=5)
            .map(|number| json!({"ip": format!("10.42.0.{number}")}))
            .collect();
        let object = json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        assert_eq!(endpoints(&object), "10.42.0.1:80,10.42.0.2:80,10.42.0.3:80 + 2 more...");
        assert_eq!(endpoints(&json!({})), "<none>");
    }
}
