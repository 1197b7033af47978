//! Who a client is by the certificate that it showed.
//!
//! The handshake takes any certificate whose key the client has ([`Taking`]); whether it names anybody is judged afterwards
//! ([`Judge`]), as K3s and Kubernetes do: who shows one that counts no longer is answered 401, or may still say by a token who
//! it is. A handshake that failed would turn away a node whose certificate ran out, with its token in hand.
//!
//! Sources: K3s v1.36 `pkg/cluster/https.go` (`tls.RequestClientCert`), Kubernetes v1.36 `apiserver/pkg/authentication/request/x509`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

use super::certificate::{begins, ends, identity, key_hash_of};
use super::pki::PkiError;
use crate::auth::who::Unauthorized;
use crate::request::User;

/// A leaf and what authorities lie between it and its root take a fifth of it. Connections and the cache of sessions keep
/// what was shown, whoever showed it.
const LONGEST: usize = 16 * 1024;

/// Whom a certificate names that counts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// CN and O.
    pub user: User,
    /// SHA-256 of its public key, hexadecimal: the handshake proved that the client has the private one.
    pub key: String,
    /// Its last second, since 1970.
    until: i64,
}

/// What a client's certificate says of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Caller {
    /// It showed none, or one without a name (upstream's `CommonNameUserConversion`).
    Nobody,
    /// Whom it names.
    Known(Holder),
    /// It names nobody: of another authority, not valid now, or not for clients.
    Refused(String),
}

impl Caller {
    /// Whom the certificate names; `None`: there is none.
    ///
    /// `now`: connections outlive certificates, so each request asks.
    ///
    /// # Errors
    /// [`Unauthorized`] for a certificate that names nobody.
    pub fn at(&self, now: Timestamp) -> Result<Option<&Holder>, Unauthorized> {
        match self {
            Self::Nobody => Ok(None),
            Self::Known(holder) if now.as_second() <= holder.until => Ok(Some(holder)),
            Self::Known(_) | Self::Refused(_) => Err(Unauthorized),
        }
    }
}

/// Says whom a certificate names.
#[derive(Clone)]
pub struct Judge {
    verifier: Arc<dyn ClientCertVerifier>,
    /// What time it is at least, in seconds since 1970.
    floor: i64,
}

impl Judge {
    /// By the authorities `roots`; `floor`: what time it is at least, in seconds since 1970.
    ///
    /// # Errors
    /// When there is none among them.
    pub fn new(roots: RootCertStore, provider: Arc<CryptoProvider>, floor: i64) -> Result<Self, PkiError> {
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map(|verifier| Self { verifier, floor })
            .map_err(|error| PkiError::Tls(error.to_string()))
    }

    /// Whom this chain, leaf first, names. One that has not begun, by a clock that is behind, is judged at the floor, or at its
    /// beginning if that is later: that it exists proves that its beginning is past.
    pub fn caller(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Caller {
        let Some((leaf, between)) = chain.split_first() else {
            return Caller::Nobody;
        };
        let (now, begin) = (now.as_second(), begins(leaf).unwrap_or_default());
        let seconds = match now < self.floor.min(begin) {
            true => self.floor.max(begin),
            false => now,
        };
        let seconds = u64::try_from(seconds).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        if let Err(error) = self.verifier.verify_client_cert(leaf, between, now) {
            return Caller::Refused(error.to_string());
        }
        let (Ok((name, groups)), Some(key), Some(until)) = (identity(leaf), key_hash_of(leaf), ends(leaf)) else {
            return Caller::Refused("it cannot be read".to_owned());
        };
        if name.is_empty() {
            return Caller::Nobody;
        }
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        Caller::Known(Holder {
            user: User::new(&name, &groups),
            key,
            until,
        })
    }
}

/// Takes any certificate, of whatever authority and time, whose key the client proves to have.
pub(super) struct Taking(Arc<CryptoProvider>);

impl Taking {
    pub(super) fn new(provider: Arc<CryptoProvider>) -> Arc<Self> {
        Arc::new(Self(provider))
    }
}

impl fmt::Debug for Taking {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Taking")
    }
}

impl ClientCertVerifier for Taking {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No authority is named, as by K3s: a client would keep a certificate of another one to itself, and be told that it
    /// showed none.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let length: usize = between.iter().chain([leaf]).map(|der| der.len()).sum();
        match length <= LONGEST {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, leaf, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
