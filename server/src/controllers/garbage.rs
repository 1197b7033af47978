//! Removes what lost its owner, and carries out the two other ways of deleting: dependents first, or orphaned.
//!
//! Source: Kubernetes v1.36 `pkg/controller/garbagecollector/garbagecollector.go` (`attemptToDeleteItem`,
//! `processDeletingDependentsItem`, `orphanDependents`). Keys here are store keys: every kind is looked after.

use agent::wire::object::{Meta, OwnerReference, text};
use serde_json::{Value, json};

use super::action::{Action, Deletion, Note, Plan, reference};
use super::runner::{Controller, Source};
use super::world::{Key, World, terminating};
use crate::cache::{ChangeKind, Item};
use crate::kinds;
use crate::request::What;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const COMPONENT: &str = "garbage-collector-controller";

/// The controller.
#[derive(Debug)]
pub struct Garbage;

impl Controller for Garbage {
    fn name(&self) -> &'static str {
        "generic-garbage-collector"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source {
            what: None,
            namespace: None,
            keys: concerned,
        }]
    }

    fn plan(&self, world: &dyn World, key: &Key) -> Plan {
        let mut plan = Plan::default();
        let Some(object) = world.at(&key.name) else { return plan };
        let (Some(what), meta) = (what_of(&object), Meta::of(&object)) else {
            return plan;
        };
        let waits_for = |finalizer: &str| terminating(&meta) && meta.finalizers.iter().any(|one| one == finalizer);
        if waits_for(ORPHAN) {
            dependents(world, &meta.uid).for_each(|(what, one)| plan.push(disown(what, &one, &meta.uid)));
            plan.push(without_finalizer(what, &meta, ORPHAN));
        } else if waits_for(FOREGROUND) {
            let blocking = delete_dependents(&mut plan, world, &meta.uid);
            if !blocking {
                plan.push(without_finalizer(what, &meta, FOREGROUND));
            }
        }
        if !terminating(&meta) && !meta.owner_references.is_empty() {
            plan.actions.extend(misplaced(world, &object, &meta));
            let absent = |owner: &OwnerReference| !owner_lives(world, &meta, owner);
            if meta.owner_references.iter().all(absent) {
                let how = how_it_goes(&meta);
                plan.push(Action::Delete {
                    what,
                    meta: Box::new(meta),
                    how,
                });
            }
        }
        plan
    }
}

/// A deletion concerns the dependents and, if it was waited for, the owners; else an object concerns itself when it
/// has owners or is on its way out.
fn concerned(world: &dyn World, change: ChangeKind, item: &Item) -> Vec<Key> {
    let key = |name: &str| Key {
        namespace: String::new(),
        name: name.to_owned(),
    };
    match change {
        ChangeKind::Deleted => {
            let mut keys: Vec<Key> = world.owned_by(&item.index.uid).iter().map(|one| key(one)).collect();
            if !item.index.owners.is_empty() {
                let meta = Meta::of(&item.value());
                keys.extend(
                    meta.owner_references
                        .iter()
                        .filter_map(|owner| owner_key(&meta, owner))
                        .map(|one| key(&one)),
                );
            }
            keys
        }
        ChangeKind::Added | ChangeKind::Modified => {
            let marked = |needle: &[u8]| item.body.windows(needle.len()).any(|window| window == needle);
            let going =
                || marked(b"\"deletionTimestamp\"") && (marked(FOREGROUND.as_bytes()) || marked(ORPHAN.as_bytes()));
            if !item.index.owners.is_empty() || going() {
                vec![key(&item.key)]
            } else {
                Vec::new()
            }
        }
    }
}

fn what_of(object: &Value) -> Option<What> {
    let version = text(object, &["apiVersion"]);
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let row = kinds::find_kind(group, version, text(object, &["kind"]))?;
    Some(What {
        group: row.group,
        version: row.version,
        plural: row.plural,
    })
}

/// The store key an owner reference points at; `None` for kinds we do not serve, and for what can be nowhere.
fn owner_key(dependent: &Meta, owner: &OwnerReference) -> Option<String> {
    match place_of(owner)? {
        (_, true) if dependent.namespace.is_empty() => None,
        (prefix, true) => Some(format!("{prefix}{}/{}", dependent.namespace, owner.name)),
        (prefix, false) => Some(format!("{prefix}{}", owner.name)),
    }
}

/// Where objects of the owner's kind are stored, and whether they are in namespaces.
fn place_of(owner: &OwnerReference) -> Option<(&'static str, bool)> {
    let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
    kinds::find_kind(group, version, &owner.kind).map(|row| (row.prefix, row.namespaced))
}

/// An owner's namespace is the dependent's: what has none cannot have an owner of a kind that is in one.
fn can_be_nowhere(dependent: &Meta, owner: &OwnerReference) -> bool {
    dependent.namespace.is_empty() && place_of(owner).is_some_and(|(_, namespaced)| namespaced)
}

/// Says of a reference that it can point nowhere, and that the object is therefore never collected. Once, for as long as
/// the Event is kept: a node changes all the time.
///
/// Source: Kubernetes v1.36 `graph_builder.go`, `reportInvalidNamespaceOwnerRef`.
fn misplaced(world: &dyn World, object: &Value, meta: &Meta) -> Option<Action> {
    let owner = meta.owner_references.iter().find(|owner| can_be_nowhere(meta, owner))?;
    let OwnerReference {
        api_version,
        kind,
        name,
        uid,
        ..
    } = owner;
    let note = Note {
        kind: "Warning",
        reason: "OwnerRefInvalidNamespace",
        message: format!(
            "ownerRef [{api_version}/{kind}, namespace: , name: {name}, uid: {uid}] does not exist in namespace \"\""
        ),
        about: reference(object),
        component: COMPONENT,
    };
    let told = world.get(What::EVENTS, note.namespace(), &note.name()).is_some();
    (!told).then_some(Action::Event(note))
}

/// In the way that was asked for before, if it was.
fn how_it_goes(meta: &Meta) -> Deletion {
    let asked = |finalizer: &str| meta.finalizers.iter().any(|one| one == finalizer);
    if asked(ORPHAN) {
        Deletion::Orphan
    } else if asked(FOREGROUND) {
        Deletion::Foreground
    } else {
        Deletion::Background
    }
}

/// An owner of a kind that is not served counts as living, and so does one that can be nowhere: better a leak than a loss.
fn owner_lives(world: &dyn World, dependent: &Meta, owner: &OwnerReference) -> bool {
    match owner_key(dependent, owner) {
        Some(key) => world
            .at(&key)
            .is_some_and(|found| text(&found, &["metadata", "uid"]) == owner.uid),
        None => true,
    }
}

fn dependents<'a>(world: &'a dyn World, uid: &str) -> impl Iterator<Item = (What, Value)> + use<'a> {
    let keys = world.owned_by(uid);
    keys.into_iter()
        .filter_map(|key| world.at(&key))
        .filter_map(|object| Some((what_of(&object)?, object)))
}

/// Sends dependents away; true while one of them that blocks its owner is still there.
fn delete_dependents(plan: &mut Plan, world: &dyn World, uid: &str) -> bool {
    let mut blocking = false;
    for (what, object) in dependents(world, uid) {
        let meta = Meta::of(&object);
        let others = || {
            meta.owner_references
                .iter()
                .any(|owner| owner.uid != uid && owner_lives(world, &meta, owner))
        };
        if others() {
            plan.push(disown(what, &object, uid));
            continue;
        }
        // It names this owner where it cannot be: never collected, and nothing to wait for (there, it blocks for ever).
        if meta.owner_references.iter().any(|owner| can_be_nowhere(&meta, owner)) {
            continue;
        }
        blocking |= meta
            .owner_references
            .iter()
            .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true));
        if !terminating(&meta) {
            plan.push(Action::Delete {
                what,
                meta: Box::new(meta),
                how: Deletion::Foreground,
            });
        }
    }
    blocking
}

fn disown(what: What, object: &Value, uid: &str) -> Action {
    let meta = Meta::of(object);
    let kept: Vec<&OwnerReference> = meta.owner_references.iter().filter(|owner| owner.uid != uid).collect();
    let change = json!({"metadata": {"ownerReferences": kept}});
    Action::merge(what, &meta, change)
}

fn without_finalizer(what: What, meta: &Meta, finalizer: &str) -> Action {
    let kept: Vec<&String> = meta.finalizers.iter().filter(|one| *one != finalizer).collect();
    Action::merge(what, meta, json!({"metadata": {"finalizers": kept}}))
}

#[cfg(test)]
mod tests {
    use super::super::world::fake::Objects;
    use super::*;

    fn owned(name: &str, owner_uid: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": name, "ownerReferences": [
                {"apiVersion": "made.up/v1", "kind": "Unknown", "name": "x", "uid": owner_uid, "blockOwnerDeletion": true}]},
        })
    }

    fn owner(finalizer: &str) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web", "namespace": "default", "uid": "owner", "deletionTimestamp": "2026-11-25T11:00:00Z", "finalizers": [finalizer]},
        })
    }

    fn plan(objects: Vec<(What, Value)>, key: &str) -> Plan {
        Garbage.plan(
            &Objects::new(objects),
            &Key {
                namespace: String::new(),
                name: key.into(),
            },
        )
    }

    #[test]
    fn an_owner_of_an_unknown_kind_keeps_its_dependents() {
        assert!(
            plan(vec![(What::PODS, owned("p", "u"))], "pods/default/p")
                .actions
                .is_empty()
        );
    }

    #[test]
    fn a_dependent_of_an_owner_that_is_gone_goes() {
        let mut pod = owned("p", "u");
        pod["metadata"]["ownerReferences"][0] =
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u"});
        let plan = plan(vec![(What::PODS, pod)], "pods/default/p");
        assert!(
            matches!(
                plan.actions.as_slice(),
                [Action::Delete {
                    how: Deletion::Background,
                    ..
                }]
            ),
            "{plan:?}"
        );
    }

    /// A node that names a config map as its owner, and the config map, which has the uid `owner`.
    fn node_and_owner() -> (Value, Value) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "box", "uid": "node", "ownerReferences": [
                {"apiVersion": "v1", "kind": "ConfigMap", "name": "web", "uid": "owner", "blockOwnerDeletion": true}]},
        });
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "web", "namespace": "default", "uid": "owner"},
        });
        (node, map)
    }

    #[test]
    fn what_has_no_namespace_is_never_collected_for_an_owner_in_one() {
        let (node, mut map) = node_and_owner();
        let key = "nodes//box";
        for world in [
            vec![(What::NODES, node.clone())],
            vec![(What::NODES, node.clone()), (What::CONFIG_MAPS, map.clone())],
        ] {
            let found = plan(world, key);
            let [Action::Event(note)] = found.actions.as_slice() else {
                panic!("{found:?}")
            };
            assert_eq!((note.kind, note.reason), ("Warning", "OwnerRefInvalidNamespace"));
            assert_eq!(
                note.message,
                "ownerRef [v1/ConfigMap, namespace: , name: web, uid: owner] does not exist in namespace \"\""
            );
            let mut event = note.event("2026-11-25T12:00:00Z".parse().unwrap());
            event["metadata"]["namespace"] = json!("default");
            let told = vec![(What::NODES, node.clone()), (What::EVENTS, event)];
            let again = plan(told, key);
            assert!(again.actions.is_empty(), "it is told already: {again:?}");
        }
        map["metadata"]["finalizers"] = json!([FOREGROUND]);
        map["metadata"]["deletionTimestamp"] = json!("2026-11-25T11:00:00Z");
        let world = vec![(What::NODES, node), (What::CONFIG_MAPS, map)];
        let going = plan(world, "configmaps/default/web");
        assert!(
            matches!(
                going.actions.as_slice(),
                [Action::Patch {
                    what: What::CONFIG_MAPS,
                    ..
                }]
            ),
            "the owner goes alone: {going:?}"
        );
    }

    #[test]
    fn what_was_to_leave_orphans_still_does_when_its_owner_is_gone() {
        let mut set = owner(ORPHAN);
        set["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
        set["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "gone"}]);
        let plan = plan(vec![(What::REPLICA_SETS, set)], "replicasets/default/web");
        assert!(
            matches!(
                plan.actions.as_slice(),
                [Action::Delete {
                    how: Deletion::Orphan,
                    ..
                }]
            ),
            "{plan:?}"
        );
    }

    #[test]
    fn a_foreground_deletion_waits_for_blocking_dependents() {
        let world = vec![
            (What::REPLICA_SETS, owner(FOREGROUND)),
            (What::PODS, owned("p", "owner")),
        ];
        let waiting = plan(world, "replicasets/default/web");
        assert!(
            matches!(waiting.actions.as_slice(), [Action::Delete { what: What::PODS, .. }]),
            "{waiting:?}"
        );
        let done = plan(vec![(What::REPLICA_SETS, owner(FOREGROUND))], "replicasets/default/web");
        assert!(
            matches!(
                done.actions.as_slice(),
                [Action::Patch {
                    what: What::REPLICA_SETS,
                    ..
                }]
            ),
            "{done:?}"
        );
    }

    #[test]
    fn orphans_lose_the_reference_and_stay() {
        let world = vec![(What::REPLICA_SETS, owner(ORPHAN)), (What::PODS, owned("p", "owner"))];
        let plan = plan(world, "replicasets/default/web");
        let kinds: Vec<bool> = plan
            .actions
            .iter()
            .map(|action| matches!(action, Action::Patch { .. }))
            .collect();
        assert_eq!(kinds, [true, true]);
    }
}
