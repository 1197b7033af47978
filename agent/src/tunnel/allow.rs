//! What a server may reach through this node's tunnel: the kubelet, and nothing else. Pure.
//!
//! Source: K3s v1.36, `pkg/agent/tunnel` `authorized`; its egress modes `pod` and `cluster` are for nodes that say so by
//! a label, and this one does not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where to connect for a stream that a server asks for; `None`: not allowed.
pub fn target(protocol: &str, address: &str, kubelet_port: u16) -> Option<SocketAddr> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let wanted = port.parse::<u16>().ok()?;
    (protocol == "tcp" && loopback && wanted == kubelet_port)
        .then(|| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), kubelet_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kubelet_can_be_reached() {
        for (protocol, address, allowed) in [
            ("tcp", "127.0.0.1:10250", true),
            ("tcp", "[::1]:10250", true),
            ("tcp", "localhost:10250", true),
            ("tcp", "127.0.0.1:22", false),
            ("tcp", "10.0.0.1:10250", false),
            ("udp", "127.0.0.1:10250", false),
            ("unix", "/run/secret.sock", false),
            ("tcp", "127.0.0.1", false),
            ("tcp", "127.0.0.1:10250x", false),
            ("tcp", "", false),
        ] {
            assert_eq!(
                target(protocol, address, 10_250).is_some(),
                allowed,
                "{protocol}/{address}"
            );
        }
    }
}
