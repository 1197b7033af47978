//! nf_tables rule sets as netlink batches: whole tables, replaced at once or not at all.
//!
//! Only the expressions that this agent's rules use. Numbers are big-endian here, unlike in the rest of netlink.
//! Source: `linux/netfilter/nf_tables.h` of Linux 6.1.

use std::io;
use std::net::Ipv4Addr;

use super::netlink::{ACK, APPEND, CREATE, Message, Socket, push_attribute};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = (SUBSYSTEM << 8) | 2;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEW_RULE: u16 = (SUBSYSTEM << 8) | 6;
/// Set on attributes that hold attributes.
const NESTED: u16 = 0x8000;
const REGISTER_1: u32 = 1;
const FAMILY_IPV4: u8 = 2;

/// A table of the `ip` family.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// A base chain.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where it hooks in.
    pub hook: Hook,
    /// Tried in order.
    pub rules: Vec<Rule>,
}

/// A place in a packet's way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// `type nat hook postrouting priority srcnat`.
    SourceNat,
}

/// Expressions that must all hold, the last one acting.
pub type Rule = Vec<Expression>;

/// One expression of a rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expression {
    /// The packet's source lies in the range.
    SourceIn(Ipv4Addr, Ipv4Addr),
    /// The packet's destination lies outside the range (address, mask).
    DestinationOutside(Ipv4Addr, Ipv4Addr),
    /// Source NAT to the address of the outgoing link, with random ports.
    Masquerade,
}

impl Table {
    /// Replaces the table of this name by this one, in one transaction.
    ///
    /// # Errors
    /// The kernel's; the earlier table is then untouched. `ENOENT` or `EOPNOTSUPP`: the kernel lacks a module.
    pub fn apply(&self) -> io::Result<()> {
        Socket::netfilter()?.batch(self.messages())
    }

    fn messages(&self) -> Vec<Message> {
        let table = || message(NEW_TABLE, CREATE).text(1, self.name);
        // Creating before deleting makes the deletion succeed whether or not the table was there.
        let mut messages = vec![
            batch_edge(BATCH_BEGIN),
            table(),
            message(DELETE_TABLE, 0).text(1, self.name),
            table(),
        ];
        for chain in &self.chains {
            messages.push(self.chain_message(chain));
            messages.extend(chain.rules.iter().map(|rule| self.rule_message(chain, rule)));
        }
        messages.push(batch_edge(BATCH_END));
        messages
    }

    fn chain_message(&self, chain: &Chain) -> Message {
        let (number, priority, kind) = match chain.hook {
            Hook::SourceNat => (4_u32, 100_i32, "nat"),
        };
        let mut hook = Vec::new();
        push_attribute(&mut hook, 1, &number.to_be_bytes());
        push_attribute(&mut hook, 2, &priority.to_be_bytes());
        message(NEW_CHAIN, CREATE)
            .text(1, self.name)
            .text(3, chain.name)
            .attribute(4 | NESTED, &hook)
            .text(7, kind)
    }

    fn rule_message(&self, chain: &Chain, rule: &Rule) -> Message {
        let mut list = Vec::new();
        for expression in rule {
            expression.push(&mut list);
        }
        message(NEW_RULE, CREATE | APPEND)
            .text(1, self.name)
            .text(2, chain.name)
            .attribute(4 | NESTED, &list)
    }
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(kind, flags | ACK, &[FAMILY_IPV4, 0, 0, 0])
}

fn batch_edge(kind: u16) -> Message {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    Message::new(kind, 0, &[0, 0, high, low])
}

impl Expression {
    fn push(self, list: &mut Vec<u8>) {
        /// Offsets of the addresses in an IPv4 header.
        const SOURCE: u32 = 12;
        const DESTINATION: u32 = 16;
        match self {
            Self::SourceIn(network, mask) => push_address_test(list, SOURCE, network, mask, false),
            Self::DestinationOutside(network, mask) => push_address_test(list, DESTINATION, network, mask, true),
            Self::Masquerade => {
                const FULLY_RANDOM: u32 = 1 << 4;
                push_expression(list, "masq", &[(1, &FULLY_RANDOM.to_be_bytes())]);
            }
        }
    }
}

/// Loads an address, masks it, compares it.
fn push_address_test(list: &mut Vec<u8>, offset: u32, network: Ipv4Addr, mask: Ipv4Addr, negated: bool) {
    const NETWORK_HEADER: u32 = 1;
    let register = REGISTER_1.to_be_bytes();
    let length = 4_u32.to_be_bytes();
    push_expression(
        list,
        "payload",
        &[
            (1, &register),
            (2, &NETWORK_HEADER.to_be_bytes()),
            (3, &offset.to_be_bytes()),
            (4, &length),
        ],
    );
    let (mask, zero, network) = (value(mask.octets()), value([0; 4]), value(network.octets()));
    push_expression(
        list,
        "bitwise",
        &[
            (1, &register),
            (2, &register),
            (3, &length),
            (4 | NESTED, &mask),
            (5 | NESTED, &zero),
        ],
    );
    push_expression(
        list,
        "cmp",
        &[
            (1, &register),
            (2, &u32::from(negated).to_be_bytes()),
            (3 | NESTED, &network),
        ],
    );
}

fn value(bytes: [u8; 4]) -> Vec<u8> {
    let mut nested = Vec::new();
    push_attribute(&mut nested, 1, &bytes);
    nested
}

fn push_expression(list: &mut Vec<u8>, name: &str, attributes: &[(u16, &[u8])]) {
    let mut data = Vec::new();
    for (kind, value) in attributes {
        push_attribute(&mut data, *kind, value);
    }
    let mut expression = Vec::new();
    push_attribute(&mut expression, 1, &name.bytes().chain([0]).collect::<Vec<u8>>());
    push_attribute(&mut expression, 2 | NESTED, &data);
    push_attribute(list, 1 | NESTED, &expression);
}
