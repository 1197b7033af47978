//! What the engine needs of a shared database: one implementation per dialect, each of them SQL and little else.
//!
//! Two tables. `amphipod_log` has a row per write (`revision` is its key), `amphipod_mark` named revisions; the row
//! `newest` of the latter is the counter and the lock under which all servers write, so revisions are dense and come in
//! the order of commits.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agent::units::Revision;

use super::super::{Entry, Event, OpenError, Range, StoreError};

/// What `amphipod_mark` says of its own form; another number is another program's.
pub const FORMAT: i64 = 1;

/// The table of K3s' own datastore layer, in which its clusters stand (kine `pkg/drivers`, v0.16).
pub const OTHERS: &str = "kine";

/// Why a statement did nothing, or perhaps did.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// The connection is of no use any more. What it was doing may have happened.
    #[error("{0}")]
    Lost(String),
    /// It did not happen because another transaction was in the way: the same again may succeed.
    #[error("{0}")]
    Again(String),
    /// It did not happen, and asking again will not help.
    #[error("{0}")]
    Refused(String),
    /// It did not happen: this database server takes no writes at present. A new connection may lead to one that does.
    #[error("the database takes no writes at present: {0}")]
    ReadOnly(String),
    /// It did not happen: no room on the database's disk.
    #[error("the database's disk is full")]
    Full,
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Full => Self::Full,
            Fault::Lost(_) | Fault::Again(_) | Fault::Refused(_) | Fault::ReadOnly(_) => {
                Self::Unavailable(fault.to_string())
            }
        }
    }
}

/// Which batch of which server wrote a row: a row with the same revision and another stamp belongs to another history.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stamp(pub i64);

/// Which log it is: a random number that is made with its tables, and goes with them wherever they are copied to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Identity(pub i64);

/// The named revisions.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Marks {
    /// The last one handed out.
    pub newest: Revision,
    /// Up to here superseded rows are gone, or about to go.
    pub compacted: Revision,
    /// History was lost here: nothing from before it may go on.
    pub oldest: Revision,
}

impl Marks {
    /// Nothing before it can be listed or watched.
    pub fn floor(&self) -> Revision {
        self.compacted.max(self.oldest)
    }
}

/// One row of the log.
#[derive(Clone, Debug)]
pub struct Row {
    /// What happened.
    pub event: Event,
    /// The row it supersedes; zero if there is none.
    pub previous: Revision,
    /// Seconds.
    pub ttl: Option<i64>,
    /// Whose.
    pub stamp: Stamp,
}

/// A key that is there, seen under the lock.
#[derive(Clone, Debug)]
pub struct Live {
    /// Which.
    pub key: Arc<str>,
    /// Of its last write.
    pub revision: Revision,
    /// Of its creation.
    pub created: Revision,
}

/// What a writer sees once nobody else can write.
#[derive(Clone, Debug)]
pub struct Locked {
    /// The counter.
    pub newest: Revision,
    /// Of the keys asked for, those that are there.
    pub live: Vec<Live>,
}

/// A piece of the log.
#[derive(Clone, Debug)]
pub struct Page {
    /// In order. What is missing between them is compacted, and the marks say so: they were read later.
    pub rows: Vec<Row>,
    /// Read after the rows.
    pub marks: Marks,
}

/// A key that will expire.
#[derive(Clone, Debug)]
pub struct Mortal {
    /// Which.
    pub key: Arc<str>,
    /// Of its last write.
    pub revision: Revision,
    /// Seconds.
    pub ttl: i64,
}

/// How often to look for other servers' writes when nobody tells of them.
#[derive(Clone, Copy, Debug)]
pub struct Polling {
    /// While there have been writes lately.
    pub busy: Duration,
    /// Else.
    pub idle: Duration,
}

/// A database server that several of us share.
pub trait Database: fmt::Debug + Send + Sync + 'static {
    /// A connection to it.
    type Link: Link;

    /// Connects, to the server that takes writes.
    fn connect(&self) -> impl Future<Output = Result<Self::Link, Fault>> + Send;

    /// Makes the database and the tables unless they are there, and says which log they hold: `new` if nobody has said
    /// yet. Several servers may do so at once.
    fn prepare(&self, new: Identity) -> impl Future<Output = Result<Identity, PrepareError>> + Send;
}

/// Why there are no tables to work with.
#[derive(Debug)]
pub enum PrepareError {
    /// It may come: try again.
    Later(Fault),
    /// It will not.
    Never(OpenError),
}

/// The database of this name has [`OTHERS`] and no log of ours: whoever names it means the cluster in there, and would get an
/// empty one beside it.
pub fn of_others(database: &str) -> PrepareError {
    PrepareError::Never(OpenError::Refused {
        detail: format!(
            "database {database:?} holds a cluster of K3s (table {OTHERS}), which this server cannot read; nothing in it was \
             changed. Name a database of its own at the end of --datastore-endpoint, which is made if it is not there"
        ),
    })
}

/// The keys of a range, as bytes: from the first, inclusive, up to the second, exclusive; without the second to the end.
pub fn bounds(range: &Range) -> (Vec<u8>, Option<Vec<u8>>) {
    let prefix = range.prefix.as_bytes();
    let mut first = prefix.to_vec();
    if let Some(after) = &range.after {
        let mut next = after.as_bytes().to_vec();
        next.push(0);
        first = first.max(next);
    }
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return (first, Some(end));
        }
    }
    (first, None)
}

/// How many rows a range asks for, as databases count.
pub fn limit(range: &Range) -> i64 {
    range
        .limit
        .and_then(|limit| i64::try_from(limit).ok())
        .unwrap_or(i64::MAX)
}

/// A revision as databases have it: signed, and nowhere near the end of either.
pub fn number(revision: Revision) -> i64 {
    i64::try_from(revision.get()).unwrap_or(i64::MAX)
}

/// The other way.
pub fn revision(number: i64) -> Revision {
    Revision::new(u64::try_from(number).unwrap_or(0))
}

/// A connection. Whatever ends in [`Fault::Lost`] ends it; any other fault leaves no transaction open.
///
/// [`lock`](Self::lock) begins a transaction, which [`commit`](Self::commit), [`jump`](Self::jump) or
/// [`release`](Self::release) ends; in between only [`stamp`](Self::stamp) and [`marks`](Self::marks) are called.
pub trait Link: fmt::Debug + Send + 'static {
    /// Waits for its turn to write, then reads what `keys` are *now*: a statement's view must not be older than the lock.
    fn lock(&mut self, keys: &[Arc<str>]) -> impl Future<Output = Result<Locked, Fault>> + Send;

    /// Adds the rows, moves the counter, tells who listens, and commits.
    fn commit(&mut self, rows: &[Row], newest: Revision) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Moves the counter and the mark `oldest`, and commits.
    fn jump(&mut self, to: Revision) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Ends the transaction without a change.
    fn release(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// The marks.
    fn marks(&mut self) -> impl Future<Output = Result<Marks, Fault>> + Send;

    /// A row's stamp, if the row is there.
    fn stamp(&mut self, at: Revision) -> impl Future<Output = Result<Option<Stamp>, Fault>> + Send;

    /// One key, now.
    fn get(&mut self, key: &str) -> impl Future<Output = Result<Option<Entry>, Fault>> + Send;

    /// What the rows up to `at` say of a range, in order of keys; `range.limit` is kept to.
    fn state(&mut self, range: &Range, at: Revision) -> impl Future<Output = Result<Vec<Entry>, Fault>> + Send;

    /// The rows after `from`, in order, at most `limit`; then the marks.
    fn page(&mut self, from: Revision, limit: u32) -> impl Future<Output = Result<Page, Fault>> + Send;

    /// Every key that will expire.
    fn mortals(&mut self) -> impl Future<Output = Result<Vec<Mortal>, Fault>> + Send;

    /// Moves the mark `compacted` and removes what the rows after `from` up to `to` superseded, and the tombstones
    /// among them. False: the mark was not at `from`, and nothing happened.
    fn compact(&mut self, from: Revision, to: Revision) -> impl Future<Output = Result<bool, Fault>> + Send;

    /// From now on [`told`](Self::told) tells of commits, if this database can do that. Called again now and then: what it can
    /// may change.
    fn listen(&mut self) -> impl Future<Output = Result<Polling, Fault>> + Send;

    /// Whether the database has told who listens of what was just committed here. Else servers tell each other.
    fn tells(&self) -> bool;

    /// Waits until another server has committed something. May be dropped at any time. Pending for ever when nobody
    /// tells; ready also when the connection is lost.
    fn told(&mut self) -> impl Future<Output = ()> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_begins_with_its_prefix_and_comes_after() {
        let range = |prefix: &str, after: Option<&str>| {
            let after = after.map(str::to_owned);
            let (first, end) = bounds(&Range {
                prefix: prefix.to_owned(),
                after,
                limit: None,
            });
            (String::from_utf8(first).unwrap(), end)
        };
        assert_eq!(range("", None), (String::new(), None));
        assert_eq!(range("/a/", None), ("/a/".to_owned(), Some(b"/a0".to_vec())));
        assert_eq!(range("/a/", Some("/a/b")).0, "/a/b\0");
        assert_eq!(range("/a/", Some("/")).0, "/a/");
        assert_eq!(range("\u{7f}", None).1, Some(vec![0x80]));
    }
}
