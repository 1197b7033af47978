//! The key of a certificate and the request for it (PKCS #10), by hand: both are a few fixed bytes around a P-256 point,
//! and a library for them is a hundred times that.
//!
//! Keys are kept as K3s keeps them, PEM `EC PRIVATE KEY`. Source: RFC 5915, RFC 2986, RFC 5480.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

/// `SEQUENCE { INTEGER 1, OCTET STRING (32) …`
const SEC1_HEAD: [u8; 7] = [0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20];
/// `… [0] { OID prime256v1 }, [1] { BIT STRING (65) … } }`
const SEC1_MIDDLE: [u8; 17] = [
    0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0xa1, 0x44, 0x03, 0x42, 0x00,
];
/// `SEQUENCE { INTEGER 0, SEQUENCE {}, SEQUENCE { SEQUENCE { ecPublicKey, prime256v1 }, BIT STRING …`: no subject.
const REQUEST_HEAD: [u8; 33] = [
    0x30, 0x62, 0x02, 0x01, 0x00, 0x30, 0x00, 0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02,
    0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// `… [0] {} }`: no attributes.
const REQUEST_TAIL: [u8; 2] = [0xa0, 0x00];
/// `SEQUENCE { ecdsa-with-SHA256 }`.
const SIGNED_WITH: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// Where the private part of a key pair that ring made lies. Source: ring 0.17, `ecPublicKey_p256_pkcs8_v1_template.der`.
const PKCS8_PRIVATE: std::ops::Range<usize> = 36..68;

/// The system gave no random numbers, or what it gave is no key.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("cannot make a key: the kernel gives no random numbers")]
pub struct KeyError;

/// A P-256 key pair.
pub struct Key {
    pair: EcdsaKeyPair,
    pem: String,
}

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn generate() -> Result<Self, KeyError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
        let document = document.map_err(|_| KeyError)?;
        let secret = document.as_ref().get(PKCS8_PRIVATE).ok_or(KeyError)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref(), &SystemRandom::new());
        let pair = pair.map_err(|_| KeyError)?;
        let der = [&SEC1_HEAD, secret, &SEC1_MIDDLE, pair.public_key().as_ref()].concat();
        Ok(Self {
            pem: pem("EC PRIVATE KEY", &der),
            pair,
        })
    }

    /// One that was kept; `None` for anything but the PEM of a P-256 key in the form written here and by Go.
    pub fn read(text: &[u8]) -> Option<Self> {
        let PrivateKeyDer::Sec1(der) = PrivateKeyDer::from_pem_slice(text).ok()? else {
            return None;
        };
        let rest = der.secret_sec1_der().strip_prefix(&SEC1_HEAD)?;
        let (secret, rest) = rest.split_at_checked(32)?;
        let public = rest.strip_prefix(&SEC1_MIDDLE)?;
        let random = SystemRandom::new();
        let pair =
            EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_ASN1_SIGNING, secret, public, &random);
        Some(Self {
            pair: pair.ok()?,
            pem: pem("EC PRIVATE KEY", der.secret_sec1_der()),
        })
    }

    /// PEM, to be kept.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// A request for a certificate of this key, DER. It names nobody: the server decides what the certificate says.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn request(&self) -> Result<Vec<u8>, KeyError> {
        let body = [&REQUEST_HEAD, self.pair.public_key().as_ref(), &REQUEST_TAIL].concat();
        let signature = self.pair.sign(&SystemRandom::new(), &body).map_err(|_| KeyError)?;
        let bits = [&[0], signature.as_ref()].concat();
        der(0x30, &[body.as_slice(), &SIGNED_WITH, &der(0x03, &bits)?].concat())
    }
}

/// Tag, length, content; up to 255 bytes.
fn der(tag: u8, content: &[u8]) -> Result<Vec<u8>, KeyError> {
    let length = u8::try_from(content.len()).map_err(|_| KeyError)?;
    let head: &[u8] = if length < 128 {
        &[tag, length]
    } else {
        &[tag, 0x81, length]
    };
    Ok([head, content].concat())
}

fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for (count, letter) in STANDARD.encode(der).chars().enumerate() {
        if count > 0 && count % 64 == 0 {
            text.push('\n');
        }
        text.push(letter);
    }
    text + &format!("\n-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

    use super::*;

    #[test]
    fn a_kept_key_is_the_same_key() {
        let key = Key::generate().unwrap();
        let again = Key::read(key.to_pem().as_bytes()).unwrap();
        assert_eq!(again.to_pem(), key.to_pem());
        assert_eq!(again.pair.public_key().as_ref(), key.pair.public_key().as_ref());
        let der = PrivateKeyDer::from_pem_slice(key.to_pem().as_bytes()).unwrap();
        rustls::crypto::ring::sign::any_supported_type(&der).unwrap();
    }

    #[test]
    fn other_texts_are_no_keys() {
        let pem = Key::generate().unwrap().to_pem().to_owned();
        for text in ["", "nonsense", &pem.replace("EC PRIVATE", "PRIVATE"), &pem[..100]] {
            assert!(Key::read(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn a_request_is_signed_and_names_nobody() {
        for _ in 0..20 {
            let key = Key::generate().unwrap();
            let der = key.request().unwrap();
            let (rest, request) = X509CertificationRequest::from_der(&der).unwrap();
            assert!(rest.is_empty());
            let info = &request.certification_request_info;
            assert_eq!(info.subject.iter().count(), 0);
            assert_eq!(
                info.subject_pki.subject_public_key.data.as_ref(),
                key.pair.public_key().as_ref()
            );
            let unsigned = ring::signature::UnparsedPublicKey::new(
                &ring::signature::ECDSA_P256_SHA256_ASN1,
                key.pair.public_key().as_ref(),
            );
            unsigned.verify(info.raw, &request.signature_value.data).unwrap();
        }
    }
}
