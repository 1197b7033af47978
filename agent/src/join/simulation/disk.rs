//! A disk that loses what was not synced: when the power fails, unsynced names may be undone from the last on, unsynced
//! contents are cut, zeroed or gone, and with the name of a folder goes all that was in it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use crate::chance::Random;
use crate::join::durable::Disk;

type Name = Vec<u8>;

/// Of a file or a folder.
#[derive(Clone)]
struct Content {
    bytes: Vec<u8>,
    synced: bool,
    /// It is all that was meant to be there.
    whole: bool,
    folder: bool,
}

impl Content {
    /// Of a file, all of it.
    fn written(bytes: &[u8], synced: bool) -> Self {
        Self {
            bytes: bytes.to_owned(),
            synced,
            whole: true,
            folder: false,
        }
    }

    /// Of a file into which nothing has been written.
    fn begun() -> Self {
        Self {
            whole: false,
            ..Self::written(&[], false)
        }
    }

    fn folder() -> Self {
        Self {
            folder: true,
            ..Self::written(&[], true)
        }
    }
}

enum Change {
    Put(Name, usize),
    Rename(Name, Name),
    Remove(Name),
}

#[derive(Default)]
struct State {
    contents: Vec<Content>,
    names: BTreeMap<Name, usize>,
    durable: BTreeMap<Name, usize>,
    /// What happened to names since they were durable.
    changes: Vec<Change>,
    /// Steps until the power fails.
    fuse: Option<usize>,
    dead: bool,
}

#[derive(Default)]
pub struct SimulatedDisk(Mutex<State>);

fn name(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn no_power() -> io::Error {
    io::Error::other("no power")
}

fn apply(names: &mut BTreeMap<Name, usize>, change: Change) {
    match change {
        Change::Put(name, content) => drop(names.insert(name, content)),
        Change::Rename(from, to) => {
            if let Some(content) = names.remove(&from) {
                names.insert(to, content);
            }
        }
        Change::Remove(name) => drop(names.remove(&name)),
    }
}

/// Whether a path is below a folder.
fn is_in(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
}

impl Change {
    /// The name that is there afterwards, or is not there any more. What is renamed stays in its folder.
    fn name(&self) -> &[u8] {
        match self {
            Self::Put(name, _) | Self::Rename(_, name) | Self::Remove(name) => name,
        }
    }
}

impl State {
    fn find(&self, path: &Path) -> io::Result<usize> {
        let found = self.names.get(name(path)).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn put(&mut self, path: &Path, content: Content) {
        let number = self.contents.len();
        self.contents.push(content);
        self.names.insert(name(path).to_owned(), number);
        self.changes.push(Change::Put(name(path).to_owned(), number));
    }
}

impl SimulatedDisk {
    /// One step, after which the power may be gone.
    fn step(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.0.lock().unwrap();
        match state.fuse {
            Some(0) => state.dead = true,
            Some(left) => state.fuse = Some(left - 1),
            None => {}
        }
        if state.dead { Err(no_power()) } else { Ok(state) }
    }

    /// Something else than the disk takes a step; whether the power is still there.
    pub fn tick(&self) -> bool {
        self.step().is_ok()
    }

    pub fn set_fuse(&self, steps: Option<usize>) {
        self.0.lock().unwrap().fuse = steps;
    }

    pub fn is_dead(&self) -> bool {
        self.0.lock().unwrap().dead
    }

    /// The power is gone, and comes back.
    pub fn lose_power(&self, random: &mut Random) {
        let mut state = self.0.lock().unwrap();
        let mut changes = std::mem::take(&mut state.changes);
        changes.truncate(random.next(changes.len() + 1));
        for change in changes {
            apply(&mut state.durable, change);
        }
        let folders = state
            .names
            .iter()
            .filter(|(_, content)| state.contents[**content].folder);
        let lost: Vec<Name> = folders
            .map(|(name, _)| name.clone())
            .filter(|name| !state.durable.contains_key(name))
            .collect();
        for folder in lost {
            state.durable.retain(|name, _| !is_in(name, &folder));
        }
        state.names = state.durable.clone();
        for content in state.contents.iter_mut().filter(|content| !content.synced) {
            content.synced = true;
            let keep = random.next(content.bytes.len() + 1);
            match random.next(3) {
                0 => content.bytes.truncate(keep),
                1 => content.bytes[keep..].fill(0),
                _ => continue,
            }
            content.whole &= keep == content.bytes.len();
        }
        (state.fuse, state.dead) = (None, false);
        for (name, content) in &state.names {
            let temporary = name.ends_with(b".tmp");
            let whole = state.contents[*content].whole;
            assert!(temporary || whole, "{} is half a file", String::from_utf8_lossy(name));
        }
    }

    /// What a file is now, asked from outside.
    pub fn peek(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.0.lock().unwrap();
        Some(state.contents[state.find(path).ok()?].bytes.clone())
    }

    /// Somebody else puts a file there (`None`: takes it away), for good.
    pub fn put(&self, path: &Path, bytes: Option<Vec<u8>>) {
        let mut state = self.0.lock().unwrap();
        let state = &mut *state;
        for change in state.changes.drain(..) {
            apply(&mut state.durable, change);
        }
        match bytes {
            None => drop(state.durable.remove(name(path))),
            Some(bytes) => {
                state.durable.insert(name(path).to_owned(), state.contents.len());
                state.contents.push(Content::written(&bytes, true));
            }
        }
        state.names = state.durable.clone();
    }

    /// All files of a folder are gone.
    pub fn wipe(&self, folder: &Path) {
        let mut state = self.0.lock().unwrap();
        state.changes.clear();
        state.names.retain(|path, _| !path.starts_with(name(folder)));
        state.durable = state.names.clone();
    }
}

impl Disk for SimulatedDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.step()?;
        Ok(state.contents[state.find(path)?].bytes.clone())
    }

    fn create(&self, path: &Path, _mode: u32) -> io::Result<()> {
        let mut state = self.step()?;
        state.put(path, Content::begun());
        Ok(())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.step()?;
        let found = state.find(path)?;
        state.contents[found] = Content::written(bytes, false);
        Ok(())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let found = state.find(path)?;
        state.contents[found].synced = true;
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let content = state.find(from)?;
        state.names.remove(name(from));
        state.names.insert(name(to).to_owned(), content);
        let change = Change::Rename(name(from).to_owned(), name(to).to_owned());
        state.changes.push(change);
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        let state = &mut *state;
        for change in std::mem::take(&mut state.changes) {
            let path = Path::new(OsStr::from_bytes(change.name()));
            match path.parent() == Some(folder) {
                true => apply(&mut state.durable, change),
                false => state.changes.push(change),
            }
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step()?;
        state.find(path)?;
        state.names.remove(name(path));
        state.changes.push(Change::Remove(name(path).to_owned()));
        Ok(())
    }

    fn create_folder(&self, folder: &Path, _mode: u32) -> io::Result<()> {
        let mut state = self.step()?;
        state.put(folder, Content::folder());
        Ok(())
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        let state = self.step()?;
        state.find(path).map(|_| 0o600)
    }

    fn set_mode(&self, path: &Path, _mode: u32) -> io::Result<()> {
        let state = self.step()?;
        state.find(path).map(drop)
    }
}
