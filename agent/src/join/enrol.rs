//! One attempt to become a node, over a [`Ground`] of disk, keys and servers: what is asked in which order, whom to trust, what
//! is written when. No clock and no socket is here, so that a simulation can run it (`simulation`).
//!
//! Order and files: protocol 2.1, 2.2, 2.6.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;
use tracing::warn;

use super::authority;
use super::clock::Window;
use super::durable::Disk;
use super::error::JoinError;
use super::files::{Certificate, Files};
use super::identity::Identity;
use super::key::KeyError;
use super::trust::{Shown, TrustError};
use crate::wire::join::{ClusterConfig, ca_hash, certificates};
use crate::wire::object::set;
use crate::wire::token::Token;

/// In the kept settings: the CA hash of the token that the kept CA was judged by.
const JUDGED_BY: &str = "CaHash";

/// What an enrolment stands on.
pub trait Ground {
    /// Servers of one CA, asked with one credential.
    type Link;

    /// Where files are kept.
    fn disk(&self) -> &dyn Disk;

    /// The CA bundle (PEM) as it is served: by a server of the CA `by`, or else by whoever answers.
    async fn ca(&self, by: Option<&[u8]>) -> Result<Bytes, JoinError>;

    /// Servers of this CA bundle (PEM). They are shown the certificate, if any, and told `authorization`; only what can be used
    /// makes a link.
    fn link(
        &self,
        ca: &[u8],
        shown: Option<Shown<'_>>,
        authorization: Option<String>,
    ) -> Result<Self::Link, TrustError>;

    /// Reads a route such as `config`.
    async fn get(&self, link: &Self::Link, route: &str) -> Result<Bytes, JoinError>;

    /// Has a certificate request (DER) signed; answers PEM.
    async fn sign(
        &self,
        link: &Self::Link,
        which: Certificate,
        request: Vec<u8>,
        who: &Who<'_>,
    ) -> Result<Bytes, JoinError>;

    /// From when to when the first certificate of a chain (PEM) is good; `None` for what cannot be read.
    fn window(&self, chain: &[u8]) -> Option<Window>;

    /// Whether it is past that, by this machine's clock and by the floor that its servers vouch for ([`super::renewal::is_over`]).
    fn is_over(&self, window: Window) -> bool;

    /// The kept key (PEM) if it can be used, else a new one, and a request for its certificate (DER).
    fn key(&self, kept: Option<&[u8]>) -> Result<(String, Vec<u8>), KeyError>;
}

/// Who asks for the kubelet's certificates.
pub struct Who<'a> {
    /// Name and password.
    pub identity: &'a Identity,
    /// Its addresses, with commas.
    pub ips: &'a str,
}

/// An attempt.
pub struct Enrolment<'a, G> {
    /// On what.
    pub ground: &'a G,
    /// Where things are kept.
    pub files: &'a Files,
    /// Who this is; the password counts as it is on disk now.
    pub identity: &'a Identity,
    /// As the operator wrote it.
    pub server: String,
    /// Where kubeconfigs lead, by the cluster's settings: `https://127.0.0.1:6444`.
    pub api: Box<dyn Fn(&ClusterConfig) -> String + Send + Sync + 'a>,
    /// If one is configured.
    pub token: Option<&'a str>,
    /// The node's addresses, with commas.
    pub ips: String,
}

impl<G: Ground> Enrolment<'_, G> {
    /// The cluster's settings as an earlier enrolment left them, if all of it is there. Nothing is asked of a server.
    pub fn remembered(&self) -> Option<Value> {
        let settings = self.kept_settings()?;
        // Another server may be another cluster, and the certificates name the node.
        let same = |key: &str, now: &str| settings.get(key).and_then(Value::as_str) == Some(now);
        if !same("Server", &self.server) || !same("NodeName", &self.identity.node_name) {
            return None;
        }
        let ca = self.read(&self.files.server_ca())?;
        for which in [Certificate::ClientKubelet, Certificate::ServingKubelet] {
            let (chain, key) = self.pair(which)?;
            let shown = Shown {
                chain: &chain,
                key: &key,
            };
            self.ground.link(&ca, Some(shown), None).ok()?;
        }
        Some(settings)
    }

    /// Enrols, or says why not; answers the cluster's settings.
    pub async fn once(&self) -> Result<Value, JoinError> {
        let identity = self.identity.reread(self.ground.disk());
        let done = self.enrol(&identity).await;
        done.map_err(|error| match (error, &identity.damaged) {
            (JoinError::Password(refused), Some(path)) => JoinError::Password(format!(
                "{refused} (the password of this machine in {} is damaged: putting the old file back helps too)",
                path.display()
            )),
            (error, _) => error,
        })
    }

    async fn enrol(&self, identity: &Identity) -> Result<Value, JoinError> {
        let Some(token) = self.token.map(Token::parse).transpose()? else {
            self.pair(Certificate::ClientKubelet).ok_or(JoinError::NoCredential)?;
            let ca = self.ca(None, false).await?;
            return self.as_known_node(identity, &ca, None).await;
        };
        let ca = self.ca(token.ca_hash.as_deref(), true).await?;
        let authorization = || Some(token.authorization("node"));
        let link = self.ground.link(&ca, None, authorization())?;
        match self.fetch(identity, &link).await {
            // The token may have run out since this node joined; its certificate may not.
            Err(JoinError::Token(refused)) => self
                .as_known_node(identity, &ca, None)
                .await
                .map_err(|_| JoinError::Token(refused)),
            // The password may be lost, on this machine's side or the server's; the key is the same.
            Err(JoinError::Password(refused)) => self
                .as_known_node(identity, &ca, authorization())
                .await
                .map_err(|_| JoinError::Password(refused)),
            other => other,
        }
    }

    /// Whom to trust: the CA that the token pins (`expected`); else that of an earlier enrolment; else, if there is a token at
    /// all and there never was a CA, that of whoever answers.
    async fn ca(&self, expected: Option<&str>, has_token: bool) -> Result<Bytes, JoinError> {
        let path = self.files.server_ca();
        if let Some(hash) = expected {
            return match authority::fetch(self.ground, expected).await {
                Err(refused @ JoinError::CaHash { .. }) => self.proved_before(hash, &path).await.ok_or(refused),
                other => other,
            };
        }
        let lost = |missing| JoinError::LostCa {
            path: path.clone(),
            missing,
        };
        // A token without a hash may be that of another cluster, when the server is another. Without a token it is the same
        // cluster, at whatever address.
        let elsewhere = || {
            let settings = self.kept_settings();
            let server = settings.as_ref().and_then(|kept| kept.get("Server")?.as_str());
            server.is_some_and(|server| server != self.server)
        };
        if has_token && (elsewhere() || !self.ground.disk().has(&path)) {
            let ca = authority::fetch(self.ground, None).await?;
            warn!(
                server = self.server,
                hash = ca_hash(&ca),
                "the token has no CA hash, so whoever answers is trusted this first time: give the full token (it begins \
                 with K10) from /var/lib/rancher/k3s/server/node-token on the server"
            );
            return Ok(ca);
        }
        let kept = self.read(&path).ok_or_else(|| lost(true))?;
        self.ground.link(&kept, None, None).map_err(|_| lost(false))?;
        authority::recognize(self.ground, &kept, &path).await?;
        Ok(kept.into())
    }

    /// The kept CA, if it was judged by this hash once and the server is of it: then the cluster has other CAs now than when the
    /// token was written down.
    async fn proved_before(&self, hash: &str, path: &Path) -> Option<Bytes> {
        self.kept_settings()?
            .get(JUDGED_BY)?
            .as_str()
            .filter(|by| *by == hash)?;
        let kept = self.read(path)?;
        authority::recognize(self.ground, &kept, path).await.ok()?;
        Some(kept.into())
    }

    /// Takes over the CA bundles as the cluster has them now, if they have grown, and answers whether they have. Who is asked is
    /// proved by the CA that is kept. What a bundle has lost is left to the next enrolment: on another server it may still be in
    /// use.
    pub async fn authorities(&self) -> Result<bool, JoinError> {
        let path = self.files.server_ca();
        let kept = self.read(&path).ok_or_else(|| JoinError::LostCa {
            path: path.clone(),
            missing: true,
        })?;
        let (chain, key) = self.pair(Certificate::ClientKubelet).ok_or(JoinError::NoCredential)?;
        let shown = Shown {
            chain: &chain,
            key: &key,
        };
        let link = self.ground.link(&kept, Some(shown), None)?;
        let mut grown = false;
        for (route, path) in self.bundles() {
            let pem = self.ground.get(&link, route).await?;
            if has_grown(&self.read(&path).unwrap_or_default(), &pem) {
                self.take_over(&path, &pem)?;
                grown = true;
            }
        }
        Ok(grown)
    }

    /// Routes of CA bundles, and where they are kept.
    fn bundles(&self) -> [(&'static str, PathBuf); 2] {
        [
            ("client-ca.crt", self.files.client_ca()),
            ("server-ca.crt", self.files.server_ca()),
        ]
    }

    fn take_over(&self, path: &Path, bundle: &[u8]) -> Result<(), JoinError> {
        self.ground.link(bundle, None, None)?;
        Ok(self.files.write_on(self.ground.disk(), path, bundle)?)
    }

    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        self.ground.disk().read(path).ok()
    }

    fn pair(&self, which: Certificate) -> Option<(Vec<u8>, Vec<u8>)> {
        Some((self.read(&self.files.cert(which))?, self.read(&self.files.key(which))?))
    }

    fn kept_settings(&self) -> Option<Value> {
        serde_json::from_slice(&self.read(&self.files.settings())?).ok()
    }

    /// Shows the certificate of an earlier enrolment, and with it that this machine has its key.
    async fn as_known_node(
        &self,
        identity: &Identity,
        ca: &[u8],
        authorization: Option<String>,
    ) -> Result<Value, JoinError> {
        let pair = self.pair(Certificate::ClientKubelet);
        let (chain, key) = pair.ok_or(JoinError::NoCredential)?;
        let shown = Shown {
            chain: &chain,
            key: &key,
        };
        // Damaged, or the key of another one: as if there were none.
        let link = self.ground.link(ca, Some(shown), authorization);
        let link = link.map_err(|_| JoinError::NoCredential)?;
        self.fetch(identity, &link).await
    }

    /// Gets all there is, and writes it down. The settings come last: without them the rest does not count as an enrolment.
    async fn fetch(&self, identity: &Identity, link: &G::Link) -> Result<Value, JoinError> {
        let disk = self.ground.disk();
        let settings = self.ground.get(link, "config").await?;
        let settings: Value = serde_json::from_slice(&settings).map_err(|error| JoinError::Odd {
            path: "config".into(),
            reason: error.to_string(),
        })?;
        for (route, path) in self.bundles() {
            self.take_over(&path, &self.ground.get(link, route).await?)?;
        }
        let cluster = ClusterConfig::from_json(&settings);
        let api = (self.api)(&cluster);
        for which in Certificate::ALL {
            self.certificate(identity, link, which).await?;
            self.files.write_kubeconfig(disk, which, &api)?;
        }
        identity.settle(disk)?;
        let mut kept = cluster.to_json();
        set(&mut kept, &["Server"], self.server.as_str());
        set(&mut kept, &["NodeName"], identity.node_name.as_str());
        let token = self.token.and_then(|token| Token::parse(token).ok());
        if let Some(hash) = token.and_then(|token| token.ca_hash) {
            set(&mut kept, &[JUDGED_BY], hash);
        }
        let text = kept.to_string().into_bytes();
        self.files.write_on(disk, &self.files.settings(), &text)?;
        Ok(settings)
    }

    async fn certificate(&self, identity: &Identity, link: &G::Link, which: Certificate) -> Result<(), JoinError> {
        let (disk, path) = (self.ground.disk(), self.files.key(which));
        let (key, request) = self.ground.key(self.read(&path).as_deref())?;
        let ips = self.ips.as_str();
        let answer = self.ground.sign(link, which, request, &Who { identity, ips }).await?;
        let (chain, theirs) = split(&answer);
        let key = theirs.unwrap_or(key);
        let shown = Shown {
            chain: chain.as_bytes(),
            key: key.as_bytes(),
        };
        self.ground.link(chain.as_bytes(), Some(shown), None)?;
        // A server whose clock is behind, as those of K3s sign then. What is kept may be good, and this is not.
        let window = self.ground.window(chain.as_bytes());
        let dead = |window: &Window| window.is_empty() || self.ground.is_over(*window);
        if let Some(window) = window.filter(dead) {
            return Err(JoinError::Dead { window });
        }
        self.files.write_on(disk, &path, key.as_bytes())?;
        self.files.write_on(disk, &self.files.cert(which), chain.as_bytes())?;
        Ok(())
    }
}

/// Whether a bundle has all certificates of the one before, and more.
fn has_grown(before: &[u8], now: &[u8]) -> bool {
    let (before, now) = (certificates(before), certificates(now));
    before.iter().all(|known| now.contains(known)) && now.iter().any(|new| !before.contains(new))
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

#[cfg(test)]
mod tests {
    use super::*;

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
