//! The thread that owns the file: takes requests, in batches, until it is told to end.

use std::sync::mpsc::{Receiver, RecvTimeoutError};

use tokio::sync::watch;
use tracing::error;

use super::log::{Log, answer};
use super::place::Lock;
use super::restore::{Exchanged, exchange};
use super::{Queued, Request};

/// Requests taken together: more would let the first wait for long.
const BATCH: usize = 512;
/// Bytes of values taken together: what a commit adds to SQLite's own log is bounded by it.
const BATCH_BYTES: usize = 4 << 20;

/// Serves requests until the handle is gone or one of them closes the log. `lock`: on its file, let go of at the end.
/// `lost` is told why it ends before that.
pub fn run(mut log: Log, lock: Lock, requests: &Receiver<Queued>, lost: &watch::Sender<Option<String>>) {
    loop {
        let first = match requests.recv_timeout(log.idle()) {
            Ok(queued) => Some(queued),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let (mut writes, mut places, mut bytes) = (Vec::new(), Vec::new(), 0_usize);
        let mut next = first;
        while let Some(queued) = next {
            places.push(queued.place);
            match queued.request {
                Request::Write(write, reply) => {
                    bytes = bytes.saturating_add(write.size());
                    writes.push((write, Some(reply)));
                }
                Request::Close(reply) => {
                    // Each writer has been told.
                    let _ = log.write(writes);
                    let closed = log.close();
                    // Whoever is told that it is closed may open the file anew.
                    drop(log);
                    drop(lock);
                    answer(Some(reply), closed);
                    return;
                }
                other => {
                    let _ = log.write(std::mem::take(&mut writes));
                    match serve(log, other) {
                        Ok(same_or_restored) => log = same_or_restored,
                        Err(why) => {
                            error!(
                                error = why,
                                "the datastore can be served no longer: start the server again"
                            );
                            lost.send_replace(Some(why));
                            return;
                        }
                    }
                }
            }
            let room = places.len() < BATCH && bytes < BATCH_BYTES;
            next = room.then(|| requests.try_recv().ok()).flatten();
        }
        let _ = log.write(writes);
        drop(places);
        log.keep_house();
    }
    if let Err(problem) = log.close() {
        error!(
            error = &problem as &dyn std::error::Error,
            "volatile state could not be written"
        );
    }
}

/// Does what is asked. Returns the log, after a restore another one; or why there is none to be served.
fn serve(mut log: Log, request: Request) -> Result<Log, String> {
    match request {
        Request::Get(key, reply) => answer(Some(reply), log.get(&key)),
        Request::List(range, at, reply) => answer(Some(reply), log.list(&range, at)),
        Request::Watch(from, reply) => answer(Some(reply), log.watch(from)),
        Request::Compact(oldest, reply) => answer(Some(reply), log.compact(oldest)),
        Request::Revision(reply) => answer(Some(reply), Ok(log.revision())),
        Request::Write(write, reply) => drop(log.write(vec![(write, Some(reply))])),
        Request::Close(reply) => answer(Some(reply), log.close()),
        Request::BackUp(path, progress, reply) => log.copy(path, progress, |outcome| {
            // Nobody waits any more if that fails.
            let _ = reply.send(outcome);
            None
        }),
        Request::Restore(staged, reply) => {
            let exchanged = exchange(log, &staged);
            drop(staged);
            let (left, outcome) = match exchanged {
                Exchanged::New(log, restored) => (Ok(log), Ok(restored)),
                Exchanged::Old(log, error) => (Ok(log), Err(error)),
                Exchanged::Ended(error) => (Err(error.to_string()), Err(error)),
            };
            let _ = reply.send(outcome);
            return left;
        }
    }
    Ok(log)
}
