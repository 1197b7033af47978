//! Neighbours for tests: a runtime that is played here, an API in [`api`], a whole node in [`node`].

pub mod api;
pub mod node;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{broadcast, watch};

use super::ports::{Containers, Control, Events, Process};
use crate::runtime::{
    ContainerSpec, ContainerState, ExecSpec, Image, PodState, RuntimeError, RuntimeEvent, Sandbox, SandboxSpec, Status,
};

/// How long an answer of a shim is waited for.
const HUNG: Duration = Duration::from_secs(30);

/// How a command behaves: its exit code, and how long it takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    pub code: i32,
    pub lasts: Duration,
}

/// A runtime without processes: containers run until they are signalled, or end as told.
pub struct Fake {
    pods: Mutex<BTreeMap<String, PodState>>,
    pub images: Mutex<BTreeSet<String>>,
    /// Signals sent, as `container signal`.
    pub signals: Mutex<Vec<String>>,
    /// What the next commands and attachments are; without any they end at once.
    pub processes: Mutex<VecDeque<Process>>,
    /// Commands run and attachments made, as `container command…`.
    pub commands: Mutex<Vec<String>>,
    /// What a command (its words) does; others end well at once.
    pub behaviour: Mutex<BTreeMap<String, Behaviour>>,
    /// Starts that were made, as `container attempt`.
    pub started: Mutex<Vec<String>>,
    /// How long a start takes.
    pub start_takes: Mutex<Duration>,
    /// Whether a container ends on SIGTERM.
    pub obedient: Mutex<bool>,
    /// Pods whose shim does not answer: a signal and a removal take [`HUNG`].
    pub hung: Mutex<BTreeSet<String>>,
    /// Whether it cannot be read which pods there are.
    pub unreadable: Mutex<bool>,
    events: broadcast::Sender<RuntimeEvent>,
    /// Something has happened here.
    pub news: watch::Sender<()>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            pods: Mutex::default(),
            images: Mutex::default(),
            signals: Mutex::default(),
            processes: Mutex::default(),
            commands: Mutex::default(),
            behaviour: Mutex::default(),
            started: Mutex::default(),
            start_takes: Mutex::default(),
            obedient: Mutex::new(true),
            hung: Mutex::default(),
            unreadable: Mutex::default(),
            events: broadcast::channel(16).0,
            news: watch::Sender::new(()),
        }
    }
}

impl Fake {
    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, PodState>> {
        self.pods.lock().unwrap()
    }

    /// Ends the newest attempt of a container.
    pub fn end(&self, uid: &str, container: &str, exit_code: i32) {
        if let Some(pod) = self.pods().get_mut(uid) {
            let newest = pod
                .containers
                .iter_mut()
                .filter(|it| it.name == container)
                .max_by_key(|it| it.attempt);
            if let Some(it) = newest.filter(|it| it.status == Status::Running) {
                it.status = Status::Exited;
                it.exit_code = exit_code;
                it.finished = Some(jiff::Timestamp::now());
            }
        }
        let _ = self.events.send(RuntimeEvent { pod_uid: uid.into() });
        self.news.send_replace(());
    }

    /// Loses what is known of a pod's containers, as a sandbox that is made anew does.
    pub fn forget_containers(&self, uid: &str) {
        self.pods().entry(uid.into()).or_default().containers.clear();
    }

    /// Whether the shim answers; if not, that takes its time.
    async fn answers(&self, uid: &str) -> Result<(), RuntimeError> {
        if !self.hung.lock().unwrap().contains(uid) {
            return Ok(());
        }
        tokio::time::sleep(HUNG).await;
        Err(RuntimeError::Shim {
            pod_uid: uid.into(),
            reason: "timed out".into(),
        })
    }

    fn process(&self, container: &str, command: &str) -> Process {
        let asked = format!("{container} {command}");
        self.commands.lock().unwrap().push(asked.trim_end().to_owned());
        self.news.send_replace(());
        let behaviour = self.behaviour.lock().unwrap().get(command).copied();
        let prepared = self.processes.lock().unwrap().pop_front();
        prepared.unwrap_or_else(|| played(behaviour.unwrap_or_default()))
    }

    /// Takes everything away, as a reboot does.
    pub fn reboot(&self) {
        self.pods().clear();
    }

    /// What is there of a pod.
    pub fn state(&self, uid: &str) -> Option<PodState> {
        self.pods().get(uid).cloned()
    }
}

struct Played(Behaviour);

impl Control for Played {
    fn resize(&self, _width: u16, _height: u16) {}

    fn wait(&mut self) -> BoxFuture<'_, Result<i32, RuntimeError>> {
        Box::pin(async {
            tokio::time::sleep(self.0.lasts).await;
            Ok(self.0.code)
        })
    }
}

fn played(behaviour: Behaviour) -> Process {
    Process {
        stdin: None,
        stdout: Box::new(&b"out"[..]),
        stderr: Some(Box::new(&b"err"[..])),
        control: Box::new(Played(behaviour)),
    }
}

impl Containers for Fake {
    fn create_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> BoxFuture<'a, Result<Sandbox, RuntimeError>> {
        Box::pin(async move {
            let fresh = || PodState {
                pod_uid: spec.pod_uid.clone(),
                namespace: spec.namespace.clone(),
                name: spec.name.clone(),
                netns: "/nowhere".into(),
                shim_alive: true,
                ..PodState::default()
            };
            self.pods().entry(spec.pod_uid.clone()).or_insert_with(fresh);
            self.news.send_replace(());
            Ok(Sandbox {
                netns: "/nowhere".into(),
                created: jiff::Timestamp::now(),
            })
        })
    }

    fn start<'a>(&'a self, pod_uid: &'a str, spec: &'a ContainerSpec) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            let takes = *self.start_takes.lock().unwrap();
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            let mut pods = self.pods();
            let pod = pods
                .get_mut(pod_uid)
                .ok_or_else(|| RuntimeError::NoSandbox(pod_uid.into()))?;
            if spec.command.first().is_some_and(|it| it == "/no/such/program") {
                return Err(RuntimeError::Start("no such file or directory".into()));
            }
            let asked = format!("{} {}", spec.name, spec.attempt);
            self.started.lock().unwrap().push(asked);
            self.news.send_replace(());
            pod.containers.push(ContainerState {
                name: spec.name.clone(),
                attempt: spec.attempt,
                id: format!("{}-{}", spec.name, spec.attempt),
                image: spec.image.clone(),
                started: Some(jiff::Timestamp::now()),
                status: Status::Running,
                ..ContainerState::default()
            });
            Ok(())
        })
    }

    fn signal<'a>(
        &'a self,
        pod_uid: &'a str,
        container: &'a str,
        signal: i32,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            self.signals.lock().unwrap().push(format!("{container} {signal}"));
            self.news.send_replace(());
            self.answers(pod_uid).await?;
            if *self.obedient.lock().unwrap() || signal == libc::SIGKILL {
                self.end(pod_uid, container, 128 + signal);
            }
            Ok(())
        })
    }

    fn remove<'a>(
        &'a self,
        pod_uid: &'a str,
        container: &'a str,
        attempt: u32,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            if let Some(pod) = self.pods().get_mut(pod_uid) {
                pod.containers
                    .retain(|it| it.name != container || it.attempt != attempt);
            }
            Ok(())
        })
    }

    fn remove_sandbox<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(async move {
            let _ = self.answers(pod_uid).await; // killed then
            self.pods().remove(pod_uid);
            self.news.send_replace(());
            Ok(())
        })
    }

    fn pod<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<Option<PodState>, RuntimeError>> {
        Box::pin(async move { Ok(self.state(pod_uid)) })
    }

    fn pods(&self) -> BoxFuture<'_, Result<Vec<PodState>, RuntimeError>> {
        Box::pin(async move {
            match *self.unreadable.lock().unwrap() {
                true => Err(RuntimeError::Io {
                    path: "/run".into(),
                    source: std::io::ErrorKind::Other.into(),
                }),
                false => Ok(Fake::pods(self).values().cloned().collect()),
            }
        })
    }

    fn has_image<'a>(&'a self, image: &'a str) -> BoxFuture<'a, bool> {
        Box::pin(async move { self.images.lock().unwrap().contains(image) })
    }

    fn images(&self) -> BoxFuture<'_, Vec<Image>> {
        Box::pin(async { Vec::new() })
    }

    fn exec<'a>(
        &'a self,
        _pod_uid: &'a str,
        container: &'a str,
        spec: ExecSpec,
    ) -> BoxFuture<'a, Result<Process, RuntimeError>> {
        Box::pin(async move { Ok(self.process(container, &spec.command.join(" "))) })
    }

    fn attach<'a>(
        &'a self,
        _pod_uid: &'a str,
        container: &'a str,
        _stdin: bool,
    ) -> BoxFuture<'a, Result<Process, RuntimeError>> {
        Box::pin(async move { Ok(self.process(container, "")) })
    }

    fn events(&self) -> Box<dyn Events> {
        Box::new(self.events.subscribe())
    }
}
