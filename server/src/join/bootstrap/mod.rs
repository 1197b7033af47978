//! One identity for all servers of a cluster: the bootstrap record in the datastore, and this server's files after it.
//!
//! [`settle`] runs after the datastore is open and before certificates are read. Whoever starts first on an empty
//! datastore puts the record there by compare-and-swap (`first.rs`); everyone else, also who lost that race by a moment,
//! takes the record's. A wrong token changes nothing, and no token and no identity are made up for a datastore that holds a
//! cluster. `record.rs` is the format, `disk.rs` the files, `rotate.rs` how the token becomes another one.

mod disk;
mod first;
mod record;
mod rotate;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::units::Revision;
use agent::wire::join::ca_hash;
use agent::wire::token::{Secret, Token};
use bytes::Bytes;
use jiff::Timestamp;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::time::sleep;
use tracing::{info, warn};

use super::passwd::{self, Given, PasswdError};
use super::pki::PkiError;
use crate::store::{Change, Entry, Expect, Range, Store, StoreError, Write};
use record::{Chance, Record, Unreadable};

pub use disk::PSK;
pub use record::{PREFIX, key as record_key};
pub use rotate::{Outcome, resume, rotate};

/// A K3s server that is making the record holds its place with an empty one; so often, this far apart, it is waited for.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// Lost races in a row; each means that somebody else got on.
const ATTEMPTS: u32 = 20;

/// Why this server cannot be one of the cluster's.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// Give the token.
    #[error(
        "the datastore holds a cluster already, and this server was given no token: start it with --token-file or K3S_TOKEN. \
         The cluster's token is in server/token below the data directory of any of its servers (/var/lib/rancher/k3s)"
    )]
    NoToken,
    /// Give the right token.
    #[error(
        "the token is not that of the cluster in the datastore (bootstrap data already found and encrypted with different \
         token); nothing was changed. The cluster's token is in server/token below the data directory of any of its servers \
         (/var/lib/rancher/k3s). If it was rotated (k3s token rotate), start this server with the new one: --token-file or \
         K3S_TOKEN"
    )]
    WrongToken,
    /// Give the token of this cluster, or use its datastore.
    #[error(
        "the token is for the cluster with the authority {wanted}, the datastore holds the one with {found}; nothing was \
         changed. Either the token or --datastore-endpoint is that of another cluster"
    )]
    OtherCluster {
        /// Hash in the token.
        wanted: String,
        /// Hash of the datastore's.
        found: String,
    },
    /// Restore the record, or begin with a server that has the files.
    #[error(
        "the datastore holds the objects of a cluster, but not the record of its identity (below /bootstrap/), and {} has not \
         the files of one of its servers: with a new identity its nodes, service accounts and clients would be shut out. \
         Nothing was changed. Restore the datastore from a backup that has the record, or start first a server that has the \
         cluster's files still (server/tls and server/cred below its data directory); a new cluster begins on an empty \
         datastore",
        .0.display()
    )]
    NoIdentity(PathBuf),
    /// Ask again, with the token of now.
    #[error(
        "another rotation of the token was quicker, or one to the same token was cut off on another server; nothing was \
         changed here. See which token is the cluster's now, and choose another new one"
    )]
    Raced,
    /// Decide which one counts.
    #[error(
        "{} is newer than the datastore's, and could cause a cluster outage: move it away and start again to have it from \
         the datastore",
        .0.display()
    )]
    Newer(PathBuf),
    /// Restore the datastore from a backup.
    #[error("the bootstrap record {key} in the datastore cannot be used: {why}")]
    Record {
        /// Where it lies.
        key: String,
        /// What is wrong.
        why: Unreadable,
    },
    /// The datastore did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Certificates on disk or the clock.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Tokens or the password file.
    #[error(transparent)]
    Passwd(#[from] PasswdError),
    /// Look at the disk.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// No randomness.
    #[error("the system has no randomness")]
    Randomness,
}

/// Makes this server one of the cluster in the datastore, or the first of a new one, and brings its files below `dir`
/// (`<data>/server`) to the cluster's. Returns the secrets that it goes on with.
///
/// A first server's token lies on disk as the next one (`token.next`, as in a rotation) from before its record is put until it
/// is known whether it was: who died over it goes on with that token, and who was not the first is left with none.
///
/// # Errors
/// [`BootstrapError`]; except for disk faults half-way, nothing was changed then.
pub async fn settle(store: &dyn Store, dir: &Path, given: &Given, now: Timestamp) -> Result<Given, BootstrapError> {
    let pin = pinned(given);
    for _ in 0..ATTEMPTS {
        let present = records(store).await?;
        // By a later look than that: what this server made up is forgotten before it is tried on another one's record.
        resume(store, dir).await?;
        let known = passwd::known_secret(dir, given)?.map_or_else(|| passwd::next(dir), |known| Ok(Some(known)))?;
        if present.is_empty() {
            match first::put(store, dir, given, known.as_ref(), now).await? {
                Some((record, secret)) => return follow(dir, given, secret, &record),
                None => continue,
            }
        }
        let secret = known.clone().ok_or(BootstrapError::NoToken)?;
        let record = match find(&present, &secret, given) {
            Some(found) if found.entry.value.is_empty() => {
                unlock(store, found.entry).await?;
                continue;
            }
            Some(found) => {
                let entry = found.entry;
                match take(store, found, &secret, pin.as_deref()).await? {
                    Some(record) if share(store, entry, &record, &secret, given, now).await? => continue,
                    Some(record) => record,
                    None => continue,
                }
            }
            None => return Err(BootstrapError::WrongToken),
        };
        return follow(dir, given, secret, &record);
    }
    let why = "other servers keep changing the bootstrap record".to_owned();
    Err(StoreError::Unavailable(why).into())
}

/// Brings this server's files to the record. Returns the secrets that it goes on with.
fn follow(dir: &Path, given: &Given, secret: Secret, record: &Record) -> Result<Given, BootstrapError> {
    disk::reconcile(dir, record)?;
    let agent_token = disk::passwords(record).and_then(passwd::own_agent_secret);
    if agent_token.is_some() && given.agent_token.is_none() {
        info!(
            "agents join with the cluster's agent token; --agent-token with the cluster's own token puts an end to that one"
        );
    }
    Ok(Given {
        token: Some(secret),
        agent_token,
    })
}

/// A record and the secret that it is sealed with.
struct Found<'e> {
    entry: &'e Entry,
    sealed_with: Secret,
}

async fn records(store: &dyn Store) -> Result<Vec<Entry>, StoreError> {
    let range = Range {
        prefix: PREFIX.to_owned(),
        ..Range::default()
    };
    Ok(store.list(range, None).await?.entries)
}

/// The record of this secret. Old K3s servers sealed it with nothing, or with the token's full text.
fn find<'e>(present: &'e [Entry], secret: &Secret, given: &Given) -> Option<Found<'e>> {
    let as_given = given.token.clone().unwrap_or_else(|| secret.clone());
    [secret.clone(), Secret::new(""), as_given]
        .into_iter()
        .find_map(|sealed_with| {
            let key = record::key(&sealed_with);
            let entry = present.iter().find(|entry| *entry.key == *key)?;
            Some(Found { entry, sealed_with })
        })
}

fn opened(found: &Found<'_>) -> Result<Record, BootstrapError> {
    Record::open(&found.sealed_with, &found.entry.value).map_err(|why| BootstrapError::Record {
        key: found.entry.key.to_string(),
        why,
    })
}

/// Opens a record, and seals it with the present secret if it was with an old one. `None`: somebody else did that.
async fn take(
    store: &dyn Store,
    found: Found<'_>,
    secret: &Secret,
    pin: Option<&str>,
) -> Result<Option<Record>, BootstrapError> {
    let record = opened(&found)?;
    // Before anything is written: another cluster's record stays as it is.
    check_pin(pin, &record)?;
    if found.sealed_with == *secret {
        return Ok(Some(record));
    }
    warn!("the bootstrap record is sealed in the way of an old K3s, sealing it with the token");
    match move_to(store, found.entry, &record, secret).await {
        Ok(()) => Ok(Some(record)),
        Err(BootstrapError::Store(StoreError::Conflict { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts the agents' secret that this server was given into the record, where the others find it when they start: a server
/// without `--agent-token` would turn away who joins with it, and let in agents with the cluster's own. In K3s each server has
/// to be given the same. True when the record has to be read anew.
async fn share(
    store: &dyn Store,
    entry: &Entry,
    record: &Record,
    secret: &Secret,
    given: &Given,
    now: Timestamp,
) -> Result<bool, BootstrapError> {
    let Some(agents) = passwd::agent_secret(given)? else {
        return Ok(false);
    };
    let rows = disk::passwords(record).unwrap_or_default();
    let Some(rows) = passwd::with_agent_secret(rows, secret, &agents) else {
        return Ok(false);
    };
    let changed = disk::with_passwords(record.clone(), &rows, now);
    match put_at(
        store,
        Expect::At(entry.revision),
        &record::key(secret),
        &changed,
        secret,
    )
    .await
    {
        Ok(_) => info!("agents join with the --agent-token given here; servers without one take it when they start"),
        Err(BootstrapError::Store(StoreError::Conflict { .. })) => {}
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// Seals a record with another secret, under its key and in the place of `from`.
async fn move_to(store: &dyn Store, from: &Entry, record: &Record, secret: &Secret) -> Result<(), BootstrapError> {
    let key = record::key(secret);
    let change = Change::Move {
        from: from.key.clone(),
        at: from.revision,
        value: sealed(&key, record, secret)?,
    };
    write(store, &key, Expect::Absent, change).await?;
    Ok(())
}

/// Waits for whoever is making the record; he may have died over it, then his place is free again.
async fn unlock(store: &dyn Store, entry: &Entry) -> Result<(), BootstrapError> {
    for _ in 0..LOCK_TRIES {
        sleep(LOCK_PAUSE).await;
        if store.get(&entry.key).await?.is_none_or(|now| !now.value.is_empty()) {
            return Ok(());
        }
    }
    warn!("who began to make the bootstrap record has not finished it, trying instead");
    match remove(store, entry).await {
        Ok(()) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn put_at(
    store: &dyn Store,
    expect: Expect,
    key: &str,
    record: &Record,
    secret: &Secret,
) -> Result<Revision, BootstrapError> {
    let change = Change::Put(sealed(key, record, secret)?);
    Ok(write(store, key, expect, change).await?)
}

fn sealed(key: &str, record: &Record, secret: &Secret) -> Result<Bytes, BootstrapError> {
    let sealed = record.seal(secret, chance()?).map_err(|why| BootstrapError::Record {
        key: key.to_owned(),
        why,
    })?;
    Ok(sealed.into())
}

async fn remove(store: &dyn Store, entry: &Entry) -> Result<(), StoreError> {
    let expect = Expect::At(entry.revision);
    write(store, &entry.key, expect, Change::Delete).await.map(drop)
}

async fn write(store: &dyn Store, key: &str, expect: Expect, change: Change) -> Result<Revision, StoreError> {
    let write = Write::new(key, expect, change);
    store.write(write).await
}

/// The hash of the authority in the token.
fn pinned(given: &Given) -> Option<String> {
    Token::parse(given.token.as_ref()?.expose().trim()).ok()?.ca_hash
}

/// A token that pins an authority is for that cluster only.
fn check_pin(pinned: Option<&str>, record: &Record) -> Result<(), BootstrapError> {
    let (Some(pinned), Some(bundle)) = (pinned, disk::server_ca(record)) else {
        return Ok(());
    };
    let found = ca_hash(bundle.as_bytes());
    if found == pinned {
        return Ok(());
    }
    let wanted = pinned.to_owned();
    Err(BootstrapError::OtherCluster { wanted, found })
}

fn chance() -> Result<Chance, BootstrapError> {
    let random = SystemRandom::new();
    let (mut salt, mut nonce) = ([0; 8], [0; 12]);
    random
        .fill(&mut salt)
        .and_then(|()| random.fill(&mut nonce))
        .map_err(|_| BootstrapError::Randomness)?;
    Ok(Chance { salt, nonce })
}
