//! The token becomes another one: the record goes from the old token's key to the new one's, sealed anew.
//!
//! One transaction moves it: there is one record at any time, and of two servers that rotate at once one does. The next
//! token lies on disk before that ([`Passwd::prepare`](super::passwd::Passwd::prepare)), so a server that died over it sees
//! in the datastore whether it did ([`resume`]). Here no record is ever removed by itself: K3s moves one by a write and a
//! removal, and may die in between or be about to remove the other.

use std::path::Path;

use agent::wire::token::Secret;
use jiff::Timestamp;
use tracing::info;

use super::super::passwd::{self, Given};
use super::{BootstrapError, disk, find, move_to, opened, record, records, write};
use crate::store::{Change, Entry, Expect, Store, StoreError};

/// What has become of a rotation that was cut off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// There was none.
    None,
    /// It is done now.
    Finished,
    /// It never was.
    Forgotten,
    /// It is a first server's first token, and the datastore has no record yet: who settles may go on with it.
    Open,
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
    if record::key(new) == *found.entry.key {
        return Ok(());
    }
    let record = opened(&found)?;
    // This server may not have been started since another one was given the agents' secret.
    let agents = disk::passwords(&record).and_then(passwd::own_agent_secret);
    let passwords = agents
        .and_then(|agents| passwd::with_agent_secret(passwords, new, &agents))
        .unwrap_or_else(|| passwords.to_owned());
    let record = disk::with_passwords(record, &passwords, now);
    match move_to(store, found.entry, &record, new).await {
        Err(BootstrapError::Store(StoreError::Conflict { .. })) => Err(BootstrapError::Raced),
        done => done,
    }
}

/// Finishes a rotation of this server's that was cut off, or forgets it, by what the datastore holds; and so with the making
/// of a cluster, which is a rotation from no token.
///
/// A move that nobody heard the end of may still come to be: a database can hold a commit back that it has taken. So a
/// rotation is forgotten only once the old record has been written again, as it is; no move of what it was can apply then.
/// That of a first server is open until somebody's record is there: it took the place that the other move began at.
///
/// # Errors
/// When datastore or disk do not answer; it can be called again.
pub async fn resume(store: &dyn Store, dir: &Path) -> Result<Outcome, BootstrapError> {
    let Some(next) = passwd::next(dir)? else {
        return Ok(Outcome::None);
    };
    let old = passwd::known_secret(dir, &Given::default())?;
    let old = old.filter(|old| *old != next).map(|old| record::key(&old));
    loop {
        let present = records(store).await?;
        if present.is_empty() {
            return Ok(Outcome::Open);
        }
        if is_done(&present, old.as_deref(), &record::key(&next)) {
            break;
        }
        let left = present.iter().find(|entry| Some(&*entry.key) == old.as_deref());
        if let Some(entry) = left {
            match hold(store, entry).await {
                Ok(()) => {}
                // Somebody has moved it, or this rotation has after all.
                Err(StoreError::Conflict { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        passwd::forget_next(dir)?;
        return Ok(Outcome::Forgotten);
    }
    passwd::adopt(dir, &next)?;
    info!("the token that this server was about to make the cluster's when it was cut off is the cluster's");
    Ok(Outcome::Finished)
}

/// Writes a record again as it is.
async fn hold(store: &dyn Store, entry: &Entry) -> Result<(), StoreError> {
    let same = Change::Put(entry.value.clone());
    write(store, &entry.key, Expect::At(entry.revision), same).await?;
    Ok(())
}

/// Whether the record went from the key `old` to `next`, by the records that there are now. Pure.
///
/// While the old one is there it did not, whatever lies beside it. Else the newest record is that of the last rotation;
/// what lies beside that was left by a K3s server that was cut off.
fn is_done(present: &[Entry], old: Option<&str>, next: &str) -> bool {
    let of = |key: &str| present.iter().find(|entry| *entry.key == *key);
    let newest = present.iter().map(|entry| entry.created).max();
    old.is_none_or(|old| of(old).is_none()) && of(next).is_some_and(|entry| Some(entry.created) == newest)
}

#[cfg(test)]
mod tests {
    use agent::units::Revision;
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_rotation_is_done_when_its_record_is_the_newest_and_the_old_one_is_gone() {
        for (present, done) in [
            ("next", true),
            ("old", false),
            ("", false),
            ("other", false),
            // In the order in which they were made. What a dead rotation of K3s' left is no reason to give up a record.
            ("other next", true),
            ("next other", false),
            ("next old", false),
            ("old next", false),
        ] {
            let entry = |(revision, key): (u64, &str)| Entry {
                key: key.into(),
                revision: Revision::new(9),
                created: Revision::new(revision),
                value: Bytes::new(),
            };
            let mut entries: Vec<Entry> = (1..).zip(present.split_whitespace()).map(entry).collect();
            for _ in 0..2 {
                assert_eq!(is_done(&entries, Some("old"), "next"), done, "{present}");
                entries.reverse();
            }
        }
    }
}
