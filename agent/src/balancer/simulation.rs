//! The choice of servers in a simulated network: servers that die with and without a word, stand still, come back, join and leave the
//! cluster; a registration address before them; tunnels and connections of one agent. Ten thousand seeds.
//!
//! What must hold, whatever happens: the configured address is always among the ways; a dial finds a server that works
//! whenever there is one, within its time; the server in use stays in use as long as it works; a connection is cut only
//! when there is another way, and none stays on a server that has failed or fallen silent while another works; and once the network is well
//! again, everything goes straight to one server.

use std::time::Duration;

use super::choice::{Choice, Dialed, State};
use crate::chance::{Random, simulate};
use crate::dial::{HEAD_START, LIMIT};

const VIP: &str = "vip:6443";
const SERVERS: [&str; 4] = ["a:6443", "b:6443", "c:6443", "d:6443"];

/// Milliseconds, as tunnels do.
const SILENCE: u64 = 20_000;
const RETRY: u64 = 15_000;
const ROUND_TRIP: u64 = 50;
/// How long a dial waits for the tunnel of a server that accepts, and when connections leave one whose tunnel stays silent.
const PULSE: u64 = 2_000;
const PATIENCE: u64 = 3_000;
/// When a server that carries connections is asked, of which nothing is heard.
const QUIET: u64 = 3_000;
/// Between two looks at the tunnels.
const LOOK: u64 = 1_000;

/// How a machine answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Machine {
    Works,
    /// The process is gone: the kernel refuses.
    Refuses,
    /// The machine or the way to it is gone.
    Silent,
    /// The process stands still: the kernel accepts, and nothing answers.
    Frozen,
}

struct Tunnel {
    address: String,
    /// `None`: down, to be tried at `next`.
    stands: bool,
    next: u64,
    /// Nothing is heard of its server.
    silent: Option<u64>,
    /// Connections to it could go elsewhere.
    better: Option<u64>,
    /// A dial has noticed that: when connections leave.
    given_up: Option<u64>,
}

struct World {
    now: u64,
    random: Random,
    /// The configured address.
    default: &'static str,
    choice: Choice,
    machines: [Machine; SERVERS.len()],
    /// Which servers the cluster consists of.
    members: [bool; SERVERS.len()],
    vip: Machine,
    tunnels: Vec<Tunnel>,
    /// Addresses that connections were dialed to.
    connections: Vec<String>,
    /// The server that the last connection went to, if nothing has happened to it since.
    sticky: Option<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let straight = random.once_in(3);
        let default = if straight { SERVERS[0] } else { VIP };
        let remembered = match random.next(3) {
            0 => vec![],
            1 => vec![SERVERS[0].to_owned(), SERVERS[1].to_owned()],
            _ => vec!["of-another-time:6443".to_owned()],
        };
        Self {
            now: 0,
            default,
            choice: Choice::new(default, &remembered, seed),
            random,
            machines: [Machine::Works; SERVERS.len()],
            members: [true, true, false, false],
            vip: Machine::Works,
            tunnels: Vec::new(),
            connections: Vec::new(),
            sticky: None,
        }
    }

    /// How an address answers; the registration address leads to any member that works.
    fn machine(&self, address: &str) -> Machine {
        if address == VIP {
            let member_works = |(machine, member): (&Machine, &bool)| *member && *machine == Machine::Works;
            let any = self.machines.iter().zip(&self.members).any(member_works);
            return if any { self.vip } else { Machine::Refuses };
        }
        let index = SERVERS.iter().position(|server| *server == address);
        index.map_or(Machine::Silent, |index| self.machines[index])
    }

    fn step(&mut self) {
        match self.random.next(10) {
            0 => self.fail(),
            1 => self.repair(),
            2 => self.change_members(),
            3 => self.ask(),
            4..=6 => drop(self.connect()),
            _ => {
                let pause = [100, 1_000, 30_000][self.random.next(3)];
                self.pass(pause);
            }
        }
        self.check_ways();
        self.check_connections();
    }

    fn fail(&mut self) {
        let how = [Machine::Refuses, Machine::Silent, Machine::Frozen][self.random.next(3)];
        match self.random.next(SERVERS.len() + 1) {
            0 => self.vip = how,
            index => self.machines[index - 1] = how,
        }
        if how == Machine::Refuses {
            // Its connections are reset, all at once.
            let broken: Vec<String> = self.connections.clone();
            let broken = broken
                .iter()
                .filter(|address| self.machine(address) == Machine::Refuses);
            let broken: Vec<String> = broken.cloned().collect();
            self.connections.retain(|address| !broken.contains(address));
        }
    }

    fn repair(&mut self) {
        match self.random.next(SERVERS.len() + 1) {
            0 => self.vip = Machine::Works,
            index => self.machines[index - 1] = Machine::Works,
        }
    }

    fn change_members(&mut self) {
        let index = self.random.next(SERVERS.len());
        self.members[index] = !self.members[index] || self.members.iter().filter(|member| **member).count() == 1;
    }

    /// The agent asks for the servers, if it reaches one.
    fn ask(&mut self) {
        if self.connect().is_none() {
            return;
        }
        let members = SERVERS.iter().zip(self.members).filter(|(_, member)| *member);
        let list: Vec<String> = members.map(|(server, _)| (*server).to_owned()).collect();
        for gone in self.choice.set(&list) {
            assert!(!list.contains(&gone), "{gone} is named");
            self.cut(&gone);
        }
        // What has become the last resort is left as soon as there is a straight way.
        let named = self.choice.addresses();
        self.sticky = self.sticky.take().filter(|sticky| named.contains(sticky));
        self.tend_tunnels();
    }

    fn cut(&mut self, address: &str) {
        self.connections.retain(|connection| connection != address);
        if self.sticky.as_deref() == Some(address) {
            self.sticky = None;
        }
    }

    /// Tunnels to those servers that the choice names, and no others.
    fn tend_tunnels(&mut self) {
        let wanted = self.choice.addresses();
        self.tunnels.retain(|tunnel| wanted.contains(&tunnel.address));
        for address in wanted {
            if !self.tunnels.iter().any(|tunnel| tunnel.address == address) {
                let (stands, next) = (false, self.now);
                self.tunnels.push(Tunnel {
                    address,
                    stands,
                    next,
                    silent: None,
                    better: None,
                    given_up: None,
                });
            }
        }
    }

    /// Time goes by, second by second at most; tunnels open, break and are tried again.
    fn pass(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds;
        while self.now < end {
            self.now = (self.now + LOOK).min(end);
            for index in 0..self.tunnels.len() {
                self.tick(index);
            }
            self.check_silent();
        }
    }

    fn tick(&mut self, index: usize) {
        let address = self.tunnels[index].address.clone();
        let (machine, now) = (self.machine(&address), self.now);
        let could_leave = self.connections.contains(&address) && self.another_lives(&address);
        let tunnel = &mut self.tunnels[index];
        if !tunnel.stands {
            if tunnel.next > now {
                return;
            }
            tunnel.stands = machine == Machine::Works;
            tunnel.next = now + RETRY;
            let stands = tunnel.stands;
            self.report(&address, stands);
            return;
        }
        let broken = match machine {
            Machine::Works => {
                (tunnel.silent, tunnel.given_up) = (None, None);
                false
            }
            Machine::Refuses => true,
            Machine::Silent | Machine::Frozen => {
                let patience = if could_leave { QUIET + PATIENCE } else { SILENCE };
                let over = *tunnel.silent.get_or_insert(now) + patience <= now;
                over || tunnel.given_up.is_some_and(|at| at <= now)
            }
        };
        if broken {
            tunnel.stands = false;
            (tunnel.silent, tunnel.given_up) = (None, None);
            tunnel.next = now + 1_000;
            self.report(&address, false);
        }
    }

    fn report(&mut self, address: &str, up: bool) {
        if up {
            for left in self.choice.up(address) {
                self.cut(&left);
            }
            return;
        }
        if self.sticky.as_deref() == Some(address) {
            self.sticky = None;
        }
        let cut = self.choice.down(address);
        if cut {
            let other = self.choice.order().into_iter().find(|other| other != address);
            assert!(other.is_some(), "connections are cut only when there is another way");
            self.cut(address);
        }
    }

    /// A connection: each server gets a head start before the next is tried beside it. Returns where it went.
    fn connect(&mut self) -> Option<String> {
        let order = self.choice.order();
        let (head_start, dial_limit) = (milliseconds(HEAD_START), milliseconds(LIMIT));
        let (mut begin, mut answers) = (0, Vec::new());
        for address in &order {
            let (worked, at) = match self.machine(address) {
                Machine::Works => (true, begin + ROUND_TRIP),
                Machine::Refuses => (false, begin + ROUND_TRIP),
                Machine::Silent => (false, begin + dial_limit),
                // Without a tunnel nothing tells it from one that works.
                Machine::Frozen if !self.has_tunnel(address) => (true, begin + ROUND_TRIP),
                Machine::Frozen => {
                    self.doubt(address);
                    (true, begin + if order.len() > 1 { PULSE } else { ROUND_TRIP })
                }
            };
            answers.push((at, worked, address.clone()));
            // The next begins after the head start, or once nobody is being dialed any more.
            let idle = answers.iter().map(|(at, ..)| *at).max().unwrap_or(begin);
            begin = idle.min(begin + head_start);
        }
        answers.sort();
        let winner = answers.iter().find(|(_, worked, _)| *worked).cloned();
        let until = winner.as_ref().map_or(u64::MAX, |(at, ..)| *at);
        for (.., address) in answers.iter().filter(|(at, ..)| *at < until) {
            self.report(address, false);
        }
        // Of all ways there are, not only of those that were tried.
        let mut ways = self.choice.addresses();
        ways.push(self.default.to_owned());
        let is = |how| ways.iter().any(|address| self.machine(address) == how);
        let (works, frozen) = (is(Machine::Works), is(Machine::Frozen));
        assert_eq!(winner.is_some(), works || frozen, "a server that works is found");
        let (at, _, address) = winner?;
        if works {
            let known = self.machine(&address) != Machine::Frozen || !self.has_tunnel(&address);
            assert!(known, "{address} stands still, and its tunnel told so");
            assert!(
                at <= head_start * (order.len() as u64 - 1) + ROUND_TRIP,
                "after {at} ms"
            );
        }
        if let Some(sticky) = self
            .sticky
            .take()
            .filter(|sticky| self.machine(sticky) == Machine::Works)
        {
            assert_eq!(address, sticky, "the server in use stays in use");
        }
        if self.machine(&address) == Machine::Frozen && self.has_tunnel(&address) {
            // Better than none, and it proves nothing.
            return Some(address);
        }
        let Dialed { recovered, left } = self.choice.dialed(&address);
        for left in left {
            self.cut(&left);
        }
        if recovered {
            for tunnel in &mut self.tunnels {
                tunnel.next = tunnel.next.min(self.now + 1_000);
            }
        }
        self.connections.push(address.clone());
        self.sticky = Some(address.clone());
        Some(address)
    }

    fn has_tunnel(&self, address: &str) -> bool {
        self.tunnels
            .iter()
            .any(|tunnel| tunnel.address == address && tunnel.stands)
    }

    /// Another server gives a sign of life through its tunnel.
    fn another_lives(&self, address: &str) -> bool {
        let mut others = self.tunnels.iter().filter(|tunnel| tunnel.address != address);
        others.any(|tunnel| tunnel.stands && self.machine(&tunnel.address) == Machine::Works)
    }

    /// A dial has asked its tunnel, and the tunnel says nothing.
    fn doubt(&mut self, address: &str) {
        let until = self.now + PATIENCE;
        for tunnel in self.tunnels.iter_mut().filter(|tunnel| tunnel.address == address) {
            let given_up = tunnel.given_up.get_or_insert(until);
            *given_up = until.min(*given_up);
        }
    }

    fn check_ways(&self) {
        let order = self.choice.order();
        let mut sorted = order.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), order.len(), "no way twice: {order:?}");
        let named = self.choice.addresses();
        assert!(!named.is_empty());
        assert!(named.iter().all(|address| order.contains(address)));
        assert!(
            order.iter().any(|address| address == self.default),
            "the configured address stays a way"
        );
    }

    fn check_connections(&self) {
        let is = |address: &String, state| self.choice.state(address) == Some(state);
        let ways = self.choice.addresses();
        if let Some(works) = ways.iter().find(|address| is(address, State::Healthy)) {
            let left = self.connections.iter().find(|address| is(address, State::Failed));
            assert_eq!(left, None, "a connection stays on a failed server while {works} works");
        }
    }

    /// Who is connected to a server that has fallen silent goes elsewhere as soon as another one has lived for so long.
    fn check_silent(&mut self) {
        for index in 0..self.tunnels.len() {
            let Tunnel { address, silent, .. } = &self.tunnels[index];
            let stays = silent.is_some() && self.connections.contains(address) && self.another_lives(address);
            let tunnel = &mut self.tunnels[index];
            tunnel.better = tunnel.better.filter(|_| stays).or(stays.then_some(self.now));
            let stayed = self.now - tunnel.better.unwrap_or(self.now);
            assert!(
                stayed <= QUIET + PATIENCE + LOOK,
                "{} is silent, {stayed} ms",
                tunnel.address
            );
        }
    }

    /// A quiet week in which nothing can be reached, then everything works.
    fn settle(&mut self) {
        self.machines = [Machine::Silent; SERVERS.len()];
        self.vip = Machine::Silent;
        self.pass(60_000);
        self.now += 7 * 24 * 3_600_000;
        self.connections.clear();
        assert_eq!(self.connect(), None);
        self.machines = [Machine::Works; SERVERS.len()];
        self.vip = Machine::Works;
        self.pass(RETRY + 1_000);
        for _ in 0..2 {
            self.ask();
            self.pass(RETRY + 1_000);
        }
        let first = self.connect().expect("all servers work");
        for _ in 0..3 {
            assert_eq!(self.connect().as_deref(), Some(first.as_str()));
        }
        let members = SERVERS.iter().zip(self.members).filter(|(_, member)| *member);
        let mut members: Vec<&str> = members.map(|(server, _)| *server).collect();
        members.sort_unstable();
        let named = self.choice.addresses();
        assert_eq!(named, members);
        assert!(members.contains(&first.as_str()), "{first} is not the way: {members:?}");
        assert!(
            self.connections.iter().all(|address| named.contains(address)),
            "{:?}",
            self.connections
        );
        assert!(self.tunnels.iter().all(|tunnel| tunnel.stands));
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

#[test]
fn an_agent_finds_its_way_whatever_happens_to_the_servers() {
    simulate(10_000, |seed| {
        let mut world = World::new(seed);
        world.tend_tunnels();
        for _ in 0..120 {
            world.step();
        }
        world.settle();
    });
}
