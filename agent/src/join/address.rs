//! Which address this machine has towards the cluster.

use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use tokio::net::UdpSocket;

/// The address that the kernel would send from towards `host`; if that is loopback (a server's own agent), the one
/// towards the world, and in a closed network the first of an interface that is up.
pub async fn own_address(host: &str, port: u16) -> Option<IpAddr> {
    for towards in [(host, port), ("192.0.2.1", 9), ("2001:db8::1", 9)] {
        if let Some(found) = towards_address(towards.0, towards.1).await {
            return Some(found);
        }
    }
    first_of_interfaces()
}

/// Asks the routing table; nothing is sent.
async fn towards_address(host: &str, port: u16) -> Option<IpAddr> {
    let target = tokio::net::lookup_host((host, port)).await.ok()?.next()?;
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(target).await.ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_loopback() && !own.is_unspecified()).then_some(own)
}

fn first_of_interfaces() -> Option<IpAddr> {
    let up =
        |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK);
    let addresses = getifaddrs()
        .ok()?
        .filter(|found| up(found.flags) && found.interface_name != "cni0");
    addresses
        .filter_map(|found| Some(found.address?.as_sockaddr_in()?.ip()))
        .next()
        .map(IpAddr::V4)
}
