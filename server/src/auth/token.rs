//! Service-account tokens: signed with the cluster's key, verified with any key it has had.
//!
//! Compact JWS, ES256 (our key) or RS256 (K3s' key). Knows signatures, issuer and time; whether the account and what the
//! token is bound to still exist is `who`'s to ask.
//!
//! Source: RFC 7515, RFC 7518; Kubernetes v1.36 `pkg/serviceaccount`.

use agent::wire::object::text;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
};
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// How far a peer's clock may be off when a token says "not before" or "expired".
const LEEWAY_S: i64 = 60;
/// Longer is no token of ours.
const MAX_TOKEN: usize = 16 * 1024;

/// Why keys or a token are no good.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    /// The key file holds no usable private key.
    #[error("no usable private key in the key file")]
    NoKey,
    /// Not a token of this kind at all: another authenticator may know it.
    #[error("not a service account token")]
    Foreign,
    /// No key of ours has signed it.
    #[error("the signature is not ours")]
    Signature,
    /// Past its time, or before it.
    #[error("the token is outside its time")]
    Time,
    /// Signing failed.
    #[error("the token could not be signed")]
    Sign,
}

/// What a token says.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Claims {
    /// For whom it is meant.
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    /// Seconds since 1970; 0 is never (legacy tokens).
    #[serde(skip_serializing_if = "is_zero")]
    pub exp: i64,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "is_zero")]
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Id of the token.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jti: String,
    /// `{namespace, serviceaccount {name, uid}, pod, node, secret}`.
    #[serde(rename = "kubernetes.io", skip_serializing_if = "Value::is_null")]
    pub kubernetes: Value,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "is_zero")]
    pub nbf: i64,
    /// `system:serviceaccount:NS:NAME`.
    pub sub: String,
}

enum Signing {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// A public key as ring wants it.
struct Public {
    kid: String,
    rsa: bool,
    /// An uncompressed point, or a PKCS#1 key.
    key: Vec<u8>,
}

/// The cluster's token keys: the first signs, all verify.
pub struct Keys {
    issuer: String,
    signing: Signing,
    public: Vec<Public>,
    random: SystemRandom,
}

impl Keys {
    /// Reads a PEM file of private keys (SEC1, PKCS#1 or PKCS#8) and public keys; the first private key signs.
    ///
    /// # Errors
    /// [`TokenError::NoKey`] without a usable private key.
    pub fn from_pem(pem: &[u8], issuer: &str) -> Result<Self, TokenError> {
        let mut signing = None;
        let mut public = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let Ok((kind, der)) = section else { continue };
            if kind == SectionKind::PublicKey {
                public.extend(Public::from_spki(&der));
            } else if let Some(key) = Signing::read(kind, &der) {
                public.push(key.public());
                signing.get_or_insert(key);
            }
        }
        Ok(Self {
            issuer: issuer.to_owned(),
            signing: signing.ok_or(TokenError::NoKey)?,
            public,
            random: SystemRandom::new(),
        })
    }

    /// Who signs: the `iss` of new tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Signs.
    ///
    /// # Errors
    /// [`TokenError::Sign`] when the random source fails.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let kid = self.public.first().map_or("", |key| &key.kid);
        let header = json!({"alg": self.signing.algorithm(), "kid": kid});
        let payload = serde_json::to_vec(claims).map_err(|_| TokenError::Sign)?;
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(payload, &mut token);
        let signature = self.signing.sign(token.as_bytes(), &self.random)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    /// Checks signature, issuer and time.
    ///
    /// # Errors
    /// [`TokenError::Foreign`] for what is not a token of this issuer; else what is wrong with it.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Foreign);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Foreign)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Foreign)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Foreign);
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Foreign)?;
        let claims: Claims = serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Foreign)?;
        let legacy = claims.iss == "kubernetes/serviceaccount" && claims.exp == 0;
        if claims.iss != self.issuer && !legacy {
            return Err(TokenError::Foreign);
        }
        let rsa = match text(&header, &["alg"]) {
            "RS256" => true,
            "ES256" => false,
            _ => return Err(TokenError::Foreign),
        };
        let signature = decode(signature)?;
        let genuine = |key: &&Public| key.rsa == rsa && key.verifies(signed.as_bytes(), &signature);
        self.public.iter().find(genuine).ok_or(TokenError::Signature)?;
        let now = now.as_second();
        let expired = !legacy && now > claims.exp.saturating_add(LEEWAY_S);
        if expired || claims.nbf > now.saturating_add(LEEWAY_S) {
            return Err(TokenError::Time);
        }
        Ok(claims)
    }

    /// Names of the signature algorithms in use, each once.
    pub fn algorithms(&self) -> Vec<&'static str> {
        let name = |key: &Public| if key.rsa { "RS256" } else { "ES256" };
        let mut names: Vec<&str> = self.public.iter().map(name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The public keys as a JSON Web Key Set, `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.public.iter().map(Public::jwk).collect::<Vec<_>>()})
    }
}

impl Signing {
    fn read(kind: SectionKind, der: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let ecdsa = |pkcs8: &[u8]| EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random).ok();
        match kind {
            SectionKind::EcPrivateKey => ecdsa(&pkcs8_of_sec1(der)).map(Self::Ecdsa),
            SectionKind::RsaPrivateKey => RsaKeyPair::from_der(der).ok().map(Self::Rsa),
            SectionKind::PrivateKey => ecdsa(der)
                .map(Self::Ecdsa)
                .or_else(|| RsaKeyPair::from_pkcs8(der).ok().map(Self::Rsa)),
            _ => None,
        }
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Ecdsa(_) => "ES256",
            Self::Rsa(_) => "RS256",
        }
    }

    fn sign(&self, message: &[u8], random: &SystemRandom) -> Result<Vec<u8>, TokenError> {
        match self {
            Self::Ecdsa(key) => key
                .sign(random, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| TokenError::Sign),
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, random, message, &mut signature)
                    .map_err(|_| TokenError::Sign)?;
                Ok(signature)
            }
        }
    }

    fn public(&self) -> Public {
        match self {
            Self::Ecdsa(key) => Public::new(false, key.public_key().as_ref()),
            Self::Rsa(key) => Public::new(true, key.public_key().as_ref()),
        }
    }
}

impl Public {
    fn new(rsa: bool, key: &[u8]) -> Self {
        let spki = spki(rsa, key);
        let digest = ring::digest::digest(&ring::digest::SHA256, &spki);
        Self {
            kid: URL_SAFE_NO_PAD.encode(digest),
            rsa,
            key: key.to_vec(),
        }
    }

    fn from_spki(der: &[u8]) -> Option<Self> {
        let (_, info) = SubjectPublicKeyInfo::from_der(der).ok()?;
        let rsa = info.algorithm.algorithm.to_id_string() == "1.2.840.113549.1.1.1";
        Some(Self::new(rsa, &info.subject_public_key.data))
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = if self.rsa {
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.key).verify(message, signature)
        } else {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.key).verify(message, signature)
        };
        verified.is_ok()
    }

    fn jwk(&self) -> Value {
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        if self.rsa {
            let spki = spki(true, &self.key);
            let parsed = SubjectPublicKeyInfo::from_der(&spki).ok();
            let (n, e) = match parsed.as_ref().and_then(|(_, info)| info.parsed().ok()) {
                Some(PublicKey::RSA(key)) => (number(unsigned(key.modulus)), number(unsigned(key.exponent))),
                _ => Default::default(),
            };
            return json!({"use": "sig", "kty": "RSA", "kid": self.kid, "alg": "RS256", "n": n, "e": e});
        }
        let (x, y) = self
            .key
            .get(1..)
            .unwrap_or_default()
            .split_at_checked(32)
            .unwrap_or_default();
        json!({"use": "sig", "kty": "EC", "kid": self.kid, "crv": "P-256", "alg": "ES256", "x": number(x), "y": number(y)})
    }
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(input)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

/// A DER element: tag, length, content.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = content.len().to_be_bytes();
            let significant: Vec<u8> = bytes.iter().copied().skip_while(|&byte| byte == 0).collect();
            out.push(0x80 | u8::try_from(significant.len()).unwrap_or(0));
            out.extend(significant);
        }
    }
    out.extend(content);
    out
}

const OID_EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

fn pkcs8_of_sec1(sec1: &[u8]) -> Vec<u8> {
    let algorithm = der(0x30, &[OID_EC_PUBLIC_KEY, OID_P256]);
    der(0x30, &[&[0x02, 0x01, 0x00], &algorithm, &der(0x04, &[sec1])])
}

fn spki(rsa: bool, key: &[u8]) -> Vec<u8> {
    let algorithm = if rsa {
        der(0x30, &[OID_RSA, &[0x05, 0x00]])
    } else {
        der(0x30, &[OID_EC_PUBLIC_KEY, OID_P256])
    };
    der(0x30, &[&algorithm, &der(0x03, &[&[0], key])])
}

/// A random UUID, version 4.
pub fn uuid() -> String {
    let mut bytes = [0_u8; 16];
    // Without a random source TLS would not run either; an all-zero id is then the least of it.
    let _ = ring::rand::SecureRandom::fill(&SystemRandom::new(), &mut bytes);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

/// A DER integer without the zero that keeps it positive.
fn unsigned(bytes: &[u8]) -> &[u8] {
    match bytes {
        [0, rest @ ..] => rest,
        bytes => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(issuer: &str) -> Keys {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let text = base64::engine::general_purpose::STANDARD.encode(pkcs8.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
        Keys::from_pem(pem.as_bytes(), issuer).unwrap()
    }

    fn claims() -> Claims {
        Claims {
            aud: vec!["api".into()],
            exp: 2000,
            iat: 1000,
            iss: "us".into(),
            jti: uuid(),
            kubernetes: json!({"namespace": "x"}),
            nbf: 1000,
            sub: "system:serviceaccount:x:s".into(),
        }
    }

    #[test]
    fn a_token_is_what_was_signed_while_it_lasts() {
        let keys = keys("us");
        let token = keys.sign(&claims()).unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(keys.verify(&token, at(1500)).unwrap().sub, "system:serviceaccount:x:s");
        assert_eq!(keys.verify(&token, at(2061)), Err(TokenError::Time));
        assert_eq!(keys.verify(&token, at(900)), Err(TokenError::Time));
    }

    #[test]
    fn a_token_of_another_key_issuer_or_content_is_refused() {
        let (mine, other) = (keys("us"), keys("us"));
        let now = Timestamp::from_second(1500).unwrap();
        let token = mine.sign(&claims()).unwrap();
        assert_eq!(other.verify(&token, now), Err(TokenError::Signature));
        assert_eq!(keys("them").verify(&token, now), Err(TokenError::Foreign));
        let (head, signature) = token.rsplit_once('.').unwrap();
        let mut forged = claims();
        forged.sub = "system:serviceaccount:kube-system:admin".into();
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&forged).unwrap());
        let (header, _) = head.split_once('.').unwrap();
        assert_eq!(
            mine.verify(&format!("{header}.{payload}.{signature}"), now),
            Err(TokenError::Signature)
        );
        for text in ["", "a", "a.b", "a.b.c", "..", "abcdef.0123456789abcdef"] {
            assert_eq!(mine.verify(text, now), Err(TokenError::Foreign), "{text}");
        }
    }

    #[test]
    fn keys_written_by_openssl_are_read() {
        let sec1 = "-----BEGIN EC PRIVATE KEY-----\n\
            MHcCAQEEIBFXNAsL3NOd3NSVQQ6WjmodAb5HpfCpNVYnwKikD8kYoAoGCCqGSM49\n\
            AwEHoUQDQgAEzahU5Lbalb5UG/fGayVFQPY1raqbGgbYIhhzZBl9V/em6wRm99bf\n\
            AUsLKWLGv/0QAr7emDJNjdojBDJMUO07Cg==\n\
            -----END EC PRIVATE KEY-----\n";
        let keys = Keys::from_pem(sec1.as_bytes(), "us").unwrap();
        let token = keys.sign(&claims()).unwrap();
        assert!(keys.verify(&token, Timestamp::from_second(1500).unwrap()).is_ok());
        assert_eq!(Keys::from_pem(b"no PEM", "us").err(), Some(TokenError::NoKey));
    }

    #[test]
    fn a_uuid_is_a_random_version_four() {
        let (one, two) = (uuid(), uuid());
        assert_ne!(one, two);
        assert_eq!((one.len(), one.get(14..15)), (36, Some("4")));
    }
}
