//! The API of one server, asked over bare HTTPS: status, headers and body as they come.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use agent::api::{ApiError, Client, Endpoint, WatchStream};
use agent::join::trust::{self, Shown};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request};
use serde_json::{Value, json};
use tests::lab::Lab;
use tokio::time::timeout;

/// A client gives up on a request after this long: more than servers take to say that their datastore says nothing
/// (`docs/server-died.md`: 35 s).
const LIMIT: Duration = Duration::from_secs(40);

/// Where the configuration maps of tests are.
pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// One way into the cluster.
#[derive(Clone)]
pub struct Door {
    pub name: String,
    endpoint: Endpoint,
    /// What an agent says that comes with the token.
    token: String,
}

/// What a server answered.
pub struct Answer {
    pub code: u16,
    pub body: Value,
    /// Seconds of `Retry-After`.
    pub retry_after: Option<u64>,
    /// It said that it may be out of date.
    pub stale: bool,
}

impl Door {
    /// To the port of host `name`, as the administrator.
    pub fn of(lab: &Lab, name: &str, server: &str) -> Self {
        let read = |file: &str| fs::read(lab.file(server, &format!("lib/k3s/server/tls/{file}"))).unwrap();
        let (chain, key) = (read("client-admin.crt"), read("client-admin.key"));
        let shown = Shown {
            chain: &chain,
            key: &key,
        };
        let tls = trust::bundle(&read("server-ca.crt"), Some(shown), &Default::default()).unwrap();
        let endpoint = Endpoint {
            host: lab.address(name),
            port: 6443,
            tls: Some(tls),
        };
        let token = fs::read_to_string(lab.node_token(server)).unwrap();
        // With the authorities' hash before it.
        let credential = token.trim().rsplit_once("::").unwrap().1;
        let token = format!("Basic {}", STANDARD.encode(credential));
        let name = name.to_owned();
        Self { name, endpoint, token }
    }

    /// Asks on a connection of its own. `Err`: no answer came, whatever became of the request.
    pub async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, String> {
        self.ask_as(None, method, path, body).await
    }

    async fn ask_as(
        &self,
        authorization: Option<&str>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, String> {
        let asking = async {
            let mut link = self.endpoint.connect().await.map_err(|error| error.to_string())?;
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", self.endpoint.authority())
                .header("content-type", "application/json");
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
            let answer = link.ask(request.body(Full::new(body)).unwrap()).await;
            answer.map_err(|failure| failure.error.to_string())
        };
        let answer = timeout(LIMIT, asking).await.map_err(|_| "no answer".to_owned())??;
        let header = |name: &str| answer.head.headers.get(name).and_then(|value| value.to_str().ok());
        Ok(Answer {
            code: answer.head.status.as_u16(),
            body: serde_json::from_slice(&answer.body).unwrap_or_default(),
            retry_after: header("retry-after").and_then(|seconds| seconds.parse().ok()),
            stale: header("warning").is_some(),
        })
    }

    /// Reads the map of this name.
    pub async fn read(&self, name: &str) -> Result<Answer, String> {
        self.ask(Method::GET, &format!("{MAPS}/{name}"), None).await
    }

    /// Makes it.
    pub async fn create(&self, name: &str, value: u64) -> Result<Answer, String> {
        self.ask(Method::POST, MAPS, Some(&map(name, value, None))).await
    }

    /// Changes it if it is still as of this revision.
    pub async fn update(&self, name: &str, value: u64, revision: u64) -> Result<Answer, String> {
        let body = map(name, value, Some(revision));
        self.ask(Method::PUT, &format!("{MAPS}/{name}"), Some(&body)).await
    }

    /// Removes it.
    pub async fn delete(&self, name: &str) -> Result<Answer, String> {
        self.ask(Method::DELETE, &format!("{MAPS}/{name}"), None).await
    }

    /// The addresses of the servers that agents are told of, without ports.
    pub async fn servers(&self) -> Result<BTreeSet<String>, String> {
        let token = Some(self.token.as_str());
        let answer = self.ask_as(token, Method::GET, "/v1-k3s/apiservers", None).await?;
        let all = answer.body.as_array().filter(|_| answer.code == 200);
        let all = all.ok_or_else(|| format!("{}: {}", answer.code, answer.body))?.iter();
        let hosts = all.filter_map(|one| Some(one.as_str()?.rsplit_once(':')?.0.to_owned()));
        Ok(hosts.collect())
    }

    /// The newest revision.
    pub async fn revision(&self) -> Result<u64, String> {
        let list = self.ask(Method::GET, &format!("{MAPS}?limit=1"), None).await?;
        revision(&list.body).ok_or_else(|| format!("{}: {}", list.code, list.body))
    }

    /// Watches the maps from a revision on.
    pub async fn watch(&self, from: u64) -> Result<WatchStream, String> {
        self.open_watch(from).await.map_err(|error| error.to_string())
    }

    /// The same, for who wants to know why not.
    pub async fn open_watch(&self, from: u64) -> Result<WatchStream, ApiError> {
        self.follow(&format!(
            "{MAPS}?watch=1&allowWatchBookmarks=true&resourceVersion={from}"
        ))
        .await
    }

    /// Opens any watch; `path` holds the query.
    pub async fn follow(&self, path: &str) -> Result<WatchStream, ApiError> {
        Client::new(self.endpoint.clone()).watch(path).await
    }
}

fn map(name: &str, value: u64, revision: Option<u64>) -> Value {
    let mut map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value.to_string()},
    });
    if let Some(revision) = revision {
        map["metadata"]["resourceVersion"] = revision.to_string().into();
    }
    map
}

/// The revision of an object or a list.
pub fn revision(object: &Value) -> Option<u64> {
    object["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

/// What a map holds.
pub fn value(object: &Value) -> Option<u64> {
    object["data"]["value"].as_str()?.parse().ok()
}
