//! One certificate: what is to be in it, signing it, and whether one on disk still is what it should be.
//!
//! Time is an argument; nothing here touches a disk. What certificates exist is `pki`'s table. Sources: K3s v1.36
//! `pkg/daemons/control/deps` and dynamiclistener `cert/cert.go`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use agent::wire::join::hex;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::key::{PrivateKey, pem};

/// Clocks differ; a certificate made now must be good on a box that is a little behind.
pub(super) const BACKDATE_SECONDS: i64 = 3600;

/// Ten years, as K3s' `CACertDuration`.
const CA_SECONDS: i64 = 3650 * 86_400;

/// One year, as K3s' leaf certificates.
const LEAF_SECONDS: i64 = 365 * 86_400;

/// A leaf nearer to its end than this is signed anew at start (K3s since May 2025).
const RENEW_SECONDS: i64 = 120 * 86_400;

/// What a certificate is good for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Usage {
    /// TLS client.
    Client,
    /// TLS server.
    Server,
    /// Both.
    Both,
}

/// What is to be in a leaf certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// `CN`.
    pub name: String,
    /// `O`.
    pub groups: Vec<String>,
    /// What for.
    pub usage: Usage,
    /// Host names and addresses.
    pub sans: BTreeSet<String>,
}

impl Wanted {
    /// A client: name and groups.
    pub fn client(name: &str, groups: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            groups: groups.iter().map(|&group| group.to_owned()).collect(),
            usage: Usage::Client,
            sans: BTreeSet::new(),
        }
    }

    /// A server at these names and addresses.
    pub fn server(name: &str, sans: impl IntoIterator<Item = String>) -> Self {
        Self {
            name: name.to_owned(),
            groups: Vec::new(),
            usage: Usage::Server,
            sans: sans.into_iter().collect(),
        }
    }
}

/// A certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CertificateError(pub String);

impl From<rcgen::Error> for CertificateError {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

/// A certificate authority: its certificates as on disk, signing one first, and its key.
pub struct Authority {
    bundle: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
}

impl Authority {
    /// A new self-signed authority, named `prefix@unixtime`.
    ///
    /// # Errors
    /// When a key or a number cannot be had.
    pub fn create(prefix: &str, key: PrivateKey, now: Timestamp) -> Result<Self, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&format!("{prefix}@{}", now.as_second()), &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        set_validity(
            &mut params,
            now.as_second() - BACKDATE_SECONDS,
            now.as_second() + CA_SECONDS,
        );
        let certificate = params.self_signed(key.pair())?;
        Self::load(pem("CERTIFICATE", certificate.der()), key)
    }

    /// An authority from disk.
    ///
    /// # Errors
    /// When the bundle has no certificate, or its first one is of another key.
    pub fn load(bundle: String, key: PrivateKey) -> Result<Self, CertificateError> {
        let chain = certificates(&bundle)?;
        let first = chain
            .first()
            .ok_or_else(|| CertificateError("there is no certificate in it".to_owned()))?;
        if parse(first)?.public_key().raw != key.public() {
            return Err(CertificateError(
                "certificate and key do not belong together".to_owned(),
            ));
        }
        Ok(Self { bundle, chain, key })
    }

    /// The bundle, byte for byte as on disk.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// Its certificates, the signing one first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Its key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Seconds since 1970 at which it begins to be valid: no clock that is right shows less.
    pub fn since(&self) -> i64 {
        self.chain.first().and_then(|der| begins(der)).unwrap_or_default()
    }

    /// The signing certificate alone, PEM.
    pub fn first(&self) -> String {
        self.chain
            .first()
            .map(|der| pem("CERTIFICATE", der))
            .unwrap_or_default()
    }

    /// Signs; answers with the leaf and then this authority's certificates, PEM.
    ///
    /// `floor`: what time it is at least, in seconds since 1970. Whoever is behind it signs from when his own clock says
    /// that it is until a year after the floor: good by a right clock as well as by his.
    ///
    /// # Errors
    /// When a name cannot be put into a certificate.
    pub fn sign(
        &self,
        wanted: &Wanted,
        key: &impl PublicKeyData,
        now: Timestamp,
        floor: i64,
    ) -> Result<String, CertificateError> {
        let issuer_der = self
            .chain
            .first()
            .ok_or_else(|| CertificateError("no issuer".to_owned()))?;
        let issuer: Issuer<'_, &KeyPair> = Issuer::from_ca_cert_der(issuer_der, self.key.pair())?;
        let validity = parse(issuer_der)?.validity().clone();
        let (oldest, last) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let now = now.as_second();
        let from = oldest.max(now - BACKDATE_SECONDS);
        let until = (now + LEAF_SECONDS).max(last.min(floor.saturating_add(LEAF_SECONDS)));
        let params = leaf(wanted, from, until)?;
        let certificate = params.signed_by(key, &issuer)?;
        let mut text = pem("CERTIFICATE", certificate.der());
        for der in &self.chain {
            text.push_str(&pem("CERTIFICATE", der));
        }
        Ok(text)
    }

    /// When a leaf (PEM) was signed at least, in seconds since 1970, as its dates say. `None`: it is none of this authority.
    pub fn signed(&self, text: &str) -> Option<i64> {
        let (chain, issuer) = (certificates(text).ok()?, parse(self.chain.first()?).ok()?);
        let leaf = parse(chain.first()?).ok()?;
        if leaf.issuer().as_raw() != issuer.subject().as_raw() {
            return None;
        }
        let (from, until) = (
            leaf.validity().not_before.timestamp(),
            leaf.validity().not_after.timestamp(),
        );
        // One of K3s begins with its authority and lasts as long as it was told there: its end says nothing of its signing.
        Some(match from > self.since() {
            true => from.max(until - LEAF_SECONDS),
            false => from,
        })
    }

    /// Whether a leaf on disk is good for this long time yet and says what is wanted.
    pub fn keeps(&self, text: &str, wanted: &Wanted, key: &PrivateKey, now: Timestamp) -> bool {
        let Ok(chain) = certificates(text) else { return false };
        let (Some(leaf), Some(issuer)) = (chain.first(), self.chain.first()) else {
            return false;
        };
        let (Ok(leaf), Ok(issuer)) = (parse(leaf), parse(issuer)) else {
            return false;
        };
        leaf.validity().not_after.timestamp() - now.as_second() > RENEW_SECONDS
            && leaf.validity().not_before.timestamp() <= now.as_second()
            && leaf.public_key().raw == key.public()
            && leaf.issuer().as_raw() == issuer.subject().as_raw()
            && leaf.verify_signature(Some(issuer.public_key())).is_ok()
            && names(&leaf) == (wanted.name.clone(), wanted.groups.clone())
            && sans(&leaf) == wanted.sans
    }
}

/// Common name and organisations of a certificate: user and groups of its holder.
///
/// # Errors
/// When it is not a certificate.
pub fn identity(der: &[u8]) -> Result<(String, Vec<String>), CertificateError> {
    parse(der).map(|certificate| names(&certificate))
}

/// The public key of a PKCS #10 request (DER); subject, extensions and signature are nobody's business (2.4 of the
/// protocol: K3s takes the key only). `None` when it is no request or the key is none that we can certify.
pub fn requested_key(der: &[u8]) -> Option<rcgen::SubjectPublicKeyInfo> {
    let (_, request) = x509_parser::certification_request::X509CertificationRequest::from_der(der).ok()?;
    rcgen::SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw).ok()
}

/// SHA-256 of a public key (DER, `SubjectPublicKeyInfo`), hexadecimal: what a node's record keeps of its key.
pub fn key_hash(public: &[u8]) -> String {
    hex(digest(&SHA256, public).as_ref())
}

/// [`key_hash`] of a certificate's (DER) public key.
pub fn key_hash_of(der: &[u8]) -> Option<String> {
    parse(der)
        .ok()
        .map(|certificate| key_hash(certificate.public_key().raw))
}

/// The first second of a certificate (DER), since 1970.
pub fn begins(der: &[u8]) -> Option<i64> {
    let certificate = parse(der).ok()?;
    Some(certificate.validity().not_before.timestamp())
}

/// The last second of a certificate (DER), since 1970.
pub fn ends(der: &[u8]) -> Option<i64> {
    let certificate = parse(der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Host names and addresses in the first certificate of a PEM text; none if it has none that can be read.
pub(super) fn sans_of(text: &str) -> BTreeSet<String> {
    let chain = certificates(text).unwrap_or_default();
    let leaf = chain.first().and_then(|der| parse(der).ok());
    leaf.map(|leaf| sans(&leaf)).unwrap_or_default()
}

/// All certificates of a PEM text.
///
/// # Errors
/// When a block is broken.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertificateError(error.to_string()))
}

fn leaf(wanted: &Wanted, from: i64, until: i64) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&wanted.name, &wanted.groups);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = match wanted.usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial()?);
    for san in &wanted.sans {
        params.subject_alt_names.push(match san.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(san.as_str().try_into()?),
        });
    }
    set_validity(&mut params, from, until);
    Ok(params)
}

fn subject(name: &str, groups: &[String]) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    // Two organisations would need a multi-valued field that rcgen cannot write; no identity of ours has two.
    for group in groups {
        subject.push(DnType::OrganizationName, group.as_str());
    }
    subject.push(DnType::CommonName, name);
    subject
}

fn set_validity(params: &mut CertificateParams, from: i64, to: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |seconds: i64| epoch + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    params.not_before = at(from);
    params.not_after = at(to);
}

/// A random positive 63-bit number, as dynamiclistener chooses it.
fn serial() -> Result<SerialNumber, CertificateError> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| CertificateError("the system has no randomness".to_owned()))?;
    let number = (u64::from_be_bytes(bytes) >> 1).max(1);
    Ok(SerialNumber::from(number))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| CertificateError(error.to_string()))
}

fn names(certificate: &X509Certificate<'_>) -> (String, Vec<String>) {
    let subject = certificate.subject();
    let name = subject
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .unwrap_or_default();
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok());
    (name.to_owned(), groups.map(str::to_owned).collect())
}

fn sans(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            continue;
        };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => {
                    all.insert((*name).to_owned());
                }
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                    let v6 = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
                    all.extend(v4.or(v6).map(|address| address.to_string()));
                }
                _ => {}
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn authority() -> Authority {
        Authority::create(
            "k3s-server-ca",
            PrivateKey::generate().unwrap(),
            at("2026-11-25T00:00:00Z"),
        )
        .unwrap()
    }

    #[test]
    fn an_authority_is_named_dated_and_limited_as_k3s_does() {
        let authority = authority();
        let certificate = parse(&authority.chain[0]).unwrap();
        assert_eq!(names(&certificate).0, "k3s-server-ca@1795564800");
        assert_eq!(certificate.validity().not_before.timestamp(), 1_795_564_800 - 3600);
        assert_eq!(
            certificate.validity().not_after.timestamp(),
            1_795_564_800 + 3650 * 86_400
        );
        assert!(certificate.is_ca());
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && usage.key_cert_sign());
    }

    #[test]
    fn a_leaf_is_kept_until_it_is_old_or_says_something_else() {
        let authority = authority();
        let key = PrivateKey::generate().unwrap();
        let sans = |all: &[&str]| all.iter().map(|&san| san.to_owned()).collect::<Vec<_>>();
        let wanted = Wanted::server("kube-apiserver", sans(&["127.0.0.1", "::1", "localhost"]));
        let made = at("2026-11-25T12:00:00Z");
        let text = authority.sign(&wanted, key.pair(), made, 0).unwrap();
        assert_eq!(certificates(&text).unwrap().len(), 2, "leaf and authority");
        let keeps = |wanted: &Wanted, now| authority.keeps(&text, wanted, &key, at(now));
        assert!(keeps(&wanted, "2026-11-25T12:00:00Z"));
        assert!(keeps(&wanted, "2027-07-27T12:00:00Z"), "121 days left");
        assert!(!keeps(&wanted, "2027-07-28T13:00:00Z"), "120 days left");
        assert!(!keeps(&wanted, "2030-01-01T00:00:00Z"), "expired");
        assert!(!keeps(&wanted, "2026-01-01T00:00:00Z"), "not valid yet");
        assert!(!keeps(
            &Wanted::server("kube-apiserver", sans(&["127.0.0.1"])),
            "2026-11-25T12:00:00Z"
        ));
        assert!(!keeps(
            &Wanted::server("other", sans(&["127.0.0.1", "::1", "localhost"])),
            "2026-11-25T12:00:00Z"
        ));
        let other = PrivateKey::generate().unwrap();
        assert!(!authority.keeps(&text, &wanted, &other, made), "another key");
        assert!(
            !self::authority().keeps(&text, &wanted, &key, made),
            "another authority of the same name"
        );
        assert!(!authority.keeps("garbage", &wanted, &key, made));
    }

    #[test]
    fn a_leaf_is_never_older_than_its_authority() {
        let authority = authority();
        let key = PrivateKey::generate().unwrap();
        let text = authority
            .sign(
                &Wanted::client("system:admin", &["system:masters"]),
                key.pair(),
                at("2026-11-24T23:30:00Z"),
                0,
            )
            .unwrap();
        let chain = certificates(&text).unwrap();
        let leaf = parse(&chain[0]).unwrap();
        assert_eq!(leaf.validity().not_before.timestamp(), 1_795_564_800 - 3600);
        assert_eq!(
            identity(&chain[0]).unwrap(),
            ("system:admin".to_owned(), vec!["system:masters".to_owned()])
        );
    }

    #[test]
    fn a_bundle_with_another_key_is_refused() {
        let authority = authority();
        assert!(Authority::load(authority.bundle().to_owned(), PrivateKey::generate().unwrap()).is_err());
        assert!(Authority::load(String::new(), PrivateKey::generate().unwrap()).is_err());
    }

    #[test]
    fn only_the_key_of_a_request_counts() {
        let key = PrivateKey::generate().unwrap();
        let request = CertificateParams::new(vec!["ignored.example".to_owned()]).unwrap();
        let request = request.serialize_request(key.pair()).unwrap();
        let found = requested_key(request.der()).unwrap();
        assert_eq!(found.subject_public_key_info(), key.public());
        let mut broken = request.der().to_vec();
        let last = broken.len() - 1;
        broken[last] ^= 1;
        assert!(requested_key(&broken).is_some(), "the signature is not looked at");
        assert!(requested_key(b"").is_none());
        assert!(requested_key(b"-----BEGIN CERTIFICATE REQUEST-----").is_none());
    }
}
