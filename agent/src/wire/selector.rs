//! Label and field selectors: text in, a predicate out.
//!
//! Source: apimachinery v1.36 `pkg/labels` and `pkg/fields`. All requirements of a selector must hold.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A parsed `labelSelector`; the empty one selects everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Labels(Vec<Requirement>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    /// Also holds when the key is absent.
    NotIn(Vec<String>),
    Above(i64),
    Below(i64),
}

/// A selector that cannot be read; the text names the place.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unable to parse requirement: {0}")]
pub struct SelectorError(String);

impl Labels {
    /// Everything.
    pub const fn everything() -> Self {
        Self(Vec::new())
    }

    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// [`SelectorError`] for anything outside that grammar, label syntax included.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let end = top_level_comma(rest);
            let (one, after) = rest.split_at(end);
            requirements.push(parse_requirement(one.trim())?);
            rest = match after.strip_prefix(',') {
                Some(more) if more.trim().is_empty() => {
                    return Err(SelectorError("found '', expected: identifier after ','".into()));
                }
                Some(more) => more.trim(),
                None => "",
            };
        }
        Ok(Self(requirements))
    }

    /// Exactly these labels, as in a Service's `spec.selector`.
    pub fn exactly<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let equals = |(key, value): (&str, &str)| Requirement {
            key: key.into(),
            test: Test::In(vec![value.into()]),
        };
        Self(pairs.into_iter().map(equals).collect())
    }

    /// Selects everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object with these labels is selected; `get` looks one label up.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0
            .iter()
            .all(|requirement| requirement.test.holds(get(&requirement.key)))
    }
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|text| text.parse::<i64>().ok());
        match self {
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::In(set) => value.is_some_and(|text| set.iter().any(|one| one == text)),
            Self::NotIn(set) => value.is_none_or(|text| set.iter().all(|one| one != text)),
            Self::Above(limit) => number().is_some_and(|number| number > *limit),
            Self::Below(limit) => number().is_some_and(|number| number < *limit),
        }
    }
}

fn top_level_comma(text: &str) -> usize {
    let mut depth = 0_u32;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => return index,
            _ => {}
        }
    }
    text.len()
}

fn parse_requirement(text: &str) -> Result<Requirement, SelectorError> {
    if let Some(key) = text.strip_prefix('!') {
        return Ok(Requirement {
            key: checked_key(key.trim())?,
            test: Test::Absent,
        });
    }
    let key_end = text
        .find(|c: char| c.is_whitespace() || "=!<>(".contains(c))
        .unwrap_or(text.len());
    let (key, rest) = text.split_at(key_end);
    let key = checked_key(key)?;
    let rest = rest.trim();
    let test = if rest.is_empty() {
        Test::Exists
    } else if let Some(value) = rest.strip_prefix("!=") {
        Test::NotIn(vec![checked_value(value.trim())?])
    } else if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
        Test::In(vec![checked_value(value.trim())?])
    } else if let Some(value) = rest.strip_prefix('>') {
        Test::Above(checked_number(value.trim())?)
    } else if let Some(value) = rest.strip_prefix('<') {
        Test::Below(checked_number(value.trim())?)
    } else if let Some(set) = rest.strip_prefix("notin") {
        Test::NotIn(checked_set(set.trim())?)
    } else if let Some(set) = rest.strip_prefix("in") {
        Test::In(checked_set(set.trim())?)
    } else {
        return Err(SelectorError(format!(
            "found '{rest}', expected: in, notin, =, ==, !=, gt, lt"
        )));
    };
    Ok(Requirement { key, test })
}

fn checked_set(text: &str) -> Result<Vec<String>, SelectorError> {
    let inner = text.strip_prefix('(').and_then(|open| open.strip_suffix(')'));
    let inner = inner.ok_or_else(|| SelectorError(format!("found '{text}', expected: '('")))?;
    inner.split(',').map(|value| checked_value(value.trim())).collect()
}

fn checked_number(text: &str) -> Result<i64, SelectorError> {
    text.parse().map_err(|_| {
        SelectorError(format!(
            "for 'Gt', 'Lt' operators, the value must be an integer: '{text}'"
        ))
    })
}

fn checked_key(key: &str) -> Result<String, SelectorError> {
    match is_label_key(key) {
        true => Ok(key.to_owned()),
        false => Err(SelectorError(format!("invalid label key {key:?}"))),
    }
}

fn checked_value(value: &str) -> Result<String, SelectorError> {
    match is_label_value(value) {
        true => Ok(value.to_owned()),
        false => Err(SelectorError(format!("invalid label value: {value:?}"))),
    }
}

/// `[prefix/]name`: prefix a DNS subdomain of at most 253, name as a non-empty label value.
pub fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_dns_subdomain)
}

/// At most 63 of `[A-Za-z0-9._-]`, starting and ending alphanumeric; may be empty.
pub fn is_label_value(value: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    value.len() <= 63
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && ends(value.bytes().next())
        && ends(value.bytes().last())
}

/// At most 253 of lower-case alphanumerics, `-` and `.`; each part starts and ends alphanumeric.
pub fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(|part| !part.is_empty() && is_dns_part(part))
}

/// A DNS label: at most 63 of lower-case alphanumerics and `-`, starting and ending alphanumeric.
pub fn is_dns_label(name: &str) -> bool {
    !name.is_empty() && name.len() <= 63 && is_dns_part(name)
}

fn is_dns_part(part: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    part.bytes().all(|byte| alphanumeric(byte) || byte == b'-')
        && part.bytes().next().is_some_and(alphanumeric)
        && part.bytes().last().is_some_and(alphanumeric)
}

/// A `LabelSelector` as objects carry it (`matchLabels`, `matchExpressions`).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// All of these.
    pub match_labels: BTreeMap<String, String>,
    /// And all of these.
    pub match_expressions: Vec<Expression>,
}

/// One expression of a [`LabelSelector`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Expression {
    /// Label key.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist` (node selectors also `Gt`, `Lt`).
    pub operator: String,
    /// For `In`, `NotIn`, `Gt`, `Lt`.
    pub values: Vec<String>,
}

impl TryFrom<&LabelSelector> for Labels {
    type Error = SelectorError;

    fn try_from(selector: &LabelSelector) -> Result<Self, SelectorError> {
        let equals = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            test: Test::In(vec![value.clone()]),
        };
        let mut requirements: Vec<_> = selector.match_labels.iter().map(equals).collect();
        for expression in &selector.match_expressions {
            requirements.push(Requirement::try_from(expression)?);
        }
        Ok(Self(requirements))
    }
}

impl TryFrom<&Expression> for Requirement {
    type Error = SelectorError;

    fn try_from(expression: &Expression) -> Result<Self, SelectorError> {
        let values = expression.values.clone();
        let number = || checked_number(expression.values.first().map_or("", String::as_str));
        let test = match expression.operator.as_str() {
            "In" => Test::In(values),
            "NotIn" => Test::NotIn(values),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::Absent,
            "Gt" => Test::Above(number()?),
            "Lt" => Test::Below(number()?),
            other => {
                return Err(SelectorError(format!(
                    "{other:?} is not a valid label selector operator"
                )));
            }
        };
        Ok(Self {
            key: expression.key.clone(),
            test,
        })
    }
}

/// Whether one node-selector expression holds for a label's value.
///
/// # Errors
/// [`SelectorError`] for an unknown operator or a bound that is no integer.
pub fn expression_holds(expression: &Expression, value: Option<&str>) -> Result<bool, SelectorError> {
    Ok(Requirement::try_from(expression)?.test.holds(value))
}

/// A parsed `fieldSelector`: `path=value`, `path==value`, `path!=value`, comma separated.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Fields(Vec<FieldTest>);

/// One requirement of a [`Fields`] selector.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FieldTest {
    /// Such as `spec.nodeName`.
    pub path: String,
    /// Compared as text; booleans are `true` and `false`, absent is empty.
    pub value: String,
    /// `!=`.
    pub negated: bool,
}

impl Fields {
    /// Reads a field selector; which paths a kind has is the caller's to check.
    ///
    /// # Errors
    /// [`SelectorError`] for a requirement without an operator or a broken escape.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut tests = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let invalid = || SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'"));
            let at = term.find('=').ok_or_else(invalid)?;
            let (left, right) = term.split_at(at);
            let (path, negated) = left.strip_suffix('!').map_or((left, false), |path| (path, true));
            let value = right
                .strip_prefix("==")
                .or_else(|| right.strip_prefix('='))
                .unwrap_or_default();
            if path.is_empty() {
                return Err(invalid());
            }
            tests.push(FieldTest {
                path: path.into(),
                value: unescape(value).ok_or_else(invalid)?,
                negated,
            });
        }
        Ok(Self(tests))
    }

    /// The requirements.
    pub fn tests(&self) -> &[FieldTest] {
        &self.0
    }

    /// The same requirements on paths that go by other names.
    ///
    /// # Errors
    /// The first path that `name` has no other name for.
    pub fn renamed<'a>(&self, name: impl Fn(&str) -> Option<&'a str>) -> Result<Self, &str> {
        let test = |test: &'_ FieldTest| {
            Some(FieldTest {
                path: name(&test.path)?.to_owned(),
                ..test.clone()
            })
        };
        let tests = self.0.iter().map(|one| test(one).ok_or(one.path.as_str()));
        tests.collect::<Result<_, _>>().map(Self)
    }

    /// Selects everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that `path` must equal, when there is such a requirement.
    pub fn required(&self, path: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|test| !test.negated && test.path == path)
            .map(|test| test.value.as_str())
    }

    /// Whether an object is selected; `get` gives one field as text, absent as `""`.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> &'a str) -> bool {
        self.0
            .iter()
            .all(|test| (get(&test.path) == test.value) != test.negated)
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, byte) in text.bytes().enumerate() {
        match (escaped, byte) {
            (true, _) => escaped = false,
            (false, b'\\') => escaped = true,
            (false, b',') => {
                terms.push(text.get(start..index).unwrap_or_default());
                start = index + 1;
            }
            (false, _) => {}
        }
    }
    terms.push(text.get(start..).unwrap_or_default());
    terms
}

fn unescape(value: &str) -> Option<String> {
    let mut plain = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.push(characters.next().filter(|next| r"\,=".contains(*next))?),
            ',' | '=' => return None,
            other => plain.push(other),
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let map: BTreeMap<&str, &str> = labels.iter().copied().collect();
        Labels::parse(selector).unwrap().matches(|key| map.get(key).copied())
    }

    #[test]
    fn every_operator_selects_what_kubernetes_selects() {
        let web = [("app", "web"), ("tier", "3")];
        for (selector, expected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier=3", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (web, db)", true),
            ("app notin (db)", true),
            ("other notin (db)", true),
            ("other in (db)", false),
            ("tier>2", true),
            ("tier<3", false),
            ("app>2", false),
            ("app=", false),
        ] {
            assert_eq!(selects(selector, &web), expected, "{selector:?}");
        }
    }

    #[test]
    fn broken_selectors_are_refused() {
        for text in [
            "a b",
            "app=we b",
            "a in web",
            "a in (web",
            "a>x",
            ",",
            "a,",
            "-a=b",
            "a=-b",
            "a/b/c=d",
            "in",
        ] {
            assert!(Labels::parse(text).is_err() || text == "in", "{text:?}");
        }
    }

    #[test]
    fn field_selectors_unescape_and_negate() {
        let fields = Fields::parse(r"metadata.name=a\,b,status.phase!=Running,spec.nodeName=").unwrap();
        let get = |path: &str| match path {
            "metadata.name" => "a,b",
            "status.phase" => "Pending",
            _ => "",
        };
        assert!(fields.matches(get));
        assert_eq!(fields.required("metadata.name"), Some("a,b"));
        assert_eq!(fields.required("status.phase"), None);
        for text in ["a", "=b", r"a=b\c", "a=b=c"] {
            assert!(Fields::parse(text).is_err(), "{text:?}");
        }
    }
}
