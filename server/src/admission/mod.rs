//! Admission: what must be so in view of other objects, in a fixed order, after authorization and before the rules of the kind.
//!
//! Each step is a function of the request, the object and the cache; a step changes the object or refuses it. Order and texts
//! are upstream's (Kubernetes v1.36 `pkg/kubeapiserver/options/plugins.go`, `AllOrderedPlugins`). Webhooks and policies will
//! follow the mutating steps here.

mod classes;
mod limits;
mod namespace;
mod node;
mod pod;
mod service_account;

use std::sync::Arc;

use agent::wire::status::Status;
use serde_json::Value;

use crate::cache::Cache;
use crate::registry::World;
use crate::registry::resource::Resource;
use crate::request::User;

/// What a write is about to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verb {
    /// Bring an object to be.
    Create,
    /// Change one.
    Update,
    /// Remove one.
    Delete,
}

/// A write on its way.
#[derive(Clone, Copy)]
pub struct Request<'r> {
    /// By whom.
    pub user: &'r User,
    /// Of what.
    pub row: &'r Resource,
    /// Where.
    pub namespace: Option<&'r str>,
    /// Which.
    pub name: &'r str,
    /// Which part.
    pub subresource: Option<&'r str>,
    /// To do what.
    pub verb: Verb,
    /// What is there now; `None` on create.
    pub old: Option<&'r Value>,
}

/// The built-in steps.
pub struct Admission {
    cache: Cache,
    world: Arc<dyn World>,
}

impl Admission {
    /// Looks other objects up in `cache`.
    pub fn new(cache: Cache, world: Arc<dyn World>) -> Self {
        Self { cache, world }
    }

    /// Runs all steps. `object` is the new object; on delete it is null.
    ///
    /// # Errors
    /// The `Status` of the first step that refuses.
    pub fn admit(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        namespace::lifecycle(&self.cache, request)?;
        limits::ranges(&self.cache, request, object)?;
        service_account::assign(&self.cache, &*self.world, request, object)?;
        let uid_of = |node: &str| {
            let node = self.cache.get(&format!("/registry/minions/{node}"))?;
            Some(node.index.uid.to_string())
        };
        node::restriction(request, object, uid_of)?;
        node::taint(request, object);
        pod::priority(&self.cache, request, object)?;
        pod::tolerations(request, object);
        classes::storage(&self.cache, request, object);
        pod::runtime_class(&self.cache, request, object)?;
        classes::requester(request, object);
        classes::ingress(&self.cache, request, object);
        Ok(())
    }
}

impl Request<'_> {
    /// Creates an object of this core kind, not a part of one.
    fn creates(&self, group: &str, plural: &str) -> bool {
        self.verb == Verb::Create && self.is(group, plural) && self.subresource.is_none()
    }

    fn is(&self, group: &str, plural: &str) -> bool {
        self.row.group == group && self.row.plural == plural
    }

    /// 403 in the words of admission.
    fn forbidden(&self, why: &str) -> Status {
        Status::forbidden(self.row.group, self.row.plural, self.name, why)
    }
}
