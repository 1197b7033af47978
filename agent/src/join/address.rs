//! Which address this machine has towards the cluster, and when it is another one.

use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;
use tokio::net::UdpSocket;

/// Interfaces of containers and of machines inside this one: their addresses are nothing to others.
const INSIDE: [&str; 7] = ["cni", "flannel", "docker", "br-", "veth", "virbr", "podman"];

/// An address of this machine, and how it was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// The kernel would send from it towards the cluster or the world.
    Routed(IpAddr),
    /// An interface has it; nothing says that it leads anywhere.
    Present(IpAddr),
}

impl Found {
    /// The address.
    pub const fn ip(self) -> IpAddr {
        match self {
            Self::Routed(ip) | Self::Present(ip) => ip,
        }
    }
}

/// The address that the kernel would send from towards `host`; if that is loopback (a server's own agent), the one
/// towards the world, and in a closed network the first of an interface that is up.
pub async fn find(host: &str, port: u16) -> Option<Found> {
    for towards in [(host, port), ("192.0.2.1", 9), ("2001:db8::1", 9)] {
        if let Some(found) = towards_address(towards.0, towards.1).await {
            return Some(Found::Routed(found));
        }
    }
    first_of_interfaces().map(Found::Present)
}

/// What counts from now on. An address that was found by its route counts as long as this machine has it, whatever routes
/// come and go: others have written it down. One that was merely there gives way to one with a route. What is lost counts
/// until there is another: a cable that was pulled comes back with the address it had.
pub fn settle(before: Option<Found>, now: Option<Found>, is_here: impl Fn(IpAddr) -> bool) -> Option<Found> {
    match (before, now) {
        (None, now) => now,
        (before, None) => before,
        (Some(Found::Routed(ip)), Some(_)) if is_here(ip) => before,
        (Some(Found::Present(ip)), Some(Found::Present(_))) if is_here(ip) => before,
        (Some(_), now) => now,
    }
}

/// Whether an interface of this machine has this address now. A socket could be bound to others, too, where the kernel is told to
/// let it (`ip_nonlocal_bind`, which machines have that hand an address over between them).
pub fn is_here(ip: IpAddr) -> bool {
    let all = getifaddrs().into_iter().flatten();
    let has = |found: InterfaceAddress| {
        let address = found.address?;
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
    };
    all.filter_map(has).any(|it| it == ip)
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
    let inside = |name: &str| INSIDE.iter().any(|prefix| name.starts_with(prefix));
    let addresses = getifaddrs()
        .ok()?
        .filter(|found| up(found.flags) && !inside(&found.interface_name));
    addresses
        .filter_map(|found| Some(found.address?.as_sockaddr_in()?.ip()))
        .next()
        .map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_counts_as_long_as_the_machine_has_it() {
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        let (routed, present) = (
            |last| Some(Found::Routed(ip(last))),
            |last| Some(Found::Present(ip(last))),
        );
        for (before, now, here, expected, why) in [
            (None, None, false, None, "there is none yet"),
            (None, present(1), true, present(1), "the first one is taken"),
            (present(1), routed(2), true, routed(2), "a route says more"),
            (
                present(1),
                present(2),
                true,
                present(1),
                "the order of interfaces says nothing",
            ),
            (present(1), routed(1), true, routed(1), "the same with a route"),
            (
                routed(1),
                routed(2),
                true,
                routed(1),
                "a second way out changes nothing",
            ),
            (routed(1), None, false, routed(1), "a cable was pulled"),
            (
                routed(1),
                routed(2),
                false,
                routed(2),
                "the machine has another address",
            ),
            (routed(1), present(2), false, present(2), "and no way out any more"),
        ] {
            assert_eq!(settle(before, now, |_| here), expected, "{why}");
        }
    }

    #[test]
    fn what_this_machine_has_is_known() {
        assert!(is_here([127, 0, 0, 1].into()));
        assert!(!is_here([192, 0, 2, 1].into()), "an address for documentation");
        let bindable = IpAddr::from([127, 0, 0, 5]);
        assert!(std::net::UdpSocket::bind((bindable, 0)).is_ok() && !is_here(bindable));
    }
}
