//! A watch: a cursor into the history, a filter, and what wakes it.
//!
//! It copies nothing but references. One that sleeps while its part of the history is pushed out has missed events and
//! ends; the client resumes from its last revision or lists anew.

use std::sync::Arc;

use agent::units::Revision;
use tokio::sync::watch as signal;

use super::history::shelf_of;
use super::{ChangeKind, Expired, Filter, From, Item, Shared, WatchEvent};

/// So many writes are looked through under one lock, so that a selective watch does not hold up the follower.
const LOOK: usize = 1024;

/// A running watch. Dropping it ends it.
pub struct Watch {
    shared: Arc<Shared>,
    prefix: Box<str>,
    filter: Filter,
    /// What is still to come of the initial state.
    initial: std::vec::IntoIter<Arc<Item>>,
    /// The bookmark that ends the initial state is still to come.
    bookmark: bool,
    /// Everything up to here is delivered or was not wanted.
    cursor: Revision,
    generation: u64,
    wake: signal::Receiver<Revision>,
    /// Another form in which objects are shown.
    show: Option<Show>,
}

type Show = Box<dyn Fn(&Item) -> Arc<Item> + Send + Sync>;

enum Step {
    Event(WatchEvent),
    /// Nothing among the writes looked at; there are more.
    Again,
    /// Nothing new.
    Wait,
    Ended,
}

impl Watch {
    pub(super) fn begin(shared: Arc<Shared>, prefix: &str, filter: Filter, from: From) -> Result<Self, Expired> {
        let wake = match shelf_of(prefix) {
            Some(shelf) => shared.write(|state| state.history.waker(shelf)),
            None => shared.tip.subscribe(),
        };
        let (cursor, initial, generation) = shared.read(|state| {
            let (cursor, initial) = match from {
                From::State { .. } => {
                    let page = state.list(prefix, &filter, None, None, None)?;
                    (page.revision, page.items)
                }
                From::After(revision) => {
                    state.reachable(prefix, revision)?;
                    (revision, Vec::new())
                }
                From::Now => (state.revision, Vec::new()),
            };
            Ok((cursor, initial, state.generation))
        })?;
        Ok(Self {
            shared,
            prefix: prefix.into(),
            filter,
            initial: initial.into_iter(),
            bookmark: from == From::State { bookmark: true },
            cursor,
            generation,
            wake,
            show: None,
        })
    }

    /// The same watch, but that it shows objects in another form. That is made anew for each watcher and event.
    #[must_use]
    pub fn showing(mut self, show: impl Fn(&Item) -> Arc<Item> + Send + Sync + 'static) -> Self {
        self.show = Some(Box::new(show));
        self
    }

    /// The next event; `None` once the watch ended, because it fell too far behind or the cache no longer follows the
    /// store. Can be dropped and called again without losing one.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            // Before looking, so that what comes while looking wakes.
            self.wake.mark_unchanged();
            match self.step() {
                Step::Event(event) => return Some(self.shown(event)),
                Step::Again => tokio::task::yield_now().await,
                Step::Wait => self.wake.changed().await.ok()?,
                Step::Ended => return None,
            }
        }
    }

    /// The next event if there is one now: to write a burst at once.
    pub fn ready(&mut self) -> Option<WatchEvent> {
        match self.step() {
            Step::Event(event) => Some(self.shown(event)),
            Step::Again | Step::Wait | Step::Ended => None,
        }
    }

    /// The newest revision up to which nothing is missing from what was delivered; zero until the initial state is.
    pub fn bookmark(&self) -> Revision {
        if self.bookmark || !self.initial.as_slice().is_empty() {
            return Revision::ZERO;
        }
        self.shared.read(|state| {
            let intact = self.generation == state.generation && self.cursor >= state.history.floor(&self.prefix);
            let mut behind = state.history.after(&self.prefix, self.cursor);
            if intact && !behind.any(|past| past.seen_through(&self.filter).is_some()) {
                self.cursor.max(state.revision)
            } else {
                self.cursor
            }
        })
    }

    fn shown(&self, event: WatchEvent) -> WatchEvent {
        match (&self.show, event) {
            (Some(show), WatchEvent::Change(kind, item)) => WatchEvent::Change(kind, show(&item)),
            (_, event) => event,
        }
    }

    fn step(&mut self) -> Step {
        if let Some(item) = self.initial.next() {
            return Step::Event(WatchEvent::Change(ChangeKind::Added, item));
        }
        if self.bookmark {
            self.bookmark = false;
            let revision = self.cursor;
            return Step::Event(WatchEvent::Bookmark {
                revision,
                initial_events_end: true,
            });
        }
        let Self {
            shared,
            prefix,
            filter,
            cursor,
            generation,
            ..
        } = self;
        shared.read(|state| {
            let missed = *generation != state.generation || *cursor < state.history.floor(prefix);
            if state.closed || missed {
                return Step::Ended;
            }
            let mut looked = 0;
            for past in state.history.after(prefix, *cursor) {
                *cursor = past.item.revision;
                if let Some((kind, item)) = past.seen_through(filter) {
                    return Step::Event(WatchEvent::Change(kind, item));
                }
                looked += 1;
                if looked == LOOK {
                    return Step::Again;
                }
            }
            *cursor = (*cursor).max(state.revision);
            Step::Wait
        })
    }
}
