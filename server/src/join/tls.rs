//! TLS as the server speaks it: its listener, and its way to a node's kubelet.
//!
//! Client certificates are asked for, never required: who shows none goes on with a token or a password. Whom one names is
//! judged after the handshake (`caller`).

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};

use super::caller::{Judge, Taking};
use super::certificate::certificates;
use super::pki::{Leaf, Own, Pki, PkiError};

/// A certificate that handshakes show, and that can be replaced while connections are open.
#[derive(Debug)]
pub struct Shown(ArcSwap<CertifiedKey>);

impl Shown {
    /// Shows this one.
    ///
    /// # Errors
    /// When rustls refuses the certificate or its key.
    pub fn new(leaf: &Leaf) -> Result<Self, PkiError> {
        certified(leaf).map(|key| Self(ArcSwap::from_pointee(key)))
    }

    /// Shows this one from the next handshake on.
    ///
    /// # Errors
    /// As [`Shown::new`]; the present one stays then.
    pub fn replace(&self, leaf: &Leaf) -> Result<(), PkiError> {
        self.0.store(Arc::new(certified(leaf)?));
        Ok(())
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(leaf: &Leaf) -> Result<CertifiedKey, PkiError> {
    let chain = certificates(&leaf.chain).map_err(fault)?;
    CertifiedKey::from_der(chain, leaf.key.der(), &provider()).map_err(fault)
}

/// What the listener of supervisor and API works with.
#[derive(Clone)]
pub struct Entrance {
    /// The handshake.
    pub config: Arc<ServerConfig>,
    /// Who came through it.
    pub judge: Judge,
}

impl Pki {
    /// For the one listener of supervisor and API.
    ///
    /// # Errors
    /// When rustls refuses a certificate.
    pub fn entrance(&self) -> Result<Entrance, PkiError> {
        let shown = self
            .shown(Own::Serving)
            .ok_or_else(|| fault("no serving certificate"))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(fault)?
            .with_client_cert_verifier(Taking::new(provider()))
            .with_cert_resolver(shown);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Entrance {
            config: Arc::new(config),
            judge: Judge::new(roots(self.client_authority())?, provider(), self.floor())?,
        })
    }

    /// For connections to what holds a serving certificate of this cluster (a kubelet), as one of the server's own identities.
    ///
    /// # Errors
    /// When rustls refuses a certificate.
    pub fn client_config(&self, who: Own) -> Result<Arc<ClientConfig>, PkiError> {
        let shown = self.shown(who).ok_or_else(|| fault("no client certificate"))?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(fault)?
            .with_root_certificates(roots(self.server_authority())?)
            .with_client_cert_resolver(shown);
        // A resumed session is of the certificate that it began with, also when that has been renewed.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(chain: &[CertificateDer<'static>]) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for der in chain {
        roots.add(der.clone()).map_err(fault)?;
    }
    Ok(roots)
}

fn fault(why: impl ToString) -> PkiError {
    PkiError::Tls(why.to_string())
}

#[cfg(test)]
mod tests {
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::UnixTime;

    use jiff::Timestamp;

    use super::*;
    use crate::auth::who::Unauthorized;
    use crate::join::caller::Caller;
    use crate::join::certificate::Wanted;
    use crate::join::key::PrivateKey;
    use crate::join::pki::Names;
    use crate::join::pki::tests::names;
    use crate::request::User;
    use crate::scratch::Scratch;

    fn pki(scratch: &Scratch) -> Pki {
        Pki::load_or_create(&scratch.0, &names(), "2026-11-25T00:00:00Z".parse().unwrap()).unwrap()
    }

    fn unix(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
    }

    const NOW: u64 = 1_795_564_800;

    /// Who this chain (leaf first) makes the client.
    fn caller(pki: &Pki, chain: &[CertificateDer<'_>], seconds: u64) -> Result<Option<User>, Unauthorized> {
        let now = Timestamp::from_second(seconds.try_into().unwrap()).unwrap();
        let caller = pki.entrance().unwrap().judge.caller(chain, now);
        caller.at(now).map(|holder| holder.map(|holder| holder.user.clone()))
    }

    #[test]
    fn clients_accept_the_serving_certificate_under_each_of_its_names() {
        let scratch = Scratch::new("tls-serving");
        let pki = pki(&scratch);
        pki.entrance().unwrap();
        let chain = certificates(&pki.own(Own::Serving).unwrap().chain).unwrap();
        let roots = Arc::new(roots(pki.server_authority()).unwrap());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .unwrap();
        let verify = |name: &str| {
            let name = name.to_owned().try_into().unwrap();
            verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], unix(NOW))
        };
        for name in [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "127.0.0.1",
            "::1",
            "box-1",
            "192.0.2.7",
            "10.43.0.1",
            "api.example.org",
        ] {
            verify(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert!(verify("example.com").is_err());
        assert!(verify("192.0.2.8").is_err());
    }

    #[test]
    fn a_client_is_who_its_certificate_says_if_we_signed_it_and_it_is_valid() {
        let scratch = Scratch::new("tls-client");
        let (first, now) = (pki(&scratch), "2026-11-25T00:00:00Z".parse().unwrap());
        let other_scratch = Scratch::new("tls-client-other");
        let other = pki(&other_scratch);
        let key = PrivateKey::generate().unwrap();
        let wanted = Wanted::client("system:node:box-2", &["system:nodes"]);
        let chain = certificates(&first.sign_client(&wanted, key.pair(), now).unwrap()).unwrap();
        let user = caller(&first, &chain, NOW).unwrap().unwrap();
        assert_eq!(user.name, "system:node:box-2");
        assert_eq!(user.groups, ["system:nodes", "system:authenticated"]);
        assert_eq!(caller(&first, &chain, NOW + 366 * 86_400), Err(Unauthorized), "expired");
        let ahead = Timestamp::from_second((NOW + 2 * 86_400).try_into().unwrap()).unwrap();
        let early = certificates(&first.sign_client(&wanted, key.pair(), ahead).unwrap()).unwrap();
        assert_eq!(caller(&first, &early, NOW), Err(Unauthorized), "not valid yet");
        assert!(
            caller(&first, &early, NOW - 86_400).is_ok(),
            "the clock is before the authority's beginning"
        );
        assert_eq!(caller(&other, &chain, NOW), Err(Unauthorized), "of another cluster");
        assert_eq!(caller(&first, &[], NOW), Ok(None));
        let serving = certificates(&first.own(Own::Serving).unwrap().chain).unwrap();
        assert_eq!(
            caller(&first, &serving, NOW),
            Err(Unauthorized),
            "a serving certificate is no client certificate"
        );
        let admin = certificates(&first.own(Own::Admin).unwrap().chain).unwrap();
        assert_eq!(
            caller(&first, &admin, NOW).unwrap().unwrap().groups,
            ["system:masters", "system:authenticated"]
        );
        let nameless = Wanted::client("", &["system:masters"]);
        let nameless = certificates(&first.sign_client(&nameless, key.pair(), now).unwrap()).unwrap();
        assert_eq!(caller(&first, &nameless, NOW), Ok(None), "groups without a name");
    }

    #[test]
    fn a_certificate_that_runs_out_while_its_connection_is_open_names_nobody_from_then_on() {
        let scratch = Scratch::new("tls-outlived");
        let (pki, now) = (pki(&scratch), "2026-11-25T00:00:00Z".parse().unwrap());
        let key = PrivateKey::generate().unwrap();
        let wanted = Wanted::client("system:node:box-2", &["system:nodes"]);
        let chain = certificates(&pki.sign_client(&wanted, key.pair(), now).unwrap()).unwrap();
        let caller = pki.entrance().unwrap().judge.caller(&chain, now);
        assert!(matches!(&caller, Caller::Known(holder) if holder.user.name == "system:node:box-2"));
        for (days, counts) in [(0, true), (364, true), (366, false)] {
            let then = Timestamp::from_second(now.as_second() + days * 86_400).unwrap();
            assert_eq!(caller.at(then).is_ok(), counts, "day {days}");
        }
    }

    #[tokio::test]
    async fn a_certificate_is_shown_with_its_key_and_not_with_another_nor_endlessly() {
        use tokio::io::{AsyncReadExt as _, duplex};
        use tokio_rustls::{TlsAcceptor, TlsConnector};

        let scratch = Scratch::new("tls-taking");
        let now = Timestamp::now();
        let pki = Pki::load_or_create(&scratch.0, &Names::default(), now).unwrap();
        let acceptor = TlsAcceptor::from(pki.entrance().unwrap().config);
        let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let sign = |key: &PrivateKey| pki.sign_client(&Wanted::client("pi", &[]), key.pair(), now).unwrap();
        let chain = certificates(&sign(&key)).unwrap();
        let long: Vec<_> = chain.iter().cycle().take(100).cloned().collect();
        for (chain, key, taken) in [(&chain, &key, true), (&chain, &other, false), (&long, &key, false)] {
            let signing = ring::sign::any_supported_type(&key.der()).unwrap();
            let certified = CertifiedKey::new(chain.clone(), signing);
            let config = ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots(pki.server_authority()).unwrap())
                .with_client_cert_resolver(Arc::new(Shown(ArcSwap::from_pointee(certified))));
            let (near, far) = duplex(1 << 20);
            let connector = TlsConnector::from(Arc::new(config));
            let name = "kubernetes".try_into().unwrap();
            let client = async {
                let mut tls = connector.connect(name, near).await.ok()?;
                // In TLS 1.3 the client is through before the server has looked.
                tls.read(&mut [0; 1]).await.ok()
            };
            let server = async {
                let accepted = acceptor.accept(far).await;
                accepted.map(|tls| tls.get_ref().1.peer_certificates().map(<[_]>::len))
            };
            let (_, accepted) = tokio::join!(client, server);
            assert_eq!(accepted.ok().flatten(), taken.then_some(chain.len()));
        }
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_from_the_next_handshake_on_and_open_connections_go_on() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
        use tokio_rustls::{TlsAcceptor, TlsConnector};

        let scratch = Scratch::new("tls-renew");
        let now = Timestamp::now();
        let pki = Pki::load_or_create(&scratch.0, &Names::default(), now).unwrap();
        let acceptor = TlsAcceptor::from(pki.entrance().unwrap().config);
        let connector = TlsConnector::from(pki.client_config(Own::ApiServer).unwrap());
        let connect = async || {
            let (near, far) = duplex(4096);
            let name = "kubernetes".try_into().unwrap();
            let (client, server) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
            (client.unwrap(), server.unwrap())
        };
        let (mut client, mut server) = connect().await;
        let shown = |certificates: Option<&[CertificateDer<'static>]>| certificates.unwrap()[0].to_vec();
        let serving = shown(client.get_ref().1.peer_certificates());
        let calling = shown(server.get_ref().1.peer_certificates());
        for file in ["serving-kube-apiserver.crt", "client-kube-apiserver.crt"] {
            std::fs::remove_file(scratch.0.join("tls").join(file)).unwrap();
        }
        assert_eq!(pki.renew(now).unwrap(), [Own::ApiServer, Own::Serving]);

        client.write_all(b"still here").await.unwrap();
        let mut text = [0; 10];
        server.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"still here");
        let (client, server) = connect().await;
        assert_ne!(shown(client.get_ref().1.peer_certificates()), serving);
        assert_ne!(shown(server.get_ref().1.peer_certificates()), calling);
    }
}
