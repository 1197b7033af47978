//! The registry: one row per resource, one path per verb.
//!
//! Comes after authorization: what enters here may be done if admission and the rules of the kind agree. Reads are served
//! from the cache and never touch the store; a write is answered once the cache shows it, so that whoever reads next in
//! this process sees it; should the cache be late, in process it is waited for, and clients are answered. Trees live as long as one call.

mod addresses;
mod binding;
mod create;
mod delete;
mod eviction;
mod meta;
mod patch;
mod read;
pub mod resource;
mod stored;
mod subresource;
#[cfg(test)]
mod tests;
mod update;
mod view;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::units::Revision;
use agent::wire::status::{Reason, Status};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;
use tokio::time::timeout;
use tracing::debug;

use crate::admission::Admission;
use crate::cache::{Cache, Mark};
use crate::kinds;
use crate::request::{Answer, Call, FieldValidation, Operation, Pipeline, Target, User, WriteOptions};
use crate::schema;
use crate::store::{Change, Expect, Store, StoreError, Write};

pub use addresses::ServiceRange;
pub(crate) use meta::{LABEL_KEY_TEXT, check_labels, name_fault, suffix as name_suffix};
use resource::{FieldError, Keep, Resource, api_version};

/// Seconds until a client tries again that a full datastore has refused.
const FULL_RETRY_S: u32 = 10;

/// Time and chance, so that tests decide both.
pub trait World: Send + Sync + 'static {
    /// The present.
    fn now(&self) -> Timestamp;
    /// Fresh unpredictable bytes.
    fn random(&self) -> [u8; 16];
}

/// The real ones.
#[derive(Debug, Default)]
pub struct RealWorld;

impl World for RealWorld {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn random(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // Only a kernel without entropy source fails here; a uid of zeros would then collide and be refused.
        let _ = SystemRandom::new().fill(&mut bytes);
        bytes
    }
}

/// What the registry runs on.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where cluster IPs and node ports come from.
    pub services: ServiceRange,
    /// How long a write is waited for.
    pub patience: Patience,
}

/// How long a client waits for his write; what takes longer is answered, not denied.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the datastore. One that takes longer may yet do it, and the client is told so. The stores settle their own
    /// doubts in at most 30 s, and a request has 60.
    pub commit: Duration,
    /// For the cache to show what is committed. Source: apiserver v1.36 `storage/cacher`, `blockTimeout`.
    pub shown: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            commit: Duration::from_secs(35),
            shown: Duration::from_secs(3),
        }
    }
}

/// One path per verb over all resources.
pub struct Registry {
    store: Arc<dyn Store>,
    cache: Cache,
    admission: Admission,
    /// Where cluster IPs and node ports come from.
    services: ServiceRange,
    patience: Patience,
    /// The newest place in the log that was acknowledged in this process.
    acknowledged: Arc<Mutex<Mark>>,
    world: Arc<dyn World>,
}

/// The part of a call that does not change on the way.
#[derive(Clone, Copy)]
struct Context<'c> {
    user: &'c User,
    /// The row of what is stored.
    row: &'c Resource,
    /// The row that was asked for: `row`, or another view of it.
    asked: &'c Resource,
    namespace: Option<&'c str>,
    name: Option<&'c str>,
    subresource: Option<&'c str>,
}

impl Registry {
    /// A registry over a store and the cache that follows it.
    pub fn new(store: Arc<dyn Store>, cache: Cache, world: Arc<dyn World>, settings: Settings) -> Self {
        Self {
            admission: Admission::new(cache.clone(), Arc::clone(&world)),
            services: settings.services,
            patience: settings.patience,
            acknowledged: Arc::default(),
            store,
            cache,
            world,
        }
    }

    /// The same registry, but that it writes through another store on the same log.
    #[must_use]
    pub fn through(&self, wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>) -> Self {
        Self {
            store: wrap(Arc::clone(&self.store)),
            cache: self.cache.clone(),
            admission: Admission::new(self.cache.clone(), Arc::clone(&self.world)),
            services: self.services.clone(),
            patience: self.patience,
            acknowledged: Arc::clone(&self.acknowledged),
            world: Arc::clone(&self.world),
        }
    }

    /// Where writes go.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What reads are served from.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Admission and the pipeline of the verb.
    ///
    /// # Errors
    /// The `Status` that the client is answered with.
    pub async fn run(&self, call: Call) -> Result<Answer, Status> {
        let Call {
            user,
            target,
            operation,
        } = call;
        let Target {
            resource,
            namespace,
            name,
            subresource,
        } = &target;
        let stored = resource.view.and_then(kinds::stored);
        let context = Context {
            user: &user,
            row: stored.as_deref().unwrap_or(resource),
            asked: resource,
            namespace: namespace.as_deref(),
            name: name.as_deref(),
            subresource: subresource.as_deref(),
        };
        context.supports(&operation)?;
        let operation = context.stored_operation(operation)?;
        let answer = match operation {
            Operation::Get { resource_version } => self.get(context, resource_version.as_deref()).await,
            Operation::List(options) => self.list(context, &options).await,
            Operation::Watch { filter, from, .. } => self.watch(context, filter, from),
            Operation::Create { body, options } => match context.subresource {
                Some(_) => self.create_subresource(context, body, &options).await,
                None if context.row.plural == "bindings" => self.create_subresource(context, body, &options).await,
                None => self.create(context, body, &options).await,
            },
            Operation::Update { body, options } => self.update(context, body, &options).await,
            Operation::Patch { patch, options } => self.patch(context, patch, &options).await,
            Operation::Delete(options) => self.delete(context, &options).await,
            Operation::DeleteCollection { list, options } => self.delete_collection(context, &list, &options).await,
        };
        Ok(view::shown_answer(answer?, resource, stored.as_ref()))
    }

    /// Writes, and waits for the cache to show it. What is committed is acknowledged even if the cache is late: whoever
    /// must see his own writes waits on with [`Pipeline::settled`], and a client has the revision to ask for.
    async fn write(&self, key: &str, expect: Expect, change: Change, keep: Keep) -> Result<Revision, StoreError> {
        let write = Write {
            ttl: keep.ttl,
            durability: keep.durability,
            ..Write::new(key, expect, change)
        };
        // Of before the write: if the log goes back meanwhile, nobody is to wait for what is acknowledged now.
        let before = self.cache.mark(Revision::ZERO);
        let written = timeout(self.patience.commit, self.store.write(write)).await;
        let written = written.unwrap_or_else(|_| {
            let seconds = self.patience.commit.as_secs_f32();
            let text = format!("no answer within {seconds} s; the write may have happened");
            Err(StoreError::Unavailable(text))
        });
        match written {
            Ok(revision) => {
                self.acknowledge(Mark { revision, ..before });
                if !self.shows(async || Ok(revision)).await {
                    debug!(%revision, "a write is acknowledged before it can be read here");
                }
                Ok(revision)
            }
            // Whoever tries again must see what it lost against.
            Err(StoreError::Conflict { current }) => {
                let lost = async || match current {
                    Some(revision) => Ok(revision),
                    // Removed: the revision of that is not said.
                    None => self.store.revision().await,
                };
                match self.shows(lost).await {
                    true => Err(StoreError::Conflict { current }),
                    false => Err(StoreError::Unavailable(
                        "this server does not follow the datastore's changes at present".to_owned(),
                    )),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn acknowledge(&self, mark: Mark) -> Mark {
        let mut newest = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = mark.max(*newest);
        *newest
    }

    /// Whether the cache comes to a revision in time.
    async fn shows(&self, revision: impl AsyncFnOnce() -> Result<Revision, StoreError>) -> bool {
        let reached = async {
            self.cache.reached(revision().await?).await;
            Ok::<_, StoreError>(())
        };
        matches!(timeout(self.patience.shown, reached).await, Ok(Ok(())))
    }
}

impl Pipeline for Registry {
    fn run(&self, call: Call) -> BoxFuture<'_, Result<Answer, Status>> {
        Box::pin(Self::run(self, call))
    }

    fn settled(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let acknowledged = self.acknowledge(Mark::default());
            self.cache.passed(acknowledged).await;
        })
    }

    fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        kinds::find(group, version, plural)
    }
}

impl<'c> Context<'c> {
    /// 405 for verbs and subresources that the row does not have.
    fn supports(&self, operation: &Operation) -> Result<(), Status> {
        let verb = match operation {
            Operation::Get { .. } => "get",
            Operation::List(_) => "list",
            Operation::Watch { .. } => "watch",
            Operation::Create { .. } => "create",
            Operation::Update { .. } => "update",
            Operation::Patch { .. } => "patch",
            Operation::Delete(_) => "delete",
            Operation::DeleteCollection { .. } => "deletecollection",
        };
        let verbs = match self.subresource {
            None => self.row.verbs,
            Some(name) => self.row.subresource(name).ok_or_else(Status::no_such_route)?.verbs,
        };
        if verbs.contains(&verb) {
            return Ok(());
        }
        let resource = agent::wire::status::group_resource(self.row.group, self.row.plural);
        let text = format!("{verb} is not supported on resources of kind \"{resource}\"");
        Err(Status::failure(Reason::MethodNotAllowed, text).about(self.row.group, self.row.plural, ""))
    }

    /// The name of the one object this is about.
    fn named(&self) -> Result<&'c str, Status> {
        self.name
            .ok_or_else(|| Status::failure(Reason::BadRequest, "name is required"))
    }

    /// The key of the one object this is about.
    fn key(&self, name: &str) -> String {
        self.row.key(self.namespace, name)
    }

    fn not_found(&self, name: &str) -> Status {
        Status::not_found(self.row.group, self.row.plural, name)
    }

    fn conflict(&self, name: &str, why: &str) -> Status {
        Status::conflict(self.row.group, self.row.plural, name, why)
    }

    fn invalid(&self, name: &str, faults: &[FieldError]) -> Status {
        let faults: Vec<_> = faults
            .iter()
            .map(|fault| (fault.reason, fault.field.clone(), fault.text.clone()))
            .collect();
        Status::invalid(self.row.group, self.row.kind, name, &faults)
    }

    /// Reads a body against its type: the envelope is filled or checked, unknown fields and nulls go, defaults come.
    /// Comes back in the form that is stored, with warnings.
    fn decode(&self, body: &mut Value, options: &WriteOptions) -> Result<Vec<String>, Status> {
        self.decode_as(body, self.asked.group_version_kind(), options)
    }

    fn decode_as(
        &self,
        body: &mut Value,
        (group, version, kind): (&str, &str, &str),
        options: &WriteOptions,
    ) -> Result<Vec<String>, Status> {
        let bad = |text: String| Status::failure(Reason::BadRequest, text);
        let api_version = api_version(group, version);
        let Value::Object(map) = &mut *body else {
            return Err(bad("the body of the request is not a JSON object".to_owned()));
        };
        let given = map.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
        if !given.is_empty() && given != api_version {
            return Err(bad(format!(
                "the API version in the data ({given}) does not match the expected API version ({api_version})"
            )));
        }
        let given = map.get("kind").and_then(Value::as_str).unwrap_or_default();
        if !given.is_empty() && given != kind {
            return Err(bad(format!(
                "the kind in the data ({given}) does not match the expected kind ({kind})"
            )));
        }
        map.insert("apiVersion".to_owned(), api_version.into());
        map.insert("kind".to_owned(), kind.into());
        let handled = |what: &str| {
            bad(format!(
                "{kind} in version {version:?} cannot be handled as a {kind}: {what}"
            ))
        };
        let Some(shape) = schema::built_in().kind(group, version, kind) else {
            return Err(Status::internal(format!("no schema for kind {kind}")));
        };
        let checked = shape.check(body);
        if let Some(mistyped) = checked.mistyped.first() {
            return Err(handled(&mistyped.to_string()));
        }
        let problems = checked
            .unknown
            .iter()
            .map(|path| format!("unknown field \"{path}\""))
            .chain(
                options
                    .duplicates
                    .iter()
                    .map(|path| format!("duplicate field \"{path}\"")),
            );
        let problems: Vec<String> = problems.collect();
        let warnings = match options.field_validation {
            FieldValidation::Strict if !problems.is_empty() => {
                return Err(handled(&format!("strict decoding error: {}", problems.join(", "))));
            }
            FieldValidation::Strict | FieldValidation::Ignore => Vec::new(),
            FieldValidation::Warn => problems,
        };
        shape.fill_defaults(body);
        shape.normalise(body);
        if (group, version, kind) == self.asked.group_version_kind() {
            view::to_stored(body, self.asked, self.row);
        }
        Ok(warnings)
    }
}

/// What a client hears when the store did not do it.
fn store_failure(error: &StoreError) -> Status {
    match error {
        StoreError::Unavailable(_) | StoreError::Overtaken => Status::unavailable(error.to_string()),
        // It takes a person to make room.
        StoreError::Full => Status::unavailable(error.to_string()).retry_after(FULL_RETRY_S),
        StoreError::TooLarge(_) => Status::failure(Reason::RequestEntityTooLarge, error.to_string()),
        StoreError::Conflict { .. } | StoreError::Compacted { .. } | StoreError::Future { .. } => {
            Status::internal(format!("unexpected answer of the datastore: {error}"))
        }
    }
}
