//! Events of the node about certificates that are near their end, as K3s has them.
//!
//! A running agent renews its own, and a running server its own, so what is left to say is about authorities, about what an
//! older program left behind, and about clocks. Source: K3s v1.36, `pkg/certmonitor`; its metric is not here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use crate::api::Client;
use crate::join::Clock;
use crate::join::expiry::{Facts, Standing};
use crate::join::services::Service;
use crate::kubelet::event::{self, About, Recorder};
use crate::wire::time;

/// K3s': Events live for an hour, so a repeat within it is a count.
const LOOK: Duration = Duration::from_secs(1800);
/// Until it is looked again whether a server has answered.
const NO_SERVER: Duration = Duration::from_secs(5);
/// Who says so.
const COMPONENT: &str = "k3s-cert-monitor";
/// How near its end a certificate is, and an authority's, in days.
const WARN_DAYS: u64 = 120;
const WARN_DAYS_AUTHORITY: u64 = 365;

/// Runs for ever.
pub async fn run(data_dir: &Path, node: &str, client: &Client, clock: &Clock) {
    let (events, writing) = event::recorder(Arc::new(client.clone()), COMPONENT, node.to_owned());
    let looking = async {
        // Before, an Event would be lost.
        while client.server_date().is_none() {
            sleep(NO_SERVER).await;
        }
        let mut first = true;
        loop {
            let (folder, now) = (data_dir.to_owned(), clock.now().max(clock.floor()));
            if let Ok(found) = tokio::task::spawn_blocking(move || look(&folder, now)).await {
                tell(&events, node, &found, first);
            }
            first = false;
            sleep(LOOK).await;
        }
    };
    tokio::join!(writing, looking);
}

/// What is wrong with certificates.
#[derive(Debug, Default, Eq, PartialEq)]
struct Found {
    nodes: Vec<String>,
    authorities: Vec<String>,
}

/// Those of the node, and of a server if this machine is one. `now`: seconds since 1970.
fn look(data_dir: &Path, now: u64) -> Found {
    let trouble = |services: &[Service], days| -> Vec<String> {
        let of = |service: &Service| in_service(*service, data_dir, now, days);
        services.iter().flat_map(of).collect()
    };
    match data_dir.join("server").exists() {
        true => Found {
            nodes: trouble(&Service::SERVER, WARN_DAYS),
            authorities: trouble(&[Service::CertificateAuthority], WARN_DAYS_AUTHORITY),
        },
        false => Found {
            nodes: trouble(&Service::AGENT, WARN_DAYS),
            authorities: Vec::new(),
        },
    }
}

fn in_service(service: Service, data_dir: &Path, now: u64, days: u64) -> Vec<String> {
    let mut all = Vec::new();
    for path in service.files(data_dir) {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let found = match Facts::of_file(&path) {
            Ok(found) => found,
            Err(error) => {
                all.push(format!("{}/{file}: cannot be read: {error}", service.name()));
                continue;
            }
        };
        for facts in found {
            let (subject, from, until) = (&facts.distinguished, at(facts.window.from), at(facts.window.until));
            let what = match Standing::of(facts.window, now, days * 86_400) {
                Standing::Ok => continue,
                Standing::NotYetValid => format!("is not valid before {from}"),
                Standing::Expired => format!("expired at {until}"),
                Standing::Warning => format!("will expire within {days} days at {until}"),
            };
            all.push(format!("{}/{file}: certificate {subject} {what}", service.name()));
        }
    }
    all
}

fn at(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok();
    time::seconds(
        at.and_then(|at| Timestamp::from_second(at).ok())
            .unwrap_or(Timestamp::MAX),
    )
}

/// In K3s' words, which people's alerts look for.
fn tell(events: &Recorder, node: &str, found: &Found, first: bool) {
    let say = |reason, advice: &str, trouble: &[String]| {
        if !trouble.is_empty() {
            events.warning(About::node(node), reason, format!("{advice}: {}", trouble.join("\n")));
        }
    };
    say(
        "CertificateExpirationWarning",
        "Node certificates require attention - restart k3s on this node to trigger automatic rotation",
        &found.nodes,
    );
    say(
        "CACertificateExpirationWarning",
        "Certificate Authority certificates require attention - check k3s documentation and begin planning rotation",
        &found.authorities,
    );
    if first && *found == Found::default() {
        let message = "Node and Certificate Authority certificates managed by k3s are OK";
        events.normal(About::node(node), "CertificateExpirationOK", message);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::scratch::TempDir;

    const DAY: u64 = 86_400;
    /// The first of January 2026.
    const BEGIN: u64 = 1_767_225_600;

    /// A certificate of the year 2026 (364 days).
    fn write(path: &Path) {
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 12, 31);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "pi");
        let own = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, own.pem()).unwrap();
    }

    #[test]
    fn a_nodes_certificate_is_warned_of_and_on_a_server_its_authorities_too() {
        let scratch = TempDir::new("certificates");
        let data = scratch.path();
        write(&data.join("agent/client-kubelet.crt"));
        let one = |what: &str| vec![format!("kubelet/client-kubelet.crt: certificate CN=pi {what}")];
        for (day, expected) in [
            (0, vec![]),
            (244, vec![]),
            (245, one("will expire within 120 days at 2026-12-31T00:00:00Z")),
            (365, one("expired at 2026-12-31T00:00:00Z")),
        ] {
            let found = look(data, BEGIN + day * DAY);
            assert_eq!(found.nodes, expected, "day {day}");
            assert_eq!(found.authorities, Vec::<String>::new());
        }
        let early = look(data, BEGIN - DAY).nodes;
        assert_eq!(early, one("is not valid before 2026-01-01T00:00:00Z"));
        write(&data.join("server/tls/server-ca.crt"));
        write(&data.join("server/tls/client-admin.crt"));
        let found = look(data, BEGIN);
        assert_eq!(found.nodes, Vec::<String>::new());
        assert_eq!(
            found.authorities,
            [
                "certificate-authority/server-ca.crt: certificate CN=pi will expire within 365 days at 2026-12-31T00:00:00Z"
            ]
        );
        let late = look(data, BEGIN + 365 * DAY);
        assert_eq!((late.nodes.len(), late.authorities.len()), (2, 1), "{late:?}");
    }
}
