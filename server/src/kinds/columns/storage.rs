//! Volumes and what they come from, config maps and secrets.

use agent::wire::object::{at, list, text};
use serde_json::Value;

use super::{AGE, NAME, Shown, cell};

const VOLUME_MODE: Shown = Shown::text("VolumeMode", "Filesystem or block", |object, _| {
    cell::text(object, &["spec", "volumeMode"])
})
.wide();
const ACCESS_MODES: Shown = Shown::text("Access Modes", "Who may use it at once", |object, _| {
    let given = list(object, &["spec", "accessModes"]).iter().filter_map(Value::as_str);
    cell::joined(given.map(short_mode)).into()
});
const ATTRIBUTES_CLASS: Shown = Shown::text("VolumeAttributesClass", "Its attributes", |object, _| {
    match text(object, &["spec", "volumeAttributesClassName"]) {
        "" => "<unset>".into(),
        class => class.into(),
    }
});
const STORAGE_CLASS: Shown = Shown::text("StorageClass", "Where it comes from", |object, _| {
    cell::text(object, &["spec", "storageClassName"])
});
const STATUS: Shown = Shown::text("Status", "Phase", |object, _| {
    match text(object, &["metadata", "deletionTimestamp"]) {
        "" => cell::text(object, &["status", "phase"]),
        _ => "Terminating".into(),
    }
});

const VOLUMES: &[Shown] = &[
    NAME,
    Shown::text("Capacity", "Size", |object, _| {
        cell::text(object, &["spec", "capacity", "storage"])
    }),
    ACCESS_MODES,
    Shown::text("Reclaim Policy", "What becomes of it when released", |object, _| {
        cell::text(object, &["spec", "persistentVolumeReclaimPolicy"])
    }),
    STATUS,
    Shown::text("Claim", "Whose it is", |object, _| {
        match text(object, &["spec", "claimRef", "name"]) {
            "" => "".into(),
            name => format!("{}/{name}", text(object, &["spec", "claimRef", "namespace"])).into(),
        }
    }),
    STORAGE_CLASS,
    ATTRIBUTES_CLASS,
    Shown::text("Reason", "Why it is so", |object, _| {
        cell::text(object, &["status", "reason"])
    }),
    AGE,
    VOLUME_MODE,
];

const CLAIMS: &[Shown] = &[
    NAME,
    STATUS,
    Shown::text("Volume", "What it got", |object, _| {
        cell::text(object, &["spec", "volumeName"])
    }),
    Shown::text("Capacity", "Size", |object, _| {
        cell::text(object, &["status", "capacity", "storage"])
    }),
    ACCESS_MODES,
    STORAGE_CLASS,
    ATTRIBUTES_CLASS,
    AGE,
    VOLUME_MODE,
];

const CLASSES: &[Shown] = &[
    Shown::text("Name", "", |object, _| class_name(object)),
    Shown::text("Provisioner", "Who makes volumes", |object, _| {
        cell::text(object, &["provisioner"])
    }),
    Shown::text("ReclaimPolicy", "What becomes of them when released", |object, _| {
        cell::text(object, &["reclaimPolicy"])
    }),
    Shown::text("VolumeBindingMode", "When they are made", |object, _| {
        cell::text(object, &["volumeBindingMode"])
    }),
    Shown::text("AllowVolumeExpansion", "Whether they may grow", |object, _| {
        cell::boolean(object, &["allowVolumeExpansion"])
    }),
    AGE,
];

const SECRETS: &[Shown] = &[
    NAME,
    Shown::text("Type", "What it is for", |object, _| cell::text(object, &["type"])),
    Shown::number("Data", "Entries", |object, _| entries(object, &["data"]).into()),
    AGE,
];

const CONFIG_MAPS: &[Shown] = &[
    NAME,
    Shown::number("Data", "Entries", |object, _| {
        (entries(object, &["data"]) + entries(object, &["binaryData"])).into()
    }),
    AGE,
];

const CSI_NODES: &[Shown] = &[
    NAME,
    Shown::number("Drivers", "Drivers on the node", |object, _| {
        list(object, &["spec", "drivers"]).len().into()
    }),
    AGE,
];

/// The columns of a kind that is one of these.
pub fn columns(group: &str, plural: &str) -> Option<&'static [Shown]> {
    Some(match (group, plural) {
        ("", "persistentvolumes") => VOLUMES,
        ("", "persistentvolumeclaims") => CLAIMS,
        ("", "secrets") => SECRETS,
        ("", "configmaps") => CONFIG_MAPS,
        ("storage.k8s.io", "storageclasses") => CLASSES,
        ("storage.k8s.io", "csinodes") => CSI_NODES,
        _ => return None,
    })
}

fn entries(object: &Value, path: &[&str]) -> usize {
    at(object, path)
        .and_then(Value::as_object)
        .map_or(0, serde_json::Map::len)
}

fn short_mode(mode: &str) -> &str {
    match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        other => other,
    }
}

fn class_name(object: &Value) -> Value {
    let name = text(object, &["metadata", "name"]);
    let default = text(
        object,
        &["metadata", "annotations", "storageclass.kubernetes.io/is-default-class"],
    );
    match default {
        "true" => format!("{name} (default)").into(),
        _ => name.into(),
    }
}
