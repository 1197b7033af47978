//! What this server has seen of a shared log, kept on its own disk for its next start.
//!
//! If all servers were down while the database lost commits, nobody else could tell that it has: the log would hand the
//! same revisions out again, for other writes. Written seldom (a card wears out): what was seen last is noted at a stop,
//! and else what was seen some minutes ago, so a loss of the last seconds before a crash of all may go unnoticed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::warn;

use super::connector::Common;
use super::database::{Identity, Stamp, number, revision};
use super::has_closed;
use super::history::Seen;

/// Beside the place of the embedded file.
const FILE: &str = "seen.json";
/// Between two writes of it: 288 a day, of a block each.
const EVERY: Duration = Duration::from_secs(300);

/// The file.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    /// Of which log.
    identity: Identity,
}

impl Record {
    /// In a folder, which may be missing: then nothing is kept.
    pub fn new(folder: &Path, identity: Identity) -> Self {
        Self {
            path: folder.join(FILE),
            identity,
        }
    }

    /// What was seen of this log; nothing if the file is of another one, or cannot be read.
    pub fn load(&self) -> Option<Seen> {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                self.complain(&error, "cannot read what was seen of the datastore");
                return None;
            }
        };
        let found = serde_json::from_slice(&text).ok().and_then(|value| read(&value));
        if found.is_none() {
            warn!(path = %self.path.display(), "what was seen of the datastore is damaged, and passed over");
        }
        found.and_then(|(identity, seen)| (identity == self.identity).then_some(seen))
    }

    /// Writes it, whole or not at all.
    fn save(&self, seen: &Seen) {
        let text = write(self.identity, seen).to_string();
        match self.replace(&text) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.complain(&error, "cannot note what was seen of the datastore"),
        }
    }

    /// Beside, synced, renamed, and the folder synced.
    fn replace(&self, text: &str) -> io::Result<()> {
        let beside = self.path.with_extension("tmp");
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        self.path
            .parent()
            .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    fn complain(&self, error: &io::Error, what: &'static str) {
        warn!(path = %self.path.display(), error = error as &dyn std::error::Error, "{what}");
    }
}

/// Notes what has been seen, now and then until `closed`.
pub async fn run(record: Arc<Record>, common: Arc<Common>, mut closed: watch::Receiver<bool>) {
    let mut noted = None;
    loop {
        let seen = common.seen();
        if noted != Some(seen) {
            note(&record, seen).await;
            noted = Some(seen);
        }
        tokio::select! {
            () = has_closed(&mut closed) => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Notes it now.
pub async fn note(record: &Arc<Record>, seen: Seen) {
    let record = Arc::clone(record);
    // It cannot panic, and nobody waits for what a runtime that ends leaves out.
    let _ = tokio::task::spawn_blocking(move || record.save(&seen)).await;
}

fn write(Identity(identity): Identity, seen: &Seen) -> Value {
    let stamp = seen.stamp.map(|stamp| stamp.0);
    json!({ "log": identity, "revision": number(seen.revision), "stamp": stamp })
}

fn read(value: &Value) -> Option<(Identity, Seen)> {
    let stamp = match value.get("stamp")? {
        Value::Null => None,
        stamp => Some(Stamp(stamp.as_i64()?)),
    };
    let seen = Seen {
        revision: revision(value.get("revision")?.as_i64()?),
        stamp,
    };
    Some((Identity(value.get("log")?.as_i64()?), seen))
}

#[cfg(test)]
mod tests {
    use agent::units::Revision;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn what_was_seen_is_read_again_of_the_same_log_only() {
        let scratch = Scratch::new("seen-read");
        let record = Record::new(&scratch.0, Identity(7));
        assert_eq!(record.load(), None);
        for stamp in [None, Some(Stamp(i64::MIN)), Some(Stamp(9))] {
            let seen = Seen {
                revision: Revision::new(50),
                stamp,
            };
            record.save(&seen);
            assert_eq!(record.load(), Some(seen));
            assert_eq!(Record::new(&scratch.0, Identity(8)).load(), None, "of another log");
        }
        for damaged in ["", "{", "{}", r#"{"log":7,"revision":"50","stamp":9}"#] {
            std::fs::write(scratch.0.join(FILE), damaged).unwrap();
            assert_eq!(record.load(), None, "{damaged}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_grows_is_noted_now_and_then() {
        let scratch = Scratch::new("seen-run");
        let record = Arc::new(Record::new(&scratch.0, Identity(7)));
        let common = Arc::new(Common::new(1));
        let (close, closed) = watch::channel(false);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(run(Arc::clone(&record), Arc::clone(&common), closed));
        let mut noted = Vec::new();
        for second in 1..3600 {
            common.begin_anew(Seen {
                revision: Revision::new(second),
                stamp: None,
            });
            tokio::time::sleep(Duration::from_secs(1)).await;
            let seen = record.load();
            if seen.is_some() && noted.last() != Some(&seen) {
                noted.push(seen);
            }
        }
        assert!((10..=13).contains(&noted.len()), "{} times in an hour", noted.len());
        close.send_replace(true);
        tasks.join_next().await.unwrap().unwrap();
    }
}
