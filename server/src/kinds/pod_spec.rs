//! The defaults of a pod's spec, in pods and in templates of pods.
//!
//! Source: Kubernetes v1.36 `pkg/apis/core/v1/defaults.go` (`SetDefaults_PodSpec` and those it reaches).

use agent::wire::object::{self, integer, list, text};
use serde_json::{Value, json};

use super::fill::{absent, below, blank, each, object};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const MODE: i64 = 0o644;
const TOKEN_SECONDS: i64 = 3600;
const SOURCE_KEYS: [&str; 4] = ["secret", "configMap", "downwardAPI", "projected"];

/// Fills a spec that is there; pods and templates alike.
pub(super) fn fill(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    blank(spec, &["dnsPolicy"], "ClusterFirst");
    blank(spec, &["restartPolicy"], "Always");
    blank(spec, &["schedulerName"], "default-scheduler");
    object(spec, &["securityContext"]);
    absent(spec, &["terminationGracePeriodSeconds"], 30);
    account(spec);
    for containers in CONTAINERS {
        each(spec, &[containers]).for_each(container);
    }
    each(spec, &["volumes"]).for_each(volume);
}

/// The old name of `serviceAccountName` follows the new one, and the new one the old one where it is alone.
fn account(spec: &mut Value) {
    let name = match text(spec, &["serviceAccountName"]) {
        "" => text(spec, &["serviceAccount"]),
        name => name,
    };
    if !name.is_empty() {
        let name = name.to_owned();
        object::set(spec, &["serviceAccountName"], name.as_str());
        object::set(spec, &["serviceAccount"], name);
    }
}

/// The template of a workload.
pub(super) fn fill_template(object: &mut Value, path: &[&str]) {
    if let Some(spec) = below(object, path).and_then(|template| template.get_mut("spec")) {
        fill(spec);
    }
}

fn container(container: &mut Value) {
    if !container.is_object() {
        return;
    }
    let policy = pull_policy(text(container, &["image"]));
    blank(container, &["imagePullPolicy"], policy);
    blank(container, &["terminationMessagePath"], "/dev/termination-log");
    blank(container, &["terminationMessagePolicy"], "File");
    object(container, &["resources"]);
    for port in each(container, &["ports"]) {
        blank(port, &["protocol"], "TCP");
    }
    for variable in each(container, &["env"]) {
        if let Some(field) = below(variable, &["valueFrom", "fieldRef"]) {
            blank(field, &["apiVersion"], "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) {
            fill_probe(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(get) = below(container, &["lifecycle", hook, "httpGet"]) {
            http_get(get);
        }
    }
}

fn fill_probe(probe: &mut Value) {
    for (key, number) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        // Zero is the zero value of a Go int here: it asks for the default.
        if integer(probe, &[key]).unwrap_or(0) == 0 {
            object::set(probe, &[key], number);
        }
    }
    if let Some(get) = probe.get_mut("httpGet") {
        http_get(get);
    }
    if let Some(grpc) = probe.get_mut("grpc") {
        absent(grpc, &["service"], "");
    }
}

fn http_get(get: &mut Value) {
    blank(get, &["path"], "/");
    blank(get, &["scheme"], "HTTP");
}

/// `Always` for `:latest` and for no tag at all. Source: `pkg/util/parsers.ParseImageName`.
fn pull_policy(image: &str) -> &'static str {
    let (image, digest) = image.split_once('@').map_or((image, false), |(image, _)| (image, true));
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !digest => "Always",
        Some(_) | None => "IfNotPresent",
    }
}

fn volume(volume: &mut Value) {
    let Some(map) = volume.as_object_mut() else { return };
    if map.keys().all(|key| key == "name") {
        map.insert("emptyDir".to_owned(), json!({}));
        return;
    }
    for key in SOURCE_KEYS {
        if let Some(source) = volume.get_mut(key).filter(|source| source.is_object()) {
            absent(source, &["defaultMode"], MODE);
        }
    }
    each(volume, &["downwardAPI", "items"]).for_each(downward);
    for source in each(volume, &["projected", "sources"]) {
        if let Some(token) = source.get_mut("serviceAccountToken") {
            absent(token, &["expirationSeconds"], TOKEN_SECONDS);
        }
        each(source, &["downwardAPI", "items"]).for_each(downward);
    }
    if let Some(path) = volume.get_mut("hostPath") {
        absent(path, &["type"], "");
    }
    if let Some(image) = volume.get_mut("image") {
        let policy = pull_policy(text(image, &["reference"]));
        blank(image, &["pullPolicy"], policy);
    }
    if let Some(iscsi) = volume.get_mut("iscsi") {
        blank(iscsi, &["iscsiInterface"], "default");
    }
    if let Some(claim) = below(volume, &["ephemeral", "volumeClaimTemplate", "spec"]) {
        blank(claim, &["volumeMode"], "Filesystem");
    }
}

fn downward(item: &mut Value) {
    if let Some(field) = item.get_mut("fieldRef") {
        blank(field, &["apiVersion"], "v1");
    }
}

/// What only a pod has, not a template: `SetDefaults_Pod`.
pub(super) fn fill_pod(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    absent(spec, &["enableServiceLinks"], true);
    let host = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for containers in ["initContainers", "containers"] {
        for container in each(spec, &[containers]) {
            requests_from_limits(container);
            for port in each(container, &["ports"]).filter(|_| host) {
                let number = integer(port, &["containerPort"]).unwrap_or(0);
                if integer(port, &["hostPort"]).unwrap_or(0) == 0 && number != 0 {
                    object::set(port, &["hostPort"], number);
                }
            }
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    let limits = object::at(container, &["resources", "limits"])
        .and_then(Value::as_object)
        .cloned();
    for (resource, amount) in limits.into_iter().flatten() {
        absent(container, &["resources", "requests", &resource], amount);
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`: what a node does with the pod when memory is short.
///
/// Source: Kubernetes v1.36 `pkg/apis/core/v1/helper/qos.ComputePodQOS`.
pub(super) fn quality(spec: &Value) -> &'static str {
    let containers = || {
        list(spec, &["containers"])
            .iter()
            .chain(list(spec, &["initContainers"]))
    };
    let amount = |container: &Value, kind: &str, resource: &str| {
        let amount = object::at(container, &["resources", kind, resource]).and_then(super::fault::quantity);
        amount.filter(|amount| amount.milli_value() > 0)
    };
    let asks = |container: &Value| {
        ["cpu", "memory"].iter().any(|resource| {
            ["limits", "requests"]
                .iter()
                .any(|kind| amount(container, kind, resource).is_some())
        })
    };
    let guaranteed = |container: &Value| {
        ["cpu", "memory"].iter().all(|resource| {
            let limit = amount(container, "limits", resource);
            limit.is_some_and(|limit| amount(container, "requests", resource).is_none_or(|request| request == limit))
        })
    };
    match () {
        () if !containers().any(asks) => "BestEffort",
        () if containers().all(guaranteed) => "Guaranteed",
        () => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_pod_gets_what_kubernetes_gives_it() {
        let mut spec = json!({"containers": [{"name": "a", "image": "nginx"}]});
        fill(&mut spec);
        fill_pod(&mut spec);
        let once = spec.clone();
        fill(&mut spec);
        fill_pod(&mut spec);
        assert_eq!(spec, once, "defaults are idempotent");
        assert_eq!(
            spec,
            json!({
                "containers": [{"name": "a", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {}, "terminationGracePeriodSeconds": 30, "enableServiceLinks": true,
            })
        );
    }

    #[test]
    fn an_image_is_pulled_always_if_its_tag_may_move() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/a/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
            ("nginx:latest@sha256:00", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn probes_volumes_and_ports_are_filled() {
        let mut spec = json!({"hostNetwork": true, "serviceAccount": "robot",
            "containers": [{"name": "a", "image": "b:1", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 0}, "readinessProbe": {"grpc": {"port": 1}},
                "resources": {"limits": {"cpu": "1"}}}],
            "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}, {"name": "h", "hostPath": {"path": "/"}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]});
        fill(&mut spec);
        fill_pod(&mut spec);
        let container = &spec["containers"][0];
        assert_eq!(
            container["ports"][0],
            json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"})
        );
        assert_eq!(
            container["livenessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(container["readinessProbe"]["grpc"], json!({"port": 1, "service": ""}));
        assert_eq!(container["resources"]["requests"], json!({"cpu": "1"}));
        assert_eq!(spec["serviceAccountName"], "robot");
        assert_eq!(
            spec["volumes"],
            json!([{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/", "type": ""}},
                {"name": "p", "projected": {"defaultMode": 420,
                    "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}}])
        );
    }

    #[test]
    fn quality_follows_requests_and_limits() {
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}), "Burstable"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
                "Guaranteed",
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Mi"}}),
                "Burstable",
            ),
        ] {
            let spec = json!({"containers": [{"name": "a", "resources": resources}]});
            assert_eq!(quality(&spec), class, "{spec}");
        }
    }
}
