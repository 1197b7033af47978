//! Load that remembers: writers and readers at every server, and watchers who must see all of it.
//!
//! Each writer creates, changes and deletes a map of its own by turns, and adds its name to one that all of them share. Reads
//! go to whichever server is next. A request without an answer, or with one that says that the datastore is away, may have
//! happened; the writer then looks before it goes on. What came of it all is judged in `judge.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tests::history::{Change, Expect, Operation, Record, Seen};
use tests::lab::within;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::door::{Answer, Door, revision, value};
use crate::judge::{self, Verdict};
use crate::watcher::{self, View};

/// Writers at each door.
const WRITERS: usize = 2;
/// Between two requests of a writer: the machine has other things to do as well.
const NAP: Duration = Duration::from_millis(15);
/// After a request that failed.
const PAUSE: Duration = Duration::from_millis(150);
/// A reader goes elsewhere after that.
const GLANCE: Duration = Duration::from_secs(5);
/// And stays away for so long.
const SHUN: Duration = Duration::from_secs(10);
/// For what follows the end of the load; what takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a writer did.
#[derive(Default)]
pub struct Deeds {
    /// Of every operation whose answer means something.
    pub history: Vec<Record>,
    /// Key, value and revision of each acknowledged write; without a value a deletion, whose revision is not told.
    pub acknowledged: Vec<(String, Option<u64>, u64)>,
    /// Writes that may have happened.
    pub doubts: usize,
    /// Answers that said: come again, and whether they said when.
    pub refusals: Vec<Option<u64>>,
    /// Reads that the server said may be out of date.
    pub stale: usize,
}

/// Running load.
pub struct Load {
    over: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    thread: JoinHandle<Verdict>,
}

impl Load {
    /// Starts it at these doors; its maps begin with `phase`.
    pub fn start(doors: &[Door], phase: &str) -> Self {
        let (over, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let desk = Desk {
            doors: doors.to_vec(),
            phase: phase.to_owned(),
            clock: Arc::new(AtomicU64::new(1)),
            over: Arc::clone(&over),
            count: Arc::clone(&acknowledged),
        };
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(run(desk))
        });
        let load = Self {
            over,
            acknowledged,
            thread,
        };
        load.goes_on(PATIENCE);
        load
    }

    /// Waits until more writes were acknowledged than were on their way when this was called. Returns how long that took.
    pub fn goes_on(&self, limit: Duration) -> Duration {
        let before = self.acknowledged.load(Ordering::Relaxed);
        within(limit, "writes are acknowledged", || {
            assert!(!self.thread.is_finished(), "the load ended early");
            self.acknowledged.load(Ordering::Relaxed) >= before + 20
        })
    }

    /// Ends it, and judges.
    pub fn end(self) -> Verdict {
        self.over.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// What a writer works with.
#[derive(Clone)]
struct Desk {
    doors: Vec<Door>,
    phase: String,
    /// Counts calls and returns, so that their order is known.
    clock: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
}

async fn run(desk: Desk) -> Verdict {
    let from = desk.doors[0].revision().await.unwrap();
    let mark = format!("{}-mark", desk.phase);
    let mut watchers = JoinSet::new();
    for first in 0..desk.doors.len() {
        let mut doors = desk.doors.clone();
        doors.rotate_left(first);
        watchers.spawn(watcher::watch(doors, from, mark.clone()));
    }
    let mut writers = JoinSet::new();
    for number in 0..desk.doors.len() * WRITERS {
        writers.spawn(write(desk.clone(), number));
    }
    let over = async {
        while !desk.over.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(20)).await;
        }
        sleep(PATIENCE).await;
    };
    let mut deeds = Vec::new();
    let ended = async {
        while let Some(done) = writers.join_next().await {
            deeds.push(done.unwrap());
        }
    };
    tokio::select! {
        () = ended => {}
        () = over => panic!("a writer hangs"),
    }
    let marking = async {
        while !matches!(desk.doors[0].create(&mark, 0).await, Ok(answer) if matches!(answer.code, 201 | 409)) {
            sleep(PAUSE).await;
        }
    };
    timeout(PATIENCE, marking).await.expect("nothing can be written");
    let views: Vec<View> = timeout(PATIENCE, watchers.join_all()).await.expect("a watcher hangs");
    judge::judge(&desk.phase, &deeds, &views)
}

async fn write(desk: Desk, number: usize) -> Deeds {
    let own = format!("{}-own-{number}", desk.phase);
    let shared = format!("{}-shared", desk.phase);
    let mut hand = Hand {
        deeds: Deeds::default(),
        at: number % desk.doors.len(),
        shunned: None,
        desk,
    };
    let mut held = None;
    // Values differ, so that each tells its write.
    let values = (number as u64 + 1) * 1_000_000..;
    for (count, value) in values.enumerate() {
        if hand.desk.over.load(Ordering::Relaxed) {
            break;
        }
        let done = match held {
            None => hand.put(&own, value, None).await,
            Some(_) if count % 5 == 4 => hand.delete(&own).await,
            Some(revision) => hand.put(&own, value, Some(revision)).await,
        };
        held = match done {
            Ok(revision) => revision,
            Err(Undone) => hand.read(&own).await,
        };
        if count % 3 == 0 {
            let seen = hand.read(&shared).await;
            // Somebody else may be first.
            let _ = hand.put(&shared, value + 500_000, seen).await;
        }
        sleep(NAP).await;
    }
    hand.deeds
}

/// A write that was refused, or of which nobody knows: look, then go on.
struct Undone;

/// One writer.
struct Hand {
    desk: Desk,
    deeds: Deeds,
    /// Its present door.
    at: usize,
    /// A door it does not read at until then: there was no answer.
    shunned: Option<(usize, Instant)>,
}

impl Hand {
    fn now(&self) -> u64 {
        self.desk.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Creates or, at a revision, changes. Returns the new revision.
    async fn put(&mut self, key: &str, value: u64, at: Option<u64>) -> Result<Option<u64>, Undone> {
        let (called, door) = (self.now(), self.desk.doors[self.at].clone());
        let answer = match at {
            None => door.create(key, value).await,
            Some(at) => door.update(key, value, at).await,
        };
        let (expect, change) = (at.map_or(Expect::Absent, Expect::At), Change::Put(value));
        self.note(key, called, expect, change, answer).await
    }

    async fn delete(&mut self, key: &str) -> Result<Option<u64>, Undone> {
        let (called, door) = (self.now(), self.desk.doors[self.at].clone());
        let answer = door.delete(key).await;
        self.note(key, called, Expect::Any, Change::Delete, answer).await
    }

    async fn note(
        &mut self,
        key: &str,
        called: u64,
        expect: Expect,
        change: Change,
        answer: Result<Answer, String>,
    ) -> Result<Option<u64>, Undone> {
        let (operation, done) = match answer {
            Ok(answer) if answer.code < 300 => {
                let value = match change {
                    Change::Put(value) => Some(value),
                    Change::Delete => None,
                };
                let told = value.and_then(|_| revision(&answer.body));
                assert_eq!(told.is_some(), value.is_some(), "{key}: {}", answer.body);
                let revision = told.unwrap_or_default();
                self.deeds.acknowledged.push((key.to_owned(), value, revision));
                self.desk.count.fetch_add(1, Ordering::Relaxed);
                let written = Operation::Written {
                    expect,
                    change,
                    revision,
                };
                (written, Ok(told))
            }
            // Refused for what is there. It is not told at which revision that is: nothing to be judged.
            Ok(answer) if matches!(answer.code, 404 | 409) => return Err(Undone),
            Ok(answer) => {
                assert!(answer.code >= 500, "{key}: {}: {}", answer.code, answer.body);
                if answer.code == 503 {
                    self.deeds.refusals.push(answer.retry_after);
                }
                self.deeds.doubts += 1;
                (Operation::Unknown { expect, change }, Err(Undone))
            }
            Err(_) => {
                self.deeds.doubts += 1;
                self.at = (self.at + 1) % self.desk.doors.len();
                (Operation::Unknown { expect, change }, Err(Undone))
            }
        };
        let returned = self.now();
        self.deeds.history.push(Record {
            key: key.to_owned(),
            called,
            returned,
            operation,
        });
        if done.is_err() {
            sleep(PAUSE).await;
        }
        done
    }

    /// A map's revision, from whichever server answers next. One who says that it may be out of date is not believed.
    async fn read(&mut self, key: &str) -> Option<u64> {
        for number in (self.at + 1).. {
            if self.desk.over.load(Ordering::Relaxed) {
                return None;
            }
            let number = number % self.desk.doors.len();
            if matches!(self.shunned, Some((door, until)) if door == number && Instant::now() < until) {
                sleep(NAP).await;
                continue;
            }
            let called = self.now();
            let door = &self.desk.doors[number];
            let seen = match timeout(GLANCE, door.read(key))
                .await
                .unwrap_or_else(|late| Err(late.to_string()))
            {
                Ok(answer) if answer.stale => {
                    self.deeds.stale += 1;
                    sleep(PAUSE).await;
                    continue;
                }
                Ok(answer) if answer.code == 404 => None,
                Ok(answer) if answer.code == 200 => {
                    let (value, revision) = (value(&answer.body), revision(&answer.body));
                    Some(Seen {
                        value: value.unwrap(),
                        revision: revision.unwrap(),
                    })
                }
                Ok(Answer { code: 500.., .. }) | Err(_) => {
                    self.shunned = Some((number, Instant::now() + SHUN));
                    sleep(PAUSE).await;
                    continue;
                }
                Ok(answer) => panic!("{key}: {}: {}", answer.code, answer.body),
            };
            let returned = self.now();
            self.deeds.history.push(Record {
                key: key.to_owned(),
                called,
                returned,
                operation: Operation::Read(seen),
            });
            return seen.map(|seen| seen.revision);
        }
        None
    }
}
