//! The server's own certificates and the administrator's kubeconfig: made at the start, looked after while it runs.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::join::durable;
use anyhow::Context as _;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{address, kubeconfig};
use crate::config::Config;
use crate::join::files;
use crate::join::passwd::{Given, Passwd};
use crate::join::pki::{Names, Own, Pki, is_new, is_plausible};

/// How often the server's certificates are looked at: a few small files are read.
const LOOK: Duration = Duration::from_secs(600);

/// How long the first start waits for a clock that can be right. Time synchronisation needs a network and some seconds; a board
/// that has none goes on with a cluster that is dated by the earliest time that can be.
const SYNCHRONISATION: Duration = Duration::from_secs(60);
/// Between two looks at the clock.
const TICK: Duration = Duration::from_secs(1);

/// Waits a little for the clock if the authorities are yet to be made and to be dated by it; it says so once.
pub(super) async fn await_clock(dir: &Path, clock: impl Fn() -> Timestamp) {
    let shows = clock();
    if is_plausible(shows) || !is_new(dir) {
        return;
    }
    warn!(
        clock = %shows,
        wait_s = SYNCHRONISATION.as_secs(),
        "the clock cannot be right, and the cluster's certificate authorities are dated by it: waiting for time synchronisation"
    );
    let end = Instant::now() + SYNCHRONISATION;
    while Instant::now() < end {
        sleep(TICK).await;
        if is_plausible(clock()) {
            info!("the clock can be right now");
            return;
        }
    }
    warn!("the clock is still not set: the certificate authorities are dated by the earliest time that it can be");
}

/// Reads or makes certificates and passwords.
pub(super) async fn make(dir: &Path, names: Names, given: Given) -> anyhow::Result<(Arc<Pki>, Arc<Passwd>)> {
    let dir = dir.to_owned();
    let made = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let pki = Pki::load_or_create(&dir, &names, Timestamp::now())?;
        let passwd = Passwd::load_or_create(&dir, &given, &pki.token_hash())?;
        Ok((Arc::new(pki), Arc::new(passwd)))
    });
    made.await?
}

pub(super) fn write_kubeconfig(config: &Config, pki: &Pki, port: u16) -> anyhow::Result<()> {
    let path = &config.kubeconfig;
    let admin = pki.own(Own::Admin).context("no administrator's certificate")?;
    let server = SocketAddr::new(address::loopback(config), port);
    let server = format!("https://{server}");
    let text = kubeconfig::text(&server, pki.server_ca_pem(), &admin, &config.kubeconfig_name);
    if let Some(folder) = path.parent() {
        durable::create_folder(folder, 0o755, 0o755).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    files::write_if_changed(path, text.as_bytes(), config.kubeconfig_mode)
        .context("cannot write the kubeconfig (--write-kubeconfig puts it elsewhere)")?;
    Ok(())
}

/// Looks after the server's own certificates while it runs. The clock may have jumped since the last look, and an
/// operator may have taken files away: each look begins at what is on disk and what time it is. So does the kubeconfig's:
/// a write that failed, or a file that is gone, is made good at the next look, whichever certificates that one renews.
pub(super) async fn renew(config: Config, pki: Arc<Pki>, port: u16) {
    loop {
        sleep(LOOK).await;
        let (config, pki) = (config.clone(), Arc::clone(&pki));
        let looked = tokio::task::spawn_blocking(move || {
            let renewed = pki.renew(Timestamp::now());
            // Also when that failed: the administrator's may have been renewed before another one could not be.
            (renewed, write_kubeconfig(&config, &pki, port))
        });
        let (renewed, kubeconfig) = match looked.await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                warn!(error = %error, "the renewal of certificates was cut off");
                continue;
            }
        };
        match renewed {
            Ok(renewed) if renewed.is_empty() => {}
            Ok(renewed) => info!(certificates = ?renewed, "renewed the server's certificates; connections go on"),
            Err(error) => warn!(error = &error as &dyn Error, "cannot renew the server's certificates"),
        }
        if let Err(error) = kubeconfig {
            warn!(error = format!("{error:#}"), "cannot bring the kubeconfig up to date");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::scratch::Scratch;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// How long a start waits whose clock is set after so many looks, in seconds.
    async fn waits(dir: &Path, set_after: u64) -> u64 {
        let (begin, looks) = (Instant::now(), Cell::new(0));
        await_clock(dir, || {
            looks.set(looks.get() + 1);
            at(if looks.get() > set_after {
                "2027-01-01T00:00:00Z"
            } else {
                "1970-01-01T00:01:00Z"
            })
        })
        .await;
        begin.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_start_waits_for_the_clock_a_little_and_no_later_one_does() {
        let scratch = Scratch::new("await-clock");
        for (set_after, waited) in [(0, 0), (5, 5), (u64::MAX, 60)] {
            assert_eq!(
                waits(&scratch.0, set_after).await,
                waited,
                "set after {set_after} looks"
            );
        }
        Pki::load_or_create(&scratch.0, &Names::default(), at("2026-11-25T00:00:00Z")).unwrap();
        assert_eq!(waits(&scratch.0, u64::MAX).await, 0);
    }
}
