//! Endpoints, endpoint slices, ingresses, network policies, IP addresses.
//!
//! Source: Kubernetes v1.36 `pkg/apis/{discovery,networking}/v1/defaults.go` and their validation.

use std::net::IpAddr;

use agent::wire::object::{self, at, integer, list, text};
use serde_json::{Value, json};

use super::fault::Faults;
use super::fill::{absent, blank, each, object as ensure};
use crate::registry::resource::{FieldError, Rules};

const MOST_ENDPOINTS: usize = 1000;
const BAD_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// Rules of endpoints.
#[derive(Debug)]
pub(super) struct Endpoints;
/// Rules of endpoint slices.
#[derive(Debug)]
pub(super) struct EndpointSlice;
/// Rules of ingresses.
#[derive(Debug)]
pub(super) struct Ingress;
/// Rules of ingress classes.
#[derive(Debug)]
pub(super) struct IngressClass;
/// Rules of network policies.
#[derive(Debug)]
pub(super) struct NetworkPolicy;

/// Rules of `IPAddress`: who has which address is `registry`'s.
#[derive(Debug)]
pub(super) struct Address;

impl Rules for Endpoints {
    fn default(&self, endpoints: &mut Value) {
        for subset in each(endpoints, &["subsets"]) {
            for port in each(subset, &["ports"]) {
                blank(port, &["protocol"], "TCP");
            }
        }
    }

    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        for (index, subset) in list(new, &["subsets"]).iter().enumerate() {
            for key in ["addresses", "notReadyAddresses"] {
                for (number, address) in list(subset, &[key]).iter().enumerate() {
                    let ip = text(address, &["ip"]);
                    if ip.parse::<IpAddr>().is_err() {
                        let field = format!("subsets[{index}].{key}[{number}].ip");
                        faults.push(FieldError::invalid(field, &ip.into(), BAD_ADDRESS));
                    }
                }
            }
            for (number, port) in list(subset, &["ports"]).iter().enumerate() {
                let field = format!("subsets[{index}].ports[{number}].port");
                faults.port(field, integer(port, &["port"]));
            }
        }
        faults.all()
    }
}

impl Rules for EndpointSlice {
    fn default(&self, slice: &mut Value) {
        for port in each(slice, &["ports"]) {
            absent(port, &["name"], "");
            blank(port, &["protocol"], "TCP");
        }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        faults.required(new, &["addressType"], "");
        faults.one_of(new, &["addressType"], "", &["FQDN", "IPv4", "IPv6"]);
        let endpoints = list(new, &["endpoints"]);
        if endpoints.len() > MOST_ENDPOINTS {
            faults.push(FieldError {
                reason: "FieldValueTooMany",
                field: "endpoints".to_owned(),
                text: format!(
                    "Too many: {}: must have at most {MOST_ENDPOINTS} items",
                    endpoints.len()
                ),
            });
        }
        let family = text(new, &["addressType"]);
        for (index, endpoint) in endpoints.iter().enumerate() {
            let addresses = list(endpoint, &["addresses"]);
            if addresses.is_empty() {
                let detail = "must contain at least 1 address";
                faults.push(FieldError::required(format!("endpoints[{index}].addresses"), detail));
            }
            for (number, address) in addresses.iter().enumerate() {
                let parsed = address.as_str().and_then(|text| text.parse::<IpAddr>().ok());
                let fits = match family {
                    "IPv4" => parsed.is_some_and(|address| address.is_ipv4()),
                    "IPv6" => parsed.is_some_and(|address| address.is_ipv6()),
                    _ => true,
                };
                if !fits {
                    let field = format!("endpoints[{index}].addresses[{number}]");
                    faults.push(FieldError::invalid(
                        field,
                        address,
                        &format!("must be an {family} address"),
                    ));
                }
            }
        }
        if let Some(old) = old {
            faults.immutable(new, old, &["addressType"]);
        }
        faults.all()
    }
}

impl Rules for Ingress {
    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let rules = list(new, &["spec", "rules"]);
        if rules.is_empty() && at(new, &["spec", "defaultBackend"]).is_none() {
            let detail = "either `defaultBackend` or `rules` must be specified";
            faults.push(FieldError::invalid("spec", &json!({}), detail));
        }
        for (index, rule) in rules.iter().enumerate() {
            let host = text(rule, &["host"]);
            if host.parse::<IpAddr>().is_ok() {
                let detail = "must be a DNS name, not an IP address";
                faults.push(FieldError::invalid(
                    format!("spec.rules[{index}].host"),
                    &host.into(),
                    detail,
                ));
            }
            for (number, path) in list(rule, &["http", "paths"]).iter().enumerate() {
                ingress_path(path, &format!("spec.rules[{index}].http.paths[{number}]"), &mut faults);
            }
        }
        faults.all()
    }
}

fn ingress_path(path: &Value, field: &str, faults: &mut Faults) {
    let kind = text(path, &["pathType"]);
    if kind.is_empty() {
        faults.push(FieldError::required(
            format!("{field}.pathType"),
            "pathType must be specified",
        ));
    }
    faults.one_of(
        path,
        &["pathType"],
        field,
        &["Exact", "ImplementationSpecific", "Prefix"],
    );
    let given = text(path, &["path"]);
    if matches!(kind, "Exact" | "Prefix") && !given.starts_with('/') {
        faults.push(FieldError::invalid(
            format!("{field}.path"),
            &given.into(),
            "must be an absolute path",
        ));
    }
    match (at(path, &["backend", "service"]), at(path, &["backend", "resource"])) {
        (None, None) => faults.push(FieldError::required(format!("{field}.backend"), "")),
        (Some(service), _) => faults.required(service, &["name"], &format!("{field}.backend.service")),
        (None, Some(_)) => {}
    }
}

impl Rules for IngressClass {
    fn default(&self, class: &mut Value) {
        if at(class, &["spec", "parameters"]).is_some() {
            blank(class, &["spec", "parameters", "scope"], "Cluster");
        }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        faults.required(new, &["spec", "controller"], "");
        if let Some(old) = old {
            faults.immutable(new, old, &["spec", "controller"]);
        }
        faults.all()
    }
}

impl Rules for NetworkPolicy {
    fn default(&self, policy: &mut Value) {
        ensure(policy, &["spec"]);
        for rules in ["ingress", "egress"] {
            for rule in each(policy, &["spec", rules]) {
                for port in each(rule, &["ports"]) {
                    blank(port, &["protocol"], "TCP");
                }
            }
        }
        if list(policy, &["spec", "policyTypes"]).is_empty() {
            let mut types = vec!["Ingress"];
            if !list(policy, &["spec", "egress"]).is_empty() {
                types.push("Egress");
            }
            object::set(policy, &["spec", "policyTypes"], json!(types));
        }
    }

    fn check(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        faults.selector(new, &["spec", "podSelector"], "", true);
        for (index, kind) in list(new, &["spec", "policyTypes"]).iter().enumerate() {
            if !matches!(kind.as_str(), Some("Ingress" | "Egress")) {
                let supported = std::collections::BTreeSet::from(["Egress", "Ingress"]);
                faults.push(FieldError::not_supported(
                    format!("spec.policyTypes[{index}]"),
                    kind,
                    &supported,
                ));
            }
        }
        faults.all()
    }
}

impl Rules for Address {
    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        let name = text(new, &["metadata", "name"]);
        match name.parse::<IpAddr>() {
            Ok(address) if address.to_string() == name => {}
            Ok(address) => {
                let detail = format!("must be in canonical form (\"{address}\")");
                faults.push(FieldError::invalid("metadata.name", &name.into(), &detail));
            }
            Err(_) => faults.push(FieldError::invalid("metadata.name", &name.into(), BAD_ADDRESS)),
        }
        if at(new, &["spec", "parentRef"]).is_none() {
            faults.push(FieldError::required("spec.parentRef", ""));
        } else {
            faults.required(new, &["spec", "parentRef", "resource"], "");
            faults.required(new, &["spec", "parentRef", "name"], "");
        }
        if let Some(old) = old {
            faults.immutable(new, old, &["spec"]);
        }
        faults.all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ip_address_is_one_in_its_shortest_form_and_stays_whose_it_is() {
        let address = |name: &str, parent: &str| json!({"metadata": {"name": name}, "spec": {"parentRef": {"resource": "services", "name": parent}}});
        for (name, text) in [
            ("10.43.0.9", ""),
            ("fd00::9", ""),
            (
                "fd00:0::9",
                "Invalid value: \"fd00:0::9\": must be in canonical form (\"fd00::9\")",
            ),
            (
                "nine",
                "Invalid value: \"nine\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
        ] {
            let faults = Address.check(&address(name, "a"), None);
            assert_eq!(faults.first().map_or("", |fault| fault.text.as_str()), text, "{name}");
        }
        let (old, new) = (address("10.43.0.9", "a"), address("10.43.0.9", "b"));
        assert_eq!(
            Address.check(&new, Some(&old)).first().map(|fault| &*fault.field),
            Some("spec")
        );
        let bare = json!({"metadata": {"name": "10.43.0.9"}, "spec": {}});
        assert_eq!(
            Address.check(&bare, None).first().map(|fault| &*fault.field),
            Some("spec.parentRef")
        );
    }

    #[test]
    fn a_policy_is_for_what_it_has_rules_for() {
        for (spec, types) in [
            (json!({}), json!(["Ingress"])),
            (
                json!({"egress": [{"ports": [{"port": 53}]}]}),
                json!(["Ingress", "Egress"]),
            ),
        ] {
            let mut policy = json!({ "spec": spec });
            NetworkPolicy.default(&mut policy);
            assert_eq!(policy["spec"]["policyTypes"], types);
        }
    }

    #[test]
    fn slices_hold_addresses_of_their_family() {
        let slice =
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["::1"]}, {}]});
        let texts: Vec<String> = EndpointSlice
            .check(&slice, None)
            .into_iter()
            .map(|fault| format!("{}: {}", fault.field, fault.text))
            .collect();
        assert_eq!(
            texts,
            [
                "endpoints[1].addresses[0]: Invalid value: \"::1\": must be an IPv4 address",
                "endpoints[2].addresses: Required value: must contain at least 1 address",
            ]
        );
    }

    #[test]
    fn an_ingress_needs_a_path_type_and_a_backend() {
        let ingress = json!({"spec": {"rules": [{"http": {"paths": [{"path": "x", "pathType": "Prefix"}, {"backend": {"service": {}}}]}}]}});
        let fields: Vec<String> = Ingress
            .check(&ingress, None)
            .into_iter()
            .map(|fault| fault.field)
            .collect();
        assert_eq!(
            fields,
            [
                "spec.rules[0].http.paths[0].path",
                "spec.rules[0].http.paths[0].backend",
                "spec.rules[0].http.paths[1].pathType",
                "spec.rules[0].http.paths[1].backend.service.name",
            ]
        );
    }
}
