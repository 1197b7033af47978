//! Which fields of a pod ask for what this agent does not do. The pod runs without; its event says so. Pure.

use serde_json::Value;

use crate::wire::object::{at, list, text};

/// Paths of the fields, as Kubernetes writes them.
pub fn fields(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut note = |asked: bool, path: String| {
        if asked {
            found.push(path);
        }
    };
    let is = |path: &[&str], value: bool| at(pod, path) == Some(&Value::Bool(value));
    note(
        is(&["spec", "shareProcessNamespace"], true),
        "spec.shareProcessNamespace".into(),
    );
    note(is(&["spec", "hostUsers"], false), "spec.hostUsers".into());
    confined(&pod["spec"], "spec", &mut note);
    for kind in ["initContainers", "containers"] {
        for (index, container) in list(pod, &["spec", kind]).iter().enumerate() {
            let own = format!("spec.{kind}[{index}]");
            confined(container, &own, &mut note);
            let mount = text(container, &["securityContext", "procMount"]);
            note(
                !matches!(mount, "" | "Default"),
                format!("{own}.securityContext.procMount"),
            );
            for (index, port) in list(container, &["ports"]).iter().enumerate() {
                let asked = at(port, &["hostPort"]).and_then(Value::as_u64).unwrap_or(0) > 0;
                let bound = is(&["spec", "hostNetwork"], true);
                note(asked && !bound, format!("{own}.ports[{index}].hostPort"));
            }
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                note(at(container, &[probe, "grpc"]).is_some(), format!("{own}.{probe}.grpc"));
            }
        }
    }
    found
}

/// Profiles of a pod or a container that would confine it.
fn confined(holder: &Value, own: &str, note: &mut impl FnMut(bool, String)) {
    for profile in ["seccompProfile", "appArmorProfile"] {
        let kind = text(holder, &["securityContext", profile, "type"]);
        note(
            !matches!(kind, "" | "Unconfined"),
            format!("{own}.securityContext.{profile}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_are_not_acted_on_are_named_and_others_not() {
        let plain = json!({"spec": {"hostUsers": true, "shareProcessNamespace": false, "containers": [{
            "ports": [{"containerPort": 80}], "livenessProbe": {"exec": {}},
            "securityContext": {"procMount": "Default", "seccompProfile": {"type": "Unconfined"}},
        }]}});
        assert_eq!(fields(&plain), [""; 0]);
        let asking = json!({"spec": {"hostUsers": false, "shareProcessNamespace": true,
        "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "ports": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 81}],
            "readinessProbe": {"grpc": {"port": 1}},
            "securityContext": {"procMount": "Unmasked", "seccompProfile": {"type": "Localhost"}},
        }]}});
        assert_eq!(
            fields(&asking),
            [
                "spec.shareProcessNamespace",
                "spec.hostUsers",
                "spec.securityContext.appArmorProfile",
                "spec.containers[0].securityContext.seccompProfile",
                "spec.containers[0].securityContext.procMount",
                "spec.containers[0].ports[1].hostPort",
                "spec.containers[0].readinessProbe.grpc",
            ]
        );
    }
}
