//! The node's lease in `kube-node-lease`: the sign of life that node controllers look at.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kubelet::ports::{Api, ApiFailure};
use crate::wire::object::set;
use crate::wire::time;

/// Kubernetes' default `nodeLeaseDurationSeconds`.
const DURATION_SECONDS: i64 = 40;

/// A lease, and what the server last had of it.
pub struct Lease {
    name: String,
    node_uid: String,
    held: Option<Value>,
}

const COLLECTION: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

impl Lease {
    /// Not yet asked for.
    pub fn new(node_name: &str, node_uid: &str) -> Self {
        Self {
            name: node_name.into(),
            node_uid: node_uid.into(),
            held: None,
        }
    }

    /// Renews it: one request if nobody else wrote it, else it is read or made first.
    pub async fn renew(&mut self, api: &dyn Api, now: Timestamp) -> Result<(), ApiFailure> {
        let path = format!("{COLLECTION}/{}", self.name);
        if let Some(held) = self.held.take() {
            match api.update(&path, &renewed(held, &self.name, now)).await {
                Ok(lease) => {
                    self.held = Some(lease);
                    return Ok(());
                }
                Err(error) if !matches!(error.code(), 404 | 409) => return Err(error),
                Err(_) => {}
            }
        }
        let lease = match api.get(&path).await {
            Ok(found) => api.update(&path, &renewed(found, &self.name, now)).await?,
            Err(error) if error.code() == 404 => {
                let fresh = renewed(self.fresh(), &self.name, now);
                api.create(COLLECTION, &fresh).await?
            }
            Err(error) => return Err(error),
        };
        self.held = Some(lease);
        Ok(())
    }

    fn fresh(&self) -> Value {
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": self.node_uid});
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": "kube-node-lease", "ownerReferences": [owner]},
            "spec": {"leaseDurationSeconds": DURATION_SECONDS},
        })
    }
}

fn renewed(mut lease: Value, holder: &str, now: Timestamp) -> Value {
    set(&mut lease, &["spec", "holderIdentity"], holder);
    set(&mut lease, &["spec", "leaseDurationSeconds"], DURATION_SECONDS);
    set(&mut lease, &["spec", "renewTime"], time::micros(now));
    lease
}
