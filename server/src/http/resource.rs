//! Requests on resources: from method and parameters to a call, from its answer to a response.

use std::sync::Arc;
use std::time::Duration;

use agent::units::Revision;
use agent::wire::object::text;
use agent::wire::status::{Reason, STALE, Status, group_resource};
use hyper::body::Incoming;
use hyper::header::USER_AGENT;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio::time;

use super::encode::{self, Style};
use super::handler::Ask;
use super::negotiate::Media;
use super::query::WatchQuery;
use super::{ApiHttp, Body, body, stream};
use crate::auth::may::Attributes;
use crate::cache::From;
use crate::registry::resource::{Resource, api_version};
use crate::request::{Answer, Call, Operation, Target};

/// How long a watch waits for a revision that is not there yet. Source: Kubernetes v1.36 `storage/cacher`.
const PATIENCE: Duration = Duration::from_secs(3);
/// A watch without `timeoutSeconds` lasts this long, and up to twice (upstream's `MinRequestTimeout`).
const WATCH_LASTS_S: u64 = 1800;

/// No watch lasts longer, whatever it asks for.
const WATCH_MOST_S: u64 = 7 * 86_400;

impl ApiHttp {
    /// One request on a resource. `rest`: the path behind `/proxy`; `prefix`: it came by the deprecated `/watch/` prefix.
    pub(super) async fn resource(
        &self,
        ask: Ask,
        target: Target,
        rest: &str,
        prefix: bool,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Status> {
        let watching = ask.reads() && target.subresource.is_none() && (prefix || ask.query.flag("watch")?);
        let (verb, fits) = verb(&ask.method, &target, watching);
        let filter = ask.query.filter();
        let fields = filter.as_ref().ok().map(|filter| &filter.fields);
        let asked = Attributes::on(verb, &target, fields);
        self.parts.api.authorizer().demand(&ask.user, &asked)?;
        let streams = target.subresource.as_deref().is_some_and(super::connect::is_stream);
        if streams && fits {
            return self.connect(ask, target, rest, request).await;
        }
        if !fits || !supports(&target, verb) {
            return Err(not_supported(&target.resource, verb));
        }
        if verb == "watch" {
            return self.watch(ask, target).await;
        }
        let expected = expected(&target);
        let expected = expected.as_ref().map(|(version, kind)| (version.as_str(), *kind));
        let style = ask.style(convertible(&target), expected.is_some())?;
        if let Some(review) = super::review::Review::of(&target) {
            let sent = body::read(request.into_body()).await?;
            let decoded = body::decode(&ask.headers, &sent, expected)?;
            let answer = self.review(&ask, review, &target, decoded.value)?;
            return encode::object(201, &target.resource, answer.to_string().into(), &[], style);
        }
        let operation = operation(&ask, verb, &target, expected, request).await?;
        let stale = owed_the_present(&operation) && !self.catch_up().await;
        let seen = self.parts.who.cache.revision();
        let in_doubt = stale && writes(&operation);
        let resource = Arc::clone(&target.resource);
        let user = Arc::clone(&ask.user);
        let call = Call {
            user,
            target,
            operation,
        };
        let answer = self.parts.api.call(call).await;
        // What was written is as new as can be, whatever was seen before.
        let written = in_doubt && answer.as_ref().is_ok_and(|answer| is_newer(answer, seen));
        let outcome = answer.and_then(|answer| present(answer, &resource, style));
        if !stale || written {
            return outcome;
        }
        // That there is no such object may be as old.
        let mut response = outcome.unwrap_or_else(|status| encode::status_as(&status, style.wanted.media));
        encode::warn(&mut response, &[STALE.to_owned()]);
        Ok(response)
    }

    async fn watch(&self, ask: Ask, target: Target) -> Result<Response<Body>, Status> {
        let style = ask.style(true, expected(&target).is_some())?;
        let content_type = match style.wanted.media {
            Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            Media::Json | Media::Yaml => Media::Json.name(),
        };
        let filter = ask.query.filter()?;
        let WatchQuery {
            from,
            not_older_than,
            bookmarks,
            timeout,
        } = ask.query.watch()?;
        let mut ahead = None;
        match (not_older_than, from) {
            (Some(revision), _) => self.reached(revision).await?,
            // What is missing comes as events.
            (None, From::State { .. } | From::Now) => drop(self.catch_up().await),
            (None, From::After(revision)) => ahead = self.ahead(revision).await,
        }
        let resource = Arc::clone(&target.resource);
        let operation = Operation::Watch {
            filter,
            from,
            bookmarks,
        };
        let user = Arc::clone(&ask.user);
        let answer = self
            .parts
            .api
            .call(Call {
                user,
                target,
                operation,
            })
            .await;
        // Only who may watch is told.
        let answer = answer.and_then(|answer| ahead.map_or(Ok(answer), Err));
        let body = match answer {
            Ok(Answer::Watch(watch)) => {
                let spread = u64::try_from(ask.now.subsec_nanosecond()).unwrap_or_default() % WATCH_LASTS_S;
                let seconds = timeout.unwrap_or(WATCH_LASTS_S + spread).min(WATCH_MOST_S);
                let plan = stream::Plan {
                    resource,
                    style,
                    bookmarks,
                    lasts: Duration::from_secs(seconds),
                    stop: ask.stop,
                };
                stream::body(watch, plan)
            }
            Ok(_) => return Err(Status::internal("the registry did not answer with a watch")),
            Err(status) if status.is(Reason::Expired) => stream::failed(&status, style.wanted.media),
            Err(status) => return Err(status),
        };
        Ok(encode::respond(StatusCode::OK, content_type, body))
    }

    /// Whether the cache shows what was acknowledged by now, here and elsewhere.
    async fn catch_up(&self) -> bool {
        match &self.parts.fresh {
            Some(fresh) => fresh.catch_up().await,
            None => true,
        }
    }

    /// What is said to who would go on from a revision that the datastore has not come to: it is of a history that was lost.
    ///
    /// Kubernetes v1.36 lets such a watch wait for what comes after that revision (apiserver `cacher.Cacher.Watch`), and so
    /// leave out what comes before. While nobody can tell, so do we.
    async fn ahead(&self, revision: Revision) -> Option<Status> {
        let cache = &self.parts.who.cache;
        if cache.revision() >= revision {
            return None;
        }
        let known = match &self.parts.fresh {
            Some(fresh) => fresh.catch_up().await,
            // What was acknowledged may be shown a little later.
            None => time::timeout(PATIENCE, cache.reached(revision)).await.is_err(),
        };
        let current = cache.revision();
        (known && current < revision).then(|| {
            let text = format!("resource version {revision} is ahead of the newest, {current}: its history was lost");
            Status::failure(Reason::Expired, text)
        })
    }

    async fn reached(&self, revision: Revision) -> Result<(), Status> {
        let cache = &self.parts.who.cache;
        let waited = time::timeout(PATIENCE, cache.reached(revision)).await;
        waited.map_err(|_| {
            let text = format!("Too large resource version: {revision}, current: {}", cache.revision());
            Status::failure(Reason::Timeout, text)
                .cause("ResourceVersionTooLarge", "Too large resource version", "")
                .retry_after(1)
        })
    }
}

/// Whether an operation must see every write that was acknowledged before it: unless it names the past it is content with.
/// Writes too: they are checked against what is there, and refused by it.
fn owed_the_present(operation: &Operation) -> bool {
    match operation {
        Operation::Get { resource_version } => resource_version.as_deref().is_none_or(str::is_empty),
        Operation::List(options) => [&options.resource_version, &options.continue_token]
            .into_iter()
            .all(|given| given.as_deref().is_none_or(str::is_empty)),
        Operation::Watch { .. } => false,
        Operation::Create { .. }
        | Operation::Update { .. }
        | Operation::Patch { .. }
        | Operation::Delete(_)
        | Operation::DeleteCollection { .. } => true,
    }
}

/// Whether it is to change anything.
fn writes(operation: &Operation) -> bool {
    match operation {
        Operation::Get { .. } | Operation::List(_) | Operation::Watch { .. } => false,
        Operation::Create { .. }
        | Operation::Update { .. }
        | Operation::Patch { .. }
        | Operation::Delete(_)
        | Operation::DeleteCollection { .. } => !operation.is_dry_run(),
    }
}

/// Whether an answer tells of a write that came after `seen`. A change that changes nothing answers with what was there, a
/// deleted collection with what of it was seen.
fn is_newer(answer: &Answer, seen: Revision) -> bool {
    match answer {
        Answer::Object { body, .. } => {
            let object: Value = serde_json::from_slice(body).unwrap_or_default();
            let revision = Revision::parse(text(&object, &["metadata", "resourceVersion"]));
            revision.is_some_and(|revision| revision > seen)
        }
        Answer::Status(_) => true,
        Answer::List { .. } | Answer::Watch(_) => false,
    }
}

/// The verb of a method, and whether the method fits the form of the path.
fn verb(method: &Method, target: &Target, watching: bool) -> (&'static str, bool) {
    let named = target.name.is_some();
    let single = named || target.namespace.is_some() || !target.resource.namespaced;
    match *method {
        Method::GET | Method::HEAD if watching => ("watch", true),
        Method::GET | Method::HEAD if named => ("get", true),
        Method::GET | Method::HEAD => ("list", true),
        Method::POST => ("create", single && named == target.subresource.is_some()),
        Method::PUT => ("update", named),
        Method::PATCH => ("patch", named),
        Method::DELETE if named => ("delete", true),
        Method::DELETE => ("deletecollection", single),
        _ => ("connect", false),
    }
}

fn supports(target: &Target, verb: &str) -> bool {
    match target.subresource.as_deref() {
        None => target.resource.verbs.contains(&verb),
        Some(name) => target
            .resource
            .subresource(name)
            .is_some_and(|one| one.verbs.contains(&verb)),
    }
}

fn not_supported(resource: &Resource, verb: &str) -> Status {
    let text = group_resource(resource.group, resource.plural);
    let text = format!("{verb} is not supported on resources of kind \"{text}\"");
    Status::failure(Reason::MethodNotAllowed, text).about(resource.group, resource.plural, "")
}

/// Whether its objects can be shown as a table or by their metadata alone.
fn convertible(target: &Target) -> bool {
    matches!(target.subresource.as_deref(), None | Some("status")) && target.resource.verbs.contains(&"get")
}

/// What is asked for, with the body read.
///
/// `expected`: version and kind of a body, if they have a protobuf form.
async fn operation(
    ask: &Ask,
    verb: &str,
    target: &Target,
    expected: Option<(&str, &str)>,
    request: Request<Incoming>,
) -> Result<Operation, Status> {
    let query = &ask.query;
    match verb {
        "get" => {
            let resource_version = query.get("resourceVersion").map(ToOwned::to_owned);
            return Ok(Operation::Get { resource_version });
        }
        "list" => return Ok(Operation::List(query.list()?)),
        _ => {}
    }
    match verb {
        "create" | "update" => {
            let mut options = query.write(ask.header(&USER_AGENT))?;
            let sent = body::read(request.into_body()).await?;
            let decoded = body::decode(&ask.headers, &sent, expected)?;
            options.duplicates = decoded.duplicates;
            let body = decoded.value;
            Ok(match verb {
                "create" => Operation::Create { body, options },
                _ => Operation::Update { body, options },
            })
        }
        "patch" => {
            let mut options = query.write(ask.header(&USER_AGENT))?;
            let sent = body::read(request.into_body()).await?;
            let (patch, duplicates) = body::patch(&ask.headers, &sent, expected.is_some())?;
            options.duplicates = duplicates;
            Ok(Operation::Patch { patch, options })
        }
        "delete" | "deletecollection" => {
            let sent = body::read(request.into_body()).await?;
            let options = body::delete_options(&ask.headers, &sent, query)?;
            if verb == "delete" {
                return Ok(Operation::Delete(options));
            }
            let list = query.list()?;
            Ok(Operation::DeleteCollection { list, options })
        }
        _ => Err(not_supported(&target.resource, verb)),
    }
}

/// Version and kind of what is sent to a target and comes from it, if it is one of Kubernetes' own: those have protobuf
/// forms and strategic merges.
fn expected(target: &Target) -> Option<(String, &'static str)> {
    let resource = &target.resource;
    let subresource = target
        .subresource
        .as_deref()
        .and_then(|name| resource.subresource(name));
    let (group, version, kind) =
        subresource
            .and_then(|one| one.kind)
            .unwrap_or((resource.group, resource.version, resource.kind));
    crate::schema::built_in().kind(group, version, kind)?;
    Some((api_version(group, version), kind))
}

fn present(answer: Answer, resource: &Resource, style: Style) -> Result<Response<Body>, Status> {
    match answer {
        Answer::Object { code, body, warnings } => encode::object(code, resource, body, &warnings, style),
        Answer::Status(status) => Ok(encode::status_as(&status, style.wanted.media)),
        Answer::List { page, continue_token } => encode::list(resource, page, continue_token, style),
        Answer::Watch(_) => Err(Status::internal("the registry answered with a watch")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn verbs_follow_method_and_path() {
        let target = |namespace: Option<&str>, name: Option<&str>, subresource: Option<&str>| Target {
            resource: kinds::find("", "v1", "pods").unwrap(),
            namespace: namespace.map(Into::into),
            name: name.map(Into::into),
            subresource: subresource.map(Into::into),
        };
        let everywhere = target(None, None, None);
        let some = target(Some("x"), None, None);
        let one = target(Some("x"), Some("web"), None);
        let status = target(Some("x"), Some("web"), Some("status"));
        let binding = target(Some("x"), Some("web"), Some("binding"));
        for (method, target, watching, expected) in [
            (Method::GET, &everywhere, false, ("list", true)),
            (Method::HEAD, &one, false, ("get", true)),
            (Method::GET, &everywhere, true, ("watch", true)),
            (Method::POST, &everywhere, false, ("create", false)),
            (Method::POST, &some, false, ("create", true)),
            (Method::POST, &one, false, ("create", false)),
            (Method::POST, &binding, false, ("create", true)),
            (Method::PUT, &some, false, ("update", false)),
            (Method::PUT, &status, false, ("update", true)),
            (Method::PATCH, &one, false, ("patch", true)),
            (Method::DELETE, &some, false, ("deletecollection", true)),
            (Method::DELETE, &everywhere, false, ("deletecollection", false)),
            (Method::DELETE, &one, false, ("delete", true)),
            (Method::OPTIONS, &one, false, ("connect", false)),
        ] {
            assert_eq!(verb(&method, target, watching), expected, "{method}");
        }
        assert!(supports(&status, "patch") && !supports(&binding, "patch"));
    }
}
