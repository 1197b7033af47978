//! Who may in: only those who hold a certificate of the cluster's client authority and speak for the control plane. Pure.
//!
//! A K3s API server shows `system:apiserver` of `system:masters` (protocol 2.4). A Go kubelet would ask the API about
//! anyone else (`nodes/proxy`); this one has no need to: everybody else goes through the API server anyway.

use x509_parser::prelude::{FromDer as _, X509Certificate};

const API_SERVER: &str = "system:apiserver";
const MASTERS: &str = "system:masters";

/// Whom a verified certificate names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Caller {
    /// `CN`.
    pub name: String,
    /// `O`.
    pub groups: Vec<String>,
}

/// What becomes of a request, by who makes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admission {
    /// It is served.
    Admitted,
    /// 401: nobody is named.
    Unknown,
    /// 403: somebody else.
    Forbidden,
}

impl Caller {
    /// Reads a certificate (DER) that has been verified; `None` if it cannot be read.
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let mut names = subject.iter_common_name().filter_map(|name| name.as_str().ok());
        let groups = subject.iter_organization().filter_map(|group| group.as_str().ok());
        Some(Self {
            name: names.next().unwrap_or_default().to_owned(),
            groups: groups.map(ToOwned::to_owned).collect(),
        })
    }
}

/// Decides.
pub fn admit(caller: Option<&Caller>) -> Admission {
    match caller {
        None => Admission::Unknown,
        Some(caller) if caller.name == API_SERVER || caller.groups.iter().any(|group| group == MASTERS) => {
            Admission::Admitted
        }
        Some(_) => Admission::Forbidden,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_control_plane_is_let_in() {
        let caller = |name: &str, groups: &[&str]| Caller {
            name: name.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        };
        for (caller, expected) in [
            (None, Admission::Unknown),
            (Some(caller("", &[])), Admission::Forbidden),
            (Some(caller("system:apiserver", &[])), Admission::Admitted),
            (
                Some(caller("system:admin", &["other", "system:masters"])),
                Admission::Admitted,
            ),
            (
                Some(caller("system:node:box-2", &["system:nodes"])),
                Admission::Forbidden,
            ),
            (Some(caller("system:apiserver2", &["masters"])), Admission::Forbidden),
        ] {
            assert_eq!(admit(caller.as_ref()), expected, "{caller:?}");
        }
    }

    #[test]
    fn a_certificate_names_its_holder() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "system:apiserver");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "system:masters");
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let caller = Caller::of(certificate.der()).unwrap();
        assert_eq!((caller.name.as_str(), caller.groups.len()), ("system:apiserver", 1));
        assert_eq!(Caller::of(b"nonsense"), None);
    }
}
