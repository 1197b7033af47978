//! The controllers: each one pure function from what it sees to what is to be done; `runner.rs` does the rest.
//!
//! Each acts as a service account of its own (`kube-system`), with the rights that the bootstrap roles give it.

mod action;
mod deployment;
mod garbage;
mod namespace;
mod node;
mod replicaset;
mod runner;
mod serviceaccount;
mod token_cleaner;
mod world;

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::cache::Cache;
use crate::request::{Api, Client, User};

pub use action::{Note, reference, status_patch};
pub use runner::tell;

/// What controllers need to know of the cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// PEM of the CA that signs the API's serving certificate: pods verify the API with it.
    pub root_ca: String,
    /// First address and prefix length of the pods' range.
    pub cluster_cidr: (Ipv4Addr, u8),
}

/// Starts every controller as a task of `tasks`; they run until those are aborted.
pub fn start(api: &Arc<Api>, cache: &Cache, settings: Settings, tasks: &mut JoinSet<()>) {
    let client = |account: &str| Client::new(Arc::clone(api), service_account(account));
    let (first, prefix) = settings.cluster_cidr;
    let root_ca = settings.root_ca;
    let mut run = |controller: Box<dyn runner::Controller>, account: &str| {
        tasks.spawn(runner::run(controller.into(), client(account), cache.clone()));
    };
    run(Box::new(namespace::Namespaces), "namespace-controller");
    run(
        Box::new(serviceaccount::ServiceAccounts { root_ca }),
        "service-account-controller",
    );
    run(Box::new(deployment::Deployments), "deployment-controller");
    run(Box::new(replicaset::ReplicaSets), "replicaset-controller");
    run(Box::<node::NodeLifecycle>::default(), "node-controller");
    run(Box::new(node::NodeRanges::new(first, prefix)), "node-controller");
    run(Box::<node::TaintEviction>::default(), "node-controller");
    run(Box::<node::PodGarbage>::default(), "pod-garbage-collector");
    run(Box::new(garbage::Garbage), "generic-garbage-collector");
    run(Box::new(token_cleaner::TokenCleaner), "token-cleaner");
}

/// The user that a controller is.
fn service_account(name: &str) -> User {
    let name = format!("system:serviceaccount:kube-system:{name}");
    User::new(&name, &["system:serviceaccounts", "system:serviceaccounts:kube-system"])
}
