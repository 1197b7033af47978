//! The Node object: what is registered, what its status says. Pure.
//!
//! Words and defaults are Kubernetes v1.36's (`pkg/kubelet/nodestatus/setters.go`, `kubelet_node_status.go`) and K3s'
//! (instance type, provider id, annotations), because schedulers, dashboards and scripts look for them.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::machine::{Disk, Machine};
use crate::kubelet::Settings;
use crate::runtime::Image;
use crate::units::Bytes;
use crate::wire::object;
use crate::wire::quantity::Quantity;
use crate::wire::time;

/// The Kubernetes version that this kubelet speaks, in K3s' form: clients parse it.
pub const KUBELET_VERSION: &str = "v1.36.3+k3s1";
/// Kubernetes' default.
const MAX_PODS: u32 = 110;
/// K3s' eviction thresholds: `imagefs.available<5%,nodefs.available<5%`.
const DISK_RESERVE_PERCENT: u64 = 5;
/// Kubernetes' default `nodeStatusMaxImages`.
const MAX_IMAGES: usize = 50;

/// What the node's status is made from.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The machine.
    pub machine: Machine,
    /// Its disk now.
    pub disk: Disk,
    /// Images it holds.
    pub images: Vec<Image>,
    /// Why no pod can get a network; `None`: they can.
    pub network_missing: Option<String>,
}

/// The name of this machine's architecture, as images and labels have it.
pub const fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else if cfg!(target_arch = "arm") {
        "arm"
    } else if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        std::env::consts::ARCH
    }
}

/// Labels that a kubelet keeps up to date on its node.
pub fn own_labels(settings: &Settings) -> Vec<(&'static str, String)> {
    let arch = architecture().to_owned();
    vec![
        ("beta.kubernetes.io/arch", arch.clone()),
        ("beta.kubernetes.io/instance-type", "k3s".into()),
        ("beta.kubernetes.io/os", "linux".into()),
        ("kubernetes.io/arch", arch),
        ("kubernetes.io/hostname", settings.node_name.clone()),
        ("kubernetes.io/os", "linux".into()),
        ("node.kubernetes.io/instance-type", "k3s".into()),
    ]
}

fn own_annotations(settings: &Settings) -> Vec<(&'static str, String)> {
    let joined = |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut all = vec![
        ("alpha.kubernetes.io/provided-node-ip", joined(&settings.node_ips.now())),
        ("k3s.io/hostname", settings.hostname.clone()),
        ("k3s.io/internal-ip", joined(&settings.node_ips.now())),
        ("volumes.kubernetes.io/controller-managed-attach-detach", "true".into()),
    ];
    if !settings.external_ips.is_empty() {
        all.push(("k3s.io/external-ip", joined(&settings.external_ips)));
    }
    all
}

fn texts(pairs: impl IntoIterator<Item = (impl Into<String>, String)>) -> Value {
    let each = pairs.into_iter().map(|(key, value)| (key.into(), Value::String(value)));
    Value::Object(each.collect::<Map<_, _>>())
}

/// The object of the first registration.
pub fn fresh(settings: &Settings, observed: &Observed, now: Timestamp) -> Value {
    let own = own_labels(settings);
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
    let taints = settings.taints.iter().map(|taint| {
        let mut it = json!({"key": taint.key, "effect": taint.effect});
        if !taint.value.is_empty() {
            object::set(&mut it, &["value"], taint.value.as_str());
        }
        it
    });
    let mut spec = json!({"providerID": format!("k3s://{}", settings.node_name)});
    if !settings.taints.is_empty() {
        object::set(&mut spec, &["taints"], taints.collect::<Vec<_>>());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": settings.node_name,
            "labels": texts(settings.labels.iter().cloned().chain(own)),
            "annotations": texts(own_annotations(settings)),
        },
        "spec": spec,
        "status": status(settings, observed, &Value::Null, now),
    })
}

/// What a node that is registered already lacks of labels and annotations: a merge patch, `None` if nothing. Labels that
/// an operator gave at first registration are the API's from then on.
pub fn adopt(settings: &Settings, found: &Value) -> Option<Value> {
    let differing = |place: &str, wanted: Vec<(&'static str, String)>| {
        let differs = |(key, value): &(&str, String)| object::text(found, &["metadata", place, key]) != value;
        let all = wanted.into_iter().filter(|pair| differs(pair)).collect::<Vec<_>>();
        (!all.is_empty()).then(|| texts(all))
    };
    let mut metadata = Map::new();
    if let Some(labels) = differing("labels", own_labels(settings)) {
        metadata.insert("labels".into(), labels);
    }
    if let Some(annotations) = differing("annotations", own_annotations(settings)) {
        metadata.insert("annotations".into(), annotations);
    }
    (!metadata.is_empty()).then(|| json!({"metadata": metadata}))
}

/// The whole status now. `before` is the one last reported: conditions keep their transition times.
pub fn status(settings: &Settings, observed: &Observed, before: &Value, now: Timestamp) -> Value {
    let capacity = resources(observed, 0);
    let allocatable = resources(observed, DISK_RESERVE_PERCENT);
    let machine = &observed.machine;
    json!({
        "addresses": addresses(settings),
        "allocatable": allocatable,
        "capacity": capacity,
        "conditions": conditions(observed, before, now),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": settings.port}},
        "images": images(&observed.images),
        "nodeInfo": {
            "architecture": architecture(),
            "bootID": machine.boot_id,
            "containerRuntimeVersion": format!("amphipod://{}", env!("CARGO_PKG_VERSION")),
            "kernelVersion": machine.kernel,
            "kubeProxyVersion": "",
            "kubeletVersion": KUBELET_VERSION,
            "machineID": machine.machine_id,
            "operatingSystem": "linux",
            "osImage": machine.os_image,
            "systemUUID": machine.system_uuid,
        },
    })
}

fn resources(observed: &Observed, disk_reserve_percent: u64) -> Value {
    let disk = observed.disk.total / 100 * (100 - disk_reserve_percent.min(100));
    let kib = |bytes: u64| Quantity::bytes(Bytes::kib(bytes / 1024)).to_string();
    json!({
        "cpu": observed.machine.cpus.to_string(),
        "ephemeral-storage": kib(disk),
        "memory": kib(observed.machine.memory),
        "pods": MAX_PODS.to_string(),
    })
}

/// Millicores and bytes of memory that pods may use.
pub fn allocatable(machine: &Machine) -> (i64, i64) {
    let memory = i64::try_from(machine.memory).unwrap_or(i64::MAX);
    (i64::from(machine.cpus) * 1000, memory)
}

fn addresses(settings: &Settings) -> Vec<Value> {
    let typed = |kind: &'static str| move |ip: &std::net::IpAddr| json!({"type": kind, "address": ip.to_string()});
    let internal = settings.node_ips.now();
    let internal = internal.iter().map(typed("InternalIP"));
    let external = settings.external_ips.iter().map(typed("ExternalIP"));
    let name = json!({"type": "Hostname", "address": settings.node_name});
    internal.chain(external).chain([name]).collect()
}

fn images(all: &[Image]) -> Vec<Value> {
    let mut sorted: Vec<&Image> = all.iter().filter(|image| !image.names.is_empty()).collect();
    sorted.sort_by_key(|image| std::cmp::Reverse(image.size));
    let each = sorted.into_iter().take(MAX_IMAGES);
    each.map(|image| json!({"names": image.names, "sizeBytes": image.size}))
        .collect()
}

fn conditions(observed: &Observed, before: &Value, now: Timestamp) -> Vec<Value> {
    let full = observed.disk.total > 0 && observed.disk.free < observed.disk.total / 100 * DISK_RESERVE_PERCENT;
    let disk = match full {
        true => (true, "KubeletHasDiskPressure", "kubelet has disk pressure".to_owned()),
        false => (
            false,
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure".to_owned(),
        ),
    };
    let ready = match &observed.network_missing {
        None => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(why) => (
            false,
            "KubeletNotReady",
            format!(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{why}"
            ),
        ),
    };
    let memory = "kubelet has sufficient memory available".to_owned();
    let pids = "kubelet has sufficient PID available".to_owned();
    [
        ("MemoryPressure", (false, "KubeletHasSufficientMemory", memory)),
        ("DiskPressure", disk),
        ("PIDPressure", (false, "KubeletHasSufficientPID", pids)),
        ("Ready", ready),
    ]
    .into_iter()
    .map(|(kind, (holds, reason, message))| {
        let status = if holds { "True" } else { "False" };
        let old = object::list(before, &["conditions"])
            .iter()
            .find(|it| object::text(it, &["type"]) == kind && object::text(it, &["status"]) == status);
        let since = old.map(|it| object::text(it, &["lastTransitionTime"]).to_owned());
        let now = time::seconds(now);
        json!({
            "type": kind,
            "status": status,
            "lastHeartbeatTime": now,
            "lastTransitionTime": since.filter(|text| !text.is_empty()).unwrap_or_else(|| now.clone()),
            "reason": reason,
            "message": message,
        })
    })
    .collect()
}

/// Whether two statuses say the same, heartbeats aside.
pub fn says_the_same(one: &Value, other: &Value) -> bool {
    let silent = |status: &Value| {
        let mut status = status.clone();
        if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
            for condition in conditions {
                object::remove(condition, &["lastHeartbeatTime"]);
            }
        }
        status
    };
    silent(one) == silent(other)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings() -> Settings {
        Settings {
            node_ips: vec![[192, 0, 2, 7].into()].into(),
            labels: vec![("site".into(), "roof".into())],
            taints: vec![crate::kubelet::Taint {
                key: "edge".into(),
                value: String::new(),
                effect: "NoSchedule".into(),
            }],
            ..Settings::new("pi", Path::new("/d"))
        }
    }

    fn observed() -> Observed {
        Observed {
            machine: Machine {
                cpus: 4,
                memory: 256 << 20,
                ..Machine::default()
            },
            disk: Disk {
                total: 1000 << 10,
                free: 500 << 10,
            },
            ..Observed::default()
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_node_registers_with_what_the_operator_and_the_machine_say() {
        let node = fresh(&settings(), &observed(), at(0));
        for (path, expected) in [
            (&["metadata", "labels", "site"][..], "roof"),
            (&["metadata", "labels", "kubernetes.io/hostname"], "pi"),
            (&["metadata", "labels", "kubernetes.io/arch"], architecture()),
            (&["spec", "providerID"], "k3s://pi"),
            (&["status", "capacity", "memory"], "256Mi"),
            (&["status", "capacity", "ephemeral-storage"], "1000Ki"),
            (&["status", "allocatable", "ephemeral-storage"], "950Ki"),
            (&["status", "nodeInfo", "kubeletVersion"], KUBELET_VERSION),
        ] {
            assert_eq!(object::text(&node, path), expected, "{path:?}");
        }
        assert_eq!(
            node.pointer("/spec/taints/0"),
            Some(&json!({"key": "edge", "effect": "NoSchedule"}))
        );
        assert_eq!(
            node.pointer("/status/addresses/0"),
            Some(&json!({"type": "InternalIP", "address": "192.0.2.7"}))
        );
    }

    #[test]
    fn a_known_node_gets_only_what_it_lacks() {
        let mut node = fresh(&settings(), &observed(), at(0));
        assert_eq!(adopt(&settings(), &node), None);
        object::remove(&mut node, &["metadata", "labels", "site"]);
        assert_eq!(adopt(&settings(), &node), None, "an operator may take a label away");
        object::set(&mut node, &["metadata", "labels", "kubernetes.io/os"], "plan9");
        assert_eq!(
            adopt(&settings(), &node),
            Some(json!({"metadata": {"labels": {"kubernetes.io/os": "linux"}}}))
        );
    }

    #[test]
    fn conditions_turn_with_the_network_and_the_disk_and_keep_their_times() {
        let find = |status: &Value, kind: &str| {
            let all = object::list(status, &["conditions"]);
            all.iter()
                .find(|it| object::text(it, &["type"]) == kind)
                .unwrap()
                .clone()
        };
        let mut seen = observed();
        seen.network_missing = Some("no address range yet".into());
        let first = status(&settings(), &seen, &Value::Null, at(0));
        assert_eq!(object::text(&find(&first, "Ready"), &["status"]), "False");
        seen.network_missing = None;
        let second = status(&settings(), &seen, &first, at(10));
        let ready = find(&second, "Ready");
        assert_eq!(object::text(&ready, &["status"]), "True");
        assert_eq!(object::text(&ready, &["lastTransitionTime"]), "1970-01-01T00:00:10Z");
        let third = status(&settings(), &seen, &second, at(20));
        assert!(
            says_the_same(&second, &third) && second != third,
            "only the heartbeat moved"
        );
        seen.disk.free = 1 << 10;
        let full = status(&settings(), &seen, &third, at(30));
        assert_eq!(object::text(&find(&full, "DiskPressure"), &["status"]), "True");
        assert!(!says_the_same(&third, &full));
    }
}
