//! What the serving certificate of a server says: fixed names, what the operator said, and what clients have found it at.
//!
//! Pure. The last come one by one, by what a connection shows before its handshake. Sources: K3s `pkg/cluster/https.go` and
//! dynamiclistener `listener.go`; here an address counts only if this machine has it, and a name only if the operator lets
//! clients choose (`--tls-san-security=false`), because whoever connects can say any.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// So many further names are taken in: whoever connects could go on for ever, and a certificate has to fit into a handshake.
const MOST_MET: usize = 50;

/// What the server's certificates are to say.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// This node's name.
    pub node: String,
    /// This node's addresses, the advertised one among them.
    pub addresses: Vec<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// First address of the service range: `kubernetes.default`.
    pub service: Option<IpAddr>,
    /// Further names and addresses (`--tls-san`).
    pub extra: Vec<String>,
    /// Which other names of the present certificate are still true; `None`: not one.
    pub stays: Option<fn(&str) -> bool>,
    /// Whatever name a client uses is taken in, too.
    pub any_name: bool,
    /// What clients have found the server at beside all that.
    pub met: BTreeSet<String>,
}

impl Names {
    /// The names and addresses of the certificate (7.3).
    pub(super) fn all(&self) -> BTreeSet<String> {
        let domain = &self.cluster_domain;
        let mut all: BTreeSet<String> = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
            "127.0.0.1",
            "::1",
        ]
        .into_iter()
        .map(str::to_owned)
        .collect();
        all.insert(format!("kubernetes.default.svc.{domain}"));
        all.insert(self.node.clone());
        all.extend(self.addresses.iter().chain(&self.service).map(IpAddr::to_string));
        all.extend(self.extra.iter().cloned());
        all.extend(self.met.iter().cloned());
        all.remove("");
        all
    }

    /// Takes over what a certificate has met before.
    pub(super) fn remember(&mut self, present: BTreeSet<String>) {
        let known = self.all();
        let others = present.into_iter().filter(|name| !known.contains(name));
        self.met.extend(others.take(MOST_MET));
        self.forget();
    }

    /// Lets go of what is true no longer.
    pub(super) fn forget(&mut self) {
        let stays = self.stays;
        self.met.retain(|name| stays.is_some_and(|stays| stays(name)));
    }

    /// Takes these in, as far as there is room.
    pub(super) fn meet(&mut self, names: Vec<String>) {
        let room = MOST_MET.saturating_sub(self.met.len());
        self.met.extend(names.into_iter().take(room));
    }

    /// Whether there is room for more.
    pub(super) fn has_room(&self) -> bool {
        self.met.len() < MOST_MET
    }
}

/// What one connection shows of where the client found the server, if it can be put into a certificate.
///
/// `address`: this machine's end of the connection; `name`: what the client says it looks for, if that is to count.
pub(super) fn shown(address: IpAddr, name: Option<&str>) -> impl Iterator<Item = String> {
    let address = address.to_canonical();
    let of_others = match address {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_unspecified() || ip.is_link_local()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local()),
    };
    let address = of_others.then(|| address.to_string());
    address.into_iter().chain(name.map(str::to_ascii_lowercase))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_shows_an_address_that_others_can_use_and_a_name() {
        for (address, name, expected) in [
            ("192.0.2.7", None, vec!["192.0.2.7"]),
            ("::ffff:192.0.2.7", None, vec!["192.0.2.7"]),
            ("fd00::7", Some("API.example.org"), vec!["fd00::7", "api.example.org"]),
            ("127.0.0.1", None, vec![]),
            ("::1", None, vec![]),
            ("169.254.1.1", None, vec![]),
            ("fe80::1", None, vec![]),
        ] {
            let shown: Vec<String> = shown(address.parse().unwrap(), name).collect();
            assert_eq!(shown, expected, "{address}");
        }
    }

    #[test]
    fn only_so_many_names_are_met_and_those_that_are_true_no_longer_go() {
        let mut names = Names {
            node: "box".to_owned(),
            stays: Some(|name| name.starts_with('n')),
            ..Names::default()
        };
        let fixed = names.all().len();
        names.remember(["box", "n1", "old"].map(str::to_owned).into());
        assert_eq!(names.met, ["n1".to_owned()].into());
        names.meet((0..100).map(|number| format!("m{number}")).collect());
        assert_eq!((names.all().len(), names.has_room()), (fixed + MOST_MET, false));
        names.forget();
        assert_eq!(names.met, ["n1".to_owned()].into());
    }
}
