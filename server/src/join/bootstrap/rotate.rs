//! The token becomes another one: the record goes from the old token's key to the new one's, sealed anew.
//!
//! Two keys and no transaction over both, so it is made of writes that can be cut off anywhere. The new record is put
//! first, the old one is removed at the revision that was read: **that removal is the rotation**. Of two servers that rotate
//! at once one removes it; the other takes its new record back. The next token lies on disk before anything is written
//! ([`Passwd::prepare`](super::passwd::Passwd::prepare)), so a server that died in between finishes, or forgets, what it
//! began ([`resume`]). A new record is touched by nobody but who made it as long as there is an older one.

use std::path::Path;

use agent::wire::token::Secret;
use jiff::Timestamp;
use tracing::info;

use super::super::passwd::{self, Given};
use super::{BootstrapError, create, disk, find, opened, record, records, remove};
use crate::store::{Store, StoreError};

/// What has become of a rotation that was cut off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// There was none.
    None,
    /// It is done now.
    Finished,
    /// It never was.
    Forgotten,
}

/// Seals the record anew with another token; what the old one opens is gone afterwards.
///
/// `passwords`: the password file as it is to be then.
///
/// # Errors
/// [`BootstrapError::WrongToken`] when `old` is not the cluster's, [`BootstrapError::Raced`] when somebody was quicker;
/// nothing is changed then. After [`BootstrapError::Store`] it is [`resume`] that knows.
pub async fn rotate(
    store: &dyn Store,
    old: &Secret,
    new: &Secret,
    passwords: &str,
    now: Timestamp,
) -> Result<(), BootstrapError> {
    let present = records(store).await?;
    let found = find(&present, old, &Given::default()).ok_or(BootstrapError::WrongToken)?;
    let key = record::key(new);
    if key == *found.entry.key {
        return Ok(());
    }
    let record = opened(&found)?;
    // This server may not have been started since another one was given the agents' secret.
    let agents = disk::passwords(&record).and_then(passwd::own_agent_secret);
    let passwords = agents
        .and_then(|agents| passwd::with_agent_secret(passwords, new, &agents))
        .unwrap_or_else(|| passwords.to_owned());
    let record = disk::with_passwords(record, &passwords, now);
    match create(store, &key, &record, new).await {
        Err(BootstrapError::Store(StoreError::Conflict { .. })) => return Err(BootstrapError::Raced),
        other => other?,
    };
    match remove(store, found.entry).await {
        Ok(()) => Ok(()),
        Err(StoreError::Conflict { .. }) => {
            take_back(store, &key).await?;
            Err(BootstrapError::Raced)
        }
        Err(error) => Err(error.into()),
    }
}

/// Finishes a rotation of this server's that was cut off, or forgets it, by what the datastore holds.
///
/// # Errors
/// When datastore or disk do not answer; it can be called again.
pub async fn resume(store: &dyn Store, dir: &Path) -> Result<Outcome, BootstrapError> {
    let Some(next) = passwd::next(dir)? else {
        return Ok(Outcome::None);
    };
    let old = passwd::known_secret(dir, &Given::default())?;
    let key = record::key(&next);
    let present = records(store).await?;
    let mut done = present.iter().any(|entry| *entry.key == *key);
    if done && let Some(old) = old.filter(|old| *old != next) {
        let old = record::key(&old);
        done = match present.iter().find(|entry| *entry.key == *old) {
            // It was cut off between its two writes.
            Some(entry) => match remove(store, entry).await {
                Ok(()) => true,
                Err(StoreError::Conflict { .. }) => false,
                Err(error) => return Err(error.into()),
            },
            // Ours is the only one if it was us who removed the old one; else somebody else did, for his.
            None => present.len() == 1,
        };
        if !done {
            take_back(store, &key).await?;
        }
    }
    if !done {
        passwd::forget_next(dir)?;
        return Ok(Outcome::Forgotten);
    }
    passwd::adopt(dir, &next)?;
    info!("finished a rotation of the token that was cut off");
    Ok(Outcome::Finished)
}

async fn take_back(store: &dyn Store, key: &str) -> Result<(), StoreError> {
    match store.get(key).await? {
        Some(entry) => match remove(store, &entry).await {
            Err(StoreError::Conflict { .. }) => Ok(()),
            other => other,
        },
        None => Ok(()),
    }
}
