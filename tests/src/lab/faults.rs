//! What goes wrong in a lab: networks that are cut, packets that get lost, processes that stand still.
//!
//! Only with what every kernel has: a link that is down at its far end, a neighbour that is nobody, and nftables, which drop
//! packets. All are silent, as a broken switch is: nobody is refused, nothing is reset. What is to be late goes through a
//! [`Proxy`](super::Proxy).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use nix::sys::signal::Signal;

use super::Lab;
use crate::run;

/// This machine's address in the backyard: where a database can listen that only hosts joined to it reach.
pub const BACKYARD: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);

/// Nobody's.
const NOBODY: &str = "02:00:00:00:00:01";

impl Lab {
    /// A second network, behind the hosts.
    pub fn add_backyard(&self) {
        run("ip", &["link", "add", "backyard", "type", "bridge"]);
        run("ip", &["addr", "add", &format!("{BACKYARD}/24"), "dev", "backyard"]);
        run("ip", &["link", "set", "backyard", "up"]);
    }

    /// Joins a host to it.
    pub fn join_backyard(&self, name: &str) {
        let (outside, address) = (backdoor(name), self.address(name).replace("10.99.", "10.98."));
        let far = ["peer", "name", "eth1", "netns", name];
        run("ip", &[&["link", "add", &outside, "type", "veth"], &far[..]].concat());
        run("ip", &["link", "set", &outside, "master", "backyard", "up"]);
        run(
            "ip",
            &["-n", name, "addr", "add", &format!("{address}/24"), "dev", "eth1"],
        );
        run("ip", &["-n", name, "link", "set", "eth1", "up"]);
    }

    /// What a host sends there goes nowhere, and nothing comes.
    pub fn cut_backdoor(&self, name: &str) {
        run("ip", &["link", "set", &backdoor(name), "down"]);
    }

    /// It is as before.
    pub fn mend_backdoor(&self, name: &str) {
        run("ip", &["link", "set", &backdoor(name), "up"]);
    }

    /// Packets between two hosts get lost, both ways.
    pub fn part(&self, one: &str, other: &str) {
        for (from, to) in [(one, other), (other, one)] {
            let to = self.address(to);
            let nobody = ["lladdr", NOBODY, "nud", "permanent", "dev", "eth0"];
            run("ip", &[&["-n", from, "neigh", "replace", &to], &nobody[..]].concat());
        }
    }

    /// They arrive again.
    pub fn reunite(&self, one: &str, other: &str) {
        for (from, to) in [(one, other), (other, one)] {
            run("ip", &["-n", from, "neigh", "del", &self.address(to), "dev", "eth0"]);
        }
    }

    /// One packet of a hundred times `part` that a host sends or gets is lost.
    pub fn lose(&self, name: &str, part: u32) {
        let chain = |name: &str, device: &str| {
            format!(
                "chain {name} {{\n type filter hook {name} priority 0;\n {device} \"eth0\" numgen random mod 100 < {part} drop\n}}\n"
            )
        };
        let (there, back) = (chain("output", "oifname"), chain("input", "iifname"));
        self.rules(name, "loss", &format!("table ip loss {{\n{there}{back}}}\n"));
    }

    /// No packet is.
    pub fn lose_nothing(&self, name: &str) {
        self.no_rules(name, "loss");
    }

    /// What a host opens to these addresses goes through these proxies; what is open is reset, at this end only.
    pub fn lead_around(&self, name: &str, ways: &[(SocketAddr, SocketAddr)]) {
        let lead = |(to, proxy): &(SocketAddr, SocketAddr)| {
            let (host, port) = (to.ip(), to.port());
            format!(" ip daddr {host} tcp dport {port} dnat to {proxy}\n")
        };
        // After the other chain: what comes here with such an address was not led around.
        let reset = |(to, _): &(SocketAddr, SocketAddr)| {
            let (host, port) = (to.ip(), to.port());
            format!(" ip daddr {host} tcp dport {port} reject with tcp reset\n")
        };
        let (lead, reset): (String, String) = (ways.iter().map(lead).collect(), ways.iter().map(reset).collect());
        let rules = format!(
            "table ip ways {{\nchain around {{\n type nat hook output priority -100;\n{lead}}}\n\
             chain straight {{\n type filter hook output priority 0;\n{reset}}}\n}}\n"
        );
        self.rules(name, "ways", &rules);
    }

    /// What it opens from now on goes straight; what goes through proxies does so until they cut it.
    pub fn lead_straight(&self, name: &str) {
        self.no_rules(name, "ways");
    }

    fn rules(&self, name: &str, table: &str, rules: &str) {
        let file = self.folder().join(format!("{table}-{name}.nft"));
        fs::write(&file, rules).unwrap();
        let network = format!("--net=/run/netns/{name}");
        run("nsenter", &[&network, "--", "nft", "-f", file.to_str().unwrap()]);
    }

    fn no_rules(&self, name: &str, table: &str) {
        let network = format!("--net=/run/netns/{name}");
        run("nsenter", &[&network, "--", "nft", "delete", "table", "ip", table]);
    }

    /// A host's program stands still; its connections stay open.
    pub fn pause(&self, name: &str) {
        self.signal(name, Signal::SIGSTOP);
    }

    /// It goes on.
    pub fn resume(&self, name: &str) {
        self.signal(name, Signal::SIGCONT);
    }
}

/// The far end of a host's link to the backyard.
fn backdoor(name: &str) -> String {
    format!("b-{name}")
}
