//! Makes claims and Services agree: one that was left without its Service is released, and a Service without gets one.
//!
//! Such claims come from a server that died between two writes, such Services from a server that made no claims.
//! [`Watcher`] decides (pure); [`Registry::keep_addresses`] looks and carries out, on the server that leads. Who else might
//! do the same at the same time does no harm. Source: Kubernetes v1.36
//! `pkg/registry/core/service/ipallocator/controller/repairip.go`; it waits one minute, by the wall clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use agent::units::Revision;
use futures_util::stream::{self, StreamExt as _};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::claim::{ADDRESSES, Owner, PORTS, Slot, held, owner};
use super::{Registry, SERVICES, stored};
use crate::cache::Cache;
use crate::registry::resource::Keep;
use crate::store::{Change, Expect, StoreError};

/// A claim without its Service is released after so long. Its Service may be on its way for a minute, and then in the
/// queue and in the connection of a datastore that stalls; nobody misses one address of thousands meanwhile.
pub(super) const GRACE: Duration = Duration::from_secs(600);
/// Between two looks; without a change of claims or Services a look costs nothing.
const LOOK: Duration = Duration::from_secs(30);
/// Writes at once, so that the datastore commits them together.
const AT_ONCE: usize = 64;

/// What there is.
#[derive(Debug, Default)]
struct Seen {
    services: Vec<(Owner, BTreeSet<Slot>)>,
    /// Whose each is; `None`: a person's.
    claims: BTreeMap<Slot, (Revision, Option<Owner>)>,
}

/// What is to be done.
#[derive(Debug, Eq, PartialEq)]
enum Repair {
    /// The Service gets its claim.
    Make(Slot, Owner),
    /// The claim goes, if it is still this one.
    Release(Slot, Revision),
}

/// Remembers since when claims are without a Service.
#[derive(Debug, Default)]
struct Watcher {
    alone: HashMap<Slot, (Revision, Instant)>,
    /// Slots that two Services have: told once.
    shared: BTreeSet<Slot>,
}

impl Watcher {
    fn step(&mut self, seen: &Seen, now: Instant) -> Vec<Repair> {
        let mut holders: BTreeMap<Slot, Vec<&Owner>> = BTreeMap::new();
        for (owner, slots) in &seen.services {
            for slot in slots {
                holders.entry(*slot).or_default().push(owner);
            }
        }
        self.shared
            .retain(|slot| holders.get(slot).is_some_and(|all| all.len() > 1));
        for (slot, all) in holders.iter().filter(|(_, all)| all.len() > 1) {
            if self.shared.insert(*slot) {
                let services: Vec<String> = all.iter().map(ToString::to_string).collect();
                warn!(%slot, services = services.join(", "), "Services have the same address or node port: delete all but one");
            }
        }
        let missing = holders.iter().filter(|(slot, _)| !seen.claims.contains_key(slot));
        let missing = missing.filter_map(|(slot, all)| Some((*slot, (*all.first()?).clone())));
        let mut repairs: Vec<Repair> = missing.map(|(slot, owner)| Repair::Make(slot, owner)).collect();

        let before = std::mem::take(&mut self.alone);
        for (slot, (revision, owner)) in &seen.claims {
            let Some(owner) = owner else { continue };
            if holders.get(slot).is_some_and(|all| all.contains(&owner)) {
                continue;
            }
            let known = before.get(slot).filter(|(known, _)| known == revision);
            let since = known.map_or(now, |(_, since)| *since);
            if now >= since + GRACE {
                repairs.push(Repair::Release(*slot, *revision));
            }
            self.alone.insert(*slot, (*revision, since));
        }
        repairs
    }

    /// Whether time alone brings something to do.
    fn waits(&self) -> bool {
        !self.alone.is_empty()
    }
}

impl Registry {
    /// Keeps claims and Services in agreement until dropped.
    pub async fn keep_addresses(&self) {
        let (mut watcher, mut last) = (Watcher::default(), None);
        loop {
            let mark = mark(&self.cache);
            if watcher.waits() || last.as_ref() != Some(&mark) {
                let repairs = watcher.step(&look(&self.cache), Instant::now());
                // A repair that fails changes nothing, so the next look must not take the state for looked at.
                last = self.repair(repairs).await.then_some(mark);
            }
            sleep(LOOK).await;
        }
    }

    /// Whether all that could be done was done.
    async fn repair(&self, repairs: Vec<Repair>) -> bool {
        let done = stream::iter(repairs).map(|repair| async move {
            let (slot, expect, change) = match &repair {
                Repair::Make(slot, owner) => {
                    info!(%slot, service = %owner, "a Service gets the claim that it lacks");
                    let claim = slot.claim(owner, self.world.now(), self.world.random());
                    (*slot, Expect::Absent, Change::Put(stored::encode(&claim)))
                }
                Repair::Release(slot, revision) => {
                    info!(%slot, "released a claim that was left without its Service");
                    (*slot, Expect::At(*revision), Change::Delete)
                }
            };
            match self.write(&slot.key(), expect, change, Keep::DURABLE).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => true,
                Err(error) => {
                    debug!(%slot, error = %error, "a claim is repaired later");
                    false
                }
            }
        });
        done.buffer_unordered(AT_ONCE).all(|done| async move { done }).await
    }
}

/// The same as long as no Service and no claim changes.
fn mark(cache: &Cache) -> Vec<(usize, Option<Revision>)> {
    let mark = |prefix| {
        let items = cache.all(prefix);
        (items.len(), items.iter().map(|item| item.revision).max())
    };
    [SERVICES, ADDRESSES, PORTS].map(mark).to_vec()
}

fn look(cache: &Cache) -> Seen {
    let services = cache.all(SERVICES);
    let services = services.iter().map(|item| item.value());
    let claims = [ADDRESSES, PORTS].into_iter().flat_map(|prefix| cache.all(prefix));
    Seen {
        services: services.map(|service| (Owner::of(&service), held(&service))).collect(),
        claims: claims
            .filter_map(|claim| Some((Slot::of_key(&claim.key)?, (claim.revision, owner(&claim)))))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Owner {
        Owner {
            namespace: "default".into(),
            name: name.into(),
        }
    }

    fn seen(services: &[(&str, u16)], claims: &[(u16, u64, Option<&str>)]) -> Seen {
        let services = services
            .iter()
            .map(|(name, port)| (named(name), [Slot::Port(*port)].into()));
        let claims = claims.iter().map(|(port, revision, owner)| {
            let claim = (Revision::new(*revision), owner.map(named));
            (Slot::Port(*port), claim)
        });
        Seen {
            services: services.collect(),
            claims: claims.collect(),
        }
    }

    #[test]
    fn a_service_without_a_claim_gets_one_and_who_has_one_keeps_it() {
        let (mut watcher, now) = (Watcher::default(), Instant::now());
        let state = seen(&[("a", 1), ("b", 2), ("c", 3)], &[(1, 7, Some("a")), (3, 8, None)]);
        for later in [0, 1, 2] {
            let repairs = watcher.step(&state, now + GRACE * later);
            assert_eq!(
                repairs,
                [Repair::Make(Slot::Port(2), named("b"))],
                "c's port is a person's claim"
            );
        }
    }

    #[test]
    fn a_claim_without_its_service_is_released_after_the_grace_and_not_before() {
        let (mut watcher, now) = (Watcher::default(), Instant::now());
        let left = |revision| seen(&[("b", 2)], &[(1, revision, Some("a")), (2, 9, Some("b"))]);
        assert_eq!(watcher.step(&left(7), now), []);
        assert!(watcher.waits());
        assert_eq!(watcher.step(&left(7), now + GRACE - LOOK), []);
        assert_eq!(
            watcher.step(&left(8), now + GRACE),
            [],
            "taken over: its time begins anew"
        );
        let due = watcher.step(&left(8), now + GRACE * 2);
        assert_eq!(due, [Repair::Release(Slot::Port(1), Revision::new(8))]);
        assert_eq!(
            watcher.step(&seen(&[("a", 1)], &[(1, 8, Some("a"))]), now + GRACE * 3),
            []
        );
        assert!(!watcher.waits());
    }

    #[test]
    fn of_two_services_with_one_address_neither_loses_its_claim() {
        let (mut watcher, now) = (Watcher::default(), Instant::now());
        let both = seen(&[("a", 1), ("b", 1)], &[(1, 7, Some("a"))]);
        assert_eq!(watcher.step(&both, now), []);
        assert_eq!(watcher.step(&both, now + GRACE * 2), []);
        let other = seen(&[("b", 1)], &[(1, 7, Some("a"))]);
        assert_eq!(watcher.step(&other, now + GRACE * 2), []);
        let due = watcher.step(&other, now + GRACE * 3);
        assert_eq!(
            due,
            [Repair::Release(Slot::Port(1), Revision::new(7))],
            "b gets its own after that"
        );
    }
}
