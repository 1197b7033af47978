//! Becoming a node: identity on disk, the token, certificates, the cluster's settings.
//!
//! [`Identity`] is who this machine is and survives everything but a reflash; [`Joined`] is what a successful join
//! leaves behind for the rest of the agent. A machine that has joined once has all of it on disk ([`Joiner::remembered`])
//! and starts without a server. What is asked and written in which order is [`enrol`]'s; here are the machine and its network.

pub mod address;
mod authority;
mod clock;
pub mod durable;
mod enrol;
mod error;
pub mod expiry;
mod files;
mod identity;
mod key;
#[cfg(test)]
mod played;
mod renewal;
pub mod services;
#[cfg(test)]
mod simulation;
mod supervisor;
pub mod trust;

use std::fs;
use std::mem::discriminant;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::{debug, info, warn};

pub use self::clock::Clock;
pub(crate) use self::durable::replace;
pub use self::error::JoinError;
pub use self::files::{Certificate, Files};
pub use self::identity::{Identity, IdentityError};
pub use self::renewal::{is_due, windows};
pub use self::supervisor::{Address, fetch_ca};

use self::enrol::Enrolment;
use self::supervisor::Network;
use self::trust::Shown;
use crate::api::{Client, Endpoint};
use crate::config::{Config, Secret};
use crate::trouble::Trouble;
use crate::wire::join::ClusterConfig;

/// The first pause after a failed join; it doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// So many failures are told one by one; a month without a server is not.
const LOUD_ATTEMPTS: u32 = 10;

/// What a join leaves behind.
#[derive(Clone)]
pub struct Joined {
    /// Who joined.
    pub identity: Identity,
    /// Addresses the node registers, main one first.
    pub node_ips: Vec<IpAddr>,
    /// The cluster's settings.
    pub cluster: ClusterConfig,
    /// Kubernetes API with the kubelet's certificate.
    pub client: Client,
    /// What is on disk.
    pub files: Files,
}

/// Joins one cluster as one node.
pub struct Joiner<'a> {
    /// What was configured.
    pub config: &'a Config,
    /// Who this is.
    pub identity: &'a Identity,
    /// Where things are kept.
    pub files: &'a Files,
    /// The supervisor.
    pub address: Address,
    /// By which the certificates of servers are judged.
    pub clock: Arc<Clock>,
}

impl Joiner<'_> {
    /// What an earlier join left, if all of it is there. Nothing is asked of a server.
    pub async fn remembered(&self) -> Option<Joined> {
        let network = self.network();
        let settings = self.enrolment(&network, String::new()).remembered()?;
        let ips = self.node_ips().await;
        self.joined(&settings, ips).ok()
    }

    /// Joins; tries until it works. `trouble` says why the balancer reaches no server; `astray` is called when what answered
    /// may be no server of the cluster, so that the next attempt goes elsewhere.
    pub async fn join(&self, trouble: impl Fn() -> Option<String>, astray: impl Fn()) -> Joined {
        let astray = |error: &JoinError| {
            if error.is_astray() {
                astray()
            }
        };
        self.persist(async || self.once().await, trouble, astray).await
    }

    /// As [`Self::join`], for a node that runs: `ips` says at each attempt which addresses it has registered, so that certificate
    /// and Node name the same. `astray` is called only for who is certainly the wrong one: a node that runs has connections that
    /// would be cut, and its tunnels tell which server is silent.
    pub async fn renew(
        &self,
        ips: impl Fn() -> Vec<IpAddr>,
        trouble: impl Fn() -> Option<String>,
        astray: impl Fn(),
    ) -> Joined {
        let astray = |error: &JoinError| {
            if error.is_strange() {
                astray()
            }
        };
        self.persist(async || self.once_at(ips()).await, trouble, astray).await
    }

    async fn persist(
        &self,
        once: impl AsyncFn() -> Result<Joined, JoinError>,
        trouble: impl Fn() -> Option<String>,
        astray: impl Fn(&JoinError),
    ) -> Joined {
        let (mut attempt, mut spoken, mut kind) = (0, Trouble::default(), None);
        loop {
            match once().await {
                Ok(joined) => return joined,
                Err(error) => {
                    astray(&error);
                    let pause = pause(attempt, random_fraction());
                    let error = match (error, trouble()) {
                        (JoinError::Unreachable { server, .. }, Some(reason)) => {
                            JoinError::Unreachable { server, reason }
                        }
                        (error, _) => error,
                    };
                    let (node, retry_s) = (&self.identity.node_name, pause.as_secs());
                    let other = kind.replace(discriminant(&error)) != kind;
                    match other || attempt < LOUD_ATTEMPTS || spoken.is_news(Instant::now()) {
                        true => warn!(node, error = %error, retry_s, "cannot join the cluster"),
                        false => debug!(node, error = %error, retry_s, "cannot join the cluster"),
                    }
                    attempt += 1;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Joins, or says why not.
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn once(&self) -> Result<Joined, JoinError> {
        self.once_at(self.node_ips().await).await
    }

    async fn once_at(&self, ips: Vec<IpAddr>) -> Result<Joined, JoinError> {
        let told = ips.iter().chain(&self.config.node_external_ips);
        let told: Vec<_> = told.map(IpAddr::to_string).collect();
        let network = self.network();
        let settings = self.enrolment(&network, told.join(",")).once().await?;
        info!(
            node = self.identity.node_name,
            server = self.address.shown,
            "joined the cluster"
        );
        self.joined(&settings, ips)
    }

    /// Takes over the authorities that the cluster has gained since the last join, and answers how to trust them too; `None`
    /// where there is nothing new. Only a server whom the known ones prove is believed.
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn authorities(&self) -> Result<Option<Arc<rustls::ClientConfig>>, JoinError> {
        let network = self.network();
        let grown = self.enrolment(&network, String::new()).authorities().await?;
        Ok(if grown { Some(self.tls()?) } else { None })
    }

    fn network(&self) -> Network<'_> {
        Network {
            address: &self.address,
            clock: &self.clock,
            node: &self.identity.node_name,
        }
    }

    fn enrolment<'a>(&'a self, ground: &'a Network<'a>, ips: String) -> Enrolment<'a, Network<'a>> {
        Enrolment {
            ground,
            files: self.files,
            identity: self.identity,
            server: self.config.server.to_string(),
            api: Box::new(|cluster| format!("https://{}", host_and_port(&self.api(cluster)))),
            token: self.config.token.as_ref().map(Secret::expose),
            ips,
        }
    }

    /// Where the Kubernetes API is, given the cluster's settings: with the supervisor, unless it has a port of its own.
    fn api(&self, cluster: &ClusterConfig) -> Address {
        let shown = self.address.shown.clone();
        match (cluster.port_of_api(), self.config.api_balancer_port()) {
            (None, _) => self.address.clone(),
            (Some(_), Some(port)) => Address {
                host: "127.0.0.1".to_owned(),
                port,
                shown,
            },
            (Some(port), None) => Address {
                host: self.config.server.host().to_owned(),
                port,
                shown,
            },
        }
    }

    /// The API with what is on disk.
    fn client(&self, cluster: &ClusterConfig) -> Result<Client, JoinError> {
        let supervisor = Client::new(Endpoint {
            host: self.address.host.clone(),
            port: self.address.port,
            tls: Some(self.tls()?),
        });
        let api = self.api(cluster);
        Ok(match cluster.port_of_api() {
            None => supervisor,
            Some(_) => Client::of_api(supervisor, api.host, api.port),
        })
    }

    /// Whom the node trusts and what it shows, as it is on disk.
    fn tls(&self) -> Result<Arc<rustls::ClientConfig>, JoinError> {
        let read = |path| fs::read(path).map_err(JoinError::Disk);
        let (chain, key) = (
            read(self.files.cert(Certificate::ClientKubelet))?,
            read(self.files.key(Certificate::ClientKubelet))?,
        );
        let shown = Shown {
            chain: &chain,
            key: &key,
        };
        Ok(trust::bundle(&read(self.files.server_ca())?, Some(shown), &self.clock)?)
    }

    fn joined(&self, settings: &Value, node_ips: Vec<IpAddr>) -> Result<Joined, JoinError> {
        let cluster = ClusterConfig::from_json(settings);
        Ok(Joined {
            identity: self.identity.clone(),
            node_ips,
            client: self.client(&cluster)?,
            cluster,
            files: self.files.clone(),
        })
    }

    async fn node_ips(&self) -> Vec<IpAddr> {
        if !self.config.node_ips.is_empty() {
            return self.config.node_ips.clone();
        }
        let server = &self.config.server;
        let found = address::find(server.host(), server.port()).await;
        found.into_iter().map(address::Found::ip).collect()
    }
}

fn host_and_port(address: &Address) -> String {
    match address.host.contains(':') {
        true => format!("[{}]:{}", address.host, address.port),
        false => format!("{}:{}", address.host, address.port),
    }
}

/// Doubles from 1 s to 30 s, and up to half of it is added, so that a cluster's nodes do not come all at once.
///
/// `fraction`: random, 0 to 1.
fn pause(attempt: u32, fraction: f64) -> Duration {
    let full = RETRY_FIRST
        .saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX))
        .min(RETRY_MAX);
    full.mul_f64(1.0 + fraction.clamp(0.0, 1.0) / 2.0)
}

/// 0 to 1.
pub(crate) fn random_fraction() -> f64 {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 4];
    // Without random numbers it is the full pause.
    match ring::rand::SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        for (attempt, seconds) in [(0, 1), (1, 2), (4, 16), (5, 30), (40, 30), (u32::MAX, 30)] {
            let full = Duration::from_secs(seconds);
            assert_eq!(pause(attempt, 0.0), full, "attempt {attempt}");
            assert_eq!(pause(attempt, 1.0) * 2, full * 3, "attempt {attempt}");
        }
    }
}
