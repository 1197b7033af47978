//! How a node that lost its password gets its name back without anybody deleting its Node.
//!
//! Two ways. It proves that it still has the key of its client certificate: the machine is the same, only the password
//! file is not. Or an operator opened a window for it (`k3s node reenrol`): a reflashed card has no key either. K3s knows
//! neither and has the Node deleted; its Secrets are read and written unchanged, both facts are annotations on them, so
//! that every server of the cluster sees them. Pure.
//!
//! No clock is believed about a window. It is open from when it was opened until its end, not merely before its end: to a
//! server that boots in 1970 no window has ended yet. And once it has lain there for its whole length, told by a clock that
//! nobody sets ([`Windows`]), it is taken off: what is gone cannot open again, whatever a server's time steps back to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::node_password::Record;
use crate::controllers::Note;

/// No window is open for longer: it would be forgotten, and then it is a hole.
pub const LONGEST: Duration = Duration::from_secs(86_400);
/// A window is open to a server whose clock is behind the one that opened it by this much at most. Clocks that were set by
/// hand, or left to themselves for a season, are some minutes off.
const BEHIND: Duration = Duration::from_secs(300);

/// A time in which a node may come once with another password.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Window {
    /// When it was opened, by the clock of the machine that did. `None`: by a version that did not write that down.
    pub opened: Option<Timestamp>,
    /// Its end, by the same clock.
    pub until: Timestamp,
}

impl Window {
    /// Whether it is open now; a window of more than [`LONGEST`] is, in its last day.
    pub fn is_open(&self, now: Timestamp) -> bool {
        let Ok(left) = Duration::try_from(self.until.duration_since(now)) else {
            return false;
        };
        let length = self.length();
        !left.is_zero() && !length.is_zero() && left <= length.saturating_add(BEHIND)
    }

    /// How long it is open, at most: for one whose opening is not known, [`LONGEST`].
    pub fn length(&self) -> Duration {
        let Some(opened) = self.opened else { return LONGEST };
        // Its end before its opening: none at all.
        let length = Duration::try_from(self.until.duration_since(opened)).unwrap_or_default();
        length.min(LONGEST)
    }
}

/// The windows there are, and how long they have been seen.
#[derive(Debug, Default)]
pub struct Windows(BTreeMap<String, (Window, Duration)>);

impl Windows {
    /// Looks at all records by node name; returns the nodes whose window has been seen for its whole length, and is over.
    ///
    /// `up`: how long this server has run, by a clock that nobody sets. A server's time is not asked: one that is years ahead
    /// would take a window off, for all servers, in the moment it is opened.
    pub fn over(&mut self, records: &BTreeMap<String, Record>, up: Duration) -> Vec<(String, Window)> {
        let windows = records.iter().filter_map(|(node, record)| {
            let window = record.window?;
            let since = self.0.get(node).filter(|(seen, _)| *seen == window);
            Some((node.clone(), (window, since.map_or(up, |(_, since)| *since))))
        });
        self.0 = windows.collect();
        let over = self.0.iter();
        let over = over.filter(|(_, (window, since))| up.saturating_sub(*since) >= window.length());
        over.map(|(node, (window, _))| (node.clone(), *window)).collect()
    }
}

/// Why a node may come with another password than the one on record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// It showed the client certificate of the key on record.
    Proof,
    /// An operator said so, until then.
    Window(Timestamp),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proof => f.write_str("it proved that it has the key of its client certificate"),
            Self::Window(until) => write!(f, "an operator let it in until {until:.0}; that is used up now"),
        }
    }
}

/// Whether it may.
///
/// `proof`: hash of the key that the TLS handshake proved the caller to have, by a valid certificate of this very node.
/// Only the key on record counts: the machine that had the name before has a certificate of that name too, for a year.
pub fn way(record: &Record, proof: Option<&str>, now: Timestamp) -> Option<Way> {
    if proof.is_some() && proof == record.key.as_deref() {
        return Some(Way::Proof);
    }
    let open = record.window.filter(|window| window.is_open(now));
    open.map(|window| Way::Window(window.until))
}

/// The node, for an Event; `uid` when its Node exists. Without one, Events of nodes carry the name (K3s, kubelet).
pub fn about(node: &str, uid: Option<&str>) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "name": node, "uid": uid.unwrap_or(node) })
}

/// What people are told of a refusal; the reason is K3s' (v1.36 `pkg/nodepassword`).
pub fn refused(about: Value, message: String) -> Note {
    note(about, "NodePasswordValidationFailed", message)
}

/// What people are told when an operator lets a node come with another password.
pub fn opened(about: Value, until: Timestamp) -> Note {
    let message = format!("may register once with another node password until {until:.0} (k3s node reenrol)");
    note(about, "NodeReenrolWindowOpened", message)
}

/// What people are told when a node came with another password. A warning: it is rare, and somebody should know why.
pub fn done(about: Value, way: Way) -> Note {
    note(
        about,
        "NodeReenrolled",
        format!("registered anew, with another node password: {way}"),
    )
}

fn note(about: Value, reason: &'static str, message: String) -> Note {
    Note {
        kind: "Warning",
        reason,
        message,
        about,
        component: "k3s-supervisor",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_on_record_or_an_open_window_lets_a_node_change_its_password() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (now, later) = (at("2026-11-25T00:00:00Z"), at("2026-11-25T00:10:00Z"));
        for (name, key, until, proof, expected) in [
            ("nothing", None, None, None, None),
            ("no key on record", None, None, Some("k1"), None),
            ("nothing proved", Some("k1"), None, None, None),
            (
                "the key of an earlier machine of that name",
                Some("k2"),
                None,
                Some("k1"),
                None,
            ),
            ("its key", Some("k1"), None, Some("k1"), Some(Way::Proof)),
            ("a window", None, Some(later), None, Some(Way::Window(later))),
            ("a window, to the second", None, Some(now), None, None),
            (
                "a closed window",
                None,
                Some(at("2026-11-24T23:59:59Z")),
                Some("k1"),
                None,
            ),
            (
                "both: the better reason",
                Some("k1"),
                Some(later),
                Some("k1"),
                Some(Way::Proof),
            ),
        ] {
            let record = Record {
                key: key.map(str::to_owned),
                window: until.map(|until| Window {
                    opened: Some(at("2026-11-24T23:55:00Z")),
                    until,
                }),
                ..Record::default()
            };
            assert_eq!(way(&record, proof, now), expected, "{name}");
        }
    }

    #[test]
    fn a_window_is_open_from_its_opening_to_its_end_and_to_no_clock_of_another_year() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (opened, ten_minutes) = ("2026-11-25T00:00:00Z", "2026-11-25T00:10:00Z");
        for (name, opened, until, now, expected) in [
            ("as it is opened", Some(opened), ten_minutes, opened, true),
            (
                "its last second",
                Some(opened),
                ten_minutes,
                "2026-11-25T00:09:59Z",
                true,
            ),
            ("its end", Some(opened), ten_minutes, ten_minutes, false),
            (
                "a clock a little behind",
                Some(opened),
                ten_minutes,
                "2026-11-24T23:55:00Z",
                true,
            ),
            (
                "one further behind",
                Some(opened),
                ten_minutes,
                "2026-11-24T23:54:59Z",
                false,
            ),
            (
                "a boot in 1970",
                Some(opened),
                ten_minutes,
                "1970-01-01T00:00:20Z",
                false,
            ),
            ("a year ahead", Some(opened), ten_minutes, "2027-11-25T00:00:00Z", false),
            (
                "opened in 1970, as it is there",
                Some("1970-01-01T00:05:00Z"),
                "1970-01-01T00:15:00Z",
                "1970-01-01T00:06:00Z",
                true,
            ),
            (
                "opened in 1970, and the clock was set",
                Some("1970-01-01T00:05:00Z"),
                "1970-01-01T00:15:00Z",
                opened,
                false,
            ),
            ("of an earlier version", None, ten_minutes, "2026-11-24T00:10:00Z", true),
            (
                "of an earlier version, in 1970",
                None,
                ten_minutes,
                "1970-01-01T00:00:20Z",
                false,
            ),
            ("for ever, by hand", Some(opened), "2999-01-01T00:00:00Z", opened, false),
            (
                "its end before its opening",
                Some(ten_minutes),
                opened,
                "2026-11-24T23:58:00Z",
                false,
            ),
            (
                "for ever, from the beginning",
                Some("-009999-01-02T01:59:59Z"),
                "9999-12-30T22:00:00Z",
                opened,
                false,
            ),
        ] {
            let window = Window {
                opened: opened.map(at),
                until: at(until),
            };
            assert_eq!(window.is_open(at(now)), expected, "{name}");
        }
    }

    #[test]
    fn a_window_is_over_once_it_was_seen_for_its_whole_length() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let record = |opened: Option<&str>, until: &str| {
            let (opened, until) = (opened.map(at), at(until));
            let window = Some(Window { opened, until });
            (
                "pi".to_owned(),
                Record {
                    window,
                    ..Record::default()
                },
            )
        };
        // Long ago, or yet to come: its dates say nothing here.
        let first = [record(Some("2999-01-01T00:00:00Z"), "2999-01-01T00:10:00Z")].into();
        let again = [record(Some("1970-01-01T00:00:00Z"), "1970-01-01T00:10:00Z")].into();
        let old = [record(None, "1970-01-01T00:10:00Z")].into();
        let none = [("pi".to_owned(), Record::default())].into();
        let mut seen = Windows::default();
        for (name, records, up, over) in [
            ("just seen", &first, minutes(1000), false),
            ("for less than its length", &first, minutes(1009), false),
            ("another", &again, minutes(1010), false),
            ("for less than its own length", &again, minutes(1019), false),
            ("for its length", &again, minutes(1020), true),
            ("it could not be taken off", &again, minutes(1021), true),
            ("taken off", &none, minutes(1022), false),
            ("the same, opened anew", &again, minutes(1023), false),
            ("of an earlier version", &old, minutes(2000), false),
            ("for less than a day", &old, minutes(3439), false),
            ("for a day", &old, minutes(3440), true),
        ] {
            assert_eq!(!seen.over(records, up).is_empty(), over, "{name}");
        }
    }

    #[test]
    fn an_event_says_what_happened_and_no_secret() {
        let note = done(about("pi", None), Way::Window("2026-11-25T00:10:00Z".parse().unwrap()));
        assert_eq!(note.reason, "NodeReenrolled");
        assert!(note.message.contains("2026-11-25T00:10:00Z"), "{}", note.message);
        assert_eq!(note.about["uid"], "pi");
    }
}
