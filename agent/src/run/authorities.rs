//! CAs that the cluster gains while the agent runs: taken before the first server shows a certificate of one.
//!
//! K3s' agents take them at a restart (`k3s certificate rotate-ca` says so). A renewal takes them too, but comes a few times a year.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info};

use crate::join::{JoinError, random_fraction};

/// How often the servers are asked.
const LOOK: Duration = Duration::from_secs(3600);
/// After a server has come back, which it does with another CA: so long at most, by chance, since all its agents notice.
const SPREAD: Duration = Duration::from_secs(60);

/// Runs for ever. `ask`: what to trust now, if that is another; `take`: has it used; `changes`: notices of servers that came (back).
pub async fn run(
    ask: impl AsyncFn() -> Result<Option<Arc<ClientConfig>>, JoinError>,
    take: impl Fn(Arc<ClientConfig>),
    mut changes: watch::Receiver<()>,
) {
    loop {
        tokio::select! {
            () = sleep(LOOK) => {}
            Ok(()) = changes.changed() => {
                sleep(SPREAD.mul_f64(random_fraction())).await;
                changes.mark_unchanged();
            }
        }
        match ask().await {
            Ok(Some(tls)) => {
                info!("the cluster has another CA beside those it had: trusting it, too");
                take(tls);
            }
            Ok(None) => {}
            // Whoever joins or renews says it aloud.
            Err(error) => debug!(error = %error, "cannot ask for the cluster's authorities"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls::RootCertStore;
    use rustls::crypto::ring;
    use tokio::time::{Instant, timeout_at};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_servers_are_asked_each_hour_and_when_one_comes_back() {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let tls = tls.with_safe_default_protocol_versions().unwrap();
        let tls = Arc::new(tls.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
        let (asked, taken, changes) = (AtomicUsize::new(0), AtomicUsize::new(0), watch::Sender::new(()));
        let ask = async || match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Err(JoinError::NoCredential),
            1 => Ok(Some(Arc::clone(&tls))),
            _ => Ok(None),
        };
        let take = |_| {
            taken.fetch_add(1, Ordering::Relaxed);
        };
        let running = run(ask, take, changes.subscribe());
        tokio::pin!(running);
        let begun = Instant::now();
        for (after, comes_back, expected) in [
            (LOOK / 2, false, (0, 0)),
            (LOOK + SPREAD, false, (1, 0)),
            (LOOK + SPREAD * 3, true, (2, 1)),
            (LOOK * 3 + SPREAD * 3, false, (4, 1)),
        ] {
            if comes_back {
                changes.send_replace(());
                changes.send_replace(());
            }
            let _ = timeout_at(begun + after, &mut running).await;
            let seen = (asked.load(Ordering::Relaxed), taken.load(Ordering::Relaxed));
            assert_eq!(seen, expected, "after {after:?}");
        }
    }
}
