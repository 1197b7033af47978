//! Which keys are ours, and ranges of them as etcd wants them. Pure.
//!
//! Keys stand in etcd as the store names them, which is upstream's layout. What does not begin with `/`, or is no text,
//! is somebody else's: kube-apiserver's `compact_rev_key`, this store's own (see [`super::write`]). Lists leave those out; a watch gives
//! their revisions as deletions of a key nobody has, because each revision must come.

use agent::units::Revision;
use bytes::{Bytes, BytesMut};

use super::message::{KeyValue, number};
use crate::store::{Entry, Event};

/// What our keys begin with, and what follows the last of them.
const FIRST: &[u8] = b"/";
const BEYOND: &[u8] = b"0";

/// A key that nobody has. As a range from there to [`ALL`] it is everything.
pub const NOBODYS: &[u8] = b"\0";
/// The end of a range that has none.
pub const ALL: &[u8] = b"\0";

/// Whether a key can be one of ours.
pub fn is_ours(key: &[u8]) -> bool {
    key.starts_with(FIRST) && std::str::from_utf8(key).is_ok()
}

/// First key and end of a range.
pub fn bounds(prefix: &str, after_key: Option<&str>) -> (Bytes, Bytes) {
    let (start, end) = match prefix {
        "" => (Bytes::from_static(FIRST), Bytes::from_static(BEYOND)),
        prefix => (Bytes::copy_from_slice(prefix.as_bytes()), beyond(prefix.as_bytes())),
    };
    let next = after_key.map(|key| after(key.as_bytes()));
    (next.map_or_else(|| start.clone(), |next| next.max(start.clone())), end)
}

/// The key that follows `key` in byte order.
pub fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::from(key);
    next.extend_from_slice(b"\0");
    next.freeze()
}

/// The first key that is greater than all with this prefix.
fn beyond(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end.into();
        }
    }
    Bytes::from_static(ALL)
}

/// A key's state; `None` if it is not ours.
pub fn entry(kv: KeyValue) -> Option<Entry> {
    let key = std::str::from_utf8(&kv.key)
        .ok()
        .filter(|key| is_ours(key.as_bytes()))?;
    Some(Entry {
        key: key.into(),
        revision: Revision::new(number(kv.mod_revision)),
        created: Revision::new(number(kv.create_revision)),
        value: kv.value,
    })
}

/// What happened to a key, as etcd tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The key; its value unless it is deleted.
    pub kv: KeyValue,
    /// It is.
    pub deleted: bool,
}

impl Change {
    /// When.
    pub fn revision(&self) -> Revision {
        Revision::new(number(self.kv.mod_revision))
    }

    fn event(self) -> Event {
        let ours = is_ours(&self.kv.key);
        Event {
            key: String::from_utf8_lossy(&self.kv.key).into(),
            revision: self.revision(),
            created: Revision::new(number(self.kv.create_revision)),
            value: (ours && !self.deleted).then_some(self.kv.value),
        }
    }
}

/// The events of whole revisions: what happened to our keys, or, if nothing did, that there was a revision.
pub fn events(changes: Vec<Change>) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::with_capacity(changes.len());
    for change in changes {
        let same = events.last().is_some_and(|last| last.revision == change.revision());
        let last_is_ours = events.last().is_some_and(|last| is_ours(last.key.as_bytes()));
        match (same, last_is_ours, is_ours(&change.kv.key)) {
            (true, _, false) => {}
            (true, false, true) => {
                events.pop();
                events.push(change.event());
            }
            (true, true, true) | (false, _, _) => events.push(change.event()),
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_what_a_list_wants() {
        for (prefix, after, start, end) in [
            ("", None, b"/".as_slice(), b"0".as_slice()),
            ("", Some("/a"), b"/a\0", b"0"),
            ("/a/", None, b"/a/", b"/a0"),
            ("/a/", Some("/a/b"), b"/a/b\0", b"/a0"),
            ("/a/", Some("/A"), b"/a/", b"/a0"),
            ("/\u{7f}", None, b"/\x7f", b"/\x80"),
        ] {
            assert_eq!(
                bounds(prefix, after),
                (start.into(), end.into()),
                "{prefix:?} {after:?}"
            );
        }
        assert_eq!(beyond(b"a\xff\xff"), b"b".as_slice());
        assert_eq!(beyond(b"\xff"), ALL);
    }

    #[test]
    fn what_others_keep_there_shows_as_a_revision_without_content() {
        for (key, ours) in [
            (b"/registry/pods/a/b".as_slice(), true),
            (b"compact_rev_key", false),
            (b"/\xff", false),
            (b"\0mark", false),
        ] {
            let kv = KeyValue {
                key: key.into(),
                mod_revision: 7,
                value: Bytes::from_static(b"x"),
                ..KeyValue::default()
            };
            assert_eq!(entry(kv.clone()).is_some(), ours);
            let events = events(vec![Change { kv, deleted: false }]);
            let shown: Vec<_> = events
                .iter()
                .map(|event| (event.value.is_some(), event.revision.get()))
                .collect();
            assert_eq!(shown, [(ours, 7)]);
        }
    }

    #[test]
    fn a_revision_shows_what_is_ours_and_nothing_only_if_there_is_nothing() {
        let change = |key: &'static str, revision| Change {
            kv: KeyValue {
                key: Bytes::from_static(key.as_bytes()),
                mod_revision: revision,
                ..KeyValue::default()
            },
            deleted: false,
        };
        let changes = vec![
            change("mark", 1),
            change("/a", 2),
            change("mark", 2),
            change("mark", 3),
            change("other", 3),
            change("/b", 3),
            change("/c", 3),
            change("mark", 4),
            change("other", 4),
        ];
        let shown: Vec<String> = events(changes)
            .iter()
            .map(|event| format!("{}@{}", event.key, event.revision))
            .collect();
        assert_eq!(shown, ["mark@1", "/a@2", "/b@3", "/c@3", "mark@4"]);
    }
}
