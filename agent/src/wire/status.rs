//! The Kubernetes `Status` object: how every failed request explains itself.
//!
//! Source: `docs` of the API conventions, and apimachinery v1.36 `pkg/api/errors`. Clients match on `reason`, `code` and
//! parts of `message`; change a text here only with the client in view.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The warning on an answer that should be the present and may be the past: our servers put it there, our agents heed it.
pub const STALE: &str = "the datastore does not answer: this is what the server saw last";

/// What went wrong (or right), for a client to act on and a person to read.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `"Status"`.
    pub kind: String,
    /// `"v1"`.
    pub api_version: String,
    /// Empty, or for an expired continue token the token to go on with.
    pub metadata: ListMeta,
    /// `"Success"` or `"Failure"`.
    pub status: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// For programs: one of [`Reason`]'s names.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Which object, and each single fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
    /// The HTTP status code.
    #[serde(skip_serializing_if = "is_zero")]
    pub code: u16,
}

/// List metadata as it occurs in a [`Status`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ListMeta {
    /// A continue token that still works.
    #[serde(rename = "continue", skip_serializing_if = "String::is_empty")]
    pub continue_token: String,
}

/// The object a [`Status`] is about.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    /// Object name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group, empty for core.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Plural resource name, or the kind for `Invalid`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Object uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Single faults.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// Seconds a client waits before it tries again; also sent as `Retry-After`. Never on a final failure.
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub retry_after_seconds: u32,
}

/// One fault.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Cause {
    /// Such as `FieldValueRequired`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Field path, such as `spec.containers[0].image`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn is_zero(code: &u16) -> bool {
    *code == 0
}

fn is_zero_u32(seconds: &u32) -> bool {
    *seconds == 0
}

/// Why a request failed, in the words of the API; each has one HTTP code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are the API's own")]
pub enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    Invalid,
    TooManyRequests,
    InternalError,
    ServerTimeout,
    ServiceUnavailable,
    Timeout,
}

impl Reason {
    /// The API's spelling.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Expired => "Expired",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::Invalid => "Invalid",
            Self::TooManyRequests => "TooManyRequests",
            Self::InternalError => "InternalError",
            Self::ServerTimeout => "ServerTimeout",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::Timeout => "Timeout",
        }
    }

    /// The HTTP status code.
    pub const fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError | Self::ServerTimeout => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }
}

impl Status {
    /// A failure with this reason and message and no details.
    pub fn failure(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            status: "Failure".into(),
            message: message.into(),
            reason: reason.name().into(),
            code: reason.code(),
            ..Self::default()
        }
    }

    /// A success with these details, as a delete answers.
    pub fn success(details: Details) -> Self {
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            status: "Success".into(),
            details: Some(Box::new(details)),
            ..Self::default()
        }
    }

    /// Names the object: `group` and plural `resource` (or kind), and its name.
    #[must_use]
    pub fn about(mut self, group: &str, resource: &str, name: &str) -> Self {
        let details = self.details.get_or_insert_default();
        details.group = group.into();
        details.kind = resource.into();
        details.name = name.into();
        self
    }

    /// Asks the client to come again after so many seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// Adds a single fault.
    #[must_use]
    pub fn cause(mut self, reason: &str, message: impl Into<String>, field: impl Into<String>) -> Self {
        let cause = Cause {
            reason: reason.into(),
            message: message.into(),
            field: field.into(),
        };
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    /// 404 of an object: `pods "web" not found`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", group_resource(group, resource));
        Self::failure(Reason::NotFound, message).about(group, resource, name)
    }

    /// 404 of a route.
    pub fn no_such_route() -> Self {
        Self::failure(Reason::NotFound, "the server could not find the requested resource")
    }

    /// 409 of a create: `pods "web" already exists`.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", group_resource(group, resource));
        Self::failure(Reason::AlreadyExists, message).about(group, resource, name)
    }

    /// 409 of a write whose object has moved on.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            group_resource(group, resource)
        );
        Self::failure(Reason::Conflict, message).about(group, resource, name)
    }

    /// The usual reason of [`Status::conflict`]; clients match on this text.
    pub const MODIFIED: &'static str =
        "the object has been modified; please apply your changes to the latest version and try again";

    /// 403 of admission or authorization: `pods "web" is forbidden: why`.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let resource_text = group_resource(group, resource);
        let message = match name {
            "" => format!("{resource_text} is forbidden: {why}"),
            _ => format!("{resource_text} \"{name}\" is forbidden: {why}"),
        };
        Self::failure(Reason::Forbidden, message).about(group, resource, name)
    }

    /// 422: `Pod "web" is invalid: …`, with a cause per fault (`reason`, `field`, text without the field).
    pub fn invalid(group: &str, kind: &str, name: &str, faults: &[(&str, String, String)]) -> Self {
        let texts: Vec<String> = faults
            .iter()
            .map(|(_, field, text)| format!("{field}: {text}"))
            .collect();
        let list = match texts.as_slice() {
            [single] => single.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        let message = format!("{} \"{name}\" is invalid: {list}", group_resource(group, kind));
        let mut status = Self::failure(Reason::Invalid, message).about(group, kind, name);
        for (reason, field, text) in faults {
            status = status.cause(reason, text.clone(), field.clone());
        }
        status
    }

    /// 500 with what a client may know.
    pub fn internal(what: impl fmt::Display) -> Self {
        Self::failure(Reason::InternalError, format!("Internal error occurred: {what}"))
    }

    /// 503 that passes.
    pub fn unavailable(what: impl Into<String>) -> Self {
        Self::failure(Reason::ServiceUnavailable, what).retry_after(1)
    }

    /// Whether this is a failure with that reason.
    pub fn is(&self, reason: Reason) -> bool {
        self.reason == reason.name()
    }
}

/// The plural name, with `.group` appended when there is one: `deployments.apps`.
pub fn group_resource(group: &str, resource: &str) -> String {
    match group {
        "" => resource.to_owned(),
        _ => format!("{resource}.{group}"),
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.as_str() {
            "" => write!(f, "{} ({})", self.reason, self.code),
            message => f.write_str(message),
        }
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_ones_clients_match_on() {
        assert_eq!(Status::not_found("", "pods", "web").message, "pods \"web\" not found");
        assert_eq!(
            Status::already_exists("apps", "deployments", "web").message,
            "deployments.apps \"web\" already exists"
        );
        let one = [("FieldValueRequired", "spec.x".to_owned(), "Required value".to_owned())];
        assert_eq!(
            Status::invalid("apps", "Deployment", "web", &one).message,
            "Deployment.apps \"web\" is invalid: spec.x: Required value"
        );
    }

    #[test]
    fn a_failure_is_written_as_clients_expect() {
        let text = serde_json::to_string(&Status::not_found("", "pods", "web")).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"web\" not found","reason":"NotFound","details":{"name":"web","kind":"pods"},"code":404}"#
        );
    }
}
