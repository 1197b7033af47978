//! Fresh certificates for a running agent: at once if it started from disk, else when a third of their time is left, when they
//! begin later than it is (a clock was ahead when they were signed), or when a server refuses them.
//!
//! K3s renews at a restart only, and boxes that run for a year fall off their cluster. The same look keeps the time floor.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;
use tracing::{info, warn};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::api::Client;
use crate::join::{Certificate, Files, Joiner};
use crate::wire::join::certificates;

/// How often the certificates are looked at.
const LOOK: Duration = Duration::from_secs(3600);
/// Until a refusal counts: old connections end first, and a server that refuses what it has just signed is not asked for more
/// all the time.
const HEED_REFUSALS: Duration = Duration::from_secs(60);
/// How much later than now a certificate may begin, in seconds: clocks differ.
const SKEW: u64 = 300;

/// Runs for ever. `trouble`: why the balancer reaches no server.
pub async fn run(joiner: &Joiner<'_>, client: &Client, mut due: bool, trouble: impl Fn() -> Option<String>) {
    let mut refusals = client.refusals();
    loop {
        if due {
            let joined = joiner.join(&trouble, || ()).await;
            if let Some(tls) = joined.client.endpoint().tls {
                client.replace_tls(tls);
            }
            info!(node = joiner.identity.node_name, "certificates renewed");
        }
        note_time(joiner, client);
        let refused = async {
            sleep(HEED_REFUSALS).await;
            refusals.mark_unchanged();
            // The client, and with it the sender, is there as long as this runs.
            let _ = refusals.changed().await;
        };
        let refused = tokio::select! {
            () = sleep(LOOK) => false,
            () = refused => true,
        };
        if refused {
            warn!(
                node = joiner.identity.node_name,
                "a server refuses this node's certificate: asking for a new one"
            );
        }
        note_time(joiner, client);
        due = refused || is_due(joiner.files, joiner.clock.floor(), client.server_date().unwrap_or(0));
    }
}

fn note_time(joiner: &Joiner<'_>, client: &Client) {
    if let Some(date) = client.server_date() {
        joiner.clock.told(date);
    }
    joiner.clock.keep(joiner.files);
}

/// `floor`: what time it is at least, should the system clock not know. The beginning of this node's own certificates is part
/// of it, so it cannot say that they begin too late; `told`, the time by the server that answered last, can.
fn is_due(files: &Files, floor: u64, told: u64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = now.as_secs().max(told);
    [Certificate::ClientKubelet, Certificate::ServingKubelet]
        .iter()
        .any(|which| {
            let pem = fs::read(files.cert(*which)).unwrap_or_default();
            certificates(&pem)
                .first()
                .is_none_or(|der| runs_out(der, now.max(floor)) || begins_late(der, now))
        })
}

/// Less than a third of its time is left, or it cannot be read.
fn runs_out(der: &[u8], now: u64) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return true;
    };
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    until.saturating_sub(now) < until.saturating_sub(from) / 3
}

/// It begins so much later than now that a server whose clock is right refuses it.
fn begins_late(der: &[u8], now: u64) -> bool {
    let begins = |(_, certificate): (_, X509Certificate<'_>)| certificate.validity().not_before.timestamp();
    let from = X509Certificate::from_der(der).map(begins).unwrap_or(0);
    u64::try_from(from).unwrap_or(0) > now.saturating_add(SKEW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_its_last_third() {
        let mut params = rcgen::CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 12, 31);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let at = |day: u64| 1_767_225_600 + day * 86_400;
        for (day, due) in [(0, false), (240, false), (244, true), (400, true)] {
            assert_eq!(runs_out(certificate.der(), at(day)), due, "day {day}");
        }
        assert!(runs_out(b"nonsense", at(0)));
    }

    #[test]
    fn a_certificate_that_a_clock_ahead_has_signed_is_renewed() {
        use std::os::unix::fs::DirBuilderExt as _;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let folder = std::env::temp_dir().join(format!("amphipod-renew-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&folder).unwrap();
        let files = Files::create(folder.clone()).unwrap();
        let year = 365 * 86_400;
        for (begins_in, told, due) in [
            (0, 0, false),
            (120, 0, false),
            (86_400, 0, true),
            // A board whose clock is behind, on a server whose is right.
            (86_400, now + 86_400, false),
        ] {
            let mut params = rcgen::CertificateParams::default();
            let from = UNIX_EPOCH + Duration::from_secs(now + begins_in);
            params.not_before = from.into();
            params.not_after = (from + Duration::from_secs(year)).into();
            let own = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            for which in [Certificate::ClientKubelet, Certificate::ServingKubelet] {
                fs::write(files.cert(which), own.pem()).unwrap();
            }
            // The floor of a start that found these certificates.
            let floor = now + begins_in;
            assert_eq!(is_due(&files, floor, told), due, "begins in {begins_in} s, told {told}");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
