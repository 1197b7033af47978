//! What is wrong with a pod's spec, in pods and in templates of pods: the checks that real clients notice.
//!
//! Source: Kubernetes v1.36 `pkg/apis/core/validation/validation.go` (`ValidatePodSpec` and those it reaches). Not all of
//! it: affinity terms, topology spread, sysctls and the sources of volumes are taken as they are.

use std::collections::BTreeSet;

use agent::wire::object::{at, integer, list, text};
use agent::wire::selector::{is_dns_label, is_dns_subdomain, is_label_key, is_label_value};
use serde_json::Value;

use super::container_check as container;
use super::fault::{Faults, join};
use crate::registry::resource::{FieldError, Names};
use crate::registry::{check_labels, name_fault};

const MOST_SECONDS: i64 = i32::MAX as i64;
const MOST_NAMESERVERS: usize = 3;

/// Checks the spec of a pod or of a template; `root` is where errors say it is.
pub(super) fn spec(pod: &Value, root: &str, faults: &mut Faults) {
    spec_with(pod, root, &[], faults);
}

/// The same, where more volumes will be there: those of a StatefulSet's claim templates, by `claims`, their names.
fn spec_with(pod: &Value, root: &str, claims: &[&str], faults: &mut Faults) {
    let empty = Value::Null;
    let spec = at(pod, &["spec"]).unwrap_or(&empty);
    let mut volumes = volumes(spec, root, faults);
    volumes.extend(claims);
    containers(spec, root, &volumes, faults);
    faults.one_of(spec, &["restartPolicy"], root, &["Always", "OnFailure", "Never"]);
    dns(spec, root, faults);
    faults.not_negative(spec, &["terminationGracePeriodSeconds"], root);
    faults.within(spec, &["activeDeadlineSeconds"], root, 1, MOST_SECONDS);
    names(spec, root, faults);
    node_selector(spec, root, faults);
    tolerations(spec, root, faults);
    host_network(spec, root, faults);
}

/// Checks a template: labels and spec.
pub(super) fn template(object: &Value, path: &[&str], faults: &mut Faults) {
    template_with(object, path, &[], faults);
}

/// The same, where claim templates of these names become volumes of each pod.
pub(super) fn template_with(object: &Value, path: &[&str], claims: &[&str], faults: &mut Faults) {
    let Some(template) = at(object, path) else { return };
    let root = join("", path);
    let mut labels = Vec::new();
    check_labels(
        template,
        &["metadata", "labels"],
        &format!("{root}.metadata.labels"),
        &mut labels,
    );
    labels.into_iter().for_each(|fault| faults.push(fault));
    spec_with(template, &format!("{root}.spec"), claims, faults);
}

fn containers(spec: &Value, root: &str, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    if list(spec, &["containers"]).is_empty() {
        faults.push(FieldError::required(join(root, &["containers"]), ""));
    }
    let mut taken = BTreeSet::new();
    for key in ["containers", "initContainers"] {
        let field = join(root, &[key]);
        for (index, one) in list(spec, &[key]).iter().enumerate() {
            let field = format!("{field}[{index}]");
            let name = text(one, &["name"]);
            if name.is_empty() {
                faults.push(FieldError::required(join(&field, &["name"]), ""));
            } else if !taken.insert(name) {
                faults.push(FieldError::duplicate(join(&field, &["name"]), &name.into()));
            } else {
                faults.label_name(join(&field, &["name"]), name);
            }
            container::check(one, &field, volumes, faults);
        }
    }
    let ports = list(spec, &["containers"]).iter().enumerate();
    container::host_ports(ports, &join(root, &["containers"]), faults);
}

fn volumes<'v>(spec: &'v Value, root: &str, faults: &mut Faults) -> BTreeSet<&'v str> {
    let mut names = BTreeSet::new();
    for (index, volume) in list(spec, &["volumes"]).iter().enumerate() {
        let field = format!("{}[{index}]", join(root, &["volumes"]));
        let name = text(volume, &["name"]);
        let at_name = join(&field, &["name"]);
        if name.is_empty() {
            faults.push(FieldError::required(at_name, ""));
        } else if !is_dns_label(name) {
            faults.label_name(at_name, name);
        } else if !names.insert(name) {
            faults.push(FieldError::duplicate(at_name, &name.into()));
        }
        let sources = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| *key != "name");
        match sources.collect::<Vec<_>>().as_slice() {
            [] => faults.push(FieldError::required(field, "must specify a volume type")),
            [(kind, source)] => volume_source(kind, source, &field, faults),
            [_, (second, _), ..] => {
                let detail = "may not specify more than 1 volume type";
                faults.push(FieldError::forbidden(join(&field, &[second]), detail));
            }
        }
    }
    names
}

fn volume_source(kind: &str, source: &Value, field: &str, faults: &mut Faults) {
    let field = join(field, &[kind]);
    match kind {
        "hostPath" => {
            faults.required(source, &["path"], &field);
            if text(source, &["path"]).split('/').any(|part| part == "..") {
                let path = text(source, &["path"]);
                faults.push(FieldError::invalid(
                    join(&field, &["path"]),
                    &path.into(),
                    "must not contain '..'",
                ));
            }
        }
        "secret" => faults.required(source, &["secretName"], &field),
        "configMap" => faults.required(source, &["name"], &field),
        "persistentVolumeClaim" => faults.required(source, &["claimName"], &field),
        "nfs" => {
            faults.required(source, &["server"], &field);
            faults.required(source, &["path"], &field);
        }
        "csi" => faults.required(source, &["driver"], &field),
        "projected" => {
            for (index, part) in list(source, &["sources"]).iter().enumerate() {
                if let Some(token) = part.get("serviceAccountToken") {
                    let field = format!("{field}.sources[{index}].serviceAccountToken");
                    faults.required(token, &["path"], &field);
                    if integer(token, &["expirationSeconds"]).is_some_and(|seconds| seconds < 600) {
                        let seconds = integer(token, &["expirationSeconds"]).unwrap_or_default();
                        let detail = "may not specify a duration less than 10 minutes";
                        faults.push(FieldError::invalid(
                            join(&field, &["expirationSeconds"]),
                            &seconds.into(),
                            detail,
                        ));
                    }
                }
            }
        }
        _ => {}
    }
    if let Some(mode) = integer(source, &["defaultMode"]).filter(|mode| !(0..=0o777).contains(mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        faults.push(FieldError::invalid(
            join(&field, &["defaultMode"]),
            &mode.into(),
            detail,
        ));
    }
}

fn dns(spec: &Value, root: &str, faults: &mut Faults) {
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    faults.one_of(spec, &["dnsPolicy"], root, &policies);
    let servers = list(spec, &["dnsConfig", "nameservers"]);
    let field = join(root, &["dnsConfig", "nameservers"]);
    if text(spec, &["dnsPolicy"]) == "None" && servers.is_empty() {
        if at(spec, &["dnsConfig"]).is_none() {
            let detail = "must provide `dnsConfig` when `dnsPolicy` is None";
            faults.push(FieldError::required(join(root, &["dnsConfig"]), detail));
        } else {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            faults.push(FieldError::required(field.as_str(), detail));
        }
    }
    if servers.len() > MOST_NAMESERVERS {
        let detail = "must not have more than 3 nameservers";
        faults.push(FieldError::invalid(field, &Value::from(servers), detail));
    }
}

fn names(spec: &Value, root: &str, faults: &mut Faults) {
    for (key, names) in [
        ("nodeName", Names::Subdomain),
        ("serviceAccountName", Names::Subdomain),
        ("priorityClassName", Names::Subdomain),
        ("runtimeClassName", Names::Subdomain),
        ("hostname", Names::Label),
        ("subdomain", Names::Label),
    ] {
        let name = text(spec, &[key]);
        if name.is_empty() {
            continue;
        }
        if let Some(detail) = name_fault(name, names) {
            faults.push(FieldError::invalid(join(root, &[key]), &name.into(), detail));
        }
    }
    let mut gates = BTreeSet::new();
    for (index, gate) in list(spec, &["schedulingGates"]).iter().enumerate() {
        let name = text(gate, &["name"]);
        let field = format!("{}[{index}]", join(root, &["schedulingGates"]));
        if !is_label_key(name) {
            faults.push(FieldError::invalid(field, &name.into(), "must be a qualified name"));
        } else if !gates.insert(name) {
            faults.push(FieldError::duplicate(field, &name.into()));
        }
    }
    for (index, alias) in list(spec, &["hostAliases"]).iter().enumerate() {
        let ip = text(alias, &["ip"]);
        let field = format!("{}[{index}]", join(root, &["hostAliases"]));
        if ip.parse::<std::net::IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            faults.push(FieldError::invalid(join(&field, &["ip"]), &ip.into(), detail));
        }
        for (number, name) in list(alias, &["hostnames"]).iter().enumerate() {
            if !name.as_str().is_some_and(is_dns_subdomain) {
                let field = format!("{field}.hostnames[{number}]");
                faults.push(FieldError::invalid(
                    field,
                    name,
                    "must be a lowercase RFC 1123 subdomain",
                ));
            }
        }
    }
}

fn node_selector(spec: &Value, root: &str, faults: &mut Faults) {
    let mut found = Vec::new();
    check_labels(spec, &["nodeSelector"], &join(root, &["nodeSelector"]), &mut found);
    found.into_iter().for_each(|fault| faults.push(fault));
}

fn tolerations(spec: &Value, root: &str, faults: &mut Faults) {
    for (index, toleration) in list(spec, &["tolerations"]).iter().enumerate() {
        let field = format!("{}[{index}]", join(root, &["tolerations"]));
        let (key, operator) = (text(toleration, &["key"]), text(toleration, &["operator"]));
        if !key.is_empty() && !is_label_key(key) {
            faults.push(FieldError::invalid(
                join(&field, &["key"]),
                &key.into(),
                "must be a qualified name",
            ));
        }
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            faults.push(FieldError::invalid(
                join(&field, &["operator"]),
                &operator.into(),
                detail,
            ));
        }
        faults.one_of(toleration, &["operator"], &field, &["Equal", "Exists", "Lt", "Gt"]);
        faults.one_of(
            toleration,
            &["effect"],
            &field,
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
        );
        let value = text(toleration, &["value"]);
        if operator == "Exists" && !value.is_empty() {
            let detail = "value must be empty when `operator` is 'Exists'";
            faults.push(FieldError::invalid(join(&field, &["operator"]), &value.into(), detail));
        } else if !is_label_value(value) {
            faults.push(FieldError::invalid(
                join(&field, &["operator"]),
                &value.into(),
                "must be a valid label value",
            ));
        }
        let effect = text(toleration, &["effect"]);
        if at(toleration, &["tolerationSeconds"]).is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            faults.push(FieldError::invalid(join(&field, &["effect"]), &effect.into(), detail));
        }
    }
}

fn host_network(spec: &Value, root: &str, faults: &mut Faults) {
    if at(spec, &["hostNetwork"]) != Some(&Value::Bool(true)) {
        return;
    }
    for (index, one) in list(spec, &["containers"]).iter().enumerate() {
        for (number, port) in list(one, &["ports"]).iter().enumerate() {
            let (inside, outside) = (integer(port, &["containerPort"]), integer(port, &["hostPort"]));
            if outside.is_some_and(|outside| outside != 0 && Some(outside) != inside) {
                let field = format!("{root}.containers[{index}].ports[{number}].containerPort");
                let detail = "must match `hostPort` when `hostNetwork` is true";
                faults.push(FieldError::invalid(field, &inside.into(), detail));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(value: Value) -> Vec<String> {
        let mut faults = Faults::default();
        spec(&json!({ "spec": value }), "spec", &mut faults);
        faults
            .all()
            .into_iter()
            .map(|fault| format!("{}: {}", fault.field, fault.text))
            .collect()
    }

    fn with(extra: Value) -> Vec<String> {
        let mut spec = json!({"containers": [{"name": "a", "image": "b", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        found(spec)
    }

    #[test]
    fn a_pod_without_containers_or_with_twins_is_refused() {
        assert_eq!(found(json!({})), ["spec.containers: Required value"]);
        let twins = with(json!({"initContainers": [{"name": "a", "image": "b"}]}));
        assert_eq!(twins, ["spec.initContainers[0].name: Duplicate value: \"a\""]);
        let upper = with(json!({"initContainers": [{"name": "A", "image": "b"}]}));
        assert!(upper[0].starts_with(
            "spec.initContainers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of"
        ));
    }

    #[test]
    fn faults_of_a_spec_read_like_upstreams() {
        for (extra, fault) in [
            (
                json!({"restartPolicy": "Sometimes"}),
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
            ),
            (
                json!({"dnsPolicy": "None"}),
                "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
            ),
            (
                json!({"terminationGracePeriodSeconds": -1}),
                "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                json!({"activeDeadlineSeconds": 0}),
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            ),
            (
                json!({"volumes": [{"name": "v"}]}),
                "spec.volumes[0]: Required value: must specify a volume type",
            ),
            (
                json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]}),
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            ),
            (
                json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]}),
                "spec.volumes[1].name: Duplicate value: \"v\"",
            ),
            (
                json!({"volumes": [{"name": "v", "secret": {}}]}),
                "spec.volumes[0].secret.secretName: Required value",
            ),
            (
                json!({"tolerations": [{"value": "x"}]}),
                "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ),
            (
                json!({"tolerations": [{"key": "a", "tolerationSeconds": 3}]}),
                "spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
            ),
            (
                json!({"hostAliases": [{"ip": "nope"}]}),
                "spec.hostAliases[0].ip: Invalid value: \"nope\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
        ] {
            assert_eq!(with(extra), [fault]);
        }
    }
}
