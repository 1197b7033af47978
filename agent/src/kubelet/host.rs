//! What every part of one kubelet shares: its settings and its neighbours. No state of its own.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::event::Recorder;
use super::keeper::Keeper;
use super::links::Links;
use super::node::{Machine, allocatable};
use super::ports::{Api, Containers, Network};
use super::report::Reporter;
use super::roll::Roll;
use super::settings::Settings;
use crate::kubelet::downward::Addresses;

/// The pod network, or why there is none yet.
#[derive(Clone)]
pub enum NetworkState {
    /// Not yet.
    Missing(String),
    /// Pods can be attached.
    Up(Arc<dyn Network>),
}

/// Shared by all tasks of a kubelet.
pub struct Host {
    /// What it was told.
    pub settings: Settings,
    /// What it runs on.
    pub machine: Machine,
    /// The Kubernetes API.
    pub api: Arc<dyn Api>,
    /// The runtime.
    pub containers: Arc<dyn Containers>,
    /// The pod network.
    pub network: watch::Receiver<NetworkState>,
    /// Takes events.
    pub events: Recorder,
    /// Takes statuses.
    pub reports: Arc<Reporter>,
    /// Which pods there are.
    pub roll: Arc<Roll>,
    /// Takes what is kept for times without a server.
    pub keeper: Keeper,
    /// What is known of services.
    pub links: Links,
}

impl Host {
    /// What a pod with this address may know of addresses and sizes.
    pub fn addresses(&self, pod_ip: Option<IpAddr>) -> Addresses {
        Addresses {
            pod: pod_ip,
            host: self.settings.main_ip(),
            allocatable: allocatable(&self.machine),
        }
    }

    /// Where pods are kept for times without a server.
    pub fn kept_pods(&self) -> PathBuf {
        self.settings.root.join("kept-pods")
    }

    /// Where the objects that a pod refers to are kept.
    pub fn kept_objects(&self, uid: &str) -> PathBuf {
        self.settings.root.join("kept-objects").join(uid)
    }
}
