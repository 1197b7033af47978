//! How many connections may be open whose far end has not said who it is.
//!
//! A connection is a stranger's from the moment it is accepted until it shows a certificate that counts, or its first request
//! with a token or password that does. When one more comes than there is room for, the oldest goes: nodes and users say who
//! they are within milliseconds, and whoever holds connections open to keep others out loses them first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// All strangers of one listener.
#[derive(Clone, Debug)]
pub struct Strangers {
    inside: Arc<Mutex<Inside>>,
    room: usize,
}

/// By the order in which they came.
#[derive(Debug, Default)]
struct Inside {
    next: u64,
    waiting: BTreeMap<u64, Arc<Notify>>,
}

/// One connection: a stranger's until [`Stranger::is_known`] is said of it, or it ends.
#[derive(Debug)]
pub struct Stranger {
    all: Strangers,
    number: u64,
    leave: Arc<Notify>,
}

impl Strangers {
    /// For so many.
    pub fn new(room: usize) -> Self {
        Self {
            inside: Arc::default(),
            room,
        }
    }

    /// One more has come; the oldest has to go if it is one too many.
    pub fn admit(&self) -> Stranger {
        let leave = Arc::new(Notify::new());
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let number = inside.next;
        inside.next += 1;
        inside.waiting.insert(number, Arc::clone(&leave));
        if inside.waiting.len() > self.room
            && let Some((_, oldest)) = inside.waiting.pop_first()
        {
            oldest.notify_one();
        }
        drop(inside);
        Stranger {
            all: self.clone(),
            number,
            leave,
        }
    }
}

impl Stranger {
    /// It has said who it is, and stays.
    pub fn is_known(&self) {
        let mut inside = self.all.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.waiting.remove(&self.number);
    }

    /// Resolves when it has to go; for one that is known, never.
    pub async fn has_to_go(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.is_known();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_oldest_goes_and_whoever_is_known_or_gone_takes_no_room() {
        let strangers = Strangers::new(2);
        let goes = |stranger: &Stranger| stranger.has_to_go().now_or_never().is_some();
        let (first, second) = (strangers.admit(), strangers.admit());
        assert!(!goes(&first) && !goes(&second), "there is room");
        first.is_known();
        let third = strangers.admit();
        assert!(!goes(&first) && !goes(&second) && !goes(&third));
        let fourth = strangers.admit();
        assert!(goes(&second), "the oldest that nobody knows");
        assert!(!goes(&first) && !goes(&third) && !goes(&fourth));
        drop(third);
        let fifth = strangers.admit();
        assert!(!goes(&fourth) && !goes(&fifth), "one that ended made room");
        drop((second, fifth, fourth, first));
        assert!(strangers.inside.lock().unwrap().waiting.is_empty());
    }
}
