//! The way to a node whose tunnel leads to another server: through that server.
//!
//! All others are asked at once; the first that has a session of the node carries the bytes. A server that is asked looks
//! at its own sessions only, so there is never more than one server between (`docs/decisions/0007-*`). What goes through is
//! TLS between this server and the kubelet: the one between cannot read it. A tunnel of this server's own of which nothing is
//! heard counts as none while another server has one that lives.

use std::sync::Arc;

use agent::wire::selector::is_dns_subdomain;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tracing::debug;

use super::Peers;
use super::link::{Link, LinkError};
use crate::tunnel::{DialError, Dialed, NodeDialer, Sessions, Way};

/// Where a server asks another one for a stream to a node: `?node=NAME&port=NUMBER`.
pub const DIAL: &str = "/v1-k3s/peer/dial";
/// A cluster has a handful of servers.
const MOST: usize = 16;

/// Reaches nodes through this server's sessions, and else through the other servers.
pub struct Relay {
    sessions: Arc<Sessions>,
    /// Where other servers can be.
    others: Option<(Peers, Link)>,
}

impl Relay {
    /// `others`: this server among the others, and its way to them.
    pub const fn new(sessions: Arc<Sessions>, others: Option<(Peers, Link)>) -> Self {
        Self { sessions, others }
    }

    async fn through_others(&self, node: &str, port: u16, around: Option<Way>) -> Result<Dialed, DialError> {
        let nowhere = || DialError::NoSession { node: node.to_owned() };
        let Some((peers, link)) = self.others.as_ref().filter(|_| is_dns_subdomain(node)) else {
            return Err(nowhere());
        };
        let mut others = peers.others().await.unwrap_or_default();
        others.retain(|to| around != Some(Way::Through(*to)));
        let uri = format!("{DIAL}?node={node}&port={port}");
        let asking = others.into_iter().take(MOST);
        let asking = asking.map(|to| link.open(to, &uri).map(move |answer| (to, answer)));
        let mut asking: FuturesUnordered<_> = asking.collect();
        let mut tried = Vec::new();
        while let Some((to, answer)) = asking.next().await {
            match answer {
                Ok(stream) => {
                    debug!(node, server = %to, "a node is reached through another server");
                    return Ok((Box::new(stream), Way::Through(to)));
                }
                Err(LinkError::Refused { code: 404, .. }) => tried.push(format!("{to}: no tunnel either")),
                Err(error) => tried.push(format!("{to}: {error}")),
            }
        }
        match tried.is_empty() {
            true => Err(nowhere()),
            false => Err(DialError::Nowhere {
                node: node.to_owned(),
                others: tried.join("; "),
            }),
        }
    }
}

impl NodeDialer for Relay {
    fn dial<'a>(&'a self, node: &'a str, port: u16, around: Option<Way>) -> BoxFuture<'a, Result<Dialed, DialError>> {
        async move {
            let session = match around {
                Some(Way::Here(session)) => Some(session),
                Some(Way::Through(_)) | None => None,
            };
            match self.sessions.open(node, port, session) {
                Err(DialError::NoSession { .. }) => self.through_others(node, port, around).await,
                Err(silent @ DialError::Silent { .. }) => match self.through_others(node, port, around).await {
                    // What was silent may answer late; it was not tried yet.
                    Err(_) if around.is_none() => self.sessions.open_silent(node, port),
                    Err(_) => Err(silent),
                    dialed => dialed,
                },
                answer => answer,
            }
        }
        .boxed()
    }
}
