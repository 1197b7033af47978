//! Questions that are answered and not stored: who am I, whose token is this, may I, and a token please.
//!
//! Source: Kubernetes v1.36 `pkg/registry/authentication`, `pkg/registry/authorization` and
//! `pkg/registry/core/serviceaccount/storage/token.go`.

use std::collections::BTreeMap;

use agent::wire::object::{at, integer, list, set, text};
use agent::wire::status::{Reason, Status};
use agent::wire::time;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::ApiHttp;
use super::handler::Ask;
use crate::auth::may::{Attributes, Rule};
use crate::auth::node;
use crate::auth::token::{Claims, uuid};
use crate::request::{Target, User};

/// Seconds that a token lasts unless asked otherwise.
const TOKEN_DEFAULT_S: i64 = 3600;
/// No token is asked for less than this.
const TOKEN_MIN_S: i64 = 600;
/// Longer is shortened: a year.
const TOKEN_MAX_S: i64 = 365 * 86_400;
/// What the kubelet asks for on behalf of pods. Such tokens work for a year, for clients that read theirs once
/// (`ServiceAccountTokenExtendExpiration`); they are renewed as if they did not.
const TOKEN_OF_PODS_S: i64 = 3607;

/// A question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Review {
    Token,
    Me,
    Access,
    MyAccess,
    LocalAccess,
    MyRules,
    NewToken,
}

impl Review {
    /// The question that a target is; `None`: it is a stored resource.
    pub fn of(target: &Target) -> Option<Self> {
        match (target.resource.plural, target.subresource.as_deref()) {
            ("serviceaccounts", Some("token")) => Some(Self::NewToken),
            ("tokenreviews", None) => Some(Self::Token),
            ("selfsubjectreviews", None) => Some(Self::Me),
            ("subjectaccessreviews", None) => Some(Self::Access),
            ("selfsubjectaccessreviews", None) => Some(Self::MyAccess),
            ("localsubjectaccessreviews", None) => Some(Self::LocalAccess),
            ("selfsubjectrulesreviews", None) => Some(Self::MyRules),
            _ => None,
        }
    }

    const fn kind(self) -> (&'static str, &'static str) {
        match self {
            Self::Token => ("authentication.k8s.io/v1", "TokenReview"),
            Self::Me => ("authentication.k8s.io/v1", "SelfSubjectReview"),
            Self::NewToken => ("authentication.k8s.io/v1", "TokenRequest"),
            Self::Access => ("authorization.k8s.io/v1", "SubjectAccessReview"),
            Self::MyAccess => ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
            Self::LocalAccess => ("authorization.k8s.io/v1", "LocalSubjectAccessReview"),
            Self::MyRules => ("authorization.k8s.io/v1", "SelfSubjectRulesReview"),
        }
    }

    fn invalid(self, reason: &'static str, field: &str, text: &str) -> Status {
        let (version, kind) = self.kind();
        let group = version.split('/').next().unwrap_or_default();
        Status::invalid(group, kind, "", &[(reason, field.to_owned(), text.to_owned())])
    }
}

impl ApiHttp {
    /// Answers a question with itself and its `status`.
    pub(super) fn review(&self, ask: &Ask, review: Review, target: &Target, mut body: Value) -> Result<Value, Status> {
        let (version, kind) = review.kind();
        for (key, expected) in [("apiVersion", version), ("kind", kind)] {
            let given = text(&body, &[key]);
            if !given.is_empty() && given != expected {
                let text = format!("{key} in the data ({given}) does not match the expected one ({expected})");
                return Err(Status::failure(Reason::BadRequest, text));
            }
        }
        let status = match review {
            Review::Me => json!({"userInfo": user_info(&ask.user)}),
            Review::Token => self.token_review(ask, &body)?,
            Review::MyAccess => self.access(review, &ask.user, &body)?,
            Review::Access | Review::LocalAccess => {
                let spec = body.get("spec").unwrap_or(&Value::Null);
                let namespace = text(spec, &["resourceAttributes", "namespace"]);
                if review == Review::LocalAccess && target.namespace.as_deref() != Some(namespace) {
                    let text = "Invalid value: must match metadata.namespace";
                    return Err(review.invalid("FieldValueInvalid", "spec.resourceAttributes.namespace", text));
                }
                let user = subject(spec);
                if user.name.is_empty() && user.groups.is_empty() {
                    let text = "Invalid value: \"\": at least one of user or group must be specified";
                    return Err(review.invalid("FieldValueInvalid", "spec.user", text));
                }
                self.access(review, &user, &body)?
            }
            Review::MyRules => self.my_rules(ask, &body)?,
            Review::NewToken => return self.new_token(ask, target, body),
        };
        let mut metadata = body.get("metadata").cloned().unwrap_or_else(|| json!({}));
        if let (Review::LocalAccess, Some(namespace)) = (review, &target.namespace) {
            set(&mut metadata, &["namespace"], namespace.as_str());
        }
        let spec = body.get_mut("spec").map(Value::take).unwrap_or_else(|| json!({}));
        Ok(json!({"kind": kind, "apiVersion": version, "metadata": metadata, "spec": spec, "status": status}))
    }

    fn token_review(&self, ask: &Ask, body: &Value) -> Result<Value, Status> {
        let token = text(body, &["spec", "token"]);
        if token.is_empty() {
            let text = "Required value: token is required for TokenReview in authentication";
            return Err(Review::Token.invalid("FieldValueRequired", "spec.token", text));
        }
        let who = &self.parts.who;
        let asked = texts(body, &["spec", "audiences"]);
        let audiences = if asked.is_empty() { &who.audiences } else { &asked };
        Ok(match who.bearer(token, audiences, ask.now) {
            Ok((user, shared)) => {
                json!({"authenticated": true, "user": user_info(&user), "audiences": shared})
            }
            Err(error) => json!({"user": {}, "error": format!("token is not accepted: {error}")}),
        })
    }

    fn access(&self, review: Review, user: &User, body: &Value) -> Result<Value, Status> {
        let spec = body.get("spec").unwrap_or(&Value::Null);
        let resource = spec.get("resourceAttributes").filter(|value| value.is_object());
        let path = spec.get("nonResourceAttributes").filter(|value| value.is_object());
        let asked = match (resource, path) {
            (Some(one), None) => Attributes::Resource {
                verb: text(one, &["verb"]),
                group: text(one, &["group"]),
                resource: text(one, &["resource"]),
                subresource: text(one, &["subresource"]),
                namespace: text(one, &["namespace"]),
                name: text(one, &["name"]),
                fields: None,
            },
            (None, Some(one)) if review != Review::LocalAccess => Attributes::Path {
                verb: text(one, &["verb"]),
                path: text(one, &["path"]),
            },
            _ => {
                let text =
                    "Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified";
                return Err(review.invalid("FieldValueInvalid", "spec.resourceAttributes", text));
            }
        };
        Ok(json!({"allowed": self.parts.api.authorizer().allows(user, &asked)}))
    }

    fn my_rules(&self, ask: &Ask, body: &Value) -> Result<Value, Status> {
        let namespace = text(body, &["spec", "namespace"]);
        if namespace.is_empty() {
            let text = "no namespace on request";
            return Err(Status::failure(Reason::BadRequest, text));
        }
        let authorizer = self.parts.api.authorizer();
        let (mut resources, mut paths) = (Vec::new(), Vec::new());
        for rule in authorizer.rules_for(&ask.user, namespace) {
            let Rule {
                verbs,
                groups,
                resources: kinds,
                names,
                paths: urls,
            } = rule;
            if !kinds.is_empty() {
                let mut entry = json!({"verbs": verbs, "apiGroups": groups, "resources": kinds});
                if !names.is_empty() {
                    set(&mut entry, &["resourceNames"], names);
                }
                resources.push(entry);
            }
            if !urls.is_empty() {
                paths.push(json!({"verbs": verbs, "nonResourceURLs": urls}));
            }
        }
        Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
    }

    /// Issues a token for a service account.
    fn new_token(&self, ask: &Ask, target: &Target, mut body: Value) -> Result<Value, Status> {
        let who = &self.parts.who;
        let (namespace, name) = (
            target.namespace.as_deref().unwrap_or_default(),
            target.name.as_deref().unwrap_or_default(),
        );
        let key = target.resource.key(Some(namespace), name);
        let account = who
            .cache
            .get(&key)
            .ok_or_else(|| Status::not_found("", "serviceaccounts", name))?;
        let wanted = integer(&body, &["spec", "expirationSeconds"]).unwrap_or(TOKEN_DEFAULT_S);
        if wanted < TOKEN_MIN_S {
            let text = format!("Invalid value: {wanted}: may not specify a duration less than 10 minutes");
            return Err(Review::NewToken.invalid("FieldValueInvalid", "spec.expirationSeconds", &text));
        }
        let wanted = wanted.min(TOKEN_MAX_S);
        let asked = texts(&body, &["spec", "audiences"]);
        let ours = asked.is_empty() || asked == who.audiences;
        let audiences = if asked.is_empty() { who.audiences.clone() } else { asked };
        let reference = at(&body, &["spec", "boundObjectRef"]).cloned().unwrap_or_default();
        let (mut bound, of_pod) = self.binding(ask, &reference, namespace, name)?;
        bound.insert("namespace".to_owned(), namespace.into());
        bound.insert(
            "serviceaccount".to_owned(),
            json!({"name": name, "uid": *account.index.uid}),
        );
        let now = ask.now.as_second();
        let mut expires = now.saturating_add(wanted);
        if wanted == TOKEN_OF_PODS_S && ours && of_pod {
            bound.insert("warnafter".to_owned(), expires.into());
            expires = now.saturating_add(TOKEN_MAX_S);
        }
        let claims = Claims {
            aud: audiences.clone(),
            exp: expires,
            iat: now,
            iss: who.keys.issuer().to_owned(),
            jti: uuid(),
            kubernetes: Value::Object(bound),
            nbf: now,
            sub: format!("system:serviceaccount:{namespace}:{name}"),
        };
        let token = who.keys.sign(&claims).map_err(Status::internal)?;
        let until = Timestamp::from_second(now.saturating_add(wanted)).map_err(Status::internal)?;
        let mut spec = body
            .get_mut("spec")
            .map(Value::take)
            .filter(Value::is_object)
            .unwrap_or_else(|| json!({}));
        set(&mut spec, &["audiences"], audiences);
        set(&mut spec, &["expirationSeconds"], wanted);
        let (version, kind) = Review::NewToken.kind();
        Ok(json!({
            "kind": kind,
            "apiVersion": version,
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": time::seconds(ask.now)},
            "spec": spec,
            "status": {"token": token, "expirationTimestamp": time::seconds(until)},
        }))
    }

    /// What a token is bound to, as claims; whether that is a pod.
    fn binding(
        &self,
        ask: &Ask,
        reference: &Value,
        namespace: &str,
        account: &str,
    ) -> Result<(Map<String, Value>, bool), Status> {
        let cache = &self.parts.who.cache;
        let mut claims = Map::new();
        let by_node = node::name_of(&ask.user);
        let (kind, name) = (text(reference, &["kind"]), text(reference, &["name"]));
        if kind.is_empty() {
            return match by_node {
                Some(_) => Err(Status::forbidden(
                    "",
                    "serviceaccounts",
                    account,
                    "node requested token not bound to a pod",
                )),
                None => Ok((claims, false)),
            };
        }
        let (what, key, plural) = match (kind, text(reference, &["apiVersion"])) {
            ("Pod", "v1") => ("pod", format!("/registry/pods/{namespace}/{name}"), "pods"),
            ("Secret", "v1") => ("secret", format!("/registry/secrets/{namespace}/{name}"), "secrets"),
            ("Node", "v1") => ("node", format!("/registry/minions/{name}"), "nodes"),
            (kind, version) => {
                let text =
                    format!("cannot bind token for serviceaccount {account:?} to object of {version}, kind {kind}");
                return Err(Status::failure(Reason::BadRequest, text));
            }
        };
        let item = cache.get(&key).ok_or_else(|| Status::not_found("", plural, name))?;
        let uid = text(reference, &["uid"]);
        if by_node.is_some() && uid.is_empty() {
            let why = "node requested token with a pod binding without a uid";
            return Err(Status::forbidden("", "serviceaccounts", account, why));
        }
        if !uid.is_empty() && uid != &*item.index.uid {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Status::conflict("", plural, name, &why));
        }
        claims.insert(what.to_owned(), json!({"name": name, "uid": *item.index.uid}));
        if what == "pod" {
            let node = item.field("spec.nodeName").to_owned();
            let own = item.field("spec.serviceAccountName");
            if own != account {
                let why = format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                );
                return Err(Status::failure(Reason::BadRequest, why));
            }
            if by_node.is_some_and(|by| by != node) {
                let why = "node requested token bound to a pod scheduled on a different node";
                return Err(Status::forbidden("", "serviceaccounts", account, why));
            }
            if let Some(host) = cache.get(&format!("/registry/minions/{node}")) {
                claims.insert("node".to_owned(), json!({"name": node, "uid": *host.index.uid}));
            }
        } else if by_node.is_some() {
            return Err(Status::forbidden(
                "",
                "serviceaccounts",
                account,
                "node requested token not bound to a pod",
            ));
        }
        Ok((claims, what == "pod"))
    }
}

fn texts(body: &Value, path: &[&str]) -> Vec<String> {
    let texts = list(body, path).iter().filter_map(Value::as_str);
    texts.map(ToOwned::to_owned).collect()
}

/// The user that an access review asks about.
fn subject(spec: &Value) -> User {
    let extra = spec.get("extra").and_then(Value::as_object);
    let values = |value: &Value| texts(value, &[]);
    User {
        name: text(spec, &["user"]).to_owned(),
        groups: texts(spec, &["groups"]),
        uid: text(spec, &["uid"]).to_owned(),
        extra: extra.map_or_else(BTreeMap::new, |extra| {
            extra.iter().map(|(key, value)| (key.clone(), values(value))).collect()
        }),
    }
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        set(&mut info, &["uid"], user.uid.as_str());
    }
    if !user.extra.is_empty() {
        set(&mut info, &["extra"], json!(user.extra));
    }
    info
}
