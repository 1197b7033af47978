//! The two ends of a tunnel, and what differs between them. Pure.
//!
//! Source: remotedialer v0.6; K3s v1.36, `pkg/agent/tunnel`.

use std::time::Duration;

use super::websocket::Side;

/// Which end this is, and how it notices that the other is gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The server: opens streams, answers pings.
    Dialer,
    /// The agent: accepts streams, pings, and says which streams it knows.
    Listener,
}

impl Role {
    /// Which end of the websocket it is.
    pub const fn side(self) -> Side {
        match self {
            Self::Dialer => Side::Server,
            Self::Listener => Side::Client,
        }
    }

    /// How often it pings.
    pub const fn ping(self) -> Option<Duration> {
        match self {
            Self::Dialer => None,
            Self::Listener => Some(Duration::from_secs(5)),
        }
    }

    /// How often it says which streams it knows.
    pub const fn sync(self) -> Option<Duration> {
        match self {
            Self::Dialer => None,
            Self::Listener => Some(Duration::from_secs(60)),
        }
    }

    /// An agent hears an answer to each ping; a server a ping of any K3s every 5 s, in bad times late.
    pub const fn silence(self) -> Duration {
        match self {
            Self::Dialer => Duration::from_secs(60),
            Self::Listener => Duration::from_secs(20),
        }
    }

    /// How many streams at once.
    pub const fn streams(self) -> usize {
        match self {
            Self::Dialer => 1024,
            Self::Listener => 256,
        }
    }
}
