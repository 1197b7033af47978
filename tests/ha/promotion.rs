//! PostgreSQL's primary dies before its asynchronous standby has everything, and the standby takes its place.
//!
//! What was acknowledged and not yet replicated is lost: that is what asynchronous means. What must not be is a history
//! that never was: no watch may go on from what is lost to what came instead, and all servers and watchers must come to
//! the same state, with everything that had been replicated and everything that was acknowledged afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use agent::api::WatchKind;
use hyper::Method;
use tests::database::{Postgres, SqlServer as _};
use tests::lab::{BACKYARD, Proxy, Weather, until, within};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::cluster::{Cluster, now};
use crate::door::{Door, MAPS, revision};
use crate::load::Load;
use crate::outage::{HEALED, all_goes_on};

const NAP: Duration = Duration::from_millis(20);
/// While the standby gets nothing any more.
const APART: Duration = Duration::from_secs(3);
/// For everything to come to an end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Name and revision.
type Maps = BTreeMap<String, u64>;

/// The primary is lost with what its standby did not have. The cluster is on the standby afterwards.
pub fn a_standby_that_was_behind_takes_over(cluster: &mut Cluster) {
    let before = cluster.pods(cluster.servers[0]);
    let replication = Proxy::start(BACKYARD, cluster.database.behind_a_proxy().0.listens());
    let standby = cluster.database.behind_a_proxy().0.standby(replication.address());
    let newest = |standby: &Postgres| -> u64 {
        let text = "SELECT revision FROM amphipod_mark WHERE name = 'newest'";
        standby.sql("cluster", text).trim().parse().unwrap()
    };
    let load = Witnesses::start(&cluster.doors);
    load.writes(20);
    let seen = now(cluster.doors[0].revision()).unwrap();
    within(HEALED, "the standby follows", || newest(&standby) >= seen);
    replication.set(Weather {
        stalled: true,
        ..Weather::default()
    });
    thread::sleep(APART);
    // The primary first: it must not send what the proxy held back.
    cluster.database.kill();
    replication.lead_to(None);
    standby.promote();
    let kept = newest(&standby);
    let (server, way) = cluster.database.behind_a_proxy();
    let healed = Instant::now();
    way.lead_to(Some(standby.listens()));
    *server = standby;
    let worked = thread::scope(|scope| {
        let writing = scope.spawn(|| load.writes(20));
        let worked = all_goes_on(cluster, healed, cluster.servers[1], "promoted");
        writing.join().unwrap();
        worked
    });
    let story = load.end();
    let lost = story.judge(kept);
    assert!(lost > 0, "nothing was lost: the standby was not behind");
    assert_eq!(cluster.pods(cluster.servers[0]), before);
    // And all is as on any other day.
    let load = Load::start(&cluster.doors, "promoted");
    load.goes_on(HEALED);
    let verdict = load.end();
    eprintln!(
        "standby promoted at revision {kept}: agents worked after {worked:?}, {lost} acknowledged writes lost, {story}; \
         afterwards {verdict}"
    );
}

/// Writers and watchers under way.
struct Witnesses {
    over: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
    thread: JoinHandle<Story>,
}

/// What all of them saw.
struct Story {
    acknowledged: Vec<(String, u64)>,
    watched: Vec<Watched>,
    /// What each server lists in the end.
    lists: Vec<(String, Maps)>,
}

/// What one watcher saw: pieces of history, each from a list on, without a gap.
struct Watched {
    at: String,
    pieces: Vec<Vec<u64>>,
    /// What it would show.
    maps: Maps,
}

impl std::fmt::Display for Story {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{} writes acknowledged, lists anew:", self.acknowledged.len())?;
        for watched in &self.watched {
            write!(to, " {} {}", watched.at, watched.pieces.len() - 1)?;
        }
        Ok(())
    }
}

impl Story {
    /// Judges it; the datastore that took over had everything up to `kept`. Returns how many writes were lost.
    fn judge(&self, kept: u64) -> usize {
        let (at, list) = &self.lists[0];
        for (other, theirs) in &self.lists {
            assert_eq!(theirs, list, "{other} shows another state than {at}");
        }
        for watched in &self.watched {
            assert_eq!(
                watched.maps, *list,
                "the watcher at {} came to another state",
                watched.at
            );
        }
        let old = self.acknowledged.iter().map(|(_, revision)| *revision);
        let jump = list.values().copied().filter(|revision| *revision > kept).min();
        let jump = jump.expect("nothing was written afterwards");
        let last = old.filter(|revision| *revision < jump).max().unwrap();
        for watched in &self.watched {
            for piece in &watched.pieces {
                assert!(piece.is_sorted_by(|one, next| one < next), "{}: {piece:?}", watched.at);
                let lost = piece.iter().any(|revision| *revision > kept && *revision < jump);
                let new = piece.iter().any(|revision| *revision >= jump);
                assert!(
                    !(lost && new),
                    "the watcher at {} went on from what is lost to what came instead",
                    watched.at
                );
            }
        }
        assert!(jump > last + 1000, "revisions went on at {jump} after {last}");
        let mut lost = 0;
        for (name, revision) in &self.acknowledged {
            match list.get(name) {
                Some(found) => assert_eq!(found, revision, "{name}"),
                None => {
                    assert!(
                        *revision > kept && *revision < jump,
                        "{name} at {revision} is lost; up to {kept} everything was replicated, new is all from {jump} on"
                    );
                    lost += 1;
                }
            }
        }
        lost
    }
}

impl Witnesses {
    fn start(doors: &[Door]) -> Self {
        let (over, written) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let thread = {
            let (doors, over, written) = (doors.to_vec(), Arc::clone(&over), Arc::clone(&written));
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(run(doors, over, written))
            })
        };
        Self { over, written, thread }
    }

    /// Waits until so many more writes were acknowledged.
    fn writes(&self, count: usize) {
        let before = self.written.load(Ordering::Relaxed);
        until("writes are acknowledged", || {
            assert!(!self.thread.is_finished(), "the load ended early");
            self.written.load(Ordering::Relaxed) >= before + count
        });
    }

    fn end(self) -> Story {
        self.over.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

async fn run(doors: Vec<Door>, over: Arc<AtomicBool>, written: Arc<AtomicUsize>) -> Story {
    let (mut writers, mut watchers) = (JoinSet::new(), JoinSet::new());
    for door in &doors {
        watchers.spawn(watch(door.clone()));
    }
    for (number, door) in doors.iter().cloned().enumerate() {
        let (over, written) = (Arc::clone(&over), Arc::clone(&written));
        writers.spawn(async move {
            let mut acknowledged = Vec::new();
            for count in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("lot-{number}-{count}");
                // Without an answer it may be there or not, and no later one has its name.
                if let Ok(answer) = door.create(&name, count).await
                    && answer.code == 201
                {
                    acknowledged.push((name, revision(&answer.body).unwrap()));
                    written.fetch_add(1, Ordering::Relaxed);
                }
                sleep(NAP).await;
            }
            acknowledged
        });
    }
    let acknowledged = writers.join_all().await.into_iter().flatten().collect();
    timeout(PATIENCE, async {
        // One that was not answered may have been done.
        while !doors[0]
            .create(MARK, 0)
            .await
            .is_ok_and(|answer| matches!(answer.code, 201 | 409))
        {
            sleep(NAP).await;
        }
    })
    .await
    .expect("nothing can be written");
    let watched = timeout(PATIENCE, watchers.join_all()).await.expect("a watcher hangs");
    let mut lists = Vec::new();
    for door in &doors {
        lists.push((door.name.clone(), list(door).await.unwrap().1));
    }
    Story {
        acknowledged,
        watched,
        lists,
    }
}

const MARK: &str = "lot-mark";

/// The maps of this test, and the revision of the list.
async fn list(door: &Door) -> Result<(u64, Maps), String> {
    let answer = door.ask(Method::GET, MAPS, None).await?;
    let at = revision(&answer.body).filter(|_| answer.code == 200).ok_or("no list")?;
    let items = answer.body["items"].as_array().cloned().unwrap_or_default();
    let maps = items.iter().filter_map(|item| {
        let name = item["metadata"]["name"].as_str()?;
        name.starts_with("lot-").then_some((name.to_owned(), revision(item)?))
    });
    Ok((at, maps.collect()))
}

/// Lists and watches as client-go does: anew from a list when it is told so, else from the last revision on.
async fn watch(door: Door) -> Watched {
    let mut watched = Watched {
        at: door.name.clone(),
        pieces: Vec::new(),
        maps: Maps::new(),
    };
    loop {
        let Ok((mut last, maps)) = list(&door).await else {
            sleep(NAP).await;
            continue;
        };
        watched.maps = maps;
        let mut piece: Vec<u64> = Vec::new();
        let over = follow(&door, &mut last, &mut watched.maps, &mut piece).await;
        watched.pieces.push(piece);
        if over {
            return watched;
        }
    }
}

/// Watches, on and on, until the mark (true) or until it has to list anew.
async fn follow(door: &Door, last: &mut u64, maps: &mut Maps, piece: &mut Vec<u64>) -> bool {
    loop {
        if maps.contains_key(MARK) {
            return true;
        }
        let mut stream = match door.open_watch(*last).await {
            Ok(stream) => stream,
            Err(error) if error.status().is_some_and(|status| status.code == 410) => return false,
            Err(_) => {
                sleep(NAP).await;
                continue;
            }
        };
        while let Some(Ok(event)) = stream.next().await {
            if event.kind == WatchKind::Error {
                assert_eq!(event.object["code"], 410, "{}", event.object);
                return false;
            }
            *last = revision(&event.object).unwrap();
            let name = event.object["metadata"]["name"].as_str().unwrap_or_default();
            if event.kind != WatchKind::Bookmark && name.starts_with("lot-") {
                assert_eq!(event.kind, WatchKind::Added, "{}", event.object);
                maps.insert(name.to_owned(), *last);
                piece.push(*last);
                if name == MARK {
                    return true;
                }
            }
        }
    }
}
