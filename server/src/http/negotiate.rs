//! Content negotiation: which bytes a client sends, and which it wants back. Pure.
//!
//! Source: Kubernetes v1.36, `apiserver/pkg/endpoints/handlers/negotiation`.

use agent::wire::status::{Reason, Status};

use crate::schema::openapi::v2::Encoding;

/// What we read and write, in the order that errors list.
const TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// OpenAPI v2 as gnostic's protobuf.
const OPENAPI2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// An encoding of objects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Media {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

/// What an object is turned into before it is encoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// Itself.
    Object,
    /// A `Table`, of `meta.k8s.io/v1` or `v1beta1`.
    Table(&'static str),
    /// `PartialObjectMetadata` or its list, of `meta.k8s.io/v1` or `v1beta1`.
    Partial(&'static str),
}

/// What the client gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// Encoding.
    pub media: Media,
    /// Form.
    pub form: Form,
}

/// One clause of an Accept header.
#[derive(Clone, Debug, Default)]
pub struct Clause {
    /// `application/json`.
    pub media: String,
    parameters: Vec<(String, String)>,
}

impl Clause {
    /// A parameter's value.
    pub fn get(&self, key: &str) -> &str {
        let found = self.parameters.iter().find(|(name, _)| name == key);
        found.map_or("", |(_, value)| value)
    }
}

impl Media {
    /// As `Content-Type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// The clauses of an Accept header, best first; clauses of one quality keep their order.
pub fn clauses(accept: &str) -> Vec<Clause> {
    let mut clauses: Vec<(u32, Clause)> = Vec::new();
    for part in accept.split(',') {
        let mut pieces = part.split(';').map(str::trim);
        let media = pieces.next().unwrap_or_default().to_ascii_lowercase();
        if media.is_empty() {
            continue;
        }
        let pair = |piece: &str| {
            let (key, value) = piece.split_once('=')?;
            Some((
                key.trim().to_ascii_lowercase(),
                value.trim().trim_matches('"').to_owned(),
            ))
        };
        let clause = Clause {
            media,
            parameters: pieces.filter_map(pair).collect(),
        };
        let quality = thousandths(clause.get("q"));
        if quality > 0 {
            clauses.push((quality, clause));
        }
    }
    clauses.sort_by_key(|(quality, _)| std::cmp::Reverse(*quality));
    clauses.into_iter().map(|(_, clause)| clause).collect()
}

fn thousandths(quality: &str) -> u32 {
    let (whole, fraction) = quality.split_once('.').unwrap_or((quality, ""));
    if quality.is_empty() || whole != "0" {
        return 1000;
    }
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    digits.parse().unwrap_or(1000)
}

/// Chooses for a resource; `convertible`: it can be a table or partial metadata, `protobuf`: it has a protobuf form.
///
/// # Errors
/// 406 when nothing that we have is acceptable.
pub fn accept(header: &str, convertible: bool, protobuf: bool) -> Result<Wanted, Status> {
    let clauses = clauses(header);
    if clauses.is_empty() {
        let (media, form) = (Media::Json, Form::Object);
        return Ok(Wanted { media, form });
    }
    // JSON before protobuf whatever the client's order: it is what we store, and all Go clients take both.
    let json_first = clauses.iter().filter(|clause| !clause.media.contains("protobuf"));
    let protobuf_last = clauses.iter().filter(|clause| clause.media.contains("protobuf"));
    json_first
        .chain(protobuf_last)
        .find_map(|clause| wanted(clause, convertible, protobuf))
        .ok_or_else(not_acceptable)
}

/// The 406.
pub fn not_acceptable() -> Status {
    let message = format!("only the following media types are accepted: {TYPES}");
    Status::failure(Reason::NotAcceptable, message)
}

fn wanted(clause: &Clause, convertible: bool, protobuf: bool) -> Option<Wanted> {
    let media = match clause.media.as_str() {
        "application/json" | "*/*" | "application/*" => Media::Json,
        "application/yaml" => Media::Yaml,
        "application/vnd.kubernetes.protobuf" if protobuf => Media::Protobuf,
        _ => return None,
    };
    let version = match clause.get("v") {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => "",
    };
    let group = clause.get("g") == "meta.k8s.io" && !version.is_empty();
    let form = match clause.get("as") {
        "" => Form::Object,
        "Table" if convertible && group && media != Media::Protobuf => Form::Table(version),
        "PartialObjectMetadata" | "PartialObjectMetadataList" if convertible && group => Form::Partial(version),
        _ => return None,
    };
    Some(Wanted { media, form })
}

/// Chooses for `/openapi/v2`: how it is written, and what that is called.
///
/// Go clients ask for the protobuf under a name with `@`, which is no media type; the answer has the right one. Source:
/// kube-openapi `pkg/handler`, `mimePb` and `mimePbGz`; client-go v1.32 `discovery.OpenAPISchema`.
///
/// # Errors
/// 406 when neither is acceptable.
pub fn openapi2(header: &str) -> Result<(Encoding, &'static str), Status> {
    let clauses = clauses(header);
    if clauses.is_empty() {
        return Ok((Encoding::Json, "application/json"));
    }
    let wanted = |clause: &Clause| match clause.media.as_str() {
        "application/json" | "*/*" | "application/*" => Some((Encoding::Json, "application/json")),
        OPENAPI2 | "application/com.github.proto-openapi.spec.v2@v1.0+protobuf" => Some((Encoding::Protobuf, OPENAPI2)),
        _ => None,
    };
    clauses.iter().find_map(wanted).ok_or_else(not_acceptable)
}

/// The encoding of a request body by its Content-Type.
///
/// # Errors
/// 415 for what we cannot read.
pub fn content_type(header: &str, protobuf: bool) -> Result<Media, Status> {
    let media = header.split(';').next().unwrap_or_default().trim();
    match media.to_ascii_lowercase().as_str() {
        "" | "application/json" => Ok(Media::Json),
        "application/yaml" => Ok(Media::Yaml),
        "application/vnd.kubernetes.protobuf" if protobuf => Ok(Media::Protobuf),
        _ => Err(unsupported(TYPES)),
    }
}

/// The 415; `types`: what would have been accepted.
pub fn unsupported(types: &str) -> Status {
    let text = "the body of the request was in an unknown format - accepted media types include:";
    Status::failure(Reason::UnsupportedMediaType, format!("{text} {types}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_they_ask_for() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        for (header, convertible, expected) in [
            ("", true, Some((Media::Json, Form::Object))),
            ("*/*", true, Some((Media::Json, Form::Object))),
            (kubectl, true, Some((Media::Json, Form::Table("v1")))),
            (kubectl, false, Some((Media::Json, Form::Object))),
            (metadata, true, Some((Media::Json, Form::Partial("v1")))),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                true,
                Some((Media::Json, Form::Object)),
            ),
            (
                "application/vnd.kubernetes.protobuf",
                true,
                Some((Media::Protobuf, Form::Object)),
            ),
            (
                "application/json;q=0.1, application/yaml;q=0.9",
                true,
                Some((Media::Yaml, Form::Object)),
            ),
            ("application/json;stream=watch", true, Some((Media::Json, Form::Object))),
            ("text/html, */*;q=0.8", true, Some((Media::Json, Form::Object))),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", false, None),
            ("text/plain", true, None),
            ("application/json;q=0", true, Some((Media::Json, Form::Object))),
        ] {
            let got = accept(header, convertible, true)
                .ok()
                .map(|wanted| (wanted.media, wanted.form));
            assert_eq!(got, expected, "{header}");
        }
        assert_eq!(accept("text/plain", true, true).unwrap_err().code, 406);
    }

    #[test]
    fn openapi_v2_is_had_as_json_and_under_both_names_of_its_protobuf() {
        let protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
        for (header, expected) in [
            ("", Some((Encoding::Json, "application/json"))),
            ("application/json, */*", Some((Encoding::Json, "application/json"))),
            (protobuf, Some((Encoding::Protobuf, OPENAPI2))),
            (OPENAPI2, Some((Encoding::Protobuf, OPENAPI2))),
            ("application/com.github.proto-openapi.spec.v3@v1.0+protobuf", None),
        ] {
            assert_eq!(openapi2(header).ok(), expected, "{header}");
        }
    }

    #[test]
    fn bodies_are_known_by_their_type() {
        assert_eq!(content_type("", true), Ok(Media::Json));
        assert_eq!(content_type("application/json; charset=utf-8", true), Ok(Media::Json));
        assert_eq!(
            content_type("application/vnd.kubernetes.protobuf", true),
            Ok(Media::Protobuf)
        );
        assert_eq!(
            content_type("application/vnd.kubernetes.protobuf", false)
                .unwrap_err()
                .code,
            415
        );
        assert_eq!(content_type("text/plain", true).unwrap_err().code, 415);
    }
}
