//! The first server of a cluster, which makes its identity.
//!
//! Records of different tokens have different keys, so by the record alone two first servers that were given different
//! tokens, or none, would both be first. Whoever wants to be first holds one key before, the *place*; one transaction puts
//! the record where the place was. Who dies over it leaves the place, which is taken over after a while: he cannot put his
//! record any more then. K3s servers know nothing of the place; of one of theirs with the same token the record's key tells.

use std::io;
use std::path::Path;
use std::time::Duration;

use agent::units::Revision;
use agent::wire::token::Secret;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::sleep;
use tracing::{info, warn};

use super::super::files::{self, PRIVATE_FOLDER};
use super::super::passwd::{self, Given};
use super::record::Record;
use super::{BootstrapError, check_pin, disk, pinned, record, records, sealed, write};
use crate::store::{Change, Expect, Range, Store, StoreError};

/// Not below [`record::PREFIX`]: K3s takes all that begins with `/bootstrap` for records.
const PLACE: &str = "/amphipod/first";
/// To make an identity takes milliseconds; so often, this far apart, its maker is waited for.
const PLACE_TRIES: u32 = 50;
const PLACE_PAUSE: Duration = Duration::from_millis(100);

/// Makes the cluster's record and puts it, and keeps its secret on disk. `known`: the secret as far as this server knows it.
/// `None`: another server was there before; the secret may lie on disk as the next one, which [`super::resume`] forgets.
///
/// # Errors
/// [`BootstrapError`]; [`BootstrapError::NoIdentity`] and [`BootstrapError::NoToken`] when the datastore holds the objects of
/// a cluster that this server has not the identity, or not the token of.
pub async fn put(
    store: &dyn Store,
    dir: &Path,
    given: &Given,
    known: Option<&Secret>,
    now: Timestamp,
) -> Result<Option<(Record, Secret)>, BootstrapError> {
    let Some(place) = take_place(store).await? else {
        return Ok(None);
    };
    let made = match records(store).await {
        Ok(present) if !present.is_empty() => Ok(None),
        Ok(_) => put_at(store, place, dir, given, known, now).await,
        Err(error) => Err(error.into()),
    };
    if !matches!(made, Ok(Some(_))) {
        // What cannot be given back now is taken over by whoever comes.
        let _ = write(store, PLACE, Expect::At(place), Change::Delete).await;
    }
    made
}

async fn put_at(
    store: &dyn Store,
    place: Revision,
    dir: &Path,
    given: &Given,
    known: Option<&Secret>,
    now: Timestamp,
) -> Result<Option<(Record, Secret)>, BootstrapError> {
    // Objects come after the record: here it is gone, nobody is about to put it.
    let populated = is_populated(store).await?;
    let secret = match known {
        Some(secret) => secret.clone(),
        None if populated => return Err(BootstrapError::NoToken),
        None => passwd::random_secret()?,
    };
    if populated && !disk::has_identity(dir)? {
        return Err(BootstrapError::NoIdentity(dir.to_owned()));
    }
    let agents = passwd::agent_secret(given)?.unwrap_or_else(|| secret.clone());
    let record = {
        let (dir, secret) = (dir.to_owned(), secret.clone());
        // Keys are made: a matter of milliseconds that other tasks need not wait for.
        let made = tokio::task::spawn_blocking(move || disk::complete(&dir, &secret, &agents, now));
        made.await.map_err(io::Error::other)??
    };
    check_pin(pinned(given).as_deref(), &record)?;
    // Should we die right after the record is in the datastore, or never hear that it is, the secret is still there to open
    // it with. It is not this server's yet: one that another server is before must not be taken for the cluster's later.
    files::folder(dir, PRIVATE_FOLDER)?;
    passwd::prepare(dir, &disk::token_hash(&record), &secret)?;
    let key = record::key(&secret);
    let change = Change::Move {
        from: PLACE.into(),
        at: place,
        value: sealed(&key, &record, &secret)?,
    };
    match write(store, &key, Expect::Absent, change).await {
        Ok(_) if populated => warn!(
            "the datastore held a cluster's objects and no record of its identity: recorded the one in this server's files"
        ),
        Ok(_) => info!("a new cluster: its authorities are made and recorded in the datastore"),
        Err(StoreError::Conflict { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    passwd::adopt(dir, &secret)?;
    Ok(Some((record, secret)))
}

/// Waits for the place, and takes it. `None`: the records are to be read anew.
async fn take_place(store: &dyn Store) -> Result<Option<Revision>, StoreError> {
    let taken = write(store, PLACE, Expect::Absent, Change::Put(Bytes::from_static(b"{}"))).await;
    let held = match taken {
        Ok(place) => return Ok(Some(place)),
        Err(StoreError::Conflict { current: Some(held) }) => held,
        Err(StoreError::Conflict { current: None }) => return Ok(None),
        Err(error) => return Err(error),
    };
    for _ in 0..PLACE_TRIES {
        sleep(PLACE_PAUSE).await;
        if store.get(PLACE).await?.is_none_or(|now| now.revision != held) {
            return Ok(None);
        }
    }
    warn!("who began to make the cluster's identity has not finished it, trying instead");
    match write(store, PLACE, Expect::At(held), Change::Delete).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn is_populated(store: &dyn Store) -> Result<bool, StoreError> {
    let range = Range {
        prefix: "/registry/".to_owned(),
        limit: Some(1),
        ..Range::default()
    };
    Ok(!store.list(range, None).await?.entries.is_empty())
}
