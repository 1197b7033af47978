//! TLS towards a datastore, from the files an operator names.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::endpoint::Tls;

/// Where Linux distributions keep the authorities they trust; the first that is there counts. Go's `crypto/x509`,
/// `root_linux.go`, has these, too.
const SYSTEM: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/cert.pem",
];

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in a file.
    #[error("{} holds no {wanted} in PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// Why.
        source: Option<pem::Error>,
    },
    /// Half a pair.
    #[error("--datastore-certfile and --datastore-keyfile belong together")]
    Pair,
    /// They do not fit.
    #[error("the certificate or key for the datastore cannot be used")]
    Unusable(#[source] rustls::Error),
}

impl TlsError {
    /// With its cause, for those who can keep only words.
    pub fn whole(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// How we meet a datastore: it is checked with the CA given, or else with the system's; we show the certificate given.
/// `protocols`: of ALPN.
///
/// # Errors
/// [`TlsError`].
pub fn client_config(tls: &Tls, protocols: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = match &tls.ca {
        Some(path) => authorities(path)?,
        None => system()?,
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Unusable)?
        .with_root_certificates(roots);
    let mut config = shown(builder, tls)?;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Completes a configuration with the certificate that we show, if one is given.
///
/// # Errors
/// [`TlsError`].
pub fn shown(builder: ConfigBuilder<ClientConfig, WantsClientCert>, tls: &Tls) -> Result<ClientConfig, TlsError> {
    match pair(tls)? {
        Some((cert, key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(TlsError::Unusable),
        None => Ok(builder.with_no_client_auth()),
    }
}

/// The files of our certificate and its key.
///
/// # Errors
/// [`TlsError::Pair`] when only one is given.
pub fn pair(tls: &Tls) -> Result<Option<(&Path, &Path)>, TlsError> {
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Ok(Some((cert, key))),
        (None, None) => Ok(None),
        (Some(_), None) | (None, Some(_)) => Err(TlsError::Pair),
    }
}

/// Those whom the file at `path` trusts.
///
/// # Errors
/// [`TlsError`].
pub fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(TlsError::Unusable)?;
    }
    Ok(roots)
}

/// Those whom this machine trusts; none where it keeps no bundle.
///
/// # Errors
/// [`TlsError`].
pub fn system() -> Result<RootCertStore, TlsError> {
    let bundle = SYSTEM.iter().map(Path::new).find(|path| path.exists());
    let found = bundle.map(certificates).transpose()?;
    let mut roots = RootCertStore::empty();
    // Some in there are older than our rules: left out.
    roots.add_parsable_certificates(found.unwrap_or_default());
    Ok(roots)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File {
        path: path.to_owned(),
        source,
    })
}

/// What is in a file of certificates, of which there is at least one.
///
/// # Errors
/// [`TlsError`].
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Pem {
        path: path.to_owned(),
        wanted: "certificate",
        source,
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let found = found.map_err(|error| wrong(Some(error)))?;
    if found.is_empty() { Err(wrong(None)) } else { Ok(found) }
}

/// The key in a file.
///
/// # Errors
/// [`TlsError`].
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        wanted: "private key",
        source: Some(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn files_that_cannot_serve_are_named() {
        let folder = Scratch::new("store-tls");
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let (key_path, cert_path) = (folder.0.join("a.key"), folder.0.join("a.crt"));
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        std::fs::write(&cert_path, cert.pem()).unwrap();
        let with = |ca: &PathBuf, cert: Option<&PathBuf>, key: Option<&PathBuf>| Tls {
            ca: Some(ca.clone()),
            cert: cert.cloned(),
            key: key.cloned(),
        };
        let good = client_config(&with(&cert_path, Some(&cert_path), Some(&key_path)), &[b"h2"]).unwrap();
        assert_eq!(good.alpn_protocols, [b"h2".to_vec()]);
        let missing = folder.0.join("none");
        for (tls, wanted) in [
            (with(&missing, None, None), "none"),
            (with(&key_path, None, None), "a.key holds no certificate"),
            (with(&cert_path, Some(&cert_path), None), "belong together"),
            (
                with(&cert_path, Some(&cert_path), Some(&cert_path)),
                "a.crt holds no private key",
            ),
        ] {
            let problem = client_config(&tls, &[]).unwrap_err().to_string();
            assert!(problem.contains(wanted), "{problem}");
        }
    }
}
