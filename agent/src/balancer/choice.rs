//! Which server next. Pure.
//!
//! One server carries all connections as long as it works (clients of a cluster want one view of it), and which one that
//! is differs from node to node. Nothing is ever struck off because it failed: the last way stays a way. Lessons of K3s'
//! issues 10240, 11349, rke2 5949.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

/// How a server does.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum State {
    /// Its tunnel or the last dial works.
    Healthy,
    /// Not tried yet.
    Unchecked,
    /// The configured address, when the cluster names others: the last resort.
    Standby,
    /// It answers, and says that its datastore does not: writes fail there.
    Unready,
    /// Its tunnel broke, or a dial failed.
    Failed,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Server {
    address: String,
    state: State,
    /// It has said that it cannot write, and nothing else since.
    says_unready: bool,
    /// Differs between nodes, so that they spread.
    rank: u64,
}

/// What a dial that worked brings.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Dialed {
    /// The server had failed before.
    pub recovered: bool,
    /// Servers whose connections have to end: they failed, and this one works.
    pub left: Vec<String>,
}

/// The servers of the cluster.
#[derive(Clone, Debug)]
pub struct Choice {
    default: String,
    seed: u64,
    servers: Vec<Server>,
    current: Option<String>,
}

impl Choice {
    /// Only the configured server and those of an earlier run. `seed`: of this node.
    pub fn new(default: &str, remembered: &[String], seed: u64) -> Self {
        let mut choice = Self {
            default: default.to_owned(),
            seed,
            servers: Vec::new(),
            current: None,
        };
        choice.set(remembered);
        choice
    }

    /// The servers that the cluster names; none: only the configured one. Returns those whose connections have to end:
    /// they are gone, or now the last resort while another works.
    pub fn set(&mut self, addresses: &[String]) -> Vec<String> {
        let named = |address: &String| addresses.contains(address);
        let mut gone = Vec::new();
        self.servers.retain(|server| {
            let stays = named(&server.address) || server.address == self.default;
            if !stays {
                gone.push(server.address.clone());
            }
            stays
        });
        for address in addresses.iter().chain([&self.default.clone()]) {
            if !self.servers.iter().any(|server| server.address == *address) {
                let rank = BuildHasherDefault::<DefaultHasher>::default().hash_one((self.seed, address));
                self.servers.push(Server {
                    address: address.clone(),
                    state: State::Unchecked,
                    says_unready: false,
                    rank,
                });
            }
        }
        let only_resort = !addresses.is_empty() && !addresses.contains(&self.default);
        for server in &mut self.servers {
            match (server.address == self.default && only_resort, server.state) {
                (true, _) => server.state = State::Standby,
                (false, State::Standby) => server.state = State::Unchecked,
                (false, State::Healthy | State::Unchecked | State::Unready | State::Failed) => {}
            }
        }
        let standby = |address: &String| only_resort && *address == self.default;
        self.current = self
            .current
            .take()
            .filter(|current| !gone.contains(current) && !standby(current));
        let another_works = self.servers.iter().any(|server| server.state == State::Healthy);
        if only_resort && another_works {
            gone.push(self.default.clone());
        }
        gone
    }

    /// All servers, in the order in which a new connection tries them.
    pub fn order(&self) -> Vec<String> {
        let mut all: Vec<&Server> = self.servers.iter().collect();
        all.sort_by_key(|server| {
            let works = !matches!(server.state, State::Failed | State::Unready);
            let current = self.current.as_ref() == Some(&server.address) && works;
            (!current, server.state, server.rank)
        });
        all.into_iter().map(|server| server.address.clone()).collect()
    }

    /// A dial worked.
    pub fn dialed(&mut self, address: &str) -> Dialed {
        let Some(server) = self.find(address) else {
            return Dialed::default();
        };
        let recovered = server.state == State::Failed;
        if matches!(server.state, State::Unchecked | State::Failed) {
            server.state = if server.says_unready {
                State::Unready
            } else {
                State::Healthy
            };
        }
        self.current = Some(address.to_owned());
        let mut left = self.left();
        // Its tunnel may stand for one that is gone: whoever was carried here has no other way.
        left.retain(|other| other != address);
        Dialed { recovered, left }
    }

    /// Its tunnel stands. Returns the servers whose connections have to end, because there is a better way again: the
    /// failed ones, and the last resort.
    pub fn up(&mut self, address: &str) -> Vec<String> {
        let Some(server) = self.find(address).filter(|server| server.state != State::Standby) else {
            return Vec::new();
        };
        (server.state, server.says_unready) = (State::Healthy, false);
        let mut left = self.left();
        let resort = self.servers.iter().find(|server| server.state == State::Standby);
        if let Some(resort) = resort.map(|server| server.address.clone()) {
            if self.current.as_ref() == Some(&resort) {
                self.current = None;
            }
            left.push(resort);
        }
        left
    }

    /// The failed servers, if another works: a connection that had nowhere to go when its server failed goes now.
    fn left(&self) -> Vec<String> {
        let of = |state| self.servers.iter().filter(move |server| server.state == state);
        let fallen = of(State::Unready).chain(of(State::Failed));
        match of(State::Healthy).next() {
            None => Vec::new(),
            Some(_) => fallen.map(|server| server.address.clone()).collect(),
        }
    }

    /// A dial failed, or its tunnel broke. Returns whether its connections should end, so that their clients come again
    /// by another way: only if there is one.
    pub fn down(&mut self, address: &str) -> bool {
        self.fall(address, State::Failed)
    }

    /// It says that it cannot write. As [`Choice::down`], but that it can be dialed tells nothing then: only [`Choice::up`]
    /// does. Where all say so, connections stay where they are: what is only read can be had there.
    pub fn unready(&mut self, address: &str) -> bool {
        if let Some(server) = self.find(address) {
            server.says_unready = true;
        }
        self.fall(address, State::Unready)
    }

    fn fall(&mut self, address: &str, state: State) -> bool {
        let Some(server) = self.find(address) else { return false };
        if server.state != State::Standby {
            server.state = state;
        }
        if self.current.as_deref() == Some(address) {
            self.current = None;
        }
        self.servers
            .iter()
            .any(|other| other.address != address && other.state == State::Healthy)
    }

    /// The server that new connections go to.
    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// The servers that the cluster named; the configured one alone if it named none.
    pub fn addresses(&self) -> Vec<String> {
        let known = self.servers.iter().filter(|server| server.state != State::Standby);
        let mut all: Vec<String> = known.map(|server| server.address.clone()).collect();
        all.sort_unstable();
        all
    }

    /// The servers that do so; sorted.
    pub fn in_state(&self, state: State) -> Vec<String> {
        let all = self.servers.iter().filter(|server| server.state == state);
        let mut all: Vec<String> = all.map(|server| server.address.clone()).collect();
        all.sort_unstable();
        all
    }

    /// How a server does.
    #[cfg(test)]
    pub fn state(&self, address: &str) -> Option<State> {
        let mut servers = self.servers.iter();
        servers
            .find(|server| server.address == address)
            .map(|server| server.state)
    }

    fn find(&mut self, address: &str) -> Option<&mut Server> {
        self.servers.iter_mut().find(|server| server.address == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn one_server_stays_a_way_whatever_happens() {
        let mut choice = Choice::new("a:1", &[], 0);
        assert!(!choice.down("a:1"));
        assert_eq!(choice.order(), ["a:1"]);
        choice.set(&[]);
        assert_eq!(choice.order(), ["a:1"]);
    }

    #[test]
    fn the_current_server_stays_until_it_fails_and_gets_nothing_back_by_coming_back() {
        let mut choice = Choice::new("a:1", &servers(&["a:1", "b:1"]), 0);
        choice.up("a:1");
        choice.up("b:1");
        choice.dialed("a:1");
        assert_eq!(choice.order(), ["a:1", "b:1"]);
        assert!(choice.down("a:1"), "there is another way");
        assert_eq!(choice.order(), ["b:1", "a:1"]);
        choice.dialed("b:1");
        choice.up("a:1");
        assert_eq!(choice.order(), ["b:1", "a:1"]);
    }

    #[test]
    fn a_server_that_cannot_write_is_left_until_it_says_that_it_can() {
        let mut choice = Choice::new("a:1", &servers(&["a:1", "b:1"]), 0);
        choice.up("a:1");
        choice.up("b:1");
        choice.dialed("a:1");
        assert!(choice.unready("a:1"), "there is another way");
        assert_eq!(choice.order(), ["b:1", "a:1"]);
        choice.dialed("b:1");
        assert!(!choice.unready("b:1"), "nobody can write: it stays where it is");
        // Whichever is dialed then, that it answers makes it no better.
        assert_eq!(choice.dialed("a:1"), Dialed::default());
        assert_eq!(choice.state("a:1"), Some(State::Unready));
        assert_eq!(choice.up("a:1"), ["b:1"], "what had nowhere to go goes now");
        assert_eq!(choice.order(), ["a:1", "b:1"]);
        choice.down("a:1");
        assert_eq!(choice.order(), ["b:1", "a:1"], "better one that answers than none");
        choice.dialed("b:1");
        choice.down("b:1");
        assert!(choice.dialed("b:1").recovered);
        assert_eq!(choice.state("b:1"), Some(State::Unready), "it has not said otherwise");
    }

    #[test]
    fn who_had_to_go_to_a_server_that_cannot_write_is_not_sent_away_again() {
        let mut choice = Choice::new("a:1", &servers(&["a:1", "b:1"]), 0);
        choice.up("a:1");
        choice.up("b:1");
        choice.unready("a:1");
        // Nobody has noticed yet that the other one is silent.
        assert_eq!(choice.dialed("a:1"), Dialed::default());
    }

    #[test]
    fn the_configured_address_is_a_last_resort_once_the_cluster_names_others() {
        let mut choice = Choice::new("vip:1", &[], 0);
        choice.dialed("vip:1");
        choice.set(&servers(&["a:1", "b:1"]));
        assert_eq!(choice.order().last().map(String::as_str), Some("vip:1"));
        assert_eq!(choice.addresses(), ["a:1", "b:1"]);
        choice.down("a:1");
        choice.down("b:1");
        assert_eq!(choice.order()[0], "vip:1", "better than what has failed");
    }

    #[test]
    fn a_server_that_is_no_longer_named_is_gone() {
        let mut choice = Choice::new("a:1", &servers(&["a:1", "b:1"]), 0);
        choice.dialed("b:1");
        assert_eq!(choice.set(&servers(&["a:1"])), ["b:1"]);
        assert_eq!(choice.order(), ["a:1"]);
        choice.up("b:1");
        assert_eq!(choice.order(), ["a:1"]);
    }

    #[test]
    fn nodes_spread_over_equal_servers() {
        let first = |seed| Choice::new("a:1", &servers(&["a:1", "b:1"]), seed).order()[0] == "a:1";
        let count = (0..1000).filter(|seed| first(*seed)).count();
        assert!((400..600).contains(&count), "{count} of 1000 begin with one of two");
    }
}
