//! The pods' network on this node: a bridge, an address each, and source NAT to the outside.
//!
//! `address.rs` decides, `book.rs` remembers, this shell programs the kernel through netlink. Reaching pods of other
//! nodes and services is not here.

pub mod address;
mod book;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use self::address::Range;
use self::book::Book;
use crate::sys::netlink::{self, Socket};
use crate::sys::netns;
use crate::sys::nftables::{Chain, Expression, Hook, Table};

/// The name K3s' flannel gives the bridge: scripts and firewalls know it.
const BRIDGE: &str = "cni0";

/// Why there is no pod network at all.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The addresses on disk cannot be read.
    #[error("cannot keep pod addresses in {}", folder.display())]
    Book {
        /// Where they are kept.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("cannot {step}: is the kernel module for it there, and are we root?")]
    Kernel {
        /// What was being done.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Why a pod got no network.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Wait for a pod to go; trying again sooner cannot help.
    #[error("no free address left in {range}")]
    RangeFull {
        /// The node's range.
        range: Range,
    },
    /// Try again with back-off.
    #[error("cannot {step}")]
    Kernel {
        /// What was being done.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The node's pod network. One per agent; calls may come from several tasks.
#[derive(Debug)]
pub struct Podnet {
    range: Range,
    bridge: u32,
    book: Mutex<Book>,
}

impl Podnet {
    /// Makes or adopts the bridge, turns forwarding on and replaces the NAT rules. Takes milliseconds and blocks.
    ///
    /// `range` is the node's own part of `cluster`; `folder` keeps the addresses over restarts.
    ///
    /// # Errors
    /// [`StartError`] names the step.
    pub fn start(range: Range, cluster: Range, folder: PathBuf) -> Result<Self, StartError> {
        let book = Book::open(folder.clone(), range).map_err(|source| StartError::Book { folder, source })?;
        let kernel = |step| move |source| StartError::Kernel { step, source };
        let mut socket = Socket::route().map_err(kernel("open a netlink socket"))?;
        let made = socket.request(netlink::new_bridge(BRIDGE, hardware_address(range.gateway())));
        unless_errno(made, Errno::EEXIST).map_err(kernel("make the bridge cni0"))?;
        let bridge = if_nametoindex(BRIDGE).map_err(|errno| kernel("find the bridge cni0")(errno.into()))?;
        socket
            .request(netlink::new_address(
                bridge,
                range.gateway(),
                range.prefix(),
                range.broadcast(),
            ))
            .and_then(|()| socket.request(netlink::link_up(bridge)))
            .map_err(kernel("set up the bridge cni0"))?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(kernel("turn on net.ipv4.ip_forward"))?;
        nat_table(range, cluster)
            .apply()
            .map_err(kernel("set source NAT for pods (nf_tables)"))?;
        Ok(Self {
            range,
            bridge,
            book: Mutex::new(book),
        })
    }

    /// Gives the pod whose network namespace is at `netns` an address, a link named `eth0` and a way out. Again for the
    /// same pod: the same address, and whatever is missing.
    ///
    /// # Errors
    /// [`AttachError`] says whether trying again can help. The address stays the pod's until [`Podnet::detach`].
    pub async fn attach(&self, pod_uid: &str, netns: &Path) -> Result<Ipv4Addr, AttachError> {
        let kernel = |step| move |source| AttachError::Kernel { step, source };
        let taken = self
            .book()
            .take(pod_uid)
            .map_err(kernel("write the pod's address down"))?;
        let address = taken.ok_or(AttachError::RangeFull { range: self.range })?;
        let (range, bridge, netns, link) = (self.range, self.bridge, netns.to_owned(), link_name(pod_uid));
        let work = move || {
            join_bridge(&link, bridge, address, &netns).map_err(kernel("make the pod's veth pair"))?;
            let configured = netns::inside(&netns, move || configure_inside(range, address));
            configured.map_err(kernel("set up eth0 inside the pod"))
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(kernel("set up the pod's network")(io::Error::other(error))))?;
        Ok(address)
    }

    /// Takes the pod's link and address away; a pod that has none is no error.
    ///
    /// # Errors
    /// The kernel's, or the disk's.
    pub async fn detach(&self, pod_uid: &str) -> io::Result<()> {
        let gone = Socket::route()?.request(netlink::delete_link(&link_name(pod_uid)));
        unless_errno(gone, Errno::ENODEV)?;
        self.book().free(pod_uid)
    }

    /// The pod's address, if it has one.
    pub fn address_of(&self, pod_uid: &str) -> Option<Ipv4Addr> {
        self.book().of(pod_uid)
    }

    /// Frees the addresses of all pods but these: what an earlier run could not free.
    ///
    /// # Errors
    /// The disk's.
    pub fn retain(&self, alive: impl Fn(&str) -> bool) -> io::Result<()> {
        self.book().retain(alive)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing panics while it is held, and every step leaves the book whole.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pods reach other pods as themselves and the rest of the world as the node.
fn nat_table(range: Range, cluster: Range) -> Table {
    let rule = vec![
        Expression::SourceIn(range.network(), range.mask()),
        Expression::DestinationOutside(cluster.network(), cluster.mask()),
        Expression::Masquerade,
    ];
    Table {
        name: "amphipod",
        chains: vec![Chain {
            name: "post",
            hook: Hook::SourceNat,
            rules: vec![rule],
        }],
    }
}

fn join_bridge(link: &str, bridge: u32, address: Ipv4Addr, netns: &Path) -> io::Result<()> {
    let namespace = fs::File::open(netns)?;
    let veth = netlink::new_veth(link, bridge, "eth0", hardware_address(address), namespace.as_raw_fd());
    unless_errno(Socket::route()?.request(veth), Errno::EEXIST)
}

fn configure_inside(range: Range, address: Ipv4Addr) -> io::Result<()> {
    let mut socket = Socket::route()?;
    socket.request(netlink::link_up(if_nametoindex("lo")?))?;
    let index = if_nametoindex("eth0")?;
    socket.request(netlink::new_address(index, address, range.prefix(), range.broadcast()))?;
    socket.request(netlink::link_up(index))?;
    socket.request(netlink::default_route(range.gateway(), index))
}

/// A link name of at most 15 bytes that is the pod's own.
fn link_name(pod_uid: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, pod_uid.as_bytes());
    let hex: String = digest
        .as_ref()
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("veth{hex}")
}

/// A locally administered address made of the IP address, as Kubernetes' bridge plugins do: unique and stable.
fn hardware_address(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}

fn unless_errno(result: io::Result<()>, expected: Errno) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(expected as i32) => Ok(()),
        other => other,
    }
}
