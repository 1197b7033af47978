//! The shapes that cells of several kinds have.

use agent::wire::object::{at, integer, list, text as text_at};
use serde_json::Value;

/// What stands where there is nothing.
pub const NONE: &str = "<none>";

/// The text at a path.
pub fn text(object: &Value, path: &[&str]) -> Value {
    text_at(object, path).into()
}

/// The text at a path, or `<none>`.
pub fn text_or_none(object: &Value, path: &[&str]) -> Value {
    or_none(text_at(object, path).to_owned())
}

/// The number at a path, else 0.
pub fn number(object: &Value, path: &[&str]) -> Value {
    integer(object, path).unwrap_or(0).into()
}

/// The boolean at a path as text, else `false`.
pub fn boolean(object: &Value, path: &[&str]) -> Value {
    let value = at(object, path).and_then(Value::as_bool).unwrap_or(false);
    value.to_string().into()
}

/// Text, or `<none>`.
pub fn or_none(text: String) -> Value {
    if text.is_empty() { NONE.into() } else { text.into() }
}

/// `3/5`.
pub fn of(part: i64, whole: i64) -> Value {
    format!("{part}/{whole}").into()
}

/// Texts with commas between.
pub fn joined<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<&str> = texts.into_iter().collect();
    texts.join(",")
}

/// Scalar at a path as text: int-or-string values.
pub fn scalar(object: &Value, path: &[&str]) -> Option<String> {
    match at(object, path)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A label selector as kubectl writes it: `app=web,tier in (a,b)`.
///
/// Source: apimachinery v1.36 `metav1.FormatLabelSelector`.
pub fn selector(selector: Option<&Value>) -> Value {
    let Some(selector) = selector else { return NONE.into() };
    let mut terms = map(selector.get("matchLabels"));
    for expression in list(selector, &["matchExpressions"]) {
        let key = text_at(expression, &["key"]);
        let values = joined(list(expression, &["values"]).iter().filter_map(Value::as_str));
        terms.push(match text_at(expression, &["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    or_none(terms.join(","))
}

/// A plain map as kubectl writes it: `app=web,tier=front`.
pub fn map(map: Option<&Value>) -> Vec<String> {
    let pairs = map.and_then(Value::as_object).into_iter().flatten();
    pairs
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_reads_as_kubectl_writes_it() {
        for (given, wanted) in [
            (json!({"matchLabels": {"b": "2", "a": "1"}}), "a=1,b=2"),
            (
                json!({"matchExpressions": [{"key": "t", "operator": "In", "values": ["x", "y"]}, {"key": "u", "operator": "DoesNotExist"}]}),
                "t in (x,y),!u",
            ),
            (json!({}), "<none>"),
        ] {
            assert_eq!(selector(Some(&given)), wanted);
        }
        assert_eq!(selector(None), "<none>");
    }
}
