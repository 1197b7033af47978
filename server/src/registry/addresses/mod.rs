//! Cluster IPs and node ports: each is one Service's, however many servers hand them out, and none is leaked.
//!
//! A server chooses by what its cache shows (`choose.rs`), then creates a claim for each choice (`claim.rs`), and only then
//! writes the Service. The claim's key is what two servers race for: compare-and-swap lets one win, the other chooses
//! again. What a Service gives up is released after the write that gives it up. A server that dies between leaves a claim
//! without a Service, which `repair.rs` releases.
//!
//! Why no two live Services share a slot: a Service is written only with slots whose claim was its own, and a claim is
//! removed only at the revision it was judged by: by who made it, if the Service was refused; by who took the slot from
//! the Service, at the revision from before; by the repair, long after the write could still have come ([`WRITE_WITHIN`]).
//! Who takes over a claim that his Service left behind writes it again, so that none of these removes it.

mod choose;
mod claim;
mod repair;

use std::collections::BTreeSet;
use std::time::Duration;

use agent::units::Revision;
use agent::wire::status::Status;
use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::resource::{FieldError, Keep, Resource};
use super::{Registry, store_failure, stored};
use crate::cache::Cache;
use crate::store::{Change, Expect, StoreError};

pub use choose::ServiceRange;
use choose::{Choice, Taken, node_ports};
use claim::{ADDRESSES, Owner, PORTS, Slot, held, owner};
use repair::GRACE;

/// Where the Services are.
pub(super) const SERVICES: &str = "/registry/services/specs/";
/// How often another server may be quicker at what was chosen; each time the choice begins at another random place.
const ATTEMPTS: usize = 16;
/// A Service is not written later than this after its claims were begun: the repair releases them in the end.
const WRITE_WITHIN: Duration = Duration::from_secs(60);
const _: () = assert!(
    WRITE_WITHIN.as_secs() * 5 <= GRACE.as_secs(),
    "a write may also wait in the store"
);
/// What a release is waited for: it is made good by the repair.
const RELEASE: Duration = Duration::from_secs(2);

/// What goes along with the write of a Service: claims that are new, and claims that it gives up.
#[derive(Debug, Default)]
pub(super) struct Claims {
    begun: Option<Instant>,
    made: Vec<Claimed>,
    given_up: Vec<Claimed>,
}

/// A claim as it was last seen.
#[derive(Debug)]
struct Claimed {
    key: String,
    revision: Revision,
}

/// What came of trying for one slot.
enum Grip {
    /// It is the Service's; with the claim if nobody had one before.
    Held(Option<Claimed>),
    /// It is somebody else's.
    Lost(Slot),
    /// Somebody else was quicker, and the cache shows now who.
    Raced,
}

impl Claims {
    /// 503 once the claims may be released under the Service.
    pub(super) fn still_good(&self) -> Result<(), Status> {
        match self.begun {
            Some(begun) if begun.elapsed() > WRITE_WITHIN => Err(Status::unavailable(
                "the datastore took too long to claim the addresses of the Service",
            )),
            Some(_) | None => Ok(()),
        }
    }
}

impl Registry {
    /// Chooses what a Service needs and does not have, and makes it the Service's own; other kinds need nothing. What is
    /// returned goes to [`Registry::settle`] with the outcome of the write.
    ///
    /// # Errors
    /// What the client is answered with if the datastore does not do it. Wishes that cannot be granted are `faults`.
    pub(super) async fn claim(
        &self,
        row: &Resource,
        service: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
        faults: &mut Vec<FieldError>,
    ) -> Result<Claims, Status> {
        if row.prefix != SERVICES {
            return Ok(Claims::default());
        }
        let begun = Some(Instant::now());
        let own = Owner::of(service);
        let had = old.map(held).unwrap_or_default();
        let wishes = held(service);
        for _ in 0..ATTEMPTS {
            let (mut draft, mut found) = (service.clone(), Vec::new());
            let taken = taken(&self.cache, &own, &wishes);
            let choice = Choice {
                range: &self.services,
                taken: &taken,
                old,
                random: self.world.random(),
            };
            choice.fill(&mut draft, &mut found);
            if !found.is_empty() {
                faults.extend(found);
                return Ok(Claims::default());
            }
            let wanted: BTreeSet<Slot> = held(&draft).difference(&had).copied().collect();
            if dry_run {
                *service = draft;
                return Ok(Claims::default());
            }
            let grips = join_all(wanted.iter().map(|slot| self.grip(&own, *slot))).await;
            let (mut made, mut lost, mut raced, mut failed) = (Vec::new(), Vec::new(), false, None);
            for grip in grips {
                match grip {
                    Ok(Grip::Held(claim)) => made.extend(claim),
                    Ok(Grip::Lost(slot)) => lost.push(slot),
                    Ok(Grip::Raced) => raced = true,
                    Err(error) => failed = Some(error),
                }
            }
            if lost.is_empty() && !raced && failed.is_none() {
                *service = draft;
                let given_up = Vec::new();
                return Ok(Claims { begun, made, given_up });
            }
            self.release(made).await;
            if let Some(error) = failed {
                return Err(store_failure(&error));
            }
            faults.extend(lost.into_iter().filter(|slot| wishes.contains(slot)).map(refused));
            if !faults.is_empty() {
                return Ok(Claims::default());
            }
        }
        let text = "other servers claim addresses of Services faster than this one, try again";
        Err(Status::unavailable(text))
    }

    /// Remembers which claims `new` gives up that `old` has, before the write that does it; `None`: the Service goes.
    pub(super) fn give_up(&self, row: &Resource, old: &Value, new: Option<&Value>, claims: &mut Claims) {
        if row.prefix != SERVICES {
            return;
        }
        let own = Owner::of(old);
        let keeps = new.map(held).unwrap_or_default();
        for slot in held(old).difference(&keeps) {
            let key = slot.key();
            let claim = self.cache.get(&key).filter(|claim| owner(claim).as_ref() == Some(&own));
            claims.given_up.extend(claim.map(|claim| Claimed {
                key,
                revision: claim.revision,
            }));
        }
    }

    /// Releases what the outcome of the write leaves without a Service. A write in doubt releases nothing.
    pub(super) async fn settle(&self, claims: Claims, written: &Result<Revision, StoreError>) {
        match written {
            Ok(_) => self.release(claims.given_up).await,
            Err(StoreError::Conflict { .. } | StoreError::TooLarge(_)) => self.release(claims.made).await,
            Err(_) => {}
        }
    }

    async fn grip(&self, own: &Owner, slot: Slot) -> Result<Grip, StoreError> {
        let key = slot.key();
        let seen = self.cache.get(&key);
        let (expect, value) = match &seen {
            None => (Expect::Absent, slot.claim(own, self.world.now(), self.world.random())),
            Some(claim) if owner(claim).as_ref() == Some(own) => (Expect::At(claim.revision), claim.value()),
            Some(_) => return Ok(Grip::Lost(slot)),
        };
        let put = Change::Put(stored::encode(&value));
        match self.write(&key, expect, put, Keep::DURABLE).await {
            // One that was there may be another attempt's, too: that one must not lose it to us.
            Ok(revision) => Ok(Grip::Held(seen.is_none().then_some(Claimed { key, revision }))),
            Err(StoreError::Conflict { .. }) => Ok(Grip::Raced),
            Err(error) => Err(error),
        }
    }

    async fn release(&self, claims: Vec<Claimed>) {
        let releases = claims.iter().map(|claim| async {
            let expect = Expect::At(claim.revision);
            let gone = self.write(&claim.key, expect, Change::Delete, Keep::DURABLE).await;
            if let Err(error) = gone {
                debug!(key = claim.key, error = %error, "a claim was not released");
            }
        });
        if timeout(RELEASE, join_all(releases)).await.is_err() {
            debug!("claims are released later: the datastore does not answer");
        }
    }
}

fn refused(slot: Slot) -> FieldError {
    match slot {
        Slot::Address(address) => {
            let detail = format!("failed to allocate IP {address}: provided IP is already allocated");
            FieldError::invalid("spec.clusterIPs", &vec![address.to_string()].into(), &detail)
        }
        Slot::Port(port) => FieldError::invalid("spec.ports", &port.into(), "provided port is already allocated"),
    }
}

/// What is not for this Service: what the others have, claimed or not, and all other claims, but for those it left behind
/// itself and wishes for.
fn taken(cache: &Cache, own: &Owner, wishes: &BTreeSet<Slot>) -> Taken {
    let mut taken = Taken::default();
    for claim in [ADDRESSES, PORTS].into_iter().flat_map(|prefix| cache.all(prefix)) {
        let Some(slot) = Slot::of_key(&claim.key) else {
            continue;
        };
        if wishes.contains(&slot) && owner(&claim).as_ref() == Some(own) {
            continue;
        }
        match slot {
            Slot::Address(_) => taken.addresses.extend(slot.v4()),
            Slot::Port(port) => {
                taken.ports.insert(port);
            }
        }
    }
    for service in cache.all(SERVICES) {
        let is = |path: &str, text: &str| service.field(path) == text;
        if is("metadata.namespace", &own.namespace) && is("metadata.name", &own.name) {
            continue;
        }
        taken
            .addresses
            .extend(service.field("spec.clusterIP").parse::<std::net::Ipv4Addr>());
        if matches!(service.field("spec.type"), "NodePort" | "LoadBalancer") {
            taken.ports.extend(node_ports(&service.value()));
        }
    }
    taken
}
