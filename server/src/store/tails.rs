//! The watchers of a log: each batch to each of them, in order; who does not keep up is cut off.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Event, Tail};

/// Batches a watcher may be behind. The cache applies one in microseconds.
const BEHIND: usize = 1024;

/// All watchers.
#[derive(Debug, Default)]
pub struct Tails(Vec<mpsc::Sender<Arc<[Event]>>>);

impl Tails {
    /// A new watcher, which gets `backlog` first.
    pub fn add(&mut self, backlog: Vec<Event>) -> Tail {
        let (sender, tail) = mpsc::channel(BEHIND);
        // The channel is empty: there is room.
        let sent = backlog.is_empty() || sender.try_send(backlog.into()).is_ok();
        if sent {
            self.0.push(sender);
        }
        tail
    }

    /// Sends a batch to everyone; closes those who are gone or too far behind.
    pub fn send(&mut self, batch: Vec<Event>) {
        if batch.is_empty() {
            return;
        }
        let batch: Arc<[Event]> = batch.into();
        self.0.retain(|sender| sender.try_send(Arc::clone(&batch)).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use agent::units::Revision;

    use super::*;

    fn event(revision: u64) -> Event {
        Event {
            key: "k".into(),
            revision: Revision::new(revision),
            created: Revision::new(1),
            value: None,
        }
    }

    #[test]
    fn a_watcher_that_falls_too_far_behind_is_cut_off_and_the_rest_go_on() {
        let mut tails = Tails::default();
        let mut slow = tails.add(vec![event(1)]);
        let mut quick = tails.add(Vec::new());
        for revision in 2..=u64::try_from(BEHIND).unwrap() + 5 {
            tails.send(vec![event(revision)]);
            assert!(quick.try_recv().is_ok());
        }
        let mut got = 0;
        while let Ok(batch) = slow.try_recv() {
            got += batch.len();
        }
        assert_eq!(got, BEHIND, "whole up to where it was cut off");
        assert!(slow.is_closed());
        assert!(!quick.is_closed());
    }
}
