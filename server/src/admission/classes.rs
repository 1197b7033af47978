//! DefaultStorageClass, DefaultIngressClass, and who asked for a certificate.

use agent::wire::object::{self, at, text};
use serde_json::{Value, json};

use crate::cache::{Cache, Filter};

use super::Request;

const DEFAULT_STORAGE: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_INGRESS: &str = "ingressclass.kubernetes.io/is-default-class";

/// A claim that names no class gets the default one.
pub(super) fn storage(cache: &Cache, request: &Request<'_>, claim: &mut Value) {
    let asks = request.creates("", "persistentvolumeclaims") && at(claim, &["spec", "storageClassName"]).is_none();
    if !asks {
        return;
    }
    if let Some(class) = newest_default(cache, "/registry/storageclasses/", DEFAULT_STORAGE) {
        object::set(claim, &["spec", "storageClassName"], class);
    }
}

/// An ingress that names no class gets the default one.
pub(super) fn ingress(cache: &Cache, request: &Request<'_>, ingress: &mut Value) {
    let legacy = ["metadata", "annotations", "kubernetes.io/ingress.class"];
    let asks = request.creates("networking.k8s.io", "ingresses")
        && at(ingress, &["spec", "ingressClassName"]).is_none()
        && at(ingress, &legacy).is_none();
    if !asks {
        return;
    }
    if let Some(class) = newest_default(cache, "/registry/ingressclasses/", DEFAULT_INGRESS) {
        object::set(ingress, &["spec", "ingressClassName"], class);
    }
}

/// Of several the newest, then the first by name. Source: Kubernetes v1.36 `storageutil.GetDefaultClass`.
fn newest_default(cache: &Cache, prefix: &str, annotation: &str) -> Option<String> {
    let page = cache.list(prefix, &Filter::default(), None, None, None).ok()?;
    let classes = page.items.iter().map(|item| item.value());
    classes
        .filter(|class| text(class, &["metadata", "annotations", annotation]) == "true")
        .map(|class| {
            let name = text(&class, &["metadata", "name"]).to_owned();
            (text(&class, &["metadata", "creationTimestamp"]).to_owned(), name)
        })
        .min_by(|(left, left_name), (right, right_name)| right.cmp(left).then(left_name.cmp(right_name)))
        .map(|(_, name)| name)
}

/// A certificate request says who made it, whatever its maker says.
pub(super) fn requester(request: &Request<'_>, object: &mut Value) {
    if !request.creates("certificates.k8s.io", "certificatesigningrequests") {
        return;
    }
    let user = request.user;
    for key in ["username", "uid", "groups", "extra"] {
        object::remove(object, &["spec", key]);
    }
    object::set(object, &["spec", "username"], user.name.as_str());
    if !user.uid.is_empty() {
        object::set(object, &["spec", "uid"], user.uid.as_str());
    }
    if !user.groups.is_empty() {
        object::set(object, &["spec", "groups"], json!(user.groups));
    }
    if !user.extra.is_empty() {
        object::set(object, &["spec", "extra"], json!(user.extra));
    }
}
