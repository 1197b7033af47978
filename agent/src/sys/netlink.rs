//! Netlink: messages built by hand, sent, and their acknowledgements read. No `unsafe`: nix wraps the socket.
//!
//! Covers what a node's network needs (links, addresses, routes; nf_tables batches by [`super::nftables`]), not the
//! protocol at large. Source: `linux/netlink.h`, `linux/rtnetlink.h`, `linux/if_link.h` of Linux 6.1.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
/// The kernel answers at once; only a fault keeps it silent for so long.
const ANSWER_SECONDS: i64 = 5;

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub const ACK: u16 = 0x4;
/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;

/// One message under construction: header, fixed part, attributes.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of this type; `fixed` is the family's own header (`ifinfomsg` and its kin).
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]); // sequence number and port: set when sent, chosen by the kernel
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.bytes, kind, value);
        self
    }

    /// Adds a NUL-terminated text attribute.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        let terminated: Vec<u8> = value.bytes().chain([0]).collect();
        self.attribute(kind, &terminated)
    }

    /// Whether the kernel will acknowledge it.
    fn wants_ack(&self) -> bool {
        self.bytes
            .get(6..8)
            .and_then(|flags| flags.first_chunk())
            .is_some_and(|flags| u16::from_ne_bytes(*flags) & ACK != 0)
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        pad(&mut self.bytes);
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.splice(0..4, length.to_ne_bytes());
        self.bytes.splice(8..12, sequence.to_ne_bytes());
        self.bytes
    }
}

/// Appends one attribute (length, type, value, padding) to `bytes`.
pub fn push_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    pad(bytes);
    // An attribute's length is 16 bits; none of ours comes near.
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A netlink socket of the network namespace that the calling thread is in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// For links, addresses and routes.
    ///
    /// # Errors
    /// As socket(2) and bind(2).
    pub fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// For nf_tables.
    ///
    /// # Errors
    /// As socket(2) and bind(2).
    pub fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends one message and waits for its acknowledgement.
    ///
    /// # Errors
    /// The kernel's own error number, or that of the socket.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.batch(vec![message])
    }

    /// Sends messages as one datagram and waits for the acknowledgements asked for.
    ///
    /// # Errors
    /// The first error the kernel reports; an nf_tables batch has then changed nothing.
    pub fn batch(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let mut wanted = messages.iter().filter(|message| message.wants_ack()).count();
        let mut datagram = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            datagram.extend(message.finish(self.sequence));
        }
        send(self.fd.as_raw_fd(), &datagram, MsgFlags::empty())?;
        let mut buffer = vec![0; 16 * 1024];
        while wanted > 0 {
            let read = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for code in error_codes(buffer.get(..read).unwrap_or_default()) {
                match code {
                    0 => wanted = wanted.saturating_sub(1),
                    code => return Err(io::Error::from(Errno::from_raw(-code))),
                }
            }
        }
        Ok(())
    }
}

/// The codes of all `NLMSG_ERROR` messages in a datagram; zero is an acknowledgement.
fn error_codes(mut datagram: &[u8]) -> Vec<i32> {
    let mut codes = Vec::new();
    while let Some((header, _)) = datagram.split_first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if length < HEADER || length > datagram.len() {
            break;
        }
        let body = datagram.get(HEADER..length).unwrap_or_default();
        if u16::from_ne_bytes([header[4], header[5]]) == NLMSG_ERROR
            && let Some((code, _)) = body.split_first_chunk::<4>()
        {
            codes.push(i32::from_ne_bytes(*code));
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    codes
}

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// A new bridge. Fails with `EEXIST` if the name is taken.
pub fn new_bridge(name: &str, address: [u8; 6]) -> Message {
    let mut info = Vec::new();
    push_attribute(&mut info, IFLA_INFO_KIND, b"bridge");
    Message::new(RTM_NEWLINK, ACK | CREATE | EXCLUSIVE, &link_header(0, 0, 0))
        .text(IFLA_IFNAME, name)
        .attribute(IFLA_ADDRESS, &address)
        .attribute(IFLA_LINKINFO, &info)
}

/// A new veth pair: `name` here, enslaved to the link `master`, and `peer` in the network namespace `netns`.
pub fn new_veth(name: &str, master: u32, peer: &str, peer_address: [u8; 6], netns: RawFd) -> Message {
    let mut other = link_header(0, 0, 0).to_vec();
    push_attribute(&mut other, IFLA_IFNAME, &peer.bytes().chain([0]).collect::<Vec<u8>>());
    push_attribute(&mut other, IFLA_ADDRESS, &peer_address);
    push_attribute(&mut other, IFLA_NET_NS_FD, &netns.to_ne_bytes());
    let mut data = Vec::new();
    push_attribute(&mut data, VETH_INFO_PEER, &other);
    let mut info = Vec::new();
    push_attribute(&mut info, IFLA_INFO_KIND, b"veth");
    push_attribute(&mut info, IFLA_INFO_DATA, &data);
    Message::new(RTM_NEWLINK, ACK | CREATE | EXCLUSIVE, &link_header(0, IFF_UP, IFF_UP))
        .text(IFLA_IFNAME, name)
        .attribute(IFLA_MASTER, &master.to_ne_bytes())
        .attribute(IFLA_LINKINFO, &info)
}

/// Brings a link up.
pub fn link_up(index: u32) -> Message {
    Message::new(RTM_NEWLINK, ACK, &link_header(index, IFF_UP, IFF_UP))
}

/// Removes a link by name (of a veth pair: both ends). Fails with `ENODEV` if there is none.
pub fn delete_link(name: &str) -> Message {
    Message::new(RTM_DELLINK, ACK, &link_header(0, 0, 0)).text(IFLA_IFNAME, name)
}

/// Gives a link an address; the same one twice is no error.
pub fn new_address(index: u32, address: Ipv4Addr, prefix: u8, broadcast: Ipv4Addr) -> Message {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_BROADCAST: u16 = 4;
    let mut header = vec![AF_INET, prefix, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    Message::new(RTM_NEWADDR, ACK | CREATE | REPLACE, &header)
        .attribute(IFA_LOCAL, &address.octets())
        .attribute(IFA_ADDRESS, &address.octets())
        .attribute(IFA_BROADCAST, &broadcast.octets())
}

/// The default route through a gateway on a link.
pub fn default_route(gateway: Ipv4Addr, index: u32) -> Message {
    const RT_TABLE_MAIN: u8 = 254;
    const RTPROT_STATIC: u8 = 4;
    const RTN_UNICAST: u8 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    let header = [
        AF_INET,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        0,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    Message::new(RTM_NEWROUTE, ACK | CREATE | REPLACE, &header)
        .attribute(RTA_GATEWAY, &gateway.octets())
        .attribute(RTA_OIF, &index.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_laid_out_as_the_kernel_reads_it() {
        let bytes = Message::new(RTM_DELLINK, ACK, &link_header(7, 0, 0))
            .text(IFLA_IFNAME, "ab")
            .finish(9);
        let expected: Vec<u8> = [
            &40_u32.to_ne_bytes()[..],
            &17_u16.to_ne_bytes(),
            &5_u16.to_ne_bytes(),
            &9_u32.to_ne_bytes(),
            &[0; 4],
            &[0; 4],
            &7_u32.to_ne_bytes(),
            &[0; 8],
            &7_u16.to_ne_bytes(),
            &3_u16.to_ne_bytes(),
            b"ab\0\0",
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn codes_are_found_among_other_messages_and_cut_datagrams_end_quietly() {
        let error = |code: i32| {
            let mut message = Vec::new();
            message.extend_from_slice(&20_u32.to_ne_bytes());
            message.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
            message.extend_from_slice(&[0; 10]);
            message.extend_from_slice(&code.to_ne_bytes());
            message
        };
        let mut other = error(1);
        other[4] = 3; // NLMSG_DONE
        assert_eq!(error_codes(&[error(0), other, error(-17)].concat()), [0, -17]);
        assert_eq!(error_codes(&error(-1)[..18]), Vec::<i32>::new());
        assert_eq!(error_codes(&[0; 16]), Vec::<i32>::new());
    }
}
