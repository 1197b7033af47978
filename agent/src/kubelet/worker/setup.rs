//! What a pod's containers need before they start (volumes, sandbox, network, files in `/etc`), and its removal.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Done, RETRY, Worker};
use crate::kubelet::adapt::chain;
use crate::kubelet::clock;
use crate::kubelet::disk::blocking;
use crate::kubelet::event::About;
use crate::kubelet::host::NetworkState;
use crate::kubelet::objects::{Objects, fetch, of_volumes};
use crate::kubelet::pod::Life;
use crate::kubelet::ports::{ApiFailure, Network};
use crate::kubelet::volume::VolumeError;
use crate::kubelet::volume::token::Tokens;
use crate::kubelet::{files, translate, volume};
use crate::runtime::PodState;
use crate::wire::pod::Pod;

/// After a failure; doubles up to [`LONGEST_DELAY`].
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// What is missing may be made any time.
const LONGEST_DELAY: Duration = Duration::from_secs(15);
/// How often ConfigMaps, Secrets and tokens in volumes are brought up to date: the kubelet's `syncFrequency`.
const REFRESH: Duration = Duration::from_secs(60);

/// How far a pod is set up.
#[derive(Debug)]
pub struct SetUp {
    /// All is there.
    pub done: bool,
    /// The sandbox has been set up once, by this run of the agent or an earlier one: its containers may run.
    pub standing: bool,
    looked: bool,
    /// Something may be there.
    pub remains: bool,
    /// The pod's address in the pod network.
    pub ip: Option<IpAddr>,
    /// Not again before.
    pub not_before: Option<Instant>,
    failures: u32,
    refresh_at: Option<Instant>,
    refreshing: bool,
    clean_not_before: Option<Instant>,
}

impl Default for SetUp {
    fn default() -> Self {
        Self {
            done: false,
            standing: false,
            looked: false,
            remains: true, // an earlier run may have left something
            ip: None,
            not_before: None,
            failures: 0,
            refresh_at: None,
            refreshing: false,
            clean_not_before: None,
        }
    }
}

impl SetUp {
    /// Takes note of whether the pod's shim is alive. One that is there at the first look is of an earlier run, which had
    /// made the volumes before it.
    pub fn look(&mut self, alive: bool) {
        self.standing = alive && (self.standing || !self.looked);
        self.done &= alive;
        self.looked = true;
    }

    /// What was missing may be there now.
    pub fn forgive(&mut self) {
        self.not_before = None;
    }

    /// When to look again for its sake. A pod that ends (not `live`) is not brought up to date any more.
    pub fn next(&self, live: bool, now: Instant) -> Option<Instant> {
        let refresh = self.refresh_at.filter(|_| live && self.done && !self.refreshing);
        let later = [self.not_before, self.clean_not_before];
        let later = later.into_iter().flatten().filter(|at| *at > now);
        refresh.into_iter().chain(later).min()
    }

    fn fail(&mut self, now: Instant) {
        let delay = FIRST_DELAY.saturating_mul(1 << self.failures.min(8)).min(LONGEST_DELAY);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + delay);
    }
}

/// Why a pod cannot be set up yet: reason and message of an event.
struct Trouble(&'static str, String);

impl Worker {
    pub(super) async fn set_up(&mut self, state: Option<&PodState>, now: Instant) -> bool {
        self.setup.remains = true;
        match self.try_set_up(state).await {
            Ok(()) => {
                self.setup.done = true;
                self.setup.standing = true;
                self.setup.failures = 0;
                self.setup.not_before = None;
                self.setup.refresh_at = has_moving_parts(&self.pod).then(|| now + REFRESH);
                true
            }
            Err(Trouble(reason, message)) => {
                tracing::warn!(pod = %self.pod.key(), reason, error = message, "a pod is not set up yet");
                self.host.events.warning(About::pod(&self.pod), reason, message);
                self.setup.fail(now);
                false
            }
        }
    }

    async fn try_set_up(&mut self, state: Option<&PodState>) -> Result<(), Trouble> {
        let (host, pod) = (self.host.clone(), self.pod.clone());
        let uid = &pod.meta.uid;
        let network = match (&*host.network.borrow(), pod.spec.host_network) {
            (_, true) => None,
            (NetworkState::Up(network), false) => Some(network.clone()),
            (NetworkState::Missing(why), false) => {
                return Err(Trouble("NetworkNotReady", format!("network is not ready: {why}")));
            }
        };
        if state.is_some_and(|state| !state.shim_alive) {
            let removed = host.containers.remove_sandbox(uid).await;
            removed.map_err(|error| sandbox_trouble(chain(&error)))?;
        }
        if self.setup.standing {
            // What runs goes on without what somebody has deleted meanwhile: the files that it has stay.
            self.connect(network).await?;
            if let Err(Trouble(reason, message)) = self.make_volumes(volume::Which::FromApi).await {
                tracing::warn!(pod = %pod.key(), reason, error = message, "volumes are not brought up to date");
                host.events.warning(About::pod(&pod), reason, message);
            }
        } else {
            self.make_volumes(volume::Which::All).await?;
            self.connect(network).await?;
        }
        self.write_files()
            .await
            .map_err(|error| sandbox_trouble(error.to_string()))
    }

    /// Makes the sandbox and attaches it, or finds both as they are.
    async fn connect(&mut self, network: Option<Arc<dyn Network>>) -> Result<(), Trouble> {
        let spec = translate::sandbox(&self.pod, &self.host.settings.logs);
        let made = self.host.containers.create_sandbox(&spec).await;
        let sandbox = made.map_err(|error| sandbox_trouble(chain(&error)))?;
        if let Some(network) = network {
            let attached = network.attach(&self.pod.meta.uid, &sandbox.netns).await;
            self.setup.ip = Some(attached.map_err(sandbox_trouble)?);
        }
        Ok(())
    }

    async fn make_volumes(&mut self, which: volume::Which) -> Result<(), Trouble> {
        let (host, pod) = (self.host.clone(), self.pod.clone());
        let names = of_volumes(&pod);
        let kept = host.kept_objects(&pod.meta.uid);
        let failed = |what: &str, error: ApiFailure| {
            Trouble(
                "FailedMount",
                format!("MountVolume.SetUp failed: cannot fetch {what}: {error}"),
            )
        };
        let found = fetch(host.api.as_ref(), &pod, &names, &self.objects, &kept).await;
        let objects = found.map_err(|error| failed("what volumes refer to", error))?;
        let renewed = self.tokens.renew(host.api.as_ref(), &pod, clock::now()).await;
        renewed.map_err(|error| failed("a service account token", error))?;
        let addresses = host.addresses(None);
        let made = volume::set_up(&host.settings.root, &pod, which, &objects, &addresses, &self.tokens).await;
        let told = |faults: Vec<VolumeError>| {
            let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
            Trouble("FailedMount", texts.join("; "))
        };
        made.map_err(told)?;
        self.remember(objects);
        Ok(())
    }

    /// Keeps objects for times without a server.
    pub(super) fn remember(&mut self, objects: Objects) {
        if self.objects.merge(objects) {
            let path = self.host.kept_objects(&self.pod.meta.uid);
            self.host.keeper.keep(path, self.objects.to_json());
        }
    }

    async fn write_files(&self) -> std::io::Result<()> {
        let (host, pod, ip) = (self.host.clone(), self.pod.clone(), self.ip());
        blocking(move || {
            let settings = &host.settings;
            let folder = volume::pod_dir(&settings.root, &pod.meta.uid);
            let own = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
            let hosts = files::hosts(&pod, ip, &settings.cluster_domain, &own("/etc/hosts".as_ref()));
            let resolv = files::resolv_conf(&pod, settings, &own(&settings.resolv_conf));
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("etc-hosts"), hosts)?;
            std::fs::write(
                folder.join("hostname"),
                format!("{}\n", files::hostname(&pod, &settings.hostname)),
            )?;
            std::fs::write(folder.join("resolv.conf"), resolv)
        })
        .await
    }

    /// Brings volumes up to date when it is time, beside everything else.
    pub(super) fn refresh_volumes(&mut self, now: Instant) {
        let due = self.setup.refresh_at.is_some_and(|at| at <= now);
        if self.life != Life::Live || !self.setup.done || self.setup.refreshing || !due {
            return;
        }
        self.setup.refreshing = true;
        self.setup.refresh_at = Some(now + REFRESH);
        let (host, pod) = (self.host.clone(), self.pod.clone());
        let (known, mut tokens) = (self.objects.clone(), self.tokens.clone());
        self.background.spawn(async move {
            let kept = host.kept_objects(&pod.meta.uid);
            let found = fetch(host.api.as_ref(), &pod, &of_volumes(&pod), &known, &kept).await;
            let objects = found.unwrap_or_else(|error| {
                tracing::debug!(pod = %pod.key(), %error, "volumes are not brought up to date");
                known
            });
            if let Err(error) = tokens.renew(host.api.as_ref(), &pod, now).await {
                tracing::warn!(pod = %pod.key(), %error, "service account token is refused");
            }
            let addresses = host.addresses(None);
            let (root, some) = (&host.settings.root, volume::Which::FromApi);
            let made = volume::set_up(root, &pod, some, &objects, &addresses, &tokens).await;
            for fault in made.err().into_iter().flatten() {
                host.events.warning(About::pod(&pod), "FailedMount", fault.to_string());
            }
            Done::Refreshed(Box::new((objects, tokens)))
        });
    }

    /// What a refresh brought.
    pub(super) fn refreshed(&mut self, objects: Objects, tokens: Tokens) {
        self.setup.refreshing = false;
        self.tokens = tokens;
        self.remember(objects);
    }

    /// Removes everything of the pod but its logs.
    pub(super) async fn tear_down(&mut self, now: Instant) -> bool {
        if self.setup.clean_not_before.is_some_and(|at| at > now) {
            return false;
        }
        self.background.abort_all();
        match self.try_tear_down().await {
            Ok(()) => {
                self.setup.remains = false;
                true
            }
            Err(error) => {
                tracing::warn!(pod = %self.pod.key(), error, "a pod is not cleaned up yet");
                self.setup.clean_not_before = Some(now + RETRY);
                false
            }
        }
    }

    async fn try_tear_down(&mut self) -> Result<(), String> {
        let (host, uid) = (self.host.clone(), self.pod.meta.uid.clone());
        let removed = host.containers.remove_sandbox(&uid).await;
        removed.map_err(|error| chain(&error))?;
        self.setup.done = false;
        let network = match &*host.network.borrow() {
            NetworkState::Up(network) => Some(network.clone()),
            NetworkState::Missing(_) => None, // it frees what nobody has once it comes up
        };
        if let Some(network) = network {
            network.detach(&uid).await?;
        }
        let gone = volume::tear_down(&host.settings.root, &uid).await;
        gone.map_err(|error| format!("volumes: {error}"))
    }
}

fn sandbox_trouble(error: String) -> Trouble {
    Trouble(
        "FailedCreatePodSandBox",
        format!("Failed to create pod sandbox: {error}"),
    )
}

/// Whether any of its volumes changes with time.
fn has_moving_parts(pod: &Pod) -> bool {
    pod.spec
        .volumes
        .iter()
        .any(|it| it.config_map.is_some() || it.secret.is_some() || it.projected.is_some() || it.downward_api.is_some())
}
