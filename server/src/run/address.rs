//! Under which address this server is reached: said by the operator, or found, and followed then.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use agent::join::address::{Found, find, is_here, settle};

use crate::config::Config;
use crate::peers::Place;

/// The addresses of this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Addresses {
    /// As the operator said, the one to advertise first; for ever.
    Said(Vec<IpAddr>),
    /// The one that the default route uses, or else the first of an interface; nothing on a machine without a network.
    Found(Option<Found>),
}

impl Addresses {
    /// What is so now. No packet is sent.
    pub async fn of(config: &Config) -> Self {
        match said(config) {
            said if said.is_empty() => Self::Found(look().await),
            said => Self::Said(said),
        }
    }

    /// What counts once this machine was looked at again.
    pub async fn again(&self) -> Self {
        match self {
            Self::Said(_) => self.clone(),
            Self::Found(Some(Found::Routed(ip))) if is_here(*ip) => self.clone(),
            Self::Found(before) => Self::Found(settle(*before, look().await, is_here)),
        }
    }

    /// All of them, the one to advertise first; without a network loopback.
    pub fn all(&self) -> Vec<IpAddr> {
        match self {
            Self::Said(all) => all.clone(),
            Self::Found(found) => vec![found.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), Found::ip)],
        }
    }

    /// Where others reach this server, if they can.
    pub fn place(&self, port: u16) -> Place {
        let first = self.all().first().copied();
        Place {
            address: SocketAddr::new(first.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), port),
            reachable: *self != Self::Found(None),
        }
    }
}

impl Addresses {
    /// Which further names of a certificate are still true: addresses that this machine has, and while it has none those that may
    /// come back; names where clients choose them.
    pub fn stays(&self, security: bool) -> fn(&str) -> bool {
        match (self, security) {
            (Self::Found(None), true) => |name| name.parse::<IpAddr>().is_ok(),
            (Self::Found(None), false) => |_| true,
            (Self::Found(Some(_)) | Self::Said(_), true) => |name| name.parse().is_ok_and(is_here),
            (Self::Found(Some(_)) | Self::Said(_), false) => |name| name.parse().map_or(true, is_here),
        }
    }
}

/// Addresses for documentation are never local: the way to them is the way to the world.
async fn look() -> Option<Found> {
    find("192.0.2.1", 9).await
}

fn said(config: &Config) -> Vec<IpAddr> {
    let bound = Some(config.bind_address).filter(|address| !address.is_unspecified());
    let said = config
        .advertise_address
        .into_iter()
        .chain(config.node.external_ips.iter().copied())
        .chain(config.node.ips.iter().copied())
        .chain(bound);
    let mut all: Vec<IpAddr> = Vec::new();
    for address in said {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// How this machine reaches its own listener.
pub fn loopback(config: &Config) -> IpAddr {
    match config.bind_address {
        address if !address.is_unspecified() => address,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        // A socket bound to :: takes IPv4 too, unless the system says otherwise.
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}
