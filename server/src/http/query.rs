//! Query parameters, read into the options of a call. Pure.
//!
//! Source: Kubernetes v1.36, `apimachinery/pkg/apis/meta/v1` conversion of `url.Values`, and the validations of
//! `apiserver/pkg/endpoints/handlers`.

use agent::units::Revision;
use agent::wire::percent::decode_query;
use agent::wire::selector::{Fields, Labels};
use agent::wire::status::{Reason, Status};

use crate::cache::{Filter, From};
use crate::request::{DeleteOptions, FieldValidation, ListOptions, WriteOptions};

/// Decoded pairs in their order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

/// How a watch was asked for.
#[derive(Clone, Debug)]
pub struct WatchQuery {
    /// Where to begin.
    pub from: From,
    /// Wait until the cache has this before the initial state is taken.
    pub not_older_than: Option<Revision>,
    /// `allowWatchBookmarks`.
    pub bookmarks: bool,
    /// `timeoutSeconds`.
    pub timeout: Option<u64>,
}

impl Query {
    /// Reads the text behind `?`.
    ///
    /// # Errors
    /// 400 for a broken escape.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut pairs = Vec::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let broken = || bad(format!("invalid URL escape in query: {part:?}"));
            let pair = (
                decode_query(key).ok_or_else(broken)?,
                decode_query(value).ok_or_else(broken)?,
            );
            pairs.push(pair);
        }
        Ok(Self(pairs))
    }

    /// The first value of a key; empty counts as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        let first = self.0.iter().find(|(name, _)| name == key);
        first.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// All values of a key.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let wanted = self.0.iter().filter(move |(name, _)| name == key);
        wanted.map(|(_, value)| value.as_str())
    }

    /// The pairs whose key is wanted, encoded anew.
    pub fn encode(&self, wanted: impl Fn(&str) -> bool) -> String {
        let mut out = String::new();
        for (key, value) in self.0.iter().filter(|(key, _)| wanted(key)) {
            if !out.is_empty() {
                out.push('&');
            }
            escape(key, &mut out);
            out.push('=');
            escape(value, &mut out);
        }
        out
    }

    /// A boolean by Go's `strconv.ParseBool`; absent and empty are false.
    ///
    /// # Errors
    /// 400 for anything else.
    pub fn flag(&self, key: &str) -> Result<bool, Status> {
        match self.get(key) {
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some(other) => Err(bad(format!(
                "invalid value for {key}: strconv.ParseBool: parsing {other:?}: invalid syntax"
            ))),
        }
    }

    /// A whole number.
    ///
    /// # Errors
    /// 400 for anything else.
    pub fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        let parse = |text: &str| {
            text.parse().map_err(|_| {
                bad(format!(
                    "invalid value for {key}: strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))
            })
        };
        self.get(key).map(parse).transpose()
    }

    /// Both selectors.
    ///
    /// # Errors
    /// 400 for bad syntax.
    pub fn filter(&self) -> Result<Filter, Status> {
        let labels = Labels::parse(self.get("labelSelector").unwrap_or_default());
        let fields = Fields::parse(self.get("fieldSelector").unwrap_or_default());
        Ok(Filter {
            labels: labels.map_err(|error| bad(error.to_string()))?,
            fields: fields.map_err(|error| bad(error.to_string()))?,
        })
    }

    /// Parameters of a list.
    ///
    /// # Errors
    /// 400 or 422 for values that cannot be.
    pub fn list(&self) -> Result<ListOptions, Status> {
        if self.get("sendInitialEvents").is_some() {
            let text = "Forbidden: sendInitialEvents is forbidden for list";
            return Err(invalid_list("sendInitialEvents", "FieldValueForbidden", text));
        }
        let limit = self.number("limit")?.filter(|&limit| limit > 0);
        Ok(ListOptions {
            filter: self.filter()?,
            limit: limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
            continue_token: self.get("continue").map(ToOwned::to_owned),
            resource_version: self.get("resourceVersion").map(ToOwned::to_owned),
            version_match: self.get("resourceVersionMatch").map(ToOwned::to_owned),
        })
    }

    /// Parameters of a watch.
    ///
    /// # Errors
    /// 400 or 422 for values that cannot be.
    pub fn watch(&self) -> Result<WatchQuery, Status> {
        let bookmarks = self.flag("allowWatchBookmarks")?;
        let initial = match self.get("sendInitialEvents") {
            None => None,
            Some(_) => Some(self.flag("sendInitialEvents")?),
        };
        let version = match self.get("resourceVersion") {
            None | Some("0") => None,
            Some(text) => Some(Revision::parse(text).ok_or_else(|| {
                bad(format!(
                    "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                ))
            })?),
        };
        match (self.get("resourceVersionMatch"), initial) {
            (Some(_), None) => {
                let text =
                    "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                return Err(invalid_list("resourceVersionMatch", "FieldValueForbidden", text));
            }
            (Some("NotOlderThan"), Some(_)) | (None, None) => {}
            (None, Some(_)) => {
                let text = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return Err(invalid_list("resourceVersionMatch", "FieldValueForbidden", text));
            }
            (Some(other), Some(_)) => {
                let text = format!("Unsupported value: {other:?}: supported values: \"NotOlderThan\"");
                return Err(invalid_list("resourceVersionMatch", "FieldValueNotSupported", &text));
            }
        }
        let from = match (initial, version) {
            (Some(true), _) => From::State { bookmark: bookmarks },
            (None, None) => From::State { bookmark: false },
            (Some(false), None) => From::Now,
            (Some(false) | None, Some(revision)) => From::After(revision),
        };
        let timeout = self
            .number("timeoutSeconds")?
            .and_then(|seconds| u64::try_from(seconds).ok());
        Ok(WatchQuery {
            from,
            not_older_than: version.filter(|_| initial == Some(true)),
            bookmarks,
            timeout: timeout.filter(|&seconds| seconds > 0),
        })
    }

    /// Whether nothing is to be written.
    ///
    /// # Errors
    /// 422 for anything but `All`.
    pub fn dry_run(&self) -> Result<bool, Status> {
        let mut dry = false;
        for value in self.all("dryRun").filter(|value| !value.is_empty()) {
            if value != "All" {
                let text = format!("Unsupported value: {value:?}: supported values: \"All\"");
                let fault = [("FieldValueNotSupported", "dryRun".to_owned(), text)];
                return Err(Status::invalid("meta.k8s.io", "CreateOptions", "", &fault));
            }
            dry = true;
        }
        Ok(dry)
    }

    /// Parameters of a write; `agent` is the User-Agent, which names the manager unless told otherwise.
    ///
    /// # Errors
    /// 422 for values that cannot be.
    pub fn write(&self, agent: &str) -> Result<WriteOptions, Status> {
        let faulty = |field: &str, reason: &'static str, text: String| {
            Status::invalid("meta.k8s.io", "CreateOptions", "", &[(reason, field.to_owned(), text)])
        };
        let field_validation = match self.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let text = format!("Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\"");
                return Err(faulty("fieldValidation", "FieldValueNotSupported", text));
            }
        };
        let default = agent.split('/').next().unwrap_or_default();
        let manager = self.get("fieldManager").unwrap_or(default);
        if manager.chars().count() > 128 {
            let text = "Too long: may not be more than 128 bytes".to_owned();
            return Err(faulty("fieldManager", "FieldValueTooLong", text));
        }
        Ok(WriteOptions {
            dry_run: self.dry_run()?,
            field_manager: manager.to_owned(),
            field_validation,
            duplicates: Vec::new(),
            instead_of: None,
        })
    }

    /// Parameters of a deletion that has no body.
    ///
    /// # Errors
    /// 400 or 422 for values that cannot be.
    pub fn delete(&self) -> Result<DeleteOptions, Status> {
        let policy = self.get("propagationPolicy").map(ToOwned::to_owned);
        let orphan = match self.get("orphanDependents") {
            Some(_) if self.flag("orphanDependents")? => Some("Orphan".to_owned()),
            Some(_) => Some("Background".to_owned()),
            None => None,
        };
        Ok(DeleteOptions {
            grace: self.number("gracePeriodSeconds")?,
            propagation: policy.or(orphan),
            uid: None,
            resource_version: None,
            dry_run: self.dry_run()?,
        })
    }
}

/// Percent-encodes all but what RFC 3986 calls unreserved.
fn escape(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
}

fn bad(message: impl Into<String>) -> Status {
    Status::failure(Reason::BadRequest, message)
}

fn invalid_list(field: &str, reason: &'static str, text: &str) -> Status {
    Status::invalid(
        "meta.k8s.io",
        "ListOptions",
        "",
        &[(reason, field.to_owned(), text.to_owned())],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::parse(text).unwrap()
    }

    #[test]
    fn booleans_are_those_of_go() {
        for (text, expected) in [
            ("", Ok(false)),
            ("x=", Ok(false)),
            ("x=true", Ok(true)),
            ("x=1", Ok(true)),
            ("x=yes", Err(400)),
        ] {
            assert_eq!(query(text).flag("x").map_err(|status| status.code), expected, "{text}");
        }
    }

    #[test]
    fn a_watch_begins_where_its_parameters_say() {
        let n = Revision::new(7);
        for (text, expected) in [
            ("", Ok(From::State { bookmark: false })),
            ("resourceVersion=0", Ok(From::State { bookmark: false })),
            ("resourceVersion=7", Ok(From::After(n))),
            (
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
                Ok(From::State { bookmark: true }),
            ),
            (
                "sendInitialEvents=false&resourceVersionMatch=NotOlderThan",
                Ok(From::Now),
            ),
            (
                "sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=7",
                Ok(From::After(n)),
            ),
            ("sendInitialEvents=true", Err(422)),
            ("resourceVersionMatch=NotOlderThan", Err(422)),
            ("sendInitialEvents=true&resourceVersionMatch=Exact", Err(422)),
            ("resourceVersion=x", Err(400)),
        ] {
            let got = query(text)
                .watch()
                .map(|watch| watch.from)
                .map_err(|status| status.code);
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn write_options_refuse_unknown_values() {
        assert!(
            query("dryRun=All&fieldValidation=Strict")
                .write("kubectl/v1")
                .unwrap()
                .dry_run
        );
        assert_eq!(
            query("").write("kubectl/v1.32 (linux)").unwrap().field_manager,
            "kubectl"
        );
        assert_eq!(query("dryRun=Some").write("").unwrap_err().code, 422);
        assert_eq!(query("fieldValidation=Maybe").write("").unwrap_err().code, 422);
        assert_eq!(
            query("labelSelector=a%3Db,!c").filter().unwrap().labels,
            Labels::parse("a=b,!c").unwrap()
        );
        assert_eq!(query("labelSelector=a+in+(").filter().unwrap_err().code, 400);
    }
}
