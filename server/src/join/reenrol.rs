//! How a node that lost its password gets its name back without anybody deleting its Node.
//!
//! Two ways. It proves that it still has the key of its client certificate: the machine is the same, only the password
//! file is not. Or an operator opened a window for it (`k3s node reenrol`): a reflashed card has no key either. K3s knows
//! neither and has the Node deleted; its Secrets are read and written unchanged, both facts are annotations on them, so
//! that every server of the cluster sees them. Pure.

use std::fmt;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::node_password::Record;
use crate::controllers::Note;

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
    record.reenrol_until.filter(|until| now < *until).map(Way::Window)
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
                reenrol_until: until,
                ..Record::default()
            };
            assert_eq!(way(&record, proof, now), expected, "{name}");
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
