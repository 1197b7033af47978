//! One server's two files: each is written whole or not at all, and the power may fail at any write.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use super::world::{Fault, State};
use crate::join::roll::{Files, Stamp};

#[derive(Default)]
pub struct Disk {
    pub rows: Option<String>,
    names: Option<String>,
    changed: u64,
    /// Somebody else has changed the rows since we wrote them.
    pub edited: bool,
    /// Not in an editor.
    pub damaged: bool,
    /// Nothing can be written.
    pub full: bool,
    /// Writes until the power fails, and whether the last is done.
    pub fuse: Option<(usize, bool)>,
    pub dead: bool,
    fault: Option<Fault>,
    /// What is to be written after the names.
    later: Option<String>,
}

pub struct SimulatedFiles(Mutex<Disk>);

impl SimulatedFiles {
    pub fn new(fault: Option<Fault>) -> Self {
        let disk = Disk {
            fault,
            ..Disk::default()
        };
        Self(Mutex::new(disk))
    }

    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    /// Whether the rows were damaged so that they look as if an operator had taken out this one, and nothing else.
    pub fn lacks_only(&self, name: &str, uid: &str, state: &State) -> bool {
        let disk = self.disk();
        let Some(rows) = disk.by_name().filter(|_| disk.damaged) else {
            return false;
        };
        let is_of = |name: &str, uid: &str| state.records.get(name).is_some_and(|record| record.uid == uid);
        let ours = disk.written();
        let missing = ours
            .iter()
            .filter(|(name, uid)| is_of(name, uid) && !rows.contains_key(*name));
        missing.map(|(name, uid)| (&**name, &**uid)).eq([(name, uid)])
    }
}

impl Disk {
    /// Somebody else than the server writes the rows (`None`: takes the file away).
    pub fn edit(&mut self, rows: Option<String>) {
        self.rows = rows;
        self.edited = true;
        self.changed += 1;
    }

    /// Hashes by node, of whole rows; `None`: the end of the last is missing.
    pub fn by_name(&self) -> Option<BTreeMap<String, String>> {
        let row = |line: &str| {
            let mut fields = line.split(',');
            let (hash, name) = (fields.next()?, fields.next()?);
            (fields.count() == 2).then(|| (name.to_owned(), hash.to_owned()))
        };
        self.rows.as_ref()?.lines().map(row).collect()
    }

    /// Uids by node, of the rows that are ours.
    pub fn written(&self) -> BTreeMap<String, String> {
        let names = self.names.as_deref().unwrap_or_default().lines();
        let name = |line: &str| {
            line.split_once(' ')
                .map(|(name, uid)| (name.to_owned(), uid.to_owned()))
        };
        names.filter_map(name).collect()
    }

    fn put(&mut self, is_rows: bool, text: &str) -> io::Result<()> {
        let old = if is_rows { &self.rows } else { &self.names };
        if old.as_deref() != Some(text) {
            let (left, done) = self.fuse.unwrap_or((usize::MAX, true));
            self.dead = left == 0;
            self.fuse = self.fuse.map(|_| (left.saturating_sub(1), done));
            if self.dead && !done {
                return Err(io::Error::other("no power"));
            }
            self.changed += 1;
            match is_rows {
                true => self.rows = Some(text.to_owned()),
                false => self.names = Some(text.to_owned()),
            }
        }
        if is_rows {
            (self.edited, self.damaged) = (false, false);
        }
        match self.dead {
            true => Err(io::Error::other("no power")),
            false => Ok(()),
        }
    }
}

fn is_rows(path: &Path) -> bool {
    path.extension().is_none()
}

impl Files for SimulatedFiles {
    fn read(&self, path: &Path) -> io::Result<Option<String>> {
        let disk = self.disk();
        let text = match is_rows(path) {
            true => disk.rows.clone(),
            false => disk.names.clone(),
        };
        Ok(match disk.fault {
            Some(Fault::MissingIsEmpty) => Some(text.unwrap_or_default()),
            Some(Fault::RowsWithoutUid) if !is_rows(path) => {
                let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned() + "\n";
                text.map(|text| text.lines().map(name).collect())
            }
            _ => text,
        })
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.dead || disk.full {
            return Err(io::Error::other("cannot be written"));
        }
        if disk.fault != Some(Fault::NamesFirst) {
            return disk.put(is_rows(path), text);
        }
        if is_rows(path) {
            disk.later = Some(text.to_owned());
            return Ok(());
        }
        disk.put(false, text)?;
        let later = disk.later.take().unwrap_or_default();
        disk.put(true, &later)
    }

    fn stamp(&self, path: &Path) -> Stamp {
        let disk = self.disk();
        let rows = disk.rows.as_ref().filter(|_| is_rows(path))?;
        Some((
            SystemTime::UNIX_EPOCH + Duration::from_secs(disk.changed),
            rows.len() as u64,
        ))
    }
}
