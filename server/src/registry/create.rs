//! Create: decode, default, stamp, admit, check, store.

use agent::wire::object::{self, text};
use agent::wire::status::{Reason, Status};
use serde_json::{Value, json};

use crate::admission::{Request, Verb};
use crate::request::{Answer, WriteOptions};
use crate::store::{Change, Expect, StoreError};

use super::addresses::{Claims, SERVICES};
use super::{Context, Registry, meta, store_failure, stored};

/// How many random names are tried. Source: apiserver v1.36 `registry/generic/registry/store.go`, `maxNameGenerationCreateAttempts`.
const NAME_ATTEMPTS: usize = 8;

impl Registry {
    pub(super) async fn create(
        &self,
        context: Context<'_>,
        mut body: Value,
        options: &WriteOptions,
    ) -> Result<Answer, Status> {
        if context.row.namespaced && context.namespace.is_none() {
            return Err(Status::no_such_route());
        }
        let warnings = context.decode(&mut body, options)?;
        self.create_decoded(context, body, options, warnings).await
    }

    /// What `create` does with a body that is read and in the stored form.
    pub(super) async fn create_decoded(
        &self,
        context: Context<'_>,
        mut body: Value,
        options: &WriteOptions,
        mut warnings: Vec<String>,
    ) -> Result<Answer, Status> {
        context.place(&mut body)?;
        if !matches!(text(&body, &["metadata", "resourceVersion"]), "" | "0") {
            let text = "resourceVersion should not be set on objects to be created";
            return Err(Status::failure(Reason::BadRequest, text));
        }
        context.row.rules.default(&mut body);
        warnings.extend(context.row.rules.warnings(&body));
        let generated = text(&body, &["metadata", "name"]).is_empty();
        let base = text(&body, &["metadata", "generateName"]).to_owned();
        for _ in 0..NAME_ATTEMPTS {
            let mut object = body.clone();
            if generated && !base.is_empty() {
                let name = meta::generated_name(&base, self.world.random());
                object::set(&mut object, &["metadata", "name"], name);
            }
            match self.create_once(context, object, options).await? {
                Some((code, body)) => return Ok(Answer::Object { code, body, warnings }),
                None if generated => {}
                None => {
                    let name = text(&body, &["metadata", "name"]);
                    return Err(Status::already_exists(context.row.group, context.row.plural, name));
                }
            }
        }
        let resource = agent::wire::status::group_resource(context.row.group, context.row.plural);
        let text = format!(
            "{resource} \"{base}\" already exists, the server was not able to generate a unique name for the object"
        );
        let status = Status::failure(Reason::AlreadyExists, text).about(context.row.group, context.row.plural, &base);
        Err(status.retry_after(1))
    }

    /// `None`: the name is taken, or is not that of the object to be replaced.
    async fn create_once(
        &self,
        context: Context<'_>,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Option<(u16, bytes::Bytes)>, Status> {
        let row = context.row;
        meta::stamp(&mut object, row, self.world.now(), self.world.random());
        if row.has_status() && !row.rules.born_with_status() {
            object::remove(&mut object, &["status"]);
        }
        let name = text(&object, &["metadata", "name"]).to_owned();
        let request = Request {
            user: context.user,
            row,
            namespace: context.namespace,
            name: &name,
            subresource: None,
            verb: Verb::Create,
            old: None,
        };
        self.admission.admit(&request, &mut object)?;
        row.rules.default(&mut object);
        row.rules.prepare(&mut object, None);
        let mut faults = meta::check(&object, None, row);
        faults.extend(context.check(&object, None));
        let key = context.key(&name);
        let mut claims = Claims::default();
        if faults.is_empty() {
            if row.prefix == SERVICES && self.cache.get(&key).is_some() {
                return Ok(None);
            }
            claims = self.claim(row, &mut object, None, options.dry_run, &mut faults).await?;
        }
        if !faults.is_empty() {
            return Err(context.invalid(&name, &faults));
        }
        let expect = match &options.instead_of {
            None => Expect::Absent,
            Some(version) => match self.cache.get(&key).map(|item| item.revision) {
                Some(revision) if revision.to_string() == *version => Expect::At(revision),
                _ => return Ok(None),
            },
        };
        let stored = stored::encode(&object);
        if options.dry_run {
            return Ok(self.cache.get(&key).is_none().then_some((201, stored)));
        }
        claims.still_good()?;
        let keep = row.rules.keep(&object, None);
        let written = self.write(&key, expect, Change::Put(stored.clone()), keep).await;
        self.settle(claims, &written).await;
        match written {
            Ok(revision) => Ok(Some((201, stored::with_revision(&stored, revision)))),
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(error) => Err(store_failure(&error)),
        }
    }
}

impl Context<'_> {
    /// Puts the object where the path says, or refuses one that says otherwise.
    pub(super) fn place(&self, object: &mut Value) -> Result<(), Status> {
        let bad = |text: String| Err(Status::failure(Reason::BadRequest, text));
        if !object::at(object, &["metadata"]).is_some_and(Value::is_object) {
            object::set(object, &["metadata"], json!({}));
        }
        let given = text(object, &["metadata", "namespace"]);
        match self.namespace.filter(|_| self.row.namespaced) {
            Some(namespace) if given.is_empty() || given == namespace => {
                object::set(object, &["metadata", "namespace"], namespace);
            }
            None if given.is_empty() => {
                object::remove(object, &["metadata", "namespace"]);
            }
            _ => {
                return bad(
                    "the namespace of the provided object does not match the namespace sent on the request".to_owned(),
                );
            }
        }
        let Some(name) = self.name else { return Ok(()) };
        let given = text(object, &["metadata", "name"]);
        if !given.is_empty() && given != name {
            return bad(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            ));
        }
        object::set(object, &["metadata", "name"], name);
        Ok(())
    }
}
