//! Request bodies: read within bounds, decoded to a tree by their media type.
//!
//! Knows nothing of kinds; what a tree must look like is the registry's. Source of texts: Kubernetes v1.36,
//! `apiserver/pkg/endpoints/handlers/rest.go` (`limitedReadBody`) and `.../create.go`.

use agent::wire::object::{integer, text};
use agent::wire::status::{Reason, Status};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap};
use serde_json::Value;

use super::negotiate::{Media, content_type, unsupported};
use super::query::Query;
use crate::request::{DeleteOptions, Patch};
use crate::schema::{json, protobuf};

/// Upstream's `MaxRequestBodyBytes`.
const MAX_BODY: usize = 3 * 1024 * 1024;
/// Of a larger body so much is heard out, because a client that is still writing does not read its refusal.
const MAX_HEARD: usize = 4 * MAX_BODY;
/// Upstream's bound on JSON patches.
const MAX_OPERATIONS: usize = 10_000;
const PATCHES: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";

/// A body as a tree.
pub struct Decoded {
    /// The tree.
    pub value: Value,
    /// Keys that came twice.
    pub duplicates: Vec<String>,
}

/// Reads all of a body.
///
/// # Errors
/// 413 when it is too large, 400 when it breaks off.
pub async fn read(mut body: Incoming) -> Result<Bytes, Status> {
    let (mut read, mut total) = (BytesMut::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| bad(format!("the body of the request could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        total = total.saturating_add(data.len());
        if total <= MAX_BODY {
            // A body of one frame, as most are, is not copied.
            if read.is_empty() && body.is_end_stream() {
                return Ok(data);
            }
            read.extend_from_slice(&data);
        } else if total > MAX_HEARD {
            break;
        }
    }
    if total > MAX_BODY {
        return Err(too_large());
    }
    Ok(read.freeze())
}

fn too_large() -> Status {
    let message = format!("Request entity too large: limit is {MAX_BODY}");
    Status::failure(Reason::RequestEntityTooLarge, message)
}

/// The tree of a body. `expected`: version and kind that the place stands for, if they have a protobuf form.
///
/// # Errors
/// 415 for media types that we do not read, 400 for what is not of its type.
pub fn decode(headers: &HeaderMap, bytes: &[u8], expected: Option<(&str, &str)>) -> Result<Decoded, Status> {
    let media = content_type(header(headers), expected.is_some())?;
    decode_as(media, bytes, expected.unwrap_or_default())
}

fn header(headers: &HeaderMap) -> &str {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn decode_as(media: Media, bytes: &[u8], expected: (&str, &str)) -> Result<Decoded, Status> {
    let (value, duplicates) = match media {
        Media::Json => {
            let parsed = json::parse(bytes).map_err(|error| bad(error.to_string()))?;
            (parsed.value, parsed.duplicates)
        }
        Media::Yaml => (yaml(bytes)?, Vec::new()),
        Media::Protobuf => {
            let value = protobuf::decode(bytes, expected).map_err(|error| bad(error.to_string()))?;
            (value, Vec::new())
        }
    };
    if !value.is_object() {
        return Err(bad("the body of the request is not an object"));
    }
    Ok(Decoded { value, duplicates })
}

fn yaml(bytes: &[u8]) -> Result<Value, Status> {
    let unread = |error: String| bad(format!("error converting YAML to JSON: {error}"));
    let text = std::str::from_utf8(bytes).map_err(|error| unread(error.to_string()))?;
    serde_saphyr::from_str(text).map_err(|error| unread(error.to_string()))
}

/// A patch by its content type.
///
/// # Errors
/// 415 for other types, 400 for what is not a patch.
pub fn patch(headers: &HeaderMap, bytes: &[u8], builtin: bool) -> Result<(Patch, Vec<String>), Status> {
    let media = header(headers)
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let parsed = || json::parse(bytes).map_err(|error| bad(error.to_string()));
    let object = || {
        let parsed = parsed()?;
        match parsed.value.is_object() {
            true => Ok((parsed.value, parsed.duplicates)),
            false => Err(bad("the patch is not an object")),
        }
    };
    match media.as_str() {
        "application/json-patch+json" => {
            let value = parsed()?.value;
            let Some(operations) = value.as_array() else {
                return Err(bad("a JSON patch is a list of operations"));
            };
            if operations.len() > MAX_OPERATIONS {
                let message = format!(
                    "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                    operations.len()
                );
                return Err(Status::failure(Reason::RequestEntityTooLarge, message));
            }
            Ok((Patch::Json(value), Vec::new()))
        }
        "application/merge-patch+json" => object().map(|(value, duplicates)| (Patch::Merge(value), duplicates)),
        "application/strategic-merge-patch+json" if builtin => {
            object().map(|(value, duplicates)| (Patch::Strategic(value), duplicates))
        }
        _ => Err(unsupported(PATCHES)),
    }
}

/// The options of a deletion: those of the body if there is one, else those of the query.
///
/// # Errors
/// 400 or 422 for options that cannot be.
pub fn delete_options(headers: &HeaderMap, bytes: &[u8], query: &Query) -> Result<DeleteOptions, Status> {
    if bytes.is_empty() {
        return query.delete();
    }
    let value = decode(headers, bytes, Some(("v1", "DeleteOptions")))?.value;
    let kind = text(&value, &["kind"]);
    if !matches!(kind, "" | "DeleteOptions") {
        return Err(bad(format!(
            "decoded object cannot be converted to DeleteOptions: it is a {kind}"
        )));
    }
    let some = |path: &[&str]| Some(text(&value, path).to_owned()).filter(|text| !text.is_empty());
    let policy = some(&["propagationPolicy"]);
    let orphan = value.get("orphanDependents").and_then(Value::as_bool);
    let fault = |field: &str, text: String| {
        let fault = [("FieldValueInvalid", field.to_owned(), text)];
        Status::invalid("meta.k8s.io", "DeleteOptions", "", &fault)
    };
    if policy.is_some() && orphan.is_some() {
        let text = "Invalid value: orphanDependents and deletionPropagation cannot be both set".to_owned();
        return Err(fault("propagationPolicy", text));
    }
    if let Some(policy) = policy
        .as_deref()
        .filter(|policy| !matches!(*policy, "Orphan" | "Background" | "Foreground"))
    {
        let known = "supported values: \"Background\", \"Foreground\", \"Orphan\", \"nil\"";
        return Err(fault(
            "propagationPolicy",
            format!("Unsupported value: {policy:?}: {known}"),
        ));
    }
    let dry_run = match value
        .get("dryRun")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice)
    {
        [] => query.dry_run()?,
        all if all.iter().all(|one| one == "All") => true,
        _ => {
            return Err(fault(
                "dryRun",
                "Unsupported value: supported values: \"All\"".to_owned(),
            ));
        }
    };
    let orphaned = orphan.map(|orphan| if orphan { "Orphan" } else { "Background" }.to_owned());
    Ok(DeleteOptions {
        grace: integer(&value, &["gracePeriodSeconds"]),
        propagation: policy.or(orphaned),
        uid: some(&["preconditions", "uid"]),
        resource_version: some(&["preconditions", "resourceVersion"]),
        dry_run,
    })
}

fn bad(message: impl Into<String>) -> Status {
    Status::failure(Reason::BadRequest, message)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn headers(media: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media))])
    }

    #[test]
    fn a_body_is_read_by_its_type_or_refused() {
        for (media, body, expected) in [
            ("", "{\"a\":1}", Ok("{\"a\":1}")),
            ("application/json", "{\"a\":1,}", Err(400)),
            ("application/json", "[1]", Err(400)),
            ("application/json", "{} {}", Err(400)),
            ("application/yaml", "a: 1\nb: [x]\n", Ok("{\"a\":1,\"b\":[\"x\"]}")),
            ("application/yaml", "a: [", Err(400)),
            ("application/yaml", "- a", Err(400)),
            ("text/plain", "{}", Err(415)),
            ("application/vnd.kubernetes.protobuf", "not protobuf", Err(400)),
        ] {
            let got = decode(&headers(media), body.as_bytes(), Some(("v1", "ConfigMap")));
            let got = got
                .map(|decoded| decoded.value.to_string())
                .map_err(|status| status.code);
            assert_eq!(got, expected.map(ToOwned::to_owned), "{media} {body}");
        }
    }

    #[test]
    fn yaml_bombs_are_refused() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let alias = vec![format!("*a{}", level - 1); 10].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{alias}]\n"));
        }
        assert_eq!(
            decode(&headers("application/yaml"), bomb.as_bytes(), None)
                .err()
                .map(|status| status.code),
            Some(400)
        );
    }

    #[test]
    fn patches_are_known_by_their_type() {
        for (media, body, builtin, expected) in [
            ("application/json-patch+json", "[]", true, Ok("json")),
            ("application/json-patch+json", "{}", true, Err(400)),
            ("application/merge-patch+json", "{}", true, Ok("merge")),
            ("application/merge-patch+json", "[]", true, Err(400)),
            (
                "application/strategic-merge-patch+json; charset=utf-8",
                "{}",
                true,
                Ok("strategic"),
            ),
            ("application/strategic-merge-patch+json", "{}", false, Err(415)),
            ("application/apply-patch+yaml", "{}", true, Err(415)),
            ("application/json", "{}", true, Err(415)),
        ] {
            let got = patch(&headers(media), body.as_bytes(), builtin);
            let got = got.map_err(|status| status.code).map(|(patch, _)| match patch {
                Patch::Json(_) => "json",
                Patch::Merge(_) => "merge",
                Patch::Strategic(_) => "strategic",
            });
            assert_eq!(got, expected, "{media} {body}");
        }
    }

    #[test]
    fn deletion_options_come_from_the_body_or_the_query() {
        let query = Query::parse("gracePeriodSeconds=5&propagationPolicy=Orphan").unwrap();
        let read = |body: &str| delete_options(&headers("application/json"), body.as_bytes(), &query);
        assert_eq!(read("").unwrap().grace, Some(5));
        let body = r#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0,"preconditions":{"uid":"u"},"dryRun":["All"]}"#;
        let options = read(body).unwrap();
        assert_eq!(
            (options.grace, options.uid.as_deref(), options.dry_run),
            (Some(0), Some("u"), true)
        );
        for (body, code) in [
            (r#"{"kind":"Pod"}"#, 400),
            (r#"{"propagationPolicy":"Sideways"}"#, 422),
            (r#"{"propagationPolicy":"Orphan","orphanDependents":true}"#, 422),
            (r#"{"dryRun":["Some"]}"#, 422),
        ] {
            assert_eq!(read(body).unwrap_err().code, code, "{body}");
        }
    }
}
