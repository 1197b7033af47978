//! Services: defaults, the fields that hang together, what a change of type lets go. Addresses are `registry`'s to give.
//!
//! Source: Kubernetes v1.36 `pkg/apis/core/v1/defaults.go` (`SetDefaults_Service`), `pkg/registry/core/service/strategy.go`
//! (`patchAllocatedValues`, `dropTypeDependentFields`), `pkg/apis/core/validation` (`ValidateService`). One IP family.

use std::collections::BTreeSet;

use agent::wire::object::{self, at, integer, list, text};
use agent::wire::selector::is_dns_label;
use serde_json::{Value, json};

use super::container_check::port_name_fault;
use super::fault::Faults;
use super::fill::{absent, blank, copy, each, object as ensure};
use crate::registry::check_labels;
use crate::registry::resource::{FieldError, Rules};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const AFFINITY_SECONDS: i64 = 10_800;
const AFFINITY_MOST: i64 = 86_400;

/// Rules of services.
#[derive(Debug)]
pub(super) struct Service;

fn kind(service: &Value) -> &str {
    text(service, &["spec", "type"])
}

fn has_address(service: &Value) -> bool {
    kind(service) != "ExternalName"
}

fn has_node_ports(service: &Value) -> bool {
    matches!(kind(service), "NodePort" | "LoadBalancer")
}

fn checks_health(service: &Value) -> bool {
    kind(service) == "LoadBalancer" && text(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

fn is_headless(service: &Value) -> bool {
    text(service, &["spec", "clusterIP"]) == "None"
}

impl Rules for Service {
    fn default(&self, service: &mut Value) {
        ensure(service, &["spec"]);
        blank(service, &["spec", "sessionAffinity"], "None");
        if text(service, &["spec", "sessionAffinity"]) == "ClientIP" {
            let path = ["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"];
            absent(service, &path, AFFINITY_SECONDS);
        } else {
            object::remove(service, &["spec", "sessionAffinityConfig"]);
        }
        blank(service, &["spec", "type"], "ClusterIP");
        for port in each(service, &["spec", "ports"]) {
            blank(port, &["protocol"], "TCP");
            if matches!(port.get("targetPort"), None | Some(Value::Null)) || port.get("targetPort") == Some(&json!(0)) {
                copy_port(port);
            }
        }
        if has_address(service) {
            blank(service, &["spec", "internalTrafficPolicy"], "Cluster");
        }
        if has_node_ports(service) || !list(service, &["spec", "externalIPs"]).is_empty() {
            blank(service, &["spec", "externalTrafficPolicy"], "Cluster");
        }
        if kind(service) == "LoadBalancer" {
            absent(service, &["spec", "allocateLoadBalancerNodePorts"], true);
        }
    }

    fn prepare(&self, service: &mut Value, old: Option<&Value>) {
        match old {
            None => mirror_address(service),
            Some(old) => {
                keep_allocated(service, old);
                follow_address(service, old);
                let_go(service, old);
            }
        }
        families(service);
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        faults.one_of(new, &["spec", "type"], "", TYPES);
        faults.one_of(new, &["spec", "sessionAffinity"], "", &["ClientIP", "None"]);
        let path = ["spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds"];
        faults.within(new, &path, "", 1, AFFINITY_MOST);
        for policy in ["internalTrafficPolicy", "externalTrafficPolicy"] {
            faults.one_of(new, &["spec", policy], "", &["Cluster", "Local"]);
        }
        if list(new, &["spec", "ports"]).is_empty() && !is_headless(new) && has_address(new) {
            faults.push(FieldError::required("spec.ports", ""));
        }
        ports(new, &mut faults);
        let mut labels = Vec::new();
        check_labels(new, &["spec", "selector"], "spec.selector", &mut labels);
        labels.into_iter().for_each(|fault| faults.push(fault));
        by_type(new, &mut faults);
        if let Some(old) = old {
            address_stays(new, old, &mut faults);
        }
        faults.all()
    }
}

fn copy_port(port: &mut Value) {
    if let Some(number) = integer(port, &["port"]) {
        object::set(port, &["targetPort"], number);
    }
}

/// `clusterIPs` has what `clusterIP` says.
fn mirror_address(service: &mut Value) {
    let address = text(service, &["spec", "clusterIP"]).to_owned();
    let several = list(service, &["spec", "clusterIPs"]);
    if address.is_empty() {
        if let Some(first) = several.first().cloned() {
            object::set(service, &["spec", "clusterIP"], first);
        }
    } else if several.is_empty() {
        object::set(service, &["spec", "clusterIPs"], json!([address]));
    }
}

/// Who changes one of `clusterIP` and `clusterIPs` changes the other.
fn follow_address(service: &mut Value, old: &Value) {
    let (one, several) = (["spec", "clusterIP"], ["spec", "clusterIPs"]);
    let changed = text(service, &one) != text(old, &one);
    if changed && list(service, &several) == list(old, &several) {
        object::remove(service, &several);
    }
    mirror_address(service);
}

/// A client that sends the object without what the server had chosen keeps the choice.
fn keep_allocated(service: &mut Value, old: &Value) {
    if has_address(service) && has_address(old) {
        let nothing =
            text(service, &["spec", "clusterIP"]).is_empty() && list(service, &["spec", "clusterIPs"]).is_empty();
        if nothing {
            for field in ["clusterIP", "clusterIPs"] {
                copy(service, old, &["spec", field]);
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if at(service, &["spec", field]).is_none() {
                copy(service, old, &["spec", field]);
            }
        }
    }
    if !(has_node_ports(service) && has_node_ports(old)) {
        return;
    }
    let key = |port: &Value| (text(port, &["protocol"]).to_owned(), integer(port, &["port"]));
    let mut used: BTreeSet<i64> = node_ports(service).collect();
    for port in each(service, &["spec", "ports"]) {
        if integer(port, &["nodePort"]).unwrap_or(0) != 0 {
            continue;
        }
        let before = list(old, &["spec", "ports"])
            .iter()
            .find(|before| key(before) == key(port));
        let number = before.and_then(|before| integer(before, &["nodePort"]));
        if let Some(number) = number.filter(|number| *number != 0 && used.insert(*number)) {
            object::set(port, &["nodePort"], number);
        }
    }
    let unset = integer(service, &["spec", "healthCheckNodePort"]).unwrap_or(0) == 0;
    if checks_health(service) && unset {
        copy(service, old, &["spec", "healthCheckNodePort"]);
    }
}

fn node_ports(service: &Value) -> impl Iterator<Item = i64> {
    let ports = list(service, &["spec", "ports"]).iter();
    ports
        .filter_map(|port| integer(port, &["nodePort"]))
        .filter(|port| *port != 0)
}

/// A service of another type loses what only the old type had, unless the client changed it in the same breath.
fn let_go(service: &mut Value, old: &Value) {
    if has_address(old) && !has_address(service) {
        for field in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            object::remove(service, &["spec", field]);
        }
    }
    if has_node_ports(old) && !has_node_ports(service) {
        let before: BTreeSet<i64> = node_ports(old).collect();
        for port in each(service, &["spec", "ports"]) {
            if integer(port, &["nodePort"]).is_some_and(|number| before.contains(&number)) {
                object::remove(port, &["nodePort"]);
            }
        }
        object::remove(service, &["spec", "externalTrafficPolicy"]);
    }
    if !checks_health(service) {
        object::remove(service, &["spec", "healthCheckNodePort"]);
    }
    if kind(old) == "LoadBalancer" && kind(service) != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            object::remove(service, &["spec", field]);
        }
        if at(service, &["status", "loadBalancer", "ingress"]).is_some() {
            object::set(service, &["status"], json!({"loadBalancer": {}}));
        }
    }
}

fn families(service: &mut Value) {
    if !has_address(service) {
        return;
    }
    // Headless without selector: whoever writes the endpoints decides, so both families may come.
    let open = is_headless(service)
        && at(service, &["spec", "selector"])
            .and_then(Value::as_object)
            .is_none_or(serde_json::Map::is_empty);
    let given = |service: &Value| text(service, &["spec", "ipFamilyPolicy"]).to_owned();
    if open && given(service).is_empty() && list(service, &["spec", "ipFamilies"]).is_empty() {
        object::set(service, &["spec", "ipFamilyPolicy"], "RequireDualStack");
        object::set(service, &["spec", "ipFamilies"], json!(["IPv4", "IPv6"]));
        return;
    }
    blank(service, &["spec", "ipFamilyPolicy"], "SingleStack");
    if list(service, &["spec", "ipFamilies"]).is_empty() {
        object::set(service, &["spec", "ipFamilies"], json!(["IPv4"]));
    }
}

fn ports(service: &Value, faults: &mut Faults) {
    let ports = list(service, &["spec", "ports"]);
    let (mut names, mut pairs) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = |part: &str| format!("spec.ports[{index}].{part}");
        let name = text(port, &["name"]);
        if name.is_empty() {
            if ports.len() > 1 {
                faults.push(FieldError::required(field("name"), ""));
            }
        } else if !is_dns_label(name) {
            faults.label_name(field("name"), name);
        } else if !names.insert(name) {
            faults.push(FieldError::duplicate(field("name"), &name.into()));
        }
        let number = integer(port, &["port"]).unwrap_or(0);
        let range = "must be between 1 and 65535, inclusive";
        if !(1..=65535).contains(&number) {
            faults.push(FieldError::invalid(field("port"), &number.into(), range));
        }
        let root = format!("spec.ports[{index}]");
        faults.one_of(port, &["protocol"], &root, &["SCTP", "TCP", "UDP"]);
        match port.get("targetPort") {
            Some(Value::String(name)) => {
                if let Some(detail) = port_name_fault(name) {
                    faults.push(FieldError::invalid(field("targetPort"), &name.as_str().into(), detail));
                }
            }
            Some(target) if !target.as_i64().is_some_and(|target| (1..=65535).contains(&target)) => {
                faults.push(FieldError::invalid(field("targetPort"), target, range));
            }
            _ => {}
        }
        if !pairs.insert((text(port, &["protocol"]), number)) {
            let value = json!({"protocol": text(port, &["protocol"]), "port": number});
            faults.push(FieldError::duplicate(format!("spec.ports[{index}]"), &value));
        }
        if integer(port, &["nodePort"]).unwrap_or(0) != 0 && !has_node_ports(service) {
            let detail = "may not be used when `type` is 'ClusterIP'";
            faults.push(FieldError::forbidden(field("nodePort"), detail));
        }
    }
}

fn by_type(service: &Value, faults: &mut Faults) {
    let address = text(service, &["spec", "clusterIP"]);
    match kind(service) {
        "ExternalName" => {
            if !address.is_empty() {
                let detail = "may not be set when `type` is 'ExternalName'";
                faults.push(FieldError::forbidden("spec.clusterIPs", detail));
            }
            if text(service, &["spec", "externalName"]).is_empty() {
                faults.push(FieldError::required("spec.externalName", ""));
            }
        }
        "NodePort" | "LoadBalancer" if address == "None" => {
            let detail = format!("may not be set to 'None' for {} services", kind(service));
            faults.push(FieldError::invalid("spec.clusterIPs[0]", &"None".into(), &detail));
        }
        _ => {}
    }
    if !matches!(address, "" | "None") && address.parse::<std::net::IpAddr>().is_err() {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        faults.push(FieldError::invalid("spec.clusterIPs[0]", &address.into(), detail));
    }
    let first = list(service, &["spec", "clusterIPs"]).first();
    if first.and_then(Value::as_str).unwrap_or_default() != address {
        let several = at(service, &["spec", "clusterIPs"]).cloned().unwrap_or_default();
        let detail = "first value must match `clusterIP`";
        faults.push(FieldError::invalid("spec.clusterIPs", &several, detail));
    }
    for (index, ip) in list(service, &["spec", "externalIPs"]).iter().enumerate() {
        if ip.as_str().is_none_or(|ip| ip.parse::<std::net::IpAddr>().is_err()) {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            faults.push(FieldError::invalid(format!("spec.externalIPs[{index}]"), ip, detail));
        }
    }
}

fn address_stays(new: &Value, old: &Value, faults: &mut Faults) {
    let before = text(old, &["spec", "clusterIP"]);
    let after = text(new, &["spec", "clusterIP"]);
    if has_address(new) && has_address(old) && !before.is_empty() && before != after {
        let value = at(new, &["spec", "clusterIPs"])
            .cloned()
            .unwrap_or_else(|| json!([after]));
        faults.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            &value,
            "may not change once set",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        Service.default(&mut service);
        Service.prepare(&mut service, None);
        service
    }

    fn updated(old: &Value, change: impl FnOnce(&mut Value)) -> (Value, Vec<String>) {
        let mut new = old.clone();
        change(&mut new);
        Service.default(&mut new);
        Service.prepare(&mut new, Some(old));
        let faults = Service.check(&new, Some(old));
        (
            new,
            faults
                .into_iter()
                .map(|fault| format!("{}: {}", fault.field, fault.text))
                .collect(),
        )
    }

    #[test]
    fn a_service_gets_its_defaults() {
        let plain = service(json!({"ports": [{"port": 80}], "selector": {"a": "b"}}));
        assert_eq!(
            plain["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "selector": {"a": "b"},
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"})
        );
        assert_eq!(Service.check(&plain, None), []);
        let balanced = service(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
        assert_eq!(balanced["spec"]["allocateLoadBalancerNodePorts"], true);
        assert_eq!(balanced["spec"]["externalTrafficPolicy"], "Cluster");
    }

    #[test]
    fn what_the_server_chose_survives_a_client_that_leaves_it_out() {
        let mut old = service(json!({"type": "NodePort", "ports": [{"port": 80}]}));
        old["spec"]["clusterIP"] = "10.43.0.9".into();
        old["spec"]["clusterIPs"] = json!(["10.43.0.9"]);
        old["spec"]["ports"][0]["nodePort"] = 30080.into();
        let (new, faults) = updated(&old, |service| {
            service["spec"] = json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080}]})
        });
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(new["spec"]["clusterIP"], "10.43.0.9");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        let (_, faults) = updated(&old, |service| service["spec"]["clusterIP"] = "10.43.0.10".into());
        assert_eq!(
            faults,
            ["spec.clusterIPs[0]: Invalid value: [\"10.43.0.10\"]: may not change once set"]
        );
        let (new, faults) = updated(&old, |service| service["spec"]["type"] = "ClusterIP".into());
        assert_eq!(faults, Vec::<String>::new());
        assert!(new["spec"]["ports"][0].get("nodePort").is_none());
        let (new, faults) = updated(&old, |service| {
            service["spec"]["type"] = "ExternalName".into();
            service["spec"]["externalName"] = "example.com".into();
        });
        assert_eq!(faults, Vec::<String>::new());
        assert!(new["spec"].get("clusterIP").is_none());
    }

    #[test]
    fn faults_of_a_service_read_like_upstreams() {
        for (spec, fault) in [
            (json!({}), "spec.ports: Required value"),
            (
                json!({"ports": [{"port": 0}]}),
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"ports": [{"port": 1}, {"port": 2}]}),
                "spec.ports[0].name: Required value",
            ),
            (
                json!({"ports": [{"port": 1, "nodePort": 30000}]}),
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (
                json!({"type": "Internal", "ports": [{"port": 1}]}),
                "spec.type: Unsupported value: \"Internal\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ),
            (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
            (
                json!({"clusterIP": "x", "ports": [{"port": 1}]}),
                "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
            (
                json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 1}]}),
                "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
            ),
        ] {
            let faults = Service.check(&service(spec), None);
            let first = faults.first().map(|fault| format!("{}: {}", fault.field, fault.text));
            assert_eq!(first.as_deref(), Some(fault));
        }
    }
}
