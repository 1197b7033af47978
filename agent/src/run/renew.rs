//! Fresh certificates for a running agent: at once if it started from disk, else when a third of their time is left, when they
//! begin later than it is (a clock was ahead when they were signed), or when a server refuses them.
//!
//! K3s renews at a restart only, and boxes that run for a year fall off their cluster. The same look keeps the time floor.

use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use crate::api::Client;
use crate::join::{Joiner, is_due, windows};
use crate::kubelet::NodeIps;

/// How often the certificates are looked at.
const LOOK: Duration = Duration::from_secs(3600);
/// Until a refusal counts: old connections end first, and a server that refuses what it has just signed is not asked for more
/// all the time.
const HEED_REFUSALS: Duration = Duration::from_secs(60);

/// Runs for ever. `trouble` and `astray`: as of [`Joiner::renew`]; `ips`: what the kubelet's certificate is to say.
pub async fn run(
    joiner: &Joiner<'_>,
    client: &Client,
    mut due: bool,
    trouble: impl Fn() -> Option<String>,
    astray: impl Fn(),
    mut ips: NodeIps,
) {
    let mut refusals = client.refusals();
    loop {
        if due {
            let joined = joiner.renew(|| ips.now(), &trouble, &astray).await;
            if joined.client.endpoint().authority() != client.endpoint().authority() {
                warn!(
                    node = joiner.identity.node_name,
                    "the servers have their API at another port now: restart the agent"
                );
            }
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
        let (mut moved, mut was_refused) = (false, false);
        tokio::select! {
            () = sleep(LOOK) => {}
            () = refused => was_refused = true,
            () = ips.changed() => moved = true,
        }
        if was_refused {
            warn!(
                node = joiner.identity.node_name,
                "a server refuses this node's certificate: asking for a new one"
            );
        }
        note_time(joiner, client);
        let (system, floor) = (joiner.clock.now(), joiner.clock.floor());
        let told = client.server_date().unwrap_or(0);
        due = was_refused || moved || is_due(&windows(joiner.files), system, floor, told);
    }
}

fn note_time(joiner: &Joiner<'_>, client: &Client) {
    if let Some(date) = client.server_date() {
        joiner.clock.told(date);
    }
    joiner.clock.keep(joiner.files);
}
