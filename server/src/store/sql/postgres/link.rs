//! One connection to PostgreSQL, and every statement of the log.
//!
//! Statements that belong together are sent together: a batch of writes is two round trips, one that takes the lock and
//! one that commits.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use agent::units::Revision;
use bytes::Bytes;
use futures_util::future::{join_all, try_join, try_join_all};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, Row as SqlRow, Statement};

use super::super::super::{Entry, Event, Range};
use super::super::database::{
    Fault, Link, Live, Locked, Marks, Mortal, Page, Polling, Row, Stamp, bounds, limit, number, revision,
};
use super::telling::{CHANNEL, Telling};
use super::tls::Encryption;

/// A write that is committed waits for no more than this to be told of by a database that would not before.
const ASKING: Duration = Duration::from_secs(1);

/// For each connection. Nobody may hold the counter's lock for long: not who is stuck, not who is gone. Idle is who is waited
/// for, be it to say something or to send the rest of it: the time must do for a full batch on a narrow way (`writer.rs`), and
/// what the database does with it counts for nothing. A server that does not know one of them is told in vain. Sequential
/// scans: a plan made while the table was small would be kept.
const SETTINGS: [&str; 7] = [
    "SET idle_in_transaction_session_timeout = '3s'",
    "SET lock_timeout = '8s'",
    "SET tcp_keepalives_idle = 5",
    "SET tcp_keepalives_interval = 2",
    "SET tcp_keepalives_count = 3",
    "SET enable_seqscan = off",
    "SET client_min_messages = error",
];

/// Not READ WRITE: that would write although whoever runs the server has made it read-only (`default_transaction_read_only`).
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
/// All writers wait here for their turn.
const LOCK: &str = "SELECT revision FROM amphipod_mark WHERE name = 'newest' FOR UPDATE";
const HEADS: &str = "
    SELECT head.key, head.revision, head.created FROM unnest($1::bytea[]) AS wanted (key)
    CROSS JOIN LATERAL (
        SELECT key, revision, created, value IS NOT NULL AS live FROM amphipod_log
        WHERE key = wanted.key ORDER BY revision DESC LIMIT 1
    ) AS head WHERE head.live";
const INSERT: &str = "
    INSERT INTO amphipod_log (revision, key, created, previous, ttl, stamp, value)
    SELECT revision, key, created, previous, ttl, $7, value
    FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[])
        AS row (revision, key, created, previous, ttl, value)";
const SET_MARK: &str = "UPDATE amphipod_mark SET revision = $2 WHERE name = $1";
const MARKS: &str = "SELECT name, revision FROM amphipod_mark";
const STAMP: &str = "SELECT stamp FROM amphipod_log WHERE revision = $1";
const GET: &str =
    "SELECT revision, key, created, value FROM amphipod_log WHERE key = $1 ORDER BY revision DESC LIMIT 1";
const STATE: &str = "
    SELECT revision, key, created, value FROM (
        SELECT DISTINCT ON (key) revision, key, created, value FROM amphipod_log
        WHERE key >= $1 AND ($2::bytea IS NULL OR key < $2) AND revision <= $3
        ORDER BY key, revision DESC
    ) AS state WHERE value IS NOT NULL ORDER BY key LIMIT $4";
const PAGE: &str = "
    SELECT revision, key, created, value, previous, ttl, stamp FROM amphipod_log
    WHERE revision > $1 ORDER BY revision LIMIT $2";
const MORTALS: &str = "
    SELECT revision, key, ttl FROM amphipod_log AS now
    WHERE ttl IS NOT NULL AND value IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM amphipod_log WHERE key = now.key AND revision > now.revision)";
const CLAIM: &str = "UPDATE amphipod_mark SET revision = $2 WHERE name = 'compacted' AND revision = $1";
const SUPERSEDED: &str = "
    DELETE FROM amphipod_log WHERE revision IN
        (SELECT previous FROM amphipod_log WHERE revision > $1 AND revision <= $2 AND previous > 0)";
const TOMBSTONES: &str = "DELETE FROM amphipod_log WHERE revision > $1 AND revision <= $2 AND value IS NULL";

/// The connection.
#[derive(Debug)]
pub struct Postgres {
    client: Client,
    /// Somebody else has committed, or the connection is gone.
    news: Arc<Notify>,
    statements: Option<Statements>,
    name: String,
    _driver: JoinSet<()>,
}

#[derive(Debug)]
struct Statements {
    lock: Statement,
    heads: Statement,
    insert: Statement,
    set_mark: Statement,
    marks: Statement,
    stamp: Statement,
    get: Statement,
    state: Statement,
    page: Statement,
    telling: Telling,
}

impl Postgres {
    /// Connects, and nothing more.
    pub async fn connect(config: &Config, encryption: &Encryption, name: &str) -> Result<Self, tokio_postgres::Error> {
        let (client, mut connection) = config.connect(encryption.clone()).await?;
        let news = Arc::new(Notify::new());
        let (told, own) = (Arc::clone(&news), name.to_owned());
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            loop {
                match poll_fn(|cx| connection.poll_message(cx)).await {
                    // Our own commits need no telling.
                    Some(Ok(AsyncMessage::Notification(news))) if news.payload() == own => {}
                    Some(Ok(AsyncMessage::Notification(_))) => told.notify_one(),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => break,
                }
            }
            told.notify_one();
        });
        Ok(Self {
            client,
            news,
            statements: None,
            name: name.to_owned(),
            _driver: driver,
        })
    }

    /// Connects to a database that has the tables.
    pub async fn open(config: &Config, encryption: &Encryption, name: &str) -> Result<Self, tokio_postgres::Error> {
        let mut link = Self::connect(config, encryption, name).await?;
        let client = &link.client;
        join_all(SETTINGS.map(|setting| client.batch_execute(setting))).await;
        let texts = [LOCK, HEADS, INSERT, SET_MARK, MARKS, STAMP, GET, STATE, PAGE];
        let prepared = try_join_all(texts.map(|text| client.prepare(text))).await?;
        let Ok([lock, heads, insert, set_mark, marks, stamp, get, state, page]) = <[Statement; 9]>::try_from(prepared)
        else {
            return Ok(link);
        };
        let telling = Telling::find_out(client, name).await?;
        link.statements = Some(Statements {
            lock,
            heads,
            insert,
            set_mark,
            marks,
            stamp,
            get,
            state,
            page,
            telling,
        });
        Ok(link)
    }

    /// Why the database does not tell others of commits; `None` when it does.
    pub fn mute(&self) -> Option<&str> {
        match &self.statements.as_ref()?.telling {
            Telling::Tells(_) => None,
            Telling::Mute { why, .. } => Some(why),
        }
    }

    /// For what has no statement of its own.
    pub fn client(&self) -> &Client {
        &self.client
    }

    fn statements(&self) -> Result<&Statements, Fault> {
        let missing = || Fault::Lost("the connection was not prepared".to_owned());
        self.statements.as_ref().ok_or_else(missing)
    }

    /// A database that refused to tell others is asked again when it is time.
    async fn try_telling(&mut self) -> Result<(), tokio_postgres::Error> {
        match &mut self.statements {
            Some(statements) => statements.telling.try_again(&self.client, &self.name).await,
            None => Ok(()),
        }
    }

    /// Ends what a failed statement left open.
    async fn end<T>(&self, done: Result<T, tokio_postgres::Error>) -> Result<T, Fault> {
        let error = match done {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let fault = fault(&error);
        if !matches!(fault, Fault::Lost(_)) {
            self.client
                .batch_execute("ROLLBACK")
                .await
                .map_err(|error| Fault::Lost(describe(&error)))?;
        }
        Err(fault)
    }
}

impl Link for Postgres {
    async fn lock(&mut self, keys: &[Arc<str>]) -> Result<Locked, Fault> {
        let statements = self.statements()?;
        let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&keys];
        // In one round trip, and yet three statements: each sees what was committed before it began.
        let locked = try_join(
            try_join(
                self.client.batch_execute(BEGIN),
                self.client.query_one(&statements.lock, &[]),
            ),
            self.client.query(&statements.heads, &parameters),
        );
        let ((), newest, heads) = match locked.await {
            Ok((((), newest), heads)) => ((), newest, heads),
            Err(error) => return self.end(Err(error)).await,
        };
        let live = |row: &SqlRow| {
            Ok(Live {
                key: key(row, 0)?,
                revision: revision(row.try_get(1)?),
                created: revision(row.try_get(2)?),
            })
        };
        let read = || {
            Ok(Locked {
                newest: revision(newest.try_get(0)?),
                live: heads.iter().map(live).collect::<Result<_, tokio_postgres::Error>>()?,
            })
        };
        self.end(read()).await
    }

    async fn commit(&mut self, rows: &[Row], newest: Revision) -> Result<(), Fault> {
        let statements = self.statements()?;
        let numbers = |of: fn(&Row) -> Revision| rows.iter().map(|row| number(of(row))).collect::<Vec<i64>>();
        let revisions = numbers(|row| row.event.revision);
        let created = numbers(|row| row.event.created);
        let previous = numbers(|row| row.previous);
        let keys: Vec<&[u8]> = rows.iter().map(|row| row.event.key.as_bytes()).collect();
        let ttls: Vec<Option<i64>> = rows.iter().map(|row| row.ttl).collect();
        let values: Vec<Option<&[u8]>> = rows.iter().map(|row| row.event.value.as_deref()).collect();
        let stamp = rows.first().map_or(0, |row| row.stamp.0);
        let newest = number(newest);
        let insert: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&revisions, &keys, &created, &previous, &ttls, &values, &stamp];
        let count: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&"newest", &newest];
        let tell: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&CHANNEL, &self.name];
        let told = async {
            match &statements.telling {
                Telling::Tells(notify) => self.client.query(notify, &tell).await.map(drop),
                Telling::Mute { .. } => Ok(()),
            }
        };
        let done = try_join(
            try_join(
                self.client.execute(&statements.insert, &insert),
                self.client.execute(&statements.set_mark, &count),
            ),
            try_join(told, self.client.batch_execute("COMMIT")),
        );
        let done = done.await.map(drop);
        self.end(done).await?;
        // If it works now it tells of this commit, which is one whatever becomes of that: the next to use the connection finds out.
        let _ = timeout(ASKING, self.try_telling()).await;
        Ok(())
    }

    async fn jump(&mut self, to: Revision) -> Result<(), Fault> {
        let statements = self.statements()?;
        let to = number(to);
        let done = async {
            for mark in ["newest", "oldest"] {
                self.client.execute(&statements.set_mark, &[&mark, &to]).await?;
            }
            self.client.batch_execute("COMMIT").await
        };
        let done = done.await;
        self.end(done).await
    }

    async fn release(&mut self) -> Result<(), Fault> {
        let done = self.client.batch_execute("ROLLBACK").await;
        done.map_err(|error| Fault::Lost(describe(&error)))
    }

    async fn marks(&mut self) -> Result<Marks, Fault> {
        let rows = self.client.query(&self.statements()?.marks, &[]).await;
        rows.and_then(|rows| marks(&rows)).map_err(|error| fault(&error))
    }

    async fn stamp(&mut self, at: Revision) -> Result<Option<Stamp>, Fault> {
        let row = self.client.query_opt(&self.statements()?.stamp, &[&number(at)]).await;
        let stamp = row.and_then(|row| row.map(|row| row.try_get(0).map(Stamp)).transpose());
        stamp.map_err(|error| fault(&error))
    }

    async fn get(&mut self, key: &str) -> Result<Option<Entry>, Fault> {
        let row = self.client.query_opt(&self.statements()?.get, &[&key.as_bytes()]).await;
        let found = row.and_then(|row| row.as_ref().map(event).transpose());
        Ok(found.map_err(|error| fault(&error))?.and_then(entry))
    }

    async fn state(&mut self, range: &Range, at: Revision) -> Result<Vec<Entry>, Fault> {
        let (first, end) = bounds(range);
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] = [&first, &end, &number(at), &limit(range)];
        let rows = self.client.query(&self.statements()?.state, &parameters).await;
        let entries = rows.and_then(|rows| rows.iter().map(event).collect::<Result<Vec<Event>, _>>());
        Ok(entries
            .map_err(|error| fault(&error))?
            .into_iter()
            .filter_map(entry)
            .collect())
    }

    async fn page(&mut self, from: Revision, limit: u32) -> Result<Page, Fault> {
        let statements = self.statements()?;
        let (from, limit) = (number(from), i64::from(limit));
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&from, &limit];
        let read = try_join(
            self.client.query(&statements.page, &parameters),
            self.client.query(&statements.marks, &[]),
        );
        let page = read.await.and_then(|(rows, named)| {
            Ok(Page {
                rows: rows.iter().map(line).collect::<Result<_, _>>()?,
                marks: marks(&named)?,
            })
        });
        page.map_err(|error| fault(&error))
    }

    async fn mortals(&mut self) -> Result<Vec<Mortal>, Fault> {
        let mortal = |row: &SqlRow| {
            Ok(Mortal {
                revision: revision(row.try_get(0)?),
                key: key(row, 1)?,
                ttl: row.try_get(2)?,
            })
        };
        let rows = self.client.query(MORTALS, &[]).await;
        let mortals = rows.and_then(|rows| rows.iter().map(mortal).collect());
        mortals.map_err(|error| fault(&error))
    }

    async fn compact(&mut self, from: Revision, to: Revision) -> Result<bool, Fault> {
        let (from, to) = (number(from), number(to));
        let done = async {
            self.client.batch_execute(BEGIN).await?;
            if self.client.execute(CLAIM, &[&from, &to]).await? == 0 {
                self.client.batch_execute("ROLLBACK").await?;
                return Ok(false);
            }
            self.client.execute(SUPERSEDED, &[&from, &to]).await?;
            self.client.execute(TOMBSTONES, &[&from, &to]).await?;
            self.client.batch_execute("COMMIT").await?;
            Ok(true)
        };
        let done = done.await;
        self.end(done).await
    }

    async fn listen(&mut self) -> Result<Polling, Fault> {
        self.try_telling().await.map_err(|error| fault(&error))?;
        let listens = match self.client.batch_execute(&format!("LISTEN {CHANNEL}")).await {
            Ok(()) => matches!(self.statements()?.telling, Telling::Tells(_)),
            Err(error) if error.as_db_error().is_some() => false,
            Err(error) => return Err(fault(&error)),
        };
        // A proxy between us may swallow what is told: that is what the second is for.
        let (busy, idle) = if listens { (1000, 1000) } else { (40, 250) };
        Ok(Polling {
            busy: Duration::from_millis(busy),
            idle: Duration::from_millis(idle),
        })
    }

    fn tells(&self) -> bool {
        let telling = self.statements.as_ref().map(|statements| &statements.telling);
        matches!(telling, Some(Telling::Tells(_)))
    }

    async fn told(&mut self) {
        self.news.notified().await;
    }
}

fn marks(rows: &[SqlRow]) -> Result<Marks, tokio_postgres::Error> {
    let mut marks = Marks::default();
    for row in rows {
        let at = revision(row.try_get(1)?);
        match row.try_get(0)? {
            "newest" => marks.newest = at,
            "compacted" => marks.compacted = at,
            "oldest" => marks.oldest = at,
            _ => {}
        }
    }
    Ok(marks)
}

fn key(row: &SqlRow, column: usize) -> Result<Arc<str>, tokio_postgres::Error> {
    // We wrote it: it is UTF-8.
    Ok(String::from_utf8_lossy(row.try_get::<_, &[u8]>(column)?).into())
}

fn event(row: &SqlRow) -> Result<Event, tokio_postgres::Error> {
    Ok(Event {
        revision: revision(row.try_get(0)?),
        key: key(row, 1)?,
        created: revision(row.try_get(2)?),
        value: row.try_get::<_, Option<&[u8]>>(3)?.map(Bytes::copy_from_slice),
    })
}

fn line(row: &SqlRow) -> Result<Row, tokio_postgres::Error> {
    Ok(Row {
        event: event(row)?,
        previous: revision(row.try_get(4)?),
        ttl: row.try_get(5)?,
        stamp: Stamp(row.try_get(6)?),
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

/// What an error means for a transaction. Source: PostgreSQL 17, appendix A "Error Codes".
pub fn fault(error: &tokio_postgres::Error) -> Fault {
    let Some(code) = error.code() else {
        return Fault::Lost(describe(error));
    };
    match *code {
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED | SqlState::LOCK_NOT_AVAILABLE => {
            Fault::Again(describe(error))
        }
        SqlState::DISK_FULL => Fault::Full,
        // A standby, or a server that somebody has made read-only.
        SqlState::READ_ONLY_SQL_TRANSACTION => Fault::ReadOnly(describe(error)),
        // A server that was told to stop, or that is not up yet.
        SqlState::ADMIN_SHUTDOWN
        | SqlState::CRASH_SHUTDOWN
        | SqlState::CANNOT_CONNECT_NOW
        | SqlState::TOO_MANY_CONNECTIONS
        | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => Fault::Lost(describe(error)),
        ref code if is_doubtful(code) => Fault::Lost(describe(error)),
        _ => Fault::Refused(describe(error)),
    }
}

/// Whether nobody knows what has become of the transaction (CockroachDB says so of a commit), or the connection is not the one it
/// was (a pooler in front that gives each transaction another one).
fn is_doubtful(code: &SqlState) -> bool {
    let connection_exception = code.code().starts_with("08");
    connection_exception
        || *code == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
        || *code == SqlState::INVALID_SQL_STATEMENT_NAME
}

/// With its cause: the error's own text says only where it happened.
fn describe(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_of_which_nobody_knows_is_not_said_to_have_failed() {
        // 40003, 08007: CockroachDB's for a commit whose fate it does not know; 26000: the statement is another connection's.
        let rows = [
            ("40003", true),
            ("08007", true),
            ("26000", true),
            ("23505", false),
            ("42501", false),
        ];
        for (code, doubtful) in rows {
            assert_eq!(is_doubtful(&SqlState::from_code(code)), doubtful, "{code}");
        }
    }
}
