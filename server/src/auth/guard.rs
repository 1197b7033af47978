//! The authorizer as the server runs it: nodes by what their pods refer to, everyone else by RBAC kept in step with the
//! cluster.

use std::sync::Arc;

use agent::wire::status::Status;
use arc_swap::ArcSwap;
use tracing::warn;

use super::may::{Attributes, Grants, Rule, Sources};
use super::node;
use crate::cache::{Cache, Filter, From, Watch};
use crate::request::User;

/// Where roles and bindings are.
const SOURCES: [&str; 4] = [
    "/registry/clusterroles/",
    "/registry/roles/",
    "/registry/clusterrolebindings/",
    "/registry/rolebindings/",
];

/// Who may do what, as of now.
pub struct Authorizer {
    grants: ArcSwap<Grants>,
    cache: Cache,
}

impl Authorizer {
    /// Grants what the cache holds now; [`Authorizer::follow`] keeps that up to date.
    pub fn new(cache: Cache) -> Self {
        let grants = ArcSwap::from_pointee(compile(&cache));
        Self { grants, cache }
    }

    /// Recompiles whenever a role or a binding changes. Runs until it is dropped.
    pub async fn follow(self: Arc<Self>) {
        loop {
            let Some(mut watches) = self.watches() else {
                // The history moved on while we began; the next attempt begins later.
                tokio::task::yield_now().await;
                continue;
            };
            self.grants.store(Arc::new(compile(&self.cache)));
            while changed(&mut watches).await {
                self.grants.store(Arc::new(compile(&self.cache)));
            }
            warn!("authorization fell behind the cluster and begins anew");
        }
    }

    fn watches(&self) -> Option<[Watch; 4]> {
        let watch = |prefix| self.cache.watch(prefix, Filter::default(), From::Now).ok();
        let [one, two, three, four] = SOURCES.map(watch);
        Some([one?, two?, three?, four?])
    }

    /// Whether the user may.
    pub fn allows(&self, user: &User, asked: &Attributes<'_>) -> bool {
        user.groups.iter().any(|group| group == "system:masters")
            || node::name_of(user).is_some_and(|name| node::allows(name, asked, &self.cache))
            || self.grants.load().allow(user, asked)
    }

    /// Refuses what the user may not.
    ///
    /// # Errors
    /// The 403.
    pub fn demand(&self, user: &User, asked: &Attributes<'_>) -> Result<(), Status> {
        if self.allows(user, asked) {
            return Ok(());
        }
        Err(asked.refusal(user))
    }

    /// Every rule that roles give the user in a namespace.
    pub fn rules_for(&self, user: &User, namespace: &str) -> Vec<Rule> {
        self.grants.load().rules_for(user, namespace).cloned().collect()
    }

    /// The grants of this moment.
    pub fn grants(&self) -> Arc<Grants> {
        self.grants.load_full()
    }
}

/// Waits for a change and takes in all that have come; false when a watch has ended.
async fn changed([one, two, three, four]: &mut [Watch; 4]) -> bool {
    let event = tokio::select! {
        event = one.next() => event,
        event = two.next() => event,
        event = three.next() => event,
        event = four.next() => event,
    };
    for watch in [one, two, three, four] {
        while watch.ready().is_some() {}
    }
    event.is_some()
}

fn compile(cache: &Cache) -> Grants {
    let all = |prefix| {
        let page = cache.list(prefix, &Filter::default(), None, None, None);
        let items = page.map(|page| page.items).unwrap_or_default();
        items.iter().map(|item| item.value()).collect()
    };
    let [cluster_roles, roles, cluster_bindings, bindings] = SOURCES.map(all);
    Grants::compile(&Sources {
        cluster_roles,
        roles,
        cluster_bindings,
        bindings,
    })
}
