//! Copies of the log: those that are asked for, and those that it makes of itself.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use agent::units::Revision;
use tracing::{error, info, warn};

use super::super::copying::{Copying, UNDER_WAY};
use super::super::snapshot::{self, Backup, BackupError, Copied, Progress};
use super::super::{place, schedule};
use super::{Log, Pending};

impl Log {
    /// Begins to copy the present state to a new file. `done` hears what came of it, on a thread of its own; what it
    /// returns is the revision of a snapshot that the log may count on.
    pub fn copy(
        &mut self,
        path: PathBuf,
        progress: Arc<Progress>,
        done: impl FnOnce(Result<Backup, BackupError>) -> Option<Revision> + Send + 'static,
    ) {
        self.copy_on(Instant::now());
        if self.copying.is_some() {
            done(Err(BackupError::Busy));
            return;
        }
        let on_disk = self.heads.all().filter(|head| !self.pending.contains_key(&head.key));
        let rows: Vec<Revision> = on_disk.map(|head| head.revision).collect();
        let volatile = self.pending.values().filter(|one| one.event.value.is_some());
        let copied = |one: &Pending| Copied {
            event: one.event.clone(),
            ttl: one.ttl,
        };
        let volatile: Vec<Copied> = volatile.map(copied).collect();
        progress.expect(rows.len().saturating_add(volatile.len()));
        let (to, pieces) = mpsc::sync_channel(UNDER_WAY);
        let written = Arc::new(AtomicBool::new(false));
        let writer = std::thread::Builder::new().name("backup".to_owned()).spawn({
            let written = Arc::clone(&written);
            move || {
                let outcome = snapshot::write(&path, &pieces, &progress);
                written.store(true, Ordering::Release);
                done(outcome)
            }
        });
        match writer {
            Ok(writer) => self.copying = Some(Copying::begin(self.revision, rows, volatile, to, writer, written)),
            Err(problem) => error!(error = &problem as &dyn std::error::Error, "no thread to copy the log"),
        }
    }

    /// Copies the log beside itself, unless there is no room.
    pub(super) fn snapshot(&mut self, now: Instant) {
        self.snapshot_at = now + schedule::AGAIN;
        let folder = snapshot::folder(&self.path);
        let room = place::folder(&folder).and_then(|()| Ok(nix::sys::statvfs::statvfs(&folder)?));
        let size = std::fs::metadata(&self.path).map_or(0, |about| about.len());
        match room {
            Ok(room) if !schedule::fits(room.blocks_available().saturating_mul(room.fragment_size()), size) => {
                warn!(folder = %folder.display(), "no room for a snapshot of the datastore: free some");
            }
            Ok(_) => {
                let path = snapshot::named(&self.path, self.revision);
                self.copy(path, Arc::default(), |made| match made {
                    Ok(made) => {
                        info!(revision = %made.revision, bytes = made.bytes, "made a snapshot of the datastore");
                        Some(made.revision)
                    }
                    Err(problem) => {
                        let problem = &problem as &dyn std::error::Error;
                        warn!(error = problem, "cannot make a snapshot of the datastore, trying again");
                        None
                    }
                });
            }
            Err(problem) => warn!(error = %problem, "cannot make a snapshot of the datastore, trying again"),
        }
    }

    /// Goes on with a copy, and ends it.
    pub(super) fn copy_on(&mut self, now: Instant) {
        if let Some(copying) = &mut self.copying {
            copying.step(&self.table, self.growth.bytes());
        }
        let Some(over) = self.copying.take_if(|copying| copying.is_over()) else {
            return;
        };
        let Some(revision) = over.end() else {
            return;
        };
        self.snapshotted = self.snapshotted.max(revision);
        let found = snapshot::list(&self.path);
        self.snapshot_at = now + schedule::interval(found.first().map_or(0, |newest| newest.bytes));
        let sizes: Vec<(Revision, u64)> = found.iter().map(|one| (one.revision, one.bytes)).collect();
        for gone in schedule::surplus(&sizes) {
            if let Err(problem) = place::remove(&snapshot::named(&self.path, gone)) {
                warn!(error = %problem, "cannot remove an old snapshot of the datastore");
            }
        }
    }

    /// When a snapshot is due, if there is anything new for it.
    pub(super) fn snapshot_due(&self) -> Option<Instant> {
        (self.durable > self.snapshotted && self.copying.is_none()).then_some(self.snapshot_at)
    }
}
