//! What is wrong with one container of a pod.
//!
//! Source: Kubernetes v1.36 `pkg/apis/core/validation/validation.go` (`validateContainers`, `validateProbe`, …).

use std::collections::BTreeSet;

use agent::wire::object::{at, integer, list, text};
use serde_json::Value;

use super::fault::{Faults, join, quantity};
use crate::registry::resource::FieldError;

const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

/// Checks all but the name. `volumes` are those that can be mounted.
pub(super) fn check(container: &Value, field: &str, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    let image = text(container, &["image"]);
    if image.is_empty() {
        faults.push(FieldError::required(join(field, &["image"]), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        faults.push(FieldError::invalid(join(field, &["image"]), &image.into(), detail));
    }
    faults.one_of(
        container,
        &["imagePullPolicy"],
        field,
        &["Always", "IfNotPresent", "Never"],
    );
    let policies = ["File", "FallbackToLogsOnError"];
    faults.one_of(container, &["terminationMessagePolicy"], field, &policies);
    ports(container, field, faults);
    environment(container, field, faults);
    mounts(container, field, volumes, faults);
    resources(container, field, faults);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(value) = container.get(probe) {
            check_probe(value, probe, &join(field, &[probe]), faults);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(value) = at(container, &["lifecycle", hook]) {
            handler(value, &join(field, &["lifecycle", hook]), faults);
        }
    }
}

fn ports(container: &Value, field: &str, faults: &mut Faults) {
    let mut names = BTreeSet::new();
    for (index, port) in list(container, &["ports"]).iter().enumerate() {
        let field = format!("{field}.ports[{index}]");
        faults.port(join(&field, &["containerPort"]), integer(port, &["containerPort"]));
        if let Some(number) = integer(port, &["hostPort"]).filter(|number| *number != 0) {
            faults.port(join(&field, &["hostPort"]), Some(number));
        }
        faults.one_of(port, &["protocol"], &field, PROTOCOLS);
        let name = text(port, &["name"]);
        if name.is_empty() {
            continue;
        }
        if let Some(detail) = port_name_fault(name) {
            faults.push(FieldError::invalid(join(&field, &["name"]), &name.into(), detail));
        } else if !names.insert(name) {
            faults.push(FieldError::duplicate(join(&field, &["name"]), &name.into()));
        }
    }
}

/// An IANA service name. Source: apimachinery v1.36 `validation.IsValidPortName`.
pub(super) fn port_name_fault(name: &str) -> Option<&'static str> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match name {
        name if name.len() > 15 => Some("must be no more than 15 characters"),
        name if !name.bytes().all(fits) => {
            Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
        }
        name if !name.bytes().any(|byte| byte.is_ascii_lowercase()) => Some("must contain at least one letter (a-z)"),
        name if name.contains("--") => Some("must not contain consecutive hyphens"),
        name if name.starts_with('-') || name.ends_with('-') => Some("must not begin or end with a hyphen"),
        _ => None,
    }
}

/// No two containers of a pod take the same port of the node.
pub(super) fn host_ports<'v>(containers: impl Iterator<Item = (usize, &'v Value)>, field: &str, faults: &mut Faults) {
    let mut taken = BTreeSet::new();
    for (index, container) in containers {
        for (number, port) in list(container, &["ports"]).iter().enumerate() {
            let Some(host) = integer(port, &["hostPort"]).filter(|port| *port != 0) else {
                continue;
            };
            if !taken.insert((text(port, &["protocol"]), text(port, &["hostIP"]), host)) {
                let field = format!("{field}[{index}].ports[{number}].hostPort");
                faults.push(FieldError::duplicate(field, &host.into()));
            }
        }
    }
}

fn environment(container: &Value, field: &str, faults: &mut Faults) {
    for (index, variable) in list(container, &["env"]).iter().enumerate() {
        let field = format!("{field}.env[{index}]");
        let name = text(variable, &["name"]);
        let printable = name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=');
        if name.is_empty() {
            faults.push(FieldError::required(join(&field, &["name"]), ""));
        } else if !printable {
            let detail =
                "a valid environment variable name must consist only of printable ASCII characters other than '='";
            faults.push(FieldError::invalid(join(&field, &["name"]), &name.into(), detail));
        }
        let Some(from) = at(variable, &["valueFrom"]).and_then(Value::as_object) else {
            continue;
        };
        let field = join(&field, &["valueFrom"]);
        if from.is_empty() {
            let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
            faults.push(FieldError::invalid(field.as_str(), &"".into(), detail));
        } else if from.len() > 1 {
            let detail = "may not have more than one field specified at a time";
            faults.push(FieldError::invalid(field.as_str(), &"".into(), detail));
        } else if !text(variable, &["value"]).is_empty() {
            let detail = "may not be specified when `value` is not empty";
            faults.push(FieldError::invalid(field.as_str(), &"".into(), detail));
        }
        for source in ["configMapKeyRef", "secretKeyRef"] {
            if let Some(reference) = from.get(source) {
                faults.required(reference, &["name"], &join(&field, &[source]));
                faults.required(reference, &["key"], &join(&field, &[source]));
            }
        }
    }
}

fn mounts(container: &Value, field: &str, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    let mut paths = BTreeSet::new();
    for (index, mount) in list(container, &["volumeMounts"]).iter().enumerate() {
        let field = format!("{field}.volumeMounts[{index}]");
        let (name, path) = (text(mount, &["name"]), text(mount, &["mountPath"]));
        if name.is_empty() {
            faults.push(FieldError::required(join(&field, &["name"]), ""));
        } else if !volumes.contains(name) {
            faults.push(FieldError::not_found(join(&field, &["name"]), &name.into()));
        }
        if path.is_empty() {
            faults.push(FieldError::required(join(&field, &["mountPath"]), ""));
        } else if !paths.insert(path) {
            faults.push(FieldError::invalid(
                join(&field, &["mountPath"]),
                &path.into(),
                "must be unique",
            ));
        }
        let within = text(mount, &["subPath"]);
        if within.starts_with('/') {
            faults.push(FieldError::invalid(
                join(&field, &["subPath"]),
                &within.into(),
                "must be a relative path",
            ));
        } else if within.split('/').any(|part| part == "..") {
            faults.push(FieldError::invalid(
                join(&field, &["subPath"]),
                &within.into(),
                "must not contain '..'",
            ));
        }
    }
}

fn resources(container: &Value, field: &str, faults: &mut Faults) {
    let root = join(field, &["resources"]);
    let Some(resources) = container.get("resources") else {
        return;
    };
    faults.quantities(resources, &["limits"], &root);
    faults.quantities(resources, &["requests"], &root);
    let limits = at(resources, &["limits"]).and_then(Value::as_object);
    for (resource, amount) in at(resources, &["requests"])
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let limit = limits.and_then(|limits| limits.get(resource));
        if let (Some(request), Some(most)) = (quantity(amount), limit.and_then(quantity))
            && request > most
        {
            let detail = format!("must be less than or equal to {resource} limit of {most}");
            faults.push(FieldError::invalid(
                join(&root, &["requests"]),
                &request.to_string().into(),
                &detail,
            ));
        }
    }
}

fn check_probe(probe: &Value, kind: &str, field: &str, faults: &mut Faults) {
    handler(probe, field, faults);
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        faults.not_negative(probe, &[key], field);
    }
    let successes = integer(probe, &["successThreshold"]).unwrap_or(1);
    if kind != "readinessProbe" && successes > 1 {
        let field = join(field, &["successThreshold"]);
        faults.push(FieldError::invalid(field, &successes.into(), "must be 1"));
    }
}

fn handler(value: &Value, field: &str, faults: &mut Faults) {
    let mut given = HANDLERS.iter().filter(|handler| value.get(**handler).is_some());
    let Some(first) = given.next() else {
        return faults.push(FieldError::required(field, "must specify a handler type"));
    };
    if let Some(second) = given.next() {
        let detail = "may not specify more than 1 handler type";
        faults.push(FieldError::forbidden(join(field, &[second]), detail));
    }
    match *first {
        "exec" if list(value, &["exec", "command"]).is_empty() => {
            faults.push(FieldError::required(join(field, &["exec", "command"]), ""));
        }
        "httpGet" | "tcpSocket" => match at(value, &[first, "port"]) {
            Some(Value::String(name)) => {
                if let Some(detail) = port_name_fault(name) {
                    faults.push(FieldError::invalid(
                        join(field, &[first, "port"]),
                        &name.as_str().into(),
                        detail,
                    ));
                }
            }
            number => {
                let number = number.and_then(Value::as_i64).unwrap_or(0);
                if !(1..=65535).contains(&number) {
                    let detail = "must be between 1 and 65535, inclusive";
                    faults.push(FieldError::invalid(
                        join(field, &[first, "port"]),
                        &number.into(),
                        detail,
                    ));
                }
            }
        },
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn faults_of_a_container_read_like_upstreams() {
        for (container, fault) in [
            (json!({"image": ""}), "c.image: Required value"),
            (
                json!({"imagePullPolicy": "Often"}),
                "c.imagePullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ),
            (
                json!({"ports": [{"containerPort": 70000}]}),
                "c.ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"ports": [{"containerPort": 1, "protocol": "HTTP"}]}),
                "c.ports[0].protocol: Unsupported value: \"HTTP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ),
            (
                json!({"ports": [{"containerPort": 1, "name": "http"}, {"containerPort": 2, "name": "http"}]}),
                "c.ports[1].name: Duplicate value: \"http\"",
            ),
            (json!({"env": [{"value": "x"}]}), "c.env[0].name: Required value"),
            (
                json!({"env": [{"name": "a", "valueFrom": {"secretKeyRef": {"name": "s"}}}]}),
                "c.env[0].valueFrom.secretKeyRef.key: Required value",
            ),
            (
                json!({"volumeMounts": [{"name": "no", "mountPath": "/a"}]}),
                "c.volumeMounts[0].name: Not found: \"no\"",
            ),
            (
                json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/a"}]}),
                "c.volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
            ),
            (
                json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}),
                "c.resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                json!({"resources": {"limits": {"memory": "-1"}}}),
                "c.resources.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                json!({"livenessProbe": {}}),
                "c.livenessProbe: Required value: must specify a handler type",
            ),
            (
                json!({"livenessProbe": {"exec": {"command": ["x"]}, "successThreshold": 2}}),
                "c.livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ),
            (
                json!({"readinessProbe": {"tcpSocket": {"port": 0}}}),
                "c.readinessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"lifecycle": {"preStop": {"exec": {}, "httpGet": {"port": 1}}}}),
                "c.lifecycle.preStop.httpGet: Forbidden: may not specify more than 1 handler type",
            ),
        ] {
            let mut whole = json!({"name": "c", "image": "i"});
            for (key, value) in container.as_object().unwrap() {
                whole[key] = value.clone();
            }
            let mut faults = Faults::default();
            check(&whole, "c", &BTreeSet::from(["v"]), &mut faults);
            let texts: Vec<String> = faults
                .all()
                .into_iter()
                .map(|fault| format!("{}: {}", fault.field, fault.text))
                .collect();
            assert_eq!(texts.first().map_or("", String::as_str), fault, "{container}");
        }
    }
}
