//! Authorize, then let the registry do it.

use std::sync::Arc;

use agent::wire::status::Status;
use futures_util::future::BoxFuture;

use super::{Answer, Call};
use crate::auth::guard::Authorizer;
use crate::auth::may::Attributes;
use crate::registry::resource::Resource;

/// What carries a call out once it is allowed: the registry.
pub trait Pipeline: Send + Sync {
    /// Admission and the verb's pipeline.
    fn run(&self, call: Call) -> BoxFuture<'_, Result<Answer, Status>>;

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
        self.pipeline.run(call).await
    }
}
