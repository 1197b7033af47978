//! Under which address this server is reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use crate::config::Config;

/// The addresses of this machine, the one to advertise first.
///
/// What the operator said goes first; then the address that the default route uses, for which no packet is sent; on a
/// machine without a network, loopback.
pub fn own(config: &Config) -> Vec<IpAddr> {
    choose(config, default_route())
}

fn choose(config: &Config, default_route: Option<IpAddr>) -> Vec<IpAddr> {
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
    if all.is_empty() {
        all.push(default_route.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
    all
}

/// The source address of a packet to the outside, as the kernel would choose it.
fn default_route() -> Option<IpAddr> {
    // Addresses for documentation: nothing is ever sent to them, and they are never local.
    [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")]
        .into_iter()
        .find_map(|(from, to)| {
            let socket = UdpSocket::bind(from).ok()?;
            socket.connect(to.parse::<SocketAddr>().ok()?).ok()?;
            Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_unspecified())
        })
}

/// How this machine reaches its own listener.
pub fn loopback(config: &Config) -> IpAddr {
    match config.bind_address {
        address if !address.is_unspecified() => address,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        // A socket bound to :: takes IPv4 too, unless the system says otherwise.
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
    }
}
