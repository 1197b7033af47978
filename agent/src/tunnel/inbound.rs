//! Received bytes of a stream that wait for their reader, and what they cost. Pure.

use std::collections::VecDeque;

use bytes::Bytes;

/// What a piece costs beside its bytes: a peer that sends one byte at a time is to come no further than others.
pub const PIECE: usize = 128;

/// As they came, first in first out.
#[derive(Debug, Default)]
pub struct Inbound {
    pieces: VecDeque<Bytes>,
    cost: usize,
}

impl Inbound {
    /// What a piece costs as long as it waits here.
    pub const fn cost_of(piece: &Bytes) -> usize {
        piece.len() + PIECE
    }

    /// What all that waits costs: its bytes, and [`PIECE`] for each piece that is not read to its end.
    pub const fn cost(&self) -> usize {
        self.cost
    }

    /// Takes a piece in.
    pub fn push(&mut self, piece: Bytes) {
        self.cost += Self::cost_of(&piece);
        self.pieces.push_back(piece);
    }

    /// Gives up to `most` bytes of the first piece.
    pub fn pop(&mut self, most: usize) -> Option<Bytes> {
        let first = self.pieces.front_mut()?;
        let bytes = first.split_to(most.min(first.len()));
        self.cost -= bytes.len();
        if first.is_empty() {
            self.pieces.pop_front();
            self.cost -= PIECE;
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_in_parts_comes_whole_and_costs_nothing_any_more() {
        let mut inbound = Inbound::default();
        for piece in ["abcde", "f"] {
            inbound.push(piece.into());
        }
        assert_eq!(inbound.cost(), 6 + 2 * PIECE);
        assert_eq!(inbound.pop(2).unwrap(), "ab");
        assert_eq!(inbound.cost(), 4 + 2 * PIECE);
        assert_eq!(inbound.pop(10).unwrap(), "cde");
        assert_eq!(inbound.cost(), 1 + PIECE);
        assert_eq!(inbound.pop(1).unwrap(), "f");
        assert_eq!((inbound.pop(1), inbound.cost()), (None, 0));
    }
}
