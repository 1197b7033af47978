//! What a request looks like: verbs, content types, and how long to wait after a refusal. Pure.

use std::time::Duration;

use crate::wire::status::{Reason, STALE, Status};

/// How the body of a patch is applied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PatchType {
    /// RFC 7386.
    Merge,
    /// Kubernetes' own, with merge keys.
    Strategic,
    /// RFC 6902.
    Json,
}

impl PatchType {
    /// The `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Json => "application/json-patch+json",
        }
    }
}

/// The longest that a server may make the agent wait; a wrong header must not park a node.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How long the server asked to be left alone, if it did; at most a minute.
pub fn retry_after(status: &Status) -> Option<Duration> {
    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    (seconds > 0).then(|| Duration::from_secs(seconds.into()).min(RETRY_AFTER_MAX))
}

/// The `Status` in an answer that is no success; one is made up where the body holds none (a proxy's page, say).
///
/// `header`: the value of `Retry-After`, which wins over a missing one in the body.
pub fn status_of(code: u16, header: Option<&str>, body: &[u8]) -> Status {
    let mut status = serde_json::from_slice::<Status>(body)
        .ok()
        .filter(|status| status.kind == "Status");
    let status = status.get_or_insert_with(|| {
        let text: String = String::from_utf8_lossy(body.get(..200).unwrap_or(body))
            .trim()
            .chars()
            .collect();
        // Whoever reads it later has no number.
        let text = match text.is_empty() {
            true => format!("{code}, without a word"),
            false => text,
        };
        let mut made = Status::failure(reason_of(code), text);
        made.code = code;
        made
    });
    if status.code == 0 {
        status.code = code;
    }
    let seconds = header.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    match seconds > 0 && retry_after(status).is_none() {
        true => status.clone().retry_after(seconds),
        false => status.clone(),
    }
}

/// Whether the server warns that its answer may be older than what was asked for. `warnings`: values of `Warning`.
pub fn is_stale<'a>(mut warnings: impl Iterator<Item = &'a [u8]>) -> bool {
    warnings.any(|value| value.windows(STALE.len()).any(|part| part == STALE.as_bytes()))
}

const fn reason_of(code: u16) -> Reason {
    match code {
        400 => Reason::BadRequest,
        401 => Reason::Unauthorized,
        403 => Reason::Forbidden,
        404 => Reason::NotFound,
        405 => Reason::MethodNotAllowed,
        409 => Reason::Conflict,
        410 => Reason::Expired,
        413 => Reason::RequestEntityTooLarge,
        415 => Reason::UnsupportedMediaType,
        422 => Reason::Invalid,
        429 => Reason::TooManyRequests,
        503 => Reason::ServiceUnavailable,
        504 => Reason::Timeout,
        _ => Reason::InternalError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_become_statuses_whatever_the_body() {
        let kubernetes = serde_json::to_vec(&Status::not_found("", "pods", "web")).unwrap();
        assert!(status_of(404, None, &kubernetes).is(Reason::NotFound));
        let proxy = status_of(503, Some("7"), b"<html>busy</html>");
        assert_eq!((proxy.code, proxy.message.as_str()), (503, "<html>busy</html>"));
        assert_eq!(retry_after(&proxy), Some(Duration::from_secs(7)));
        assert_eq!(status_of(418, None, b"{}").code, 418);
    }

    #[test]
    fn waits_are_bounded() {
        let status = Status::failure(Reason::TooManyRequests, "").retry_after(86_400);
        assert_eq!(retry_after(&status), Some(RETRY_AFTER_MAX));
        assert_eq!(retry_after(&Status::failure(Reason::TooManyRequests, "")), None);
    }

    #[test]
    fn only_the_warning_of_a_server_without_datastore_makes_an_answer_stale() {
        let of = |values: &[&'static str]| is_stale(values.iter().map(|value| value.as_bytes()));
        assert!(!of(&[]) && !of(&["299 - \"v1 ComponentStatus is deprecated in v1.19+\""]));
        let stale: &str = Box::leak(format!("299 - \"{STALE}\"").into_boxed_str());
        assert!(of(&[stale]) && of(&["299 - \"another\"", stale]));
    }
}
