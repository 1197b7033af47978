//! TLS to PostgreSQL, as libpq's `sslmode` has it.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use agent::api::Anyone;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ring::digest::{SHA256, SHA384, SHA512, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring as provider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use x509_parser::oid_registry::{OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA384};

use super::super::super::endpoint::Tls;
use super::super::super::tls::{self, TlsError};

/// What is asked of a connection. Source: PostgreSQL 17, libpq "SSL Mode Descriptions".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// No TLS.
    Disable,
    /// TLS if the server has it; with whom is not asked.
    Prefer,
    /// TLS; with whom is asked only if an authority is given.
    Require,
    /// The server's certificate is the authority's.
    VerifyCa,
    /// And for this host.
    VerifyFull,
}

impl Mode {
    /// Reads `sslmode`; `allow` is `prefer` here: it begins with TLS.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }
}

/// How connections are encrypted.
#[derive(Clone, Debug)]
pub struct Encryption(Arc<ClientConfig>);

impl Encryption {
    /// Reads the files. The error says which one, and what to give.
    pub fn new(mode: Mode, files: &Tls) -> Result<Self, String> {
        let builder = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let roots = || match &files.ca {
            Some(ca) => tls::authorities(ca),
            None => tls::system(),
        };
        let verifier = verifier(mode, files.ca.is_some(), roots)?;
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let config = tls::shown(builder, files).map_err(|error| error.whole())?;
        Ok(Self(Arc::new(config)))
    }
}

/// Judges the server's certificate. `named`: an authority is given; else `roots` are the system's, as for K3s (pgx v5
/// leaves them to Go's `crypto/x509`, for `verify-ca` without the name), and not asked for `require` (libpq). libpq itself
/// would refuse `verify-ca` and `verify-full` then.
fn verifier(
    mode: Mode,
    named: bool,
    roots: impl FnOnce() -> Result<RootCertStore, TlsError>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let provider = Arc::new(provider::default_provider());
    let any_name = match (mode, named) {
        (Mode::Disable | Mode::Prefer, _) | (Mode::Require, false) => return Ok(Arc::new(Anyone::new(provider))),
        (Mode::Require, true) | (Mode::VerifyCa, _) => true,
        (Mode::VerifyFull, _) => false,
    };
    let roots = roots().map_err(|error| error.whole())?;
    let whole = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let whole = whole.map_err(|error| {
        format!("the database's certificate cannot be verified: --datastore-cafile has to name its authority ({error})")
    })?;
    Ok(if any_name { Arc::new(AnyName(whole)) } else { whole })
}

/// True if trying again cannot help because one side does not trust the other.
pub fn is_about_certificates(error: &tokio_postgres::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The authority's certificates, whatever name is in them.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name is looked at last.
        match self
            .0
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// For one host.
#[derive(Debug)]
pub struct Handshake {
    config: Arc<ClientConfig>,
    host: ServerName<'static>,
}

impl<S> MakeTlsConnect<S> for Encryption
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type TlsConnect = Handshake;
    type Error = rustls_pki_types::InvalidDnsNameError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Handshake, Self::Error> {
        // A socket has no name; nobody asks for one there.
        let host = if domain.is_empty() { "localhost" } else { domain };
        Ok(Handshake {
            config: Arc::clone(&self.0),
            host: ServerName::try_from(host.to_owned())?,
        })
    }
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Encrypted<S>>>;

    fn connect(self, stream: S) -> Self::Future {
        let connector = tokio_rustls::TlsConnector::from(self.config);
        async move { Ok(Encrypted(Box::new(connector.connect(self.host, stream).await?))) }.boxed()
    }
}

/// An encrypted connection.
#[derive(Debug)]
pub struct Encrypted<S>(Box<tokio_rustls::client::TlsStream<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    /// Binds the password's proof to this connection, so that nobody in between can use it. RFC 5929, section 4.1: the
    /// hash is the one of the certificate's signature, and SHA-256 where that is weaker.
    fn channel_binding(&self) -> ChannelBinding {
        let (_, session) = self.0.get_ref();
        let Some(certificate) = session.peer_certificates().and_then(<[_]>::first) else {
            return ChannelBinding::none();
        };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
            return ChannelBinding::none();
        };
        let signature = &parsed.signature_algorithm.algorithm;
        let algorithm = if *signature == OID_PKCS1_SHA384WITHRSA || *signature == OID_SIG_ECDSA_WITH_SHA384 {
            &SHA384
        } else if *signature == OID_PKCS1_SHA512WITHRSA {
            &SHA512
        } else {
            &SHA256
        };
        ChannelBinding::tls_server_end_point(digest(algorithm, certificate).as_ref().to_vec())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, to)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_authority_of_its_own_a_database_is_judged_by_those_of_the_system() {
        let authority = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = rcgen::Issuer::from_params(&ca, &authority);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(["db.test".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let mut known = RootCertStore::empty();
        known.add(ca.self_signed(&authority).unwrap().der().clone()).unwrap();
        let stranger = rcgen::KeyPair::generate().unwrap();
        let mut strangers = RootCertStore::empty();
        strangers.add(ca.self_signed(&stranger).unwrap().der().clone()).unwrap();
        let judged = |mode, roots: &RootCertStore, name: &'static str| {
            let verifier = verifier(mode, false, || Ok(roots.clone()))?;
            let (name, now) = (ServerName::try_from(name).unwrap(), UnixTime::now());
            let verdict = verifier.verify_server_cert(leaf.der(), &[], &name, &[], now);
            verdict.map(drop).map_err(|error| error.to_string())
        };
        for (mode, name, good) in [
            (Mode::VerifyFull, "db.test", true),
            (Mode::VerifyFull, "other.test", false),
            (Mode::VerifyCa, "other.test", true),
        ] {
            assert_eq!(judged(mode, &known, name).is_ok(), good, "{mode:?} {name}");
        }
        let nobody = RootCertStore::empty();
        for mode in [Mode::VerifyCa, Mode::VerifyFull] {
            judged(mode, &strangers, "db.test").unwrap_err();
            let problem = judged(mode, &nobody, "db.test").unwrap_err();
            assert!(problem.contains("--datastore-cafile"), "{problem}");
        }
        assert_eq!(judged(Mode::Require, &nobody, "db.test"), Ok(()));
    }
}
