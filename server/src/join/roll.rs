//! `cred/node-passwd`: the nodes' password records as rows of a file, which an operator may take a row out of (3.3).
//!
//! K3s before v1.20 had only this file. Here it mirrors the Secrets, `hash,node,node,`; beside it, `node-passwd.names`
//! remembers which rows we wrote, so that a row taken out while no server ran is known from one that never was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::csv;
use super::files::{self, PRIVATE};
use super::node_password::Record;

/// What tells one state of the file from another; `None`: no file.
pub type Stamp = Option<(SystemTime, u64)>;

/// The file.
#[derive(Clone, Debug)]
pub struct Roll {
    path: PathBuf,
    names: PathBuf,
}

impl Roll {
    /// In `<data>/server/cred`.
    pub fn new(cred: &Path) -> Self {
        Self {
            path: cred.join("node-passwd"),
            names: cred.join("node-passwd.names"),
        }
    }

    /// Where it is, for people.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its present state, without reading it.
    pub fn stamp(&self) -> Stamp {
        let meta = fs::metadata(&self.path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    }

    /// Rows by node: a hash, or a clear password of a very old K3s. `None`: no file, or one that cannot be understood,
    /// out of which nothing is to be concluded.
    ///
    /// # Errors
    /// What the system says.
    pub fn rows(&self) -> io::Result<Option<BTreeMap<String, String>>> {
        let rows = files::read(&self.path)?.and_then(|text| csv::read(&text));
        let row = |row: Vec<String>| match row.as_slice() {
            [hash, node, ..] if !node.is_empty() => Some((node.clone(), hash.clone())),
            _ => None,
        };
        Ok(rows.map(|rows| rows.into_iter().filter_map(row).collect()))
    }

    /// The nodes whose rows we wrote last.
    ///
    /// # Errors
    /// What the system says.
    pub fn written(&self) -> io::Result<BTreeSet<String>> {
        let text = files::read(&self.names)?.unwrap_or_default();
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Writes all rows. The names go last: a crash between the two only makes a row look like somebody else's.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, records: &BTreeMap<String, Record>) -> io::Result<()> {
        let row =
            |(node, record): (&String, &Record)| vec![record.hash.clone(), node.clone(), node.clone(), String::new()];
        let rows: Vec<Vec<String>> = records.iter().map(row).collect();
        files::write_if_changed(
            &self.path,
            csv::write(rows.iter().map(Vec::as_slice)).as_bytes(),
            PRIVATE,
        )?;
        let names: String = records.keys().map(|node| format!("{node}\n")).collect();
        files::write_if_changed(&self.names, names.as_bytes(), PRIVATE)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::files::Scratch;

    #[test]
    fn what_is_written_is_read_back_and_a_broken_file_says_nothing() {
        let scratch = Scratch::new("roll");
        let roll = Roll::new(&scratch.0);
        assert_eq!(roll.rows().unwrap(), None);
        assert_eq!(roll.stamp(), None);
        let record = Record {
            hash: "$1:00:4:8:1:AAAA".to_owned(),
            owner: None,
            created: jiff::Timestamp::UNIX_EPOCH,
        };
        roll.write(&[("pi".to_owned(), record)].into()).unwrap();
        assert_eq!(fs::read_to_string(roll.path()).unwrap(), "$1:00:4:8:1:AAAA,pi,pi,\n");
        assert_eq!(roll.rows().unwrap().unwrap().len(), 1);
        assert_eq!(roll.written().unwrap(), ["pi".to_owned()].into());
        assert!(roll.stamp().is_some());
        fs::write(roll.path(), "\"open").unwrap();
        assert_eq!(roll.rows().unwrap(), None);
    }
}
