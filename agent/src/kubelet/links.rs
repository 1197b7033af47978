//! The services that a pod's environment announces.
//!
//! Source: Kubernetes v1.36, `pkg/kubelet/kubelet_pods.go` `getServiceEnvVarMap`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::Mutex;

use super::clock;
use super::env::service_links;
use super::ports::{Api, ApiFailure};
use crate::wire::object::{list, text};
use crate::wire::pod::Pod;

/// `default/kubernetes` changes with the cluster's life, not with a pod's.
const KUBERNETES_KEPT: Duration = Duration::from_secs(60);
/// Namespaces remembered; a node runs a hundred pods at most.
const NAMESPACES: usize = 128;

/// What was last seen of services, by namespace.
#[derive(Debug, Default)]
pub struct Links {
    seen: Mutex<BTreeMap<String, (Instant, Vec<Value>)>>,
}

impl Links {
    /// The variables for a pod that came to this node at `came`: services made before it are among them. With no server
    /// in reach, those last seen.
    pub async fn of(&self, api: &dyn Api, pod: &Pod, came: Instant) -> Vec<(String, String)> {
        let mut seen = self.seen.lock().await;
        let namespace = &pod.meta.namespace;
        let mut services = Vec::new();
        if pod.spec.enable_service_links.unwrap_or(true) {
            let path = format!("/api/v1/namespaces/{namespace}/services");
            refresh(&mut seen, namespace, came, api.get(&path)).await;
            services.extend(seen.get(namespace).into_iter().flat_map(|(_, all)| all.clone()));
        }
        // An empty namespace is nobody's: the key of the one service that every pod hears of.
        let since = clock::now().checked_sub(KUBERNETES_KEPT).unwrap_or(came);
        let kubernetes = api.get("/api/v1/namespaces/default/services/kubernetes");
        refresh(&mut seen, "", since, kubernetes).await;
        if namespace != "default" || services.is_empty() {
            services.extend(seen.get("").into_iter().flat_map(|(_, all)| all.clone()));
        }
        if seen.len() > NAMESPACES {
            seen.clear();
        }
        service_links(&services)
    }
}

async fn refresh(
    seen: &mut BTreeMap<String, (Instant, Vec<Value>)>,
    key: &str,
    since: Instant,
    asking: impl Future<Output = Result<Value, ApiFailure>>,
) {
    if seen.get(key).is_some_and(|(at, _)| *at >= since) {
        return;
    }
    let now = clock::now();
    match asking.await {
        Ok(answer) if text(&answer, &["kind"]) == "Service" => {
            seen.insert(key.into(), (now, vec![answer]));
        }
        Ok(answer) => {
            let mut services = list(&answer, &["items"]).to_vec();
            services.sort_by_cached_key(|one| text(one, &["metadata", "name"]).to_owned());
            seen.insert(key.into(), (now, services));
        }
        Err(error) => tracing::debug!(%error, "services are not read; those last seen are announced"),
    }
}
