//! What a controller can do, as data: plans are compared in tests and carried out by the runner.

use std::time::Duration;

use agent::wire::object::{Meta, set, text};
use agent::wire::time;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::request::{Patch, What};

/// What is to be done for one key.
#[derive(Debug, Default)]
pub struct Plan {
    /// In this order; the first failure ends the plan, and the key is looked at again.
    pub actions: Vec<Action>,
    /// Look again after so long even if nothing changes.
    pub again: Option<Duration>,
}

/// One write.
#[derive(Debug)]
pub enum Action {
    /// Makes an object.
    Create {
        /// Kind.
        what: What,
        /// The object, with its namespace.
        object: Value,
        /// What it means that the name is taken.
        taken: Taken,
        /// What people are told once it is there; its name, which the server may have made up, is put after the text.
        told: Option<Note>,
    },
    /// Replaces an object, if it is still as it was seen.
    Update {
        /// Kind.
        what: What,
        /// `status`, `finalize`; `None` for the object itself.
        subresource: Option<&'static str>,
        /// The object, with the resourceVersion it was seen at.
        object: Value,
    },
    /// Changes an object.
    Patch {
        /// Kind.
        what: What,
        /// Namespace and name.
        at: (String, String),
        /// `status`; `None` for the object itself.
        subresource: Option<&'static str>,
        /// How.
        patch: Patch,
    },
    /// Removes an object, if it is still as it was seen; one that is gone is no failure, one that has changed is looked at again.
    Delete {
        /// Kind.
        what: What,
        /// Which, by its metadata; without a resourceVersion, whatever its state is.
        meta: Box<Meta>,
        /// In which way.
        how: Deletion,
    },
    /// Tells people.
    Event(Note),
}

/// What it means for a creation that there is an object of the name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Taken {
    /// Whoever made it did our work.
    Done,
    /// Nothing was made: a failure, which [`super::runner::Controller::refused`] is told of.
    Refused,
}

/// How an object goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Deletion {
    /// As its kind does by itself.
    Usual,
    /// At once, without grace: nobody is left who could stop it properly.
    Now,
    /// After its dependents.
    Foreground,
    /// Before its dependents.
    Background,
    /// Without its dependents.
    Orphan,
}

/// An Event about an object.
#[derive(Clone, Debug)]
pub struct Note {
    /// `Normal` or `Warning`.
    pub kind: &'static str,
    /// CamelCase, for programs.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// `involvedObject`.
    pub about: Value,
    /// `source.component`.
    pub component: &'static str,
}

impl Plan {
    /// Adds an action.
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Looks again after so long, or sooner if that was asked already.
    pub fn after(&mut self, delay: Duration) {
        self.again = Some(self.again.map_or(delay, |again| again.min(delay)));
    }

    /// What is merged into statuses, with what it is good for.
    #[cfg(test)]
    pub fn status_changes(&self) -> Vec<&Value> {
        fn of(action: &Action) -> Option<&Value> {
            match action {
                Action::Patch {
                    subresource: Some("status"),
                    patch: Patch::Strategic(change),
                    ..
                } => Some(change),
                _ => None,
            }
        }
        self.actions.iter().filter_map(of).collect()
    }
}

impl Action {
    /// Removes the object in the way of its kind.
    pub fn delete(what: What, object: &Value) -> Self {
        let meta = Box::new(Meta::of(object));
        let how = Deletion::Usual;
        Self::Delete { what, meta, how }
    }

    /// Removes the object in the way of its kind, whatever its state is by then: what it was seen at does not matter.
    pub fn delete_whatever(what: What, object: &Value) -> Self {
        let meta = Box::new(Meta {
            resource_version: String::new(),
            ..Meta::of(object)
        });
        let how = Deletion::Usual;
        Self::Delete { what, meta, how }
    }

    /// Replaces the status of the object by the one it now carries.
    pub fn status(what: What, object: Value) -> Self {
        Self::Update {
            what,
            subresource: Some("status"),
            object,
        }
    }

    /// Merges these members into the status of the object, lists by their keys, if it is still as it was seen.
    pub fn merge_status(what: What, meta: &Meta, status: Value) -> Self {
        Self::Patch {
            what,
            at: (meta.namespace.clone(), meta.name.clone()),
            subresource: Some("status"),
            patch: status_patch(meta, status),
        }
    }

    /// Takes the object from this owner: its labels are no longer those that the owner selects.
    pub fn release(what: What, meta: &Meta, owner_uid: &str) -> Self {
        let others = meta.owner_references.iter().filter(|owner| owner.uid != owner_uid);
        let others: Vec<_> = others.collect();
        Self::merge(what, meta, json!({"metadata": {"ownerReferences": others}}))
    }

    /// Merges `change` into the object, if it is still as it was seen.
    pub fn merge(what: What, meta: &Meta, change: Value) -> Self {
        let at = (meta.namespace.clone(), meta.name.clone());
        Self::Patch {
            what,
            at,
            subresource: None,
            patch: Patch::Merge(if_as_seen(meta, change)),
        }
    }
}

/// The patch that merges these members into a status, lists by their keys, if the object is still as it was seen.
pub fn status_patch(meta: &Meta, status: Value) -> Patch {
    Patch::Strategic(if_as_seen(meta, json!({ "status": status })))
}

/// What was concluded from one state must not be done to a newer one, nor to another object of the name.
fn if_as_seen(meta: &Meta, mut change: Value) -> Value {
    set(&mut change, &["metadata", "uid"], meta.uid.clone());
    set(
        &mut change,
        &["metadata", "resourceVersion"],
        meta.resource_version.clone(),
    );
    change
}

/// A reference to an object, as Events carry it.
pub fn reference(object: &Value) -> Value {
    json!({
        "apiVersion": object.get("apiVersion"),
        "kind": object.get("kind"),
        "namespace": text(object, &["metadata", "namespace"]),
        "name": text(object, &["metadata", "name"]),
        "uid": text(object, &["metadata", "uid"]),
        "resourceVersion": text(object, &["metadata", "resourceVersion"]),
    })
}

/// An owner reference to the managing controller `owner`.
pub fn controller_reference(owner: &Value) -> Value {
    json!({
        "apiVersion": owner.get("apiVersion"),
        "kind": owner.get("kind"),
        "name": text(owner, &["metadata", "name"]),
        "uid": text(owner, &["metadata", "uid"]),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

impl Note {
    /// The Event's name: the same event again is the same object, counted up.
    ///
    /// Source: client-go v1.36 `tools/record` aggregates by the same fields.
    pub fn name(&self) -> String {
        let key = format!(
            "{}/{}/{}/{}",
            text(&self.about, &["uid"]),
            self.kind,
            self.reason,
            self.message
        );
        format!("{}.{:016x}", text(&self.about, &["name"]), hash64(key.as_bytes()))
    }

    /// The Event's namespace; cluster-scoped objects have theirs in `default`.
    pub fn namespace(&self) -> &str {
        match text(&self.about, &["namespace"]) {
            "" => "default",
            namespace => namespace,
        }
    }

    /// The Event when it happens for the first time.
    pub fn event(&self, now: Timestamp) -> Value {
        let now = time::seconds(now);
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": self.name(), "namespace": self.namespace()},
            "involvedObject": self.about,
            "type": self.kind,
            "reason": self.reason,
            "message": self.message,
            "source": {"component": self.component},
            "reportingComponent": self.component,
            "reportingInstance": "",
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
        })
    }
}

/// FNV-1a: short, stable names; no secret hangs on it.
pub fn hash64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A hash in the letters Kubernetes uses for generated names (no vowels, no look-alikes): at most 10 of them.
pub fn short_hash(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let folded = hash64(bytes);
    let digits = ((folded >> 32) ^ (folded & 0xffff_ffff)).to_string();
    digits
        .bytes()
        .filter_map(|digit| LETTERS.get(usize::from(digit) % LETTERS.len()))
        .map(|byte| char::from(*byte))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_event_has_the_same_name_and_another_has_another() {
        let note = |message: &str| Note {
            kind: "Normal",
            reason: "Created",
            message: message.into(),
            about: json!({"name": "web", "namespace": "default", "uid": "u"}),
            component: "test",
        };
        assert_eq!(note("a").name(), note("a").name());
        assert_ne!(note("a").name(), note("b").name());
        assert_eq!(
            note("a").event(Timestamp::UNIX_EPOCH)["firstTimestamp"],
            "1970-01-01T00:00:00Z"
        );
    }

    #[test]
    fn a_change_is_merged_only_into_the_object_that_was_seen() {
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u", "resourceVersion": "7"}});
        let meta = Meta::of(&pod);
        let mut plan = Plan::default();
        plan.push(Action::merge_status(What::PODS, &meta, json!({"phase": "Failed"})));
        let status = json!({"metadata": {"uid": "u", "resourceVersion": "7"}, "status": {"phase": "Failed"}});
        assert_eq!(plan.status_changes(), [&status]);
        let labels = json!({"metadata": {"labels": {"a": "b"}}});
        let Action::Patch {
            patch: Patch::Merge(change),
            ..
        } = Action::merge(What::PODS, &meta, labels)
        else {
            panic!("no merge")
        };
        let whole = json!({"metadata": {"uid": "u", "resourceVersion": "7", "labels": {"a": "b"}}});
        assert_eq!(change, whole);
    }

    #[test]
    fn short_hashes_are_label_values() {
        let hash = short_hash(b"template");
        assert!(
            (1..=10).contains(&hash.len()) && agent::wire::selector::is_label_value(&hash),
            "{hash}"
        );
    }
}
