//! Persistent volumes, claims, storage classes, CSI drivers.
//!
//! Source: Kubernetes v1.36 `pkg/apis/core/v1/defaults.go`, `pkg/apis/storage/v1/defaults.go`, `pkg/apis/core/validation`
//! (`ValidatePersistentVolumeClaimUpdate`), `pkg/apis/storage/validation`.

use agent::wire::object::{self, at, list, text};
use serde_json::{Value, json};

use super::fault::{Faults, quantity, same};
use super::fill::{absent, blank, copy, object as ensure};
use crate::registry::resource::{FieldError, Rules};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const STORAGE: &[&str] = &["spec", "resources", "requests", "storage"];

/// Rules of claims.
#[derive(Debug)]
pub(super) struct Claim;
/// Rules of volumes.
#[derive(Debug)]
pub(super) struct Volume;
/// Rules of storage classes.
#[derive(Debug)]
pub(super) struct StorageClass;
/// Rules of CSI drivers.
#[derive(Debug)]
pub(super) struct Driver;

impl Rules for Claim {
    fn default(&self, claim: &mut Value) {
        ensure(claim, &["spec"]);
        blank(claim, &["spec", "volumeMode"], "Filesystem");
    }

    fn prepare(&self, claim: &mut Value, old: Option<&Value>) {
        if old.is_none() {
            object::set(claim, &["status"], json!({"phase": "Pending"}));
        }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        access_modes(new, &mut faults);
        if at(new, STORAGE).is_none() {
            faults.push(FieldError::required("spec.resources[storage]", ""));
        }
        faults.quantities(new, &["spec", "resources", "requests"], "");
        let Some(old) = old else { return faults.all() };
        let mut leveled = new.clone();
        // Binding names the volume, and a class that was left open is chosen then.
        for key in ["volumeName", "storageClassName"] {
            if text(old, &["spec", key]).is_empty() {
                copy(&mut leveled, old, &["spec", key]);
            }
        }
        for path in [
            &["spec", "resources", "requests"][..],
            &["spec", "volumeAttributesClassName"],
        ] {
            copy(&mut leveled, old, path);
        }
        if at(&leveled, &["spec"]) != at(old, &["spec"]) {
            let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
            faults.push(FieldError::forbidden("spec", detail));
        }
        let size = |claim: &Value| at(claim, STORAGE).and_then(quantity);
        if size(new) < size(old) {
            let detail = "field can not be less than status.capacity";
            faults.push(FieldError::forbidden("spec.resources.requests.storage", detail));
        }
        faults.all()
    }
}

fn access_modes(object: &Value, faults: &mut Faults) {
    let modes = list(object, &["spec", "accessModes"]);
    if modes.is_empty() {
        faults.push(FieldError::required(
            "spec.accessModes",
            "at least 1 access mode is required",
        ));
    }
    for mode in modes
        .iter()
        .filter_map(Value::as_str)
        .filter(|mode| !MODES.contains(mode))
    {
        let supported = MODES.iter().copied().collect();
        faults.push(FieldError::not_supported("spec.accessModes", &mode.into(), &supported));
    }
    faults.one_of(object, &["spec", "volumeMode"], "", &["Block", "Filesystem"]);
}

impl Rules for Volume {
    fn default(&self, volume: &mut Value) {
        ensure(volume, &["spec"]);
        blank(volume, &["spec", "persistentVolumeReclaimPolicy"], "Retain");
        blank(volume, &["spec", "volumeMode"], "Filesystem");
        if let Some(path) = volume.get_mut("spec").and_then(|spec| spec.get_mut("hostPath")) {
            absent(path, &["type"], "");
        }
    }

    fn prepare(&self, volume: &mut Value, old: Option<&Value>) {
        if old.is_none() {
            object::set(volume, &["status"], json!({"phase": "Pending"}));
        }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        access_modes(new, &mut faults);
        if at(new, &["spec", "capacity", "storage"]).is_none() {
            faults.push(FieldError::required("spec.capacity", ""));
        }
        faults.quantities(new, &["spec", "capacity"], "");
        faults.one_of(
            new,
            &["spec", "persistentVolumeReclaimPolicy"],
            "",
            &["Delete", "Recycle", "Retain"],
        );
        if source(new).is_none() {
            faults.push(FieldError::required("spec", "must specify a volume type"));
        }
        if let Some(old) = old {
            if source(new) != source(old) {
                let detail = "spec.persistentvolumesource is immutable after creation";
                faults.push(FieldError::forbidden("spec.persistentvolumesource", detail));
            }
            faults.immutable(new, old, &["spec", "volumeMode"]);
            if at(old, &["spec", "nodeAffinity"]).is_some() {
                faults.immutable(new, old, &["spec", "nodeAffinity"]);
            }
        }
        faults.all()
    }
}

/// Where the bytes are: the one member of the spec that is none of the others.
fn source(volume: &Value) -> Option<(&String, &Value)> {
    const OTHERS: [&str; 9] = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let members = at(volume, &["spec"]).and_then(Value::as_object).into_iter().flatten();
    members.into_iter().find(|(key, _)| !OTHERS.contains(&key.as_str()))
}

impl Rules for StorageClass {
    fn default(&self, class: &mut Value) {
        blank(class, &["reclaimPolicy"], "Delete");
        blank(class, &["volumeBindingMode"], "Immediate");
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        faults.required(new, &["provisioner"], "");
        faults.one_of(new, &["reclaimPolicy"], "", &["Delete", "Retain"]);
        faults.one_of(new, &["volumeBindingMode"], "", &["Immediate", "WaitForFirstConsumer"]);
        if let Some(old) = old {
            if !same(new.get("parameters"), old.get("parameters")) {
                faults.push(FieldError::forbidden(
                    "parameters",
                    "updates to parameters are forbidden.",
                ));
            }
            for (key, detail) in [
                ("provisioner", "updates to provisioner are forbidden."),
                ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
            ] {
                if text(new, &[key]) != text(old, &[key]) {
                    faults.push(FieldError::forbidden(key, detail));
                }
            }
            faults.immutable(new, old, &["volumeBindingMode"]);
        }
        faults.all()
    }
}

impl Rules for Driver {
    fn default(&self, driver: &mut Value) {
        ensure(driver, &["spec"]);
        for (key, yes) in [
            ("attachRequired", true),
            ("podInfoOnMount", false),
            ("storageCapacity", false),
            ("requiresRepublish", false),
            ("seLinuxMount", false),
        ] {
            absent(driver, &["spec", key], yes);
        }
        blank(driver, &["spec", "fsGroupPolicy"], "ReadWriteOnceWithFSType");
        if list(driver, &["spec", "volumeLifecycleModes"]).is_empty() {
            object::set(driver, &["spec", "volumeLifecycleModes"], json!(["Persistent"]));
        }
    }

    fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = Faults::default();
        if let Some(old) = old {
            faults.immutable(new, old, &["spec", "attachRequired"]);
            faults.immutable(new, old, &["spec", "volumeLifecycleModes"]);
        }
        faults.all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Value {
        let mut claim =
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        Claim.default(&mut claim);
        claim
    }

    #[test]
    fn a_claim_may_grow_and_be_bound_and_nothing_else() {
        let old = claim();
        assert_eq!(Claim.check(&old, None), []);
        for (path, value, faults) in [
            (&["spec", "resources", "requests", "storage"][..], json!("2Gi"), 0),
            (&["spec", "resources", "requests", "storage"], json!("1Mi"), 1),
            (&["spec", "volumeName"], json!("pv"), 0),
            (&["spec", "accessModes"], json!(["ReadOnlyMany"]), 1),
        ] {
            let mut new = old.clone();
            object::set(&mut new, path, value);
            assert_eq!(Claim.check(&new, Some(&old)).len(), faults, "{new}");
        }
    }

    #[test]
    fn a_volume_has_one_source_and_a_class_its_provisioner() {
        let mut volume = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}});
        Volume.default(&mut volume);
        assert_eq!(
            Volume.check(&volume, None)[0].text,
            "Required value: must specify a volume type"
        );
        volume["spec"]["hostPath"] = json!({"path": "/x"});
        assert_eq!(Volume.check(&volume, None), []);
        let mut class = json!({});
        StorageClass.default(&mut class);
        assert_eq!(
            class,
            json!({"reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"})
        );
        assert_eq!(StorageClass.check(&class, None)[0].field, "provisioner");
    }
}
