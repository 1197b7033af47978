//! Whom the agent trusts over TLS, and as whom it shows itself.
//!
//! One exception to verification exists, [`anyone`]: the CA itself is fetched with it and then judged by the token's hash.

use std::sync::Arc;

use rustls::client::{Resumption, VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::clock::{Clock, Judge};
use crate::api::Anyone;

/// Sessions kept for a cheaper reconnect; there is a handful of servers.
const RESUMABLE: usize = 4;

/// What is on disk, or came from the server, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// No certificate in a bundle.
    #[error("there is no certificate in what the server sent as its CA")]
    NoCa,
    /// Not PEM, or no certificate.
    #[error("certificate or key is damaged: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// rustls refuses it.
    #[error("certificate or key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// rustls refuses the CA.
    #[error("the CA cannot be used: {0}")]
    Ca(#[from] VerifierBuilderError),
}

/// A certificate chain and its key, PEM.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    /// Chain, leaf first.
    pub chain: &'a [u8],
    /// Key.
    pub key: &'a [u8],
}

/// Trusts servers of this CA bundle (PEM), as of the time that `clock` says, and shows a client certificate, if any.
///
/// # Errors
/// [`TrustError`].
pub fn bundle(ca: &[u8], shown: Option<Shown<'_>>, clock: &Arc<Clock>) -> Result<Arc<ClientConfig>, TrustError> {
    let mut roots = RootCertStore::empty();
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(ca).collect::<Result<_, _>>()?;
    let (taken, _) = roots.add_parsable_certificates(certificates);
    if taken == 0 {
        return Err(TrustError::NoCa);
    }
    let judged = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
    let builder = ClientConfig::builder_with_details(provider(), clock.system())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Judge::new(judged, Arc::clone(clock))));
    let config = match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => {
            let chain = CertificateDer::pem_slice_iter(shown.chain).collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(shown.key)?)?
        }
    };
    Ok(finished(config))
}

/// Trusts anyone: only for fetching the CA, which is judged afterwards.
///
/// # Errors
/// [`TrustError::Tls`].
pub fn anyone() -> Result<Arc<ClientConfig>, TrustError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone::new(provider())))
        .with_no_client_auth();
    Ok(finished(config))
}

/// The server must speak HTTP/1.1: websockets are upgraded from it, and the client speaks nothing else.
fn finished(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(RESUMABLE);
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
