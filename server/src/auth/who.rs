//! Who is asking: client certificate, password, token, or nobody.
//!
//! The first authenticator that knows the credential decides; a credential that is presented and wrong is a refusal, never
//! "nobody". Reads the cache for service accounts, what their tokens are bound to, and bootstrap tokens.
//!
//! Source: Kubernetes v1.36, `pkg/kubeapiserver/authenticator` and `pkg/serviceaccount/claims.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent::wire::object::text;
use agent::wire::time;
use agent::wire::token::Bootstrap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap};
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::token::{Claims, Keys, TokenError};
use crate::cache::{Cache, Item};
use crate::kinds::bootstrap_token::{self, BootstrapToken};
use crate::request::User;

/// A pod's token works for so long after its pod was to be gone (upstream's `expiryGracePeriod`).
const GONE_GRACE_S: i64 = 60;

/// Checks user name and password: K3s' `passwd` file, kept by the supervisor.
pub trait Passwords: Send + Sync {
    /// The user, when the password is the one on record.
    fn check(&self, user: &str, password: &str) -> Option<User>;
}

/// What a request without credentials may see.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Anonymous {
    /// Nothing at all: `anonymous-auth=false`, as K3s runs it.
    Refused,
    /// Health and version, and nothing else whatever roles say.
    #[default]
    HealthOnly,
    /// What roles give `system:anonymous` and `system:unauthenticated`.
    Allowed,
}

/// The credential is wrong, or there is none: 401.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("Unauthorized")]
pub struct Unauthorized;

/// The authenticators.
pub struct Who {
    /// Basic authentication, if any.
    pub passwords: Option<Arc<dyn Passwords>>,
    /// Service-account keys.
    pub keys: Arc<Keys>,
    /// The API's own audiences: a token for one of them is for us. The first is the default of new tokens.
    pub audiences: Vec<String>,
    /// Requests without credentials.
    pub anonymous: Anonymous,
    /// Where accounts and their objects are looked up.
    pub cache: Cache,
    /// Whether the clock that shows this is behind, so that nobody knows what has ended.
    pub is_behind: Arc<dyn Fn(Timestamp) -> bool + Send + Sync>,
}

/// Why a genuine bootstrap token is not taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NotTaken {
    /// Its end has come.
    Over {
        /// The token's.
        id: String,
        /// When that was.
        end: Timestamp,
    },
    /// The clock does not know whether its end has come.
    Unknowable {
        /// The token's.
        id: String,
    },
}

impl Who {
    /// The user behind a request; `None`: no credentials. `certificate`: whom the client certificate names, if there is one.
    ///
    /// One that names nobody stands in the way of no good token; alone it is a credential that is no good.
    ///
    /// # Errors
    /// [`Unauthorized`] for credentials that are no good.
    pub fn ask(
        &self,
        headers: &HeaderMap,
        certificate: Result<Option<&User>, Unauthorized>,
        now: Timestamp,
    ) -> Result<Option<User>, Unauthorized> {
        match certificate {
            Ok(Some(user)) => Ok(Some(user.clone())),
            Ok(None) => self.by_header(headers, now),
            Err(refused) => self.by_header(headers, now)?.ok_or(refused).map(Some),
        }
    }

    /// The user of the `Authorization` header alone; `None`: there is none.
    ///
    /// # Errors
    /// [`Unauthorized`] for credentials that are no good.
    pub fn by_header(&self, headers: &HeaderMap, now: Timestamp) -> Result<Option<User>, Unauthorized> {
        let Some(header) = headers.get(AUTHORIZATION) else {
            return Ok(None);
        };
        let header = header.to_str().map_err(|_| Unauthorized)?;
        let (scheme, credential) = header.split_once(' ').ok_or(Unauthorized)?;
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => self.basic(credential.trim()).map(Some),
            "bearer" => self
                .bearer(credential.trim(), &self.audiences, now)
                .map(|(user, _)| Some(user)),
            _ => Err(Unauthorized),
        }
    }

    fn basic(&self, credential: &str) -> Result<User, Unauthorized> {
        let bytes = STANDARD.decode(credential).map_err(|_| Unauthorized)?;
        let text = String::from_utf8(bytes).map_err(|_| Unauthorized)?;
        let (user, password) = text.split_once(':').ok_or(Unauthorized)?;
        let passwords = self.passwords.as_ref().ok_or(Unauthorized)?;
        passwords.check(user, password).ok_or(Unauthorized)
    }

    /// The user of a bearer token and which of `audiences` it is for.
    ///
    /// # Errors
    /// [`Unauthorized`] for any token that is no good.
    pub fn bearer(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<(User, Vec<String>), Unauthorized> {
        match self.keys.verify(token, now) {
            Ok(claims) => {
                let legacy = claims.exp == 0;
                let mine = |one: &&String| legacy || claims.aud.contains(*one);
                let shared: Vec<String> = audiences.iter().filter(mine).cloned().collect();
                if shared.is_empty() {
                    return Err(Unauthorized);
                }
                let user = self.account(&claims, token, now).ok_or(Unauthorized)?;
                Ok((user, shared))
            }
            Err(TokenError::Foreign) => {
                let user = self.bootstrap(token, now).ok_or(Unauthorized)?;
                Ok((user, audiences.to_vec()))
            }
            Err(_) => Err(Unauthorized),
        }
    }

    /// The service account of a genuine token, if it and what the token is bound to still exist.
    fn account(&self, claims: &Claims, token: &str, now: Timestamp) -> Option<User> {
        let (namespace, name) = claims.sub.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        let account = self
            .cache
            .get(&format!("/registry/serviceaccounts/{namespace}/{name}"))?;
        let mut extra = BTreeMap::new();
        if claims.exp == 0 {
            // A legacy token lives as long as the secret that holds it.
            let secret = text(&claims.kubernetes, &["secret", "name"]);
            let item = self.cache.get(&format!("/registry/secrets/{namespace}/{secret}"))?;
            let held = STANDARD.decode(text(&item.value(), &["data", "token"])).ok()?;
            (held == token.as_bytes()).then_some(())?;
        } else {
            let bound = &claims.kubernetes;
            (*account.index.uid == *text(bound, &["serviceaccount", "uid"])).then_some(())?;
            for (what, prefix, space) in [
                ("pod", "/registry/pods/", format!("{namespace}/")),
                ("node", "/registry/minions/", String::new()),
                ("secret", "/registry/secrets/", format!("{namespace}/")),
            ] {
                let (object, uid) = (text(bound, &[what, "name"]), text(bound, &[what, "uid"]));
                if object.is_empty() {
                    continue;
                }
                if what != "node" || bound.get("pod").is_none() {
                    let item = self.cache.get(&format!("{prefix}{space}{object}"))?;
                    (*item.index.uid == *uid && !gone(&item, now)).then_some(())?;
                }
                if what != "secret" {
                    let key = |part| format!("authentication.kubernetes.io/{what}-{part}");
                    extra.insert(key("name"), vec![object.to_owned()]);
                    extra.insert(key("uid"), vec![uid.to_owned()]);
                }
            }
            if !claims.jti.is_empty() {
                let id = format!("JTI={}", claims.jti);
                extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![id]);
            }
        }
        Some(User {
            uid: account.index.uid.to_string(),
            extra,
            ..service_account(namespace, name)
        })
    }

    /// The user of a bootstrap token `ID.SECRET`.
    fn bootstrap(&self, token: &str, now: Timestamp) -> Option<User> {
        let token = self.held(token)?;
        not_taken(&token, now, (self.is_behind)(now)).is_none().then_some(())?;
        let extra = token.groups.iter().map(String::as_str);
        let groups: Vec<&str> = extra.chain([bootstrap_token::GROUP]).collect();
        Some(User::new(&format!("system:bootstrap:{}", token.token.id), &groups))
    }

    /// Why the bootstrap token of the `Authorization` header is not taken, if it is genuine: to be told to who sent it.
    pub fn bootstrap_not_taken(&self, headers: &HeaderMap, now: Timestamp) -> Option<NotTaken> {
        let header = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, credential) = header.split_once(' ')?;
        let token = scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| self.held(credential.trim()))??;
        not_taken(&token, now, (self.is_behind)(now))
    }

    /// The bootstrap token on record, when this is its text and one may log in with it.
    fn held(&self, text: &str) -> Option<BootstrapToken> {
        let Bootstrap { id, secret } = Bootstrap::parse(text)?;
        let (namespace, prefix) = (bootstrap_token::NAMESPACE, bootstrap_token::PREFIX);
        let item = self.cache.get(&format!("/registry/secrets/{namespace}/{prefix}{id}"))?;
        let token = BootstrapToken::read(&item.value())?;
        // Digests are compared, so that the time it takes says nothing of the secret.
        let same = |text: &str| digest(&SHA256, text.as_bytes());
        let genuine = same(token.token.secret.expose()).as_ref() == same(secret.expose()).as_ref();
        (genuine && token.authenticates()).then_some(token)
    }
}

/// Why a token that is genuine is not taken; `behind`: the clock is.
fn not_taken(token: &BootstrapToken, now: Timestamp, behind: bool) -> Option<NotTaken> {
    let (end, id) = (token.expires?, token.token.id.clone());
    match (token.is_over(now), behind) {
        (true, _) => Some(NotTaken::Over { id, end }),
        (false, true) => Some(NotTaken::Unknowable { id }),
        (false, false) => None,
    }
}

/// A service account as a user, with its groups.
pub fn service_account(namespace: &str, name: &str) -> User {
    let own = format!("system:serviceaccounts:{namespace}");
    User::new(
        &format!("system:serviceaccount:{namespace}:{name}"),
        &["system:serviceaccounts", &own],
    )
}

/// Nobody.
pub fn anonymous() -> User {
    User {
        name: "system:anonymous".to_owned(),
        groups: vec!["system:unauthenticated".to_owned()],
        ..User::default()
    }
}

/// Whether an object has been deleted for longer than its tokens may outlive it.
fn gone(item: &Item, now: Timestamp) -> bool {
    const MARK: &[u8] = b"\"deletionTimestamp\"";
    if !item.body.windows(MARK.len()).any(|window| window == MARK) {
        return false;
    }
    let object: Value = item.value();
    let deleted = time::parse(text(&object, &["metadata", "deletionTimestamp"]));
    deleted.is_some_and(|at| now.as_second() > at.as_second() + GONE_GRACE_S)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_clock_that_is_behind_takes_the_tokens_that_do_not_expire() {
        let token = |expires: Option<&str>| {
            let encode = |text: &str| STANDARD.encode(text);
            let mut data = json!({"token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
                "usage-bootstrap-authentication": encode("true")});
            if let Some(end) = expires {
                data["expiration"] = encode(end).into();
            }
            let name = "bootstrap-token-abcdef";
            let secret = json!({"metadata": {"name": name, "namespace": "kube-system"},
                "type": "bootstrap.kubernetes.io/token", "data": data});
            BootstrapToken::read(&secret).unwrap()
        };
        let (id, end) = ("abcdef".to_owned(), "2026-11-27T00:00:00Z");
        let over = Some(NotTaken::Over {
            id: id.clone(),
            end: end.parse().unwrap(),
        });
        for (expires, now, behind, wanted) in [
            (None, "1970-01-01T00:01:00Z", true, None),
            (
                Some(end),
                "1970-01-01T00:01:00Z",
                true,
                Some(NotTaken::Unknowable { id }),
            ),
            (Some(end), "2026-11-26T00:00:00Z", false, None),
            (Some(end), "2026-11-28T00:00:00Z", false, over.clone()),
            (Some(end), "2026-11-28T00:00:00Z", true, over),
        ] {
            let found = not_taken(&token(expires), now.parse().unwrap(), behind);
            assert_eq!(found, wanted, "{expires:?} at {now}, behind: {behind}");
        }
    }
}
