//! Rolls Deployments out: a ReplicaSet per template, the newest scaled up as the older ones go down.
//!
//! Source: Kubernetes v1.36 `pkg/controller/deployment` (`rolling.go`, `recreate.go`, `sync.go`, `util/deployment_util.go`).
//! `status.rs` beside this writes what was reached; `replicaset.rs` keeps the pods.

mod scale;
mod status;

use agent::wire::object::{Meta, at, integer, list, remove, set, text};
use agent::wire::selector::Labels;
use serde_json::{Value, json};

use self::scale::Limits;
use super::action::{Action, Note, Plan, controller_reference, reference, short_hash};
use super::replicaset::active;
use super::runner::{Controller, Source};
use super::world::{Key, World, selector_of, selects, terminating};
use crate::cache::{ChangeKind, Item};
use crate::request::What;

const COMPONENT: &str = "deployment-controller";
const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";
/// Annotations of a Deployment that its ReplicaSets do not inherit.
const OWN_ANNOTATIONS: [&str; 4] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    DESIRED,
    MOST,
];

/// The controller.
#[derive(Debug)]
pub struct Deployments;

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        COMPONENT
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::own(What::DEPLOYMENTS),
            Source::of(What::REPLICA_SETS, keys_of_set),
        ]
    }

    fn plan(&self, world: &dyn World, key: &Key) -> Plan {
        let Some(deployment) = world.get(What::DEPLOYMENTS, &key.namespace, &key.name) else {
            return Plan::default();
        };
        let Some(selector) = selector_of(&deployment) else {
            return Plan::default();
        };
        let sets = world.list(What::REPLICA_SETS, Some(&key.namespace), &Labels::everything());
        let mut plan = Plan::default();
        let sets = claim(&mut plan, &deployment, &selector, sets);
        let pods = || world.list(What::PODS, Some(&key.namespace), &selector);
        reconcile(&mut plan, &deployment, sets, pods);
        plan.actions.extend(status::update(&deployment, world, &mut plan.again));
        plan
    }
}

/// The owner of a ReplicaSet; for one without, every Deployment that may adopt it.
fn keys_of_set(world: &dyn World, _: ChangeKind, item: &Item) -> Vec<Key> {
    let meta = Meta::of(&item.value());
    match meta.controller() {
        Some(owner) if owner.kind == "Deployment" => {
            vec![Key {
                namespace: meta.namespace.clone(),
                name: owner.name.clone(),
            }]
        }
        Some(_) => Vec::new(),
        None => {
            let all = world.list(What::DEPLOYMENTS, Some(&meta.namespace), &Labels::everything());
            let wanted = |one: &&Value| selector_of(one).is_some_and(|selector| selects(&selector, &meta));
            all.iter().filter(wanted).map(Key::of).collect()
        }
    }
}

/// The Deployment's sets, oldest first; matching ones without an owner are adopted.
fn claim(plan: &mut Plan, deployment: &Value, selector: &Labels, sets: Vec<Value>) -> Vec<Value> {
    let owner = Meta::of(deployment);
    let mut ours = Vec::new();
    for one in sets {
        let meta = Meta::of(&one);
        match meta.controller() {
            Some(controller) if controller.uid == owner.uid => ours.push(one),
            None if selects(selector, &meta) && !terminating(&meta) && !terminating(&owner) => {
                let mut owners = list(&one, &["metadata", "ownerReferences"]).to_vec();
                owners.push(controller_reference(deployment));
                let change = json!({"metadata": {"uid": meta.uid, "ownerReferences": owners}});
                plan.push(Action::merge(What::REPLICA_SETS, &meta, change));
                ours.push(one);
            }
            _ => {}
        }
    }
    ours.sort_by_key(|one| (text(one, &["metadata", "creationTimestamp"]).to_owned(), Key::of(one)));
    ours
}

fn reconcile(plan: &mut Plan, deployment: &Value, sets: Vec<Value>, pods: impl Fn() -> Vec<Value>) {
    if terminating(&Meta::of(deployment)) {
        return;
    }
    let current = sets.iter().position(|one| template_of(one) == template_of(deployment));
    let mut old = sets;
    let new = current.map(|index| old.remove(index));
    let paused = at(deployment, &["spec", "paused"]) == Some(&Value::Bool(true));
    let recreate = text(deployment, &["spec", "strategy", "type"]) == "Recreate";
    if paused || scale::is_scaling(deployment, new.iter().chain(&old)) {
        scale::resize(plan, deployment, new.as_ref(), &old);
        return;
    }
    let limits = Limits::of(deployment);
    if recreate && (old.iter().any(|one| replicas(one) > 0) || new.is_none() && pods().iter().any(live_elsewhere)) {
        let busy: Vec<&Value> = old.iter().filter(|one| replicas(one) > 0).collect();
        busy.iter().for_each(|one| scale_to(plan, deployment, one, 0));
        return; // the new one begins when the last pod of the old ones is gone
    }
    match &new {
        None => create(plan, deployment, &old, limits),
        Some(new) => {
            keep_revision(plan, deployment, new, &old);
            if recreate {
                scale_to(plan, deployment, new, limits.wanted);
            } else {
                scale::roll(plan, deployment, new, &old, limits);
            }
        }
    }
    forget_oldest(plan, deployment, &old);
}

/// A pod that still holds what a Recreate waits for.
fn live_elsewhere(pod: &Value) -> bool {
    active(pod) || pod["metadata"].get("deletionTimestamp").is_some()
}

/// The pod template without the label that tells sets apart.
fn template_of(object: &Value) -> Value {
    let mut template = object["spec"].get("template").cloned().unwrap_or_default();
    remove(&mut template, &["metadata", "labels", HASH]);
    remove(&mut template, &["metadata", "creationTimestamp"]);
    template
}

fn replicas(object: &Value) -> i64 {
    integer(object, &["spec", "replicas"]).unwrap_or(1)
}

fn revision_of(object: &Value) -> i64 {
    text(object, &["metadata", "annotations", REVISION])
        .parse()
        .unwrap_or(0)
}

fn next_revision(old: &[Value]) -> i64 {
    old.iter().map(revision_of).max().unwrap_or(0).saturating_add(1)
}

/// The set for the present template.
fn create(plan: &mut Plan, deployment: &Value, old: &[Value], limits: Limits) {
    let name = text(deployment, &["metadata", "name"]);
    let template = template_of(deployment);
    let collisions = integer(deployment, &["status", "collisionCount"]).unwrap_or(0);
    let hash = short_hash(format!("{template}{collisions}").as_bytes());
    let mut annotations = inherited(deployment);
    set(&mut annotations, &[REVISION], next_revision(old).to_string());
    set(&mut annotations, &[DESIRED], limits.wanted.to_string());
    set(&mut annotations, &[MOST], limits.most().to_string());
    let mut template = template;
    set(&mut template, &["metadata", "labels", HASH], hash.clone());
    let mut selector = deployment["spec"].get("selector").cloned().unwrap_or_default();
    set(&mut selector, &["matchLabels", HASH], hash.clone());
    let existing: i64 = old.iter().map(replicas).sum();
    let first = if old.is_empty() || text(deployment, &["spec", "strategy", "type"]) == "Recreate" {
        limits.wanted
    } else {
        (limits.most() - existing).clamp(0, limits.wanted)
    };
    let labels = at(&template, &["metadata", "labels"]).cloned().unwrap_or_default();
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{name}-{hash}"),
            "namespace": text(deployment, &["metadata", "namespace"]),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [controller_reference(deployment)],
        },
        "spec": {
            "replicas": first,
            "minReadySeconds": integer(deployment, &["spec", "minReadySeconds"]).unwrap_or(0),
            "selector": selector,
            "template": template,
        },
    });
    plan.push(Action::Create {
        what: What::REPLICA_SETS,
        object,
    });
    if first > 0 {
        plan.push(note(
            deployment,
            format!("Scaled up replica set {name}-{hash} from 0 to {first}"),
        ));
    }
}

/// The Deployment's annotations that describe its template too.
fn inherited(deployment: &Value) -> Value {
    let own = |key: &str| OWN_ANNOTATIONS.contains(&key);
    let all = deployment["metadata"].get("annotations").and_then(Value::as_object);
    all.into_iter()
        .flatten()
        .filter(|(key, _)| !own(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// A template that comes back (a rollback) gets the newest revision, and the Deployment shows the set's.
fn keep_revision(plan: &mut Plan, deployment: &Value, new: &Value, old: &[Value]) {
    let newest = next_revision(old);
    let revision = revision_of(new).max(newest);
    if revision != revision_of(new) {
        let change = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
        plan.push(Action::merge(What::REPLICA_SETS, &Meta::of(new), change));
    }
    if revision != revision_of(deployment) {
        let change = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
        plan.push(Action::merge(What::DEPLOYMENTS, &Meta::of(deployment), change));
    }
}

/// Scales a set, and notes for which size of the Deployment that was right.
fn scale_to(plan: &mut Plan, deployment: &Value, one: &Value, to: i64) {
    let limits = Limits::of(deployment);
    let noted = |key: &str| text(one, &["metadata", "annotations", key]).to_owned();
    let from = replicas(one);
    if from == to && noted(DESIRED) == limits.wanted.to_string() && noted(MOST) == limits.most().to_string() {
        return;
    }
    let meta = Meta::of(one);
    let change = json!({
        "metadata": {
            "resourceVersion": meta.resource_version,
            "annotations": {DESIRED: limits.wanted.to_string(), MOST: limits.most().to_string()},
        },
        "spec": {"replicas": to},
    });
    plan.push(Action::merge(What::REPLICA_SETS, &meta, change));
    if from != to {
        let way = if to > from { "up" } else { "down" };
        plan.push(note(
            deployment,
            format!("Scaled {way} replica set {} from {from} to {to}", meta.name),
        ));
    }
}

/// Removes the oldest empty sets beyond `revisionHistoryLimit`.
fn forget_oldest(plan: &mut Plan, deployment: &Value, old: &[Value]) {
    let limit = integer(deployment, &["spec", "revisionHistoryLimit"]).unwrap_or(10);
    let empty = |one: &&Value| {
        replicas(one) == 0
            && integer(one, &["status", "replicas"]).unwrap_or(0) == 0
            && integer(one, &["status", "observedGeneration"]) >= integer(one, &["metadata", "generation"])
            && !terminating(&Meta::of(one))
    };
    let mut done: Vec<&Value> = old.iter().filter(empty).collect();
    done.sort_by_key(|one| revision_of(one));
    let surplus = done.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for one in done.iter().take(surplus) {
        plan.push(Action::delete(What::REPLICA_SETS, one));
    }
}

fn note(deployment: &Value, message: String) -> Action {
    let about = reference(deployment);
    Action::Event(Note {
        kind: "Normal",
        reason: "ScalingReplicaSet",
        message,
        about,
        component: COMPONENT,
    })
}

#[cfg(test)]
mod tests;
