//! Answers as responses: objects, lists spliced from stored bytes, tables, partial metadata, errors.
//!
//! A list is never parsed: its frames are cut from the cache's bytes as the client takes them, so that a list of any
//! length costs one frame of memory.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{io, vec};

use agent::units::Revision;
use agent::wire::object::{set, text};
use agent::wire::status::Status;
use bytes::{BufMut as _, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::negotiate::{Form, Media, Wanted};
use super::table::{self, Include};
use super::{Body, full};
use crate::cache::{Item, Page};
use crate::registry::resource::Resource;
use crate::schema::protobuf::{self, EncodeError};

/// What one frame of a list holds at least, before the last: large enough that framing costs nothing, small enough
/// that a thousand slow readers fit.
const FRAME: usize = 64 * 1024;
/// Smaller bodies are not worth compressing (upstream's `defaultGzipThresholdBytes`).
const GZIP_FROM: u64 = 128 * 1024;
/// All `Warning` headers together (upstream's `warning.Recorder`).
const WARNINGS_TOTAL: usize = 4096;
/// One warning, once the total is exceeded.
const WARNING_CUT: usize = 256;

/// How this client wants its answer.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Encoding and form.
    pub wanted: Wanted,
    /// `includeObject` of tables.
    pub include: Include,
    /// Compress large bodies.
    pub gzip: bool,
    /// For ages.
    pub now: Timestamp,
}

/// An error, or a success without an object, in JSON.
pub fn status(status: &Status) -> Response<Body> {
    status_as(status, Media::Json)
}

/// The same in the encoding asked for.
pub fn status_as(status: &Status, media: Media) -> Response<Body> {
    let json = Bytes::from(serde_json::to_vec(status).unwrap_or_default());
    let (media, bytes) = match transcode(json.clone(), media) {
        Ok(bytes) => (media, bytes),
        Err(_) => (Media::Json, json),
    };
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::OK);
    let mut response = respond(code, media.name(), full(bytes));
    let retry = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, retry.into());
    }
    response
}

/// A response with the headers that every API answer has.
pub fn respond(code: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// One object.
///
/// # Errors
/// 500 when a stored object cannot be turned into the form asked for.
pub fn object(
    code: u16,
    resource: &Resource,
    body: Bytes,
    warnings: &[String],
    style: Style,
) -> Result<Response<Body>, Status> {
    let bytes = match style.wanted.form {
        Form::Object => body,
        Form::Partial(version) => partial(&body, version).into(),
        Form::Table(version) => {
            let value: Value = serde_json::from_slice(&body).map_err(Status::internal)?;
            let metadata = json!({"resourceVersion": text(&value, &["metadata", "resourceVersion"])});
            let table = table::whole(resource, &[value], &metadata, (style.include, version), style.now);
            table.to_string().into()
        }
    };
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
    let mut response = respond(code, style.wanted.media.name(), encoded(bytes, style)?);
    warn(&mut response, warnings);
    Ok(response)
}

/// A list.
///
/// # Errors
/// 500 when a stored object cannot be turned into the form asked for.
pub fn list(
    resource: &Resource,
    page: Page,
    continue_token: Option<String>,
    style: Style,
) -> Result<Response<Body>, Status> {
    let metadata = list_metadata(page.revision, continue_token.as_deref(), page.remaining);
    let (kind, api_version) = match style.wanted.form {
        Form::Object => (format!("{}List", resource.kind), resource.api_version()),
        Form::Partial(version) => ("PartialObjectMetadataList".to_owned(), format!("meta.k8s.io/{version}")),
        Form::Table(version) => {
            let values: Vec<Value> = page.items.iter().map(|item| item.value()).collect();
            let table = table::whole(resource, &values, &metadata, (style.include, version), style.now);
            let body = encoded(table.to_string().into(), style)?;
            return Ok(respond(StatusCode::OK, style.wanted.media.name(), body));
        }
    };
    if style.wanted.media == Media::Protobuf {
        let list = protobuf::List::new(&api_version, &kind, &metadata).map_err(unwritable)?;
        let body = protobuf_list(list, page.items, style.wanted.form).map_err(unwritable)?;
        return Ok(bytes(Media::Protobuf.name(), body, style));
    }
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
        json!(kind),
        json!(api_version)
    );
    let items = Items::new(head, page.items, style.wanted.form);
    let body = match style.wanted.media {
        Media::Json if style.gzip && items.left > GZIP_FROM => Zipped::new(items).boxed_unsync(),
        Media::Json => items.boxed_unsync(),
        Media::Yaml | Media::Protobuf => encoded(items.whole(), style)?,
    };
    let mut response = respond(StatusCode::OK, style.wanted.media.name(), body);
    mark_zipped(&mut response, style);
    Ok(response)
}

/// A body that exists already (discovery, OpenAPI, tables), compressed if that pays.
pub fn bytes(content_type: &'static str, bytes: Bytes, style: Style) -> Response<Body> {
    let mut response = respond(StatusCode::OK, content_type, full(Bytes::new()));
    if style.gzip && u64::try_from(bytes.len()).is_ok_and(|length| length > GZIP_FROM) {
        *response.body_mut() = full(zip(&bytes));
        set_gzip(&mut response);
    } else {
        *response.body_mut() = full(bytes);
    }
    response
}

fn mark_zipped(response: &mut Response<Body>, style: Style) {
    if style.gzip && response.size_hint().exact().is_none() {
        set_gzip(response);
    }
}

fn set_gzip(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

fn zip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to a vector cannot fail.
    let _ = io::Write::write_all(&mut encoder, bytes);
    encoder.finish().unwrap_or_default()
}

/// JSON in another encoding.
fn encoded(json: Bytes, style: Style) -> Result<Body, Status> {
    transcode(json, style.wanted.media).map(full)
}

/// JSON bytes in the encoding asked for.
///
/// # Errors
/// 500 for JSON that has no such form.
pub fn transcode(json: Bytes, media: Media) -> Result<Bytes, Status> {
    match media {
        Media::Json => Ok(json),
        Media::Yaml => {
            let value: Value = serde_json::from_slice(&json).map_err(Status::internal)?;
            serde_saphyr::to_string(&value)
                .map(Bytes::from)
                .map_err(Status::internal)
        }
        Media::Protobuf => {
            let value: Value = serde_json::from_slice(&json).map_err(Status::internal)?;
            protobuf::encode(&value).map(Bytes::from).map_err(unwritable)
        }
    }
}

/// What is no protobuf: the client's fault if the kind has no such form, else ours.
fn unwritable(error: EncodeError) -> Status {
    match error {
        EncodeError::UnknownKind { .. } => super::negotiate::not_acceptable(),
        EncodeError::Mistyped(_) => Status::internal(error),
    }
}

/// The items' trees come and go one by one. The list's length stands before it, so its bytes are all made at once; they
/// are fewer than the JSON that the cache has.
fn protobuf_list(mut list: protobuf::List, items: Vec<Arc<Item>>, form: Form) -> Result<Bytes, EncodeError> {
    for item in items {
        let value = match form {
            Form::Partial(version) => serde_json::from_slice(&partial(&item.body, version)).unwrap_or_default(),
            Form::Object | Form::Table(_) => item.value(),
        };
        list.push(&value)?;
    }
    let (bytes, start) = list.finish();
    Ok(Bytes::from(bytes).split_off(start))
}

fn list_metadata(revision: Revision, continue_token: Option<&str>, remaining: Option<u64>) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some(token) = continue_token {
        set(&mut metadata, &["continue"], token);
        if let Some(remaining) = remaining.filter(|&remaining| remaining > 0) {
            set(&mut metadata, &["remainingItemCount"], remaining);
        }
    }
    metadata
}

/// `PartialObjectMetadata` of one object.
pub fn partial(body: &[u8], version: &str) -> Vec<u8> {
    let mut out =
        format!("{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":")
            .into_bytes();
    out.extend_from_slice(table::metadata(body));
    out.push(b'}');
    out
}

/// Adds `Warning: 299` headers: each text once, and not too much of them.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let total: usize = warnings.iter().map(String::len).sum();
    let (mut seen, mut used) = (BTreeSet::new(), 0);
    for text in warnings.iter().filter(|text| seen.insert(text.as_str())) {
        let cut = if total > WARNINGS_TOTAL {
            WARNING_CUT
        } else {
            usize::MAX
        };
        let mut quoted = String::from("299 - \"");
        for character in text.chars().take(cut).filter(|character| !character.is_control()) {
            if matches!(character, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(character);
        }
        quoted.push('"');
        used += quoted.len();
        if used > WARNINGS_TOTAL {
            return;
        }
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// A list's bytes, cut as they are read.
struct Items {
    head: Option<String>,
    items: vec::IntoIter<Arc<Item>>,
    form: Form,
    first: bool,
    ended: bool,
    /// Bytes still to come.
    left: u64,
}

impl Items {
    const TAIL: &'static [u8] = b"]}\n";

    fn new(head: String, items: Vec<Arc<Item>>, form: Form) -> Self {
        let length = |item: &Arc<Item>| match form {
            Form::Partial(version) => partial(&item.body, version).len(),
            Form::Object | Form::Table(_) => item.body.len(),
        };
        let commas = items.len().saturating_sub(1);
        let sum: usize = items.iter().map(length).sum();
        let left = u64::try_from(head.len() + sum + commas + Self::TAIL.len()).unwrap_or(u64::MAX);
        Self {
            head: Some(head),
            items: items.into_iter(),
            form,
            first: true,
            ended: false,
            left,
        }
    }

    /// The next frame; `None` at the end.
    fn frame(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let expected = usize::try_from(self.left).unwrap_or(FRAME).min(FRAME + 8 * 1024);
        let mut out = BytesMut::with_capacity(expected);
        if let Some(head) = self.head.take() {
            out.put_slice(head.as_bytes());
        }
        while out.len() < FRAME {
            let Some(item) = self.items.next() else {
                out.put_slice(Self::TAIL);
                self.ended = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                out.put_u8(b',');
            }
            match self.form {
                Form::Partial(version) => out.put_slice(&partial(&item.body, version)),
                Form::Object | Form::Table(_) => out.put_slice(&item.body),
            }
        }
        self.left = self.left.saturating_sub(u64::try_from(out.len()).unwrap_or(u64::MAX));
        Some(out.freeze())
    }

    fn whole(mut self) -> Bytes {
        let mut out = BytesMut::new();
        while let Some(frame) = self.frame() {
            out.put_slice(&frame);
        }
        out.freeze()
    }
}

impl HttpBody for Items {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(self.get_mut().frame().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A list's bytes, compressed as they are read.
struct Zipped {
    items: Items,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Zipped {
    fn new(items: Items) -> Self {
        let encoder = Some(GzEncoder::new(Vec::new(), Compression::fast()));
        Self { items, encoder }
    }

    fn frame(&mut self) -> io::Result<Option<Bytes>> {
        let Some(encoder) = self.encoder.as_mut() else {
            return Ok(None);
        };
        while let Some(frame) = self.items.frame() {
            io::Write::write_all(encoder, &frame)?;
            if encoder.get_ref().len() >= FRAME / 4 {
                return Ok(Some(std::mem::take(encoder.get_mut()).into()));
            }
        }
        self.encoder
            .take()
            .map(GzEncoder::finish)
            .transpose()
            .map(|rest| rest.map(Bytes::from))
    }
}

impl HttpBody for Zipped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(self.get_mut().frame().transpose().map(|result| result.map(Frame::data)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::cache::Index;

    fn item(number: usize, size: usize) -> Arc<Item> {
        let padding = "x".repeat(size);
        let body = format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"resourceVersion":"{number}","name":"p{number}"}},"spec":{{"x":"{padding}"}}}}"#
        );
        Arc::new(Item {
            key: format!("/registry/pods/x/p{number}").into(),
            revision: Revision::new(1),
            body: body.into(),
            index: Index::default(),
        })
    }

    #[test]
    fn a_list_is_valid_json_of_the_announced_length() {
        for (count, form) in [
            (0, Form::Object),
            (1, Form::Object),
            (300, Form::Object),
            (300, Form::Partial("v1")),
        ] {
            let items = Items::new("{\"items\":[".into(), (0..count).map(|n| item(n, 1000)).collect(), form);
            let announced = items.left;
            let bytes = items.whole();
            assert_eq!(u64::try_from(bytes.len()).unwrap(), announced);
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(value["items"].as_array().unwrap().len(), count);
        }
    }

    #[test]
    fn a_compressed_list_is_the_same_list() {
        let items = || {
            Items::new(
                "{\"items\":[".into(),
                (0..500).map(|n| item(n, 1000)).collect(),
                Form::Object,
            )
        };
        let mut zipped = Zipped::new(items());
        let mut all = Vec::new();
        while let Some(frame) = zipped.frame().unwrap() {
            all.extend_from_slice(&frame);
        }
        let mut plain = Vec::new();
        io::Read::read_to_end(&mut flate2::read::GzDecoder::new(all.as_slice()), &mut plain).unwrap();
        assert_eq!(plain, items().whole());
    }

    /// Budget: 50 ms for the whole answer, with release code; this leaves a debug build ample room and still fails
    /// if anybody parses an item.
    #[test]
    fn ten_thousand_pods_are_spliced_not_parsed() {
        let items: Vec<_> = (0..10_000).map(|number| item(number, 3000)).collect();
        let begun = Instant::now();
        let mut body = Items::new("{\"items\":[".into(), items, Form::Object);
        let mut total = 0;
        while let Some(frame) = body.frame() {
            total += frame.len();
        }
        assert!(total > 30_000_000);
        assert!(begun.elapsed().as_millis() < 500, "{:?}", begun.elapsed());
    }

    #[test]
    fn warnings_are_quoted_and_bounded() {
        let mut response = respond(StatusCode::OK, "x/y", full(Bytes::new()));
        warn(
            &mut response,
            &["unknown field \"a\"".into(), "unknown field \"a\"".into()],
        );
        let texts: Vec<_> = response.headers().get_all(header::WARNING).iter().collect();
        assert_eq!(texts, [r#"299 - "unknown field \"a\"""#]);
        let mut response = respond(StatusCode::OK, "x/y", full(Bytes::new()));
        let many: Vec<String> = (0..1000).map(|n| format!("{n}{}", "w".repeat(500))).collect();
        warn(&mut response, &many);
        assert!(response.headers().get_all(header::WARNING).iter().count() < 20);
    }
}
