//! Delete: at once, after a grace period, or when the last finalizer lets go.

use agent::wire::object::{self, integer, list, text};
use agent::wire::status::{Details, Reason, Status};
use agent::wire::time;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::admission::{Request, Verb};
use crate::request::{Answer, DeleteOptions, ListOptions};
use crate::store::{Change, Expect, StoreError};

use super::addresses::Claims;
use super::resource::Resource;
use super::update::uid_mismatch;
use super::{Context, Registry, meta, store_failure, stored};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Source: Kubernetes v1.36 `pkg/registry/batch/job/storage/storage.go`, `deleteOptionWarnings`.
const ORPHANED: &str = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning";
/// Longer than any pod is given; keeps the arithmetic of time in range.
const GRACE_LIMIT: i64 = 10 * 365 * 24 * 3600;
/// How often a deletion is tried again that lost a race. More than a change: it has nothing to merge, and who asks for it does
/// not expect to be sent away because a status is written often. A bound at all because what this server sees may differ from
/// what the datastore has, and then each attempt loses.
const RACES: usize = 32;

/// What becomes of an object that was asked to go.
#[derive(Debug, PartialEq)]
enum Fate {
    /// It is removed.
    Gone,
    /// It stays, marked.
    Dying(Value),
    /// It was dying already, and nothing is new.
    Unchanged,
}

impl Registry {
    /// What admission says of an object's deletion.
    pub(super) fn may_delete(&self, context: Context<'_>, name: &str, old: &Value) -> Result<(), Status> {
        let request = Request {
            user: context.user,
            row: context.row,
            namespace: context.namespace,
            name,
            subresource: None,
            verb: Verb::Delete,
            old: Some(old),
        };
        self.admission.admit(&request, &mut Value::Null)
    }

    pub(super) async fn delete(&self, context: Context<'_>, options: &DeleteOptions) -> Result<Answer, Status> {
        let name = context.named()?;
        let key = context.key(name);
        for _ in 0..RACES {
            let item = self.cache.get(&key).ok_or_else(|| context.not_found(name))?;
            let old = item.value();
            context.still_is(name, &old, options)?;
            self.may_delete(context, name, &old)?;
            let fate = fate(&old, context.row, options, self.world.now());
            let fate = fate.map_err(|fault| Status::invalid("meta.k8s.io", "DeleteOptions", "", &[fault]))?;
            let (change, body) = match &fate {
                Fate::Unchanged => return Ok(object_answer(item.body.clone(), context.row, options)),
                Fate::Gone => (Change::Delete, stored::encode(&old)),
                Fate::Dying(object) => {
                    let body = stored::encode(object);
                    (Change::Put(body.clone()), body)
                }
            };
            let revision = if options.dry_run {
                item.revision
            } else {
                let keep = context.row.rules.keep(&old, Some(&old));
                let mut claims = Claims::default();
                if fate == Fate::Gone {
                    self.give_up(context.row, &old, None, &mut claims);
                }
                let written = self.write(&key, Expect::At(item.revision), change, keep).await;
                self.settle(claims, &written).await;
                match written {
                    Ok(revision) => revision,
                    Err(StoreError::Conflict { .. }) => continue,
                    Err(error) => return Err(store_failure(&error)),
                }
            };
            let body = stored::with_revision(&body, revision);
            return Ok(match fate {
                Fate::Gone if !context.row.returns_deleted => Answer::Status(success(context.row, &old)),
                Fate::Gone => Answer::Object {
                    code: 200,
                    body,
                    warnings: Vec::new(),
                },
                Fate::Dying(_) | Fate::Unchanged => object_answer(body, context.row, options),
            });
        }
        Err(context.conflict(name, Status::MODIFIED))
    }

    pub(super) async fn delete_collection(
        &self,
        context: Context<'_>,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Answer, Status> {
        let Answer::List { page, continue_token } = self.list(context, list).await? else {
            return Err(Status::internal("a list answered something else"));
        };
        for item in &page.items {
            let (namespace, name) = context.row.split_key(&item.key);
            let one = Context {
                namespace,
                name: Some(name),
                ..context
            };
            match self.delete(one, options).await {
                Err(status) if !status.is(Reason::NotFound) => return Err(status),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(Answer::List { page, continue_token })
    }
}

impl Resource {
    /// Namespace and name of one of the row's keys.
    pub fn split_key<'k>(&self, key: &'k str) -> (Option<&'k str>, &'k str) {
        let rest = key.strip_prefix(self.prefix).unwrap_or(key);
        match rest.split_once('/') {
            Some((namespace, name)) if self.namespaced => (Some(namespace), name),
            _ => (None, rest),
        }
    }
}

impl Context<'_> {
    fn still_is(&self, name: &str, old: &Value, options: &DeleteOptions) -> Result<(), Status> {
        let uid = text(old, &["metadata", "uid"]);
        if let Some(asked) = options.uid.as_deref().filter(|asked| *asked != uid) {
            return Err(self.conflict(name, &uid_mismatch(asked, uid)));
        }
        let revision = text(old, &["metadata", "resourceVersion"]);
        if let Some(asked) = options.resource_version.as_deref().filter(|asked| *asked != revision) {
            let why = format!(
                "Precondition failed: ResourceVersion in precondition: {asked}, ResourceVersion in object meta: {revision}"
            );
            return Err(self.conflict(name, &why));
        }
        Ok(())
    }
}

/// A fault of the options: cause reason, field, text.
type OptionFault = (&'static str, String, String);

/// Decides; pure.
fn fate(old: &Value, row: &Resource, options: &DeleteOptions, now: Timestamp) -> Result<Fate, OptionFault> {
    let mut new = old.clone();
    propagate(&mut new, row, options.propagation.as_deref())?;
    let grace = row.rules.grace(old, options.grace).clamp(0, GRACE_LIMIT);
    let held = row.rules.held(&new) || !list(&new, &["metadata", "finalizers"]).is_empty();
    let stamp = text(old, &["metadata", "deletionTimestamp"]);
    if stamp.is_empty() {
        if grace == 0 && !held {
            return Ok(Fate::Gone);
        }
        mark(&mut new, now + SignedDuration::from_secs(grace), grace);
        if integer(&new, &["metadata", "generation"]).is_some_and(|generation| generation > 0) {
            meta::raise(&mut new);
        }
        row.rules.deleting(&mut new);
        return Ok(Fate::Dying(new));
    }
    let before = integer(old, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
    // Only an explicit wish shortens what is under way.
    let grace = if options.grace.is_some() {
        grace.min(before)
    } else {
        before
    };
    if grace == 0 && !held {
        return Ok(Fate::Gone);
    }
    if grace < before {
        let at = time::parse(stamp).unwrap_or(now) - SignedDuration::from_secs(before - grace);
        mark(&mut new, at, grace);
    }
    Ok(if new == *old { Fate::Unchanged } else { Fate::Dying(new) })
}

fn mark(object: &mut Value, at: Timestamp, grace: i64) {
    object::set(object, &["metadata", "deletionTimestamp"], time::seconds(at));
    object::set(object, &["metadata", "deletionGracePeriodSeconds"], grace);
}

/// Sets the finalizers that make the garbage collector treat dependents as asked.
fn propagate(object: &mut Value, row: &Resource, policy: Option<&str>) -> Result<(), OptionFault> {
    if row.plural == "events" {
        return Ok(());
    }
    let mut finalizers = list(object, &["metadata", "finalizers"]).to_vec();
    let before = finalizers.clone();
    let has = |name: &str| before.iter().any(|one| one == name);
    let wanted = match policy {
        Some("Orphan") => Some(ORPHAN),
        Some("Foreground") => Some(FOREGROUND),
        Some("Background") => None,
        Some(other) => {
            let text =
                format!("Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\"");
            return Err(("FieldValueNotSupported", "propagationPolicy".to_owned(), text));
        }
        None if has(ORPHAN) => Some(ORPHAN),
        None if has(FOREGROUND) => Some(FOREGROUND),
        None if row.orphans => Some(ORPHAN),
        None => None,
    };
    finalizers.retain(|one| one == wanted.unwrap_or_default() || (one != ORPHAN && one != FOREGROUND));
    if let Some(wanted) = wanted.filter(|wanted| !has(wanted)) {
        finalizers.push(wanted.into());
    }
    if finalizers == before {
        return Ok(());
    }
    if finalizers.is_empty() {
        object::remove(object, &["metadata", "finalizers"]);
    } else {
        object::set(object, &["metadata", "finalizers"], finalizers);
    }
    Ok(())
}

/// The object is still there: 202 if its dependents go first.
fn object_answer(body: bytes::Bytes, row: &Resource, options: &DeleteOptions) -> Answer {
    let foreground = options.propagation.as_deref() == Some("Foreground");
    Answer::Object {
        code: if foreground { 202 } else { 200 },
        body,
        warnings: (row.plural == "jobs" && options.propagation.is_none())
            .then(|| ORPHANED.to_owned())
            .into_iter()
            .collect(),
    }
}

fn success(row: &Resource, old: &Value) -> Status {
    Status::success(Details {
        name: text(old, &["metadata", "name"]).to_owned(),
        group: row.group.to_owned(),
        kind: row.plural.to_owned(),
        uid: text(old, &["metadata", "uid"]).to_owned(),
        ..Details::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn row(plural: &str) -> std::sync::Arc<Resource> {
        crate::kinds::table()
            .iter()
            .find(|row| row.plural == plural)
            .unwrap()
            .clone()
    }

    fn graced(grace: i64) -> DeleteOptions {
        DeleteOptions {
            grace: Some(grace),
            ..DeleteOptions::default()
        }
    }

    #[test]
    fn a_running_pod_is_given_its_grace_and_another_goes_at_once() {
        let running = json!({"metadata": {"name": "a", "generation": 1}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        let options = DeleteOptions::default();
        let Ok(Fate::Dying(marked)) = fate(&running, &row("pods"), &options, at(100)) else {
            panic!("a running pod vanished");
        };
        assert_eq!(
            marked["metadata"],
            json!({"name": "a", "generation": 2, "deletionTimestamp": "1970-01-01T00:02:10Z", "deletionGracePeriodSeconds": 30})
        );
        let unscheduled = json!({"metadata": {"name": "a"}, "spec": {"terminationGracePeriodSeconds": 30}});
        assert_eq!(fate(&unscheduled, &row("pods"), &options, at(0)), Ok(Fate::Gone));
        let over = json!({"metadata": {}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Failed"}});
        assert_eq!(fate(&over, &row("pods"), &options, at(0)), Ok(Fate::Gone));
        assert_eq!(fate(&running, &row("pods"), &graced(0), at(0)), Ok(Fate::Gone));
    }

    #[test]
    fn grace_only_shrinks() {
        let dying = json!({"metadata": {"deletionTimestamp": "1970-01-01T00:01:00Z", "deletionGracePeriodSeconds": 30},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        let Ok(Fate::Dying(sooner)) = fate(&dying, &row("pods"), &graced(10), at(40)) else {
            panic!("not shortened");
        };
        assert_eq!(sooner["metadata"]["deletionTimestamp"], "1970-01-01T00:00:40Z");
        assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 10);
        for options in [graced(60), DeleteOptions::default()] {
            assert_eq!(fate(&dying, &row("pods"), &options, at(40)), Ok(Fate::Unchanged));
        }
        assert_eq!(fate(&dying, &row("pods"), &graced(0), at(40)), Ok(Fate::Gone));
    }

    #[test]
    fn propagation_becomes_a_finalizer() {
        let object = json!({"metadata": {"name": "a"}});
        for (plural, policy, finalizers) in [
            ("deployments", None, json!([])),
            ("deployments", Some("Background"), json!([])),
            ("deployments", Some("Foreground"), json!(["foregroundDeletion"])),
            ("deployments", Some("Orphan"), json!(["orphan"])),
            ("jobs", None, json!(["orphan"])),
            ("jobs", Some("Background"), json!([])),
        ] {
            let options = DeleteOptions {
                propagation: policy.map(str::to_owned),
                ..DeleteOptions::default()
            };
            let fate = fate(&object, &row(plural), &options, at(0)).unwrap();
            match fate {
                Fate::Gone => assert_eq!(finalizers, json!([]), "{plural} {policy:?}"),
                Fate::Dying(marked) => assert_eq!(marked["metadata"]["finalizers"], finalizers, "{plural} {policy:?}"),
                Fate::Unchanged => panic!("{plural} {policy:?}"),
            }
        }
        let held = json!({"metadata": {"finalizers": ["a/b", "orphan"]}});
        let background = DeleteOptions {
            propagation: Some("Background".to_owned()),
            ..DeleteOptions::default()
        };
        let Ok(Fate::Dying(marked)) = fate(&held, &row("deployments"), &background, at(0)) else {
            panic!("gone although held");
        };
        assert_eq!(marked["metadata"]["finalizers"], json!(["a/b"]));
    }
}
