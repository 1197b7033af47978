//! Acting in another's name: `Impersonate-*` headers.
//!
//! Source: Kubernetes v1.36, `apiserver/pkg/endpoints/filters/impersonation`.

use std::collections::BTreeMap;

use agent::wire::percent;
use agent::wire::status::{Reason, Status};
use hyper::header::HeaderMap;

use super::guard::Authorizer;
use super::may::Attributes;
use super::who::service_account;
use crate::request::User;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// The user in whose name a request is made; `None`: in the own one.
///
/// # Errors
/// 403 for what `user` may not impersonate, 400 for headers that make no sense.
pub fn impersonate(headers: &HeaderMap, user: &User, authorizer: &Authorizer) -> Result<Option<User>, Status> {
    let bad = |text: &str| Status::failure(Reason::BadRequest, text);
    let mut wanted = User::default();
    for (name, value) in headers {
        let name = name.as_str();
        if !name.starts_with("impersonate-") {
            continue;
        }
        let value = value
            .to_str()
            .map_err(|_| bad("an impersonation header is not text"))?
            .to_owned();
        match name {
            USER => wanted.name = value,
            GROUP => wanted.groups.push(value),
            UID => wanted.uid = value,
            _ => {
                let Some(key) = name.strip_prefix(EXTRA) else { continue };
                let key = percent::decode(key).ok_or_else(|| bad("an impersonation header is not text"))?;
                wanted.extra.entry(key).or_insert_with(Vec::new).push(value);
            }
        }
    }
    if wanted.name.is_empty() {
        return match wanted == User::default() {
            true => Ok(None),
            false => Err(bad("requested groups, a uid or extra without impersonating a user")),
        };
    }
    permitted(&wanted, user, authorizer)?;
    Ok(Some(complete(wanted)))
}

/// Each thing that is taken on needs the verb `impersonate` on it.
fn permitted(wanted: &User, user: &User, authorizer: &Authorizer) -> Result<(), Status> {
    const AUTHENTICATION: &str = "authentication.k8s.io";
    let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let asked = Attributes::Resource {
            verb: "impersonate",
            group,
            resource,
            subresource,
            namespace,
            name,
            fields: None,
        };
        authorizer.demand(user, &asked)
    };
    match account(&wanted.name) {
        Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name)?,
        None => ask("", "users", "", "", &wanted.name)?,
    }
    for group in &wanted.groups {
        ask("", "groups", "", "", group)?;
    }
    if !wanted.uid.is_empty() {
        ask(AUTHENTICATION, "uids", "", "", &wanted.uid)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            ask(AUTHENTICATION, "userextras", key, "", value)?;
        }
    }
    Ok(())
}

fn account(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("system:serviceaccount:")?.split_once(':')
}

/// Adds the groups that follow from the name.
fn complete(wanted: User) -> User {
    let mut groups = wanted.groups;
    if let (Some((namespace, name)), true) = (account(&wanted.name), groups.is_empty()) {
        groups = service_account(namespace, name).groups;
    }
    let implied = match wanted.name.as_str() {
        "system:anonymous" => "system:unauthenticated",
        _ => "system:authenticated",
    };
    let known = |group: &String| group == "system:authenticated" || group == "system:unauthenticated";
    if !groups.iter().any(known) {
        groups.push(implied.to_owned());
    }
    let extra: BTreeMap<_, _> = wanted.extra;
    User {
        groups,
        extra,
        ..wanted
    }
}
