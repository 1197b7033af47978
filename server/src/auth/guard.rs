//! The authorizer as the server runs it: nodes by what their pods refer to, everyone else by RBAC kept in step with the
//! cluster.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

/// Before the roles are followed anew: a cache that has ended ends every watch at once.
const PAUSE: Duration = Duration::from_millis(200);

/// Who may do what, as of now.
pub struct Authorizer {
    grants: ArcSwap<Grants>,
    cache: Cache,
    /// What has changed since the grants were compiled, for whoever is about to be refused.
    news: Mutex<Option<[Watch; 4]>>,
}

impl Authorizer {
    /// Grants what the cache holds now; [`Authorizer::follow`] keeps that up to date.
    pub fn new(cache: Cache) -> Self {
        let news = Mutex::new(watches(&cache));
        let grants = ArcSwap::from_pointee(compile(&cache));
        Self { grants, cache, news }
    }

    /// Recompiles whenever a role or a binding changes. Runs until it is dropped.
    pub async fn follow(self: Arc<Self>) {
        loop {
            if let Some(mut watches) = watches(&self.cache) {
                self.refresh(true);
                while changed(&mut watches).await {
                    self.refresh(false);
                }
            }
            warn!("authorization does not follow the cluster; beginning anew");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Takes in what has changed. `anew`: whatever was followed so far.
    fn refresh(&self, anew: bool) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        if anew {
            *news = watches(&self.cache);
        }
        let mut fresh = anew;
        for watch in news.iter_mut().flatten() {
            while watch.ready().is_some() {
                fresh = true;
            }
        }
        if fresh {
            self.grants.store(Arc::new(compile(&self.cache)));
        }
    }

    /// Whether the user may. A role or a binding counts from the moment its write is answered.
    pub fn allows(&self, user: &User, asked: &Attributes<'_>) -> bool {
        user.groups.iter().any(|group| group == "system:masters")
            || node::name_of(user).is_some_and(|name| node::allows(name, asked, &self.cache))
            || self.grants.load().allow(user, asked)
            || self.refreshed().allow(user, asked)
    }

    /// The grants once everything that has been written counts, be it another that takes it in.
    fn refreshed(&self) -> Arc<Grants> {
        self.refresh(false);
        self.grants.load_full()
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

fn watches(cache: &Cache) -> Option<[Watch; 4]> {
    let watch = |prefix| cache.watch(prefix, Filter::default(), From::Now).ok();
    let [one, two, three, four] = SOURCES.map(watch);
    Some([one?, two?, three?, four?])
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
    let all = |prefix| cache.all(prefix).iter().map(|item| item.value()).collect();
    let [cluster_roles, roles, cluster_bindings, bindings] = SOURCES.map(all);
    Grants::compile(&Sources {
        cluster_roles,
        roles,
        cluster_bindings,
        bindings,
    })
}
