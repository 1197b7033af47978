//! A client that watches: across the deaths of servers, without a gap and without a repeat.

use std::time::Duration;

use agent::api::WatchKind;
use tokio::time::sleep;

use crate::door::{Door, revision, value};

/// Before it comes again.
const PAUSE: Duration = Duration::from_millis(100);

/// One change, as it was shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sight {
    pub revision: u64,
    pub key: String,
    /// `None`: it was deleted.
    pub value: Option<u64>,
}

/// What one watcher saw.
#[derive(Debug)]
pub struct View {
    /// Where it watched first.
    pub at: String,
    /// In the order of arrival.
    pub sights: Vec<Sight>,
    /// How often a watch that was open ended.
    pub interruptions: usize,
}

/// Watches at the first door, from a revision until it has seen the mark. Whenever the watch ends it goes on from the last
/// revision it has seen, at the next door: a server that was away for a thousand revisions may not have them.
pub async fn watch(doors: Vec<Door>, from: u64, mark: String) -> View {
    let (at, mut last) = (doors[0].name.clone(), from);
    let (mut sights, mut interruptions) = (Vec::new(), 0);
    for door in doors.iter().cycle() {
        let Ok(mut stream) = door.watch(last).await else {
            sleep(PAUSE).await;
            continue;
        };
        while let Some(Ok(event)) = stream.next().await {
            assert!(event.kind != WatchKind::Error, "{at}: {}", event.object);
            let revision = revision(&event.object).unwrap();
            if event.kind == WatchKind::Bookmark {
                last = last.max(revision);
                continue;
            }
            last = revision;
            let key = event.object["metadata"]["name"].as_str().unwrap().to_owned();
            let value = match event.kind {
                WatchKind::Deleted => None,
                WatchKind::Added | WatchKind::Modified | WatchKind::Bookmark | WatchKind::Error => value(&event.object),
            };
            let over = key == mark;
            sights.push(Sight { revision, key, value });
            if over {
                return View {
                    at,
                    sights,
                    interruptions,
                };
            }
        }
        interruptions += 1;
    }
    unreachable!("doors are not cycled through to an end")
}
