//! Update and patch: read, change, check against what was, compare-and-swap; the same path for every part of an object.

use agent::wire::object::{self, integer, list, text};
use agent::wire::status::{Reason, Status};
use serde_json::Value;

use crate::admission::{Request, Verb};
use crate::cache::Item;
use crate::request::{Answer, Patch, WriteOptions};
use crate::store::{Change, Expect, StoreError};

use super::addresses::Claims;
use super::resource::Keep;
use super::subresource::Part;
use super::{Context, Registry, meta, patch, store_failure, stored, view};

/// How often a change is tried again that lost a race. Source: apiserver v1.36 `endpoints/handlers/patch.go`, `maxRetryWhenPatchConflicts`.
const RACES: usize = 5;

/// How the new state follows from the old one.
enum How {
    Replace(Value),
    Patch(Patch),
}

impl Registry {
    pub(super) async fn update(
        &self,
        context: Context<'_>,
        mut body: Value,
        options: &WriteOptions,
    ) -> Result<Answer, Status> {
        let name = context.named()?;
        let part = Part::of(context.subresource)?;
        let warnings = context.decode_as(&mut body, part.kind(context.asked), options)?;
        context.place(&mut body)?;
        self.change(context, name, part, How::Replace(body), options, warnings)
            .await
    }

    pub(super) async fn patch(
        &self,
        context: Context<'_>,
        patch: Patch,
        options: &WriteOptions,
    ) -> Result<Answer, Status> {
        let name = context.named()?;
        let part = Part::of(context.subresource)?;
        self.change(context, name, part, How::Patch(patch), options, Vec::new())
            .await
    }

    async fn change(
        &self,
        context: Context<'_>,
        name: &str,
        part: Part,
        how: How,
        options: &WriteOptions,
        warnings: Vec<String>,
    ) -> Result<Answer, Status> {
        let key = context.key(name);
        for _ in 0..RACES {
            let Some(item) = self.cache.get(&key) else {
                return match how {
                    How::Replace(mut body) if context.row.create_on_update && part == Part::Main => {
                        object::remove(&mut body, &["metadata", "resourceVersion"]);
                        self.create_decoded(context, body, options, warnings).await
                    }
                    How::Replace(_) | How::Patch(_) => Err(context.not_found(name)),
                };
            };
            let mut warnings = warnings.clone();
            let old = item.value();
            let asked = match &how {
                How::Replace(body) => body.clone(),
                How::Patch(patch) => {
                    let mut view = part.view(&old, context.row);
                    view::to_asked(&mut view, context.asked, context.row);
                    let mut asked = patch::apply(view, patch, &context, part.kind(context.asked))?;
                    warnings.extend(context.decode_as(&mut asked, part.kind(context.asked), options)?);
                    asked
                }
            };
            context.preconditions(name, &asked, &old, &how, part)?;
            if let Some(body) = self
                .change_once(context, name, &item, &old, part, asked, options)
                .await?
            {
                return Ok(Answer::Object {
                    code: 200,
                    body,
                    warnings,
                });
            }
            if let How::Replace(body) = &how
                && !text(body, &["metadata", "resourceVersion"]).is_empty()
            {
                return Err(context.conflict(name, Status::MODIFIED));
            }
        }
        Err(context.conflict(name, Status::MODIFIED))
    }

    /// `None`: somebody else was faster.
    #[expect(clippy::too_many_arguments, reason = "one step of `change`, which has them all")]
    async fn change_once(
        &self,
        context: Context<'_>,
        name: &str,
        item: &Item,
        old: &Value,
        part: Part,
        asked: Value,
        options: &WriteOptions,
    ) -> Result<Option<bytes::Bytes>, Status> {
        let row = context.row;
        let mut new = part
            .merge(asked, old, row)
            .map_err(|faults| context.invalid(name, &faults))?;
        meta::keep(&mut new, old);
        if part == Part::Main {
            row.rules.default(&mut new);
        }
        let request = Request {
            user: context.user,
            row,
            namespace: context.namespace,
            name,
            subresource: context.subresource,
            verb: Verb::Update,
            old: Some(old),
        };
        self.admission.admit(&request, &mut new)?;
        if part == Part::Main {
            row.rules.prepare(&mut new, Some(old));
        }
        if row.generation && part.counts() && row.rules.changed(&new, old) {
            meta::raise(&mut new);
        }
        let mut faults = meta::check(&new, Some(old), row);
        let mut claims = Claims::default();
        if part == Part::Main {
            faults.extend(context.check(&new, Some(old)));
            if faults.is_empty() {
                claims = self
                    .claim(row, &mut new, Some(old), options.dry_run, &mut faults)
                    .await?;
            }
        }
        if !faults.is_empty() {
            return Err(context.invalid(name, &faults));
        }
        let gone = is_to_go(&new) && !row.rules.held(&new);
        if new == *old && !gone {
            return Ok(Some(part.answer(item.body.clone(), old, row)));
        }
        let stored = stored::encode(&new);
        let revision = if options.dry_run {
            item.revision
        } else {
            let change = if gone {
                Change::Delete
            } else {
                Change::Put(stored.clone())
            };
            let keep = row.rules.keep(&new, Some(old));
            claims.still_good()?;
            self.give_up(row, old, (!gone).then_some(&new), &mut claims);
            let written = self.write(&item.key, Expect::At(item.revision), change, keep).await;
            self.settle(claims, &written).await;
            match written {
                Ok(revision) => revision,
                Err(StoreError::Conflict { .. }) => return Ok(None),
                Err(error) => return Err(store_failure(&error)),
            }
        };
        object::set(&mut new, &["metadata", "resourceVersion"], revision.to_string());
        Ok(Some(part.answer(stored::with_revision(&stored, revision), &new, row)))
    }
}

impl Registry {
    /// Changes one object as the server itself sees fit, through admission; tried again when somebody was faster.
    pub(super) async fn modify(
        &self,
        context: Context<'_>,
        name: &str,
        dry_run: bool,
        change: impl Fn(&Value) -> Result<Value, Status>,
    ) -> Result<(), Status> {
        let key = context.key(name);
        for _ in 0..RACES {
            let item = self.cache.get(&key).ok_or_else(|| context.not_found(name))?;
            let old = item.value();
            let mut new = change(&old)?;
            let request = Request {
                user: context.user,
                row: context.row,
                namespace: context.namespace,
                name,
                subresource: context.subresource,
                verb: Verb::Update,
                old: Some(&old),
            };
            self.admission.admit(&request, &mut new)?;
            if dry_run {
                return Ok(());
            }
            let put = Change::Put(stored::encode(&new));
            match self.write(&key, Expect::At(item.revision), put, Keep::DURABLE).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_failure(&error)),
            }
        }
        Err(context.conflict(name, Status::MODIFIED))
    }
}

impl Context<'_> {
    /// Whether what the client saw is what there is.
    fn preconditions(&self, name: &str, asked: &Value, old: &Value, how: &How, part: Part) -> Result<(), Status> {
        let uid = text(asked, &["metadata", "uid"]);
        let current = text(old, &["metadata", "uid"]);
        if !uid.is_empty() && uid != current {
            return Err(self.conflict(name, &uid_mismatch(uid, current)));
        }
        let given = text(asked, &["metadata", "name"]);
        if given != name {
            let text = format!("the name of the object ({given}) does not match the name on the URL ({name})");
            return Err(Status::failure(Reason::BadRequest, text));
        }
        if self.row.namespaced && text(asked, &["metadata", "namespace"]) != self.namespace.unwrap_or_default() {
            let text = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Status::failure(Reason::BadRequest, text));
        }
        let given = text(asked, &["metadata", "resourceVersion"]);
        if given.is_empty() {
            let forbidden = matches!(how, How::Replace(_)) && part == Part::Main && !self.row.unconditional_update;
            if forbidden {
                let fault = super::FieldError {
                    reason: "FieldValueInvalid",
                    field: "metadata.resourceVersion".to_owned(),
                    text: "Invalid value: 0x0: must be specified for an update".to_owned(),
                };
                return Err(self.invalid(name, &[fault]));
            }
            return Ok(());
        }
        if given != "0" && given != text(old, &["metadata", "resourceVersion"]) {
            return Err(self.conflict(name, Status::MODIFIED));
        }
        Ok(())
    }
}

/// The text of a 409 whose uid is not the object's.
pub(super) fn uid_mismatch(asked: &str, current: &str) -> String {
    format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {current}")
}

/// Dying, and nothing in `metadata` holds it any more.
pub(super) fn is_to_go(object: &Value) -> bool {
    !text(object, &["metadata", "deletionTimestamp"]).is_empty()
        && list(object, &["metadata", "finalizers"]).is_empty()
        && integer(object, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0
}
