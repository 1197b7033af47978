//! Watch bodies: one line (in protobuf one frame) per event, all that is pending in one write, bookmarks, and a clean end.
//!
//! Objects and their order are the cache's. An idle watch holds a cursor and one timer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use agent::units::Revision;
use agent::wire::object::set;
use agent::wire::status::Status;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use super::encode::{Style, partial};
use super::negotiate::{Form, Media};
use super::{Body, full, stopped, table};
use crate::cache::{ChangeKind, Watch, WatchEvent};
use crate::registry::resource::Resource;
use crate::schema::protobuf::{self, EncodeError};

/// Pending events are written together up to about this size.
const BURST: usize = 64 * 1024;
/// How often a quiet watch is told how far it is (upstream's `defaultBookmarkFrequency`).
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The last bookmark comes so long before the end, for the client to have it.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// How one watch is served.
pub struct Plan {
    /// Of what.
    pub resource: Arc<Resource>,
    /// In which form.
    pub style: Style,
    /// The client takes bookmarks.
    pub bookmarks: bool,
    /// When it ends.
    pub lasts: Duration,
    /// Becomes true when the server stops.
    pub stop: Receiver<bool>,
}

struct Running {
    watch: Watch,
    plan: Plan,
    ends: Instant,
    next_bookmark: Option<Instant>,
    /// The columns of a table are still to be sent.
    columns: bool,
    over: bool,
}

enum Happened {
    Event(WatchEvent),
    Tick,
    End,
}

/// The body of a watch.
pub fn body(watch: Watch, plan: Plan) -> Body {
    let now = Instant::now();
    let ends = now + plan.lasts;
    let last = ends.checked_sub(LAST_BOOKMARK).unwrap_or(ends);
    let running = Running {
        watch,
        ends,
        next_bookmark: plan.bookmarks.then(|| (now + BOOKMARK_EVERY).min(last)),
        columns: true,
        over: false,
        plan,
    };
    let frames = stream::unfold(running, |mut running| async move {
        let bytes = running.frame().await?;
        Some((Ok::<_, io::Error>(Frame::data(bytes)), running))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A watch that cannot begin: a single `ERROR` event.
pub fn failed(status: &Status, media: Media) -> Body {
    let mut out = BytesMut::new();
    let object = serde_json::to_vec(status).unwrap_or_default();
    // A status has a form in every encoding.
    let _ = put_event(&mut out, "ERROR", &object, media);
    full(out.freeze())
}

/// One event, its object given as JSON.
fn put_event(out: &mut BytesMut, kind: &str, object: &[u8], media: Media) -> Result<(), EncodeError> {
    match media {
        Media::Json | Media::Yaml => {
            out.put_slice(b"{\"type\":\"");
            out.put_slice(kind.as_bytes());
            out.put_slice(b"\",\"object\":");
            out.put_slice(object);
            out.put_slice(b"}\n");
        }
        Media::Protobuf => {
            let value: Value = serde_json::from_slice(object).unwrap_or_default();
            out.put_slice(&protobuf::watch_frame(kind, &value)?);
        }
    }
    Ok(())
}

impl Running {
    /// The next bytes; `None` at the end.
    async fn frame(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while out.is_empty() {
            if self.over {
                return None;
            }
            while !self.over && out.len() < BURST {
                let Some(event) = self.watch.ready() else { break };
                self.write(&event, &mut out);
            }
            if out.is_empty() {
                self.wait(&mut out).await;
            }
        }
        Some(out.freeze())
    }

    /// Waits for the first thing to happen and writes it.
    async fn wait(&mut self, out: &mut BytesMut) {
        let tick = self.next_bookmark.map_or(self.ends, |at| at.min(self.ends));
        let happened = tokio::select! {
            event = self.watch.next() => event.map_or(Happened::End, Happened::Event),
            () = stopped(&mut self.plan.stop) => Happened::End,
            () = tokio::time::sleep_until(tick) => Happened::Tick,
        };
        match happened {
            Happened::Event(event) => self.write(&event, out),
            Happened::Tick => self.tick(out),
            Happened::End => self.over = true,
        }
    }

    fn tick(&mut self, out: &mut BytesMut) {
        let now = Instant::now();
        if now >= self.ends {
            self.over = true;
            return;
        }
        let last = self.ends.checked_sub(LAST_BOOKMARK).unwrap_or(self.ends);
        self.next_bookmark = match now + BOOKMARK_EVERY {
            _ if now >= last => None,
            next => Some(next.min(last)),
        };
        let revision = self.watch.bookmark();
        if revision != Revision::ZERO {
            let initial_events_end = false;
            self.write(
                &WatchEvent::Bookmark {
                    revision,
                    initial_events_end,
                },
                out,
            );
        }
    }

    /// An event that cannot be written ends the watch: a client must never miss one without knowing.
    fn write(&mut self, event: &WatchEvent, out: &mut BytesMut) {
        if let Err(error) = self.put(event, out) {
            let object = serde_json::to_vec(&Status::internal(error)).unwrap_or_default();
            let _ = put_event(out, "ERROR", &object, self.plan.style.wanted.media);
            self.over = true;
        }
    }

    fn put(&mut self, event: &WatchEvent, out: &mut BytesMut) -> Result<(), EncodeError> {
        let media = self.plan.style.wanted.media;
        match event {
            WatchEvent::Change(kind, item) => {
                let kind = match kind {
                    ChangeKind::Added => "ADDED",
                    ChangeKind::Modified => "MODIFIED",
                    ChangeKind::Deleted => "DELETED",
                };
                match self.plan.style.wanted.form {
                    Form::Object => put_event(out, kind, &item.body, media),
                    Form::Partial(version) => put_event(out, kind, &partial(&item.body, version), media),
                    Form::Table(version) => {
                        let metadata = json!({"resourceVersion": item.revision.to_string()});
                        let table = self.table(&[item.value()], &metadata, version);
                        put_event(out, kind, table.to_string().as_bytes(), media)
                    }
                }
            }
            WatchEvent::Bookmark {
                revision,
                initial_events_end,
            } => {
                let object = self.bookmark(*revision, *initial_events_end);
                put_event(out, "BOOKMARK", object.to_string().as_bytes(), media)
            }
        }
    }

    fn bookmark(&mut self, revision: Revision, initial_events_end: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        let resource = &self.plan.resource;
        if initial_events_end {
            let mark = json!({"k8s.io/initial-events-end": "true"});
            set(&mut metadata, &["annotations"], mark);
        }
        match self.plan.style.wanted.form {
            Form::Object => {
                json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata})
            }
            Form::Partial(version) => {
                let api_version = format!("meta.k8s.io/{version}");
                json!({"kind": "PartialObjectMetadata", "apiVersion": api_version, "metadata": metadata})
            }
            Form::Table(version) => self.table(&[], &metadata, version),
        }
    }

    fn table(&mut self, objects: &[Value], metadata: &Value, version: &str) -> Value {
        let include = (self.plan.style.include, version);
        let mut table = table::whole(&self.plan.resource, objects, metadata, include, Timestamp::now());
        if !std::mem::take(&mut self.columns) {
            agent::wire::object::remove(&mut table, &["columnDefinitions"]);
        }
        table
    }
}
