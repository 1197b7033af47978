//! Fresh certificates for a running agent: at once if it started from disk, else when a third of their time is left.
//!
//! K3s renews at a restart only, and boxes that run for a year fall off their cluster. The same look keeps the time floor.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;
use tracing::info;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::api::Client;
use crate::join::{Certificate, Files, Joiner};
use crate::wire::join::certificates;

/// How often the certificates are looked at.
const LOOK: Duration = Duration::from_secs(3600);

/// Runs for ever. `trouble`: why the balancer reaches no server.
pub async fn run(joiner: &Joiner<'_>, client: &Client, mut due: bool, trouble: impl Fn() -> Option<String>) {
    loop {
        if due {
            let joined = joiner.join(&trouble).await;
            if let Some(tls) = joined.client.endpoint().tls {
                client.replace_tls(tls);
            }
            info!(node = joiner.identity.node_name, "certificates renewed");
        }
        note_time(joiner, client);
        sleep(LOOK).await;
        note_time(joiner, client);
        due = is_due(joiner.files, joiner.clock.floor());
    }
}

fn note_time(joiner: &Joiner<'_>, client: &Client) {
    if let Some(date) = client.server_date() {
        joiner.clock.told(date);
    }
    joiner.clock.keep(joiner.files);
}

/// `floor`: what time it is at least, should the system clock not know.
fn is_due(files: &Files, floor: u64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = now.as_secs().max(floor);
    [Certificate::ClientKubelet, Certificate::ServingKubelet]
        .iter()
        .any(|which| {
            let pem = fs::read(files.cert(*which)).unwrap_or_default();
            certificates(&pem).first().is_none_or(|der| runs_out(der, now))
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
}
