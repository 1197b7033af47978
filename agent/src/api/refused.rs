//! Whether a server refused this node's certificate in the handshake; others take any and answer 401 (`client`).
//!
//! In TLS 1.3 the client has finished its handshake by then: the refusal is the answer to its first request.

use std::error::Error;
use std::io;

use rustls::AlertDescription;

use super::transport::TransportError;

/// The server said no to the certificate that it was shown.
pub fn is_refusal(error: &TransportError) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        // The source of an I/O error is that of what it wraps: what it wraps is asked first.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = wrapped.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = tls.or_else(|| error.downcast_ref()) {
            return is_about_certificate(*alert);
        }
        next = error.source();
    }
    false
}

/// RFC 8446, section 6.2. Go says `bad_certificate` where others are more precise.
const fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::crypto::ring::default_provider;
    use rustls::server::WebPkiClientVerifier;
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use rustls_pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;
    use tokio_rustls::TlsAcceptor;

    use crate::api::{Client, Endpoint};

    struct Pki {
        issuer: Issuer<'static, KeyPair>,
        roots: Arc<RootCertStore>,
    }

    impl Pki {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let mut roots = RootCertStore::empty();
            roots.add(params.self_signed(&key).unwrap().der().clone()).unwrap();
            Self {
                issuer: Issuer::new(params, key),
                roots: Arc::new(roots),
            }
        }

        fn sign(&self, from: i32) -> (Certificate, PrivateKeyDer<'static>) {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
            (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(4000, 1, 1));
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            (certificate, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        }

        /// Answers each request with an empty object.
        async fn serve(&self, tasks: &mut JoinSet<()>) -> u16 {
            self.answer(tasks, "200 OK").await
        }

        /// Answers each request with this status.
        async fn answer(&self, tasks: &mut JoinSet<()>, status: &str) -> u16 {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
            let (certificate, key) = self.sign(2000);
            let provider = Arc::new(default_provider());
            let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&provider));
            let config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_client_cert_verifier(clients.build().unwrap())
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            tasks.spawn(async move {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    let Ok(mut tls) = acceptor.accept(tcp).await else {
                        continue;
                    };
                    let _ = tls.read(&mut [0; 4096]).await;
                    let _ = tls.write_all(answer.as_bytes()).await;
                    let _ = tls.shutdown().await;
                }
            });
            port
        }

        fn client(&self, port: u16, from: i32) -> Client {
            Client::new(self.endpoint(port, from))
        }

        fn endpoint(&self, port: u16, from: i32) -> Endpoint {
            let (certificate, key) = self.sign(from);
            let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(Arc::clone(&self.roots))
                .with_client_auth_cert(vec![certificate.der().clone()], key)
                .unwrap();
            Endpoint {
                host: "127.0.0.1".into(),
                port,
                tls: Some(Arc::new(tls)),
            }
        }
    }

    #[tokio::test]
    async fn a_refused_certificate_is_noticed_and_no_other_failure_is() {
        let (pki, mut tasks) = (Pki::new(), JoinSet::new());
        let port = pki.serve(&mut tasks).await;
        let good = pki.client(port, 2000);
        let good_refusals = good.refusals();
        good.get("/x").await.unwrap();
        let nobody = pki.client(1, 2000);
        let nobody_refusals = nobody.refusals();
        nobody.get("/x").await.unwrap_err();
        assert!(!good_refusals.has_changed().unwrap() && !nobody_refusals.has_changed().unwrap());
        // Signed by a clock that was ahead.
        let early = pki.client(port, 3000);
        let mut refusals = early.refusals();
        let asking = async {
            // A reset may swallow an alert now and then.
            loop {
                early.get("/x").await.unwrap_err();
                let _ = early.watch("/x?watch=1").await.err().unwrap();
            }
        };
        tokio::select! {
            () = asking => {}
            changed = refusals.changed() => changed.unwrap(),
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("nobody noticed"),
        }
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn a_certificate_that_is_taken_in_the_handshake_and_answered_with_401_is_refused_too() {
        let (pki, mut tasks) = (Pki::new(), JoinSet::new());
        for (status, refused) in [("401 Unauthorized", true), ("403 Forbidden", false)] {
            let port = pki.answer(&mut tasks, status).await;
            let client = pki.client(port, 2000);
            let mut refusals = client.refusals();
            client.get("/x").await.unwrap_err();
            assert_eq!(refusals.has_changed().unwrap(), refused, "{status}");
            refusals.mark_unchanged();
            let _ = client.watch("/x?watch=1").await.err().unwrap();
            assert_eq!(refusals.has_changed().unwrap(), refused, "{status} to a watch");
            // Then it is the token that is refused.
            let bearer = Client::with_authorization(pki.endpoint(port, 2000), Some("Bearer x".into()));
            let refusals = bearer.refusals();
            bearer.get("/x").await.unwrap_err();
            assert!(!refusals.has_changed().unwrap(), "{status} to a token");
        }
        tasks.shutdown().await;
    }
}
