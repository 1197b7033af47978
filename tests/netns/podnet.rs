//! The pod network against the real kernel: addresses, the way out through source NAT, restart, removal.

#![cfg(test)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::podnet::Podnet;
use agent::sys::netns;
use tests::{in_own_namespaces, run};

fn ip(arguments: &str) -> String {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

/// A host `outside` behind a link to us; it knows no route to pods.
fn outside() -> PathBuf {
    run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
    ip("link set lo up");
    ip("netns add outside");
    ip("link add uplink type veth peer name eth0 netns outside");
    ip("addr add 192.0.2.1/24 dev uplink");
    ip("link set uplink up");
    ip("-n outside addr add 192.0.2.2/24 dev eth0");
    ip("-n outside link set eth0 up");
    PathBuf::from("/run/netns/outside")
}

/// Who the host outside sees when a pod connects to it.
fn seen_outside(outside: &Path, pod: &Path) -> SocketAddr {
    let listener = netns::inside(outside, || TcpListener::bind("192.0.2.2:80")).unwrap();
    let pod = pod.to_owned();
    let client = std::thread::spawn(move || {
        netns::inside(&pod, || {
            let to = SocketAddr::from(([192, 0, 2, 2], 80));
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
            stream.write_all(b"hello")
        })
    });
    let (mut stream, peer) = listener.accept().unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    client.join().unwrap().unwrap();
    assert_eq!(text, "hello");
    peer
}

fn start(folder: &Path) -> Podnet {
    Podnet::start(
        "10.42.3.0/24".parse().unwrap(),
        "10.42.0.0/16".parse().unwrap(),
        folder.to_owned(),
    )
    .unwrap()
}

#[tokio::test]
async fn pods_get_addresses_and_reach_the_outside_as_the_node() {
    if !in_own_namespaces("pods_get_addresses_and_reach_the_outside_as_the_node") {
        return;
    }
    let outside = outside();
    let folder = PathBuf::from("/run/addresses");
    let pods = ["uid-a", "uid-b"];
    pods.iter().for_each(|pod| drop(ip(&format!("netns add {pod}"))));
    let netns_of = |pod: &str| PathBuf::from(format!("/run/netns/{pod}"));

    let podnet = start(&folder);
    let mut addresses = Vec::new();
    for pod in pods {
        addresses.push(podnet.attach(pod, &netns_of(pod)).await.unwrap());
    }
    assert_eq!(addresses, [Ipv4Addr::new(10, 42, 3, 2), Ipv4Addr::new(10, 42, 3, 3)]);
    assert_eq!(
        seen_outside(&outside, &netns_of("uid-a")).ip(),
        Ipv4Addr::new(192, 0, 2, 1)
    );

    // A new process: same bridge, same addresses, attaching again changes nothing.
    drop(podnet);
    let podnet = start(&folder);
    assert_eq!(podnet.attach("uid-b", &netns_of("uid-b")).await.unwrap(), addresses[1]);
    assert_eq!(
        seen_outside(&outside, &netns_of("uid-b")).ip(),
        Ipv4Addr::new(192, 0, 2, 1)
    );

    podnet.detach("uid-a").await.unwrap();
    podnet.detach("uid-a").await.unwrap();
    assert_eq!(podnet.address_of("uid-a"), None);
    let links = ip("-br link show master cni0");
    assert_eq!(links.lines().count(), 1, "only the other pod's link is left: {links}");
    podnet.retain(|_| false).unwrap();
    assert_eq!(podnet.address_of("uid-b"), None);
}
