//! What a server says of itself through the tunnels, unasked: the payload of a websocket ping, which any peer answers and
//! none but our agents reads. Always the whole state, so that one that is lost costs nothing once the next one comes.

/// How a server stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    /// It can write: its datastore takes what it says.
    pub ready: bool,
    /// Another number whenever it has seen the servers of the cluster change.
    pub servers: u32,
}

const READY: &str = "amphipod ready ";
const UNREADY: &str = "amphipod unready ";

impl Standing {
    /// The payload; far below the 125 bytes that a ping may have.
    pub fn encode(self) -> String {
        let words = if self.ready { READY } else { UNREADY };
        format!("{words}{}", self.servers)
    }

    /// Reads a payload; `None`: an ordinary ping.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(payload).ok()?;
        let (ready, number) = match text.strip_prefix(READY) {
            Some(number) => (true, number),
            None => (false, text.strip_prefix(UNREADY)?),
        };
        let servers = number.parse().ok()?;
        Some(Self { ready, servers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_is_read_back_and_nothing_else_is_one() {
        for standing in [
            Standing {
                ready: true,
                servers: 0,
            },
            Standing {
                ready: false,
                servers: u32::MAX,
            },
        ] {
            assert_eq!(Standing::decode(standing.encode().as_bytes()), Some(standing));
        }
        for other in [
            "",
            "amphipod",
            "amphipod ready",
            "amphipod ready x",
            "amphipod unready 4294967296",
        ] {
            assert_eq!(Standing::decode(other.as_bytes()), None, "{other}");
        }
        assert_eq!(Standing::decode(b"\xff"), None);
    }
}
