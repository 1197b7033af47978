//! The simulated datastore, what each server sees of it, and the judge of all that is written to it.
//!
//! The judge knows what no server knows: when a Node really went, who was really told that he is in, what operators did.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use jiff::Timestamp;

use super::disk::SimulatedFiles;
use crate::chance::Random;
use crate::join::node_password::Record;
use crate::join::reenrol::Window;

/// What the world's clocks show when it begins, in seconds since 1970.
pub const BEGIN: i64 = 56 * 365 * 86_400;
/// A record that nobody has come with for so long, and that has no Node, may be forgotten.
const ORPHANED: u64 = 600;
/// A window may be used by a clock that is behind the one that opened it, by so much.
const BEHIND: i64 = 300;
/// A server that sees everything has done within this time what there was to do: a round, one more when the record was just
/// changed, and what holds them up.
pub const SOON: u64 = 190;

/// What is wrong with the code that runs here, to see that it is noticed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// A record is deleted by its node's name.
    ForgetsByName,
    /// A record is deleted whatever has been noted on it since.
    ForgetsWhatChanged,
    /// A record is tied whatever has been noted on it since.
    TiesWhatChanged,
    /// A record is replaced whatever has been noted on it since.
    ReplacesWhatChanged,
    /// Nobody notes that a node has come.
    NotesNothing,
    /// Which rows are ours is remembered without the records that they are of.
    RowsWithoutUid,
    /// A server takes what it has seen for all there is.
    NeverBehind,
    /// A missing file is an empty one.
    MissingIsEmpty,
    /// The names are written before the rows.
    NamesFirst,
    /// A window stays when it was used.
    WindowStays,
    /// A window is not taken off.
    WindowNeverCloses,
}

/// All that is in the datastore.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub records: BTreeMap<String, Rc<Record>>,
    /// Uids by name.
    pub nodes: BTreeMap<String, String>,
}

impl State {
    /// Whether the Node that a record is tied to is there.
    fn is_alive(&self, owner: &str) -> bool {
        self.nodes.values().any(|uid| uid == owner)
    }

    /// A record that goes with its Node, which has gone.
    pub fn is_doomed(&self, record: &Record) -> bool {
        record.owner.as_ref().is_some_and(|owner| !self.is_alive(owner))
    }
}

/// One server, without its processes.
pub struct Server {
    pub up: bool,
    /// The datastore answers it.
    pub reaches: bool,
    /// What others write comes to it.
    pub follows: bool,
    /// One answer in so many is lost; 0: none.
    pub lossy: usize,
    /// The revision that it shows.
    pub view: usize,
    pub started: u64,
    /// Of its clock, in seconds.
    pub error: i64,
    /// Since when it sees and can do everything.
    pub well_since: Option<u64>,
    /// In which turn it last could not.
    pub trouble: u64,
    /// Its keeper is to look after things.
    pub due: bool,
    pub last_round: u64,
    pub files: Arc<SimulatedFiles>,
}

/// A machine that asks to be a node, until it is answered.
#[derive(Clone, Debug)]
pub struct Join {
    pub server: usize,
    pub machine: usize,
    pub name: &'static str,
    pub password: String,
    pub proof: Option<String>,
    pub key: Option<String>,
    /// By the server's clock.
    pub at: Timestamp,
    /// When it began.
    pub began: u64,
    pub turn: u64,
    /// What the server showed, and what there was.
    pub view: usize,
    pub head: usize,
}

/// An operator took a row out.
#[derive(Clone, Debug)]
pub struct Deed {
    pub server: usize,
    /// Of the record that the row was of.
    pub uid: String,
    pub at: u64,
    /// It has to be heeded; else it may be.
    pub due: bool,
}

pub struct World {
    pub random: Random,
    /// Seconds since the beginning.
    pub now: u64,
    /// What has been done to the datastore so far, read or written.
    pub turns: u64,
    history: Vec<Rc<State>>,
    pub servers: Vec<Server>,
    pub joins: Vec<Join>,
    numbers: usize,
    /// At which revision a Node went, by its uid.
    died: BTreeMap<String, usize>,
    /// When a record was made, or somebody was last told that he is in by it; by its uid.
    bound: BTreeMap<String, (u64, usize)>,
    /// The hash of every record there ever was, by its uid.
    pub hashes: BTreeMap<String, String>,
    pub deeds: Vec<Deed>,
    /// When each window was opened, by the uid of its record.
    opened: BTreeMap<String, (Window, u64)>,
    /// Passwords that operators put into files, in clear.
    pub put_in: BTreeSet<String>,
    pub fault: Option<Fault>,
    wrong: Option<String>,
    /// What happened, if it is to be told.
    pub told: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, servers: usize, fault: Option<Fault>, told: bool) -> Self {
        let server = |_| Server {
            up: false,
            reaches: true,
            follows: true,
            lossy: 0,
            view: 0,
            started: 0,
            error: 0,
            well_since: None,
            trouble: 0,
            due: false,
            last_round: 0,
            files: Arc::new(SimulatedFiles::new(fault)),
        };
        Self {
            random: Random::new(seed),
            now: 1000,
            turns: 0,
            history: vec![Rc::default()],
            servers: (0..servers).map(server).collect(),
            joins: Vec::new(),
            numbers: 0,
            died: BTreeMap::new(),
            bound: BTreeMap::new(),
            hashes: BTreeMap::new(),
            deeds: Vec::new(),
            opened: BTreeMap::new(),
            put_in: BTreeSet::new(),
            fault,
            wrong: None,
            told: told.then(Vec::new),
        }
    }

    pub fn head(&self) -> usize {
        self.history.len() - 1
    }

    pub fn state(&self) -> Rc<State> {
        Rc::clone(&self.history[self.head()])
    }

    /// What a server shows.
    pub fn seen(&self, server: usize) -> Rc<State> {
        Rc::clone(&self.history[self.servers[server].view])
    }

    /// What a clock shows that is wrong by so much.
    pub fn clock(&self, error: i64) -> Timestamp {
        Timestamp::from_second(BEGIN + i64::try_from(self.now).unwrap() + error).unwrap()
    }

    pub fn number(&mut self) -> usize {
        self.numbers += 1;
        self.numbers
    }

    pub fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            told.push(format!("{:>6} {}", self.now, what()));
        }
    }

    /// Something must not be so. The first thing counts.
    pub fn complain(&mut self, what: String) {
        self.say(|| format!("WRONG: {what}"));
        self.wrong.get_or_insert(what);
    }

    pub fn verdict(&self) -> Result<(), String> {
        self.wrong.clone().map_or(Ok(()), Err)
    }

    fn push(&mut self, state: State) {
        self.history.push(Rc::new(state));
    }

    /// Writes a Node, or that it is gone.
    pub fn put_node(&mut self, name: &str, uid: Option<String>) {
        let mut state = State::clone(&self.state());
        let old = match &uid {
            Some(uid) => state.nodes.insert(name.to_owned(), uid.clone()),
            None => state.nodes.remove(name),
        };
        self.push(state);
        if let Some(old) = old {
            self.died.insert(old, self.head());
        }
        self.say(|| format!("Node {name} is {uid:?}"));
    }

    /// Writes a record, or that it is gone.
    pub fn put(&mut self, name: &str, record: Option<Record>) {
        let mut state = State::clone(&self.state());
        let version = (self.head() + 1).to_string();
        self.say(|| format!("record of {name} is {record:?}"));
        match record {
            Some(record) => {
                let record = Record { version, ..record };
                state.records.insert(name.to_owned(), Rc::new(record));
            }
            None => drop(state.records.remove(name)),
        }
        self.push(state);
    }

    /// An operator opens a window, by a clock that is wrong by so much.
    pub fn open_window(&mut self, name: &str, error: i64, seconds: i64) {
        let Some(record) = self.state().records.get(name).cloned() else {
            return;
        };
        let (now, second) = (self.now, self.clock(error).as_second());
        let window = Window {
            opened: Some(Timestamp::from_second(second).unwrap()),
            until: Timestamp::from_second(second + seconds).unwrap(),
        };
        self.opened.insert(record.uid.clone(), (window, now));
        let window = Some(window);
        let record = Record::clone(&record);
        self.put(name, Some(Record { window, ..record }));
    }

    /// The datastore makes a record that a server asked for: of a machine that comes, or of a row.
    pub fn make(&mut self, server: usize, name: &str, record: &Record) {
        let uid = format!("r{}", self.number());
        let join = self.join_with(server, &record.hash);
        match &join {
            Some(join) => self.judge_owner(join, record),
            None => {
                let put_in = record
                    .hash
                    .strip_prefix("$1:")
                    .is_some_and(|text| self.put_in.contains(text));
                if !put_in {
                    self.complain(format!("a record of {name} was made that nobody asked for"));
                }
            }
        }
        let (now, head) = (self.now, self.head() + 1);
        self.bound.insert(uid.clone(), (now, head));
        self.hashes.insert(uid.clone(), record.hash.clone());
        let created = self.clock(self.servers[server].error);
        let record = record.clone();
        self.put(name, Some(Record { uid, created, ..record }));
    }

    fn join_with(&self, server: usize, hash: &str) -> Option<Join> {
        let password = hash.strip_prefix("$1:")?;
        let mut joins = self.joins.iter();
        let join = joins.find(|join| join.server == server && join.password == password);
        join.cloned()
    }

    /// A record that is tied from the beginning to a Node which had gone before its machine came is lost at once.
    fn judge_owner(&mut self, join: &Join, record: &Record) {
        let died = record.owner.as_ref().and_then(|owner| self.died.get(owner));
        if died.is_some_and(|died| *died <= join.head) {
            let name = join.name;
            self.complain(format!(
                "the record of {name} was tied to a Node that had gone before it came"
            ));
        }
    }

    /// A server has one record put in the place of another.
    pub fn judge_replacement(&mut self, server: usize, old: &Record, new: &Record) {
        let Some(join) = self.join_with(server, &new.hash) else {
            return self.complain("a record was replaced, and nobody has come".to_owned());
        };
        let proved = join.proof.is_some() && join.proof == old.key;
        let let_in = old.window.is_some_and(|window| {
            let opened = window.opened.map_or(i64::MAX, Timestamp::as_second);
            (opened - BEHIND..window.until.as_second()).contains(&join.at.as_second())
        });
        if !proved && !let_in {
            self.complain(format!(
                "{} took a name without having proved anything: {old:?}",
                join.password
            ));
        }
        if new.window.is_some() {
            self.complain("a window stayed when it was used".to_owned());
        }
    }

    /// A server has something noted on a record.
    pub fn judge_note(&mut self, name: &str, old: &Record, new: &Record) {
        if new.window.is_some() && new.window != old.window {
            self.complain(format!("a window of {name} was opened by a server"));
        }
        if new.owner != old.owner {
            let gone = new.owner.as_ref().and_then(|owner| self.died.get(owner));
            let bound = self.bound.get(&old.uid).map(|(_, revision)| *revision);
            if gone.is_some_and(|gone| bound.is_some_and(|bound| *gone <= bound)) {
                self.complain(format!(
                    "the record of {name} was tied to a Node that had gone before its machine came"
                ));
            }
        }
    }

    /// A server has a record deleted.
    pub fn judge_deletion(&mut self, server: usize, name: &str, old: &Record) {
        let state = self.state();
        let asked = self
            .deeds
            .iter()
            .any(|deed| deed.server == server && deed.uid == old.uid);
        let cut = self.servers[server].files.lacks_only(name, &old.uid, &state);
        let (since, _) = self.bound.get(&old.uid).copied().unwrap_or_default();
        let alone = old.owner.is_none() && !state.nodes.contains_key(name);
        let orphan = alone && self.now - since > ORPHANED;
        if !state.is_doomed(old) && !asked && !cut && !orphan {
            let node = state.nodes.get(name);
            let ago = self.now - since;
            self.complain(format!(
                "server {server} forgot {name} without need, {ago} s after it came; its Node is {node:?}: {old:?}"
            ));
        }
    }

    /// A machine was let in.
    pub fn judge_admission(&mut self, join: &Join) {
        let hash = format!("$1:{}", join.password);
        let was = |state: &Rc<State>| state.records.get(join.name).is_some_and(|record| record.hash == hash);
        if !self.history[join.view..].iter().any(was) {
            self.complain(format!("{join:?} was let in with a password that is not on record"));
        }
        let state = self.state();
        let Some(record) = state.records.get(join.name).filter(|record| record.hash == hash) else {
            return;
        };
        let asked = self.deeds.iter().any(|deed| deed.uid == record.uid);
        // What a server tells that sees nothing, or could note nothing, binds nobody.
        let seen = self.history[join.view].records.get(join.name);
        let same = seen.is_some_and(|seen| seen.uid == record.uid);
        if self.was_well(join) && same && !state.is_doomed(record) && !asked {
            self.bind(join, record);
        }
    }

    /// The server saw and could do everything while the machine waited for it.
    fn was_well(&self, join: &Join) -> bool {
        let server = &self.servers[join.server];
        server.well_since.is_some_and(|well| well <= join.began) && server.trouble < join.turn
    }

    /// A server has noted on a record that its machine has come.
    pub fn came(&mut self, server: usize, record: &Record) {
        if let Some(join) = self.join_with(server, &record.hash) {
            self.bind(&join, record);
        }
    }

    fn bind(&mut self, join: &Join, record: &Record) {
        let (time, revision) = self.bound.entry(record.uid.clone()).or_default();
        *time = join.began.max(*time);
        *revision = join.head.max(*revision);
    }

    /// A machine was refused, since another one has the name.
    pub fn judge_refusal(&mut self, join: &Join) {
        let hash = format!("$1:{}", join.password);
        let taken = |state: &Rc<State>| {
            let record = state.records.get(join.name);
            record.is_some_and(|record| record.hash != hash && !state.is_doomed(record))
        };
        if !self.history[join.head..].iter().any(taken) {
            self.complain(format!("{join:?} was refused, and nobody else had the name"));
        }
    }

    /// Whether a server has seen everything and could do everything since then, for longer than so many seconds.
    fn had_time(&self, server: &Server, since: u64, seconds: u64) -> bool {
        server
            .well_since
            .is_some_and(|well| self.now - well.max(since) > seconds)
    }

    /// What must be so by now.
    pub fn judge_time(&mut self) {
        let state = self.state();
        let mut late = Vec::new();
        for deed in self.deeds.iter().filter(|deed| deed.due) {
            let is_there = state.records.values().any(|record| record.uid == deed.uid);
            if is_there && self.had_time(&self.servers[deed.server], deed.at, SOON) {
                late.push(format!("a row taken out was not heeded: {deed:?}"));
            }
        }
        for (name, record) in &state.records {
            let opened = self
                .opened
                .get(&record.uid)
                .filter(|(window, _)| record.window == Some(*window));
            if let Some((window, at)) = opened
                && let seconds = window.length().as_secs() + SOON
                && self.servers.iter().any(|server| self.had_time(server, *at, seconds))
            {
                late.push(format!("a window of {name} outlives its time: {window:?}"));
            }
        }
        late.into_iter().for_each(|late| self.complain(late));
    }
}
