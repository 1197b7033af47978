//! The history of some objects, as watches at one server show it: every event, from a revision on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ::tests::lab::until;
use agent::api::WatchKind;
use hyper::Method;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::cluster::now;
use crate::door::{Door, revision};

/// What is watched: where lists of it are.
pub const KINDS: [&str; 5] = [
    "/api/v1/namespaces",
    "/api/v1/configmaps",
    "/api/v1/pods",
    "/apis/apps/v1/replicasets",
    "/apis/apps/v1/deployments",
];
const PODS: &str = KINDS[2];
/// For everything that is known to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Without an event for so long it is quiet.
const QUIET: Duration = Duration::from_secs(2);

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    pub revision: u64,
    /// One of [`KINDS`].
    pub list: &'static str,
    pub kind: WatchKind,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Its label `app`.
    pub app: String,
}

/// Who watches.
pub struct Chronicle {
    door: Door,
    /// Namespaces that matter.
    namespaces: &'static [&'static str],
    events: Arc<Mutex<Vec<Event>>>,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Chronicle {
    /// Begins now, at this server, which has to stay; only what is in these namespaces counts. They are yet to be made.
    pub fn begin(door: &Door, namespaces: &'static [&'static str]) -> Self {
        let (events, over) = (Arc::<Mutex<Vec<Event>>>::default(), Arc::new(AtomicBool::new(false)));
        let from = now(door.revision()).unwrap();
        let thread = {
            let (door, events, over) = (door.clone(), Arc::clone(&events), Arc::clone(&over));
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(async {
                    let mut watchers = JoinSet::new();
                    for list in KINDS {
                        watchers.spawn(watch(door.clone(), list, from, namespaces, Arc::clone(&events)));
                    }
                    while !over.load(Ordering::Relaxed) {
                        // None ends by itself but by a failure.
                        if let Some(failed) = watchers.try_join_next() {
                            failed.unwrap();
                        }
                        sleep(Duration::from_millis(20)).await;
                    }
                });
            })
        };
        let door = door.clone();
        Self {
            door,
            namespaces,
            events,
            over,
            thread,
        }
    }

    /// All events up to now.
    pub fn events(&self) -> Vec<Event> {
        assert!(!self.thread.is_finished(), "a watch ended");
        self.events.lock().unwrap().clone()
    }

    /// What there is now.
    pub fn present(&self) -> Present {
        Present::after(&self.events())
    }

    /// How many pods of a Deployment have been made.
    pub fn made(&self, app: &str) -> usize {
        let events = self.events();
        let made = events
            .iter()
            .filter(|event| event.list == PODS && event.app == app && event.kind == WatchKind::Added);
        made.count()
    }

    /// Waits for the first pod of a Deployment, and not a moment longer.
    pub fn first(&self, app: &str) {
        let begun = Instant::now();
        while self.made(app) == 0 {
            assert!(begun.elapsed() < PATIENCE, "no pod of {app} was made");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until `is_so` of what there is, and nothing has happened any more for a while.
    pub fn settles(&self, what: &str, is_so: impl Fn(&Present) -> bool) {
        let (mut seen, mut since) = (0, Instant::now());
        until(what, || {
            let events = self.events();
            if events.len() != seen {
                (seen, since) = (events.len(), Instant::now());
            }
            since.elapsed() >= QUIET && is_so(&Present::after(&events))
        });
    }

    /// Ends it. The history must lead to what the server lists by now.
    pub fn end(self) -> History {
        let listed: BTreeSet<(String, u64)> = now(async {
            let mut all = BTreeSet::new();
            for list in KINDS {
                let answer = self.door.ask(Method::GET, list, None).await.unwrap();
                assert_eq!((answer.code, answer.stale), (200, false), "{}", answer.body);
                for item in answer.body["items"].as_array().unwrap() {
                    let event = event(list, WatchKind::Added, item);
                    if counts(&event, self.namespaces) {
                        all.insert((event.uid, event.revision));
                    }
                }
            }
            all
        });
        until("the watches have come to what is listed", || {
            let present = Present::after(&self.events());
            let seen = present.0.into_values().map(|event| (event.uid, event.revision));
            seen.collect::<BTreeSet<_>>() == listed
        });
        let events = self.events();
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        History(events)
    }
}

/// What there is after some events, by its identity.
pub struct Present(BTreeMap<String, Event>);

impl Present {
    fn after(events: &[Event]) -> Self {
        let mut events: Vec<&Event> = events.iter().collect();
        events.sort_by_key(|event| event.revision);
        let mut present = BTreeMap::new();
        for event in events {
            match event.kind {
                WatchKind::Deleted => drop(present.remove(&event.uid)),
                _ => drop(present.insert(event.uid.clone(), event.clone())),
            }
        }
        Self(present)
    }

    /// How many pods of a Deployment there are, those on their way out included.
    pub fn pods(&self, app: &str) -> usize {
        self.names(app).len()
    }

    /// What they are called.
    pub fn names(&self, app: &str) -> Vec<String> {
        let pods = self.0.values().filter(|one| one.list == PODS && one.app == app);
        pods.map(|pod| pod.name.clone()).collect()
    }

    /// How many objects there are in a namespace, itself included.
    pub fn in_namespace(&self, name: &str) -> usize {
        let inside = |one: &&Event| one.namespace == name || one.list == KINDS[0] && one.name == name;
        self.0.values().filter(inside).count()
    }
}

/// The whole of it.
pub struct History(Vec<Event>);

impl History {
    /// How many objects of a list that match were ever made, and how many ended. `Err`: one was made or ended twice, or was there
    /// before it was made or after its end.
    pub fn lives(&self, list: &str, matches: impl Fn(&Event) -> bool) -> Result<(usize, usize), String> {
        let (mut alive, mut ended) = (BTreeSet::new(), BTreeSet::new());
        for event in self.0.iter().filter(|event| event.list == list && matches(event)) {
            let as_it_must = match event.kind {
                WatchKind::Added => !ended.contains(&event.uid) && alive.insert(&event.uid),
                WatchKind::Deleted => alive.remove(&event.uid) && ended.insert(&event.uid),
                _ => alive.contains(&event.uid),
            };
            if !as_it_must {
                return Err(format!("{event:?} in {:?}", self.of(&event.uid)));
            }
        }
        Ok((alive.len() + ended.len(), ended.len()))
    }

    /// Pods of a Deployment: how many were ever made, and how many ended. `Err` as of [`Self::lives`].
    pub fn pods(&self, app: &str) -> Result<(usize, usize), String> {
        self.lives(PODS, |event| event.app == app)
    }

    /// All of one object.
    fn of(&self, uid: &str) -> Vec<&Event> {
        self.0.iter().filter(|event| event.uid == uid).collect()
    }

    /// Events after a revision.
    pub fn after(&self, revision: u64) -> Vec<&Event> {
        self.0.iter().filter(|event| event.revision > revision).collect()
    }
}

async fn watch(
    door: Door,
    list: &'static str,
    mut last: u64,
    namespaces: &'static [&'static str],
    events: Arc<Mutex<Vec<Event>>>,
) {
    loop {
        let path = format!("{list}?watch=1&allowWatchBookmarks=true&resourceVersion={last}");
        let Ok(mut stream) = door.follow(&path).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        while let Some(Ok(shown)) = stream.next().await {
            assert!(shown.kind != WatchKind::Error, "{list}: {}", shown.object);
            last = revision(&shown.object).unwrap();
            let event = event(list, shown.kind, &shown.object);
            if shown.kind != WatchKind::Bookmark && counts(&event, namespaces) {
                events.lock().unwrap().push(event);
            }
        }
    }
}

fn event(list: &'static str, kind: WatchKind, object: &Value) -> Event {
    let meta = &object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Event {
        revision: revision(object).unwrap(),
        list,
        kind,
        namespace: text(&meta["namespace"]),
        name: text(&meta["name"]),
        uid: text(&meta["uid"]),
        app: text(&meta["labels"]["app"]),
    }
}

fn counts(event: &Event, namespaces: &[&str]) -> bool {
    let of = if event.list == KINDS[0] {
        &event.name
    } else {
        &event.namespace
    };
    namespaces.contains(&of.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_or_ends_twice_is_found_in_a_history() {
        use WatchKind::{Added, Deleted, Modified};
        let event = |(at, kind): (usize, &WatchKind)| Event {
            revision: at as u64,
            list: PODS,
            kind: *kind,
            namespace: "work".into(),
            name: "grows-1".into(),
            uid: "u".into(),
            app: "grows".into(),
        };
        for (kinds, expected) in [
            (&[Added, Modified][..], Some((1, 0))),
            (&[Added, Modified, Deleted], Some((1, 1))),
            (&[Added, Added], None),
            (&[Added, Deleted, Deleted], None),
            (&[Added, Deleted, Added], None),
            (&[Added, Deleted, Modified], None),
            (&[Modified], None),
        ] {
            let history = History(kinds.iter().enumerate().map(event).collect());
            assert_eq!(history.pods("grows").ok(), expected, "{kinds:?}");
            assert_eq!(history.pods("steady"), Ok((0, 0)), "of another one");
            assert_eq!(history.after(0).len(), kinds.len() - 1);
        }
    }
}
