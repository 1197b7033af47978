//! The servers that an endpoint names: one takes writes, the others may be silent, down, or standbys.
//!
//! They are asked one after the other, each for a bounded time, whatever it is that does not answer: the network, the
//! server once connected, or its log-in. Whoever failed is asked after the one that did not, so that a silent one costs its
//! time once and not with every connection; when all have failed, the first of them is the last of the next round, so that
//! each comes to all the time that the endpoint grants. Each address of a name counts as a server.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use tokio_postgres::Config;

use super::super::super::endpoint::Place;
use super::super::database::Fault;
use super::link::{Postgres as Link, fault};
use super::tls::Encryption;

/// A server has so long to take a connection, unless the endpoint says otherwise: two silent ones leave time for a third in
/// the [`PATIENCE`](super::super::connector::PATIENCE) for all.
const HOST: Duration = Duration::from_secs(4);
/// For a name to be resolved.
const NAME: Duration = Duration::from_secs(3);
/// PostgreSQL's own.
const PORT: u16 = 5432;

/// Where to connect to.
#[derive(Debug)]
pub struct Hosts {
    places: Vec<Place>,
    patience: Duration,
    /// Who is asked last the next time.
    last: Mutex<Option<Target>>,
}

/// The servers in the order in which they are asked, until one has answered. All have failed unless one has, also when
/// nobody waits for them any more.
struct Round<'a> {
    hosts: &'a Hosts,
    last: Option<Target>,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        if let Some(target) = self.last.take() {
            *self.hosts.last() = Some(target);
        }
    }
}

/// One server.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Target {
    Tcp { host: String, address: SocketAddr },
    Unix { folder: PathBuf, port: u16 },
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Unreached {
    /// A server, or the way to it, says why.
    Said(tokio_postgres::Error),
    /// Nobody says anything.
    Silent(String),
}

impl Unreached {
    /// What a server says itself tells more than that another one cannot be reached.
    fn or(self, later: Self) -> Self {
        match &self {
            Self::Said(error) if error.code().is_some() => self,
            Self::Said(_) | Self::Silent(_) => later,
        }
    }

    /// What it is to whoever wanted a connection.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Said(error) => fault(error),
            Self::Silent(why) => Fault::Lost(why.clone()),
        }
    }
}

impl Hosts {
    /// Of an endpoint. `patience`: for each.
    pub fn new(places: &[Place], patience: Option<Duration>) -> Self {
        Self {
            places: places.to_vec(),
            patience: patience.filter(|time| !time.is_zero()).unwrap_or(HOST),
            last: Mutex::default(),
        }
    }

    /// A connection to the first that gives one. `prepared`: with the log's statements, which need its tables.
    pub async fn connect(
        &self,
        config: &Config,
        encryption: &Encryption,
        name: &str,
        prepared: bool,
    ) -> Result<Link, Unreached> {
        let resolved = join_all(self.places.iter().map(resolve)).await;
        let (mut targets, mut why) = (Vec::new(), None);
        for found in resolved {
            match found {
                Ok(found) => targets.extend(found),
                Err(problem) => why = Some(Unreached::Silent(problem)),
            }
        }
        begin_after(&mut targets, self.last().as_ref());
        let mut round = Round {
            hosts: self,
            last: targets.first().cloned(),
        };
        let (count, mut before) = (targets.len(), None);
        for (place, target) in targets.into_iter().enumerate() {
            let patience = time_for(self.patience, count - place - 1);
            let config = target.config(config);
            let attempt = async {
                match prepared {
                    true => Link::open(&config, encryption, name).await,
                    false => Link::connect(&config, encryption, name).await,
                }
            };
            let failure = match timeout(patience, attempt).await {
                Ok(Ok(link)) => {
                    round.last = before;
                    return Ok(link);
                }
                Ok(Err(error)) => Unreached::Said(error),
                Err(_) => {
                    let seconds = patience.as_secs();
                    Unreached::Silent(format!("{target} has not taken a connection for {seconds} s"))
                }
            };
            why = Some(match why {
                Some(earlier) => earlier.or(failure),
                None => failure,
            });
            before = Some(target);
        }
        Err(why.unwrap_or_else(|| Unreached::Silent("the endpoint names no server".to_owned())))
    }

    fn last(&self) -> MutexGuard<'_, Option<Target>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Target {
    /// How to connect to it and nobody else.
    fn config(&self, config: &Config) -> Config {
        let mut config = config.clone();
        match self {
            Self::Tcp { host, address } => config.host(host).hostaddr(address.ip()).port(address.port()),
            Self::Unix { folder, port } => config.host_path(folder).port(*port),
        };
        config
    }
}

impl fmt::Display for Target {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, address } if host.parse::<IpAddr>().is_ok() => write!(to, "{address}"),
            Self::Tcp { host, address } => write!(to, "{host} ({address})"),
            Self::Unix { folder, port } => write!(to, "the socket of port {port} in {}", folder.display()),
        }
    }
}

/// The servers of a place: as many as its name has addresses.
async fn resolve(place: &Place) -> Result<Vec<Target>, String> {
    let (host, port) = match place {
        Place::Tcp { host, port } => (host, *port),
        Place::Unix { path, port } => {
            let (folder, port) = (path.clone(), port.unwrap_or(PORT));
            return Ok(vec![Target::Unix { folder, port }]);
        }
    };
    let found = timeout(NAME, tokio::net::lookup_host((host.as_str(), port))).await;
    let found = found.map_err(|_| format!("the name {host} is not resolved"))?;
    let found = found.map_err(|error| format!("the name {host} cannot be resolved: {error}"))?;
    let target = |address| Target::Tcp {
        host: host.clone(),
        address,
    };
    Ok(found.map(target).collect())
}

/// How long a server has: no longer than leaves time for those after it. Whoever needs more is asked last in one of the next
/// rounds. Pure.
fn time_for(patience: Duration, after: usize) -> Duration {
    match after {
        0 => patience,
        _ => patience.min(HOST),
    }
}

/// Puts `last` last, and whoever comes after it first. Pure.
fn begin_after<T: PartialEq>(targets: &mut [T], last: Option<&T>) {
    if let Some(at) = targets.iter().position(|target| Some(target) == last) {
        targets.rotate_left(at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_failed_last_is_asked_last() {
        let order = |failed| {
            let mut targets = ['a', 'b', 'c'];
            begin_after(&mut targets, failed);
            targets
        };
        assert_eq!(order(None), ['a', 'b', 'c']);
        assert_eq!(order(Some(&'a')), ['b', 'c', 'a']);
        assert_eq!(order(Some(&'c')), ['a', 'b', 'c']);
        assert_eq!(
            order(Some(&'x')),
            ['a', 'b', 'c'],
            "an address that the name no longer has"
        );
    }

    #[tokio::test]
    async fn each_is_asked_last_in_turn_while_all_fail() {
        let refusing = |_| {
            std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
        };
        let places = [0, 1, 2].map(refusing).map(|address| Place::Tcp {
            host: address.ip().to_string(),
            port: address.port(),
        });
        let (hosts, encryption) = (
            Hosts::new(&places, None),
            Encryption::new(super::super::tls::Mode::Disable, &Default::default()).unwrap(),
        );
        let mut last = Vec::new();
        for _ in 0..4 {
            let outcome = hosts.connect(&Config::new(), &encryption, "test", false).await;
            assert!(outcome.is_err());
            last.push(hosts.last().clone());
        }
        assert_eq!(last[0], last[3]);
        for (at, one) in last[..3].iter().enumerate() {
            assert!(one.is_some() && !last[..at].contains(one), "{last:?}");
        }
    }

    #[test]
    fn an_endpoint_that_grants_much_time_grants_it_to_the_last_one() {
        let (long, short) = (Duration::from_secs(30), Duration::from_secs(2));
        assert_eq!(
            (time_for(long, 0), time_for(long, 1), time_for(long, 2)),
            (long, HOST, HOST)
        );
        assert_eq!((time_for(short, 0), time_for(short, 1)), (short, short));
    }

    #[tokio::test]
    async fn a_socket_is_named_by_its_port_and_a_name_has_its_addresses() {
        let socket = |port| Place::Unix {
            path: "/run/postgresql".into(),
            port,
        };
        for (port, wanted) in [(None, 5432), (Some(5433), 5433)] {
            let targets = resolve(&socket(port)).await.unwrap();
            assert_eq!(targets.len(), 1);
            assert_eq!(targets[0].config(&Config::new()).get_ports(), [wanted]);
        }
        let local = Place::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 6432,
        };
        let targets = resolve(&local).await.unwrap();
        let config = targets[0].config(&Config::new());
        assert_eq!(config.get_hostaddrs(), [IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(config.get_ports(), [6432]);
        assert_eq!(targets[0].to_string(), "127.0.0.1:6432");
    }
}
