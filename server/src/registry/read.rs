//! Get, list and watch, all from the cache.
//!
//! The cache of this process shows every write that was acknowledged here, so "most recent" needs no store. On a shared
//! database the cache must have followed what other servers acknowledged: the cache's own task, not this file's.

use std::time::Duration;

use agent::units::Revision;
use agent::wire::status::{Reason, Status};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::cache::{Expired, Filter, From};
use crate::request::{Answer, ListOptions};

use super::subresource::Part;
use super::{Context, Registry};

/// How long a read waits for a revision that is not there yet. Source: apiserver v1.36 `storage/cacher`, `blockTimeout`.
const PATIENCE: Duration = Duration::from_secs(3);

impl Registry {
    pub(super) async fn get(&self, context: Context<'_>, revision: Option<&str>) -> Result<Answer, Status> {
        let name = context.named()?;
        let part = Part::of(context.subresource)?;
        if let Some(revision) = parsed(revision)? {
            self.not_older(revision).await?;
        }
        let item = self.cache.get(&context.key(name));
        let item = item.ok_or_else(|| context.not_found(name))?;
        let body = match part {
            Part::Scale => part.answer(item.body.clone(), &item.value(), context.row),
            Part::Main | Part::Status | Part::Approval | Part::Finalize | Part::EphemeralContainers | Part::Resize => {
                item.body.clone()
            }
        };
        Ok(Answer::Object {
            code: 200,
            body,
            warnings: Vec::new(),
        })
    }

    pub(super) async fn list(&self, context: Context<'_>, options: &ListOptions) -> Result<Answer, Status> {
        context.selectable(&options.filter)?;
        let plan = plan(options)?;
        if let Some(revision) = plan.at_least {
            self.not_older(revision).await?;
        }
        if let Some(revision) = plan.exactly {
            self.not_older(revision).await?;
        }
        let scope = context.scope(&options.filter);
        let after = plan
            .start
            .as_ref()
            .map(|start| format!("{}{start}", context.row.prefix));
        let after = after.as_deref();
        let page = self
            .cache
            .list(&scope, &options.filter, after, plan.limit, plan.exactly)
            .map_err(|expired| context.list_expired(expired, plan.start.as_deref()))?;
        let continue_token = page.next.as_deref().map(|last| {
            token(
                Some(page.revision),
                last.strip_prefix(context.row.prefix).unwrap_or(last),
            )
        });
        Ok(Answer::List { page, continue_token })
    }

    pub(super) fn watch(&self, context: Context<'_>, mut filter: Filter, from: From) -> Result<Answer, Status> {
        context.selectable(&filter)?;
        if let Some(name) = context.name {
            // A watch of one object by its path.
            let only = agent::wire::selector::Fields::parse(&format!("metadata.name={name}"));
            filter.fields = only.map_err(|error| Status::failure(Reason::BadRequest, error.to_string()))?;
        }
        let scope = context.scope(&filter);
        let watch = self.cache.watch(&scope, filter, from);
        Ok(Answer::Watch(watch.map_err(|expired| {
            Status::failure(Reason::Expired, expired.to_string())
        })?))
    }

    /// Waits for a revision, or says that there is none such.
    async fn not_older(&self, revision: Revision) -> Result<(), Status> {
        if self.cache.revision() >= revision {
            return Ok(());
        }
        let waited = tokio::time::timeout(PATIENCE, self.cache.reached(revision)).await;
        waited.map_err(|_| {
            let text = format!(
                "Too large resource version: {revision}, current: {}",
                self.cache.revision()
            );
            Status::failure(Reason::Timeout, text)
                .cause("ResourceVersionTooLarge", "Too large resource version", "")
                .retry_after(1)
        })
    }
}

impl Context<'_> {
    /// Where in the store to look: one object if the filter names it.
    fn scope(&self, filter: &Filter) -> String {
        let whole = self.namespace.is_some() || !self.row.namespaced;
        match filter.fields.required("metadata.name") {
            Some(name) if whole && !name.is_empty() => self.row.key(self.namespace, name),
            _ => self.row.range(self.namespace),
        }
    }

    fn selectable(&self, filter: &Filter) -> Result<(), Status> {
        for test in filter.fields.tests() {
            let path = test.path.as_str();
            let known = path == "metadata.name"
                || (path == "metadata.namespace" && self.row.namespaced)
                || self.row.fields.iter().any(|field| field.name == path);
            if !known {
                let text = format!("field label not supported: {path}");
                return Err(Status::failure(Reason::BadRequest, text));
            }
        }
        Ok(())
    }

    fn list_expired(&self, _: Expired, start: Option<&str>) -> Status {
        let Some(start) = start else {
            return Status::failure(Reason::Expired, "The resourceVersion for the provided list is too old.");
        };
        let text = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
        let mut status = Status::failure(Reason::Expired, text);
        status.metadata.continue_token = token(None, start);
        status
    }
}

/// What a list has to show, from its parameters.
#[derive(Debug, Default, Eq, PartialEq)]
struct Plan {
    at_least: Option<Revision>,
    exactly: Option<Revision>,
    /// The last key of the page before, relative to the row's prefix.
    start: Option<String>,
    limit: Option<usize>,
}

fn plan(options: &ListOptions) -> Result<Plan, Status> {
    let revision = options.resource_version.as_deref().unwrap_or_default();
    let wanted = options.version_match.as_deref().unwrap_or_default();
    let token = options.continue_token.as_deref().unwrap_or_default();
    let limit = options.limit.filter(|limit| *limit > 0);
    match wanted {
        "" => {}
        _ if !token.is_empty() => {
            return Err(list_fault(
                "FieldValueForbidden",
                "Forbidden: resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        _ if revision.is_empty() => {
            return Err(list_fault(
                "FieldValueForbidden",
                "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        "Exact" if revision == "0" => {
            return Err(list_fault(
                "FieldValueForbidden",
                "Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
        "Exact" | "NotOlderThan" => {}
        other => {
            let text = format!("Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\"");
            return Err(list_fault("FieldValueNotSupported", &text));
        }
    }
    if !token.is_empty() {
        if !matches!(revision, "" | "0") {
            let text = "specifying resource version is not allowed when using continue";
            return Err(Status::failure(Reason::BadRequest, text));
        }
        let (exactly, start) = read_token(token)?;
        return Ok(Plan {
            exactly,
            start: Some(start),
            limit,
            ..Plan::default()
        });
    }
    let Some(revision) = parsed(Some(revision))? else {
        // "0" is served from a cache upstream, which ignores the limit; a limit that works is as good.
        return Ok(Plan {
            limit,
            ..Plan::default()
        });
    };
    let exact = wanted == "Exact" || (wanted.is_empty() && limit.is_some());
    Ok(Plan {
        at_least: (!exact).then_some(revision),
        exactly: exact.then_some(revision),
        start: None,
        limit,
    })
}

fn list_fault(reason: &'static str, text: &str) -> Status {
    let fault = (reason, "resourceVersionMatch".to_owned(), text.to_owned());
    Status::invalid("meta.k8s.io", "ListOptions", "", &[fault])
}

/// A revision a client gave; nothing and `0` are none.
fn parsed(text: Option<&str>) -> Result<Option<Revision>, Status> {
    match text.unwrap_or_default() {
        "" | "0" => Ok(None),
        text => Revision::parse(text).map(Some).ok_or_else(|| {
            let text = format!("resourceVersion: Invalid value: {text:?}: the resource version is not a number");
            Status::failure(Reason::BadRequest, text)
        }),
    }
}

/// A continue token: the snapshot, or none for "whatever is newest", and the last key returned.
fn token(revision: Option<Revision>, last: &str) -> String {
    let revision = revision.map_or_else(|| json!(-1), |revision| json!(revision.get()));
    let start = format!("{last}\0");
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string())
}

fn read_token(token: &str) -> Result<(Option<Revision>, String), Status> {
    let invalid = |why: &str| Status::failure(Reason::BadRequest, format!("continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD
        .decode(token)
        .map_err(|error| invalid(&error.to_string()))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| invalid(&error.to_string()))?;
    if value.get("v").and_then(Value::as_str) != Some("meta.k8s.io/v1") {
        return Err(invalid("incorrect version"));
    }
    let revision = match value.get("rv").and_then(Value::as_i64) {
        Some(-1) => None,
        Some(number) => match u64::try_from(number) {
            Ok(number) if number > 0 => Some(Revision::new(number)),
            Ok(_) | Err(_) => return Err(invalid("incorrect resourceVersion")),
        },
        None => return Err(invalid("no resourceVersion")),
    };
    let start = value.get("start").and_then(Value::as_str).unwrap_or_default();
    let start = start.strip_suffix('\0').unwrap_or(start);
    if start.is_empty() || start.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(invalid("incorrect start"));
    }
    Ok((revision, start.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(revision: &str, wanted: &str, limit: usize) -> Result<Plan, Status> {
        plan(&ListOptions {
            resource_version: Some(revision.to_owned()),
            version_match: Some(wanted.to_owned()),
            limit: Some(limit),
            ..ListOptions::default()
        })
    }

    #[test]
    fn a_list_shows_the_revision_that_was_asked_for() {
        let seven = Some(Revision::new(7));
        for (revision, wanted, limit, at_least, exactly) in [
            ("", "", 0, None, None),
            ("", "", 5, None, None),
            ("0", "", 5, None, None),
            ("0", "NotOlderThan", 0, None, None),
            ("7", "", 0, seven, None),
            ("7", "", 5, None, seven),
            ("7", "NotOlderThan", 5, seven, None),
            ("7", "Exact", 0, None, seven),
        ] {
            let plan = asked(revision, wanted, limit).unwrap();
            assert_eq!(
                (plan.at_least, plan.exactly),
                (at_least, exactly),
                "{revision} {wanted} {limit}"
            );
        }
        for (revision, wanted, code) in [
            ("", "Exact", 422),
            ("", "NotOlderThan", 422),
            ("0", "Exact", 422),
            ("7", "Newest", 422),
            ("x", "", 400),
        ] {
            assert_eq!(
                asked(revision, wanted, 0).unwrap_err().code,
                code,
                "{revision} {wanted}"
            );
        }
    }

    #[test]
    fn a_token_survives_the_round_trip_and_a_forged_one_does_not() {
        let sealed = token(Some(Revision::new(9)), "default/web");
        assert_eq!(
            read_token(&sealed),
            Ok((Some(Revision::new(9)), "default/web".to_owned()))
        );
        assert_eq!(read_token(&token(None, "a")), Ok((None, "a".to_owned())));
        for bad in [
            "!",
            "e30",
            &token(Some(Revision::new(1)), "../x"),
            &token(Some(Revision::ZERO), "x"),
        ] {
            let status = read_token(bad).unwrap_err();
            assert!(status.message.starts_with("continue key is not valid: "), "{bad}");
        }
    }
}
