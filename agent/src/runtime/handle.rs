//! The agent's side of the runtime.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

use super::cgroup::Cgroups;
use super::image::record::Record;
use super::layout::{self, PodFolder};
use super::link::{self, Link};
use super::message::{Request, Which};
use super::plan::{self, Places, SandboxPlan};
use super::shim::BAD_INPUT;
use super::{
    ContainerSpec, ContainerState, Exec, ExecSpec, ImageError, PodState, RuntimeError, RuntimeEvent, Sandbox,
    SandboxSpec, exec, image, pods,
};

/// Events beyond this are dropped and the receiver told so: it then looks at every pod.
const EVENTS: usize = 128;

/// Where the runtime keeps its things.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Images and container file systems; survives reboots.
    pub data_dir: PathBuf,
    /// Sockets, pinned namespaces, records; must not survive a reboot.
    pub run_dir: PathBuf,
    /// The program whose `shim` subcommand is [`shim::main`](super::shim::main): `/proc/self/exe`.
    pub shim: PathBuf,
    /// Cgroup under which all pods are, relative to the root of every hierarchy: `kubepods`.
    pub cgroup_parent: String,
}

impl RuntimeConfig {
    /// The usual one: this program is the shim, pods are in the cgroup `kubepods`.
    pub fn new(data_dir: PathBuf, run_dir: PathBuf) -> Self {
        Self {
            data_dir,
            run_dir,
            shim: "/proc/self/exe".into(),
            cgroup_parent: "kubepods".into(),
        }
    }
}

/// An image on this node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Image {
    /// Full names (`docker.io/library/busybox:latest`), sorted.
    pub names: Vec<String>,
    /// `sha256:…` of its configuration.
    pub id: String,
    /// Bytes of its files, unpacked.
    pub size: u64,
}

impl From<Record> for Image {
    fn from(record: Record) -> Self {
        Self {
            names: record.names,
            id: record.id,
            size: record.size,
        }
    }
}

/// The node's containers. Calls that change one pod come one at a time; different pods go side by side.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    config: RuntimeConfig,
    cgroups: Cgroups,
    events: broadcast::Sender<RuntimeEvent>,
    shims: Mutex<Shims>,
}

/// What follows the shims; ends with the last handle.
#[derive(Default)]
struct Shims {
    known: BTreeMap<String, Shim>,
    tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Shim {
    alive: Arc<AtomicBool>,
    pid: Option<i32>,
}

impl Runtime {
    /// Opens the store and finds running pods again.
    pub async fn open(mut config: RuntimeConfig) -> Result<Self, RuntimeError> {
        // Shims change their folder: nothing they are told may be relative.
        for path in [&mut config.data_dir, &mut config.run_dir] {
            *path = std::path::absolute(&*path).map_err(RuntimeError::io(&*path))?;
        }
        let (data, run) = (config.data_dir.clone(), config.run_dir.clone());
        let prepared = blocking(move || {
            image::prepare(&data)?;
            DirBuilder::new().recursive(true).mode(0o700).create(run.join("pods"))?;
            Ok((Cgroups::detect()?, pods::uids(&run)?))
        });
        let (cgroups, uids) = prepared.await.map_err(RuntimeError::io(&config.data_dir))?;
        for controller in cgroups.missing() {
            warn!(
                controller,
                "the kernel has this cgroup controller switched off: its limits have no effect"
            );
        }
        let (events, _) = broadcast::channel(EVENTS);
        let runtime = Self {
            inner: Arc::new(Inner {
                config,
                cgroups,
                events,
                shims: Mutex::default(),
            }),
        };
        for uid in uids {
            if let Err(error) = runtime.follow(&uid) {
                warn!(pod = %uid, error = &error as &dyn Error, "the shim of a pod does not answer");
            }
        }
        Ok(runtime)
    }

    /// Watches a pod's shim from now on.
    fn follow(&self, uid: &str) -> Result<(), RuntimeError> {
        let asked = Link::ask(&self.folder(uid)?, &Request::Watch, &[]);
        let mut link = asked.map_err(|error| link::shim_error(uid, error))?;
        let shim = Shim {
            alive: Arc::new(AtomicBool::new(true)),
            pid: link.peer(),
        };
        let (alive, events) = (shim.alive.clone(), self.inner.events.clone());
        let event = RuntimeEvent { pod_uid: uid.into() };
        let mut shims = self.shims();
        while shims.tasks.try_join_next().is_some() {}
        shims.tasks.spawn(async move {
            while link.woken().await {
                let _ = events.send(event.clone());
            }
            alive.store(false, Ordering::Release);
            let _ = events.send(event);
        });
        shims.known.insert(uid.into(), shim);
        Ok(())
    }

    fn shims(&self) -> MutexGuard<'_, Shims> {
        self.inner.shims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shim(&self, uid: &str) -> Option<Shim> {
        let known = self.shims().known.get(uid).cloned();
        known.filter(|shim| shim.alive.load(Ordering::Acquire))
    }

    fn folder(&self, uid: &str) -> Result<PodFolder, RuntimeError> {
        PodFolder::new(&self.inner.config.run_dir, uid)
            .ok_or_else(|| RuntimeError::Spec(format!("{uid:?} cannot be a pod's UID")))
    }

    fn cgroup(&self, uid: &str) -> String {
        format!("{}/pod{uid}", self.inner.config.cgroup_parent)
    }

    fn shims_cgroup(&self) -> String {
        format!("{}/shims", self.inner.config.cgroup_parent)
    }

    /// Files that a pod's containers write.
    fn writable(&self, uid: &str) -> PathBuf {
        self.inner.config.data_dir.join("containers").join(uid)
    }

    /// Takes in every image of an archive (`docker save` or OCI layout; `.tar` or `.tar.gz`); returns their names.
    ///
    /// The work is done by a child process that ends with the call: an image must not cost the agent memory for good.
    pub async fn import(&self, archive: &Path) -> Result<Vec<String>, ImageError> {
        let failed = |source| ImageError::Io {
            path: archive.into(),
            source,
        };
        let mut command = self.shim_command();
        command
            .arg("shim")
            .arg("import")
            .arg(&self.inner.config.data_dir)
            .arg(archive);
        let done = command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(failed)?;
        let reason = || String::from_utf8_lossy(&done.stderr).trim().to_owned();
        if done.status.success() {
            let (archive, strange) = (archive.display(), String::from_utf8_lossy(&done.stderr));
            for image in strange.lines() {
                warn!(%archive, image, "an image for another machine is passed over");
            }
            let names = String::from_utf8_lossy(&done.stdout);
            Ok(names.lines().map(str::to_owned).collect())
        } else if done.status.code() == Some(BAD_INPUT) {
            Err(ImageError::Archive {
                path: archive.into(),
                reason: reason(),
            })
        } else {
            Err(failed(io::Error::other(format!("{}: {}", done.status, reason()))))
        }
    }

    /// All images.
    pub async fn images(&self) -> Vec<Image> {
        self.records().await.into_iter().map(Image::from).collect()
    }

    /// The image a reference (or an id) means on this node.
    pub async fn resolve(&self, reference: &str) -> Option<Image> {
        self.record(reference).await.map(Image::from)
    }

    async fn record(&self, reference: &str) -> Option<Record> {
        image::find(&self.records().await, reference).cloned()
    }

    async fn records(&self) -> Vec<Record> {
        let data = self.inner.config.data_dir.clone();
        blocking(move || image::records(&data)).await.unwrap_or_else(|error| {
            warn!(error = &error as &dyn Error, "images cannot be listed");
            Vec::new()
        })
    }

    /// Makes a pod's sandbox; one that stands already is returned as it is.
    pub async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        let uid = spec.pod_uid.as_str();
        let folder = self.folder(uid)?;
        if self.shim(uid).is_some()
            && let Some(plan) = self.plan(&folder).await?
        {
            return Ok(sandbox(&folder, &plan));
        }
        self.remove_sandbox(uid).await?;
        let plan = SandboxPlan {
            spec: spec.clone(),
            created: Some(Timestamp::now()),
            cgroup: self.cgroup(uid),
            shims: self.shims_cgroup(),
        };
        let (place, written) = (folder.clone(), plan.clone());
        let made = blocking(move || {
            DirBuilder::new().recursive(true).mode(0o700).create(place.path())?;
            if !written.spec.log_dir.as_os_str().is_empty() {
                DirBuilder::new().recursive(true).create(&written.spec.log_dir)?;
            }
            layout::write(&place.sandbox(), &written)
        });
        made.await.map_err(RuntimeError::io(folder.path()))?;
        let started = self.start_shim(&folder, uid).await;
        if started.is_err() {
            self.remove_sandbox(uid).await?;
        }
        started.map(|()| sandbox(&folder, &plan))
    }

    /// Runs this program as a shim. It needs nothing of the agent's environment, in which there may be the cluster's token, and it
    /// lives for as long as its pod does.
    fn shim_command(&self) -> Command {
        let mut command = Command::new(&self.inner.config.shim);
        command.env_clear();
        command
    }

    async fn start_shim(&self, folder: &PodFolder, uid: &str) -> Result<(), RuntimeError> {
        let failed = |reason: String| RuntimeError::Shim {
            pod_uid: uid.into(),
            reason,
        };
        let mut command = self.shim_command();
        command
            .arg("shim")
            .arg("pod")
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let output = timeout(link::PATIENCE, command.kill_on_drop(true).output()).await;
        let output = output
            .map_err(|_| failed("it did not start in time".into()))?
            .map_err(RuntimeError::io(&self.inner.config.shim))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        match output.status.code() {
            Some(0) => self.follow(uid),
            Some(BAD_INPUT) => Err(RuntimeError::Spec(said)),
            _ => Err(failed(format!("{}: {said}", output.status))),
        }
    }

    async fn plan(&self, folder: &PodFolder) -> Result<Option<SandboxPlan>, RuntimeError> {
        let place = folder.clone();
        let read = blocking(move || pods::sandbox(&place)).await;
        read.map_err(RuntimeError::io(folder.path()))
    }

    /// Starts one attempt of a container. When it fails nothing of the attempt stays.
    pub async fn start_container(&self, pod_uid: &str, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let folder = self.folder(pod_uid)?;
        let sandbox = self.plan(&folder).await?;
        let sandbox = sandbox.ok_or_else(|| RuntimeError::NoSandbox(pod_uid.into()))?.spec;
        let image = self.record(&spec.image).await;
        let image = image.ok_or_else(|| RuntimeError::NoImage(spec.image.clone()))?;
        let container = folder.container(&spec.name, spec.attempt);
        let container =
            container.ok_or_else(|| RuntimeError::Spec(format!("{:?} is no container's name", spec.name)))?;
        let now = Timestamp::now();
        let id = image::digest(format!("{pod_uid}/{}/{}/{now}", spec.name, spec.attempt).as_bytes());
        let id = id.trim_start_matches("sha256:").to_owned();
        let writable = self.writable(pod_uid).join(format!("{}.{}", spec.name, spec.attempt));
        let places = Places {
            data: &self.inner.config.data_dir,
            writable: writable.clone(),
            root: container.root(),
            shm: folder.shm(),
            cgroup: format!("{}/{id}", self.cgroup(pod_uid)),
        };
        let start = plan::start(spec, places.cgroup.clone(), sandbox.host_pid);
        let plan = plan::plan(spec, &image, &sandbox, places)?;
        let state = ContainerState {
            name: spec.name.clone(),
            attempt: spec.attempt,
            id,
            image: spec.image.clone(),
            image_id: image.id,
            created: Some(now),
            stop_signal: plan::stop_signal(&image.process.stop_signal),
            log_path: spec.log_path.clone(),
            ..ContainerState::default()
        };
        let (place, files) = (container.clone(), writable.clone());
        let made = blocking(move || {
            fs::create_dir_all(place.root())?;
            fs::create_dir_all(files.join("upper"))?;
            fs::create_dir_all(files.join("work"))?;
            layout::write(&place.plan(), &plan)?;
            layout::write(&place.state(), &state)
        });
        made.await.map_err(RuntimeError::io(container.path()))?;
        let request = Request::Start(start);
        let started = link::call(&folder, pod_uid, &spec.name, &request, link::START_PATIENCE).await;
        if started.is_err() {
            self.remove_container(pod_uid, &spec.name, spec.attempt).await?;
        }
        started
    }

    /// Sends a signal to a container's first process (its newest attempt); one that has ended is no error.
    pub async fn signal(&self, pod_uid: &str, container: &str, signal: i32) -> Result<(), RuntimeError> {
        let folder = self.folder(pod_uid)?;
        let which = self.newest(pod_uid, container).await?;
        let request = Request::Signal { which, signal };
        link::call(&folder, pod_uid, container, &request, link::PATIENCE).await
    }

    async fn newest(&self, pod_uid: &str, container: &str) -> Result<Which, RuntimeError> {
        let pod = self.pod(pod_uid).await?;
        let pod = pod.ok_or_else(|| RuntimeError::NoSandbox(pod_uid.into()))?;
        let state = pod.container(container);
        let state = state.ok_or_else(|| RuntimeError::NoContainer(container.into()))?;
        Ok(Which {
            name: container.into(),
            attempt: state.attempt,
        })
    }

    /// Kills and forgets one attempt of a container and its files (its log stays).
    pub async fn remove_container(&self, pod_uid: &str, container: &str, attempt: u32) -> Result<(), RuntimeError> {
        let folder = self.folder(pod_uid)?;
        let Some(place) = folder.container(container, attempt) else {
            return Ok(());
        };
        if self.shim(pod_uid).is_some() {
            let which = Which {
                name: container.into(),
                attempt,
            };
            link::call(&folder, pod_uid, container, &Request::Forget { which }, link::PATIENCE).await?;
        }
        let cgroups = self.inner.cgroups.clone();
        let (pod_cgroup, files) = (self.cgroup(pod_uid), self.writable(pod_uid));
        let at = place.path().to_owned();
        let removed = blocking(move || {
            if let Some(state) = layout::read::<ContainerState>(&place.state())? {
                let cgroup = format!("{pod_cgroup}/{}", state.id);
                cgroups.kill(&cgroup);
                cgroups.destroy(&cgroup, link::PATIENCE)?;
            }
            if let Some(name) = place.path().file_name() {
                pods::remove_all(&files.join(name))?;
            }
            pods::remove_all(place.path())
        });
        removed.await.map_err(RuntimeError::io(at))
    }

    /// Kills and forgets everything of a pod but its logs. Unknown pods are no error.
    pub async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        let folder = self.folder(pod_uid)?;
        if let Some(shim) = self.shim(pod_uid)
            && let Err(error) = link::call(&folder, pod_uid, "", &Request::Stop, link::PATIENCE).await
        {
            warn!(
                pod = pod_uid,
                error = &error as &dyn Error,
                "the shim of a pod does not stop: it is killed"
            );
            if let Some(pid) = shim.pid.filter(|pid| *pid > 1) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        self.shims().known.remove(pod_uid);
        let cgroups = self.inner.cgroups.clone();
        let (cgroup, files) = (self.cgroup(pod_uid), self.writable(pod_uid));
        let at = folder.path().to_owned();
        let cleared = blocking(move || pods::clear(&folder, &cgroups, &cgroup, &files)).await;
        cleared.map_err(RuntimeError::io(at))
    }

    /// All pods with a sandbox, those of an earlier agent process too.
    pub async fn pods(&self) -> Result<Vec<PodState>, RuntimeError> {
        let run = self.inner.config.run_dir.clone();
        let uids = blocking(move || pods::uids(&run)).await;
        let mut all = Vec::new();
        for uid in uids.map_err(RuntimeError::io(&self.inner.config.run_dir))? {
            all.extend(self.pod(&uid).await?);
        }
        Ok(all)
    }

    /// One pod; `None` when it has no sandbox.
    pub async fn pod(&self, pod_uid: &str) -> Result<Option<PodState>, RuntimeError> {
        let folder = self.folder(pod_uid)?;
        let (uid, alive, at) = (
            pod_uid.to_owned(),
            self.shim(pod_uid).is_some(),
            folder.path().to_owned(),
        );
        let state = blocking(move || pods::state(&folder, &uid, alive)).await;
        state.map_err(RuntimeError::io(at))
    }

    /// Runs a command in a running container (its newest attempt).
    pub async fn exec(&self, pod_uid: &str, container: &str, spec: ExecSpec) -> Result<Exec, RuntimeError> {
        let which = self.newest(pod_uid, container).await?;
        exec::exec(&self.folder(pod_uid)?, pod_uid, which, spec).await
    }

    /// Joins a running container's own streams: what it prints from now on and, if `stdin` is asked for here and in its
    /// spec, its input. With `stdin_once` that input is the first one's who asks, and ends with him.
    pub async fn attach(&self, pod_uid: &str, container: &str, stdin: bool) -> Result<Exec, RuntimeError> {
        let which = self.newest(pod_uid, container).await?;
        exec::attach(&self.folder(pod_uid)?, pod_uid, which, stdin).await
    }

    /// Wakes for every pod that changed by itself. A receiver that lagged looks at all of them.
    pub fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }
}

fn sandbox(folder: &PodFolder, plan: &SandboxPlan) -> Sandbox {
    Sandbox {
        netns: if plan.spec.host_network {
            "/proc/self/ns/net".into()
        } else {
            folder.netns()
        },
        created: plan.created.unwrap_or(Timestamp::UNIX_EPOCH),
    }
}

/// Runs `work` on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}
