//! Percent encoding of URLs, undone: paths, queries, and header names that carry keys.
//!
//! Source: RFC 3986, 2.1; `application/x-www-form-urlencoded` for the `+` of queries.

/// Undoes the encoding once, as in a path. `None`: an escape is broken, or the bytes are not UTF-8.
pub fn decode(text: &str) -> Option<String> {
    undo(text, false)
}

/// As [`decode`], and a `+` is a space: the keys and values of a query.
pub fn decode_query(text: &str) -> Option<String> {
    undo(text, true)
}

fn undo(text: &str, query: bool) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            b'+' if query => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_once() {
        for (text, path, query) in [
            ("plain", Some("plain"), Some("plain")),
            ("a%2Fb", Some("a/b"), Some("a/b")),
            ("a%252Fb", Some("a%2Fb"), Some("a%2Fb")),
            ("ls+-l", Some("ls+-l"), Some("ls -l")),
            ("%C3%a4", Some("\u{e4}"), Some("\u{e4}")),
            ("%", None, None),
            ("%4", None, None),
            ("%zz", None, None),
            ("%ff", None, None),
        ] {
            assert_eq!(decode(text).as_deref(), path, "{text}");
            assert_eq!(decode_query(text).as_deref(), query, "{text}");
        }
    }
}
