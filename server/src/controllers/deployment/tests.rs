//! Rollouts played against a world in which ReplicaSets reach their size at once.

use serde_json::{Value, json};

use super::super::action::Action;
use super::super::runner::Controller;
use super::super::world::Key;
use super::super::world::fake::Objects;
use super::*;
use crate::request::Patch;

fn deployment(replicas: i64, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "uid": "dep", "generation": 1},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    })
}

/// Carries plans out on a list of objects, ReplicaSets being instantly as large as wanted and available if `healthy`.
struct Play {
    objects: Vec<(What, Value)>,
    most: i64,
    least_available: i64,
}

impl Play {
    fn new(deployment: Value) -> Self {
        Self {
            objects: vec![(What::DEPLOYMENTS, deployment)],
            most: 0,
            least_available: i64::MAX,
        }
    }

    fn deployment(&mut self) -> &mut Value {
        &mut self.objects[0].1
    }

    fn sets(&self) -> Vec<&Value> {
        self.objects
            .iter()
            .filter(|(what, _)| *what == What::REPLICA_SETS)
            .map(|(_, object)| object)
            .collect()
    }

    /// Plans until nothing is left to do; panics if that takes suspiciously long.
    fn settle(&mut self, healthy: impl Fn(&Value) -> bool) {
        for _ in 0..50 {
            let key = Key {
                namespace: "default".into(),
                name: "web".into(),
            };
            let before = self.objects.clone();
            let plan = Deployments.plan(&Objects::new(before.clone()), &key);
            plan.actions.into_iter().for_each(|action| self.act(action));
            for (_, one) in self.objects.iter_mut().filter(|(what, _)| *what == What::REPLICA_SETS) {
                let size = replicas(one);
                let available = if healthy(one) { size } else { 0 };
                one["status"] = json!({"replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1});
            }
            self.most = self.most.max(self.sets().iter().map(|one| replicas(one)).sum());
            let available = self
                .sets()
                .iter()
                .map(|one| one["status"]["availableReplicas"].as_i64().unwrap())
                .sum();
            self.least_available = self.least_available.min(available);
            if self.objects == before {
                return;
            }
        }
        panic!("the rollout does not settle: {:#?}", self.objects);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Create { what, mut object, .. } => {
                object["metadata"]["creationTimestamp"] = json!(format!("2026-11-25T11:00:{:02}Z", self.objects.len()));
                object["metadata"]["generation"] = json!(1);
                self.objects.push((what, object));
            }
            Action::Patch {
                what,
                at,
                patch: Patch::Merge(change),
                ..
            } => {
                let found = self
                    .objects
                    .iter_mut()
                    .find(|(kind, object)| *kind == what && Key::of(object).name == at.1);
                merge(&mut found.unwrap().1, &change);
            }
            Action::Update { what, object, .. } => {
                let key = Key::of(&object);
                let found = self
                    .objects
                    .iter_mut()
                    .find(|(kind, object)| *kind == what && Key::of(object) == key);
                found.unwrap().1 = object;
            }
            Action::Delete { what, meta, .. } => self
                .objects
                .retain(|(kind, one)| *kind != what || Key::of(one).name != meta.name),
            Action::Patch { .. } | Action::Event(_) => {}
        }
    }
}

fn merge(target: &mut Value, change: &Value) {
    match change {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            if !target.is_object() {
                *target = json!({});
            }
            merge(&mut target[key.as_str()], value);
        }),
        other => *target = other.clone(),
    }
}

fn sizes(play: &Play) -> Vec<i64> {
    play.sets().iter().map(|one| replicas(one)).collect()
}

#[test]
fn a_new_deployment_gets_one_set_of_its_size() {
    let mut play = Play::new(deployment(3, "a"));
    play.settle(|_| true);
    assert_eq!(sizes(&play), [3]);
    let set = play.sets()[0].clone();
    assert_eq!(set["metadata"]["annotations"][REVISION], "1");
    assert_eq!(
        set["spec"]["selector"]["matchLabels"][HASH],
        set["metadata"]["labels"][HASH]
    );
    let status = play.deployment()["status"].clone();
    assert_eq!(
        (status["availableReplicas"].clone(), status["updatedReplicas"].clone()),
        (json!(3), json!(3))
    );
    assert_eq!(status["conditions"][1]["reason"], "NewReplicaSetAvailable");
}

#[test]
fn a_new_image_rolls_within_surge_and_unavailable() {
    let mut play = Play::new(deployment(4, "a"));
    play.settle(|_| true);
    (play.most, play.least_available) = (0, i64::MAX);
    *play.deployment() = {
        let mut next = play.deployment().clone();
        next["spec"]["template"]["spec"]["containers"][0]["image"] = json!("b");
        next
    };
    play.settle(|_| true);
    assert_eq!(sizes(&play), [0, 4]);
    assert!(
        play.most <= 5 && play.least_available >= 3,
        "most {} least {}",
        play.most,
        play.least_available
    );
    assert_eq!(play.deployment()["metadata"]["annotations"][REVISION], "2");
}

#[test]
fn a_bad_image_stops_the_rollout_and_going_back_gets_a_new_revision() {
    let mut play = Play::new(deployment(4, "a"));
    play.settle(|_| true);
    play.deployment()["spec"]["template"]["spec"]["containers"][0]["image"] = json!("bad");
    let healthy = |one: &Value| one["spec"]["template"]["spec"]["containers"][0]["image"] != "bad";
    play.settle(healthy);
    assert_eq!(sizes(&play), [3, 2], "the old set keeps what must stay available");
    play.deployment()["spec"]["template"]["spec"]["containers"][0]["image"] = json!("a");
    play.settle(healthy);
    assert_eq!(sizes(&play), [4, 0]);
    assert_eq!(play.deployment()["metadata"]["annotations"][REVISION], "3");
}

#[test]
fn scaling_changes_the_set_that_has_the_pods() {
    let mut play = Play::new(deployment(2, "a"));
    play.settle(|_| true);
    play.deployment()["spec"]["replicas"] = json!(5);
    play.settle(|_| true);
    assert_eq!(sizes(&play), [5]);
    play.deployment()["spec"]["replicas"] = json!(0);
    play.settle(|_| true);
    assert_eq!(sizes(&play), [0]);
}

#[test]
fn recreate_empties_the_old_set_first() {
    let mut first = deployment(3, "a");
    first["spec"]["strategy"] = json!({"type": "Recreate"});
    let mut play = Play::new(first);
    play.settle(|_| true);
    play.most = 0;
    play.deployment()["spec"]["template"]["spec"]["containers"][0]["image"] = json!("b");
    play.settle(|_| true);
    assert_eq!(sizes(&play), [0, 3]);
    assert_eq!(play.most, 3, "never both at once");
}

#[test]
fn old_sets_beyond_the_history_are_forgotten() {
    let mut first = deployment(1, "0");
    first["spec"]["revisionHistoryLimit"] = json!(2);
    let mut play = Play::new(first);
    for image in 0..6 {
        play.deployment()["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image.to_string());
        play.settle(|_| true);
    }
    assert_eq!(play.sets().len(), 3, "two old ones and the present one");
}

/// A pod of the set, on its way out.
fn ending_pod(set: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-1", "namespace": "default", "uid": "pod", "labels": {"app": "web"},
            "deletionTimestamp": "2026-11-25T11:59:00Z",
            "ownerReferences": [controller_reference(set)],
        },
        "status": {"phase": "Running"},
    })
}

#[test]
fn recreate_waits_for_a_pod_that_ends_and_goes_on_when_it_is_gone() {
    let mut first = deployment(1, "a");
    first["spec"]["strategy"] = json!({"type": "Recreate"});
    let mut play = Play::new(first);
    play.settle(|_| true);
    let set = play.objects.iter_mut().find(|(what, _)| *what == What::REPLICA_SETS);
    set.unwrap().1["metadata"]["uid"] = json!("old-set");
    let pod = ending_pod(play.sets()[0]);
    play.objects.push((What::PODS, pod.clone()));
    play.deployment()["spec"]["template"]["spec"]["containers"][0]["image"] = json!("b");
    play.settle(|_| true);
    assert_eq!(sizes(&play), [0], "the pod is still there");
    let gone = deployment_of(&Objects::new(play.objects.clone()), &Meta::of(&pod));
    assert_eq!(gone, Some(Key::of(play.deployment())), "its end is heard of");
    play.objects.retain(|(what, _)| *what != What::PODS);
    play.settle(|_| true);
    assert_eq!(sizes(&play), [0, 1]);
}

#[test]
fn pods_are_followed() {
    assert!(
        Deployments
            .sources()
            .iter()
            .any(|source| source.what == Some(What::PODS))
    );
}

#[test]
fn recreate_does_not_wait_for_pods_of_others() {
    let mut first = deployment(1, "a");
    first["spec"]["strategy"] = json!({"type": "Recreate"});
    let mut play = Play::new(first);
    let mut stray = ending_pod(&json!({"metadata": {"name": "other", "uid": "other"}}));
    remove(&mut stray, &["metadata", "deletionTimestamp"]);
    play.objects.push((What::PODS, stray));
    play.settle(|_| true);
    assert_eq!(sizes(&play), [1]);
}

#[test]
fn annotations_and_min_ready_seconds_reach_the_set_that_is_there() {
    let mut play = Play::new(deployment(2, "a"));
    play.settle(|_| true);
    play.deployment()["metadata"]["annotations"]["kubernetes.io/change-cause"] = json!("why");
    play.deployment()["spec"]["minReadySeconds"] = json!(7);
    play.settle(|_| true);
    let set = play.sets()[0];
    assert_eq!(set["metadata"]["annotations"]["kubernetes.io/change-cause"], "why");
    assert_eq!(set["spec"]["minReadySeconds"], 7);
    assert_eq!(set["metadata"]["annotations"][REVISION], "1");
}

fn progress(play: &mut Play) -> Value {
    let conditions = play.deployment()["status"]["conditions"].as_array().unwrap().clone();
    conditions.into_iter().find(|one| one["type"] == "Progressing").unwrap()
}

#[test]
fn neither_a_pause_nor_an_older_template_uses_up_the_time_of_a_rollout() {
    let mut play = Play::new(deployment(2, "a"));
    play.settle(|_| false);
    let late = |play: &mut Play, reason: &str| {
        let conditions = play.deployment()["status"]["conditions"].as_array_mut().unwrap();
        let one = conditions.iter_mut().find(|one| one["type"] == "Progressing").unwrap();
        one["lastUpdateTime"] = json!("2026-11-25T10:00:00Z");
        one["reason"] = json!(reason);
    };
    late(&mut play, "ReplicaSetUpdated");
    play.settle(|_| false);
    assert_eq!(progress(&mut play)["reason"], "ProgressDeadlineExceeded");
    play.deployment()["spec"]["template"]["spec"]["containers"][0]["image"] = json!("b");
    play.settle(|_| false);
    let fresh = progress(&mut play);
    assert_eq!(
        (&fresh["status"], &fresh["lastUpdateTime"]),
        (&json!("True"), &json!("2026-11-25T12:00:00Z"))
    );
    play.deployment()["spec"]["paused"] = json!(true);
    play.settle(|_| false);
    late(&mut play, "DeploymentPaused");
    play.deployment()["spec"]["paused"] = json!(false);
    play.settle(|_| false);
    let fresh = progress(&mut play);
    assert_eq!(
        (&fresh["reason"], &fresh["lastUpdateTime"]),
        (&json!("DeploymentResumed"), &json!("2026-11-25T12:00:00Z"))
    );
}

#[test]
fn a_deployment_says_that_its_pods_are_refused() {
    let mut play = Play::new(deployment(1, "a"));
    play.settle(|_| true);
    let mut world = play.objects.clone();
    let failure = json!({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"});
    world[1].1["status"]["conditions"] = json!([failure]);
    let key = Key::of(play.deployment());
    let plan = Deployments.plan(&Objects::new(world), &key);
    let Some(Action::Update { object, .. }) = plan.actions.last() else {
        panic!("{plan:?}")
    };
    assert_eq!(object["status"]["conditions"][2], failure);
}

fn plan_of(play: &mut Play) -> Plan {
    let key = Key::of(play.deployment());
    Deployments.plan(&Objects::new(play.objects.clone()), &key)
}

fn refused(play: &mut Play, why: &Status) -> Vec<Action> {
    let key = Key::of(play.deployment());
    Deployments.refused(&Objects::new(play.objects.clone()), &key, What::REPLICA_SETS, why)
}

/// The set that the plan begins with; that it was made is told after it only, so not when it was not.
fn first_made(plan: &Plan) -> Value {
    let [
        Action::Create {
            object,
            taken: Taken::Refused,
            ..
        },
        Action::Event(note),
        ..,
    ] = plan.actions.as_slice()
    else {
        panic!("{plan:?}")
    };
    assert_eq!(note.reason, "ScalingReplicaSet");
    object.clone()
}

#[test]
fn a_set_of_somebody_else_does_not_hold_the_deployment_up() {
    let taken = Status::failure(Reason::AlreadyExists, "replicasets.apps \"web\" already exists");
    let mut play = Play::new(deployment(1, "a"));
    let wanted = first_made(&plan_of(&mut play));
    let mut of_the_former = wanted.clone();
    of_the_former["metadata"]["ownerReferences"][0]["uid"] = json!("former");
    let mut edited = wanted.clone();
    edited["spec"]["template"]["spec"]["containers"][0]["image"] = json!("other");
    for stranger in [of_the_former, edited] {
        let mut play = Play::new(deployment(1, "a"));
        play.objects.push((What::REPLICA_SETS, stranger));
        let actions = refused(&mut play, &taken);
        let [Action::Update { object, .. }] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert_eq!(object["status"]["collisionCount"], 1);
        *play.deployment() = object.clone();
        let next = first_made(&plan_of(&mut play));
        assert_ne!(next["metadata"]["name"], wanted["metadata"]["name"]);
        play.settle(|_| true);
        assert_eq!(
            play.deployment()["status"]["collisionCount"],
            1,
            "the name must not change again"
        );
    }
    let mut play = Play::new(deployment(1, "a"));
    play.objects.push((What::REPLICA_SETS, wanted));
    assert!(refused(&mut play, &taken).is_empty(), "it is ours");
}

#[test]
fn a_set_that_cannot_be_made_is_told_of_until_it_is() {
    let why = Status::failure(Reason::Forbidden, "exceeded quota: q");
    let mut play = Play::new(deployment(1, "a"));
    let name = first_made(&plan_of(&mut play))["metadata"]["name"].clone();
    let mut actions = refused(&mut play, &why);
    let Some(Action::Update { object, .. }) = actions.pop() else {
        panic!("{actions:?}")
    };
    let [Action::Event(note)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!((note.kind, note.reason), ("Warning", "ReplicaSetCreateError"));
    let message = format!("Failed to create new replica set {name}: exceeded quota: q");
    assert_eq!(note.message, message);
    *play.deployment() = object;
    let told = progress(&mut play);
    assert_eq!(
        (&told["status"], &told["reason"], &told["message"]),
        (&json!("False"), &json!("ReplicaSetCreateError"), &json!(message))
    );
    assert!(
        matches!(refused(&mut play, &why).as_slice(), [Action::Event(_)]),
        "the same refusal is no news"
    );
    play.settle(|_| false);
    assert_eq!(progress(&mut play)["reason"], "NewReplicaSetCreated");
    let going =
        Status::failure(Reason::Forbidden, "going").cause("NamespaceTerminating", "going", "metadata.namespace");
    assert!(refused(&mut play, &going).is_empty(), "nobody is left to tell");
}

#[test]
fn a_rollout_that_is_over_has_no_deadline_any_more() {
    let mut play = Play::new(deployment(2, "a"));
    play.settle(|_| true);
    let conditions = play.deployment()["status"]["conditions"].as_array_mut().unwrap();
    conditions[1]["lastUpdateTime"] = json!("2026-11-25T10:00:00Z");
    let over = progress(&mut play);
    assert_eq!(over["reason"], "NewReplicaSetAvailable");
    play.settle(|_| false);
    assert_eq!(progress(&mut play), over, "its pods fail, two hours later");
    play.deployment()["spec"]["replicas"] = json!(5);
    play.settle(|_| false);
    assert_eq!(progress(&mut play), over, "a new size is no rollout");
}

#[test]
fn a_pause_does_not_hide_that_the_deadline_has_passed() {
    let mut play = Play::new(deployment(2, "a"));
    play.settle(|_| false);
    let conditions = play.deployment()["status"]["conditions"].as_array_mut().unwrap();
    conditions[1]["lastUpdateTime"] = json!("2026-11-25T10:00:00Z");
    play.settle(|_| false);
    assert_eq!(progress(&mut play)["reason"], "ProgressDeadlineExceeded");
    play.deployment()["spec"]["paused"] = json!(true);
    play.settle(|_| false);
    assert_eq!(progress(&mut play)["reason"], "ProgressDeadlineExceeded");
}

#[test]
fn who_wants_no_deadline_is_told_of_no_progress() {
    let mut play = Play::new(deployment(1, "a"));
    play.deployment()["spec"]["progressDeadlineSeconds"] = json!(i32::MAX);
    play.settle(|_| true);
    let conditions = play.deployment()["status"]["conditions"].as_array().unwrap();
    assert!(
        conditions.iter().all(|one| one["type"] != "Progressing"),
        "{conditions:?}"
    );
}

#[test]
fn an_old_set_is_kept_until_the_new_one_is_complete() {
    let mut first = deployment(1, "a");
    first["spec"]["revisionHistoryLimit"] = json!(0);
    first["spec"]["strategy"]["rollingUpdate"] = json!({"maxSurge": 0, "maxUnavailable": 1});
    let mut play = Play::new(first);
    play.settle(|_| true);
    play.deployment()["spec"]["template"]["spec"]["containers"][0]["image"] = json!("bad");
    play.deployment()["metadata"]["generation"] = json!(2);
    play.settle(|_| false);
    assert_eq!(sizes(&play), [0, 1], "there is a way back");
    play.settle(|_| true);
    assert_eq!(sizes(&play), [1]);
}

#[test]
fn a_set_with_other_labels_is_let_go() {
    let mut play = Play::new(deployment(1, "a"));
    play.settle(|_| true);
    play.objects[1].1["metadata"]["labels"]["app"] = json!("debug");
    let plan = plan_of(&mut play);
    let Some(Action::Patch {
        patch: Patch::Merge(change),
        ..
    }) = plan.actions.first()
    else {
        panic!("{plan:?}")
    };
    assert_eq!(change["metadata"]["ownerReferences"], json!([]));
}

#[test]
fn a_paused_deployment_without_pods_grows_with_its_last_template() {
    let mut play = Play::new(deployment(0, "a"));
    play.settle(|_| true);
    play.deployment()["spec"]["paused"] = json!(true);
    play.deployment()["spec"]["template"]["spec"]["containers"][0]["image"] = json!("b");
    play.deployment()["spec"]["replicas"] = json!(3);
    play.settle(|_| true);
    assert_eq!(sizes(&play), [3]);
}
