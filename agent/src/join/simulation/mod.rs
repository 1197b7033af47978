//! A machine's identity in a simulated world: power cuts between any two steps on disk and network, requests and answers that
//! are lost or doubled, servers that forget and that have wrong clocks, an impostor, a clock from 1970 or years ahead, reflashed
//! and damaged cards, operators who delete, rotate and begin anew. Ten thousand seeds.
//!
//! What must hold, whatever happens: a password is replaced only when it is damaged and a server has accepted another; no half
//! file is taken for a whole one; a certificate never gives way to an older one, nor to one that ends before it begins; no key is
//! used with another's certificate; a time floor goes back only when a server has proved it false; no secret goes to an
//! impostor. And once the world is calm, the machine gets in, or says what an operator has to do, and then gets in.

mod cluster;
mod disk;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use serde_json::Value;

use self::cluster::{Cluster, DAY, Leaf, Machine, Record, YEAR, read_ca, read_key};
use self::disk::SimulatedDisk;
use super::clock::{self, Window};
use super::enrol::Enrolment;
use super::error::JoinError;
use super::files::{Certificate, Files};
use super::identity::{Identity, IdentityError};
use super::renewal;
use crate::chance::simulate;

const NODE: &str = "/n";
const DATA: &str = "/d";
const OWN: [Certificate; 2] = [Certificate::ClientKubelet, Certificate::ServingKubelet];
/// More than any start and enrolment takes.
const STEPS: usize = 160;

struct World {
    cluster: RefCell<Cluster>,
    disk: SimulatedDisk,
    files: Files,
    with_id: bool,
    /// As the operator has it configured.
    token: Option<String>,
    /// The agent, if it runs, and whether it has joined.
    agent: Option<(Identity, bool)>,
    /// The password file as it was last seen.
    password: Option<Vec<u8>>,
    /// The password file before it was damaged.
    copy: Option<Vec<u8>>,
    name: Option<String>,
    /// The newest certificates seen on disk.
    serials: [u64; 2],
    /// The time floor last seen on disk.
    floor: u64,
    /// A server had proved it false when it was last written.
    was_false: bool,
}

/// Runs what never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("nothing here waits"),
    }
}

fn password_file() -> PathBuf {
    Path::new(NODE).join("password")
}

impl World {
    fn new(seed: u64) -> Self {
        let mut cluster = Cluster::new(seed);
        let pinned = !cluster.random.once_in(3);
        let token = cluster.token(pinned);
        cluster.old = cluster.random.once_in(5);
        cluster.foreign = cluster.random.once_in(3);
        Self {
            with_id: cluster.random.once_in(3),
            token: Some(token),
            cluster: RefCell::new(cluster),
            disk: SimulatedDisk::default(),
            files: Files { dir: DATA.into() },
            agent: None,
            password: None,
            copy: None,
            name: None,
            serials: [0; 2],
            floor: 0,
            was_false: false,
        }
    }

    fn draw(&self, below: usize) -> usize {
        self.cluster.borrow_mut().random.next(below)
    }

    /// Some things happen to the world, and then the machine does something.
    fn step(&mut self) {
        for _ in 0..self.draw(4) {
            match self.draw(5) {
                0 => self.disturb_machine(),
                1 => self.disturb_servers(),
                2 => self.disturb_network(),
                3 => self.set_clock(),
                _ => self.act_as_operator(),
            }
        }
        match self.draw(2) {
            0 => self.start(true),
            _ => self.look(true),
        }
        self.check();
    }

    fn ground(&self) -> Machine<'_> {
        Machine {
            disk: &self.disk,
            cluster: &self.cluster,
        }
    }

    fn enrolment<'a>(&'a self, ground: &'a Machine<'a>, identity: &'a Identity) -> Enrolment<'a, Machine<'a>> {
        Enrolment {
            ground,
            files: &self.files,
            identity,
            server: "https://server:6443".into(),
            api: Box::new(|_| "https://127.0.0.1:6444".into()),
            token: self.token.as_deref(),
            ips: String::new(),
        }
    }

    fn leaf(&self, which: Certificate) -> Option<Leaf> {
        Leaf::read(&self.disk.peek(&self.files.cert(which))?)
    }

    fn windows(&self) -> [Option<Window>; 2] {
        OWN.map(|which| Some(self.leaf(which)?.window))
    }

    /// A start, and the attempt with which each begins. `risky`: the power may fail.
    fn start(&mut self, risky: bool) {
        self.agent = None;
        self.disk
            .set_fuse((risky && self.draw(2) == 0).then(|| self.draw(STEPS)));
        let floor = clock::left(&self.disk, &self.files, &self.windows());
        if !self.disk.is_dead() {
            assert!(floor.at() >= self.floor, "a start forgets what time it was");
        }
        (self.cluster.borrow_mut().floor, self.was_false) = (floor, false);
        match Identity::open_on(&self.disk, Path::new(NODE), "pi", self.with_id) {
            Ok(identity) => self.run(identity),
            Err(error) => self.cannot_start(&error),
        }
        self.after();
    }

    fn run(&mut self, identity: Identity) {
        assert_eq!(
            *self.name.get_or_insert(identity.node_name.clone()),
            identity.node_name,
            "it became another node"
        );
        let ground = self.ground();
        let remembered = self.enrolment(&ground, &identity).remembered();
        if remembered.is_some() {
            self.check_whole();
        }
        self.agent = Some((identity, remembered.is_some()));
        if self.agent.is_some() {
            let _ = self.attempt();
        }
    }

    fn cannot_start(&self, error: &IdentityError) {
        if self.disk.is_dead() {
            return;
        }
        let text = format!("{error} {:?}", std::error::Error::source(error));
        assert!(text.contains("kubectl get nodes"), "{text}");
        let id = self.name.as_deref().and_then(|name| name.strip_prefix("pi-"));
        let id = id.map(|id| format!("{id}\n").into_bytes());
        self.disk.put(&Path::new(NODE).join("id"), id);
    }

    /// One enrolment.
    fn attempt(&mut self) -> Result<Value, JoinError> {
        let (identity, _) = self.agent.as_ref().unwrap();
        self.cluster.borrow_mut().wary = {
            let pinned = self.token.as_ref().is_none_or(|token| token.starts_with("K10"));
            pinned || self.disk.peek(&self.files.server_ca()).is_some()
        };
        let ground = self.ground();
        let done = now(self.enrolment(&ground, identity).once());
        if done.is_ok() && !self.disk.is_dead() {
            self.check_whole();
            let name = identity.node_name.clone();
            self.cluster.borrow_mut().nodes.insert(name);
            let joined = self.agent.as_mut().map(|(_, joined)| joined);
            *joined.unwrap() = true;
        }
        done
    }

    /// The look at the certificates that a running agent takes.
    fn look(&mut self, risky: bool) {
        let Some((_, joined)) = &self.agent else { return };
        self.disk
            .set_fuse((risky && self.draw(3) == 0).then(|| self.draw(STEPS)));
        self.was_false = std::mem::take(&mut self.cluster.borrow_mut().corrected);
        let floor = self.cluster.borrow().floor;
        let _ = clock::keep(&self.disk, &self.files, &floor);
        let told = self.told();
        let system = self.cluster.borrow().system;
        if !joined || renewal::is_due(&self.windows(), system, floor.at(), told) {
            let _ = self.attempt();
        }
        self.after();
    }

    /// What time it is by the server that answered last.
    fn told(&self) -> u64 {
        let mut cluster = self.cluster.borrow_mut();
        let server = cluster.random.next(2);
        match cluster.servers[server].up {
            true => cluster.clock_of(server),
            false => 0,
        }
    }

    /// What failed while the power was gone, never happened.
    fn after(&mut self) {
        if self.disk.is_dead() {
            self.agent = None;
            self.disk.lose_power(&mut self.cluster.borrow_mut().random);
        }
        self.disk.set_fuse(None);
    }

    fn disturb_machine(&mut self) {
        let folder = Path::new(NODE);
        match self.draw(8) {
            0 => {
                // A reflashed card, or only one of its partitions.
                let which = self.draw(3);
                if which != 0 {
                    self.disk.wipe(folder);
                    (self.password, self.copy, self.name) = (None, None, None);
                }
                if which != 1 {
                    self.disk.wipe(Path::new(DATA));
                    (self.serials, self.floor) = ([0; 2], 0);
                }
                self.agent = None;
            }
            1 => {
                let whole = self.disk.peek(&password_file()).filter(|file| file.len() == 33);
                if whole.is_some() && Some(&whole) != Some(&self.copy) {
                    self.copy = whole;
                }
                self.damage(&password_file());
                self.password = self.disk.peek(&password_file());
            }
            2 => self.put_back(),
            3 => self.damage(&folder.join("id")),
            4 => {
                let which = OWN[self.draw(2)];
                let path = match self.draw(2) {
                    0 => self.files.key(which),
                    _ => self.files.cert(which),
                };
                self.damage(&path);
            }
            5 => self.damage(&self.files.server_ca()),
            6 => self.damage(&self.files.settings()),
            _ => {
                self.damage(&self.files.time_floor());
                self.floor = 0;
            }
        }
    }

    /// A file is cut by somebody who writes in place, or by a dying card.
    fn damage(&self, path: &Path) {
        if let Some(mut bytes) = self.disk.peek(path) {
            bytes.truncate(self.draw(bytes.len().clamp(1, 30)));
            self.disk.put(path, Some(bytes));
        }
    }

    /// The operator has a copy of the password.
    fn put_back(&mut self) {
        if let Some(copy) = self.copy.clone() {
            self.disk.put(&password_file(), Some(copy));
            self.password = self.disk.peek(&password_file());
        }
    }

    fn disturb_servers(&self) {
        let mut cluster = self.cluster.borrow_mut();
        let server = cluster.random.next(2);
        match cluster.random.next(4) {
            0 => cluster.servers[server].up = !cluster.servers[server].up,
            1 => {
                let year = i64::try_from(YEAR).unwrap();
                let in_1970 = -i64::try_from(cluster.now).unwrap();
                cluster.servers[server].error = [0, 40, 2 * year, -year, in_1970][cluster.random.next(5)];
                cluster.restart(server);
            }
            2 => {
                // They forget one that has no Node.
                let gone: Vec<_> = cluster.records.keys().cloned().collect();
                let gone = gone.into_iter().filter(|name| !cluster.nodes.contains(name));
                for name in gone.collect::<Vec<_>>() {
                    cluster.records.remove(&name);
                }
            }
            _ => cluster.restart(server),
        }
    }

    fn disturb_network(&self) {
        let mut cluster = self.cluster.borrow_mut();
        cluster.lost = [0, 3, 10, 40][cluster.random.next(4)];
        cluster.impostor = cluster.random.once_in(4);
    }

    fn set_clock(&self) {
        let mut cluster = self.cluster.borrow_mut();
        let seconds = [3600, 2 * DAY, 200 * DAY, 500 * DAY][cluster.random.next(4)];
        let now = cluster.now;
        match cluster.random.next(6) {
            0 => cluster.system = now,
            1 => cluster.system = 0,
            2 => cluster.system = now + 3 * YEAR,
            3 => cluster.system = now - YEAR,
            _ => cluster.pass(seconds),
        }
    }

    fn act_as_operator(&mut self) {
        let name = self.name.clone().unwrap_or_default();
        let mut cluster = self.cluster.borrow_mut();
        let pinned = !cluster.random.once_in(3);
        match cluster.random.next(8) {
            0 => drop(cluster.records.remove(&name)),
            1 => {
                cluster.records.remove(&name);
                cluster.nodes.remove(&name);
            }
            2 => {
                if let Some(record) = cluster.records.get_mut(&name) {
                    record.may_return = true;
                }
            }
            3 => {
                // Another machine comes first under the name.
                let password = "another".to_owned();
                let (key, may_return) = (None, false);
                let record = Record {
                    password,
                    key,
                    may_return,
                };
                cluster.records.entry(name).or_insert(record);
            }
            4 => cluster.rotate_token(),
            5 => self.token = Some(cluster.token(pinned)),
            6 => self.token = self.token.take().filter(|_| self.agent.is_none()),
            _ if cluster.random.once_in(4) => cluster.begin_anew(),
            _ => {}
        }
    }

    /// What is taken for an earlier enrolment is all there.
    fn check_whole(&self) {
        let ca = self.disk.peek(&self.files.server_ca());
        assert!(ca.is_some_and(|ca| read_ca(&ca).is_some()), "no CA");
        for which in OWN {
            let key = self.disk.peek(&self.files.key(which)).and_then(|key| read_key(&key));
            let leaf = self.leaf(which);
            assert!(
                key.is_some() && key == leaf.map(|leaf| leaf.key),
                "{which:?}: the key of another certificate"
            );
        }
        let settings = self.disk.peek(&self.files.settings()).unwrap();
        serde_json::from_slice::<Value>(&settings).unwrap();
    }

    /// What must hold at any time.
    fn check(&mut self) {
        self.check_password();
        for (index, which) in OWN.into_iter().enumerate() {
            // One that was damaged from outside counts no more.
            self.serials[index] = match self.leaf(which) {
                Some(leaf) => {
                    assert!(!leaf.window.is_empty(), "{which:?} ends before it begins");
                    assert!(leaf.serial >= self.serials[index], "{which:?} gave way to an older one");
                    leaf.serial
                }
                None => 0,
            };
        }
        let floor = self.disk.peek(&self.files.time_floor()).unwrap_or_default();
        let floor = String::from_utf8(floor).unwrap().trim().parse().unwrap_or(0);
        let fell = floor < self.floor;
        assert!(!fell || self.was_false, "the floor on disk went back");
        self.floor = floor;
    }

    fn check_password(&mut self) {
        let found = self.disk.peek(&password_file());
        let Some(last) = &self.password else {
            self.password = found;
            return;
        };
        if found.as_ref() == Some(last) {
            return;
        }
        let damaged = last.len() < 33;
        let beside = self.disk.peek(&password_file().with_extension("new"));
        // Between two renames it is only beside.
        let fresh = found.clone().or(beside).unwrap_or_default();
        let fresh = String::from_utf8(fresh).unwrap();
        let accepted = self.cluster.borrow().accepted.contains(fresh.trim());
        assert!(damaged && accepted, "the password was replaced: {last:?} by {found:?}");
        self.password = found.or_else(|| self.password.take());
    }

    /// The world is calm. The machine gets in, perhaps after an operator has done what it asks for, each thing once.
    fn settle(&mut self) {
        {
            let mut cluster = self.cluster.borrow_mut();
            (cluster.lost, cluster.impostor, cluster.wary) = (0, false, true);
            for server in 0..2 {
                cluster.servers[server].up = true;
                cluster.servers[server].error = 0;
            }
            cluster.rotate_certificates();
        }
        if self.agent.is_none() {
            self.start(false);
        }
        if self.agent.is_none() {
            self.start(false);
        }
        self.check();
        let mut cured = Vec::new();
        loop {
            let done = self.attempt();
            self.check();
            match done {
                Ok(_) => break,
                Err(refused) => {
                    let cure = self.cure(&refused);
                    assert!(!cured.contains(&cure), "it has to {cure} again: {refused}");
                    cured.push(cure);
                }
            }
        }
        self.renew();
    }

    /// Does what the machine asks for.
    fn cure(&mut self, refused: &JoinError) -> &'static str {
        let text = refused.to_string();
        let (cure, words) = match refused {
            JoinError::Password(_) => ("be let in anew", "kubectl delete node"),
            JoinError::NoCredential => ("get a token", "give --token"),
            JoinError::Token(_)
            | JoinError::Forbidden(_)
            | JoinError::CaHash { .. }
            | JoinError::OtherCa { .. }
            | JoinError::LostCa { .. } => ("get a token", "node-token"),
            JoinError::Untrusted { .. } => ("get its clock set", "the clock of this machine"),
            other => panic!("no cure for {other:?}"),
        };
        assert!(text.contains(words), "{text}");
        match cure {
            "be let in anew" => self.let_in(&text),
            "get a token" => self.token = Some(self.cluster.borrow().token(true)),
            _ => {
                let mut cluster = self.cluster.borrow_mut();
                assert_ne!(cluster.system, cluster.now, "the clock is right");
                cluster.system = cluster.now;
            }
        }
        cure
    }

    fn let_in(&mut self, text: &str) {
        let identity = self.agent.as_ref().unwrap().0.reread(&self.disk);
        let record = self.cluster.borrow().records[&identity.node_name].clone();
        assert_ne!(record.password, identity.password.expose());
        let key = self.disk.peek(&self.files.key(Certificate::ClientKubelet));
        let key = key.and_then(|key| read_key(&key));
        let leaf = self.leaf(Certificate::ClientKubelet);
        let good = leaf.is_some_and(|leaf| Some(leaf.key) == key && self.cluster.borrow().is_good(&leaf, 0));
        assert!(
            key.is_none() || key != record.key || !good,
            "it could have proved who it is"
        );
        let copy = self.copy.clone().unwrap_or_default();
        if identity.damaged.is_some() && copy.starts_with(record.password.as_bytes()) {
            assert!(text.contains("putting the old file back"), "{text}");
            self.put_back();
        } else {
            self.cluster.borrow_mut().records.remove(&identity.node_name);
        }
    }

    /// With clocks that are right, what was just signed is good for long, and renewed in time.
    fn renew(&mut self) {
        {
            let mut cluster = self.cluster.borrow_mut();
            cluster.system = [0, cluster.now][cluster.random.next(2)];
        }
        let (system, now) = (self.cluster.borrow().system, self.cluster.borrow().now);
        // A floor that is false (a server's clock was ahead) may make it renew too soon; never too late.
        if self.cluster.borrow().floor.at() <= now {
            let floor = self.cluster.borrow().floor.at();
            assert!(!renewal::is_due(&self.windows(), system, floor, now), "due at once");
        }
        let before = self.serials;
        self.cluster.borrow_mut().pass(260 * DAY);
        let (system, now) = (self.cluster.borrow().system, self.cluster.borrow().now);
        assert!(
            renewal::is_due(&self.windows(), system, 0, now),
            "not due in its last third"
        );
        self.cluster.borrow_mut().system = now;
        self.attempt().unwrap();
        self.check();
        assert!(self.serials.iter().zip(before).all(|(new, old)| *new > old));
    }
}

#[test]
fn a_false_floor_keeps_out_nobody_whose_clock_is_right() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        let now = {
            let mut cluster = world.cluster.borrow_mut();
            cluster.pass(YEAR);
            let now = cluster.now;
            // Certificates by a clock that is right again: what it vouched for meanwhile is believed.
            for server in &mut cluster.servers {
                server.window.until = now + 5 * YEAR;
            }
            now
        };
        let floor = format!("{}\n", now + 3 * YEAR).into_bytes();
        world.disk.put(&world.files.time_floor(), Some(floor));
        world.start(false);
        world.attempt().unwrap();
        assert!(
            world.cluster.borrow().floor.at() > now + 2 * YEAR,
            "nobody has proved it false"
        );
    }
}

#[test]
fn a_machine_stays_who_it_is_whatever_happens() {
    simulate(10_000, |seed| {
        let mut world = World::new(seed);
        for _ in 0..10 {
            world.step();
        }
        world.settle();
    });
}
