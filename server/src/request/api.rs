//! Authorize, then let the registry do it.

use std::sync::Arc;

use agent::wire::status::{Reason, Status};
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::{Answer, Call, Operation};
use crate::auth::escalate;
use crate::auth::guard::Authorizer;
use crate::auth::may::Attributes;
use crate::registry::resource::Resource;

/// A patch that keeps losing against others is a conflict in the end (upstream's `MaxRetryWhenPatchConflicts`).
const PATCH_ATTEMPTS: usize = 5;

/// What carries a call out once it is allowed: the registry.
pub trait Pipeline: Send + Sync {
    /// Admission and the verb's pipeline.
    fn run(&self, call: Call) -> BoxFuture<'_, Result<Answer, Status>>;

    /// Resolves once reads show everything that was acknowledged in this process, however long that takes.
    fn settled(&self) -> BoxFuture<'_, ()>;

    /// The row of a served resource, custom ones included.
    fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>>;

    /// All rows, in the order of discovery.
    fn rows(&self) -> Vec<Arc<Resource>> {
        crate::kinds::table().to_vec()
    }
}

/// The only way in.
pub struct Api {
    pipeline: Arc<dyn Pipeline>,
    authorizer: Arc<Authorizer>,
}

impl Api {
    /// An API over a registry, guarded by an authorizer.
    pub fn new(pipeline: Arc<dyn Pipeline>, authorizer: Arc<Authorizer>) -> Self {
        Self { pipeline, authorizer }
    }

    /// The same API over another pipeline made of this one's.
    #[must_use]
    pub fn through(&self, wrap: impl FnOnce(Arc<dyn Pipeline>) -> Arc<dyn Pipeline>) -> Self {
        Self {
            pipeline: wrap(Arc::clone(&self.pipeline)),
            authorizer: Arc::clone(&self.authorizer),
        }
    }

    /// Resolves once reads show every write that was acknowledged in this process, however long that takes.
    pub async fn settled(&self) {
        self.pipeline.settled().await;
    }

    /// Who may do what.
    pub fn authorizer(&self) -> &Authorizer {
        &self.authorizer
    }

    /// The row of a served resource.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.pipeline.find(group, version, plural)
    }

    /// All rows, in the order of discovery.
    pub fn rows(&self) -> Vec<Arc<Resource>> {
        self.pipeline.rows()
    }

    /// Authorizes and carries out.
    ///
    /// # Errors
    /// The [`Status`] that the client gets: 403 when it may not, else what the registry says.
    pub async fn call(&self, call: Call) -> Result<Answer, Status> {
        self.authorizer.demand(&call.user, &Attributes::of(&call))?;
        let writes = matches!(
            call.operation,
            Operation::Create { .. } | Operation::Update { .. } | Operation::Patch { .. }
        );
        if writes && escalate::grants(&call.target.resource) {
            return self.grant(call).await;
        }
        self.pipeline.run(call).await
    }

    /// Carries out a write of a role or a binding, if it grants no more than the user holds.
    async fn grant(&self, call: Call) -> Result<Answer, Status> {
        let check = |new: &Value, old: Option<&Value>| self.authorizer.may_grant(&call.user, &call.target, new, old);
        match &call.operation {
            Operation::Create { body, .. } => check(body, None)?,
            Operation::Update { body, .. } => check(body, self.present(&call).await?.as_ref())?,
            Operation::Patch { patch, options } => {
                for _ in 0..PATCH_ATTEMPTS {
                    // What the patch makes of the object as it is now: that is checked, and that is written or nothing.
                    let old = self.present(&call).await?;
                    let mut trial = options.clone();
                    trial.dry_run = true;
                    let operation = Operation::Patch {
                        patch: patch.clone(),
                        options: trial,
                    };
                    let answer = self.pipeline.run(call.with(operation)).await?;
                    let Answer::Object { body, .. } = &answer else {
                        return Err(Status::internal("a patch was not answered with an object"));
                    };
                    let body: Value = serde_json::from_slice(body).map_err(Status::internal)?;
                    check(&body, old.as_ref())?;
                    if options.dry_run {
                        return Ok(answer);
                    }
                    let options = options.clone();
                    match self.pipeline.run(call.with(Operation::Update { body, options })).await {
                        Err(status) if status.is(Reason::Conflict) => {}
                        answer => return answer,
                    }
                }
                let target = &call.target;
                let name = target.name.as_deref().unwrap_or_default();
                let (group, plural) = (target.resource.group, target.resource.plural);
                return Err(Status::conflict(group, plural, name, Status::MODIFIED));
            }
            Operation::Get { .. }
            | Operation::List(_)
            | Operation::Watch { .. }
            | Operation::Delete(_)
            | Operation::DeleteCollection { .. } => {}
        }
        self.pipeline.run(call).await
    }

    /// The object that a call is about, as it is now.
    async fn present(&self, call: &Call) -> Result<Option<Value>, Status> {
        let operation = Operation::Get { resource_version: None };
        match self.pipeline.run(call.with(operation)).await {
            Ok(Answer::Object { body, .. }) => serde_json::from_slice(&body).map(Some).map_err(Status::internal),
            Ok(_) => Err(Status::internal("an object was not answered with an object")),
            Err(status) if status.is(Reason::NotFound) => Ok(None),
            Err(status) => Err(status),
        }
    }
}

impl Call {
    /// Another operation by the same user on the same target.
    fn with(&self, operation: Operation) -> Self {
        Self {
            operation,
            ..self.clone()
        }
    }
}
