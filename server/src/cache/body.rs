//! Puts `resourceVersion` into a stored value, and another one in its place.
//!
//! Bytes in, bytes out: a stored value is compact JSON that begins `{"apiVersion":…,"kind":…,"metadata":{` and has no
//! `resourceVersion` (the registry writes it so). Anything else is passed on as it is.

use agent::units::Revision;
use bytes::Bytes;

const OPENING: &[u8] = b"\"metadata\":{";
const FIELD: &[u8] = b"\"resourceVersion\":\"";

/// The value with `metadata.resourceVersion` as the first field of its metadata.
pub(super) fn splice(value: &[u8], revision: Revision) -> Bytes {
    let Some((head, tail)) = split(value) else {
        return Bytes::copy_from_slice(value);
    };
    join(head, revision, tail)
}

/// The body with another `resourceVersion` than [`splice`] gave it.
pub(super) fn resplice(body: &Bytes, revision: Revision) -> Bytes {
    let Some((head, tail)) = split(body) else {
        return body.clone();
    };
    let rest = tail.strip_prefix(FIELD).and_then(|after| {
        let end = after.iter().position(|byte| *byte == b'"')?;
        let (_, rest) = after.split_at_checked(end + 1)?;
        Some(rest.strip_prefix(b",").unwrap_or(rest))
    });
    join(head, revision, rest.unwrap_or(tail))
}

fn split(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = value.windows(OPENING.len()).position(|window| window == OPENING)?;
    value.split_at_checked(at + OPENING.len())
}

fn join(head: &[u8], revision: Revision, tail: &[u8]) -> Bytes {
    let number = revision.to_string();
    let comma: &[u8] = if tail.first() == Some(&b'}') { b"" } else { b"," };
    Bytes::from([head, FIELD, number.as_bytes(), b"\"", comma, tail].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_goes_first_into_the_metadata_and_can_be_replaced() {
        for (stored, body, again) in [
            (
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"metadata":{}}}"#,
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"7","name":"a"},"spec":{"metadata":{}}}"#,
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":"120","name":"a"},"spec":{"metadata":{}}}"#,
            ),
            (
                r#"{"kind":"X","metadata":{}}"#,
                r#"{"kind":"X","metadata":{"resourceVersion":"7"}}"#,
                r#"{"kind":"X","metadata":{"resourceVersion":"120"}}"#,
            ),
            ("no object", "no object", "no object"),
        ] {
            let spliced = splice(stored.as_bytes(), Revision::new(7));
            assert_eq!(spliced, body);
            assert_eq!(resplice(&spliced, Revision::new(120)), again);
        }
    }
}
