//! The kubelet: runs the pods that the API assigns to this node and reports what became of them.
//!
//! `pod.rs`, `restart.rs`, `status.rs` and the like decide and are pure; `worker.rs` acts, one task per pod; `pods.rs`
//! keeps workers in step with the API; `report.rs` and `event.rs` talk back; `node.rs` and `lease.rs` are the node's own
//! sign of life; `server` is the HTTPS port. What it runs on is behind the traits of `ports.rs`.

mod act;
pub mod adapt;
mod blindly;
mod clock;
mod difference;
pub mod disk;
pub mod downward;
pub mod env;
pub mod event;
mod feed;
mod files;
mod host;
mod ignored;
mod keeper;
mod leftovers;
mod links;
mod log_file;
mod node;
pub mod objects;
pub mod pod;
mod pods;
pub mod ports;
mod probe;
pub mod qos;
mod report;
pub mod restart;
mod roll;
mod server;
mod settings;
pub mod status;
#[cfg(test)]
mod testing;
mod translate;
pub mod volume;
mod worker;

use std::io;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::node::KUBELET_VERSION;
pub use self::settings::{Judged, NodeIps, Settings, Taint};

use self::host::{Host, NetworkState};
use self::node::Machine;
use self::ports::{Api, Containers, Networks};

/// Why a kubelet cannot run. All else is waited for.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The node's own files: nothing can be kept there.
    #[error("cannot use {}", path.display())]
    Folder {
        /// Which folder.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Runs the node's pods until `shutdown` is ready. Pods go on running after that; the next run adopts them.
///
/// The Node is registered first; the pod network is started by `networks` once the control plane has given the node its
/// `spec.podCIDR` (or at once with the one of an earlier run). Without a server it runs the pods that it last knew.
///
/// # Errors
/// [`KubeletError`], only before anything has been started.
pub async fn run(
    settings: Settings,
    api: Arc<dyn Api>,
    containers: Arc<dyn Containers>,
    networks: Arc<dyn Networks>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), KubeletError> {
    let path = settings.root.clone();
    disk::blocking(move || std::fs::create_dir_all(path))
        .await
        .map_err(|source| KubeletError::Folder {
            path: settings.root.clone(),
            source,
        })?;
    let (network, network_seen) = watch::channel(NetworkState::Missing("the node has no podCIDR yet".into()));
    let (events, writing) = event::recorder(api.clone(), "kubelet", settings.node_name.clone());
    let (keeper, keeping) = keeper::keeper();
    let host = Arc::new(Host {
        machine: Machine::read(),
        settings,
        api,
        containers,
        network: network_seen,
        events,
        reports: Arc::default(),
        roll: Arc::default(),
        keeper,
        links: links::Links::default(),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(writing);
    tasks.spawn(keeping);
    tasks.spawn(node::keep(host.clone(), networks, network));
    let reporting = host.clone();
    tasks.spawn(async move { reporting.reports.run(reporting.api.as_ref()).await });
    tasks.spawn(server::serve(server::Port::of(&host)));
    tasks.spawn(pods::keep(host));
    shutdown.await;
    tasks.shutdown().await;
    Ok(())
}
