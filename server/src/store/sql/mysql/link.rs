//! One connection to MySQL, and every statement of the log.
//!
//! Statements that belong together go in one text: a batch of writes is two round trips, one that takes the lock and one
//! that commits. Bytes are written as hexadecimal literals, which need no quoting under any setting.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use agent::units::Revision;
use bytes::Bytes;
use mysql_async::prelude::{FromValue, Queryable};
use mysql_async::{Conn, Error, Row as SqlRow};

use super::super::super::{Entry, Event, Range};
use super::super::database::{
    Fault, Link, Live, Locked, Marks, Mortal, Page, Polling, Row, Stamp, bounds, limit, number, revision,
};

const COLUMNS: &str = "revision, `key`, created, value";
const MARKS: &str = "SELECT name, revision FROM amphipod_mark";

/// How often to look for what other servers wrote.
const POLLING: Polling = Polling {
    busy: Duration::from_millis(30),
    idle: Duration::from_millis(250),
};

/// The connection.
#[derive(Debug)]
pub struct Mysql(Conn);

impl Mysql {
    /// Takes a connection that has its settings.
    pub fn new(conn: Conn) -> Self {
        Self(conn)
    }

    /// What the tables say of themselves.
    pub async fn mark(&mut self, name: &'static str) -> Result<Option<i64>, Error> {
        let text = format!("SELECT revision FROM amphipod_mark WHERE name = '{name}'");
        let sets = self.run(&text).await?;
        first(&sets).map(|row| column(row, 0)).transpose()
    }

    /// Whether the database has a table of this name, which is a word.
    pub async fn has_table(&mut self, name: &str) -> Result<bool, Error> {
        let sets = self.run(&format!("SHOW TABLES LIKE '{name}'")).await?;
        Ok(first(&sets).is_some())
    }

    /// Runs statements, and returns the rows of each.
    pub async fn run(&mut self, text: &str) -> Result<Vec<Vec<SqlRow>>, Error> {
        let mut result = self.0.query_iter(text).await?;
        let mut sets = vec![result.collect().await?];
        while !result.is_empty() {
            sets.push(result.collect().await?);
        }
        // The driver keeps the error of a later statement back: until here it looks like the end.
        result.drop_result().await?;
        Ok(sets)
    }

    /// Ends what a failed statement left open.
    async fn end<T>(&mut self, done: Result<T, Error>) -> Result<T, Fault> {
        let error = match done {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let found = fault(&error);
        if !matches!(found, Fault::Lost(_)) {
            self.run("ROLLBACK")
                .await
                .map_err(|error| Fault::Lost(error.to_string()))?;
        }
        Err(found)
    }

    async fn ask<T>(&mut self, text: &str, read: impl FnOnce(&[Vec<SqlRow>]) -> Result<T, Error>) -> Result<T, Fault> {
        let sets = self.run(text).await;
        sets.and_then(|sets| read(&sets)).map_err(|error| fault(&error))
    }
}

impl Link for Mysql {
    async fn lock(&mut self, keys: &[Arc<str>]) -> Result<Locked, Fault> {
        let mut text =
            "START TRANSACTION; SELECT revision FROM amphipod_mark WHERE name = 'newest' FOR UPDATE".to_owned();
        if !keys.is_empty() {
            text.push_str(
                "; SELECT `key`, revision, created, value IS NOT NULL FROM amphipod_log JOIN
                   (SELECT MAX(revision) AS last FROM amphipod_log FORCE INDEX (amphipod_log_by_key)
                    WHERE `key` IN (",
            );
            list(&mut text, keys.iter(), |text, key| hex(text, key.as_bytes()));
            text.push_str(") GROUP BY `key`) AS head ON revision = last");
        }
        let locked = self.run(&text).await.and_then(|sets| {
            let (mut newest, mut live) = (None, Vec::new());
            for row in sets.iter().flatten() {
                if row.len() == 1 {
                    newest = Some(revision(column(row, 0)?));
                } else if column::<i64>(row, 3)? == 1 {
                    live.push(Live {
                        key: key(row, 0)?,
                        revision: revision(column(row, 1)?),
                        created: revision(column(row, 2)?),
                    });
                }
            }
            let newest = newest.ok_or_else(|| Error::Other("the table amphipod_mark is not whole".into()))?;
            Ok(Locked { newest, live })
        });
        self.end(locked).await
    }

    async fn commit(&mut self, rows: &[Row], newest: Revision) -> Result<(), Fault> {
        let size = |row: &Row| 100 + 2 * (row.event.key.len() + row.event.value.as_ref().map_or(0, Bytes::len));
        let mut text = String::with_capacity(200 + rows.iter().map(size).sum::<usize>());
        text.push_str("INSERT INTO amphipod_log (revision, `key`, created, previous, ttl, stamp, value) VALUES ");
        list(&mut text, rows.iter(), |text, row| {
            let event = &row.event;
            put(text, format_args!("({},", number(event.revision)));
            hex(text, event.key.as_bytes());
            put(
                text,
                format_args!(",{},{},", number(event.created), number(row.previous)),
            );
            match row.ttl {
                Some(ttl) => put(text, format_args!("{ttl}")),
                None => text.push_str("NULL"),
            }
            put(text, format_args!(",{},", row.stamp.0));
            match &event.value {
                Some(value) => hex(text, value),
                None => text.push_str("NULL"),
            }
            text.push(')');
        });
        put(
            &mut text,
            format_args!(
                "; UPDATE amphipod_mark SET revision = {} WHERE name = 'newest'; COMMIT",
                number(newest)
            ),
        );
        let done = self.run(&text).await.map(drop);
        self.end(done).await
    }

    async fn jump(&mut self, to: Revision) -> Result<(), Fault> {
        let to = number(to);
        let text = format!("UPDATE amphipod_mark SET revision = {to} WHERE name IN ('newest', 'oldest'); COMMIT");
        let done = self.run(&text).await.map(drop);
        self.end(done).await
    }

    async fn release(&mut self) -> Result<(), Fault> {
        let done = self.run("ROLLBACK").await.map(drop);
        done.map_err(|error| Fault::Lost(error.to_string()))
    }

    async fn marks(&mut self) -> Result<Marks, Fault> {
        self.ask(MARKS, |sets| marks(sets.last())).await
    }

    async fn stamp(&mut self, at: Revision) -> Result<Option<Stamp>, Fault> {
        let text = format!("SELECT stamp FROM amphipod_log WHERE revision = {}", number(at));
        let read = |sets: &[Vec<SqlRow>]| first(sets).map(|row| column(row, 0).map(Stamp)).transpose();
        self.ask(&text, read).await
    }

    async fn get(&mut self, key: &str) -> Result<Option<Entry>, Fault> {
        let mut text = format!("SELECT {COLUMNS} FROM amphipod_log WHERE `key` = ");
        hex(&mut text, key.as_bytes());
        text.push_str(" ORDER BY revision DESC LIMIT 1");
        let found = self.ask(&text, |sets| first(sets).map(event).transpose()).await?;
        Ok(found.and_then(entry))
    }

    async fn state(&mut self, range: &Range, at: Revision) -> Result<Vec<Entry>, Fault> {
        let (first, end) = bounds(range);
        let mut text = format!(
            "SELECT {COLUMNS} FROM amphipod_log JOIN
               (SELECT MAX(revision) AS last FROM amphipod_log FORCE INDEX (amphipod_log_by_key)
                WHERE revision <= {} AND `key` >= ",
            number(at)
        );
        hex(&mut text, &first);
        if let Some(end) = end {
            text.push_str(" AND `key` < ");
            hex(&mut text, &end);
        }
        put(
            &mut text,
            format_args!(
                " GROUP BY `key`) AS state ON revision = last WHERE value IS NOT NULL ORDER BY `key` LIMIT {}",
                limit(range)
            ),
        );
        let read = |sets: &[Vec<SqlRow>]| sets.iter().flatten().map(event).collect::<Result<Vec<Event>, Error>>();
        Ok(self.ask(&text, read).await?.into_iter().filter_map(entry).collect())
    }

    async fn page(&mut self, from: Revision, limit: u32) -> Result<Page, Fault> {
        let text = format!(
            "SELECT {COLUMNS}, previous, ttl, stamp FROM amphipod_log
             WHERE revision > {} ORDER BY revision LIMIT {limit}; {MARKS}",
            number(from)
        );
        let read = |sets: &[Vec<SqlRow>]| {
            Ok(Page {
                rows: sets
                    .first()
                    .into_iter()
                    .flatten()
                    .map(line)
                    .collect::<Result<_, Error>>()?,
                marks: marks(sets.last())?,
            })
        };
        self.ask(&text, read).await
    }

    async fn mortals(&mut self) -> Result<Vec<Mortal>, Fault> {
        let text = "SELECT revision, `key`, ttl FROM amphipod_log AS now
            WHERE ttl IS NOT NULL AND value IS NOT NULL
              AND NOT EXISTS (SELECT 1 FROM amphipod_log AS later
                              WHERE later.`key` = now.`key` AND later.revision > now.revision)";
        let mortal = |row: &SqlRow| {
            Ok(Mortal {
                revision: revision(column(row, 0)?),
                key: key(row, 1)?,
                ttl: column(row, 2)?,
            })
        };
        self.ask(text, |sets| sets.iter().flatten().map(mortal).collect()).await
    }

    async fn compact(&mut self, from: Revision, to: Revision) -> Result<bool, Fault> {
        let (from, to) = (number(from), number(to));
        let claim = format!("UPDATE amphipod_mark SET revision = {to} WHERE name = 'compacted' AND revision = {from}");
        // MySQL deletes from no table that the same statement reads, unless what it reads is a table of its own.
        let clear = format!(
            "DELETE amphipod_log FROM amphipod_log JOIN
               (SELECT previous AS gone FROM amphipod_log
                WHERE revision > {from} AND revision <= {to} AND previous > 0) AS superseded ON revision = gone;
             DELETE FROM amphipod_log WHERE revision > {from} AND revision <= {to} AND value IS NULL;
             COMMIT"
        );
        let done = self.claim_and_clear(&claim, &clear).await;
        self.end(done).await
    }

    async fn listen(&mut self) -> Result<Polling, Fault> {
        Ok(POLLING)
    }

    fn tells(&self) -> bool {
        false
    }

    async fn told(&mut self) {
        std::future::pending().await
    }
}

impl Mysql {
    async fn claim_and_clear(&mut self, claim: &str, clear: &str) -> Result<bool, Error> {
        self.run("START TRANSACTION").await?;
        self.run(claim).await?;
        let claimed = self.0.affected_rows() == 1;
        self.run(if claimed { clear } else { "ROLLBACK" }).await?;
        Ok(claimed)
    }
}

/// Writing into a text does not fail.
fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(what);
}

fn list<T>(text: &mut String, items: impl Iterator<Item = T>, mut each: impl FnMut(&mut String, T)) {
    for (position, item) in items.enumerate() {
        if position > 0 {
            text.push(',');
        }
        each(text, item);
    }
}

fn hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| DIGITS.get(usize::from(value)).copied().map_or('0', char::from);
    text.push_str("x'");
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
    }
    text.push('\'');
}

fn first(sets: &[Vec<SqlRow>]) -> Option<&SqlRow> {
    sets.iter().flatten().next()
}

fn column<T: FromValue>(row: &SqlRow, at: usize) -> Result<T, Error> {
    let read = row.get_opt(at).and_then(Result::ok);
    read.ok_or_else(|| Error::Other("a row is not what the tables' format says".into()))
}

fn key(row: &SqlRow, at: usize) -> Result<Arc<str>, Error> {
    // We wrote it: it is UTF-8.
    Ok(String::from_utf8_lossy(&column::<Vec<u8>>(row, at)?).into())
}

fn event(row: &SqlRow) -> Result<Event, Error> {
    Ok(Event {
        revision: revision(column(row, 0)?),
        key: key(row, 1)?,
        created: revision(column(row, 2)?),
        value: column::<Option<Vec<u8>>>(row, 3)?.map(Bytes::from),
    })
}

fn line(row: &SqlRow) -> Result<Row, Error> {
    Ok(Row {
        event: event(row)?,
        previous: revision(column(row, 4)?),
        ttl: column(row, 5)?,
        stamp: Stamp(column(row, 6)?),
    })
}

/// `None` for a tombstone.
fn entry(event: Event) -> Option<Entry> {
    Some(Entry {
        key: event.key,
        revision: event.revision,
        created: event.created,
        value: event.value?,
    })
}

fn marks(rows: Option<&Vec<SqlRow>>) -> Result<Marks, Error> {
    let mut marks = Marks::default();
    for row in rows.into_iter().flatten() {
        let at = revision(column(row, 1)?);
        match column::<String>(row, 0)?.as_str() {
            "newest" => marks.newest = at,
            "compacted" => marks.compacted = at,
            "oldest" => marks.oldest = at,
            _ => {}
        }
    }
    Ok(marks)
}

/// The server's number for an error.
pub fn code(error: &Error) -> Option<u16> {
    match error {
        Error::Server(error) => Some(error.code),
        Error::Driver(_) | Error::Io(_) | Error::Other(_) | Error::Url(_) => None,
    }
}

/// What an error means for a transaction. Source: MySQL 8.4 and MariaDB 11 "Error Code Reference".
pub fn fault(error: &Error) -> Fault {
    let text = error.to_string();
    match code(error) {
        // ER_LOCK_WAIT_TIMEOUT, ER_LOCK_DEADLOCK.
        Some(1205 | 1213) => Fault::Again(text),
        // ER_DISK_FULL, ER_RECORD_FILE_FULL; EE_WRITE of a temporary file, for want of room (ENOSPC).
        Some(1021 | 1114) => Fault::Full,
        Some(3) if text.contains("Errcode: 28 ") => Fault::Full,
        // ER_OPEN_AS_READONLY (innodb_read_only), ER_OPTION_PREVENTS_STATEMENT (read_only; a commit then rolls back, too),
        // ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION (tx_read_only), ER_READ_ONLY_MODE.
        Some(1036 | 1290 | 1792 | 1836) => Fault::ReadOnly(text),
        // Too many connections, shutdown, connection killed, query interrupted.
        Some(1040 | 1053 | 1152 | 1159 | 1160 | 1161 | 1184 | 1317 | 1927 | 4031) | None => Fault::Lost(text),
        Some(_) => Fault::Refused(text),
    }
}
