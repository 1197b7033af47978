//! The lines of a watch: bytes as they arrive, whole events out. Pure.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::Value;

/// The longest event; objects of the API are at most 1.5 MiB, and an event wraps one.
const MAX_LINE: usize = 4 << 20;
/// More than this is given back once a large event has passed.
const KEPT: usize = 16 << 10;

/// What happened to an object.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchEvent {
    /// What.
    pub kind: WatchKind,
    /// The object; a `Status` for [`WatchKind::Error`].
    pub object: Value,
}

/// What happened.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "UPPERCASE")]
pub enum WatchKind {
    /// New, or there already when the watch began.
    Added,
    /// Changed.
    Modified,
    /// Gone; the object is its last state.
    Deleted,
    /// Nothing happened up to the object's `resourceVersion`.
    Bookmark,
    /// The watch is over; list again.
    Error,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: WatchKind,
    object: Value,
}

/// Why the bytes are no watch.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// An event beyond the bound.
    #[error("watch event is longer than {MAX_LINE} bytes")]
    TooLong,
    /// Not the JSON of an event.
    #[error("watch event cannot be read")]
    Malformed(#[from] serde_json::Error),
}

/// Cuts a stream of bytes into events.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: BytesMut,
    /// Up to here no line ends.
    seen: usize,
}

impl Lines {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &Bytes) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole event; `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`LineError`]; the watch is of no more use then.
    pub fn next(&mut self) -> Result<Option<WatchEvent>, LineError> {
        loop {
            let fresh = self.buffer.get(self.seen..).unwrap_or_default();
            let Some(offset) = fresh.iter().position(|byte| *byte == b'\n') else {
                self.seen = self.buffer.len();
                return if self.seen > MAX_LINE {
                    Err(LineError::TooLong)
                } else {
                    Ok(None)
                };
            };
            let line = self.buffer.split_to(self.seen + offset + 1);
            self.seen = 0;
            if self.buffer.is_empty() && self.buffer.capacity() > KEPT {
                self.buffer = BytesMut::new();
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let Line { kind, object } = serde_json::from_slice(&line)?;
            return Ok(Some(WatchEvent { kind, object }));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_come_out_whole_however_the_bytes_are_cut() {
        let text = "{\"type\":\"ADDED\",\"object\":{\"a\":1}}\n\n{\"type\":\"BOOKMARK\",\"object\":{}}\r\n{\"type\":";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut events = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                lines.push(&Bytes::copy_from_slice(chunk));
                while let Some(event) = lines.next().unwrap() {
                    events.push(event);
                }
            }
            assert_eq!(events.len(), 2, "chunks of {size}");
            assert_eq!(
                events[0],
                WatchEvent {
                    kind: WatchKind::Added,
                    object: json!({"a": 1})
                }
            );
            assert_eq!(events[1].kind, WatchKind::Bookmark);
        }
    }

    #[test]
    fn an_endless_line_ends_the_watch() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE + 1].into());
        assert!(matches!(lines.next(), Err(LineError::TooLong)));
    }

    #[test]
    fn garbage_is_an_error() {
        for text in ["nonsense\n", "{\"type\":\"OTHER\",\"object\":{}}\n", "{}\n"] {
            let mut lines = Lines::default();
            lines.push(&Bytes::from_static(text.as_bytes()));
            assert!(matches!(lines.next(), Err(LineError::Malformed(_))), "{text}");
        }
    }
}
