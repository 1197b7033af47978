//! Servers, a network and a clock for the simulation: they decide as `server/src/join` does, on certificates that are lines of
//! text.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::disk::SimulatedDisk;
use crate::chance::Random;
use crate::join::Certificate;
use crate::join::clock::{Floor, Window};
use crate::join::durable::Disk;
use crate::join::enrol::{Ground, Who};
use crate::join::error::JoinError;
use crate::join::key::KeyError;
use crate::join::renewal;
use crate::join::trust::{Shown, TrustError};
use crate::wire::join::ca_hash;
use crate::wire::status::{Reason, Status};
use crate::wire::token::Token;

pub const DAY: u64 = 86_400;
pub const YEAR: u64 = 365 * DAY;
/// The CA of whoever pretends to be a server.
const IMPOSTOR: u64 = 666;
/// The key that a server shares with agents that send no request.
const SHARED: u64 = 1;

/// A certificate of a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leaf {
    pub serial: u64,
    pub key: u64,
    pub window: Window,
    ca: u64,
    name: String,
}

impl Leaf {
    pub fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let words: Vec<_> = text.strip_suffix(" end\n")?.split(' ').collect();
        let ["cert", serial, key, from, until, ca, name] = words[..] else {
            return None;
        };
        let number = |word: &str| word.parse().ok();
        let (from, until) = (number(from)?, number(until)?);
        Some(Self {
            serial: number(serial)?,
            key: number(key)?,
            window: Window { from, until },
            ca: number(ca)?,
            name: name.to_owned(),
        })
    }

    fn write(&self) -> String {
        let Self {
            serial,
            key,
            window,
            ca,
            name,
        } = self;
        format!("cert {serial} {key} {} {} {ca} {name} end\n", window.from, window.until)
    }
}

pub fn read_key(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let text = text.strip_prefix("-----BEGIN EC PRIVATE KEY-----\n")?;
    text.strip_suffix("\n-----END EC PRIVATE KEY-----\n")?.parse().ok()
}

fn write_key(key: u64) -> String {
    format!("-----BEGIN EC PRIVATE KEY-----\n{key}\n-----END EC PRIVATE KEY-----\n")
}

fn write_ca(ca: u64) -> String {
    format!("ca {ca} end\n")
}

pub fn read_ca(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.strip_prefix("ca ")?.strip_suffix(" end\n")?.parse().ok()
}

/// What servers know of a node.
#[derive(Clone, Debug)]
pub struct Record {
    pub password: String,
    pub key: Option<u64>,
    /// An operator lets it come once with another password.
    pub may_return: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub up: bool,
    /// Of its clock, in seconds.
    pub error: i64,
    pub window: Window,
    /// What time it is at least, as its own certificates say.
    pub floor: u64,
}

/// Everything outside the machine, and the machine's clock.
pub struct Cluster {
    pub random: Random,
    /// What time it is, in seconds since 1970.
    pub now: u64,
    /// What the machine's clock shows.
    pub system: u64,
    started: (Instant, u64),
    pub floor: Floor,
    /// A floor was found to be false.
    pub corrected: bool,
    ca: u64,
    /// When the authority begins.
    since: u64,
    secret: u64,
    pub servers: [Server; 2],
    pub records: BTreeMap<String, Record>,
    pub nodes: BTreeSet<String>,
    /// Every password that was ever on record.
    pub accepted: BTreeSet<String>,
    serials: u64,
    keys: u64,
    /// Of requests and answers, one in so many; 0: none.
    pub lost: usize,
    /// Somebody else answers at the address.
    pub impostor: bool,
    /// The machine has every reason not to trust whoever answers.
    pub wary: bool,
    /// Servers make the keys.
    pub old: bool,
    /// Servers are K3s', which know no time but their clocks'.
    pub foreign: bool,
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        let (random, now) = (Random::new(seed), 56 * YEAR);
        let window = Window { from: 0, until: 0 };
        let mut cluster = Self {
            random,
            now,
            system: now,
            started: (Instant::now(), now),
            floor: Floor::default(),
            corrected: false,
            ca: 1,
            since: now - 3600,
            secret: 1,
            servers: [Server {
                up: true,
                error: 0,
                window,
                floor: now - 3600,
            }; 2],
            records: BTreeMap::new(),
            nodes: BTreeSet::new(),
            accepted: BTreeSet::new(),
            serials: 0,
            keys: SHARED,
            lost: 0,
            impostor: false,
            wary: true,
            old: false,
            foreign: false,
        };
        cluster.pass(0);
        cluster
    }

    /// Time goes by; servers renew their certificates in time, by their own clocks.
    pub fn pass(&mut self, seconds: u64) {
        self.now += seconds;
        self.system += seconds;
        for index in 0..self.servers.len() {
            if self.clock_of(index) + 90 * DAY > self.servers[index].window.until {
                self.restart(index);
            }
        }
    }

    /// A server starts, with a fresh certificate.
    pub fn restart(&mut self, index: usize) {
        let (now, signed) = (self.clock_of(index), self.signed(index));
        let server = &mut self.servers[index];
        // A clock before the authority's beginning says nothing of age.
        if server.window.until == 0 || now >= self.since {
            (server.window, server.floor) = (signed, server.floor.max(now));
        }
    }

    /// Operators have the servers make their certificates anew, which forget what they were signed by.
    pub fn rotate_certificates(&mut self) {
        for index in 0..self.servers.len() {
            self.servers[index].floor = self.since;
            self.restart(index);
        }
    }

    /// From when to when is good what a server signs.
    fn signed(&self, index: usize) -> Window {
        let now = self.clock_of(index);
        let least = if self.foreign {
            now
        } else {
            now.max(self.servers[index].floor)
        };
        Window {
            from: self.since.max(now.saturating_sub(3600)),
            until: least + YEAR,
        }
    }

    pub fn clock_of(&self, server: usize) -> u64 {
        self.now.saturating_add_signed(self.servers[server].error)
    }

    /// The cluster is made anew: nobody is known, and nothing old counts.
    pub fn begin_anew(&mut self) {
        (self.ca, self.secret, self.since) = (self.ca + 1, self.secret + 1, self.now - 3600);
        self.records.clear();
        self.nodes.clear();
        self.rotate_certificates();
    }

    pub fn rotate_token(&mut self) {
        self.secret += 1;
    }

    pub fn token(&self, pinned: bool) -> String {
        match pinned {
            true => format!("K10{}::node:s{}", ca_hash(write_ca(self.ca).as_bytes()), self.secret),
            false => format!("s{}", self.secret),
        }
    }

    fn authorization(&self) -> String {
        Token::parse(&self.token(false)).unwrap().authorization("node")
    }

    /// Whether a node may show this certificate to this server.
    pub fn is_good(&self, leaf: &Leaf, server: usize) -> bool {
        let (mut now, floor) = (self.clock_of(server), self.servers[server].floor);
        if !self.foreign && now < floor.min(leaf.window.from) {
            now = floor.max(leaf.window.from);
        }
        leaf.ca == self.ca && (leaf.window.from..=leaf.window.until).contains(&now)
    }

    fn loses(&mut self) -> bool {
        self.lost > 0 && self.random.once_in(self.lost)
    }

    /// A connection to some server, whose certificate must be of the CA `by`, if any. Answers the server, or the impostor.
    fn connect(&mut self, by: Option<u64>) -> Result<Option<usize>, JoinError> {
        let index = self.random.next(self.servers.len());
        if self.loses() || !self.servers[index].up {
            return Err(unreachable());
        }
        let seconds = self.random.next(2) as u64;
        self.pass(seconds);
        let (served, window) = match self.impostor {
            true => (IMPOSTOR, window(self.now)),
            false => (self.ca, self.servers[index].window),
        };
        if let Some(by) = by {
            let elapsed = Duration::from_secs(self.now - self.started.1);
            let before = self.floor.at();
            let (instant, system) = (self.started.0 + elapsed, self.system);
            self.floor.judge(system, Some(window), instant, |at| {
                match by == served && (window.from..=window.until).contains(&at) {
                    true => Ok(()),
                    false => Err(JoinError::Untrusted {
                        server: "server".into(),
                        reason: "invalid".into(),
                    }),
                }
            })?;
            assert!(
                self.floor.at() >= before || before > window.until,
                "the floor went back without need"
            );
            self.corrected |= self.floor.at() < before;
        }
        Ok((!self.impostor).then_some(index))
    }

    /// What a server answers to a request on this link.
    fn answer(&mut self, link: &Link, ask: &Ask<'_>) -> Result<Bytes, JoinError> {
        let Some(server) = self.connect(Some(link.ca))? else {
            assert!(!self.wary, "a secret was told to an impostor");
            return Err(refused(Reason::ServiceUnavailable, "wait"));
        };
        let twice = self.lost > 0 && self.random.once_in(10);
        let mut answered = self.decide(server, link, ask);
        if twice {
            answered = self.decide(server, link, ask);
        }
        if self.loses() {
            return Err(unreachable());
        }
        if answered.is_ok() {
            self.floor.told(self.clock_of(server));
        }
        answered.map(Bytes::from)
    }

    fn decide(&mut self, server: usize, link: &Link, ask: &Ask<'_>) -> Result<String, JoinError> {
        let shown = link.shown.clone().filter(|leaf| self.is_good(leaf, server));
        let by_token = link.authorization.as_ref() == Some(&self.authorization());
        if !by_token && shown.is_none() {
            return Err(match &link.authorization {
                Some(_) => refused(Reason::Unauthorized, "not authorized: see server/node-token"),
                None => refused(
                    Reason::Forbidden,
                    "forbidden: neither a token nor a client certificate was sent",
                ),
            });
        }
        match ask {
            Ask::Get("config") => Ok("{\"ClusterDomain\":\"cluster.local\"}".into()),
            Ask::Get(_) => Ok(write_ca(self.ca)),
            Ask::Sign(which, request, who) => {
                let name = &who.identity.node_name;
                let proof = shown.filter(|leaf| leaf.name == *name).map(|leaf| leaf.key);
                let key = if self.old { SHARED } else { request.parse().unwrap() };
                if matches!(which, Certificate::ClientKubelet | Certificate::ServingKubelet) {
                    if !by_token && !self.nodes.contains(name) {
                        return Err(refused(Reason::Unauthorized, "node does not exist any more"));
                    }
                    let noted = Some(key).filter(|_| *which == Certificate::ClientKubelet && !self.old);
                    self.admit(name, who.identity.password.expose(), proof, noted)?;
                }
                self.serials += 1;
                let (serial, window, ca) = (self.serials, self.signed(server), self.ca);
                let Server { error, floor, .. } = self.servers[server];
                let right = (window.from..=window.until).contains(&self.now);
                // A clock that stays behind for longer than certificates last knows no better.
                let hopeless = self.foreign || error > 40 || self.now > floor + YEAR;
                assert!(right || hopeless, "signed {window:?} at {}", self.now);
                let leaf = Leaf {
                    serial,
                    key,
                    window,
                    ca,
                    name: name.clone(),
                };
                let theirs = if self.old { write_key(key) } else { String::new() };
                Ok(leaf.write() + &theirs)
            }
        }
    }

    fn admit(&mut self, name: &str, password: &str, proof: Option<u64>, key: Option<u64>) -> Result<(), JoinError> {
        if let Some(record) = self.records.get_mut(name) {
            if record.password == password {
                record.key = key.or(record.key);
                return Ok(());
            }
            let proved = proof.is_some() && proof == record.key;
            if !proved && !record.may_return {
                let cure = format!("node name {name} is taken: kubectl delete node {name}");
                return Err(refused(Reason::Forbidden, &cure));
            }
        }
        self.accepted.insert(password.to_owned());
        let record = Record {
            password: password.to_owned(),
            key: key.or(proof),
            may_return: false,
        };
        self.records.insert(name.to_owned(), record);
        Ok(())
    }
}

/// Of a certificate signed by a clock that shows `now`.
const fn window(now: u64) -> Window {
    Window {
        from: now.saturating_sub(3600),
        until: now + YEAR,
    }
}

fn unreachable() -> JoinError {
    JoinError::Unreachable {
        server: "server".into(),
        reason: "timeout".into(),
    }
}

fn refused(reason: Reason, message: &str) -> JoinError {
    JoinError::of_status(&Status::failure(reason, message), "/v1-k3s", "pi")
}

enum Ask<'a> {
    Get(&'a str),
    Sign(Certificate, String, &'a Who<'a>),
}

/// Trust in a CA, and what is shown to its servers.
pub struct Link {
    ca: u64,
    shown: Option<Leaf>,
    authorization: Option<String>,
}

/// The machine as an enrolment sees it.
pub struct Machine<'a> {
    pub disk: &'a SimulatedDisk,
    pub cluster: &'a RefCell<Cluster>,
}

impl Ground for Machine<'_> {
    type Link = Link;

    fn disk(&self) -> &dyn Disk {
        self.disk
    }

    async fn ca(&self, by: Option<&[u8]>) -> Result<Bytes, JoinError> {
        let by = by.map(|by| read_ca(by).ok_or(TrustError::NoCa)).transpose()?;
        if !self.disk.tick() {
            return Err(unreachable());
        }
        let mut cluster = self.cluster.borrow_mut();
        let served = cluster.connect(by)?.map_or(IMPOSTOR, |_| cluster.ca);
        match cluster.loses() {
            true => Err(unreachable()),
            false => Ok(write_ca(served).into()),
        }
    }

    fn link(&self, ca: &[u8], shown: Option<Shown<'_>>, authorization: Option<String>) -> Result<Link, TrustError> {
        // A chain is taken for a CA where only its key is of interest.
        let is_leaf = || Leaf::read(ca).map(|_| 0);
        let ca = read_ca(ca).or_else(is_leaf).ok_or(TrustError::NoCa)?;
        let shown = shown.map(|shown| {
            let leaf = Leaf::read(shown.chain).filter(|leaf| read_key(shown.key) == Some(leaf.key));
            leaf.ok_or(TrustError::NoCa)
        });
        Ok(Link {
            ca,
            shown: shown.transpose()?,
            authorization,
        })
    }

    async fn get(&self, link: &Link, route: &str) -> Result<Bytes, JoinError> {
        if !self.disk.tick() {
            return Err(unreachable());
        }
        self.cluster.borrow_mut().answer(link, &Ask::Get(route))
    }

    async fn sign(&self, link: &Link, which: Certificate, request: Vec<u8>, who: &Who<'_>) -> Result<Bytes, JoinError> {
        if !self.disk.tick() {
            return Err(unreachable());
        }
        let request = String::from_utf8(request).unwrap();
        self.cluster.borrow_mut().answer(link, &Ask::Sign(which, request, who))
    }

    fn window(&self, chain: &[u8]) -> Option<Window> {
        Leaf::read(chain).map(|leaf| leaf.window)
    }

    fn is_over(&self, window: Window) -> bool {
        let cluster = self.cluster.borrow();
        renewal::is_over(window, cluster.system, cluster.floor.at())
    }

    fn key(&self, kept: Option<&[u8]>) -> Result<(String, Vec<u8>), KeyError> {
        let mut cluster = self.cluster.borrow_mut();
        let key = kept.and_then(read_key).unwrap_or_else(|| {
            cluster.keys += 1;
            cluster.keys
        });
        Ok((write_key(key), key.to_string().into_bytes()))
    }
}
