//! Keeps the number of live pods of each ReplicaSet at what is wanted.
//!
//! Source: Kubernetes v1.36 `pkg/controller/replicaset` and `pkg/controller/controller_utils.go` (`ActivePodsWithRanks`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agent::wire::object::{Meta, at, integer, list, remove, set, text};
use agent::wire::selector::Labels;
use agent::wire::status::Status;
use agent::wire::time;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::action::{Action, Note, Plan, Taken, controller_reference, reference};
use super::runner::{Controller, Source, namespace_goes};
use super::world::{Key, World, selector_of, selects, terminating};
use crate::cache::{ChangeKind, Item};
use crate::request::What;

/// Creations of one pass; more follow at once in the next.
const BURST: usize = 500;
const COMPONENT: &str = "replicaset-controller";

/// Live pods by node.
type Crowds = BTreeMap<String, usize>;

/// The controller.
#[derive(Debug)]
pub struct ReplicaSets;

impl Controller for ReplicaSets {
    fn name(&self) -> &'static str {
        COMPONENT
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::own(What::REPLICA_SETS), Source::of(What::PODS, keys_of_pod)]
    }

    fn plan(&self, world: &dyn World, key: &Key) -> Plan {
        let Some(set) = world.get(What::REPLICA_SETS, &key.namespace, &key.name) else {
            return Plan::default();
        };
        let Some(selector) = selector_of(&set) else {
            return Plan::default();
        };
        let pods = pods_of(world, &set, &selector);
        reconcile(&set, &selector, &pods, || crowds(world, &set), world.now())
    }

    /// A quota or an admission step refuses pods: people read why, and the status goes on counting those there are.
    fn refused(&self, world: &dyn World, key: &Key, what: What, why: &Status) -> Vec<Action> {
        let Some(set) = world.get(What::REPLICA_SETS, &key.namespace, &key.name) else {
            return Vec::new();
        };
        let Some(selector) = selector_of(&set).filter(|_| what == What::PODS && !namespace_goes(why)) else {
            return Vec::new();
        };
        let pods = pods_of(world, &set, &selector);
        let message = format!("Error creating: {}", why.message);
        let mut plan = Plan::default();
        plan.push(Action::Event(Note {
            kind: "Warning",
            ..about(&set, "FailedCreate", message)
        }));
        let owned = owned(&set, &selector, &pods);
        update_status(&mut plan, &set, &owned, Some(&why.message), world.now());
        plan.actions
    }
}

/// The owner of a pod; for a pod without one every set of its namespace, which may adopt it.
fn keys_of_pod(world: &dyn World, _: ChangeKind, item: &Item) -> Vec<Key> {
    let meta = Meta::of(&item.value());
    match meta.controller() {
        Some(owner) if owner.kind == "ReplicaSet" => {
            vec![Key {
                namespace: meta.namespace.clone(),
                name: owner.name.clone(),
            }]
        }
        Some(_) => Vec::new(),
        None => {
            let sets = world.list(What::REPLICA_SETS, Some(&meta.namespace), &Labels::everything());
            let wanted = |set: &Value| selector_of(set).is_some_and(|selector| selects(&selector, &meta));
            sets.filter(wanted).map(|set| Key::of(&set)).collect()
        }
    }
}

/// The pods that are the set's or may become its own. Only what is asked of them is kept: of a thousand pods their specs
/// would be megabytes.
fn pods_of(world: &dyn World, set: &Value, selector: &Labels) -> Vec<Value> {
    let Meta { namespace, uid, .. } = Meta::of(set);
    let pods = world.selected_or_owned(&namespace, selector, &uid);
    pods.map(|mut pod| {
        let node = text(&pod, &["spec", "nodeName"]).to_owned();
        set_in(&mut pod, &["spec"], json!({ "nodeName": node }));
        remove(&mut pod, &["metadata", "managedFields"]);
        pod
    })
    .collect()
}

/// Brings the live pods to the number wanted; unready ones go first, then those of crowded nodes, then the youngest.
fn reconcile(set: &Value, selector: &Labels, pods: &[Value], crowds: impl FnOnce() -> Crowds, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let meta = Meta::of(set);
    let mut owned = Vec::new();
    for pod in pods {
        let pod_meta = Meta::of(pod);
        let ours = pod_meta.controller().is_some_and(|owner| owner.uid == meta.uid);
        match (ours, selects(selector, &pod_meta)) {
            (true, true) => owned.push(pod),
            (true, false) if !terminating(&meta) => plan.push(Action::release(What::PODS, &pod_meta, &meta.uid)),
            (false, true)
                if pod_meta.controller().is_none() && !terminating(&pod_meta) && !terminating(&meta) && active(pod) =>
            {
                plan.push(adopt(pod, set));
                owned.push(pod);
            }
            _ => {}
        }
    }
    let mut live: Vec<&Value> = owned.iter().copied().filter(|pod| active(pod)).collect();
    let wanted = usize::try_from(integer(set, &["spec", "replicas"]).unwrap_or(1)).unwrap_or(0);
    if !terminating(&meta) {
        match wanted.checked_sub(live.len()) {
            Some(missing) => create(&mut plan, set, missing),
            None => {
                if live.len() > wanted {
                    let crowds = crowds();
                    live.sort_by_cached_key(|pod| deletion_rank(pod, &crowds));
                }
                for pod in live.iter().take(live.len() - wanted) {
                    plan.push(Action::delete(What::PODS, pod));
                    let name = text(pod, &["metadata", "name"]);
                    let note = about(set, "SuccessfulDelete", format!("Deleted pod: {name}"));
                    plan.push(Action::Event(note));
                }
            }
        }
    }
    update_status(&mut plan, set, &owned, None, now);
    plan
}

/// The pods that are the set's already.
fn owned<'p>(set: &Value, selector: &Labels, pods: &'p [Value]) -> Vec<&'p Value> {
    let uid = Meta::of(set).uid;
    let ours = |pod: &&Value| {
        let meta = Meta::of(pod);
        meta.controller().is_some_and(|owner| owner.uid == uid) && selects(selector, &meta)
    };
    pods.iter().filter(ours).collect()
}

fn create(plan: &mut Plan, set: &Value, missing: usize) {
    for _ in 0..missing.min(BURST) {
        plan.push(Action::Create {
            what: What::PODS,
            object: pod_of(set),
            taken: Taken::Refused,
            told: Some(about(set, "SuccessfulCreate", "Created pod: ".into())),
        });
    }
    if missing > BURST {
        plan.after(Duration::ZERO);
    }
}

/// A pod after the set's template.
fn pod_of(set: &Value) -> Value {
    let template = set
        .get("spec")
        .and_then(|spec| spec.get("template"))
        .cloned()
        .unwrap_or_default();
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}});
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template.get("metadata").and_then(|meta| meta.get(field)) {
            set_in(&mut pod, &["metadata", field], value.clone());
        }
    }
    set_in(
        &mut pod,
        &["metadata", "generateName"],
        format!("{}-", text(set, &["metadata", "name"])),
    );
    set_in(
        &mut pod,
        &["metadata", "namespace"],
        text(set, &["metadata", "namespace"]),
    );
    set_in(
        &mut pod,
        &["metadata", "ownerReferences"],
        json!([controller_reference(set)]),
    );
    set_in(&mut pod, &["spec"], template.get("spec").cloned().unwrap_or_default());
    pod
}

fn set_in(object: &mut Value, path: &[&str], value: impl Into<Value>) {
    set(object, path, value);
}

fn adopt(pod: &Value, set: &Value) -> Action {
    let meta = Meta::of(pod);
    let mut owners = list(pod, &["metadata", "ownerReferences"]).to_vec();
    owners.push(controller_reference(set));
    Action::merge(What::PODS, &meta, json!({"metadata": {"ownerReferences": owners}}))
}

/// Neither finished nor going.
pub fn active(pod: &Value) -> bool {
    !matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed")
        && at(pod, &["metadata", "deletionTimestamp"]).is_none()
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    list(pod, &["status", "conditions"])
        .iter()
        .find(|condition| text(condition, &["type"]) == kind)
}

/// Whether the pod's Ready condition is true.
pub fn ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|condition| text(condition, &["status"]) == "True")
}

/// When it became ready, if it is.
fn ready_since(pod: &Value) -> Option<Timestamp> {
    let condition = condition(pod, "Ready").filter(|condition| text(condition, &["status"]) == "True")?;
    time::parse(text(condition, &["lastTransitionTime"]))
}

/// How many live pods of the same Deployment each node has, those of its other sets too: while it rolls out, the new pods
/// stay spread. Empty for a set that nobody controls.
///
/// Source: Kubernetes v1.36 `replica_set.go`, `getIndirectlyRelatedPods`, `getPodsRankedByRelatedPodsOnSameNode`.
fn crowds(world: &dyn World, set: &Value) -> Crowds {
    let meta = Meta::of(set);
    let mut crowds = Crowds::new();
    let Some(owner) = meta.controller() else { return crowds };
    let related = |one: &Value| Meta::of(one).controller().is_some_and(|other| other.uid == owner.uid);
    let sets = world.list(What::REPLICA_SETS, Some(&meta.namespace), &Labels::everything());
    let mut counted = BTreeSet::new();
    for selector in sets.filter(related).filter_map(|one| selector_of(&one)) {
        for pod in world.list(What::PODS, Some(&meta.namespace), &selector) {
            if active(&pod) && counted.insert(text(&pod, &["metadata", "uid"]).to_owned()) {
                *crowds.entry(text(&pod, &["spec", "nodeName"]).to_owned()).or_default() += 1;
            }
        }
    }
    crowds
}

/// Smaller goes first: unassigned, pending, unready, cheap to delete, on a crowded node, recently ready, restarting, young.
/// Times count to the second; upstream compares their order of magnitude, to spread the choice over ages.
fn deletion_rank(pod: &Value, crowds: &Crowds) -> impl Ord + use<> {
    let crowd = crowds.get(text(pod, &["spec", "nodeName"])).copied().unwrap_or(0);
    let cost = text(
        pod,
        &["metadata", "annotations", "controller.kubernetes.io/pod-deletion-cost"],
    )
    .parse::<i32>();
    let restarts = list(pod, &["status", "containerStatuses"])
        .iter()
        .filter_map(|one| integer(one, &["restartCount"]))
        .max();
    let phase = match text(pod, &["status", "phase"]) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    (
        !text(pod, &["spec", "nodeName"]).is_empty(),
        phase,
        ready(pod),
        cost.unwrap_or(0),
        std::cmp::Reverse(crowd),
        std::cmp::Reverse(ready_since(pod).map(Timestamp::as_second)),
        std::cmp::Reverse(restarts),
        std::cmp::Reverse(text(pod, &["metadata", "creationTimestamp"]).to_owned()),
        text(pod, &["metadata", "name"]).to_owned(),
    )
}

/// `failure`: why the last creation was refused, `None` when all there should be could be made.
fn update_status(plan: &mut Plan, set: &Value, owned: &[&Value], failure: Option<&str>, now: Timestamp) {
    let live: Vec<&Value> = owned.iter().copied().filter(|pod| active(pod)).collect();
    let min_ready = integer(set, &["spec", "minReadySeconds"]).unwrap_or(0);
    let template = at(set, &["spec", "template", "metadata", "labels"])
        .cloned()
        .unwrap_or_default();
    let labelled = |pod: &&&Value| {
        let labels = template.as_object().into_iter().flatten();
        labels
            .clone()
            .all(|(key, value)| at(pod, &["metadata", "labels", key]) == Some(value))
    };
    let mut available = 0;
    for pod in &live {
        let Some(since) = ready_since(pod).or_else(|| ready(pod).then_some(now)) else {
            continue;
        };
        let waits = min_ready - (now.as_second() - since.as_second());
        match u64::try_from(waits) {
            Ok(waits @ 1..) => plan.after(Duration::from_secs(waits)),
            _ => available += 1,
        }
    }
    let mut status = json!({
        "replicas": live.len(),
        "observedGeneration": integer(set, &["metadata", "generation"]).unwrap_or(0),
    });
    for (field, count) in [
        ("fullyLabeledReplicas", live.iter().filter(labelled).count()),
        ("readyReplicas", live.iter().filter(|pod| ready(pod)).count()),
        ("availableReplicas", available),
    ] {
        if count > 0 {
            set_in(&mut status, &[field], count);
        }
    }
    let conditions = conditions(set, failure, now);
    if !conditions.is_empty() {
        set_in(&mut status, &["conditions"], conditions);
    }
    if set.get("status") != Some(&status) {
        let mut updated = set.clone();
        remove(&mut updated, &["status"]);
        set_in(&mut updated, &["status"], status);
        plan.push(Action::status(What::REPLICA_SETS, updated));
    }
}

/// The set's conditions: `ReplicaFailure` while pods are refused. The same refusal is not a new one.
fn conditions(set: &Value, failure: Option<&str>, now: Timestamp) -> Vec<Value> {
    let before = list(set, &["status", "conditions"]);
    let (failures, mut kept): (Vec<Value>, Vec<Value>) = before
        .iter()
        .cloned()
        .partition(|one| text(one, &["type"]) == "ReplicaFailure");
    if let Some(message) = failure {
        kept.push(failures.into_iter().next().unwrap_or_else(|| {
            json!({
                "type": "ReplicaFailure",
                "status": "True",
                "reason": "FailedCreate",
                "message": message,
                "lastTransitionTime": time::seconds(now),
            })
        }));
    }
    kept
}

fn about(set: &Value, reason: &'static str, message: String) -> Note {
    Note {
        kind: "Normal",
        reason,
        message,
        about: reference(set),
        component: COMPONENT,
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::fake::Objects;
    use super::*;

    fn set(replicas: u32) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web", "namespace": "default", "uid": "set-uid", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}},
        })
    }

    fn pod(name: &str, owner: Option<&str>, ready: bool) -> Value {
        let owners: Vec<Value> = owner
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        let status = if ready { "True" } else { "False" };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}, "ownerReferences": owners},
            "spec": {"nodeName": "n"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": "2026-11-25T11:00:00Z"}]},
        })
    }

    fn plan(set: Value, pods: &[Value]) -> Plan {
        let mut world = vec![(What::REPLICA_SETS, set)];
        world.extend(pods.iter().map(|pod| (What::PODS, pod.clone())));
        ReplicaSets.plan(
            &Objects::new(world),
            &Key {
                namespace: "default".into(),
                name: "web".into(),
            },
        )
    }

    fn count(plan: &Plan, wanted: impl Fn(&Action) -> bool) -> usize {
        plan.actions.iter().filter(|action| wanted(action)).count()
    }

    #[test]
    fn missing_pods_are_made_after_the_template() {
        let plan = plan(set(3), &[pod("a", Some("set-uid"), true)]);
        assert_eq!(count(&plan, |action| matches!(action, Action::Create { .. })), 2);
        let Some(Action::Create { object, .. }) = plan.actions.first() else {
            panic!("{plan:?}")
        };
        assert_eq!(object["metadata"]["generateName"], "web-");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "set-uid");
        assert_eq!(object["spec"]["containers"][0]["name"], "c");
    }

    /// Names of the pods that are to go.
    fn deleted(plan: &Plan) -> Vec<&str> {
        let names = plan.actions.iter().filter_map(|action| match action {
            Action::Delete { meta, .. } => Some(meta.name.as_str()),
            _ => None,
        });
        names.collect()
    }

    #[test]
    fn surplus_pods_go_unready_first() {
        let pods = [
            pod("a", Some("set-uid"), true),
            pod("b", Some("set-uid"), false),
            pod("c", Some("set-uid"), true),
        ];
        let plan = plan(set(2), &pods);
        assert_eq!(deleted(&plan), ["b"]);
    }

    #[test]
    fn surplus_pods_go_from_the_nodes_that_have_most_of_the_deployment() {
        let owners =
            json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "dep", "controller": true}]);
        let on = |name: &str, owner: &str, node: &str| {
            let mut pod = pod(name, Some(owner), true);
            pod["spec"]["nodeName"] = json!(node);
            pod
        };
        // By its own pods, `a` has most; with those of the other set, `b` has.
        let pods = [
            on("p", "set-uid", "a"),
            on("q", "set-uid", "a"),
            on("r", "set-uid", "b"),
            on("s", "other", "b"),
            on("t", "other", "b"),
        ];
        let mut ours = set(2);
        ours["metadata"]["ownerReferences"] = owners.clone();
        let mut other = set(2);
        other["metadata"] = json!({"name": "other", "namespace": "default", "uid": "other", "ownerReferences": owners});
        let mut world = vec![(What::REPLICA_SETS, ours), (What::REPLICA_SETS, other)];
        world.extend(pods.iter().map(|pod| (What::PODS, pod.clone())));
        let key = Key {
            namespace: "default".into(),
            name: "web".into(),
        };
        let plan = ReplicaSets.plan(&Objects::new(world), &key);
        assert_eq!(deleted(&plan), ["r"]);
    }

    #[test]
    fn refused_pods_are_told_of_and_the_status_goes_on_until_they_can_be_made() {
        let mut seen = set(2);
        let pods = [pod("a", Some("set-uid"), true)];
        let key = Key::of(&seen);
        let why = Status::failure(agent::wire::status::Reason::Forbidden, "exceeded quota: q");
        let world =
            |seen: &Value| Objects::new(vec![(What::REPLICA_SETS, seen.clone()), (What::PODS, pods[0].clone())]);
        let actions = ReplicaSets.refused(&world(&seen), &key, What::PODS, &why);
        let [Action::Event(note), Action::Update { object, .. }] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert_eq!((note.kind, note.reason), ("Warning", "FailedCreate"));
        assert_eq!(note.message, "Error creating: exceeded quota: q");
        assert_eq!(object["status"]["readyReplicas"], 1);
        assert_eq!(object["status"]["conditions"][0]["type"], "ReplicaFailure");
        seen["status"] = object["status"].clone();
        let again = ReplicaSets.refused(&world(&seen), &key, What::PODS, &why);
        assert!(
            matches!(again.as_slice(), [Action::Event(_)]),
            "the same refusal is no news: {again:?}"
        );
        let Some(Action::Update { object, .. }) = plan(seen, &pods).actions.pop() else {
            panic!("the plan ends with the status")
        };
        assert_eq!(object["status"].get("conditions"), None);
    }

    #[test]
    fn orphans_are_adopted_and_strangers_left_alone() {
        let plan = plan(
            set(2),
            &[pod("orphan", None, true), pod("stranger", Some("other"), true)],
        );
        assert_eq!(count(&plan, |action| matches!(action, Action::Patch { .. })), 1);
        assert_eq!(count(&plan, |action| matches!(action, Action::Create { .. })), 1);
    }

    #[test]
    fn a_settled_set_is_not_written_again() {
        let mut settled = set(1);
        settled["status"] = json!({"replicas": 1, "observedGeneration": 1, "fullyLabeledReplicas": 1, "readyReplicas": 1, "availableReplicas": 1});
        assert!(plan(settled, &[pod("a", Some("set-uid"), true)]).actions.is_empty());
    }
}
