//! Large writes on their way out: they become frames at once, in one short buffer of all streams, so that a byte is copied once
//! between its writer and what TLS is given, and is still in the processor's cache then. Pure.
//!
//! Who finds it full waits, first come, first served. Only streams that their peer has not paused are in here, so that one
//! that is stuck takes no room from the others. What is in here goes out before anything else, so nobody overtakes himself.

use std::collections::{BTreeSet, VecDeque};

use super::session::DATA_MAX;
use super::websocket::{self, Kind};
use crate::wire::frame::Frame;

/// Bytes of all streams together; one frame may lie beyond. As many may be on their way into the socket, and two frames more.
pub const PASSING_MAX: usize = 64 << 10;

#[derive(Debug, Default)]
pub struct Passing {
    wire: Vec<u8>,
    waiting: VecDeque<i64>,
    /// The same, each once.
    waits: BTreeSet<i64>,
    /// Named, and have not written since.
    admitted: BTreeSet<i64>,
}

impl Passing {
    pub fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    /// Whether a stream may push now; if not it waits. While others wait, who was named may do it once.
    pub fn may_push(&mut self, connection: i64) -> bool {
        let named = self.admitted.remove(&connection) || self.waiting.is_empty();
        let may = named && self.wire.len() < PASSING_MAX;
        if !may && self.waits.insert(connection) {
            self.waiting.push_back(connection);
        }
        may
    }

    /// Takes bytes behind the head of their frame. `mask`: a client's.
    pub fn push(&mut self, head: &Frame, bytes: &[u8], mask: Option<[u8; 4]>) {
        let (head, _) = head.parts();
        websocket::put(&mut self.wire, Kind::Binary, [&head, bytes], mask);
    }

    /// A stream is no more.
    pub fn forget(&mut self, connection: i64) {
        self.admitted.remove(&connection);
        if self.waits.remove(&connection) {
            self.waiting.retain(|waits| *waits != connection);
        }
    }

    /// Puts what there is behind what `wire` has; an empty one is taken in exchange.
    pub fn hand_over(&mut self, wire: &mut Vec<u8>) {
        match wire.is_empty() {
            true => std::mem::swap(&mut self.wire, wire),
            false => wire.append(&mut self.wire),
        }
    }

    /// Names streams that waited and may go on: as many as there is room for, or `all`. Whoever is named may have nothing to write
    /// any more, so before nothing else is done `all` have to be named, or the others would wait for ever.
    pub fn admit(&mut self, all: bool) -> Vec<i64> {
        let room = PASSING_MAX.saturating_sub(self.wire.len()).div_ceil(DATA_MAX);
        let most = if all { self.waiting.len() } else { room };
        let admitted: Vec<i64> = self.waiting.drain(..most.min(self.waiting.len())).collect();
        for connection in &admitted {
            self.waits.remove(connection);
            self.admitted.insert(*connection);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::frame::Message;

    fn push(passing: &mut Passing, connection: i64, size: usize) -> bool {
        let frame = Frame {
            id: 1,
            connection,
            message: Message::Data(Bytes::new()),
        };
        let may = passing.may_push(connection);
        if may {
            passing.push(&frame, &vec![7; size], None);
        }
        may
    }

    #[test]
    fn it_holds_so_much_and_one_frame_more_whatever_their_size() {
        for size in [DATA_MAX, DATA_MAX - 1, 4096, 1] {
            let (mut passing, mut taken) = (Passing::default(), Vec::new());
            for _ in 0..2 {
                while push(&mut passing, 1, size) {}
                passing.hand_over(&mut taken);
                assert!(
                    (PASSING_MAX..PASSING_MAX + size + 64).contains(&taken.len()),
                    "{size}: {}",
                    taken.len()
                );
                assert_eq!(passing.admit(false), [1]);
                taken.clear();
            }
        }
    }

    #[test]
    fn who_waits_is_let_in_in_the_order_of_coming_and_before_those_who_were() {
        let (mut passing, mut taken) = (Passing::default(), Vec::new());
        while push(&mut passing, 1, DATA_MAX) {}
        for connection in [2, 3, 2, 4] {
            assert!(!push(&mut passing, connection, DATA_MAX));
        }
        assert_eq!(passing.admit(false), [0; 0], "there is no room");
        passing.hand_over(&mut taken);
        assert_eq!(passing.admit(false), [1, 2]);
        assert!(push(&mut passing, 1, DATA_MAX));
        assert!(!push(&mut passing, 1, DATA_MAX), "it is the turn of others");
        assert!(push(&mut passing, 2, DATA_MAX));
        assert_eq!(passing.admit(true), [3, 4, 1]);
        assert_eq!(passing.admit(true), [0; 0]);
    }

    #[test]
    fn what_it_holds_comes_behind_what_is_there() {
        let (mut passing, mut wire) = (Passing::default(), vec![1]);
        assert!(push(&mut passing, 1, 3));
        passing.hand_over(&mut wire);
        assert_eq!((wire.first(), wire.last()), (Some(&1), Some(&7)));
        assert!(passing.is_empty());
    }

    #[test]
    fn who_is_gone_holds_nobody_up() {
        let (mut passing, mut taken) = (Passing::default(), Vec::new());
        while push(&mut passing, 1, DATA_MAX) {}
        push(&mut passing, 2, 1);
        passing.forget(1);
        passing.hand_over(&mut taken);
        assert_eq!(passing.admit(false), [2]);
        passing.forget(2);
        assert!(passing.admitted.is_empty() && passing.waits.is_empty() && passing.waiting.is_empty());
    }
}
