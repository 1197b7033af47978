//! The log's side of a copy: rows go out between two batches, so no writer waits for a disk that is not the log's.
//!
//! What is copied is the state at the revision at which the copy began. Rows are never changed, and compaction waits
//! while they are needed, within bounds: a copy that does not get on, or that the log outgrows, is cut short.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent::units::Revision;

use super::super::super::{Event, StoreError};
use super::snapshot::{Copied, Piece};
use super::table::Table;

/// Values read at once: a millisecond or so.
const PIECE: usize = 256 << 10;
const ROWS: usize = 256;
/// Pieces under way to the thread that writes them.
pub const UNDER_WAY: usize = 4;
/// The other disk may stand still for so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// While the other side is busy.
const PAUSE: Duration = Duration::from_millis(2);
/// History that may wait for a copy, in bytes.
const MOST: usize = 64 << 20;

/// A copy under way.
#[derive(Debug)]
pub struct Copying {
    at: Revision,
    rows: std::vec::IntoIter<Revision>,
    volatile: Option<Vec<Copied>>,
    waiting: Option<Piece>,
    to: Option<SyncSender<Piece>>,
    moved: Instant,
    /// Of the thread that writes; returns the revision if this was the log's own snapshot.
    writer: JoinHandle<Option<Revision>>,
    /// The file is there, or will not be: the writer has nothing left to do but to say so.
    written: Arc<AtomicBool>,
}

impl Copying {
    /// `rows`: revisions of those on disk, `volatile`: those that are not.
    pub fn begin(
        at: Revision,
        mut rows: Vec<Revision>,
        volatile: Vec<Copied>,
        to: SyncSender<Piece>,
        writer: JoinHandle<Option<Revision>>,
        written: Arc<AtomicBool>,
    ) -> Self {
        // As they lie in the file.
        rows.sort_unstable();
        Self {
            at,
            rows: rows.into_iter(),
            volatile: Some(volatile),
            waiting: None,
            to: Some(to),
            moved: Instant::now(),
            writer,
            written,
        }
    }

    /// Hands out the next piece, if there is room for it. `history`: bytes that wait for compaction.
    pub fn step(&mut self, table: &Table, history: usize) {
        if self.to.is_none() {
            return;
        }
        let late = self.moved.elapsed() > PATIENCE;
        if late || history > MOST {
            let why = match late {
                true => "the disk that it is written to has stood still for a minute",
                false => "so much was written meanwhile that the log would outgrow its bounds",
            };
            self.waiting = Some(Piece::Cut(StoreError::Unavailable(why.to_owned())));
            // If there is no room for it, its being gone says enough.
            self.send();
            self.to = None;
            return;
        }
        if self.waiting.is_none() {
            self.waiting = Some(self.next(table));
        }
        self.send();
    }

    fn next(&mut self, table: &Table) -> Piece {
        let (mut rows, mut size) = (self.volatile.take().unwrap_or_default(), 0);
        while size < PIECE && rows.len() < ROWS {
            let Some(at) = self.rows.next() else { break };
            let copy = |row: super::sum::Fields<'_>| Copied {
                event: Event {
                    key: row.key.into(),
                    revision: row.revision,
                    created: row.created,
                    value: row.value.map(bytes::Bytes::copy_from_slice),
                },
                ttl: row.ttl,
            };
            match table.row(at, copy) {
                Ok(Some(row)) => {
                    size += row.event.value.as_ref().map_or(0, bytes::Bytes::len);
                    rows.push(row);
                }
                Ok(None) => {
                    let why = format!("row {at} is gone");
                    return Piece::Cut(StoreError::Unavailable(why));
                }
                Err(error) => return Piece::Cut(error),
            }
        }
        match rows.is_empty() {
            true => Piece::End(self.at),
            false => Piece::Rows(rows),
        }
    }

    fn send(&mut self) {
        let (Some(to), Some(piece)) = (&self.to, self.waiting.take()) else {
            return;
        };
        let last = matches!(piece, Piece::End(_) | Piece::Cut(_));
        match to.try_send(piece) {
            Ok(()) => {
                self.moved = Instant::now();
                if last {
                    self.to = None;
                }
            }
            Err(TrySendError::Full(piece)) => self.waiting = Some(piece),
            Err(TrySendError::Disconnected(_)) => self.to = None,
        }
    }

    /// Whether rows are still needed.
    pub fn needs_rows(&self) -> bool {
        self.to.is_some()
    }

    /// When there is something to do for it.
    pub fn next_step(&self, now: Instant) -> Instant {
        match (&self.to, &self.waiting) {
            (Some(_), None) => now,
            (Some(_), Some(_)) => now + PAUSE,
            (None, _) => now + PAUSE * 25,
        }
    }

    /// Whether the writer has ended, too.
    pub fn is_over(&self) -> bool {
        self.written.load(Ordering::Acquire) || self.writer.is_finished()
    }

    /// Waits for the writer, which has no more to write.
    pub fn end(mut self) -> Option<Revision> {
        self.to = None;
        // A panic over there has been printed already.
        self.writer.join().unwrap_or(None)
    }

    /// Cuts it short, and gives the writer so long to remove what it has begun.
    pub fn cut(mut self, patience: Duration) {
        self.to = None;
        let begun = Instant::now();
        while !self.is_over() {
            if begun.elapsed() > patience {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::place;
    use super::*;
    use crate::scratch::Scratch;

    fn stuck(history: usize) -> (Vec<Piece>, bool) {
        let folder = Scratch::new(&format!("copying-{history}"));
        let path = folder.0.join("a.db");
        place::fresh(&path).unwrap();
        let table = Table::create(&path).unwrap();
        let (to, pieces) = mpsc::sync_channel(UNDER_WAY);
        let row = |number| Copied {
            event: Event {
                key: "/k".into(),
                revision: Revision::new(number),
                created: Revision::new(number),
                value: None,
            },
            ttl: None,
        };
        let writer = std::thread::spawn(|| None);
        let volatile = (1..=9).map(row).collect();
        let mut copying = Copying::begin(Revision::new(9), Vec::new(), volatile, to, writer, Arc::default());
        copying.step(&table, 0);
        copying.step(&table, history);
        let needed = copying.needs_rows();
        copying.end();
        (pieces.try_iter().collect(), needed)
    }

    #[test]
    fn a_log_that_closes_does_not_wait_for_a_disk_that_stands_still() {
        let (to, pieces) = mpsc::sync_channel(UNDER_WAY);
        let (go_on, stuck) = mpsc::channel::<()>();
        let writer = std::thread::spawn(move || {
            let cut = pieces.recv().is_err();
            let _ = stuck.recv();
            cut.then_some(Revision::ZERO)
        });
        let copying = Copying::begin(Revision::new(9), Vec::new(), Vec::new(), to, writer, Arc::default());
        // Comes back although the writer goes on only afterwards.
        copying.cut(Duration::ZERO);
        go_on.send(()).unwrap();
    }

    #[test]
    fn a_copy_that_the_log_outgrows_is_cut_short_so_that_compaction_goes_on() {
        let (pieces, needed) = stuck(MOST + 1);
        assert!(
            matches!(pieces.as_slice(), [Piece::Rows(_), Piece::Cut(_)]),
            "{pieces:?}"
        );
        assert!(!needed);
        let (pieces, _) = stuck(MOST);
        assert!(
            matches!(pieces.as_slice(), [Piece::Rows(_), Piece::End(_)]),
            "{pieces:?}"
        );
    }
}
