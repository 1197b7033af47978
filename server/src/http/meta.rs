//! What the server says about itself: version, health, paths, token keys. Discovery of resources is `discovery`'s.

use agent::wire::status::{Reason, Status};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::encode::{self, Style};
use super::handler::Ask;
use super::negotiate::{Form, Media, Wanted};
use super::path::Route;
use super::{ApiHttp, Body, discovery, empty, full};
use crate::registry::resource::Resource;
use crate::schema::openapi;

/// The Kubernetes release whose API this is.
pub const MAJOR: &str = "1";
/// Its minor version.
pub const MINOR: &str = "36";

impl ApiHttp {
    /// Answers for everything that is not a resource.
    pub(super) fn meta(&self, ask: &Ask, route: &Route) -> Result<Response<Body>, Status> {
        let rows = self.parts.api.rows();
        match route {
            Route::Root => Ok(document(ask, &paths(&rows))),
            Route::ServerVersion => Ok(document(ask, &version())),
            Route::Health(which, check) => Ok(self.health(ask, which, check.as_deref())),
            Route::Core | Route::Groups | Route::Group(_) | Route::Version(..) => {
                let found = discovery::answer(route, &rows, ask.header(&header::ACCEPT), &(self.parts.address)())?;
                let mut response = document_as(ask, found.content_type, found.body.to_string());
                response
                    .headers_mut()
                    .insert(header::VARY, HeaderValue::from_static("Accept"));
                Ok(response)
            }
            Route::OpenApi3Index => {
                let rows: Vec<&Resource> = rows.iter().map(AsRef::as_ref).collect();
                Ok(document_as(ask, Media::Json.name(), openapi::index(&rows)))
            }
            Route::OpenApi2 => {
                let rows: Vec<&Resource> = rows.iter().map(AsRef::as_ref).collect();
                let (encoding, content_type) = super::negotiate::openapi2(ask.header(&header::ACCEPT))?;
                // The document takes longer to make than to name.
                let tag = format!("\"{}-{encoding:?}\"", openapi::v2::hash(&rows));
                let mut response = tagged(ask, content_type, &tag, || openapi::v2::document(&rows, encoding));
                response
                    .headers_mut()
                    .insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
                Ok(response)
            }
            Route::OpenApi3(path) => {
                let rows: Vec<&Resource> = rows.iter().map(AsRef::as_ref).collect();
                self.open_api(ask, path, &rows)
            }
            Route::OpenIdConfiguration => {
                let (issuer, address) = (self.parts.who.keys.issuer(), (self.parts.address)());
                Ok(document(
                    ask,
                    &json!({
                        "issuer": issuer,
                        "jwks_uri": format!("https://{address}/openid/v1/jwks"),
                        "response_types_supported": ["id_token"],
                        "subject_types_supported": ["public"],
                        "id_token_signing_alg_values_supported": self.parts.who.keys.algorithms(),
                    }),
                ))
            }
            Route::OpenIdKeys => {
                let keys = self.parts.who.keys.jwks().to_string();
                Ok(document_as(ask, "application/jwk-set+json", keys))
            }
            Route::Metrics | Route::Unknown | Route::Resource { .. } => Err(Status::no_such_route()),
        }
    }

    fn open_api(&self, ask: &Ask, path: &str, rows: &[&Resource]) -> Result<Response<Body>, Status> {
        let group_version = match path.split_once('/') {
            Some(("api", version)) => version,
            Some(("apis", group_version)) => group_version,
            _ => return Err(Status::no_such_route()),
        };
        let current = openapi::hash(group_version, rows);
        let asked = ask.query.get("hash");
        if let Some(stale) = asked.filter(|hash| *hash != current) {
            tracing::debug!(stale, "a stale OpenAPI document was asked for");
            let place = format!("/openapi/v3/{path}?hash={current}");
            let mut response = encode::respond(StatusCode::MOVED_PERMANENTLY, Media::Json.name(), empty());
            let place = HeaderValue::from_str(&place).map_err(Status::internal)?;
            response.headers_mut().insert(header::LOCATION, place);
            return Ok(response);
        }
        let document = openapi::document(group_version, rows).ok_or_else(Status::no_such_route)?;
        let mut response = document_as(ask, Media::Json.name(), document);
        if asked.is_some() {
            let forever = HeaderValue::from_static("public, immutable");
            response.headers_mut().insert(header::CACHE_CONTROL, forever);
        }
        Ok(response)
    }

    fn health(&self, ask: &Ask, which: &str, only: Option<&str>) -> Response<Body> {
        let mut checks = vec![("ping", true)];
        if which != "livez" {
            checks.push(("started", *self.parts.ready.borrow()));
        }
        if which == "readyz" {
            checks.push(("shutdown", !*ask.stop.borrow()));
        }
        if let Some(only) = only {
            checks.retain(|(name, _)| *name == only);
            if checks.is_empty() {
                return encode::status(&Status::failure(
                    Reason::NotFound,
                    format!("there is no check {only:?}"),
                ));
            }
        }
        let well = checks.iter().all(|(_, well)| *well);
        let verbose = !well || ask.query.all("verbose").next().is_some();
        let mut text = String::new();
        if verbose {
            for (name, well) in &checks {
                text.push_str(&match well {
                    true => format!("[+]{name} ok\n"),
                    false => format!("[-]{name} failed: reason withheld\n"),
                });
            }
            text.push_str(&format!("{which} check {}\n", if well { "passed" } else { "failed" }));
        } else {
            text.push_str("ok");
        }
        let code = if well {
            StatusCode::OK
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        let mut response = encode::respond(code, "text/plain; charset=utf-8", full(text));
        let nosniff = HeaderValue::from_static("nosniff");
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
        response
    }
}

fn document(ask: &Ask, value: &Value) -> Response<Body> {
    document_as(ask, Media::Json.name(), value.to_string())
}

/// A document that changes rarely: with an ETag, and 304 for who has it.
fn document_as(ask: &Ask, content_type: &'static str, body: impl Into<bytes::Bytes>) -> Response<Body> {
    let body = body.into();
    let sum = digest(&SHA256, &body);
    let tag: String = sum.as_ref().iter().take(16).map(|byte| format!("{byte:02X}")).collect();
    tagged(ask, content_type, &format!("\"{tag}\""), || body)
}

/// The same, its ETag known beforehand: it is not made for who has it.
fn tagged(ask: &Ask, content_type: &'static str, tag: &str, make: impl FnOnce() -> bytes::Bytes) -> Response<Body> {
    let mut response = match ask.header(&header::IF_NONE_MATCH) == tag {
        true => encode::respond(StatusCode::NOT_MODIFIED, content_type, empty()),
        false => {
            let (media, form) = (Media::Json, Form::Object);
            let style = Style {
                wanted: Wanted { media, form },
                include: super::table::Include::None,
                gzip: ask.gzip,
                now: ask.now,
            };
            encode::bytes(content_type, make(), style)
        }
    };
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn version() -> Value {
    json!({
        "major": MAJOR,
        "minor": MINOR,
        "gitVersion": crate::KUBERNETES_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, discovery::architecture()),
    })
}

fn paths(rows: &[std::sync::Arc<Resource>]) -> Value {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(ToOwned::to_owned)
    .into();
    for row in rows.iter().filter(|row| !row.group.is_empty()) {
        paths.push(format!("/apis/{}", row.group));
        paths.push(format!("/apis/{}/{}", row.group, row.version));
    }
    paths.sort();
    paths.dedup();
    json!({"paths": paths})
}
