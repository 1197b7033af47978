//! The file: its schema, its settings and every statement that is run on it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use agent::units::Revision;
use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Row, Transaction, TransactionBehavior, ffi, params};

use super::super::super::{Entry, Event, StoreError};
use super::fault::{open_error, store_error};
use super::sum::{self, Digest, Fields};
use super::{OpenError, place};

/// `PRAGMA user_version` of a file that is ours.
const FORMAT: i64 = 2;
/// The one before had no checksums; its rows stay without.
const UNSUMMED: i64 = 1;

/// `previous` is the row that a row supersedes (0: none): compaction needs no search. `ttl` is in seconds. `sum`: `sum.rs`.
const SCHEMA: &str = "
    CREATE TABLE log (
        revision INTEGER PRIMARY KEY,
        key      TEXT    NOT NULL,
        created  INTEGER NOT NULL,
        previous INTEGER NOT NULL,
        ttl      INTEGER,
        value    BLOB,
        sum      INTEGER
    );
    CREATE INDEX log_by_key ON log (key, revision);
    CREATE TABLE mark (name TEXT PRIMARY KEY, revision INTEGER NOT NULL, sum INTEGER) WITHOUT ROWID;
    PRAGMA user_version = 2;
";

const UPGRADE: &str = "
    ALTER TABLE log ADD COLUMN sum INTEGER;
    ALTER TABLE mark ADD COLUMN sum INTEGER;
    PRAGMA user_version = 2;
";

/// For a new file, before anything else: pages that have become free can be given back (`tidy`).
const NEW: &str = "PRAGMA auto_vacuum = INCREMENTAL;";

/// For a file that nobody reads before it is whole, on the disk and verified.
const BESIDE: &str = "
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA journal_mode = MEMORY;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -1024;
";

/// Pages that lie free before some are given back, at least; and given back between two batches.
const FREE_PAGES: i64 = 1024;
const FREE_STEP: i64 = 64;

/// No second server, and no shared-memory file.
const ALONE: &str = "PRAGMA locking_mode = EXCLUSIVE;";

/// FULL: a commit is on the disk before it returns.
/// 4 MiB of WAL at rest; 1 MiB of page cache: everything hot is in our own memory anyway. A batch that is larger stays in
/// memory until it is committed, so that one that fails has written nothing.
const SETTINGS: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA journal_size_limit = 4194304;
    PRAGMA cache_size = -1024;
    PRAGMA cache_spill = OFF;
    PRAGMA temp_store = MEMORY;
";

/// A named revision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
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
    const ALL: [Self; 4] = [Self::Compacted, Self::Reserved, Self::Closed, Self::Oldest];

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
    /// Bytes of key and value.
    pub size: usize,
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
    /// Opens, locks, checks page by page and, if it is new, fills the file. What its rows say is checked by
    /// [`lines`](Self::lines).
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        make(path).map_err(|source| OpenError::File {
            path: path.to_owned(),
            source,
        })?;
        let error = |error: rusqlite::Error| open_error(path, &error);
        let connection = Connection::open(path).map_err(error)?;
        connection.busy_timeout(std::time::Duration::ZERO).map_err(error)?;
        // Until it is known to be whole, closing it changes nothing.
        let no_checkpoint = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        connection.set_db_config(no_checkpoint, true).map_err(error)?;
        // Before the first look: else that makes a shared-memory file, for which a full disk has no room.
        connection.execute_batch(ALONE).map_err(error)?;
        refuse_foreign(&connection, path)?;
        if format(&connection, path)? == 0 {
            connection.execute_batch(NEW).map_err(error)?;
        }
        connection.execute_batch(SETTINGS).map_err(error)?;
        // In exclusive mode the first write takes the lock, and keeps it.
        connection.execute_batch("BEGIN IMMEDIATE; COMMIT").map_err(error)?;
        quick_check(&connection, path)?;
        let found = format(&connection, path)?;
        let change = match found {
            0 => Some(SCHEMA),
            UNSUMMED => Some(UPGRADE),
            _ => None,
        };
        if let Some(change) = change {
            let change = format!("BEGIN; {change} COMMIT");
            connection.execute_batch(&change).map_err(error)?;
        }
        connection.set_db_config(no_checkpoint, false).map_err(error)?;
        Ok(Self(connection))
    }

    /// Whether closing it leaves SQLite's own log as it lies there, or takes it over into the file, as after
    /// [`open`](Self::open).
    pub fn keep_log(&self, keep: bool) -> rusqlite::Result<()> {
        let no_checkpoint = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        self.0.set_db_config(no_checkpoint, keep).map(drop)
    }

    /// Makes a new file beside the one in use. It is on the disk only after an `fsync` of its own.
    pub fn create(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.execute_batch(BESIDE)?;
        connection.execute_batch(&format!("BEGIN; {SCHEMA} COMMIT"))?;
        Ok(Self(connection))
    }

    /// Opens a file that is not in use, to read it: page by page it is whole.
    pub fn look(path: &Path) -> Result<Self, OpenError> {
        let error = |error: rusqlite::Error| open_error(path, &error);
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(error)?;
        refuse_foreign(&connection, path)?;
        quick_check(&connection, path)?;
        if format(&connection, path)? != FORMAT {
            return Err(OpenError::Foreign {
                path: path.to_owned(),
                detail: "an empty database, or one of an older version".to_owned(),
            });
        }
        Ok(Self(connection))
    }

    /// Opens a damaged file as it is, to read what can be read. The file may change: it is a copy.
    pub fn salvage(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA cell_size_check = ON")?;
        Ok(Self(connection))
    }

    /// What is wrong with the pages, in SQLite's words; without those of the index, if they are not to count.
    pub fn complaints(&self) -> rusqlite::Result<Vec<String>> {
        let mut statement = self.0.prepare("PRAGMA quick_check(1000)")?;
        let found = statement.query_map([], |row| row.get::<_, String>(0))?;
        let all: Vec<String> = found.collect::<rusqlite::Result<_>>()?;
        let lines = all.iter().flat_map(|text| text.lines());
        let lines = lines.filter(|line| *line != "ok" && !line.starts_with("***"));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Takes the index out, without touching its pages: they may be what is broken.
    pub fn forget_index(self, path: &Path) -> rusqlite::Result<Self> {
        let text = "PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'log_by_key'";
        self.0.execute_batch(text)?;
        drop(self);
        Self::salvage(path)
    }

    /// A mark; zero when it was never set.
    ///
    /// # Errors
    /// Also when one of the marks is not what was written.
    pub fn mark(&self, mark: Mark) -> rusqlite::Result<Revision> {
        let mut statement = self.0.prepare("SELECT name, revision, sum FROM mark")?;
        let mut rows = statement.query([])?;
        let mut found = Revision::ZERO;
        while let Some(row) = rows.next()? {
            let (name, at, sum): (String, _, Option<i64>) = (row.get(0)?, revision(row, 1)?, row.get(2)?);
            let known = Mark::ALL.into_iter().find(|mark| mark.name() == name);
            if known.is_none() || sum.is_some_and(|sum| sum != sum::of_mark(&name, at)) {
                return Err(damaged(format!("the mark {name:?} is not what was written")));
            }
            if known == Some(mark) {
                found = at;
            }
        }
        Ok(found)
    }

    /// Every row, oldest first, each held to its checksum, and the index to the rows.
    ///
    /// # Errors
    /// [`ErrorCode::DatabaseCorrupt`] for the first row that is not what was written.
    pub fn lines(&self, mut each: impl FnMut(Line)) -> rusqlite::Result<()> {
        let rows = self.rows(|row| {
            each(Line {
                size: row.key.len() + row.value.map_or(0, <[u8]>::len),
                revision: row.revision,
                key: row.key.into(),
                created: row.created,
                ttl: row.ttl,
                deleted: row.value.is_none(),
            });
            Ok(())
        })?;
        let mut index = Digest::default();
        let mut statement = self
            .0
            .prepare("SELECT key, revision FROM log INDEXED BY log_by_key ORDER BY key, revision")?;
        let mut entries = statement.query([])?;
        while let Some(entry) = entries.next()? {
            index.add(text(entry, 0)?, revision(entry, 1)?);
        }
        match index == rows {
            true => Ok(()),
            false => Err(damaged("the index does not match the rows".to_owned())),
        }
    }

    /// Every row, oldest first, each held to its checksum.
    pub fn rows(&self, mut each: impl FnMut(Fields<'_>) -> rusqlite::Result<()>) -> rusqlite::Result<Digest> {
        // By the rows alone: whatever the index says.
        let query = "SELECT revision, key, created, previous, ttl, value, sum FROM log NOT INDEXED ORDER BY revision";
        let mut statement = self.0.prepare(query)?;
        let mut rows = statement.query([])?;
        let (mut digest, mut last) = (Digest::default(), Revision::ZERO);
        while let Some(row) = rows.next()? {
            let fields = fields(row)?;
            if fields.revision <= last {
                return Err(damaged(format!("row {} comes after row {last}", fields.revision)));
            }
            last = fields.revision;
            digest.add(fields.key, fields.revision);
            each(fields)?;
        }
        Ok(digest)
    }

    /// One row, whole.
    pub fn row<T>(&self, at: Revision, read: impl FnOnce(Fields<'_>) -> T) -> Result<Option<T>, StoreError> {
        let query = || {
            let text = "SELECT revision, key, created, previous, ttl, value, sum FROM log WHERE revision = ?1";
            let mut statement = self.0.prepare_cached(text)?;
            let mut rows = statement.query([number(at)])?;
            let row = rows.next()?.map(|row| fields(row).map(read));
            row.transpose()
        };
        query().map_err(|error: rusqlite::Error| store_error(&error))
    }

    /// Says that the history up to `to` is another's: nothing from before it goes on, and no revision up to it is handed
    /// out.
    pub fn begin_after(&mut self, to: Revision) -> Result<(), StoreError> {
        self.commit(|transaction| begin_after(transaction, to))
    }

    /// Takes what is in SQLite's own log over into the file, and empties it.
    pub fn empty_log(&self) -> rusqlite::Result<()> {
        self.0.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }

    /// Gives pages that have become free back to the disk, a few at a time. Returns whether there are more.
    pub fn tidy(&self) -> Result<bool, StoreError> {
        let step = || {
            let count = |what: &str| self.0.query_row(what, [], |row| row.get::<_, i64>(0));
            let (free, all) = (count("PRAGMA freelist_count")?, count("PRAGMA page_count")?);
            // Free pages are used again first; only what is much is worth the writes.
            if free < FREE_PAGES.max(all / 4) {
                return Ok(false);
            }
            let mut statement = self.0.prepare(&format!("PRAGMA incremental_vacuum({FREE_STEP})"))?;
            let mut pages = statement.query([])?;
            while pages.next()?.is_some() {}
            // A file of an older version gives nothing back.
            Ok(count("PRAGMA freelist_count")? < free)
        };
        step().map_err(|error: rusqlite::Error| store_error(&error))
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
        let value = self.row(at, |row| row.value.map(Bytes::copy_from_slice))?;
        Ok(value.flatten())
    }

    /// What the rows up to `at` say of the keys that begin with `prefix`: each key's last one, tombstones left out.
    pub fn state(&self, prefix: &str, at: Revision) -> Result<Vec<Entry>, StoreError> {
        let query = || {
            let mut statement = self.0.prepare_cached(
                "SELECT revision, key, created, previous, ttl, value, sum FROM log AS now
                 WHERE key >= ?1 AND revision <= ?2 AND value IS NOT NULL
                   AND NOT EXISTS (SELECT 1 FROM log WHERE key = now.key AND revision > now.revision AND revision <= ?2)
                 ORDER BY key",
            )?;
            let mut rows = statement.query(params![prefix, number(at)])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                let row = fields(row)?;
                if !row.key.starts_with(prefix) {
                    break;
                }
                entries.push(Entry {
                    revision: row.revision,
                    key: row.key.into(),
                    created: row.created,
                    value: Bytes::copy_from_slice(row.value.unwrap_or_default()),
                });
            }
            Ok(entries)
        };
        query().map_err(|error: rusqlite::Error| store_error(&error))
    }

    /// The rows after `from`, in order.
    pub fn events(&self, from: Revision) -> Result<Vec<Event>, StoreError> {
        let query = || {
            let text = "SELECT revision, key, created, previous, ttl, value, sum FROM log WHERE revision > ?1 ORDER BY revision";
            let mut statement = self.0.prepare_cached(text)?;
            let event = |row: &Row<'_>| {
                let row = fields(row)?;
                Ok(Event {
                    revision: row.revision,
                    key: row.key.into(),
                    created: row.created,
                    value: row.value.map(Bytes::copy_from_slice),
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
    let query = "INSERT OR REPLACE INTO mark (name, revision, sum) VALUES (?1, ?2, ?3)";
    let mut statement = transaction.prepare_cached(query)?;
    let sum = sum::of_mark(mark.name(), to);
    statement.execute(params![mark.name(), number(to), sum]).map(drop)
}

/// [`Table::begin_after`], with what else a transaction does.
pub fn begin_after(transaction: &Transaction<'_>, to: Revision) -> rusqlite::Result<()> {
    for mark in [Mark::Oldest, Mark::Reserved, Mark::Closed] {
        set_mark(transaction, mark, to)?;
    }
    Ok(())
}

/// Writes a row.
pub fn insert(transaction: &Transaction<'_>, line: &NewLine<'_>) -> rusqlite::Result<()> {
    let NewLine { event, previous, ttl } = line;
    let row = Fields {
        revision: event.revision,
        key: &event.key,
        created: event.created,
        previous: *previous,
        ttl: *ttl,
        value: event.value.as_deref(),
    };
    insert_row(transaction, &row)
}

/// Writes a row as it was read from another file.
pub fn insert_row(transaction: &Transaction<'_>, row: &Fields<'_>) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO log (revision, key, created, previous, ttl, value, sum) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let values = params![
        number(row.revision),
        row.key,
        number(row.created),
        number(row.previous),
        row.ttl,
        row.value,
        row.sum()
    ];
    statement.execute(values).map(drop)
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

/// A row in the order of its columns; [`ErrorCode::DatabaseCorrupt`] unless it is what was written.
fn fields<'r>(row: &'r Row<'_>) -> rusqlite::Result<Fields<'r>> {
    let value = row.get_ref(5)?.as_bytes_or_null();
    let fields = Fields {
        revision: revision(row, 0)?,
        key: text(row, 1)?,
        created: revision(row, 2)?,
        previous: revision(row, 3)?,
        ttl: row.get(4)?,
        value: value.map_err(|_| damaged("a value is none".to_owned()))?,
    };
    match row.get::<_, Option<i64>>(6)? {
        Some(sum) if sum != fields.sum() => Err(damaged(format!("row {} is not what was written", fields.revision))),
        _ => Ok(fields),
    }
}

fn text<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<&'r str> {
    row.get_ref(column)?
        .as_str()
        .map_err(|_| damaged("a key is none".to_owned()))
}

fn damaged(detail: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(detail))
}

/// The file is there and for its owner only, before SQLite writes into it.
fn make(path: &Path) -> std::io::Result<()> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    place::folder(folder)?;
    let mut how = OpenOptions::new();
    let file = how.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    File::open(folder)?.sync_all()
}

fn quick_check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let found = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match found.map_err(|error| open_error(path, &error))? {
        problem if problem != "ok" => Err(OpenError::Damaged {
            path: path.to_owned(),
            detail: problem.replace('\n', " "),
        }),
        _ => Ok(()),
    }
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
        (FORMAT | UNSUMMED, _) | (0, 0) => return Ok(()),
        (0, _) => "a database of another program, perhaps of K3s".to_owned(),
        (other, _) => format!("format {other}, and this version knows {UNSUMMED} and {FORMAT}"),
    };
    Err(OpenError::Foreign {
        path: path.to_owned(),
        detail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_commit_is_on_the_disk_before_it_returns() {
        let folder = Scratch::new("table");
        // New, and found.
        for _ in 0..2 {
            let Table(writer) = Table::open(&folder.0.join("state.db")).unwrap();
            let setting = |name| writer.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0));
            // 2 is FULL. Source: SQLite, "PRAGMA synchronous".
            assert_eq!(setting("synchronous").unwrap(), 2.into());
            assert_eq!(setting("journal_mode").unwrap(), "wal".to_owned().into());
        }
    }
}
