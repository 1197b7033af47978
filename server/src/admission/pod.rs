//! Priority, DefaultTolerationSeconds and RuntimeClass.
//!
//! Source: Kubernetes v1.36 `plugin/pkg/admission/{priority,defaulttolerationseconds,runtimeclass}`.

use agent::wire::object::{self, at, integer, list, text};
use agent::wire::status::Status;
use serde_json::{Value, json};

use crate::cache::{Cache, Filter};

use super::Request;

const CLASSES: &str = "/registry/priorityclasses/";
/// There whether or not their objects are.
const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];
const PREEMPT: &str = "PreemptLowerPriority";
const TOLERATION_SECONDS: i64 = 300;

/// Resolves the class of a new pod to its number.
pub(super) fn priority(cache: &Cache, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
    if !request.creates("", "pods") {
        return Ok(());
    }
    let name = text(pod, &["spec", "priorityClassName"]).to_owned();
    let (class, value, policy) = if name.is_empty() {
        global_default(cache).unwrap_or((String::new(), 0, PREEMPT.to_owned()))
    } else {
        let system = SYSTEM_CLASSES.iter().find(|(class, _)| *class == name);
        let found = cache.get(&format!("{CLASSES}{name}")).map(|item| item.value());
        match (found, system) {
            (Some(object), _) => class_of(&object),
            (None, Some((class, value))) => ((*class).to_owned(), *value, PREEMPT.to_owned()),
            (None, None) => {
                return Err(request.forbidden(&format!("no PriorityClass with name {name} was found")));
            }
        }
    };
    if integer(pod, &["spec", "priority"]).is_some_and(|given| given != value) {
        let given = integer(pod, &["spec", "priority"]).unwrap_or_default();
        return Err(request.forbidden(&format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        )));
    }
    if !class.is_empty() {
        object::set(pod, &["spec", "priorityClassName"], class);
    }
    object::set(pod, &["spec", "priority"], value);
    let given = text(pod, &["spec", "preemptionPolicy"]).to_owned();
    if !given.is_empty() && given != policy {
        return Err(request.forbidden(&format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        )));
    }
    object::set(pod, &["spec", "preemptionPolicy"], policy);
    Ok(())
}

fn class_of(object: &Value) -> (String, i64, String) {
    let policy = match text(object, &["preemptionPolicy"]) {
        "" => PREEMPT,
        policy => policy,
    };
    (
        text(object, &["metadata", "name"]).to_owned(),
        integer(object, &["value"]).unwrap_or(0),
        policy.to_owned(),
    )
}

/// Of several the lowest, as upstream.
fn global_default(cache: &Cache) -> Option<(String, i64, String)> {
    let page = cache.list(CLASSES, &Filter::default(), None, None, None).ok()?;
    let classes = page.items.iter().map(|item| item.value());
    classes
        .filter(|class| class.get("globalDefault") == Some(&Value::Bool(true)))
        .map(|class| class_of(&class))
        .min_by_key(|(_, value, _)| *value)
}

/// A pod stays five minutes on a node that stops answering, unless it says otherwise.
pub(super) fn tolerations(request: &Request<'_>, pod: &mut Value) {
    let concerned = request.is("", "pods") && request.subresource.is_none();
    if !concerned || !pod.is_object() || at(pod, &["metadata", "deletionTimestamp"]).is_some() {
        return;
    }
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let mut tolerations = list(pod, &["spec", "tolerations"]).to_vec();
        let covers = |one: &Value| {
            matches!(text(one, &["key"]), "" if text(one, &["operator"]) == "Exists")
                && matches!(text(one, &["effect"]), "" | "NoExecute")
                || text(one, &["key"]) == key && matches!(text(one, &["effect"]), "" | "NoExecute")
        };
        if tolerations.iter().any(covers) {
            continue;
        }
        tolerations.push(json!({
            "key": key,
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": TOLERATION_SECONDS,
        }));
        object::set(pod, &["spec", "tolerations"], tolerations);
    }
}

/// The runtime class must exist; its overhead becomes the pod's.
pub(super) fn runtime_class(cache: &Cache, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
    if !request.creates("", "pods") {
        return Ok(());
    }
    let name = text(pod, &["spec", "runtimeClassName"]);
    if name.is_empty() {
        return Ok(());
    }
    let Some(class) = cache.get(&format!("/registry/runtimeclasses/{name}")) else {
        return Err(request.forbidden(&format!("pod rejected: RuntimeClass \"{name}\" not found")));
    };
    if let Some(overhead) = at(&class.value(), &["overhead", "podFixed"]) {
        object::set(pod, &["spec", "overhead"], overhead.clone());
    }
    Ok(())
}
