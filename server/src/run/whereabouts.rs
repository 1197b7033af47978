//! A server whose machine gets its address later, or another one: certificate, endpoints and agents follow, without a restart.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::address::Addresses;
use crate::join::pki::{Pki, PkiError};
use crate::peers::{self, Place};
use crate::request::Client;
use crate::tunnel::Sessions;

/// How often a machine without an address is looked at, and one with: a few system calls.
const WITHOUT: Duration = Duration::from_secs(1);
const WITH: Duration = Duration::from_secs(10);

/// What follows the address.
pub(super) struct Follower {
    pub(super) pki: Arc<Pki>,
    /// Everybody who tells where this server is.
    pub(super) place: watch::Sender<Place>,
    /// The API as the supervisor.
    pub(super) client: Client,
    pub(super) sessions: Arc<Sessions>,
    /// `--tls-san-security`.
    pub(super) security: bool,
    /// Nobody else keeps the endpoints.
    pub(super) alone: bool,
}

impl Follower {
    /// Runs until dropped.
    pub(super) async fn run(self, mut own: Addresses) {
        if matches!(own, Addresses::Said(_)) {
            return;
        }
        let port = self.place.borrow().address.port();
        if own == Addresses::Found(None) {
            warn!(
                "this machine has no address in a network yet: the server is reached on this machine only, and will take the \
                 address once there is one (--advertise-address or --node-ip says which it is going to be)"
            );
        }
        let (mut behind, mut uncertain) = (false, false);
        loop {
            let looked_up = own != Addresses::Found(None);
            sleep(if looked_up && !behind { WITH } else { WITHOUT }).await;
            let now = own.again().await;
            let place = now.place(port);
            if now != own || uncertain {
                // Clients that are sent to the address should find a certificate for it; the first of them has it made otherwise.
                let made = self.certify(&now).await;
                if let Some(error) = made.as_ref().err().filter(|_| !uncertain) {
                    warn!(
                        error = error as &dyn Error,
                        "cannot make a certificate for this machine's address, trying on"
                    );
                }
                uncertain = made.is_err();
                if *self.place.borrow() != place {
                    info!(from = %self.place.borrow().address, to = %place.address, "this server is reached at another address now");
                    self.place.send_replace(place);
                    behind = self.alone;
                }
                own = now;
            }
            if behind {
                behind = !self.publish(place.address).await;
            }
        }
    }

    async fn certify(&self, own: &Addresses) -> Result<(), PkiError> {
        let (pki, addresses, stays) = (Arc::clone(&self.pki), own.all(), own.stays(self.security));
        let made = tokio::task::spawn_blocking(move || pki.readdress(addresses, stays, Timestamp::now()));
        made.await.map_err(std::io::Error::other)?.map(drop)
    }

    /// The endpoints of a server that is alone on its datastore, and the agents, who look there.
    async fn publish(&self, address: SocketAddr) -> bool {
        let servers: BTreeSet<SocketAddr> = [address].into();
        match peers::reconcile_endpoints(&self.client, &servers).await {
            Ok(()) => {
                self.sessions.servers(&servers);
                true
            }
            Err(status) => {
                warn!(error = %status, "cannot put the server's new address into the endpoints, trying on");
                false
            }
        }
    }
}
