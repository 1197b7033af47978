//! Large writes on their way out: they become frames at once, in one short buffer of all streams, so that a byte is copied once
//! between its writer and what TLS is given, and is still in the processor's cache then. Pure.
//!
//! Who finds it full waits. While some wait, one at a time has the turn and nobody else pushes, until [`TURN`] bytes have gone out,
//! whoever's they are, or he had nothing to say while nothing else was on its way: what is copied from one writer's buffer and into
//! one reader's in a row costs less than as much of many. Who used up his last turn comes after those who did not (they have
//! something to say now and then), but not after two of them in a row: neither kind keeps the other waiting for ever.
//!
//! Only streams that their peer has not paused are in here, so that one that is stuck takes no room from the others. What is in
//! here goes out before anything else, so nobody overtakes himself.

use std::collections::{BTreeSet, VecDeque};

use super::websocket::{self, Kind};
use crate::wire::frame::Frame;

/// Bytes of all streams together; one frame may lie beyond. As many may be on their way into the socket, and two frames more.
pub const PASSING_MAX: usize = 64 << 10;
/// Bytes that go out before the turn is another's. More gain little, and the others wait for as long.
pub const TURN: usize = 128 << 10;

#[derive(Debug, Default)]
pub struct Passing {
    wire: Vec<u8>,
    turn: Option<Turn>,
    /// Those who used up their last turn; each stream is once in one of the two.
    often: VecDeque<i64>,
    /// The others.
    seldom: VecDeque<i64>,
    /// Both.
    waits: BTreeSet<i64>,
    /// Used up their last turn.
    spent: BTreeSet<i64>,
    /// Whether the last turn went to one of `seldom`.
    seldom_had_it: bool,
}

#[derive(Debug)]
struct Turn {
    connection: i64,
    left: usize,
    /// He had more to say than there was room for, and waits.
    waits: bool,
}

impl Passing {
    pub fn is_empty(&self) -> bool {
        self.wire.is_empty()
    }

    /// Whether a stream may push now; if not it waits.
    pub fn may_push(&mut self, connection: i64) -> bool {
        let room = self.wire.len() < PASSING_MAX;
        match &mut self.turn {
            Some(turn) if turn.connection == connection => {
                turn.waits = !room;
                return room;
            }
            None if room && self.waits.is_empty() => return true,
            _ => {}
        }
        self.enqueue(connection);
        false
    }

    /// Takes bytes behind the head of their frame. `mask`: a client's.
    pub fn push(&mut self, head: &Frame, bytes: &[u8], mask: Option<[u8; 4]>) {
        let (head, _) = head.parts();
        websocket::put(&mut self.wire, Kind::Binary, [&head, bytes], mask);
    }

    /// A stream is no more.
    pub fn forget(&mut self, connection: i64) {
        self.turn.take_if(|turn| turn.connection == connection);
        self.spent.remove(&connection);
        if self.waits.remove(&connection) {
            self.often.retain(|waits| *waits != connection);
            self.seldom.retain(|waits| *waits != connection);
        }
    }

    /// Puts what there is behind what `wire` has; an empty one is taken in exchange.
    pub fn hand_over(&mut self, wire: &mut Vec<u8>) {
        match wire.is_empty() {
            true => std::mem::swap(&mut self.wire, wire),
            false => wire.append(&mut self.wire),
        }
    }

    /// After everything was handed over, and `sent` bytes go out in all: the stream that waited and may go on.
    pub fn admit(&mut self, sent: usize) -> Option<i64> {
        if let Some(turn) = &mut self.turn {
            turn.left = turn.left.saturating_sub(sent);
            if turn.left > 0 {
                return std::mem::take(&mut turn.waits).then_some(turn.connection);
            }
        }
        if let Some(turn) = self.turn.take() {
            self.spent.insert(turn.connection);
            if turn.waits {
                self.enqueue(turn.connection);
            }
        }
        self.next()
    }

    /// While nothing is on its way: who has the turn says nothing, so it is another's. Without this the others would wait for ever.
    pub fn pass_over(&mut self) -> Option<i64> {
        if !self.wire.is_empty() {
            return None;
        }
        if let Some(turn) = self.turn.take() {
            self.spent.remove(&turn.connection);
        }
        self.next()
    }

    fn enqueue(&mut self, connection: i64) {
        if self.waits.insert(connection) {
            match self.spent.contains(&connection) {
                true => self.often.push_back(connection),
                false => self.seldom.push_back(connection),
            }
        }
    }

    fn next(&mut self) -> Option<i64> {
        self.seldom_had_it = !self.seldom.is_empty() && (!self.seldom_had_it || self.often.is_empty());
        let queue = match self.seldom_had_it {
            true => &mut self.seldom,
            false => &mut self.often,
        };
        let connection = queue.pop_front()?;
        self.waits.remove(&connection);
        self.turn = Some(Turn {
            connection,
            left: TURN,
            waits: false,
        });
        Some(connection)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use super::*;
    use crate::chance::{Random, simulate};
    use crate::tunnel::session::DATA_MAX;
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

    /// What goes out next; how much it is, and who may go on.
    fn send(passing: &mut Passing) -> (usize, Option<i64>) {
        let mut wire = Vec::new();
        passing.hand_over(&mut wire);
        (wire.len(), passing.admit(wire.len()))
    }

    /// Fills it again and again until his turn is over; how many bytes were his, and who is next.
    fn pour(passing: &mut Passing, connection: i64, size: usize) -> (usize, i64) {
        let mut sum = 0;
        loop {
            while push(passing, connection, size) {}
            let (sent, next) = send(passing);
            sum += sent;
            if begins(passing) {
                return (sum, next.unwrap());
            }
        }
    }

    /// Whether somebody was just given the turn.
    fn begins(passing: &Passing) -> bool {
        passing.turn.as_ref().is_some_and(|turn| turn.left == TURN)
    }

    #[test]
    fn it_holds_so_much_and_one_frame_more_whatever_their_size() {
        for size in [DATA_MAX, DATA_MAX - 1, 4096, 1] {
            let mut passing = Passing::default();
            for _ in 0..2 {
                while push(&mut passing, 1, size) {}
                let (sent, next) = send(&mut passing);
                assert!((PASSING_MAX..PASSING_MAX + size + 64).contains(&sent), "{size}: {sent}");
                assert_eq!(next, Some(1));
            }
        }
    }

    #[test]
    fn who_waits_has_the_turn_in_the_order_of_coming_for_as_many_bytes_whatever_the_size_of_his_writes() {
        let mut passing = Passing::default();
        while push(&mut passing, 1, DATA_MAX) {}
        for connection in [2, 3, 2, 4] {
            assert!(!push(&mut passing, connection, DATA_MAX));
        }
        let (mut next, mut order) = (send(&mut passing).1.unwrap(), Vec::new());
        assert_eq!(next, 1);
        assert!(!push(&mut passing, 2, DATA_MAX), "it is the turn of another");
        for _ in 0..15 {
            order.push(next);
            let size = [DATA_MAX, 8 << 10, 5000, 20_000][usize::try_from(next).unwrap() - 1];
            let (sent, after) = pour(&mut passing, next, size);
            assert!((TURN..TURN + 2 * (size + 64)).contains(&sent), "{next}: {sent}");
            next = after;
        }
        let first = [1, 2, 3, 4].map(|stream| order.iter().position(|named| *named == stream).unwrap());
        assert!(first.is_sorted(), "{order:?}");
        assert_eq!(order[7..11], order[11..], "all have had their first turn");
    }

    #[test]
    fn who_has_the_turn_and_says_nothing_is_passed_over_when_nothing_is_on_its_way_or_others_have_said_as_much() {
        let mut passing = Passing::default();
        while push(&mut passing, 1, DATA_MAX) {}
        assert!(!push(&mut passing, 2, DATA_MAX) && !push(&mut passing, 3, DATA_MAX));
        assert_eq!(send(&mut passing).1, Some(1));
        assert_eq!(passing.pass_over(), Some(2));
        assert!(!push(&mut passing, 1, DATA_MAX), "he may come later");
        assert_eq!(passing.admit(TURN - 1), None, "small writes, which do not pass here");
        assert_eq!(passing.admit(1), Some(3));
        assert!(push(&mut passing, 3, 10));
        assert_eq!(passing.pass_over(), None, "he has said something");
        send(&mut passing);
        assert_eq!(passing.pass_over(), Some(1));
        assert_eq!(passing.pass_over(), None);
        assert!(push(&mut passing, 2, DATA_MAX), "nobody waits");
    }

    #[test]
    fn who_did_not_use_up_his_last_turn_comes_before_those_who_did_every_second_time() {
        let mut passing = Passing::default();
        for connection in [1, 1, 2, 3] {
            push(&mut passing, connection, PASSING_MAX);
        }
        let mut next = send(&mut passing).1.unwrap();
        for _ in 0..6 {
            next = pour(&mut passing, next, PASSING_MAX).1;
        }
        for connection in 11..14 {
            assert!(!push(&mut passing, connection, 10));
        }
        let mut order = Vec::new();
        for _ in 0..7 {
            order.push(next);
            next = match next {
                1..=3 => pour(&mut passing, next, PASSING_MAX).1,
                _ => passing.pass_over().unwrap(),
            };
        }
        assert_eq!(order, [1, 11, 3, 12, 2, 13, 1]);
    }

    #[test]
    fn in_any_order_of_things_one_has_the_turn_and_nobody_waits_for_more_than_two_turns_of_each() {
        simulate(10_000, |seed| {
            let (mut passing, mut random) = (Passing::default(), Random::new(seed));
            let streams = 1 + random.next(8);
            // Who waits, and for how many turns he has.
            let mut waits = BTreeMap::<i64, usize>::new();
            for _ in 0..300 {
                let connection = i64::try_from(random.next(streams)).unwrap();
                let named = match random.next(16) {
                    0 => {
                        passing.forget(connection);
                        waits.remove(&connection);
                        None
                    }
                    1 => passing.pass_over(),
                    2 | 3 => {
                        let (sent, named) = send(&mut passing);
                        assert!(sent < PASSING_MAX + DATA_MAX + 64, "{sent}");
                        named
                    }
                    _ => {
                        let turn = passing.turn.as_ref().map(|turn| turn.connection);
                        if push(&mut passing, connection, 1 + random.next(DATA_MAX)) {
                            assert!(turn == Some(connection) || turn.is_none() && waits.is_empty());
                        } else {
                            waits.entry(connection).or_default();
                        }
                        None
                    }
                };
                if let Some(named) = named {
                    assert!(waits.remove(&named).is_some(), "{named} did not wait");
                    if begins(&passing) {
                        waits.values_mut().for_each(|turns| *turns += 1);
                    }
                }
                assert!(waits.values().all(|turns| *turns < 2 * streams), "{waits:?}");
            }
            // Nobody is forgotten.
            for _ in 0..=streams {
                for named in [send(&mut passing).1, passing.pass_over()].into_iter().flatten() {
                    waits.remove(&named);
                }
            }
            assert!(
                waits.is_empty() && passing.waits.is_empty() && passing.turn.is_none(),
                "{waits:?}"
            );
        });
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
        let mut passing = Passing::default();
        while push(&mut passing, 1, DATA_MAX) {}
        push(&mut passing, 2, 1);
        push(&mut passing, 3, 1);
        passing.forget(2);
        assert_eq!(send(&mut passing).1, Some(1));
        passing.forget(1);
        assert_eq!(send(&mut passing).1, Some(3));
        passing.forget(3);
        assert!(passing.turn.is_none() && passing.waits.is_empty() && passing.spent.is_empty());
        assert!(passing.often.is_empty() && passing.seldom.is_empty());
    }
}
