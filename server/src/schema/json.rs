//! JSON text to a tree, strictly: duplicate keys are found, depth is bounded, nothing may follow the value.
//!
//! Knows no schema. A duplicate does not fail the parse (the last value wins, as in Go): `fieldValidation` decides later
//! what it means. Source: sigs.k8s.io/json as apimachinery v1.36 uses it for request bodies.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Deeper than any real object (a CRD of thirty nested schemas), far from exhausting a stack.
pub const MAX_DEPTH: usize = 120;
/// More duplicates than anyone reads; the rest of a hostile body is not recorded.
const MAX_DUPLICATES: usize = 100;

/// A tree and what was odd about its text.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The tree.
    pub value: Value,
    /// Paths of keys that came more than once, `spec.containers[0].name`; at most a hundred.
    pub duplicates: Vec<String>,
}

/// The text is not JSON, or nested too deeply. The message names line and column.
#[derive(Debug, thiserror::Error)]
#[error("couldn't parse JSON: {0}")]
pub struct ParseError(#[from] serde_json::Error);

/// Reads one JSON value and nothing else.
///
/// # Errors
/// [`ParseError`] says where the text stops being JSON, in words for the user who wrote it.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ParseError> {
    parse_at(bytes, 0)
}

/// Reads one JSON value that will stand so deep within another.
///
/// # Errors
/// As [`parse`].
pub fn parse_at(bytes: &[u8], depth: usize) -> Result<Parsed, ParseError> {
    let mut state = State::default();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Tree {
        state: &mut state,
        depth,
    }
    .deserialize(&mut reader)?;
    reader.end()?;
    Ok(Parsed {
        value,
        duplicates: state.duplicates,
    })
}

#[derive(Default)]
struct State {
    path: Vec<Step>,
    duplicates: Vec<String>,
}

enum Step {
    Key(String),
    Index(usize),
}

impl State {
    fn duplicate(&mut self, key: &str) {
        if self.duplicates.len() >= MAX_DUPLICATES {
            return;
        }
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Key(name) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(name);
                }
                Step::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
        if !self.duplicates.contains(&path) {
            self.duplicates.push(path);
        }
    }
}

/// One value of the tree being read, at a depth.
struct Tree<'s> {
    state: &'s mut State,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(D::Error::custom(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            self.state.path.push(Step::Index(list.len()));
            let item = access.next_element_seed(Tree {
                state: self.state,
                depth: self.depth + 1,
            })?;
            self.state.path.pop();
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                self.state.duplicate(&key);
            }
            self.state.path.push(Step::Key(key.clone()));
            let value = access.next_value_seed(Tree {
                state: self.state,
                depth: self.depth + 1,
            })?;
            self.state.path.pop();
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicate_keys_are_named_by_their_path_and_the_last_value_wins() {
        let parsed = parse(br#"{"spec":{"a":1,"a":2,"list":[{"x":1},{"x":1,"x":3}]},"spec2":null}"#).unwrap();
        assert_eq!(parsed.duplicates, ["spec.a", "spec.list[1].x"]);
        assert_eq!(
            parsed.value,
            json!({"spec":{"a":2,"list":[{"x":1},{"x":3}]},"spec2":null})
        );
    }

    #[test]
    fn what_is_not_one_json_value_is_refused_with_its_place() {
        for (text, words) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            ("{\"a\":}", "expected value at line 1 column 6"),
            ("{} {}", "trailing characters at line 1 column 4"),
            ("{\"a\":1,}", "trailing comma at line 1 column 8"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        let error = parse(nested(MAX_DEPTH + 2).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("nested deeper"), "{error}");
        assert!(parse(nested(100_000).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn it_reads_what_serde_json_reads(text in "[\\[\\]{}:,0-9eE.\"a-c nulltrue-]{0,40}") {
            let theirs: Option<Value> = serde_json::from_str(&text).ok();
            let ours = parse(text.as_bytes()).ok().map(|parsed| parsed.value);
            prop_assert_eq!(ours, theirs);
        }
    }
}
