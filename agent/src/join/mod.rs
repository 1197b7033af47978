//! Becoming a node: identity on disk, the token, certificates, the cluster's settings.
//!
//! [`Identity`] is who this machine is and survives everything but a reflash; [`Joined`] is what a successful join
//! leaves behind for the rest of the agent. A machine that has joined once has all of it on disk ([`Joiner::remembered`])
//! and starts without a server. Order and files: protocol 2.1, 2.2, 2.6.

mod address;
mod clock;
mod durable;
mod error;
pub mod expiry;
mod files;
mod identity;
mod key;
pub mod services;
mod supervisor;
pub mod trust;

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tracing::{info, warn};

pub use self::address::own_address;
pub use self::clock::Clock;
pub(crate) use self::durable::replace;
pub use self::error::JoinError;
pub use self::files::{Certificate, Files};
pub use self::identity::{Identity, IdentityError};
pub use self::supervisor::{Address, fetch_ca};

use self::key::Key;
use self::supervisor::{Supervisor, recognize};
use self::trust::Shown;
use crate::api::{Client, Endpoint};
use crate::config::Config;
use crate::wire::join::{ClusterConfig, ca_hash};
use crate::wire::object::set;
use crate::wire::token::Token;

/// The first pause after a failed join; it doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(30);

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
        let settings = self.kept_settings()?;
        // Another server may be another cluster, and the certificates name the node.
        let same = |key: &str, now: &str| settings.get(key).and_then(Value::as_str) == Some(now);
        if !same("Server", &self.config.server.to_string()) || !same("NodeName", &self.identity.node_name) {
            return None;
        }
        fs::metadata(self.files.serving_cert()).ok()?;
        let client = self.client().ok()?;
        Some(self.joined(&settings, client).await)
    }

    /// Joins; tries until it works. `trouble` says why the balancer reaches no server; `astray` is called when what answered
    /// may be no server of the cluster, so that the next attempt goes elsewhere.
    pub async fn join(&self, trouble: impl Fn() -> Option<String>, astray: impl Fn()) -> Joined {
        let mut attempt = 0;
        loop {
            match self.once().await {
                Ok(joined) => return joined,
                Err(error) => {
                    if error.is_astray() {
                        astray();
                    }
                    let pause = pause(attempt, random_fraction());
                    let error = match (error, trouble()) {
                        (JoinError::Unreachable { server, .. }, Some(reason)) => {
                            JoinError::Unreachable { server, reason }
                        }
                        (error, _) => error,
                    };
                    warn!(node = self.identity.node_name, error = %error, retry_s = pause.as_secs(), "cannot join the cluster");
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
        let token = self
            .config
            .token
            .as_ref()
            .map(|token| Token::parse(token.expose()))
            .transpose()?;
        let expected = token.as_ref().and_then(|token| token.ca_hash.as_deref());
        let ca = self.ca(expected, token.is_none()).await?;
        match &token {
            None => self.as_known_node(&ca, None).await,
            Some(token) => {
                let tls = trust::bundle(&ca, None, &self.clock)?;
                let authorization = Some(token.authorization("node"));
                let supervisor = Supervisor::new(&self.address, tls, authorization, self.identity, &self.clock);
                match self.fetch(&supervisor).await {
                    // The token may have run out since this node joined; its certificate may not.
                    Err(JoinError::Token(refused)) => self
                        .as_known_node(&ca, None)
                        .await
                        .map_err(|_| JoinError::Token(refused)),
                    // The password may be lost, on this machine's side or the server's; the key is the same.
                    Err(JoinError::Password(refused)) => self
                        .as_known_node(&ca, Some(token.authorization("node")))
                        .await
                        .map_err(|_| JoinError::Password(self.with_damage(refused))),
                    other => other,
                }
            }
        }
    }

    /// Whom to trust: the CA that the token pins; else that of an earlier join; else, said aloud, that of whoever answers.
    ///
    /// `expected`: the token's hash. `bound`: there is no token, so what an earlier join left is good for its cluster only,
    /// at whatever address.
    async fn ca(&self, expected: Option<&str>, bound: bool) -> Result<Bytes, JoinError> {
        if expected.is_none()
            && let Some(kept) = self.kept_ca(bound)
        {
            recognize(&self.address, &kept, &self.files.server_ca(), &self.clock).await?;
            return Ok(kept);
        }
        let ca = fetch_ca(&self.address, expected, &self.clock).await?;
        if expected.is_none() {
            warn!(
                server = self.address.shown,
                hash = ca_hash(&ca),
                "the token has no CA hash, so whoever answers is trusted this first time: give the full token (it begins \
                 with K10) from /var/lib/rancher/k3s/server/node-token on the server"
            );
        }
        Ok(ca)
    }

    /// The CA of an earlier join at this `--server` (`anywhere`: or at another), if it can be used.
    fn kept_ca(&self, anywhere: bool) -> Option<Bytes> {
        let kept = fs::read(self.files.server_ca()).ok()?;
        trust::bundle(&kept, None, &self.clock).ok()?;
        let same = || self.kept_settings()?.get("Server")?.as_str().map(str::to_owned);
        (anywhere || same() == Some(self.config.server.to_string())).then(|| kept.into())
    }

    fn kept_settings(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.files.settings()).ok()?).ok()
    }

    /// Says, if so, that the password is not the one this machine had.
    fn with_damage(&self, refused: String) -> String {
        match &self.identity.damaged {
            None => refused,
            Some(path) => format!(
                "{refused} (the password of this machine in {} is damaged: putting the old file back helps too)",
                path.display()
            ),
        }
    }

    /// Shows the certificate of an earlier join, and with it that this machine has its key.
    async fn as_known_node(&self, ca: &[u8], authorization: Option<String>) -> Result<Joined, JoinError> {
        let (cert, key) = (Certificate::ClientKubelet, Certificate::ClientKubelet);
        let (Ok(chain), Ok(key)) = (fs::read(self.files.cert(cert)), fs::read(self.files.key(key))) else {
            return Err(JoinError::NoCredential);
        };
        let tls = trust::bundle(
            ca,
            Some(Shown {
                chain: &chain,
                key: &key,
            }),
            &self.clock,
        )?;
        self.fetch(&Supervisor::new(
            &self.address,
            tls,
            authorization,
            self.identity,
            &self.clock,
        ))
        .await
    }

    async fn fetch(&self, supervisor: &Supervisor<'_>) -> Result<Joined, JoinError> {
        let settings = supervisor.get("config").await?;
        let settings: Value = serde_json::from_slice(&settings).map_err(|error| JoinError::Odd {
            path: "config".into(),
            reason: error.to_string(),
        })?;
        for (route, path) in [
            ("client-ca.crt", self.files.client_ca()),
            ("server-ca.crt", self.files.server_ca()),
        ] {
            let pem = supervisor.get(route).await?;
            trust::bundle(&pem, None, &self.clock)?;
            self.files.write(&path, &pem)?;
        }
        let ips = self.node_ips().await;
        let told = ips
            .iter()
            .chain(&self.config.node_external_ips)
            .map(IpAddr::to_string)
            .collect::<Vec<_>>();
        let server = format!("https://{}", authority(&self.address));
        for which in Certificate::ALL {
            self.certificate(supervisor, which, &told.join(",")).await?;
            self.files.write_kubeconfig(which, &server)?;
        }
        self.identity.settle()?;
        let mut kept = ClusterConfig::from_json(&settings).to_json();
        set(&mut kept, &["Server"], self.config.server.to_string());
        set(&mut kept, &["NodeName"], self.identity.node_name.as_str());
        let text = kept.to_string().into_bytes();
        self.files.write(&self.files.settings(), &text)?;
        let client = self.client()?;
        info!(
            node = self.identity.node_name,
            server = self.address.shown,
            "joined the cluster"
        );
        Ok(self.joined(&settings, client).await)
    }

    async fn certificate(&self, supervisor: &Supervisor<'_>, which: Certificate, ips: &str) -> Result<(), JoinError> {
        let path = self.files.key(which);
        let key = match fs::read(&path).ok().and_then(|kept| Key::read(&kept)) {
            Some(key) => key,
            None => Key::generate()?,
        };
        let answer = supervisor.sign(which, key.request()?, ips).await?;
        let (chain, theirs) = split(&answer);
        let key = theirs.unwrap_or_else(|| key.to_pem().to_owned());
        trust::bundle(
            chain.as_bytes(),
            Some(Shown {
                chain: chain.as_bytes(),
                key: key.as_bytes(),
            }),
            &self.clock,
        )?;
        self.files.write(&path, key.as_bytes())?;
        self.files.write(&self.files.cert(which), chain.as_bytes())?;
        Ok(())
    }

    /// The API with what is on disk.
    fn client(&self) -> Result<Client, JoinError> {
        let read = |path| fs::read(path).map_err(JoinError::Disk);
        let (chain, key) = (
            read(self.files.cert(Certificate::ClientKubelet))?,
            read(self.files.key(Certificate::ClientKubelet))?,
        );
        let tls = trust::bundle(
            &read(self.files.server_ca())?,
            Some(Shown {
                chain: &chain,
                key: &key,
            }),
            &self.clock,
        )?;
        Ok(Client::new(Endpoint {
            host: self.address.host.clone(),
            port: self.address.port,
            tls: Some(tls),
        }))
    }

    async fn joined(&self, settings: &Value, client: Client) -> Joined {
        Joined {
            identity: self.identity.clone(),
            node_ips: self.node_ips().await,
            cluster: ClusterConfig::from_json(settings),
            client,
            files: self.files.clone(),
        }
    }

    async fn node_ips(&self) -> Vec<IpAddr> {
        if !self.config.node_ips.is_empty() {
            return self.config.node_ips.clone();
        }
        let server = &self.config.server;
        own_address(server.host(), server.port()).await.into_iter().collect()
    }
}

fn authority(address: &Address) -> String {
    match address.host.contains(':') {
        true => format!("[{}]:{}", address.host, address.port),
        false => format!("{}:{}", address.host, address.port),
    }
}

/// Certificates and, from a server that knows no requests, the key that it made.
fn split(pem: &[u8]) -> (String, Option<String>) {
    let text = String::from_utf8_lossy(pem);
    let (mut chain, mut key) = (String::new(), String::new());
    let mut private = false;
    for line in text.lines() {
        private = private || (line.starts_with("-----BEGIN") && line.contains("PRIVATE KEY"));
        let target = if private { &mut key } else { &mut chain };
        target.push_str(line);
        target.push('\n');
        private &= !line.starts_with("-----END");
    }
    (chain, Some(key).filter(|key| !key.is_empty()))
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

    #[test]
    fn the_key_of_an_old_server_is_told_from_the_chain() {
        let cert = "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n";
        let key = "-----BEGIN EC PRIVATE KEY-----\nBB\n-----END EC PRIVATE KEY-----\n";
        let chain = format!("{cert}{cert}");
        assert_eq!(split(chain.as_bytes()), (chain.clone(), None));
        assert_eq!(
            split(format!("{chain}{key}").as_bytes()),
            (chain.clone(), Some(key.into()))
        );
        assert_eq!(
            split(format!("{cert}{key}{cert}").as_bytes()),
            (chain, Some(key.into()))
        );
    }
}
