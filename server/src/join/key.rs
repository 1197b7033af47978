//! Private keys as K3s keeps them: ECDSA P-256, PEM `EC PRIVATE KEY` (SEC 1).
//!
//! Makes keys, reads whatever an operator may have put there (SEC 1, PKCS #8, PKCS #1), and hands them to rcgen and
//! rustls, which want PKCS #8. The only file that knows the layouts; it never prints a key.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A private key that can sign, and its text on disk.
pub struct PrivateKey {
    pair: KeyPair,
    pem: String,
}

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("not a usable private key (wanted: PEM with an ECDSA P-256 or P-384, Ed25519 or RSA key): {0}")]
pub struct KeyError(String);

impl PrivateKey {
    /// A new ECDSA P-256 key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| KeyError(error.to_string()))?;
        let pem = sec1_pem(&pair).ok_or_else(|| KeyError("unexpected key layout".to_owned()))?;
        Ok(Self { pair, pem })
    }

    /// Reads the first private key of a PEM text.
    ///
    /// # Errors
    /// When there is none or ring cannot use it.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| KeyError(error.to_string()))?;
        let pkcs8 = to_pkcs8(&der).ok_or_else(|| KeyError("unknown curve".to_owned()))?;
        let pair = KeyPair::try_from(pkcs8.as_slice()).map_err(|error| KeyError(error.to_string()))?;
        let pem = pem.to_owned();
        Ok(Self { pair, pem })
    }

    /// What is on disk.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// For signing and for its public half.
    pub fn pair(&self) -> &KeyPair {
        &self.pair
    }

    /// For rustls.
    pub fn der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialized_der().to_vec()))
    }

    /// DER of the public half, `SubjectPublicKeyInfo`.
    pub fn public(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// A block of PEM with lines of 64 characters.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for (at, character) in text.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem.push_str(&format!("\n-----END {label}-----\n"));
    pem
}

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const RSA_ENCRYPTION_NULL: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];
const VERSION_0: &[u8] = &[0x02, 0x01, 0x00];
const VERSION_1: &[u8] = &[0x02, 0x01, 0x01];

/// PKCS #8 of any of the three encodings; `None` for a curve that ring does not know.
fn to_pkcs8(key: &PrivateKeyDer<'_>) -> Option<Vec<u8>> {
    match key {
        PrivateKeyDer::Pkcs8(der) => Some(der.secret_pkcs8_der().to_vec()),
        PrivateKeyDer::Pkcs1(der) => {
            let algorithm = tlv(0x30, &[RSA_ENCRYPTION_NULL]);
            let key = tlv(0x04, &[der.secret_pkcs1_der()]);
            Some(tlv(0x30, &[VERSION_0, &algorithm, &key]))
        }
        PrivateKeyDer::Sec1(der) => {
            let der = der.secret_sec1_der();
            let holds = |oid: &[u8]| der.windows(oid.len()).any(|window| window == oid);
            let curve = [P256, P384].into_iter().find(|oid| holds(oid))?;
            let algorithm = tlv(0x30, &[EC_PUBLIC_KEY, curve]);
            let key = tlv(0x04, &[der]);
            Some(tlv(0x30, &[VERSION_0, &algorithm, &key]))
        }
        _ => None,
    }
}

/// SEC 1 (RFC 5915) with curve and public key, as Go's `x509.MarshalECPrivateKey` writes it. The secret number lies at a
/// fixed place of the PKCS #8 text that ring makes.
fn sec1_pem(pair: &KeyPair) -> Option<String> {
    let secret = pair.serialized_der().get(36..68)?;
    let secret = tlv(0x04, &[secret]);
    let curve = tlv(0xa0, &[P256]);
    let public = tlv(0x03, &[&[0], pair.public_key_raw()]);
    let public = tlv(0xa1, &[&public]);
    Some(pem(
        "EC PRIVATE KEY",
        &tlv(0x30, &[VERSION_1, &secret, &curve, &public]),
    ))
}

/// One DER element.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len().to_be_bytes();
    let significant: Vec<u8> = length.iter().copied().skip_while(|&byte| byte == 0).collect();
    let mut der = vec![tag];
    match (content.len(), u8::try_from(significant.len())) {
        (0, _) => der.push(0),
        (1..=127, _) => der.extend(&significant),
        (_, Ok(bytes)) => {
            der.push(0x80 | bytes);
            der.extend(&significant);
        }
        (_, Err(_)) => {}
    }
    der.extend(content);
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_written_as_k3s_writes_it_and_read_back() {
        let key = PrivateKey::generate().unwrap();
        assert!(
            key.pem().starts_with("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEI"),
            "121 bytes of SEC 1"
        );
        assert!(key.pem().ends_with("-----END EC PRIVATE KEY-----\n"));
        let again = PrivateKey::from_pem(key.pem()).unwrap();
        assert_eq!(again.public(), key.public());
    }

    #[test]
    fn keys_of_openssl_are_read() {
        for (name, pem) in [
            (
                "P-256, SEC 1 with parameters first",
                include_str!("vectors/p256.sec1.pem"),
            ),
            ("P-384, SEC 1", include_str!("vectors/p384.sec1.pem")),
            ("P-256, PKCS #8", include_str!("vectors/p256.pkcs8.pem")),
            ("RSA, PKCS #1", include_str!("vectors/rsa.pkcs1.pem")),
        ] {
            PrivateKey::from_pem(pem).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert!(PrivateKey::from_pem("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n").is_err());
        assert!(PrivateKey::from_pem("").is_err());
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(format!("{:?}", PrivateKey::generate().unwrap()), "PrivateKey(…)");
    }
}
