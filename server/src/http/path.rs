//! The URL grammar: a path becomes a [`Route`]. Pure; which resources there are is a lookup that the caller passes.
//!
//! Source: Kubernetes v1.36, `apiserver/pkg/endpoints/request/requestinfo.go` (`RequestInfoFactory.NewRequestInfo`).

use std::sync::Arc;

use agent::wire::percent::decode;

use crate::registry::resource::Resource;
use crate::request::Target;

/// Where a request leads.
#[derive(Clone)]
pub enum Route {
    /// A resource, an object or a subresource.
    Resource {
        /// Which.
        target: Target,
        /// The undecoded path behind `…/proxy`, with its leading slash; empty without one.
        rest: String,
        /// It came by the deprecated `/watch/` prefix.
        watch: bool,
    },
    /// `/`: the list of paths.
    Root,
    /// `/api`.
    Core,
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`.
    Version(String, String),
    /// `/version`.
    ServerVersion,
    /// `/openapi/v2`.
    OpenApi2,
    /// `/openapi/v3`.
    OpenApi3Index,
    /// `/openapi/v3/PATH`: the path.
    OpenApi3(String),
    /// `/healthz`, `/livez`, `/readyz`, and one check of them.
    Health(&'static str, Option<String>),
    /// `/metrics`.
    Metrics,
    /// `/.well-known/openid-configuration`.
    OpenIdConfiguration,
    /// `/openid/v1/jwks`.
    OpenIdKeys,
    /// Nothing of ours.
    Unknown,
}

/// Looks a row up by group, version and plural name.
pub type Find<'a> = &'a dyn Fn(&str, &str, &str) -> Option<Arc<Resource>>;

/// Reads an undecoded path (no query).
pub fn route(path: &str, find: Find<'_>) -> Route {
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    let raw: Vec<&str> = trimmed.split('/').skip(1).collect();
    match raw.as_slice() {
        [] => Route::Root,
        ["api"] => Route::Core,
        ["apis"] => Route::Groups,
        ["apis", group] => Route::Group((*group).to_owned()),
        ["api", version] => Route::Version(String::new(), (*version).to_owned()),
        ["apis", group, version] => Route::Version((*group).to_owned(), (*version).to_owned()),
        ["version"] => Route::ServerVersion,
        ["openapi", "v2"] => Route::OpenApi2,
        ["openapi", "v3"] => Route::OpenApi3Index,
        ["openapi", "v3", rest @ ..] => Route::OpenApi3(rest.join("/")),
        ["healthz", rest @ ..] => health("healthz", rest),
        ["livez", rest @ ..] => health("livez", rest),
        ["readyz", rest @ ..] => health("readyz", rest),
        ["metrics"] => Route::Metrics,
        [".well-known", "openid-configuration"] => Route::OpenIdConfiguration,
        ["openid", "v1", "jwks"] => Route::OpenIdKeys,
        ["api", "v1", rest @ ..] => resource("", "v1", rest, path, find).unwrap_or(Route::Unknown),
        ["apis", group, version, rest @ ..] => resource(group, version, rest, path, find).unwrap_or(Route::Unknown),
        _ => Route::Unknown,
    }
}

fn health(which: &'static str, rest: &[&str]) -> Route {
    match rest {
        [] => Route::Health(which, None),
        [check] => Route::Health(which, Some((*check).to_owned())),
        _ => Route::Unknown,
    }
}

fn resource(group: &str, version: &str, segments: &[&str], path: &str, find: Find<'_>) -> Option<Route> {
    let (watch, segments) = match segments {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        rest => (false, rest),
    };
    let (namespace, segments) = match segments {
        ["namespaces", name, rest @ ..] if group.is_empty() && matches!(rest, [] | ["status" | "finalize"]) => {
            let _ = name;
            (None, segments)
        }
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(decode_name(namespace)?), rest),
        rest => (None, rest),
    };
    let (plural, rest) = segments.split_first()?;
    let resource = find(group, version, plural)?;
    let (name, subresource, rest) = match rest {
        [] => (None, None, &[][..]),
        [name] => (Some(decode_name(name)?), None, &[][..]),
        [name, subresource, rest @ ..] => (Some(decode_name(name)?), Some((*subresource).to_owned()), rest),
    };
    let scoped = match (resource.namespaced, &namespace, &name) {
        (true, Some(_), _) | (true, None, None) | (false, None, _) => true,
        (true, None, Some(_)) | (false, Some(_), _) => false,
    };
    let known = |wanted: &String| resource.subresource(wanted).is_some();
    let proxied = subresource.as_deref() == Some("proxy");
    if !scoped || !subresource.as_ref().is_none_or(known) || (!rest.is_empty() && !proxied) {
        return None;
    }
    let rest = match (proxied, path.split_once("/proxy")) {
        (true, Some((_, rest))) => rest.to_owned(),
        _ => String::new(),
    };
    let target = Target {
        resource,
        namespace,
        name,
        subresource,
    };
    Some(Route::Resource { target, rest, watch })
}

/// A decoded segment that can be a name: not empty, not `.` or `..`, without `/` and `%`.
fn decode_name(segment: &str) -> Option<String> {
    let name = decode(segment)?;
    let possible = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%']);
    possible.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::find;

    fn shown(path: &str) -> String {
        match route(path, &find) {
            Route::Resource { target, rest, watch } => {
                let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".into());
                let watch = if watch { " watch" } else { "" };
                let (namespace, name) = (part(&target.namespace), part(&target.name));
                format!(
                    "{} {namespace} {name} {} {rest}{watch}",
                    target.resource.plural,
                    part(&target.subresource)
                )
            }
            Route::Unknown => "unknown".into(),
            Route::Root => "root".into(),
            Route::Core => "core".into(),
            Route::Groups => "groups".into(),
            Route::Group(group) => format!("group {group}"),
            Route::Version(group, version) => format!("version {group} {version}"),
            Route::Health(which, check) => format!("{which} {check:?}"),
            Route::OpenApi3(path) => format!("openapi {path}"),
            _ => "other".into(),
        }
    }

    #[test]
    fn paths_lead_where_the_grammar_says() {
        for (path, expected) in [
            ("/", "root"),
            ("/api", "core"),
            ("/apis/", "groups"),
            ("/apis/apps", "group apps"),
            ("/api/v1", "version  v1"),
            ("/apis/apps/v1", "version apps v1"),
            ("/api/v1/pods", "pods - - - "),
            ("/api/v1/pods/", "pods - - - "),
            ("/api/v1/namespaces/x/pods", "pods x - - "),
            ("/api/v1/namespaces/x/pods/web/status", "pods x web status "),
            (
                "/api/v1/namespaces/x/pods/web:80/proxy/a%20b/c",
                "pods x web:80 proxy /a%20b/c",
            ),
            (
                "/api/v1/namespaces/x/pods/web/proxy/proxy/x",
                "pods x web proxy /proxy/x",
            ),
            ("/api/v1/nodes/n/proxy/stats/summary", "nodes - n proxy /stats/summary"),
            ("/api/v1/namespaces/x/pods/web/proxy/", "pods x web proxy /"),
            ("/api/v1/namespaces", "namespaces - - - "),
            ("/api/v1/namespaces/x", "namespaces - x - "),
            ("/api/v1/namespaces/x/finalize", "namespaces - x finalize "),
            ("/api/v1/nodes/a%2Db", "nodes - a-b - "),
            ("/apis/apps/v1/namespaces/x/deployments/web", "deployments x web - "),
            ("/api/v1/watch/namespaces/x/pods", "pods x - -  watch"),
            ("/api/v1/watch/nodes", "nodes - - -  watch"),
            ("/healthz/etcd", "healthz Some(\"etcd\")"),
            ("/openapi/v3/apis/apps/v1", "openapi apis/apps/v1"),
            ("/api/v1/widgets", "unknown"),
            ("/api/v1/pods/web", "unknown"),
            ("/api/v1/namespaces/x/nodes/a", "unknown"),
            ("/api/v1/namespaces/x/pods/web/nothing", "unknown"),
            ("/api/v1/namespaces/x/pods/web/status/more", "unknown"),
            ("/api/v1/namespaces/x/pods/..", "unknown"),
            ("/api/v1/namespaces/x/pods/%zz", "unknown"),
            ("/api/v1/namespaces//pods", "unknown"),
            ("/apis/apps/v2/deployments", "unknown"),
            ("/what", "unknown"),
        ] {
            assert_eq!(shown(path), expected, "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_path_panics(path in ".{0,60}") {
            let _ = shown(&path);
            let _ = shown(&format!("/api/v1/{path}"));
        }
    }
}
