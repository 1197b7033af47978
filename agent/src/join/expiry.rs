//! What certificates on disk say of themselves, and how near their end is. Judges no signature.
//!
//! Source: K3s v1.36, `pkg/util/cert.go`.

use std::fs;
use std::io;
use std::path::Path;

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::clock::Window;
use crate::wire::join::certificates;

/// How near the end of a certificate is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It is good.
    Ok,
    /// It is good, but not for long.
    Warning,
    /// It has ended.
    Expired,
    /// It has not begun: it, or the clock, is wrong.
    NotYetValid,
}

impl Standing {
    /// Of a certificate, at `now`; `warn`: how long before its end it is near, all in seconds.
    pub const fn of(window: Window, now: u64, warn: u64) -> Self {
        if now < window.from {
            Self::NotYetValid
        } else if now > window.until {
            Self::Expired
        } else if now.saturating_add(warn) > window.until {
            Self::Warning
        } else {
            Self::Ok
        }
    }

    /// In K3s' words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Expired => "EXPIRED",
            Self::NotYetValid => "NOT YET VALID",
        }
    }
}

/// What a certificate says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Facts {
    /// `CN` of its subject.
    pub subject: String,
    /// Its subject as Go writes it: `CN=system:admin,O=system:masters`.
    pub distinguished: String,
    /// `CN` of its issuer.
    pub issuer: String,
    /// What it is for: `CertSign`, `ServerAuth`, `ClientAuth`, or else `Unknown`.
    pub usages: Vec<&'static str>,
    /// From when to when it is good.
    pub window: Window,
}

impl Facts {
    /// Of a certificate (DER).
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let common = |name: &x509_parser::x509::X509Name<'_>| {
            let first = name.iter_common_name().next().and_then(|name| name.as_str().ok());
            first.unwrap_or_default().to_owned()
        };
        let subject = common(certificate.subject());
        let groups: Vec<_> = certificate
            .subject()
            .iter_organization()
            .filter_map(|group| group.as_str().ok())
            .collect();
        let distinguished = match groups.as_slice() {
            [] => format!("CN={subject}"),
            groups => format!("CN={subject},O={}", groups.join("+O=")),
        };
        Some(Self {
            distinguished,
            subject,
            issuer: common(certificate.issuer()),
            usages: usages(&certificate),
            window: Window::of(der)?,
        })
    }

    /// Of all certificates in a file; none when it is not there or has none.
    ///
    /// # Errors
    /// The file is there, and cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Vec<Self>> {
        let pem = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read?,
        };
        Ok(certificates(&pem).iter().filter_map(|der| Self::of(der)).collect())
    }
}

fn usages(certificate: &X509Certificate<'_>) -> Vec<&'static str> {
    let key = certificate.key_usage().ok().flatten();
    let extended = certificate.extended_key_usage().ok().flatten();
    let all = [
        (key.is_some_and(|usage| usage.value.key_cert_sign()), "CertSign"),
        (
            extended.as_ref().is_some_and(|usage| usage.value.server_auth),
            "ServerAuth",
        ),
        (
            extended.as_ref().is_some_and(|usage| usage.value.client_auth),
            "ClientAuth",
        ),
    ];
    let mut found: Vec<_> = all.into_iter().filter_map(|(has, name)| has.then_some(name)).collect();
    if found.is_empty() {
        found.push("Unknown");
    }
    found
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

    use super::*;

    #[test]
    fn a_certificate_is_warned_of_before_its_end_and_not_sooner() {
        let window = Window {
            from: 1000,
            until: 2000,
        };
        for (now, expected) in [
            (0, Standing::NotYetValid),
            (999, Standing::NotYetValid),
            (1000, Standing::Ok),
            (1900, Standing::Ok),
            (1901, Standing::Warning),
            (2000, Standing::Warning),
            (2001, Standing::Expired),
            (u64::MAX, Standing::Expired),
        ] {
            assert_eq!(Standing::of(window, now, 100), expected, "at {now}");
        }
    }

    #[test]
    fn a_certificate_says_who_and_what_for() {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        params.distinguished_name.push(DnType::CommonName, "system:admin");
        let key = KeyPair::generate().unwrap();
        let read = |params: &CertificateParams| Facts::of(params.clone().self_signed(&key).unwrap().der()).unwrap();
        let facts = read(&params);
        assert_eq!(
            (facts.subject.as_str(), facts.issuer.as_str()),
            ("system:admin", "system:admin")
        );
        assert_eq!(facts.distinguished, "CN=system:admin,O=system:masters");
        assert_eq!(facts.usages, ["Unknown"]);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        assert_eq!(read(&params).usages, ["CertSign", "ServerAuth", "ClientAuth"]);
        assert_eq!(Facts::of(b"nonsense"), None);
        assert_eq!(Facts::of_file(Path::new("/nowhere")).unwrap(), []);
        Facts::of_file(Path::new("/")).unwrap_err();
    }
}
