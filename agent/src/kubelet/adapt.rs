//! The real neighbours behind the traits of `ports.rs`: runtime, pod network, API client. No decisions here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::ports::{Api, ApiFailure, Change, Containers, Control, Events, Network, Networks, Process, Returns, Watch};
use crate::api::{ApiError, Client, PatchType, WatchKind, WatchStream};
use crate::podnet::Podnet;
use crate::podnet::address::Range;
use crate::runtime::{
    ContainerSpec, Exec, ExecSpec, Image, PodState, Runtime, RuntimeError, RuntimeEvent, Sandbox, SandboxSpec,
};

impl Containers for Runtime {
    fn create_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> BoxFuture<'a, Result<Sandbox, RuntimeError>> {
        Box::pin(Runtime::create_sandbox(self, spec))
    }

    fn start<'a>(&'a self, pod_uid: &'a str, spec: &'a ContainerSpec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.start_container(pod_uid, spec))
    }

    fn signal<'a>(
        &'a self,
        pod_uid: &'a str,
        container: &'a str,
        signal: i32,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(Runtime::signal(self, pod_uid, container, signal))
    }

    fn remove<'a>(
        &'a self,
        pod_uid: &'a str,
        container: &'a str,
        attempt: u32,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.remove_container(pod_uid, container, attempt))
    }

    fn remove_sandbox<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(Runtime::remove_sandbox(self, pod_uid))
    }

    fn pod<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<Option<PodState>, RuntimeError>> {
        Box::pin(Runtime::pod(self, pod_uid))
    }

    fn pods(&self) -> BoxFuture<'_, Result<Vec<PodState>, RuntimeError>> {
        Box::pin(Runtime::pods(self))
    }

    fn has_image<'a>(&'a self, image: &'a str) -> BoxFuture<'a, bool> {
        Box::pin(async move { self.resolve(image).await.is_some() })
    }

    fn images(&self) -> BoxFuture<'_, Vec<Image>> {
        Box::pin(Runtime::images(self))
    }

    fn exec<'a>(
        &'a self,
        pod_uid: &'a str,
        container: &'a str,
        spec: ExecSpec,
    ) -> BoxFuture<'a, Result<Process, RuntimeError>> {
        Box::pin(async move { Ok(process(Runtime::exec(self, pod_uid, container, spec).await?)) })
    }

    fn attach<'a>(
        &'a self,
        pod_uid: &'a str,
        container: &'a str,
        stdin: bool,
    ) -> BoxFuture<'a, Result<Process, RuntimeError>> {
        Box::pin(async move { Ok(process(Runtime::attach(self, pod_uid, container, stdin).await?)) })
    }

    fn events(&self) -> Box<dyn Events> {
        Box::new(Runtime::events(self))
    }
}

/// Splits the streams from the handle, so that they can be copied while it is waited for.
fn process(mut exec: Exec) -> Process {
    Process {
        stdin: exec.stdin.take(),
        stdout: std::mem::replace(&mut exec.stdout, Box::new(tokio::io::empty())),
        stderr: exec.stderr.take(),
        control: Box::new(exec),
    }
}

impl Control for Exec {
    fn resize(&self, width: u16, height: u16) {
        Exec::resize(self, width, height);
    }

    fn wait(&mut self) -> BoxFuture<'_, Result<i32, RuntimeError>> {
        Box::pin(Exec::wait(self))
    }
}

impl Events for broadcast::Receiver<RuntimeEvent> {
    fn next(&mut self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async move {
            match self.recv().await {
                Ok(event) => Some(event.pod_uid),
                Err(RecvError::Lagged(_)) => None,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        })
    }
}

/// Makes the node's [`Podnet`].
#[derive(Debug)]
pub struct PodnetMaker {
    /// Addresses of all pods of the cluster.
    pub cluster: Range,
    /// Where addresses are kept over restarts.
    pub folder: PathBuf,
}

impl Networks for PodnetMaker {
    fn start<'a>(&'a self, range: &'a str) -> BoxFuture<'a, Result<Arc<dyn Network>, String>> {
        Box::pin(async move {
            let range: Range = range.parse().map_err(|error| format!("{error}"))?;
            let (cluster, folder) = (self.cluster, self.folder.clone());
            let started = tokio::task::spawn_blocking(move || Podnet::start(range, cluster, folder)).await;
            let podnet = started
                .map_err(|error| error.to_string())?
                .map_err(|error| chain(&error))?;
            Ok(Arc::new(podnet) as Arc<dyn Network>)
        })
    }
}

impl Network for Podnet {
    fn attach<'a>(&'a self, pod_uid: &'a str, netns: &'a Path) -> BoxFuture<'a, Result<IpAddr, String>> {
        Box::pin(async move {
            let attached = Podnet::attach(self, pod_uid, netns).await;
            attached.map(IpAddr::V4).map_err(|error| chain(&error))
        })
    }

    fn detach<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { Podnet::detach(self, pod_uid).await.map_err(|error| error.to_string()) })
    }

    fn retain(&self, alive: &BTreeSet<String>) -> Result<(), String> {
        Podnet::retain(self, |uid| alive.contains(uid)).map_err(|error| error.to_string())
    }
}

impl Api for Client {
    fn get<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        Box::pin(async move { Ok(Client::get(self, path).await?) })
    }

    fn list<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        Box::pin(async move { Ok(Client::get_present(self, path).await?) })
    }

    fn create<'a>(&'a self, path: &'a str, body: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        Box::pin(async move { Ok(Client::create(self, path, body).await?) })
    }

    fn update<'a>(&'a self, path: &'a str, body: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        Box::pin(async move { Ok(Client::update(self, path, body).await?) })
    }

    fn patch<'a>(&'a self, path: &'a str, body: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        Box::pin(async move { Ok(Client::patch(self, path, PatchType::Strategic, body).await?) })
    }

    fn delete<'a>(&'a self, path: &'a str, options: &'a Value) -> BoxFuture<'a, Result<Value, ApiFailure>> {
        Box::pin(async move { Ok(Client::delete(self, path, Some(options)).await?) })
    }

    fn watch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Box<dyn Watch>, ApiFailure>> {
        Box::pin(async move { Ok(Box::new(Client::watch(self, path).await?) as Box<dyn Watch>) })
    }

    fn returns(&self) -> Returns {
        Returns::new(Client::returns(self))
    }
}

impl From<ApiError> for ApiFailure {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Status(status) => Self::Status(status),
            ApiError::Transport(reason) => Self::Unreachable(reason),
        }
    }
}

impl Watch for WatchStream {
    fn next(&mut self) -> BoxFuture<'_, Option<Change>> {
        Box::pin(async move {
            match WatchStream::next(self).await? {
                Ok(event) => Some(match event.kind {
                    WatchKind::Added | WatchKind::Modified => Change::Set(event.object),
                    WatchKind::Deleted => Change::Gone(event.object),
                    WatchKind::Bookmark => Change::Bookmark(event.object),
                    WatchKind::Error => Change::Relist,
                }),
                Err(error) => {
                    tracing::debug!(%error, "a watch breaks off");
                    None
                }
            }
        })
    }
}

/// An error and its causes in one line: events and status messages have no other place for them.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
