//! TLS without asking who is there: for HTTPS probes of pods, and for nothing else.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::ring;

use crate::api::Anyone;

/// A client that takes any certificate.
///
/// # Errors
/// rustls' own, should its provider know no version of TLS.
pub fn client_config() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone::new(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}
