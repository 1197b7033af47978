//! Node passwords: K3s' hash format, and what is to be done so that Secrets, Nodes and `cred/node-passwd` agree.
//!
//! Pure; `node_records` carries it out. Source of the format: K3s v1.36 `pkg/authenticator/hash/scrypt.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use agent::wire::join::hex;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use jiff::Timestamp;
use scrypt::Params;

use super::reenrol::Window;

/// log2 of the cost of new hashes: 256 KiB and less than a millisecond. K3s uses 15 (32 MiB, a tenth of a second) and reads
/// whatever the text says. A node's password is 128 random bits, which no stretching makes harder to guess, while a
/// fleet that comes back after a power cut registers hundreds of nodes a second: at 11 this was half of a server's work.
const NEW_LOG_N: u8 = 8;

/// How each hash begins.
const HASHED: &str = "$1:";

/// What a hash may cost to check: K3s' 32 MiB. A record that asks for more is damaged.
const MAX_LOG_N: u8 = 15;
const MAX_R: u32 = 8;
const MAX_P: u32 = 4;
const KEY_BYTES: usize = 64;

/// Orphaned records of nodes that never appeared are forgotten after this long (K3s).
const ORPHANED: Duration = Duration::from_secs(600);

/// A stored text that is no hash.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a password hash of the form $1:salt:N:r:p:key")]
pub struct BadHash;

/// The text that is stored for a password.
///
/// # Errors
/// Never in practice: the parameters are constants.
pub fn hash(password: &str, salt: [u8; 8]) -> Result<String, BadHash> {
    let params = Params::new(NEW_LOG_N, 8, 1).map_err(|_| BadHash)?;
    let mut key = [0; KEY_BYTES];
    scrypt::scrypt(password.as_bytes(), &salt, &params, &mut key).map_err(|_| BadHash)?;
    Ok(format!(
        "$1:{}:{NEW_LOG_N}:8:1:{}",
        hex(&salt),
        STANDARD_NO_PAD.encode(key)
    ))
}

/// Whether this is the password that the text was made from. Slow and large on purpose: see [`MAX_LOG_N`].
///
/// # Errors
/// [`BadHash`].
pub fn verify(text: &str, password: &str) -> Result<bool, BadHash> {
    let parts: Vec<&str> = text.trim().split(':').collect();
    let ["$1", salt, log_n, r, p, key] = parts.as_slice() else {
        return Err(BadHash);
    };
    let salt = unhex(salt).ok_or(BadHash)?;
    let log_n: u8 = log_n.parse().map_err(|_| BadHash)?;
    let r: u32 = r.parse().map_err(|_| BadHash)?;
    let p: u32 = p.parse().map_err(|_| BadHash)?;
    let key = STANDARD_NO_PAD.decode(key).map_err(|_| BadHash)?;
    if log_n > MAX_LOG_N || r > MAX_R || p > MAX_P || key.len() > KEY_BYTES || key.len() < 16 {
        return Err(BadHash);
    }
    let params = Params::new(log_n, r, p).map_err(|_| BadHash)?;
    let mut made = vec![0; key.len()];
    scrypt::scrypt(password.as_bytes(), &salt, &params, &mut made).map_err(|_| BadHash)?;
    let differ = made.iter().zip(&key).fold(0, |differ, (a, b)| differ | (a ^ b));
    Ok(differ == 0)
}

/// A stored record, as the API has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Record {
    /// Uid of its Secret.
    pub uid: String,
    /// The Secret's `resourceVersion`.
    pub version: String,
    /// The hash.
    pub hash: String,
    /// Uid of the Node it belongs to, once that was seen.
    pub owner: Option<String>,
    /// When it was made.
    pub created: Timestamp,
    /// Hash of the public key in the node's client certificate, if it asked us for one.
    pub key: Option<String>,
    /// When the node may come with another password, because an operator said so.
    pub window: Option<Window>,
}

impl Record {
    /// This record, whatever has been noted on it since.
    pub fn itself(&self) -> Only {
        Only {
            uid: self.uid.clone(),
            version: None,
        }
    }

    /// This record, as long as nothing has been noted on it since.
    pub fn unchanged(&self) -> Only {
        Only {
            version: Some(self.version.clone()),
            ..self.itself()
        }
    }
}

/// Which record of a node is meant, and no other one that has its place by now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Only {
    /// Uid of its Secret.
    pub uid: String,
    /// And in which state: `resourceVersion`.
    pub version: Option<String>,
}

/// The nodes whose rows we wrote, with the uid of the record that each is of; empty: not known any more.
pub type Written = BTreeMap<String, String>;

/// All that decides.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// By node name.
    pub records: BTreeMap<String, Record>,
    /// Nodes by name, with their uid.
    pub nodes: BTreeMap<String, String>,
    /// Rows of the file, by node name: a hash, or a clear password of a very old K3s. `None`: no file.
    pub rows: Option<BTreeMap<String, String>>,
    /// What the file had when we last wrote it.
    pub written: Written,
    /// Nodes that have had time enough to appear ([`Orphans`]).
    pub overdue: BTreeSet<String>,
}

/// The records whose Node nobody has seen yet, by version, and how long each has been there: when its node comes again, that is
/// noted on it.
#[derive(Debug, Default)]
pub struct Orphans(BTreeMap<String, Duration>);

impl Orphans {
    /// Looks at all records and Nodes; returns the nodes whose record has been seen without a Node for too long.
    ///
    /// `up`: how long this server has run, by a clock that nobody sets. When a record says it was made is not asked: the
    /// server that made it may have booted in 1970, or its clock be behind this one's, and a node takes a while to come
    /// after its certificate. A name that is free meanwhile is whoever's comes next.
    pub fn overdue(
        &mut self,
        records: &BTreeMap<String, Record>,
        nodes: &BTreeMap<String, String>,
        up: Duration,
    ) -> BTreeSet<String> {
        let alone = |(name, record): &(&String, &Record)| record.owner.is_none() && !nodes.contains_key(*name);
        let alone = || records.iter().filter(alone);
        let since = |record: &Record| self.0.get(&record.version).copied().unwrap_or(up);
        self.0 = alone()
            .map(|(_, record)| (record.version.clone(), since(record)))
            .collect();
        let over = |record: &Record| {
            let since = self.0.get(&record.version);
            since.is_some_and(|since| up.saturating_sub(*since) > ORPHANED)
        };
        let overdue = alone().filter(|(_, record)| over(record));
        overdue.map(|(name, _)| name.clone()).collect()
    }
}

/// Why a record goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// An operator said so.
    RowTakenOut,
    /// An operator said so of all that is the node's.
    NodeDeleted,
    /// It was waited for.
    NeverRegistered,
}

impl Why {
    /// Which state of the record this is true of. A Node that is gone does not come back, nor is a row put back that was
    /// taken out; who never came may be coming.
    pub fn only(self, record: &Record) -> Only {
        match self {
            Self::RowTakenOut | Self::NodeDeleted => record.itself(),
            Self::NeverRegistered => record.unchanged(),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RowTakenOut => "its row was taken out of node-passwd",
            Self::NodeDeleted => "its node was deleted",
            Self::NeverRegistered => "its node never registered",
        })
    }
}

/// What makes them agree.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// Records to delete: node name and why.
    pub forget: BTreeMap<String, Why>,
    /// Rows without a record, to become one: node name and clear password.
    pub adopt: BTreeMap<String, String>,
    /// Records to tie to their Node: node name and uid.
    pub own: BTreeMap<String, String>,
    /// The file lost so many rows off its end at once that this is no operator's wish: it is written anew.
    pub rebuilt: Option<usize>,
}

/// Decides.
///
/// A row that we wrote and that is gone was taken out by the operator: the record that it was of goes. A row that we did not write and
/// that has no record is a very old K3s' or the operator's: it becomes a record, if it has a clear password. One with a hash
/// is a server's of ours, of a record that was deleted, and only looks like somebody else's: the power failed, or the disk
/// was full, before its name was kept, too. A record goes with its Node, and when none came in time. A file that is like
/// what we wrote but for several rows missing off its end ([`cut_off`]) is one that was cut, like one that is missing:
/// whoever means that deletes the records, or takes out one row at a time.
pub fn plan(seen: &Seen) -> Plan {
    let mut plan = Plan::default();
    let empty = BTreeMap::new();
    plan.rebuilt = cut_off(seen);
    let told = seen.rows.as_ref().filter(|_| plan.rebuilt.is_none());
    let rows = told.unwrap_or(&empty);
    for (name, record) in &seen.records {
        let removed = told.is_some() && is_written(seen, name, record) && !rows.contains_key(name);
        let why = match (removed, &record.owner, seen.nodes.get(name)) {
            (true, _, _) => Some(Why::RowTakenOut),
            (false, Some(owner), Some(uid)) if owner != uid => Some(Why::NodeDeleted),
            (false, Some(_), None) => Some(Why::NodeDeleted),
            (false, None, None) if seen.overdue.contains(name) => Some(Why::NeverRegistered),
            (false, _, _) => None,
        };
        match (why, &record.owner, seen.nodes.get(name)) {
            (Some(why), _, _) => drop(plan.forget.insert(name.clone(), why)),
            (None, None, Some(uid)) => drop(plan.own.insert(name.clone(), uid.clone())),
            (None, _, _) => {}
        }
    }
    for (name, text) in rows {
        let is_ours = seen.written.contains_key(name) || text.starts_with(HASHED);
        if !seen.records.contains_key(name) && !is_ours {
            plan.adopt.insert(name.clone(), text.clone());
        }
    }
    plan
}

/// Whether this very record had a row: a node that was forgotten may have come again since, at another server.
fn is_written(seen: &Seen, name: &str, record: &Record) -> bool {
    let uid = seen.written.get(name);
    uid.is_some_and(|uid| uid.is_empty() || *uid == record.uid)
}

/// How many rows are missing off the end of the file, if it was cut there: it has nothing but rows that we wrote, and
/// all of those that come first (rows are written in the order of their names). A file that lost its last row only, or
/// rows between others, or that has rows of its own, was edited.
fn cut_off(seen: &Seen) -> Option<usize> {
    let rows = seen.rows.as_ref()?;
    let ours = seen
        .records
        .iter()
        .filter(|(name, record)| is_written(seen, name, record));
    let missing = ours.map(|(name, _)| name).filter(|name| !rows.contains_key(*name));
    let missing: Vec<&String> = missing.collect();
    let whole = rows.keys().all(|name| seen.written.contains_key(name));
    let first = missing.first()?;
    let at_the_end = rows.keys().all(|name| name < *first);
    (missing.len() > 1 && whole && at_the_end).then_some(missing.len())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() || text.is_empty() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWORD: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn hashes_of_k3s_and_of_any_cost_are_checked() {
        for text in [
            "$1:0011223344556677:15:8:1:/iOHeRy1TFHxZwR120qD+iWh49/3AGWm5XTQc7AbbofjwG/Y9CHpZK14leq861JNp0AVgiVA1K/oSSXK4A3XFA",
            "$1:0011223344556677:11:8:1:iM8IO2V2Nfh3UfozlfJsoetDdR8TkXfwJtQT0PqFFJOfTnYlhVZITgli6hyGxuRuTTJbsq+w8GvNYAH6OfUgqA",
            "$1:0011223344556677:4:8:1:wH6uQJWGazgw25BF9p4H5xHl5EGnJBICLYSsSkHAwzq2CFSxOY5fD2/yNg0AH2zedXFDmfHwxPIPZNueGw+8ig",
        ] {
            assert_eq!(verify(text, PASSWORD), Ok(true), "{text}");
            assert_eq!(verify(text, "0123456789abcdef0123456789abcdee"), Ok(false), "{text}");
        }
    }

    #[test]
    fn a_new_hash_is_in_the_format_of_k3s() {
        let text = hash(PASSWORD, [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]).unwrap();
        assert_eq!(
            text,
            "$1:0011223344556677:8:8:1:1rQ8OR8WjnAYzzQPCX1gfMqPUnh/X/GENXuNPLJaFuENPc0J34tGGWSdqP8lFtzW7IjS2bfLoz/NmOmYhGGAFg"
        );
    }

    #[test]
    fn what_would_cost_too_much_or_is_damaged_is_refused() {
        for text in [
            "",
            "$1",
            "secret",
            "$2:00:4:8:1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "$1:00:16:8:1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "$1:00:4:9:1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "$1:00:4:8:5:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "$1:0:4:8:1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "$1:00:4:8:1:AAAA",
            "$1:00:4:8:1:",
            "$1:00:4:0:1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(verify(text, PASSWORD), Err(BadHash), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\$1:[0-9a-f]{0,6}:[0-9]{0,2}:[0-9]?:[0-9]?:.{0,40}") {
            let _ = verify(&text, PASSWORD);
        }
    }

    fn record(owner: Option<&str>) -> Record {
        Record {
            hash: "h".to_owned(),
            owner: owner.map(str::to_owned),
            ..Record::default()
        }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn a_row_that_the_operator_took_out_takes_its_record_with_it() {
        let mut seen = Seen {
            records: [("a", None), ("b", Some("1")), ("c", None)]
                .map(|(name, owner)| (name.to_owned(), record(owner)))
                .into(),
            nodes: map(&[("b", "1")]),
            rows: Some(map(&[("c", "h")])),
            written: map(&[("a", ""), ("b", ""), ("c", "")]),
            ..Seen::default()
        };
        assert_eq!(plan(&seen).forget.keys().collect::<Vec<_>>(), ["a", "b"]);
        seen.rows = None;
        assert!(plan(&seen).forget.is_empty(), "a lost file is not an operator's wish");
        seen.rows = Some(BTreeMap::new());
        let emptied = plan(&seen);
        assert!(emptied.forget.is_empty(), "nor is one that lost all its rows");
        assert_eq!(emptied.rebuilt, Some(3));
        seen.records.retain(|name, _| name == "a");
        let forgotten = plan(&seen).forget;
        assert_eq!(forgotten.keys().collect::<Vec<_>>(), ["a"], "its only row may go");
        seen.rows = Some(map(&[("c", "h")]));
        seen.written.clear();
        assert!(
            plan(&seen).forget.is_empty(),
            "another server made them: we had not written them yet"
        );
    }

    #[test]
    fn a_file_that_was_cut_at_a_line_end_forgets_nobody() {
        let names = ["a", "b", "c", "d"];
        let mut seen = Seen {
            records: names.map(|name| (name.to_owned(), record(None))).into(),
            written: names.map(|name| (name.to_owned(), String::new())).into(),
            ..Seen::default()
        };
        for (left, forgotten, rebuilt) in [
            ("abcd", "", None),
            ("abc", "d", None),
            ("ab", "", Some(2)),
            ("a", "", Some(3)),
            ("", "", Some(4)),
            // Nothing but an editor takes these out.
            ("ad", "bc", None),
            ("cd", "ab", None),
            ("abx", "cd", None),
        ] {
            seen.rows = Some(left.chars().map(|name| (name.to_string(), "h".to_owned())).collect());
            let plan = plan(&seen);
            let names: String = plan.forget.into_keys().collect();
            assert_eq!((&*names, plan.rebuilt), (forgotten, rebuilt), "{left}");
        }
    }

    #[test]
    fn a_record_goes_with_its_node() {
        for (name, owner, node, overdue, forgotten) in [
            ("node is there", Some("1"), Some("1"), false, false),
            ("node is another of the same name", Some("1"), Some("2"), false, true),
            ("node is gone", Some("1"), None, false, true),
            ("node is to come", None, None, false, false),
            ("node never came", None, None, true, true),
            ("node came", None, Some("1"), false, false),
        ] {
            let seen = Seen {
                records: [("n".to_owned(), record(owner))].into(),
                nodes: node.map(|uid| ("n".to_owned(), uid.to_owned())).into_iter().collect(),
                overdue: overdue.then(|| "n".to_owned()).into_iter().collect(),
                ..Seen::default()
            };
            let plan = plan(&seen);
            assert_eq!(plan.forget.contains_key("n"), forgotten, "{name}");
            assert_eq!(plan.own.contains_key("n"), name == "node came", "{name}");
        }
    }

    #[test]
    fn a_record_waits_for_its_node_since_it_was_seen_whatever_it_says_of_when_it_was_made() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        // By the clocks of servers that boot in 1970, are behind this one, or are ahead of it.
        for created in ["1970-01-01T00:00:20Z", "2026-11-25T00:00:00Z", "2999-01-01T00:00:00Z"] {
            let of = |version: &str, owner| Record {
                version: version.to_owned(),
                created: created.parse().unwrap(),
                ..record(owner)
            };
            let mut orphans = Orphans::default();
            for (name, record, node, up, overdue) in [
                ("just seen", of("1", None), None, minutes(1000), false),
                ("for ten minutes", of("1", None), None, minutes(1010), false),
                (
                    "another of the name, or its node came again",
                    of("2", None),
                    None,
                    minutes(1011),
                    false,
                ),
                ("for less than ten", of("2", None), None, minutes(1020), false),
                ("the Node is there", of("2", None), Some("n"), minutes(1022), false),
                ("and is not any more", of("2", None), None, minutes(1023), false),
                ("for more than ten", of("2", None), None, minutes(1034), true),
                ("it could not be deleted", of("2", None), None, minutes(1035), true),
                ("tied", of("2", Some("n")), None, minutes(1036), false),
                ("next", of("3", None), None, minutes(1037), false),
            ] {
                let records = [("pi".to_owned(), record)].into();
                let nodes = node.map(|uid: &str| ("pi".to_owned(), uid.to_owned()));
                let nodes = nodes.into_iter().collect();
                let found = orphans.overdue(&records, &nodes, up);
                assert_eq!(found.contains("pi"), overdue, "made {created}: {name}");
            }
        }
    }

    #[test]
    fn rows_of_a_very_old_k3s_become_records() {
        let seen = Seen {
            rows: Some(map(&[
                ("old", "clear"),
                ("gone", "clear"),
                ("unfinished", "$1:00:4:8:1:AAAA"),
            ])),
            written: map(&[("gone", "")]),
            ..Seen::default()
        };
        let plan = plan(&seen);
        assert_eq!(
            plan.adopt,
            map(&[("old", "clear")]),
            "the record of a row that we wrote was deleted, and so is the row: also when we did not come to note its name"
        );
    }
}
