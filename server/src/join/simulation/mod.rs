//! The register of nodes on the servers of a simulated cluster: servers that lose power between any two reads and writes of files
//! and datastore, that see late what others wrote, or nothing, for longer than any record waits for its Node, whose answers are
//! lost, whose clocks are set or begin in 1970; files that are edited, cut, lost, or cannot be written; machines that come
//! with the right and wrong passwords, are reflashed, prove who they are, or do not come back; operators who delete Nodes,
//! Secrets and rows, and open windows. Ten thousand seeds.
//!
//! What must hold, whatever happens: nobody is let in with a password that is not on record; a record gives way to another
//! password only by proof or within an open window, once, and no window outlives its time; a record that a machine was let in
//! by goes only when an operator deletes it, its Node or its row, or when the machine did not come back in time: that
//! record, and no later one; a row taken out takes its record along in time; a file that is lost or cut forgets nobody. And
//! once the world is calm, the files of all servers show the Secrets, and those belong to their Nodes.
//!
//! [`world`] judges; [`Fault`] is what it is shown to notice.

mod calm;
mod disk;
mod ground;
mod world;

use std::cell::{RefCell, RefMut};
use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use self::ground::SimulatedGround;
use self::world::{Deed, Fault, Join, World};
use super::keeper::Keeper;
use super::register::{Claim, Refusal, Register};
use super::roll::Roll;
use crate::chance::simulate;

/// Names of nodes; the last is also in files of a very old K3s.
const NAMES: [&str; 3] = ["box", "pi", "old"];
/// Whose name each machine has: two have the same.
const MACHINES: [&str; 4] = ["box", "pi", "pi", "old"];
/// Rounds of a keeper are no further apart.
const SWEEP: u64 = 60;
/// A machine that was let in registers its Node within this time, or not.
const REGISTERS: u64 = 300;
/// What is new comes to every server that follows within this time.
const LAG: u64 = 5;

type Task = Pin<Box<dyn Future<Output = ()>>>;

struct Machine {
    name: &'static str,
    password: String,
    key: String,
    /// It has a certificate of its key.
    certified: bool,
    /// When it was last let in, if it will go on to register its Node.
    joined: Option<u64>,
}

struct Process {
    register: Arc<Register<SimulatedGround>>,
    keeper: Task,
}

struct Simulation {
    world: Rc<RefCell<World>>,
    machines: Rc<RefCell<Vec<Machine>>>,
    processes: Vec<Option<Process>>,
    joins: Vec<(Join, Task)>,
}

fn poll(task: &mut Task) -> bool {
    task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// A server's keeper, as [`Keeper::run`] runs it, but that the world decides when the next round is.
async fn keep(mut keeper: Keeper<SimulatedGround>, world: Rc<RefCell<World>>, server: usize) {
    keeper.begin();
    loop {
        world.borrow_mut().servers[server].due = false;
        keeper.round().await;
        {
            let world = &mut *world.borrow_mut();
            world.servers[server].last_round = world.now;
        }
        let wait = |keeper: &mut Keeper<SimulatedGround>| !keeper.is_asked() && !world.borrow().servers[server].due;
        poll_fn(|_| {
            if wait(&mut keeper) {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }
}

/// A machine comes to a server.
async fn come(
    register: Arc<Register<SimulatedGround>>,
    world: Rc<RefCell<World>>,
    machines: Rc<RefCell<Vec<Machine>>>,
    join: Join,
) {
    let claim = Claim {
        node: join.name,
        password: &join.password,
        proof: join.proof.as_deref(),
        key: join.key.as_deref(),
    };
    let admitted = register.admit(claim, join.at).await;
    let world = &mut *world.borrow_mut();
    world.say(|| format!("machine {} at server {}: {admitted:?}", join.machine, join.server));
    match admitted {
        Ok(()) => {
            world.judge_admission(&join);
            let machine = &mut machines.borrow_mut()[join.machine];
            machine.certified |= join.key.is_some();
            machine.joined = Some(world.now);
        }
        Err(Refusal::Taken { .. }) => world.judge_refusal(&join),
        Err(Refusal::Later { .. }) => {}
    }
}

impl Simulation {
    fn new(seed: u64, fault: Option<Fault>, told: bool) -> Self {
        let servers = 2 + usize::from(seed.is_multiple_of(2));
        let mut world = World::new(seed, servers, fault, told);
        let machine = |name: &&'static str| Machine {
            name,
            password: format!("p{}", world.number()),
            key: format!("k{}", world.number()),
            certified: false,
            joined: None,
        };
        let machines = MACHINES.iter().map(machine).collect();
        let mut simulation = Self {
            world: Rc::new(RefCell::new(world)),
            machines: Rc::new(RefCell::new(machines)),
            processes: (0..servers).map(|_| None).collect(),
            joins: Vec::new(),
        };
        (0..servers).for_each(|server| simulation.start(server));
        simulation
    }

    fn world(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }

    fn draw(&self, below: usize) -> usize {
        self.world().random.next(below)
    }

    /// A server starts, which it does only with the datastore.
    fn start(&mut self, server: usize) {
        if self.processes[server].is_some() {
            return;
        }
        let files = {
            let world = &mut *self.world();
            world.say(|| format!("server {server} starts"));
            let (now, head) = (world.now, world.head());
            let server = &mut world.servers[server];
            (server.up, server.reaches, server.follows, server.lossy) = (true, true, true, 0);
            (server.view, server.started, server.last_round, server.well_since) = (head, now, now, Some(now));
            let files = Arc::clone(&server.files);
            (files.disk().dead, files.disk().fuse) = (false, None);
            files
        };
        let ground = SimulatedGround {
            world: Rc::clone(&self.world),
            server,
        };
        let (register, keeper) = Register::on(ground, Roll::on(files, Path::new(""))).unwrap();
        let keeper = Box::pin(keep(keeper, Rc::clone(&self.world), server));
        self.processes[server] = Some(Process { register, keeper });
    }

    /// It ends, wherever it is.
    fn end(&mut self, server: usize) {
        self.processes[server] = None;
        self.joins.retain(|(join, _)| join.server != server);
        let world = &mut *self.world();
        world.joins.retain(|join| join.server != server);
        world.say(|| format!("server {server} ends"));
        (world.servers[server].up, world.servers[server].well_since) = (false, None);
    }

    /// One task goes on.
    fn go_on(&mut self, index: usize) {
        let servers = self.processes.len();
        if index < servers {
            if let Some(process) = &mut self.processes[index] {
                poll(&mut process.keeper);
            }
        } else if poll(&mut self.joins[index - servers].1) {
            let (join, _) = self.joins.remove(index - servers);
            self.world().joins.retain(|one| one.machine != join.machine);
        }
        for server in 0..servers {
            let is_dead = self.world().servers[server].files.disk().dead;
            if is_dead && self.processes[server].is_some() {
                self.end(server);
            }
        }
    }

    /// All go on until they wait for something to happen.
    fn idle(&mut self) {
        loop {
            let before = self.world().turns;
            for index in (0..self.processes.len() + self.joins.len()).rev() {
                if index < self.processes.len() + self.joins.len() {
                    self.go_on(index);
                }
            }
            if self.world().turns == before {
                break;
            }
        }
    }

    /// Time goes by. What is new comes to whoever follows, and keepers do what there is to do.
    fn pass(&mut self, seconds: u64) {
        self.world().now += seconds;
        if seconds > LAG {
            self.collect();
            let world = &mut *self.world();
            let head = world.head();
            for server in world.servers.iter_mut().filter(|server| server.up && server.follows) {
                server.due |= server.view != head;
                server.view = head;
            }
        }
        let is_due = {
            let world = &mut *self.world();
            let now = world.now;
            let mut is_due = false;
            for server in world.servers.iter_mut().filter(|server| server.up) {
                server.due |= now - server.last_round >= SWEEP || server.files.disk().edited;
                is_due |= server.due;
            }
            is_due
        };
        if is_due || seconds > LAG {
            self.idle();
        }
    }

    /// A longer time, of which nothing happens but by itself.
    fn wait(&mut self, mut seconds: u64) {
        while seconds > 0 {
            let hop = seconds.min(SWEEP);
            seconds -= hop;
            self.pass(hop);
            self.world().judge_time();
        }
    }

    /// Something is new for keepers that see it.
    fn news(&self) {
        let world = &mut *self.world();
        let head = world.head();
        for server in 0..world.servers.len() {
            if world.servers[server].follows && world.random.once_in(2) {
                let view = world.servers[server].view;
                world.servers[server].view = view + world.random.next(head - view + 1);
                world.servers[server].due = true;
            }
        }
    }

    /// What belongs to a Node goes with it.
    fn collect(&self) {
        let world = &mut *self.world();
        let state = world.state();
        for (name, record) in &state.records {
            if state.is_doomed(record) {
                world.put(name, None);
            }
        }
    }

    fn step(&mut self) {
        match self.draw(28) {
            0..=5 => {
                for _ in 0..self.draw(12) {
                    let index = self.draw(self.processes.len() + self.joins.len());
                    self.go_on(index);
                }
            }
            6..=10 => {
                let (machine, server) = (self.draw(MACHINES.len()), self.draw(self.processes.len()));
                self.come(machine, server);
            }
            11..=13 => self.register_nodes(),
            14..=17 => self.act_as_operator(),
            18 => self.disturb_server(),
            19 => self.disturb_file(),
            20 => self.reflash(),
            21 | 22 => self.news(),
            23 => self.collect(),
            24..=26 => {
                let seconds = [1, 5, 20][self.draw(3)];
                self.wait(seconds);
            }
            _ => {
                let seconds = [40, 120, 400, 700][self.draw(4)];
                self.wait(seconds);
            }
        }
    }

    fn come(&mut self, machine: usize, server: usize) {
        let Some(process) = &self.processes[server] else { return };
        if self.joins.iter().any(|(join, _)| join.machine == machine) {
            return;
        }
        let join = {
            let machines = self.machines.borrow();
            let one = &machines[machine];
            let world = &mut *self.world();
            let proves = one.certified && world.random.once_in(2);
            let asks = !world.random.once_in(3);
            let at = world.clock(world.servers[server].error);
            Join {
                server,
                machine,
                name: one.name,
                password: one.password.clone(),
                proof: proves.then(|| one.key.clone()),
                key: asks.then(|| one.key.clone()),
                at,
                began: world.now,
                turn: world.turns,
                view: world.servers[server].view,
                head: world.head(),
            }
        };
        self.world().joins.push(join.clone());
        let (register, world) = (Arc::clone(&process.register), Rc::clone(&self.world));
        let task = come(register, world, Rc::clone(&self.machines), join.clone());
        self.joins.push((join, Box::pin(task)));
    }

    /// Machines that were let in a while ago register their Nodes.
    fn register_nodes(&self) {
        let world = &mut *self.world();
        for machine in self.machines.borrow_mut().iter_mut() {
            let Some(joined) = machine.joined.take_if(|_| world.random.once_in(2)) else {
                continue;
            };
            let is_there = world.state().nodes.contains_key(machine.name);
            if !is_there && world.now - joined <= REGISTERS {
                let uid = format!("n{}", world.number());
                world.put_node(machine.name, Some(uid));
            }
        }
    }

    /// A card is written anew: its machine knows neither its password nor its key.
    fn reflash(&self) {
        let index = self.draw(MACHINES.len());
        if self.joins.iter().any(|(join, _)| join.machine == index) {
            return;
        }
        let (world, machine) = (&mut *self.world(), &mut self.machines.borrow_mut()[index]);
        world.say(|| format!("machine {index} is reflashed"));
        machine.password = format!("p{}", world.number());
        // Or only one of its partitions.
        if world.random.once_in(2) {
            machine.key = format!("k{}", world.number());
            machine.certified = false;
        }
        machine.joined = None;
    }

    fn act_as_operator(&mut self) {
        let name = NAMES[self.draw(NAMES.len())];
        let server = self.draw(self.processes.len());
        match self.draw(10) {
            0..=2 => {
                let world = &mut *self.world();
                if world.state().nodes.contains_key(name) {
                    world.put_node(name, None);
                }
            }
            3 => {
                let world = &mut *self.world();
                if world.state().records.contains_key(name) {
                    world.put(name, None);
                }
            }
            4..=6 => self.open_window(name, server),
            7 | 8 => self.take_out(server, name),
            _ => self.put_in(server),
        }
    }

    /// Lets a machine in, which comes then.
    fn open_window(&mut self, name: &str, server: usize) {
        {
            let world = &mut *self.world();
            let now = i64::try_from(world.now).unwrap();
            let error = [0, 0, 120, -120, 63_000_000, 20 - world::BEGIN - now][world.random.next(6)];
            let seconds = [30, 300, 600][world.random.next(3)];
            world.open_window(name, error, seconds);
        }
        for (machine, _) in MACHINES.iter().enumerate().filter(|(_, other)| **other == name) {
            if self.draw(2) == 0 {
                self.come(machine, server);
            }
        }
    }

    /// Takes a row out, as long as the server has seen what was done to the file before.
    fn take_out(&self, server: usize, name: &str) {
        let world = &mut *self.world();
        let files = Arc::clone(&world.servers[server].files);
        let mut disk = files.disk();
        let Some(hash) = disk.by_name().and_then(|rows| rows.get(name).cloned()) else {
            return;
        };
        if disk.edited {
            return;
        }
        world.say(|| format!("row of {name} is taken out at server {server}"));
        let rows = disk.rows.take().unwrap_or_default();
        let others = rows.lines().filter(|row| row.split(',').nth(1) != Some(name));
        disk.edit(Some(others.map(|row| format!("{row}\n")).collect()));
        // When the power failed between the two files it may say of a row that it is none of ours.
        if let Some(uid) = disk.written().get(name) {
            let due = world.hashes.get(uid) == Some(&hash);
            let (uid, at) = (uid.clone(), world.now);
            world.deeds.push(Deed { server, uid, at, due });
        }
    }

    /// A file of a very old K3s has a row with a clear password.
    fn put_in(&self, server: usize) {
        let world = &mut *self.world();
        let files = Arc::clone(&world.servers[server].files);
        let (mut disk, old) = (files.disk(), MACHINES.len() - 1);
        let rows = disk.by_name().filter(|_| !disk.edited);
        if rows.is_none_or(|rows| rows.contains_key(MACHINES[old])) {
            return;
        }
        let password = &self.machines.borrow()[old].password;
        world.say(|| format!("row of old is put in at server {server}"));
        world.put_in.insert(password.clone());
        let row = format!("{password},old,old,\n");
        let rows = disk.rows.clone().unwrap_or_default();
        disk.edit(Some(rows + &row));
    }

    fn disturb_server(&mut self) {
        let server = self.draw(self.processes.len());
        match self.draw(9) {
            0 => self.end(server),
            1 | 2 => self.start(server),
            3 => {
                let (writes, done) = (self.draw(4), self.draw(2) == 0);
                let world = &mut *self.world();
                let files = Arc::clone(&world.servers[server].files);
                files.disk().fuse = Some((writes, done));
            }
            4 => {
                let world = &mut *self.world();
                let (year, now) = (365 * 86_400, i64::try_from(world.now).unwrap());
                let in_1970 = 20 - world::BEGIN - now;
                world.servers[server].error = [0, 60, -200, 3 * year, -year, in_1970][world.random.next(6)];
            }
            link => {
                let world = &mut *self.world();
                let now = world.now;
                let server = &mut world.servers[server];
                (server.reaches, server.follows, server.lossy) = match link {
                    5 => (false, false, 0),
                    6 => (true, false, 0),
                    7 => (true, true, 3),
                    _ => (true, true, 0),
                };
                let is_well = server.up && link > 7;
                server.well_since = is_well.then(|| server.well_since.unwrap_or(now));
            }
        }
    }

    /// A file is lost, or cut by a dying card, or the disk is full for a while.
    fn disturb_file(&self) {
        let (server, what) = (self.draw(self.processes.len()), self.draw(5));
        let world = &mut *self.world();
        let files = Arc::clone(&world.servers[server].files);
        let mut disk = files.disk();
        if disk.edited {
            return;
        }
        world.say(|| format!("file of server {server} suffers: {what}"));
        match what {
            0 => disk.edit(None),
            1 => disk.edit(Some(String::new())),
            2 | 3 => {
                let mut rows = disk.rows.clone().unwrap_or_default();
                rows.truncate(world.random.next(rows.len() + 1));
                disk.edit(Some(rows));
            }
            _ => disk.full = !disk.full,
        }
        disk.damaged = disk.edited;
    }
}

/// What goes wrong with a seed, and what happened before that, if it is to be told.
fn run(seed: u64, fault: Option<Fault>, told: bool) -> Result<(), String> {
    let mut simulation = Simulation::new(seed, fault, told);
    let mut done = Ok(());
    for _ in 0..70 {
        simulation.step();
        done = simulation.world().verdict();
        if done.is_err() {
            break;
        }
    }
    done = done.and_then(|()| simulation.settle());
    done = simulation.world().verdict().and(done);
    let told = simulation.world().told.take().unwrap_or_default();
    done.map_err(|wrong| format!("{}\n{wrong}", told.join("\n")))
}

#[test]
fn a_name_stays_whose_it_is_whatever_happens_to_the_servers() {
    simulate(10_000, |seed| {
        if run(seed, None, false).is_err() {
            panic!("{}", run(seed, None, true).unwrap_err());
        }
    });
}

#[test]
fn a_register_with_a_fault_is_found_out() {
    for fault in [
        Fault::ForgetsByName,
        Fault::ForgetsWhatChanged,
        Fault::TiesWhatChanged,
        Fault::ReplacesWhatChanged,
        Fault::NotesNothing,
        Fault::RowsWithoutUid,
        Fault::NeverBehind,
        Fault::MissingIsEmpty,
        Fault::NamesFirst,
        Fault::WindowStays,
        Fault::WindowNeverCloses,
    ] {
        let found = (0..2_000).find(|seed| run(*seed, Some(fault), false).is_err());
        assert!(found.is_some(), "{fault:?} is not noticed");
    }
}
