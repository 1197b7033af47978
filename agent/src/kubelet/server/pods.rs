//! `/pods`: what this node runs, as a PodList. Objects are read from where they are kept for times without a server, so
//! that nothing but their status is in memory.

use serde_json::{Value, json};

use super::Port;
use crate::kubelet::disk::read_json;
use crate::wire::object::set;

/// The list, as JSON. A pod so new that it is not on disk yet is missing.
pub async fn list(port: &Port) -> String {
    let mut items = Vec::new();
    for known in port.roll.all() {
        let kept = read_json(&port.kept_pods.join(&known.pod.meta.uid)).await;
        let Some(mut pod) = kept else { continue };
        set(
            &mut pod,
            &["status"],
            serde_json::to_value(&known.status).unwrap_or(Value::Null),
        );
        items.push(pod);
    }
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}).to_string()
}
