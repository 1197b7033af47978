//! Rolls Deployments out: a ReplicaSet per template, the newest scaled up as the older ones go down.
//!
//! Source: Kubernetes v1.36 `pkg/controller/deployment` (`rolling.go`, `recreate.go`, `sync.go`, `util/deployment_util.go`).
//! `status.rs` beside this writes what was reached; `replicaset.rs` keeps the pods.

mod scale;
mod status;

use agent::wire::object::{Meta, at, integer, list, remove, set, text};
use agent::wire::selector::Labels;
use agent::wire::status::{Reason, Status};
use serde_json::{Value, json};

use self::scale::Limits;
use super::action::{Action, Note, Plan, Taken, controller_reference, reference, short_hash};
use super::replicaset::active;
use super::runner::{Controller, Source, namespace_goes};
use super::world::{Found, Key, World, selector_of, selects, terminating};
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
            Source::of(What::PODS, keys_of_pod),
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

    /// The name of the new set is taken: the next one has another. Any other refusal is told.
    fn refused(&self, world: &dyn World, key: &Key, what: What, why: &Status) -> Vec<Action> {
        let deployment = world.get(What::DEPLOYMENTS, &key.namespace, &key.name);
        let Some(deployment) = deployment.filter(|_| what == What::REPLICA_SETS && !namespace_goes(why)) else {
            return Vec::new();
        };
        if why.is(Reason::AlreadyExists) {
            return collision(world, &deployment).into_iter().collect();
        }
        let name = format!("{}-{}", key.name, template_hash(&deployment));
        let message = format!("Failed to create new replica set \"{name}\": {}", why.message);
        let failing = status::creation_failed(&deployment, &message, world.now());
        let note = Note {
            kind: "Warning",
            reason: status::CREATE_ERROR,
            ..about(&deployment, message)
        };
        std::iter::once(Action::Event(note)).chain(failing).collect()
    }
}

/// Another's set, or one of another template, has the name that the next set would get. The count of such collisions is
/// part of what the name is made of.
///
/// Source: Kubernetes v1.36 `sync.go`, `getNewReplicaSet`.
fn collision(world: &dyn World, deployment: &Value) -> Option<Action> {
    let Key { namespace, name } = Key::of(deployment);
    let name = format!("{name}-{}", template_hash(deployment));
    let present = world.get(What::REPLICA_SETS, &namespace, &name)?;
    let owner = Meta::of(&present).controller().map(|owner| owner.uid.clone());
    if owner == Some(Meta::of(deployment).uid) && template_of(&present) == template_of(deployment) {
        return None; // the next pass finds it
    }
    let mut updated = deployment.clone();
    set(&mut updated, &["status", "collisionCount"], collisions(deployment) + 1);
    Some(Action::status(What::DEPLOYMENTS, updated))
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
            let wanted = |one: &Value| selector_of(one).is_some_and(|selector| selects(&selector, &meta));
            all.filter(wanted).map(|one| Key::of(&one)).collect()
        }
    }
}

/// The Deployment of a pod that is gone: a Recreate waits for that, and the ReplicaSet stopped counting the pod when its
/// end began.
fn keys_of_pod(world: &dyn World, change: ChangeKind, item: &Item) -> Vec<Key> {
    match change {
        ChangeKind::Deleted => deployment_of(world, &Meta::of(&item.value())).into_iter().collect(),
        ChangeKind::Added | ChangeKind::Modified => Vec::new(),
    }
}

fn deployment_of(world: &dyn World, pod: &Meta) -> Option<Key> {
    let owner = pod.controller().filter(|owner| owner.kind == "ReplicaSet")?;
    let set = Meta::of(&world.get(What::REPLICA_SETS, &pod.namespace, &owner.name)?);
    let owner = set.controller().filter(|owner| owner.kind == "Deployment")?;
    Some(Key {
        namespace: set.namespace.clone(),
        name: owner.name.clone(),
    })
}

/// The Deployment's sets, oldest first; matching ones without an owner are adopted, others are let go.
fn claim(plan: &mut Plan, deployment: &Value, selector: &Labels, sets: Found<'_>) -> Vec<Value> {
    let owner = Meta::of(deployment);
    let mut ours = Vec::new();
    for one in sets {
        let meta = Meta::of(&one);
        match meta.controller() {
            Some(controller) if controller.uid == owner.uid => {
                if selects(selector, &meta) {
                    ours.push(one);
                } else if !terminating(&owner) {
                    plan.push(Action::release(What::REPLICA_SETS, &meta, &owner.uid));
                }
            }
            None if selects(selector, &meta) && !terminating(&meta) && !terminating(&owner) => {
                let mut owners = list(&one, &["metadata", "ownerReferences"]).to_vec();
                owners.push(controller_reference(deployment));
                let change = json!({"metadata": {"ownerReferences": owners}});
                plan.push(Action::merge(What::REPLICA_SETS, &meta, change));
                ours.push(one);
            }
            _ => {}
        }
    }
    ours.sort_by_cached_key(|one| (text(one, &["metadata", "creationTimestamp"]).to_owned(), Key::of(one)));
    ours
}

fn reconcile<'w>(plan: &mut Plan, deployment: &Value, sets: Vec<Value>, pods: impl Fn() -> Found<'w>) {
    if terminating(&Meta::of(deployment)) {
        return;
    }
    let current = sets.iter().position(|one| template_of(one) == template_of(deployment));
    let mut old = sets;
    let new = current.map(|index| old.remove(index));
    if new.as_ref().is_some_and(|new| describe(plan, deployment, new, &old)) {
        return; // the cache shows it before the next pass, which then looks at sizes
    }
    let paused = at(deployment, &["spec", "paused"]) == Some(&Value::Bool(true));
    let recreate = text(deployment, &["spec", "strategy", "type"]) == "Recreate";
    if paused || scale::is_scaling(deployment, new.iter().chain(&old)) {
        scale::resize(plan, deployment, new.as_ref(), &old);
        if paused {
            forget_oldest(plan, deployment, &old);
        }
        return;
    }
    let limits = Limits::of(deployment);
    let in_the_way = |pod: &Value| holds_up(pod, &old);
    if recreate && (old.iter().any(|one| replicas(one) > 0) || pods().any(|pod| in_the_way(&pod))) {
        let busy: Vec<&Value> = old.iter().filter(|one| replicas(one) > 0).collect();
        busy.iter().for_each(|one| scale_to(plan, deployment, one, 0));
        return; // the new one begins when the last pod of the old ones is gone
    }
    match &new {
        None => create(plan, deployment, &old, limits),
        Some(new) => {
            if recreate {
                scale_to(plan, deployment, new, limits.wanted);
            } else {
                scale::roll(plan, deployment, new, &old, limits);
            }
        }
    }
    if status::is_complete(deployment) {
        forget_oldest(plan, deployment, &old);
    }
}

/// A pod of an older set that still holds what a Recreate waits for, also while it ends.
fn holds_up(pod: &Value, old: &[Value]) -> bool {
    let meta = Meta::of(pod);
    let ours = |set: &Value| meta.controller().is_some_and(|owner| owner.uid == Meta::of(set).uid);
    (active(pod) || terminating(&meta)) && old.iter().any(ours)
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

/// Tells the sets of one Deployment apart by what their pods are made after.
fn template_hash(deployment: &Value) -> String {
    let (template, collisions) = (template_of(deployment), collisions(deployment));
    short_hash(format!("{template}{collisions}").as_bytes())
}

/// How often the name of a new set was taken.
fn collisions(deployment: &Value) -> i64 {
    integer(deployment, &["status", "collisionCount"]).unwrap_or(0)
}

/// The set for the present template.
fn create(plan: &mut Plan, deployment: &Value, old: &[Value], limits: Limits) {
    let name = text(deployment, &["metadata", "name"]);
    let hash = template_hash(deployment);
    let mut annotations = inherited(deployment);
    set(&mut annotations, &[REVISION], next_revision(old).to_string());
    set(&mut annotations, &[DESIRED], limits.wanted.to_string());
    set(&mut annotations, &[MOST], limits.most().to_string());
    let mut template = template_of(deployment);
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
        taken: Taken::Refused,
        told: None,
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

/// What the Deployment says of its present set reaches it: annotations (`kubernetes.io/change-cause`),
/// `minReadySeconds`, and the newest revision when a template comes back (a rollback); the Deployment shows the set's.
/// Whether the set is written.
///
/// Source: Kubernetes v1.36 `sync.go` (`getNewReplicaSet`), `SetNewReplicaSetAnnotations`: nothing is taken away.
fn describe(plan: &mut Plan, deployment: &Value, new: &Value, old: &[Value]) -> bool {
    let revision = revision_of(new).max(next_revision(old)).to_string();
    let mut wanted = inherited(deployment);
    set(&mut wanted, &[REVISION], revision.clone());
    let mut change = json!({});
    for (key, value) in wanted.as_object().into_iter().flatten() {
        if at(new, &["metadata", "annotations", key]) != Some(value) {
            set(&mut change, &["metadata", "annotations", key], value.clone());
        }
    }
    let min_ready = |object: &Value| integer(object, &["spec", "minReadySeconds"]).unwrap_or(0);
    if min_ready(new) != min_ready(deployment) {
        set(&mut change, &["spec", "minReadySeconds"], min_ready(deployment));
    }
    let stale = change != json!({});
    if stale {
        plan.push(Action::merge(What::REPLICA_SETS, &Meta::of(new), change));
    }
    if text(deployment, &["metadata", "annotations", REVISION]) != revision {
        let change = json!({"metadata": {"annotations": {REVISION: revision}}});
        plan.push(Action::merge(What::DEPLOYMENTS, &Meta::of(deployment), change));
    }
    stale
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
        "metadata": {"annotations": {DESIRED: limits.wanted.to_string(), MOST: limits.most().to_string()}},
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
    done.sort_by_cached_key(|one| revision_of(one));
    let surplus = done.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for one in done.iter().take(surplus) {
        plan.push(Action::delete(What::REPLICA_SETS, one));
    }
}

fn note(deployment: &Value, message: String) -> Action {
    Action::Event(about(deployment, message))
}

fn about(deployment: &Value, message: String) -> Note {
    Note {
        kind: "Normal",
        reason: "ScalingReplicaSet",
        message,
        about: reference(deployment),
        component: COMPONENT,
    }
}

#[cfg(test)]
mod tests;
