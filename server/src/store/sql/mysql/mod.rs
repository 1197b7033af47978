//! The log in MySQL or MariaDB.
//!
//! `link.rs` has the statements. Used are InnoDB tables and row locks; nobody tells of commits here, so servers look for
//! each other's writes.

mod link;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use mysql_async::{ClientIdentity, Conn, DriverError, Error, Opts, OptsBuilder, SslOpts};

use super::super::OpenError;
use super::super::endpoint::{self, Place, Tls};
use super::super::tls;
use super::database::{Database, FORMAT, Fault, Identity, OTHERS, PrepareError, of_others};
use super::shared::Shared;
use link::{Mysql as Link, code, fault};

/// A server that does not take a connection for so long is not there.
const CONNECT: Duration = Duration::from_secs(3);

/// The tables. `key` is bytes, so that its order is the order of bytes; what Kubernetes may call things is a third as
/// long. `format` comes last: where it is, all is.
const TABLES: [&str; 4] = [
    "CREATE TABLE IF NOT EXISTS amphipod_mark (
        name VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY, revision BIGINT NOT NULL
    ) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS amphipod_log (
        revision BIGINT          NOT NULL PRIMARY KEY,
        `key`    VARBINARY(1024) NOT NULL,
        created  BIGINT          NOT NULL,
        previous BIGINT          NOT NULL,
        ttl      BIGINT,
        stamp    BIGINT          NOT NULL,
        value    MEDIUMBLOB,
        INDEX amphipod_log_by_key (`key`, revision)
    ) ENGINE = InnoDB ROW_FORMAT = DYNAMIC",
    "INSERT IGNORE INTO amphipod_mark (name, revision) VALUES ('newest', 0), ('compacted', 0), ('oldest', 0)",
    "INSERT IGNORE INTO amphipod_mark (name, revision) VALUES ('format', 1)",
];

/// For each connection. What another transaction commits is seen by the next statement, not by the next transaction: the
/// heads must not be older than the lock. Nobody holds that for long: not who is stuck, not who is gone. MariaDB has a limit
/// for transactions; elsewhere it must be the connection's, which is longer than [`super::writer`] leaves one alone.
const SETTINGS: [&str; 4] = [
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION innodb_lock_wait_timeout = 8",
    "SET SESSION wait_timeout = 12 /*M!100300 , wait_timeout = 30, idle_transaction_timeout = 5 */",
    "SET SESSION autocommit = 1",
];

/// `ER_BAD_DB_ERROR`, `ER_NO_SUCH_TABLE`. Source: MySQL 8.4 "Server Error Message Reference".
const NO_DATABASE: u16 = 1049;
const NO_TABLE: u16 = 1146;
/// `ER_DBACCESS_DENIED_ERROR`, `ER_ACCESS_DENIED_ERROR`, `ER_TABLEACCESS_DENIED_ERROR`, `ER_SPECIFIC_ACCESS_DENIED_ERROR`.
const DENIED: [u16; 4] = [1044, 1045, 1142, 1227];

/// Where it is, and who we are to it.
pub struct Server {
    opts: OptsBuilder,
    name: String,
    /// Without TLS if the server has none.
    plain: Option<OptsBuilder>,
}

impl fmt::Debug for Server {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The rest holds the password.
        to.debug_struct("Server")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
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
        let refused = |detail: String| OpenError::Refused { detail };
        let mut encryption = encryption(tls).map_err(refused)?;
        let mut may_be_plain = false;
        for (key, value) in &endpoint.options {
            match (key.as_str(), value.as_str()) {
                ("tls", "false") if tls.is_empty() => encryption = None,
                ("tls", "true") => encryption = Some(encryption.unwrap_or_default()),
                ("tls", "skip-verify") => encryption = Some(unverified(encryption)),
                ("tls", "preferred") => {
                    encryption = Some(unverified(encryption));
                    may_be_plain = true;
                }
                ("tls", other) => return Err(refused(format!("tls={other} of the endpoint is not known"))),
                // How a driver of another program reads text and times.
                ("charset" | "collation" | "parseTime" | "loc" | "timeout" | "readTimeout" | "writeTimeout", _) => {}
                (other, _) => {
                    let known = "there are tls, timeout, readTimeout, writeTimeout, charset, collation, parseTime, loc";
                    return Err(refused(format!(
                        "the parameter {other} of the endpoint is not known; {known}"
                    )));
                }
            }
        }
        let mut opts = OptsBuilder::default()
            .user(Some(&endpoint.user))
            .pass(endpoint.password.as_ref().map(|password| password.expose()))
            .db_name(Some(&endpoint.name))
            .prefer_socket(false)
            .tcp_keepalive(Some(Duration::from_secs(10)))
            .init(SETTINGS.to_vec());
        opts = match endpoint.places.first() {
            Some(Place::Tcp { host, port }) => opts.ip_or_hostname(host).tcp_port(*port),
            Some(Place::Unix { path, .. }) => opts.socket(Some(path.to_string_lossy())),
            None => return Err(refused("the endpoint names no server".to_owned())),
        };
        Ok(Self {
            plain: may_be_plain.then(|| opts.clone()),
            opts: opts.ssl_opts(encryption),
            name: endpoint.name.clone(),
        })
    }

    async fn open(&self, database: Option<&str>) -> Result<Conn, Error> {
        let connect = |opts: &OptsBuilder| {
            let opts = Opts::from(opts.clone().db_name(database));
            async move {
                let conn = tokio::time::timeout(CONNECT, Conn::new(opts)).await;
                conn.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
            }
        };
        match (connect(&self.opts).await, &self.plain) {
            (Err(Error::Driver(DriverError::NoClientSslFlagFromServer)), Some(plain)) => connect(plain).await,
            (opened, _) => opened,
        }
    }
}

/// What the files ask for: the server's certificate verified, ours shown.
///
/// They are read here only to see whether they can serve: the driver reads them at each connection, and what it says of
/// them then looks like a server that is away.
fn encryption(tls: &Tls) -> Result<Option<SslOpts>, String> {
    if tls.is_empty() {
        return Ok(None);
    }
    let mut opts = SslOpts::default();
    if let Some(ca) = &tls.ca {
        tls::authorities(ca).map_err(|error| error.whole())?;
        let roots = vec![ca.clone().into()];
        opts = opts.with_root_certs(roots).with_disable_built_in_roots(true);
    }
    if let Some((cert, key)) = tls::pair(tls).map_err(|error| error.whole())? {
        tls::certificates(cert).map_err(|error| error.whole())?;
        tls::private_key(key).map_err(|error| error.whole())?;
        let identity = ClientIdentity::new(cert.to_owned().into(), key.to_owned().into());
        opts = opts.with_client_identity(Some(identity));
    }
    Ok(Some(opts))
}

fn unverified(encryption: Option<SslOpts>) -> SslOpts {
    encryption
        .unwrap_or_default()
        .with_danger_accept_invalid_certs(true)
        .with_danger_skip_domain_validation(true)
}

impl Database for Server {
    type Link = Link;

    async fn connect(&self) -> Result<Link, Fault> {
        let conn = self.open(Some(&self.name)).await.map_err(|error| fault(&error))?;
        Ok(Link::new(conn))
    }

    async fn prepare(&self, new: Identity) -> Result<Identity, PrepareError> {
        let conn = match self.open(Some(&self.name)).await {
            Err(error) if code(&error) == Some(NO_DATABASE) => {
                let mut link = Link::new(self.open(None).await.map_err(|error| judge(&error))?);
                let name = self.name.replace('`', "``");
                let made = link.run(&format!("CREATE DATABASE IF NOT EXISTS `{name}`")).await;
                made.map_err(|error| judge(&error))?;
                self.open(Some(&self.name)).await
            }
            opened => opened,
        };
        let mut link = Link::new(conn.map_err(|error| judge(&error))?);
        let found = match link.mark("format").await {
            Ok(Some(found)) => found,
            Err(error) if code(&error) != Some(NO_TABLE) => return Err(judge(&error)),
            Ok(None) | Err(_) => {
                if link.has_table(OTHERS).await.map_err(|error| judge(&error))? {
                    return Err(of_others(&self.name));
                }
                for text in TABLES {
                    link.run(text).await.map_err(|error| judge(&error))?;
                }
                FORMAT
            }
        };
        if found != FORMAT {
            let detail = format!("its tables have format {found}, and this version knows {FORMAT}");
            return Err(PrepareError::Never(OpenError::Refused { detail }));
        }
        identity(&mut link, new).await.map_err(|error| judge(&error))
    }
}

/// Which log it is; whoever comes first says so.
async fn identity(link: &mut Link, Identity(new): Identity) -> Result<Identity, Error> {
    if let Some(found) = link.mark("identity").await? {
        return Ok(Identity(found));
    }
    let first = format!("INSERT IGNORE INTO amphipod_mark (name, revision) VALUES ('identity', {new})");
    link.run(&first).await?;
    Ok(Identity(link.mark("identity").await?.unwrap_or(new)))
}

/// Whether waiting may help: not with a wrong password, a missing right, a certificate that is not trusted.
fn judge(error: &Error) -> PrepareError {
    let denied = code(error).is_some_and(|code| DENIED.contains(&code));
    let detail = fault(error).to_string();
    if denied || is_about_certificates(error) {
        PrepareError::Never(OpenError::Refused { detail })
    } else {
        PrepareError::Later(Fault::Lost(detail))
    }
}

fn is_about_certificates(error: &Error) -> bool {
    match error {
        Error::Io(mysql_async::IoError::Tls(_)) => true,
        Error::Io(mysql_async::IoError::Io(error)) => {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_for_tls_that_cannot_serve_are_refused_before_anybody_connects() {
        let Ok(endpoint::Endpoint::Mysql(endpoint)) = endpoint::parse("mysql://k3s:hidden@tcp(db)/", true) else {
            panic!()
        };
        let (missing, no_pem) = (
            "/nonexistent/file.pem",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        );
        for bad in [missing, no_pem] {
            let ca = Tls {
                ca: Some(bad.into()),
                ..Tls::default()
            };
            let pair = Tls {
                cert: Some(bad.into()),
                key: Some(bad.into()),
                ..Tls::default()
            };
            for tls in [ca, pair] {
                let problem = Server::new(&endpoint, &tls).unwrap_err();
                let named = matches!(&problem, OpenError::Refused { detail } if detail.contains(bad));
                assert!(named, "{problem}");
            }
        }
    }
}
