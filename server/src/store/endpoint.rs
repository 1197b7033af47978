//! `--datastore-endpoint`: where the log lies, in the forms K3s takes.
//!
//! Text in, [`Endpoint`] out; nothing is opened or resolved here. The forms, and what stands in for a missing part, are
//! those of K3s' datastore layer (kine `pkg/endpoint`, `pkg/drivers/pgsql`, `pkg/drivers/mysql`).

use std::path::PathBuf;

use super::etcd;
use agent::wire::percent;
use agent::wire::token::Secret;

/// The database when the endpoint names none.
const DATABASE: &str = "kubernetes";

/// Where the log lies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Endpoint {
    /// One file of this server's own; at its usual place if no path is given.
    Sqlite {
        /// The file.
        path: Option<PathBuf>,
    },
    /// PostgreSQL, or what speaks like it.
    Postgres(Database),
    /// MySQL or MariaDB.
    Mysql(Database),
    /// A cluster of etcd servers.
    Etcd(etcd::Endpoints),
}

/// A database server, and who we are to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Database {
    /// Who.
    pub user: String,
    /// The proof, if there is one.
    pub password: Option<Secret>,
    /// Servers to try, in this order; never empty.
    pub places: Vec<Place>,
    /// Which database of the server.
    pub name: String,
    /// What came after `?`, in order, decoded.
    pub options: Vec<(String, String)>,
}

/// Where a database server listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// Over the network.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A socket.
    Unix {
        /// For MySQL the file, for PostgreSQL the folder it is in.
        path: PathBuf,
        /// PostgreSQL's file is named after its port; if none is given, after the usual one.
        port: Option<u16>,
    },
}

/// `--datastore-cafile`, `--datastore-certfile` and `--datastore-keyfile`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tls {
    /// Who may vouch for the server.
    pub ca: Option<PathBuf>,
    /// Our certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

impl Tls {
    /// None of the three was given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is wrong with an endpoint. Never holds more of it than the scheme or a parameter's name: there is a password in it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EndpointError {
    /// No `scheme://`.
    #[error("invalid datastore endpoint: it has to begin with sqlite://, postgres://, mysql://, http:// or https://")]
    NoScheme,
    /// A datastore that is not there.
    #[error(
        "invalid datastore endpoint: {scheme}:// is not known here; there are sqlite, postgres, mysql and etcd (https)"
    )]
    Scheme {
        /// Which.
        scheme: String,
    },
    /// It is etcd's, but for this.
    #[error("invalid datastore endpoint: {0}")]
    Etcd(#[from] etcd::EndpointError),
    /// It begins well.
    #[error("invalid datastore endpoint: {scheme}://… has {fault}")]
    Malformed {
        /// Of which datastore.
        scheme: &'static str,
        /// What, without the text.
        fault: &'static str,
    },
}

/// Reads an endpoint; empty is SQLite at its usual place.
///
/// `has_tls`: the files for TLS were given, so that a MySQL endpoint without an address means the network.
///
/// # Errors
/// [`EndpointError`], without anything secret in it.
pub fn parse(text: &str, has_tls: bool) -> Result<Endpoint, EndpointError> {
    if matches!(text, "" | "sqlite") {
        return Ok(Endpoint::Sqlite { path: None });
    }
    let (scheme, rest) = text.split_once("://").ok_or(EndpointError::NoScheme)?;
    match scheme {
        "sqlite" => {
            // What follows `?` tunes the driver of another program.
            let path = rest.split('?').next().filter(|path| !path.is_empty());
            Ok(Endpoint::Sqlite {
                path: path.map(PathBuf::from),
            })
        }
        "postgres" | "postgresql" => postgres(rest).map(Endpoint::Postgres),
        "mysql" => mysql(rest, has_tls).map(Endpoint::Mysql),
        "http" | "https" => Ok(Endpoint::Etcd(etcd::parse(text)?)),
        other => {
            let scheme = other.chars().take(32).collect();
            Err(EndpointError::Scheme { scheme })
        }
    }
}

/// `user:password@host:5432,other:5433/database?sslmode=verify-full`, percent-encoded.
fn postgres(rest: &str) -> Result<Database, EndpointError> {
    let wrong = |fault| EndpointError::Malformed {
        scheme: "postgres",
        fault,
    };
    let (rest, options) = split_options(rest);
    let options = options.ok_or(wrong("a parameter that is not percent-encoded text"))?;
    let (authority, name) = rest.split_once('/').unwrap_or((rest, ""));
    let (who, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    // Without anything, kine says postgres:postgres@localhost.
    let nothing = authority.is_empty();
    let (user, password) = match who.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (who, nothing.then_some("postgres")),
    };
    let decoded = |text: &str| percent::decode(text).ok_or(wrong("a part that is not percent-encoded text"));
    let user = decoded(user)?;
    let mut places = Vec::new();
    for host in hosts.split(',') {
        let place = if decoded(host)?.starts_with('/') {
            let (folder, number) = host.split_once(':').unwrap_or((host, ""));
            folder_of_socket(decoded(folder)?, number)
        } else {
            tcp(host, "localhost", 5432)
        };
        places.push(place.ok_or(wrong("a port that is not a number"))?);
    }
    let mut database = Database {
        user: if user.is_empty() { "postgres".to_owned() } else { user },
        password: password.map(decoded).transpose()?.map(Secret::new),
        places,
        // As kine folds it, so that K3s' endpoint leads to K3s' database. `dbname` is taken as it is, by both.
        name: decoded(name)?.to_lowercase(),
        options: Vec::new(),
    };
    // As in libpq, parameters can say what the address does not.
    let mut port = None;
    for (key, value) in options {
        match key.as_str() {
            "user" => database.user = value,
            "password" => database.password = Some(Secret::new(value)),
            "dbname" => database.name = value,
            "host" if value.starts_with('/') => database.places = folder_of_socket(value, "").into_iter().collect(),
            "host" => database.places = vec![tcp(&value, "localhost", 5432).ok_or(wrong("a host that is none"))?],
            "port" => port = Some(value.parse().map_err(|_| wrong("a port that is not a number"))?),
            _ => database.options.push((key, value)),
        }
    }
    if let Some(number) = port {
        for place in &mut database.places {
            match place {
                Place::Tcp { port, .. } => *port = number,
                Place::Unix { port, .. } => *port = Some(number),
            }
        }
    }
    if database.name.is_empty() {
        DATABASE.clone_into(&mut database.name);
    }
    Ok(database)
}

/// `user:password@tcp(host:3306)/database?tls=true`, as Go's MySQL driver reads it: nothing but the parameters is encoded.
fn mysql(rest: &str, has_tls: bool) -> Result<Database, EndpointError> {
    let wrong = |fault| EndpointError::Malformed { scheme: "mysql", fault };
    let empty = rest.is_empty();
    // The database has no slash in it; a password, and a socket's path, may have.
    let (address, after) = match rest.rsplit_once('/') {
        Some(parts) => parts,
        None if empty => ("", ""),
        None => return Err(wrong("no /database at its end")),
    };
    let (name, options) = split_options(after);
    let options = options.ok_or(wrong("a parameter that is not percent-encoded text"))?;
    let (who, place) = address.rsplit_once('@').unwrap_or(("", address));
    let (user, password) = match who.split_once(':') {
        Some((user, password)) => (user, Some(Secret::new(password))),
        None => (who, None),
    };
    let (protocol, at) = match place.split_once('(') {
        Some((protocol, at)) => (protocol, at.strip_suffix(')').ok_or(wrong("an address without its )"))?),
        None => (place, ""),
    };
    let place = match (protocol, at) {
        ("", "") if empty && !has_tls => socket("/var/run/mysqld/mysqld.sock"),
        ("" | "tcp", at) => tcp(at, "127.0.0.1", 3306).ok_or(wrong("a port that is not a number"))?,
        ("unix", "") => socket("/tmp/mysql.sock"),
        ("unix", at) => socket(at),
        _ => return Err(wrong("an address that is neither tcp(…) nor unix(…)")),
    };
    Ok(Database {
        user: if user.is_empty() { "root" } else { user }.to_owned(),
        password,
        places: vec![place],
        name: if name.is_empty() { DATABASE } else { name }.to_owned(),
        options,
    })
}

/// Where PostgreSQL's sockets lie, and the port that one of them is named after, if it is said.
fn folder_of_socket(folder: String, port: &str) -> Option<Place> {
    let port = if port.is_empty() {
        None
    } else {
        Some(port.parse().ok()?)
    };
    let path = folder.into();
    Some(Place::Unix { path, port })
}

/// MySQL's socket.
fn socket(file: &str) -> Place {
    let path = file.into();
    Place::Unix { path, port: None }
}

/// `host:port`, `[v6]:port`, `host` or nothing; a missing part is filled in.
fn tcp(text: &str, host: &str, port: u16) -> Option<Place> {
    let (name, number) = match text.strip_prefix('[') {
        Some(v6) => {
            let (name, after) = v6.split_once(']')?;
            (name, after.strip_prefix(':').unwrap_or(after))
        }
        None => text.rsplit_once(':').unwrap_or((text, "")),
    };
    Some(Place::Tcp {
        host: if name.is_empty() { host } else { name }.to_owned(),
        port: if number.is_empty() { port } else { number.parse().ok()? },
    })
}

type Options = Vec<(String, String)>;

/// What stands before `?`, and the pairs after it; `None` when they cannot be decoded.
fn split_options(text: &str) -> (&str, Option<Options>) {
    let Some((before, query)) = text.split_once('?') else {
        return (text, Some(Vec::new()));
    };
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((percent::decode_query(key)?, percent::decode_query(value)?))
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect();
    (before, pairs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp_place(host: &str, port: u16) -> Place {
        Place::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    fn database(text: &str) -> Database {
        match parse(text, false).unwrap() {
            Endpoint::Postgres(database) | Endpoint::Mysql(database) => database,
            other => panic!("{other:?}"),
        }
    }

    fn parts(text: &str) -> (String, String, Vec<Place>, String) {
        let found = database(text);
        let password = found
            .password
            .map_or("-".to_owned(), |password| password.expose().to_owned());
        (found.user, password, found.places, found.name)
    }

    #[test]
    fn nothing_is_sqlite_and_so_is_its_scheme() {
        for text in ["", "sqlite", "sqlite://"] {
            assert_eq!(parse(text, false), Ok(Endpoint::Sqlite { path: None }), "{text}");
        }
        let path = Some("/data/state.db".into());
        assert_eq!(
            parse("sqlite:///data/state.db?_journal=WAL", false),
            Ok(Endpoint::Sqlite { path })
        );
    }

    #[test]
    fn a_postgres_endpoint_fills_in_what_it_does_not_say() {
        let whole = (
            "k3s".to_owned(),
            "p@ss/word".to_owned(),
            vec![tcp_place("db.example.org", 6432)],
            "prod".to_owned(),
        );
        for scheme in ["postgres", "postgresql"] {
            let text = format!("{scheme}://k3s:p%40ss%2Fword@db.example.org:6432/prod");
            assert_eq!(parts(&text), whole);
        }
        let (user, password, places, name) = parts("postgres://");
        assert_eq!((&*user, &*password, &*name), ("postgres", "postgres", "kubernetes"));
        assert_eq!(places, [tcp_place("localhost", 5432)]);
        assert_eq!(parts("postgres://me@db/").1, "-", "no password is made up");
        assert_eq!(
            database("postgres://me@a,[fd00::2]:6000/x").places,
            [tcp_place("a", 5432), tcp_place("fd00::2", 6000)]
        );
        let options = database("postgres://me@/x?host=/run/postgresql&sslmode=disable&options=-c%20a%3Db");
        assert_eq!(options.places, [socket("/run/postgresql")]);
        for text in [
            "postgres://me@/x?host=/run/postgresql&port=5433",
            "postgres://me@/x?port=5433&host=/run/postgresql",
            "postgres://me@%2Frun%2Fpostgresql:5433/x",
        ] {
            let place = Place::Unix {
                path: "/run/postgresql".into(),
                port: Some(5433),
            };
            assert_eq!(database(text).places, [place], "{text}");
        }
        assert_eq!(
            options.options,
            [
                ("sslmode".to_owned(), "disable".to_owned()),
                ("options".to_owned(), "-c a=b".to_owned())
            ]
        );
    }

    #[test]
    fn a_name_leads_to_the_database_that_k3s_finds_by_it() {
        for (text, name) in [
            ("postgres://me@db/K3sProd", "k3sprod"),
            ("postgres://me@db/K3s%50rod?sslmode=disable", "k3sprod"),
            ("postgres://me@db/other?dbname=K3sProd", "K3sProd"),
            ("mysql://me@tcp(db)/K3sProd", "K3sProd"),
        ] {
            assert_eq!(database(text).name, name, "{text}");
        }
    }

    #[test]
    fn a_mysql_endpoint_is_what_gos_driver_takes() {
        let (user, password, places, name) = parts("mysql://k3s:p@s/w%d@tcp(db:3307)/prod?tls=skip-verify");
        assert_eq!((&*user, &*password, &*name), ("k3s", "p@s/w%d", "prod"));
        assert_eq!(places, [tcp_place("db", 3307)]);
        assert_eq!(
            database("mysql://k3s@unix(/run/my.sock)/").places,
            [socket("/run/my.sock")]
        );
        assert_eq!(
            database("mysql://k3s@tcp([fd00::2]:3306)/").places,
            [tcp_place("fd00::2", 3306)]
        );
        assert_eq!(database("mysql://k3s@tcp/").places, [tcp_place("127.0.0.1", 3306)]);
        let nothing = database("mysql://");
        assert_eq!((&*nothing.user, &*nothing.name), ("root", "kubernetes"));
        assert_eq!(nothing.places, [socket("/var/run/mysqld/mysqld.sock")]);
        let Ok(Endpoint::Mysql(over_tls)) = parse("mysql://", true) else {
            panic!()
        };
        assert_eq!(over_tls.places, [tcp_place("127.0.0.1", 3306)]);
    }

    #[test]
    fn an_etcd_endpoint_is_a_list_of_urls() {
        let Ok(Endpoint::Etcd(endpoints)) = parse("https://a:2379/, https://b:2380", false) else {
            panic!()
        };
        let list: Vec<String> = endpoints.list.iter().map(ToString::to_string).collect();
        assert_eq!(list, ["https://a:2379", "https://b:2380"]);
        for text in ["https://", "https://a,b", "https://a,,https://b", "https://a/path"] {
            assert!(parse(text, false).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused_without_its_secrets() {
        for text in [
            "user:hidden@tcp(db)/x",
            "nats://user:hidden@db",
            "mysql://user:hidden@tcp(db:3306",
            "mysql://user:hidden@udp(db)/x",
            "mysql://user:hidden@tcp(db:none)/x",
            "postgres://user:hidden@db:port/x",
            "postgres://user:hidden@%2Frun:port/x",
            "postgres://user:hidden%zz@db/x",
            "postgres://user:hidden@db/x?sslmode=%",
            "https://user:hidden@db/x",
        ] {
            let problem = parse(text, false).unwrap_err();
            assert!(
                !format!("{problem} {problem:?}").contains("hidden"),
                "{text}: {problem}"
            );
        }
        let shown = format!("{:?}", parse("postgres://user:hidden@db/x?password=hidden", false));
        assert!(shown.contains("user") && !shown.contains("hidden"), "{shown}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(scheme in "(sqlite|postgres|mysql|https|x)", rest in "\\PC{0,60}") {
            let _ = parse(&format!("{scheme}://{rest}"), false);
        }
    }
}
