//! `cred/node-passwd`: the nodes' password records as rows of a file, which an operator may take a row out of (3.3).
//!
//! K3s before v1.20 had only this file. Here it mirrors the Secrets, `hash,node,node,`; beside it, `node-passwd.names`
//! remembers which rows we wrote, `node uid` of the record, so that a row taken out while no server ran is known from one
//! that never was, and from one of a record that was deleted and made anew at another server meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::csv;
use super::files::{self, PRIVATE};
use super::node_password::{Record, Written};

/// Of a row that K3s or we wrote.
const COLUMNS: usize = 4;

/// What tells one state of the file from another; `None`: no file.
pub type Stamp = Option<(SystemTime, u64)>;

/// Where files lie. Each is written whole or not at all, and is there for good once that is said. Errors are the system's.
pub trait Files: Send + Sync {
    /// A file's text; `None`: no file.
    fn read(&self, path: &Path) -> io::Result<Option<String>>;
    /// Writes a private file, unless it has this text.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
    /// A file's state, without reading it.
    fn stamp(&self, path: &Path) -> Stamp;
}

/// This machine's.
struct SystemFiles;

impl Files for SystemFiles {
    fn read(&self, path: &Path) -> io::Result<Option<String>> {
        files::read(path)
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        files::write_if_changed(path, text.as_bytes(), PRIVATE).map(drop)
    }

    fn stamp(&self, path: &Path) -> Stamp {
        let meta = fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    }
}

/// The file.
#[derive(Clone)]
pub struct Roll {
    files: Arc<dyn Files>,
    path: PathBuf,
    names: PathBuf,
}

impl Roll {
    /// In `<data>/server/cred`.
    pub fn new(cred: &Path) -> Self {
        Self::on(Arc::new(SystemFiles), cred)
    }

    /// As [`Roll::new`], among these files.
    pub fn on(files: Arc<dyn Files>, cred: &Path) -> Self {
        Self {
            files,
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
        self.files.stamp(&self.path)
    }

    /// Rows by node: a hash, or a clear password of a very old K3s. `None`: no file, or one that is damaged, out of which
    /// nothing is to be concluded.
    ///
    /// # Errors
    /// What the system says.
    pub fn rows(&self) -> io::Result<Option<BTreeMap<String, String>>> {
        match self.files.read(&self.path) {
            Ok(text) => Ok(text.and_then(|text| understood(&text))),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The nodes whose rows we wrote last, and of which records; of any, in a file that did not say that.
    ///
    /// # Errors
    /// What the system says.
    pub fn written(&self) -> io::Result<Written> {
        let text = self.files.read(&self.names)?.unwrap_or_default();
        let name = |line: &str| {
            let (node, uid) = line.split_once(' ').unwrap_or((line, ""));
            (node.to_owned(), uid.to_owned())
        };
        Ok(text.lines().map(name).collect())
    }

    /// Writes all rows. The names go last: a crash between the two makes a row look like somebody else's, but for the hash
    /// in it, and a row that went with its record like one that was taken out, but of that record only.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, records: &BTreeMap<String, Record>) -> io::Result<()> {
        let row =
            |(node, record): (&String, &Record)| vec![record.hash.clone(), node.clone(), node.clone(), String::new()];
        let rows: Vec<Vec<String>> = records.iter().map(row).collect();
        self.files
            .write(&self.path, &csv::write(rows.iter().map(Vec::as_slice)))?;
        let name = |(node, record): (&String, &Record)| format!("{node} {}\n", record.uid);
        let names: String = records.iter().map(name).collect();
        self.files.write(&self.names, &names)
    }
}

/// The rows, unless something says that the file is not what somebody meant it to be: a row that was cut short reads as
/// one that was taken out.
fn understood(text: &str) -> Option<BTreeMap<String, String>> {
    let rows = csv::read(text)?;
    // Our rows have four fields and an end. Somebody's own last row may lack the end, not both.
    let cut = !text.is_empty() && !text.ends_with('\n') && rows.last().is_some_and(|row| row.len() < COLUMNS);
    let row = |row: Vec<String>| match row.as_slice() {
        [hash, node, ..] if !node.is_empty() => Some((node.clone(), hash.clone())),
        _ => None,
    };
    (!cut && !text.contains('\0')).then_some(())?;
    rows.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::super::node_password::{self, Seen};
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn what_is_written_is_read_back() {
        let scratch = Scratch::new("roll");
        let roll = Roll::new(&scratch.0);
        assert_eq!(roll.rows().unwrap(), None);
        assert_eq!(roll.stamp(), None);
        let record = Record {
            uid: "u1".to_owned(),
            hash: "$1:00:4:8:1:AAAA".to_owned(),
            ..Record::default()
        };
        roll.write(&[("pi".to_owned(), record)].into()).unwrap();
        assert_eq!(fs::read_to_string(roll.path()).unwrap(), "$1:00:4:8:1:AAAA,pi,pi,\n");
        assert_eq!(roll.rows().unwrap().unwrap().len(), 1);
        assert_eq!(roll.written().unwrap(), [("pi".to_owned(), "u1".to_owned())].into());
        assert!(roll.stamp().is_some());
        fs::write(&roll.names, "pi\n").unwrap();
        let of_before = [("pi".to_owned(), String::new())].into();
        assert_eq!(roll.written().unwrap(), of_before, "as an earlier version wrote it");
    }

    /// Records by node and uid.
    fn records(all: &[(&str, &str)]) -> BTreeMap<String, Record> {
        let record = |&(node, uid): &(&str, &str)| {
            let record = Record {
                uid: uid.to_owned(),
                hash: format!("$1:00:4:8:1:{uid}"),
                ..Record::default()
            };
            (node.to_owned(), record)
        };
        all.iter().map(record).collect()
    }

    #[test]
    fn wherever_two_writes_are_cut_off_no_record_is_forgotten_that_was_made_since() {
        let states = [
            records(&[]),
            records(&[("a", "1")]),
            records(&[("a", "1"), ("pi", "1")]),
            records(&[("a", "1"), ("pi", "2")]),
            records(&[("pi", "1"), ("z", "1")]),
        ];
        let scratch = Scratch::new("roll-cut");
        let roll = Roll::new(&scratch.0);
        let files = |of: &BTreeMap<String, Record>| {
            roll.write(of).unwrap();
            [&roll.path, &roll.names].map(|path| fs::read(path).unwrap())
        };
        for (old, new) in states.iter().flat_map(|old| states.iter().map(move |new| (old, new))) {
            let ([old_rows, old_names], [new_rows, new_names]) = (files(old), files(new));
            // The rows are on the disk before the names are begun.
            for (rows, names) in [
                (&old_rows, &old_names),
                (&new_rows, &old_names),
                (&new_rows, &new_names),
            ] {
                fs::write(&roll.path, rows).unwrap();
                fs::write(&roll.names, names).unwrap();
                // What was deleted is there again at the next start, and what was there stayed: the API says so.
                let mut now = new.clone();
                for node in old.keys().filter(|node| !new.contains_key(*node)) {
                    now.extend(records(&[(node, "made anew")]));
                }
                let seen = Seen {
                    records: now,
                    rows: roll.rows().unwrap(),
                    written: roll.written().unwrap(),
                    ..Seen::default()
                };
                let plan = node_password::plan(&seen);
                assert!(plan.forget.is_empty() && plan.adopt.is_empty(), "{seen:?}: {plan:?}");
            }
        }
    }

    #[test]
    fn a_row_that_was_taken_out_takes_its_own_record_along_and_no_later_one() {
        let scratch = Scratch::new("roll-taken");
        let roll = Roll::new(&scratch.0);
        let old = records(&[("a", "1"), ("pi", "1")]);
        roll.write(&old).unwrap();
        fs::write(&roll.path, "$1:00:4:8:1:1,a,a,\n").unwrap();
        for (names, records, forgotten) in [
            ("a 1\npi 1\n", old.clone(), true),
            ("a 1\npi 1\n", records(&[("a", "1"), ("pi", "2")]), false),
            ("a\npi\n", old, true),
        ] {
            fs::write(&roll.names, names).unwrap();
            let seen = Seen {
                records,
                rows: roll.rows().unwrap(),
                written: roll.written().unwrap(),
                ..Seen::default()
            };
            let forget = node_password::plan(&seen).forget;
            assert_eq!(forget.contains_key("pi"), forgotten, "{seen:?}");
        }
    }

    #[test]
    fn a_damaged_file_says_nothing_and_an_edited_one_does() {
        let scratch = Scratch::new("roll-damage");
        let roll = Roll::new(&scratch.0);
        for (name, content, rows) in [
            ("a quote is open", &b"\"open"[..], None),
            ("cut in a hash", b"$1:00:4:8:1:AAAA,pi,pi,\n$1:0", None),
            ("cut in a name", b"$1:00:4:8:1:AAAA,pi,pi,\n$1:00:4:8:1:BBBB,bo", None),
            (
                "cut in the last name",
                b"$1:00:4:8:1:AAAA,pi,pi,\n$1:00:4:8:1:BBBB,box,bo",
                None,
            ),
            ("a row of one field", b"pi\n$1:00:4:8:1:BBBB,box,box,\n", None),
            ("zeroes after a power failure", b"\0\0\0\0\0\0\0\0", None),
            ("no text", b"\xff\xfe,pi,pi,\n", None),
            ("whole", b"$1:00:4:8:1:AAAA,pi,pi,\n", Some(1)),
            ("an editor left the last end out", b"$1:00:4:8:1:AAAA,pi,pi,", Some(1)),
            ("blank lines", b"\n$1:00:4:8:1:AAAA,pi,pi,\n\n", Some(1)),
            ("of a very old K3s", b"clear,pi\nclear,box,box\n", Some(2)),
            ("every row was taken out", b"", Some(0)),
        ] {
            fs::write(roll.path(), content).unwrap();
            assert_eq!(roll.rows().unwrap().map(|rows| rows.len()), rows, "{name}");
        }
    }
}
