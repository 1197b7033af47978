//! The port's certificate and whom it believes, as they are on disk now.
//!
//! A renewal replaces key, certificate and CA one after the other while we serve; files that do not fit together (yet)
//! leave the last good set in use, and the next connection looks again.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::kubelet::settings::{Judged, Settings};

/// Why there is no TLS to serve with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in the files is no certificate or key, or they do not belong together.
    #[error("the certificate of the kubelet's port cannot be used: {0}")]
    Unusable(String),
}

/// What tells one version of a file from the next.
type Stamp = [(u64, i64, i64); 3];

/// Certificate, key and client CA.
#[derive(Debug)]
pub struct Identity {
    cert: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    judged: Judged,
    loaded: Option<(Stamp, Arc<ServerConfig>)>,
}

impl Identity {
    /// The files of these settings, not read yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            cert: settings.serving_cert.clone(),
            key: settings.serving_key.clone(),
            client_ca: settings.client_ca.clone(),
            judged: settings.judged.clone(),
            loaded: None,
        }
    }

    /// TLS with what the files say now, or said when they last fitted together.
    ///
    /// # Errors
    /// [`IdentityError`], only if they never did.
    pub fn config(&mut self) -> Result<Arc<ServerConfig>, IdentityError> {
        let fresh = self.stamp().and_then(|stamp| match &self.loaded {
            Some((known, config)) if *known == stamp => Ok((stamp, config.clone())),
            _ => Ok((stamp, self.load()?)),
        });
        match (fresh, &self.loaded) {
            (Ok((stamp, config)), _) => {
                self.loaded = Some((stamp, config.clone()));
                Ok(config)
            }
            (Err(error), Some((_, last))) => {
                tracing::warn!(%error, "the kubelet's port goes on with its last certificate");
                Ok(last.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    fn stamp(&self) -> Result<Stamp, IdentityError> {
        let one = |path: &PathBuf| {
            let found = fs::metadata(path).map_err(|source| file(path, source))?;
            Ok((found.ino(), found.mtime(), found.mtime_nsec()))
        };
        Ok([one(&self.cert)?, one(&self.key)?, one(&self.client_ca)?])
    }

    fn load(&self) -> Result<Arc<ServerConfig>, IdentityError> {
        let read = |path: &PathBuf| fs::read(path).map_err(|source| file(path, source));
        let (cert, key, ca) = (read(&self.cert)?, read(&self.key)?, read(&self.client_ca)?);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&cert)
            .collect::<Result<_, _>>()
            .map_err(unusable)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(unusable)?;
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&ca) {
            roots.add(root.map_err(unusable)?).map_err(unusable)?;
        }
        let provider = Arc::new(ring::default_provider());
        // Who shows no certificate is let through the handshake, to be told in HTTP what is missing.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(unusable)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(Callers {
                inner: verifier,
                judged: self.judged.clone(),
            }))
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        // Streams take the connection over: only HTTP/1.1 can be upgraded so.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A client that resumed would be let in on a certificate judged long ago; servers connect seldom anyway.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// Verifies callers as rustls does, at a time that a board without a clock knows, too.
#[derive(Debug)]
struct Callers {
    inner: Arc<dyn ClientCertVerifier>,
    judged: Judged,
}

impl ClientCertVerifier for Callers {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let at = Duration::from_secs(self.judged.at(end_entity, now.as_secs()));
        let at = UnixTime::since_unix_epoch(at);
        self.inner.verify_client_cert(end_entity, intermediates, at)
    }

    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn file(path: &Path, source: io::Error) -> IdentityError {
    let path = path.to_path_buf();
    IdentityError::File { path, source }
}

fn unusable(error: impl ToString) -> IdentityError {
    IdentityError::Unusable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::server::testing::Authority;
    use crate::scratch::TempDir;

    #[test]
    fn a_renewed_certificate_is_served_and_a_broken_one_is_not() {
        let dir = TempDir::new("identity");
        let settings = Settings::new("box", dir.path());
        let authority = Authority::new();
        let mut identity = Identity::new(&settings);
        assert!(matches!(identity.config(), Err(IdentityError::File { .. })));
        authority.write(&settings);
        let first = identity.config().unwrap();
        assert!(Arc::ptr_eq(&first, &identity.config().unwrap()), "read once");
        fs::write(&settings.serving_key, "half a k").unwrap();
        assert!(
            Arc::ptr_eq(&first, &identity.config().unwrap()),
            "the last good one stays"
        );
        let other = Authority::new();
        other.write(&settings);
        assert!(!Arc::ptr_eq(&first, &identity.config().unwrap()));
    }

    #[test]
    fn callers_are_judged_at_the_time_that_the_settings_know() {
        let authority = Authority::new();
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(ring::default_provider());
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let (caller, _) = authority.sign("kube-apiserver", "system:masters");
        let caller = CertificateDer::from_pem_slice(caller.as_bytes()).unwrap();
        // These certificates begin in 1975 and end in 4096.
        for (known, now, expected) in [
            (0, 0, false),
            (1_700_000_000, 0, true),
            (0, 1_700_000_000, true),
            (0, 1 << 37, false),
        ] {
            let judged = Judged::new(move |_, system| system.max(known));
            let callers = Callers {
                inner: inner.clone(),
                judged,
            };
            let at = UnixTime::since_unix_epoch(Duration::from_secs(now));
            assert_eq!(
                callers.verify_client_cert(&caller, &[], at).is_ok(),
                expected,
                "known {known}, now {now}"
            );
        }
    }
}
