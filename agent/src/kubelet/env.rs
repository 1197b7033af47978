//! A container's environment: values, references, service links, `$(VAR)` expansion.
//!
//! Pure: the objects referred to have been fetched before. Source: Kubernetes v1.36, `pkg/kubelet/kubelet_pods.go`
//! `makeEnvironmentVariables`, `third_party/forked/golang/expansion`, `pkg/kubelet/envvars`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::downward;
use super::objects::{Kind, Objects};
use crate::wire::object;
use crate::wire::pod::{Container, Pod};

/// Why a container cannot be configured: `CreateContainerConfigError`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Wait for somebody to make it.
    #[error("{kind} \"{name}\" not found")]
    Missing {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Wait for somebody to add the key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    MissingKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// The pod is written wrongly.
    #[error("{0}")]
    Field(String),
}

/// The environment of a container, sorted as the pod wrote it, service links first.
///
/// # Errors
/// [`ConfigError`] for what is missing and not optional.
pub fn environment(
    pod: &Pod,
    container: &Container,
    objects: &Objects,
    links: &[(String, String)],
    addresses: &downward::Addresses,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut known: BTreeMap<String, String> = links.iter().cloned().collect();
    let mut result: Vec<(String, String)> = links.to_vec();
    let mut add = |name: String, value: String| {
        known.insert(name.clone(), value.clone());
        result.push((name, value));
    };
    for from in &container.env_from {
        for (kind, reference) in [
            (Kind::ConfigMap, &from.config_map_ref),
            (Kind::Secret, &from.secret_ref),
        ] {
            let Some(reference) = reference else { continue };
            match objects.get(kind, &reference.name) {
                Some(found) => {
                    for (key, value) in found.text_entries() {
                        add(format!("{}{key}", from.prefix), value);
                    }
                }
                None if reference.optional => {}
                None => return Err(missing(kind, &reference.name)),
            }
        }
    }
    let _ = add;
    for var in &container.env {
        let value = match &var.value_from {
            None => Some(expand(&var.value, &known)),
            Some(from) => {
                if let Some(reference) = &from.config_map_key_ref {
                    keyed(pod, objects, Kind::ConfigMap, reference)?
                } else if let Some(reference) = &from.secret_key_ref {
                    keyed(pod, objects, Kind::Secret, reference)?
                } else if let Some(field) = &from.field_ref {
                    Some(downward::field(pod, &field.field_path, addresses).map_err(ConfigError::Field)?)
                } else if let Some(field) = &from.resource_field_ref {
                    Some(downward::resource(pod, container, field, addresses).map_err(ConfigError::Field)?)
                } else {
                    Some(String::new())
                }
            }
        };
        if let Some(value) = value {
            known.insert(var.name.clone(), value.clone());
            result.push((var.name.clone(), value));
        }
    }
    Ok(result)
}

fn missing(kind: Kind, name: &str) -> ConfigError {
    ConfigError::Missing {
        kind: kind.lower(),
        name: name.into(),
    }
}

fn keyed(
    pod: &Pod,
    objects: &Objects,
    kind: Kind,
    at: &crate::wire::pod::KeyRef,
) -> Result<Option<String>, ConfigError> {
    let Some(found) = objects.get(kind, &at.name) else {
        return if at.optional {
            Ok(None)
        } else {
            Err(missing(kind, &at.name))
        };
    };
    match found.text(&at.key) {
        Some(value) => Ok(Some(value)),
        None if at.optional => Ok(None),
        None => Err(ConfigError::MissingKey {
            kind: kind.name(),
            namespace: pod.meta.namespace.clone(),
            name: at.name.clone(),
            key: at.key.clone(),
        }),
    }
}

/// Replaces `$(NAME)` by what is known; `$$` is a dollar; an unknown name stays as it is written.
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables that announce services: those of `namespace` (if links are wanted) and always `default/kubernetes`.
pub fn service_links(services: &[Value]) -> Vec<(String, String)> {
    let mut result = Vec::new();
    for service in services {
        let host = object::text(service, &["spec", "clusterIP"]);
        let ports = object::list(service, &["spec", "ports"]);
        if matches!(host, "" | "None") || ports.is_empty() {
            continue;
        }
        let name = variable(object::text(service, &["metadata", "name"]));
        let mut put = |suffix: String, value: String| result.push((format!("{name}{suffix}"), value));
        put("_SERVICE_HOST".into(), host.into());
        for (index, port) in ports.iter().enumerate() {
            let number = object::integer(port, &["port"]).unwrap_or(0);
            let protocol = match object::text(port, &["protocol"]) {
                "" => "TCP",
                other => other,
            };
            let url = format!("{}://{}:{number}", protocol.to_lowercase(), bracketed(host));
            if index == 0 {
                put("_SERVICE_PORT".into(), number.to_string());
                put("_PORT".into(), url.clone());
            }
            let port_name = object::text(port, &["name"]);
            if !port_name.is_empty() {
                put(format!("_SERVICE_PORT_{}", variable(port_name)), number.to_string());
            }
            let stem = format!("_PORT_{number}_{}", protocol.to_uppercase());
            put(stem.clone(), url);
            put(format!("{stem}_PROTO"), protocol.to_lowercase());
            put(format!("{stem}_PORT"), number.to_string());
            put(format!("{stem}_ADDR"), host.into());
        }
    }
    result
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(container: Value) -> Pod {
        Pod::of(
            &json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}, "spec": {"containers": [container]}}),
        )
        .unwrap()
    }

    fn run(container: Value, objects: &Objects) -> Result<Vec<(String, String)>, ConfigError> {
        let pod = pod(container);
        environment(
            &pod,
            &pod.spec.containers[0],
            objects,
            &[("LINK".into(), "l".into())],
            &downward::Addresses::default(),
        )
    }

    #[test]
    fn dollars_expand_only_what_is_known() {
        let known = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("E".to_owned(), String::new())]);
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(E)z", "x1yz"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, &known), expected, "{text}");
        }
    }

    #[test]
    fn variables_come_from_all_their_sources() {
        let mut objects = Objects::default();
        objects.insert(Kind::ConfigMap, "c", Some(json!({"data": {"k": "v", "j": "w"}})));
        objects.insert(Kind::Secret, "s", Some(json!({"data": {"p": "c2VjcmV0"}})));
        let env = run(
            json!({
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c"}}, {"secretRef": {"name": "none", "optional": true}}],
                "env": [
                    {"name": "A", "value": "$(P_k)-$(LINK)"},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
                    {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "D", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "x", "optional": true}}},
                ]
            }),
            &objects,
        )
        .unwrap();
        let env: BTreeMap<_, _> = env.into_iter().collect();
        let expected = [
            ("A", "v-l"),
            ("B", "secret"),
            ("C", "web"),
            ("LINK", "l"),
            ("P_j", "w"),
            ("P_k", "v"),
        ];
        assert_eq!(env, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut objects = Objects::default();
        objects.insert(Kind::ConfigMap, "c", Some(json!({"data": {}})));
        let key =
            |name: &str| json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": name, "key": "k"}}}]});
        assert_eq!(
            run(key("gone"), &objects).unwrap_err().to_string(),
            "configmap \"gone\" not found"
        );
        assert_eq!(
            run(key("c"), &objects).unwrap_err().to_string(),
            "couldn't find key k in ConfigMap ns/c"
        );
    }

    #[test]
    fn services_are_announced_in_docker_style() {
        let service = json!({"metadata": {"name": "kubernetes"}, "spec": {"clusterIP": "10.43.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}});
        let headless = json!({"metadata": {"name": "x"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}});
        let links: BTreeMap<_, _> = service_links(&[service, headless]).into_iter().collect();
        assert_eq!(links.len(), 8);
        assert_eq!(links["KUBERNETES_SERVICE_HOST"], "10.43.0.1");
        assert_eq!(links["KUBERNETES_SERVICE_PORT_HTTPS"], "443");
        assert_eq!(links["KUBERNETES_PORT_443_TCP"], "tcp://10.43.0.1:443");
    }
}
