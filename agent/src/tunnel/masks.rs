//! What a websocket's client masks its frames with. Nobody may guess it: RFC 6455, section 5.3.

use ring::rand::{SecureRandom as _, SystemRandom};

use super::websocket::Side;

/// Fetched at once.
const COUNT: usize = 64;

/// The kernel has no random bytes: nothing can be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no random bytes to mask a frame with")]
pub struct NoMask;

/// A supply of masks; none for a server, which sends frames as they are.
pub struct Masks {
    side: Side,
    random: SystemRandom,
    fetched: Vec<[u8; 4]>,
}

impl Masks {
    pub fn new(side: Side) -> Self {
        Self {
            side,
            random: SystemRandom::new(),
            fetched: Vec::new(),
        }
    }

    /// Whose.
    pub const fn side(&self) -> Side {
        self.side
    }

    /// A fresh one.
    ///
    /// # Errors
    /// [`NoMask`].
    pub fn next(&mut self) -> Result<Option<[u8; 4]>, NoMask> {
        if self.side == Side::Server {
            return Ok(None);
        }
        if self.fetched.is_empty() {
            let mut bytes = [0; 4 * COUNT];
            self.random.fill(&mut bytes).map_err(|_| NoMask)?;
            self.fetched.extend_from_slice(bytes.as_chunks().0);
        }
        Ok(self.fetched.pop())
    }
}
