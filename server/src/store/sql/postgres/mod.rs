//! The log in PostgreSQL, or in what speaks its protocol.
//!
//! `link.rs` has the statements, `telling.rs` one of them, `hosts.rs` finds the server, `tls.rs` encrypts. Used are plain tables, row locks and, where there is one,
//! LISTEN; no advisory locks, no sequences, no extensions.

mod hosts;
mod link;
mod telling;
mod tls;

use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};
use tracing::warn;

use super::super::OpenError;
use super::super::endpoint::{self, Tls};
use super::database::{Database, FORMAT, Fault, Identity, OTHERS, PrepareError, of_others};
use super::shared::Shared;
use hosts::{Hosts, Unreached};
use link::{Postgres as Link, fault};
use tls::{Encryption, Mode};

/// The tables. The key is bytes, so that it has one order everywhere: the order of bytes. `format` comes last: where it is,
/// all is.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS amphipod_mark (name TEXT PRIMARY KEY, revision BIGINT NOT NULL);
    CREATE TABLE IF NOT EXISTS amphipod_log (
        revision BIGINT PRIMARY KEY,
        key      BYTEA  NOT NULL,
        created  BIGINT NOT NULL,
        previous BIGINT NOT NULL,
        ttl      BIGINT,
        stamp    BIGINT NOT NULL,
        value    BYTEA
    );
    CREATE INDEX IF NOT EXISTS amphipod_log_by_key ON amphipod_log (key, revision DESC);
    INSERT INTO amphipod_mark (name, revision) VALUES ('newest', 0), ('compacted', 0), ('oldest', 0)
        ON CONFLICT (name) DO NOTHING;
    INSERT INTO amphipod_mark (name, revision) VALUES ('format', 1) ON CONFLICT (name) DO NOTHING;
";

/// `sslrootcert=system`: the authorities that this machine trusts (PostgreSQL 16, libpq).
const SYSTEM: &str = "system";

/// Where it is, and who we are to it.
#[derive(Debug)]
pub struct Server {
    /// All but where.
    config: Config,
    hosts: Hosts,
    encryption: Encryption,
    /// Tells our own notifications from others'.
    name: String,
    /// The log has it that the database does not notify.
    told: Once,
}

/// Opens the log. `folder`: where this server keeps what it has seen of it.
///
/// # Errors
/// [`OpenError`]: what the endpoint says cannot be, or the database refuses.
pub async fn open(
    endpoint: &endpoint::Database,
    tls: &Tls,
    folder: &Path,
) -> Result<impl super::super::Store, OpenError> {
    Shared::open(Server::new(endpoint, tls)?, folder).await
}

impl Server {
    fn new(endpoint: &endpoint::Database, tls: &Tls) -> Result<Self, OpenError> {
        let mut config = Config::new();
        config
            .user(&endpoint.user)
            .dbname(&endpoint.name)
            .application_name("k3s")
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(3))
            .keepalives_retries(3)
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        if let Some(password) = &endpoint.password {
            config.password(password.expose());
        }
        let mut patience = None;
        let mut files = tls.clone();
        let mut mode = if tls.is_empty() { Mode::Prefer } else { Mode::VerifyFull };
        let refused = |detail: String| OpenError::Refused { detail };
        for (key, value) in &endpoint.options {
            match key.as_str() {
                "sslmode" => {
                    mode = Mode::parse(value).ok_or_else(|| refused(format!("sslmode={value} is not known")))?;
                }
                "sslrootcert" => files.ca = (value != SYSTEM).then(|| value.into()),
                "sslcert" => files.cert = Some(value.into()),
                "sslkey" => files.key = Some(value.into()),
                "application_name" => drop(config.application_name(value)),
                "options" => drop(config.options(value)),
                "connect_timeout" => {
                    let seconds = value
                        .parse()
                        .map_err(|_| refused("connect_timeout is no number".to_owned()))?;
                    patience = Some(Duration::from_secs(seconds));
                }
                // Ours anyway.
                "target_session_attrs" => {}
                other => {
                    return Err(refused(format!(
                        "the parameter {other} of the endpoint is not known; there are sslmode, sslrootcert, sslcert, \
                         sslkey, application_name, options, connect_timeout"
                    )));
                }
            }
        }
        // As for libpq and K3s' driver, nothing less makes sense with authorities that sign for anybody.
        if endpoint
            .options
            .iter()
            .any(|(key, value)| key == "sslrootcert" && value == SYSTEM)
        {
            mode = Mode::VerifyFull;
        }
        config.ssl_mode(match mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        let mut name = [0; 8];
        SystemRandom::new().fill(&mut name).map_err(|_| OpenError::CutShort)?;
        Ok(Self {
            config,
            hosts: Hosts::new(&endpoint.places, patience),
            encryption: Encryption::new(mode, &files).map_err(refused)?,
            name: format!("{:016x}", u64::from_ne_bytes(name)),
            told: Once::new(),
        })
    }

    /// A connection of which nothing is asked yet.
    async fn bare(&self, config: &Config) -> Result<Link, Unreached> {
        let (encryption, name) = (&self.encryption, &self.name);
        self.hosts.connect(config, encryption, name, false).await
    }

    /// The database itself is made from the one that every server has.
    async fn create_database(&self) -> Result<(), Unreached> {
        let mut config = self.config.clone();
        config.dbname("postgres");
        let link = self.bare(&config).await?;
        let name = self.config.get_dbname().unwrap_or_default().replace('"', "\"\"");
        match link
            .client()
            .batch_execute(&format!("CREATE DATABASE \"{name}\""))
            .await
        {
            // Another server was quicker.
            Err(error) if is(&error, &[SqlState::DUPLICATE_DATABASE, SqlState::UNIQUE_VIOLATION]) => Ok(()),
            done => done.map_err(Unreached::Said),
        }
    }
}

impl Database for Server {
    type Link = Link;

    async fn connect(&self) -> Result<Link, Fault> {
        let (encryption, name) = (&self.encryption, &self.name);
        let opened = self.hosts.connect(&self.config, encryption, name, true).await;
        let link = opened.map_err(|error| error.fault())?;
        if let Some(problem) = link.mute() {
            // Each connection finds it out; it is told once.
            self.told.call_once(|| {
                warn!(
                    error = problem,
                    "the database does not tell servers of each other's writes: they look for them instead"
                );
            });
        }
        Ok(link)
    }

    async fn prepare(&self, new: Identity) -> Result<Identity, PrepareError> {
        let link = match self.bare(&self.config).await {
            Err(Unreached::Said(error)) if is(&error, &[SqlState::INVALID_CATALOG_NAME]) => {
                self.create_database().await.map_err(|error| unreached(&error))?;
                self.bare(&self.config).await
            }
            opened => opened,
        };
        let link = link.map_err(|error| unreached(&error))?;
        let found = match mark(link.client(), "format").await.map_err(|error| judge(&error))? {
            Some(found) => found,
            None => {
                if has_table(link.client(), OTHERS).await.map_err(|error| judge(&error))? {
                    return Err(of_others(self.config.get_dbname().unwrap_or_default()));
                }
                // Two servers that make the same table at once disturb each other (PostgreSQL's catalogue is not
                // locked for IF NOT EXISTS): one is told so, and finds it the next time.
                link.client()
                    .batch_execute(TABLES)
                    .await
                    .map_err(|error| judge(&error))?;
                FORMAT
            }
        };
        if found != FORMAT {
            let detail = format!("its tables have format {found}, and this version knows {FORMAT}");
            return Err(PrepareError::Never(OpenError::Refused { detail }));
        }
        identity(link.client(), new).await.map_err(|error| judge(&error))
    }
}

/// Which log it is; whoever comes first says so.
async fn identity(client: &Client, Identity(new): Identity) -> Result<Identity, tokio_postgres::Error> {
    let first = "INSERT INTO amphipod_mark (name, revision) VALUES ('identity', $1) ON CONFLICT (name) DO NOTHING";
    if let Some(found) = mark(client, "identity").await? {
        return Ok(Identity(found));
    }
    client.execute(first, &[&new]).await?;
    Ok(Identity(mark(client, "identity").await?.unwrap_or(new)))
}

/// What the tables say of themselves; `None` without tables.
async fn mark(client: &Client, name: &str) -> Result<Option<i64>, tokio_postgres::Error> {
    let query = "SELECT revision FROM amphipod_mark WHERE name = $1";
    match client.query_opt(query, &[&name]).await {
        Ok(row) => row.map(|row| row.try_get(0)).transpose(),
        Err(error) if is(&error, &[SqlState::UNDEFINED_TABLE]) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether it is where our own tables would be looked for.
async fn has_table(client: &Client, name: &str) -> Result<bool, tokio_postgres::Error> {
    let query = "SELECT to_regclass($1::text) IS NOT NULL";
    client.query_one(query, &[&name]).await?.try_get(0)
}

fn is(error: &tokio_postgres::Error, codes: &[SqlState]) -> bool {
    error.code().is_some_and(|code| codes.contains(code))
}

fn unreached(error: &Unreached) -> PrepareError {
    match error {
        Unreached::Said(error) => judge(error),
        Unreached::Silent(_) => PrepareError::Later(error.fault()),
    }
}

/// Whether waiting may help: not with a wrong password, a missing right, a certificate that is not trusted.
fn judge(error: &tokio_postgres::Error) -> PrepareError {
    let never = [
        SqlState::INVALID_PASSWORD,
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::INVALID_CATALOG_NAME,
    ];
    let detail = fault(error).to_string();
    if tls::is_about_certificates(error) {
        let detail = format!("{detail} (--datastore-cafile names who may vouch for the database)");
        PrepareError::Never(OpenError::Refused { detail })
    } else if is(error, &never) {
        PrepareError::Never(OpenError::Refused { detail })
    } else {
        PrepareError::Later(Fault::Lost(detail))
    }
}
