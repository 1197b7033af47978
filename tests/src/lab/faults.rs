//! What goes wrong in a lab: networks that are cut, packets that get lost, processes that stand still.
//!
//! Only with what every kernel has: a link that is down at its far end, and a neighbour that is nobody. Both are silent,
//! as a broken switch is: nobody is refused, nothing is reset.

use std::net::Ipv4Addr;

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

    /// A host's program stands still; its connections stay open.
    pub fn pause(&self, name: &str) {
        run("kill", &["-STOP", &self.pid(name).to_string()]);
    }

    /// It goes on.
    pub fn resume(&self, name: &str) {
        run("kill", &["-CONT", &self.pid(name).to_string()]);
    }
}

/// The far end of a host's link to the backyard.
fn backdoor(name: &str) -> String {
    format!("b-{name}")
}
