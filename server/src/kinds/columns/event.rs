//! Events: what happened, newest facts first. Both forms of them, core and `events.k8s.io`.

use agent::wire::object::{integer, text};
use jiff::Timestamp;
use serde_json::Value;

use super::{Shown, cell, since};

const COLUMNS: &[Shown] = &[
    Shown::text("Last Seen", "Time since it last happened", |event, now| {
        last_seen(event, now).into()
    }),
    Shown::text("Type", "Normal or Warning", |event, _| cell::text(event, &["type"])),
    Shown::text("Reason", "For programs", |event, _| cell::text(event, &["reason"])),
    Shown::text("Object", "About what", |event, _| {
        let kind = either(event, ["involvedObject", "regarding"], "kind").to_lowercase();
        format!("{kind}/{}", either(event, ["involvedObject", "regarding"], "name")).into()
    }),
    Shown::text("Subobject", "About which part", |event, _| {
        either(event, ["involvedObject", "regarding"], "fieldPath").into()
    })
    .wide(),
    Shown::text("Source", "Who says so", |event, _| source(event).into()).wide(),
    Shown::text("Message", "For people", |event, _| {
        first([text(event, &["message"]), text(event, &["note"])]).trim().into()
    }),
    Shown::text("First Seen", "Time since it first happened", |event, now| {
        first_seen(event, now).into()
    })
    .wide(),
    Shown::number("Count", "How often", |event, _| count(event).into()).wide(),
    Shown::text("Name", "Of the event", |event, _| {
        cell::text(event, &["metadata", "name"])
    })
    .wide(),
];

/// The columns, if it is this kind.
pub fn columns(group: &str, plural: &str) -> Option<&'static [Shown]> {
    (plural == "events" && matches!(group, "" | "events.k8s.io")).then_some(COLUMNS)
}

fn first<'a>(texts: impl IntoIterator<Item = &'a str>) -> &'a str {
    texts.into_iter().find(|text| !text.is_empty()).unwrap_or("")
}

fn either<'a>(event: &'a Value, parents: [&str; 2], field: &str) -> &'a str {
    first(parents.map(|parent| text(event, &[parent, field])))
}

fn first_seen(event: &Value, now: Timestamp) -> String {
    let times = [["firstTimestamp"], ["deprecatedFirstTimestamp"], ["eventTime"]];
    since(first(times.map(|path| text(event, &path))), now)
}

fn last_seen(event: &Value, now: Timestamp) -> String {
    let times: [&[&str]; 4] = [
        &["series", "lastObservedTime"],
        &["lastTimestamp"],
        &["deprecatedLastTimestamp"],
        &["eventTime"],
    ];
    match first(times.map(|path| text(event, path))) {
        "" => first_seen(event, now),
        last => since(last, now),
    }
}

fn count(event: &Value) -> i64 {
    let counts: [&[&str]; 3] = [&["series", "count"], &["count"], &["deprecatedCount"]];
    let found = counts.iter().find_map(|path| integer(event, path));
    found.unwrap_or(1).max(1)
}

fn source(event: &Value) -> String {
    let component = first([
        text(event, &["source", "component"]),
        text(event, &["deprecatedSource", "component"]),
        text(event, &["reportingComponent"]),
        text(event, &["reportingController"]),
    ]);
    let host = first([text(event, &["source", "host"]), text(event, &["reportingInstance"])]);
    if host.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {host}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::table;
    use crate::kinds;

    #[test]
    fn both_forms_of_an_event_look_the_same() {
        let core = json!({
            "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "reason": "Started", "message": "go",
            "type": "Normal", "count": 2, "firstTimestamp": "2026-11-25T11:00:00Z", "lastTimestamp": "2026-11-25T11:59:50Z",
            "source": {"component": "kubelet", "host": "edge"},
        });
        let new = json!({
            "metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p"}, "reason": "Started", "note": "go",
            "type": "Normal", "deprecatedCount": 2, "deprecatedFirstTimestamp": "2026-11-25T11:00:00Z",
            "deprecatedLastTimestamp": "2026-11-25T11:59:50Z", "deprecatedSource": {"component": "kubelet"}, "reportingInstance": "edge",
        });
        let row = kinds::find("", "v1", "events").unwrap();
        let table = table(&row, &[core, new], "2026-11-25T12:00:00Z".parse().unwrap());
        assert_eq!(table.rows[0], table.rows[1]);
        let wanted = [
            json!("10s"),
            json!("Normal"),
            json!("Started"),
            json!("pod/p"),
            json!(""),
            json!("kubelet, edge"),
            json!("go"),
            json!("60m"),
            json!(2),
            json!("e"),
        ];
        assert_eq!(table.rows[0], wanted);
    }
}
