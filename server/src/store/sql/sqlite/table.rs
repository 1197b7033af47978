//! The file: its schema, its settings and every statement that is run on it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use agent::units::Revision;
use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::super::super::{Entry, Event, StoreError};
use super::OpenError;

/// `PRAGMA user_version` of a file that is ours.
const FORMAT: i64 = 1;

/// `previous` is the row that a row supersedes (0: none): compaction needs no search. `ttl` is in seconds.
const SCHEMA: &str = "
    CREATE TABLE log (
        revision INTEGER PRIMARY KEY,
        key      TEXT    NOT NULL,
        created  INTEGER NOT NULL,
        previous INTEGER NOT NULL,
        ttl      INTEGER,
        value    BLOB
    );
    CREATE INDEX log_by_key ON log (key, revision);
    CREATE TABLE mark (name TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
    PRAGMA user_version = 1;
";

/// FULL: a commit is on the disk before it returns. EXCLUSIVE: no second server, and no shared-memory file.
/// 4 MiB of WAL at rest; 1 MiB of page cache: everything hot is in our own memory anyway.
const SETTINGS: &str = "
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA journal_size_limit = 4194304;
    PRAGMA cache_size = -1024;
    PRAGMA temp_store = MEMORY;
";

/// A named revision.
#[derive(Clone, Copy, Debug)]
pub enum Mark {
    /// Nothing before it can be had.
    Compacted,
    /// No revision up to it is handed out after a crash.
    Reserved,
    /// The newest at the last clean stop, or at the start after another: what was volatile is on disk, or given up.
    Closed,
    /// What came before it may be incomplete: a crash took volatile writes along.
    Oldest,
}

impl Mark {
    fn name(self) -> &'static str {
        match self {
            Self::Compacted => "compacted",
            Self::Reserved => "reserved",
            Self::Closed => "closed",
            Self::Oldest => "oldest",
        }
    }
}

/// One row, without its value.
#[derive(Debug)]
pub struct Line {
    /// Its key.
    pub key: Arc<str>,
    /// Its revision.
    pub revision: Revision,
    /// Of the key's creation.
    pub created: Revision,
    /// Seconds.
    pub ttl: Option<i64>,
    /// A tombstone.
    pub deleted: bool,
}

/// A row to be written.
#[derive(Debug)]
pub struct NewLine<'a> {
    /// What happened.
    pub event: &'a Event,
    /// The row it supersedes.
    pub previous: Revision,
    /// Seconds.
    pub ttl: Option<i64>,
}

/// The open file.
#[derive(Debug)]
pub struct Table(Connection);

impl Table {
    /// Opens, locks, checks and, if it is new, fills the file.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        make(path).map_err(|source| OpenError::File {
            path: path.to_owned(),
            source,
        })?;
        let error = |error: rusqlite::Error| open_error(path, &error);
        let connection = Connection::open(path).map_err(error)?;
        connection.busy_timeout(std::time::Duration::ZERO).map_err(error)?;
        refuse_foreign(&connection, path)?;
        connection.execute_batch(SETTINGS).map_err(error)?;
        // In exclusive mode the first write takes the lock, and keeps it.
        connection.execute_batch("BEGIN IMMEDIATE; COMMIT").map_err(error)?;
        let problem: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(error)?;
        if problem != "ok" {
            return Err(OpenError::Damaged {
                path: path.to_owned(),
                detail: problem,
            });
        }
        if format(&connection, path)? == 0 {
            connection
                .execute_batch(&format!("BEGIN; {SCHEMA} COMMIT"))
                .map_err(error)?;
        }
        Ok(Self(connection))
    }

    /// A mark; zero when it was never set.
    pub fn mark(&self, mark: Mark) -> rusqlite::Result<Revision> {
        let query = "SELECT revision FROM mark WHERE name = ?1";
        let found = self.0.query_row(query, [mark.name()], |row| revision(row, 0));
        Ok(found.optional()?.unwrap_or(Revision::ZERO))
    }

    /// Every row, oldest first.
    pub fn lines(&self, mut each: impl FnMut(Line)) -> rusqlite::Result<()> {
        let query = "SELECT revision, key, created, ttl, value IS NULL FROM log ORDER BY revision";
        let mut statement = self.0.prepare(query)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            each(Line {
                revision: revision(row, 0)?,
                key: row.get::<_, String>(1)?.into(),
                created: revision(row, 2)?,
                ttl: row.get(3)?,
                deleted: row.get(4)?,
            });
        }
        Ok(())
    }

    /// Runs `change` in one transaction: all of it is on the disk afterwards, or nothing.
    pub fn commit(&mut self, change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>) -> Result<(), StoreError> {
        let run = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            change(&transaction)?;
            transaction.commit()
        };
        run(&mut self.0).map_err(|error| store_error(&error))
    }

    /// One row's value.
    pub fn value(&self, at: Revision) -> Result<Option<Bytes>, StoreError> {
        let query = || {
            let mut statement = self.0.prepare_cached("SELECT value FROM log WHERE revision = ?1")?;
            let value = statement.query_row([number(at)], |row| row.get::<_, Option<Vec<u8>>>(0));
            value.optional()
        };
        let value = query().map_err(|error| store_error(&error))?;
        Ok(value.flatten().map(Bytes::from))
    }

    /// What the rows up to `at` say of the keys that begin with `prefix`: each key's last one, tombstones left out.
    pub fn state(&self, prefix: &str, at: Revision) -> Result<Vec<Entry>, StoreError> {
        let query = || {
            let mut statement = self.0.prepare_cached(
                "SELECT revision, key, created, value FROM log AS now
                 WHERE key >= ?1 AND revision <= ?2 AND value IS NOT NULL
                   AND NOT EXISTS (SELECT 1 FROM log WHERE key = now.key AND revision > now.revision AND revision <= ?2)
                 ORDER BY key",
            )?;
            let mut rows = statement.query(params![prefix, number(at)])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                let key: String = row.get(1)?;
                if !key.starts_with(prefix) {
                    break;
                }
                entries.push(Entry {
                    revision: revision(row, 0)?,
                    key: key.into(),
                    created: revision(row, 2)?,
                    value: row.get::<_, Vec<u8>>(3)?.into(),
                });
            }
            Ok(entries)
        };
        query().map_err(|error: rusqlite::Error| store_error(&error))
    }

    /// The rows after `from`, in order.
    pub fn events(&self, from: Revision) -> Result<Vec<Event>, StoreError> {
        let query = || {
            let text = "SELECT revision, key, created, value FROM log WHERE revision > ?1 ORDER BY revision";
            let mut statement = self.0.prepare_cached(text)?;
            let event = |row: &Row<'_>| {
                Ok(Event {
                    revision: revision(row, 0)?,
                    key: row.get::<_, String>(1)?.into(),
                    created: revision(row, 2)?,
                    value: row.get::<_, Option<Vec<u8>>>(3)?.map(Bytes::from),
                })
            };
            let events: rusqlite::Result<Vec<Event>> = statement.query_map([number(from)], event)?.collect();
            events
        };
        query().map_err(|error: rusqlite::Error| store_error(&error))
    }
}

/// Sets a mark.
pub fn set_mark(transaction: &Transaction<'_>, mark: Mark, to: Revision) -> rusqlite::Result<()> {
    let query = "INSERT OR REPLACE INTO mark (name, revision) VALUES (?1, ?2)";
    let mut statement = transaction.prepare_cached(query)?;
    statement.execute(params![mark.name(), number(to)]).map(drop)
}

/// Writes a row.
pub fn insert(transaction: &Transaction<'_>, line: &NewLine<'_>) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO log (revision, key, created, previous, ttl, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let NewLine { event, previous, ttl } = line;
    let row = params![
        number(event.revision),
        &*event.key,
        number(event.created),
        number(*previous),
        ttl,
        event.value.as_deref()
    ];
    statement.execute(row).map(drop)
}

/// Removes a row.
pub fn remove(transaction: &Transaction<'_>, at: Revision) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached("DELETE FROM log WHERE revision = ?1")?;
    statement.execute([number(at)]).map(drop)
}

/// Removes what the rows after `from` up to `to` superseded, and the tombstones among them. Returns how many went.
pub fn compact(transaction: &Transaction<'_>, from: Revision, to: Revision) -> rusqlite::Result<usize> {
    let mut superseded = transaction.prepare_cached(
        "DELETE FROM log WHERE revision IN
             (SELECT previous FROM log WHERE revision > ?1 AND revision <= ?2 AND previous > 0)",
    )?;
    let mut tombstones =
        transaction.prepare_cached("DELETE FROM log WHERE revision > ?1 AND revision <= ?2 AND value IS NULL")?;
    let gone = superseded.execute([number(from), number(to)])?;
    let gone = gone.saturating_add(tombstones.execute([number(from), number(to)])?);
    set_mark(transaction, Mark::Compacted, to)?;
    Ok(gone)
}

/// SQLite's integers are signed; a revision gets nowhere near the end of either.
fn number(revision: Revision) -> i64 {
    i64::try_from(revision.get()).unwrap_or(i64::MAX)
}

fn revision(row: &Row<'_>, column: usize) -> rusqlite::Result<Revision> {
    let number: i64 = row.get(column)?;
    Ok(Revision::new(u64::try_from(number).unwrap_or(0)))
}

/// The file is there and for its owner only, before SQLite writes into it.
fn make(path: &Path) -> std::io::Result<()> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    fs::create_dir_all(folder)?;
    let mut how = OpenOptions::new();
    let file = how.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    File::open(folder)?.sync_all()
}

fn format(connection: &Connection, path: &Path) -> Result<i64, OpenError> {
    let found = connection.query_row("PRAGMA user_version", [], |row| row.get(0));
    found.map_err(|error| open_error(path, &error))
}

/// Looks, and changes nothing.
fn refuse_foreign(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(|error| open_error(path, &error))?;
    let detail = match (format(connection, path)?, tables) {
        (FORMAT, _) | (0, 0) => return Ok(()),
        (0, _) => "a database of another program, perhaps of K3s".to_owned(),
        (other, _) => format!("format {other}, and this version knows {FORMAT}"),
    };
    Err(OpenError::Foreign {
        path: path.to_owned(),
        detail,
    })
}

fn open_error(path: &Path, error: &rusqlite::Error) -> OpenError {
    let (path, detail) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::InUse { path },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => OpenError::Damaged { path, detail },
        _ => OpenError::Sql { path, detail },
    }
}

fn store_error(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full,
        _ => StoreError::Unavailable(error.to_string()),
    }
}
