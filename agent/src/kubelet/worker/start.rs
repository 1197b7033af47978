//! Starts one attempt of a container: image, environment, mounts, process, `postStart`.

use std::time::Instant;

use jiff::Timestamp;

use super::care::{Hook, Patience};
use super::{Done, Worker};
use crate::kubelet::act::act;
use crate::kubelet::adapt::chain;
use crate::kubelet::disk::{self, blocking};
use crate::kubelet::env::environment;
use crate::kubelet::event::About;
use crate::kubelet::objects::{fetch, of_environment};
use crate::kubelet::ports::Attempt;
use crate::kubelet::status::newest;
use crate::kubelet::volume::mounts::{Extras, make_message_file, message_file, mounts};
use crate::kubelet::{files, translate, volume};
use crate::runtime::{Mount, RuntimeError};
use crate::wire::pod::{Container, Waiting};

/// A hook may take as long as it wants; this only ends it with its container.
const HOOK_LIMIT: std::time::Duration = std::time::Duration::from_secs(3600);
/// What Kubernetes reports of a process that could not be started.
const START_ERROR_CODE: i32 = 128;

/// Why a container did not start, by what the worker does about it.
enum Trouble {
    /// Wait for the image.
    Image,
    /// Wait for what it refers to: `CreateContainerConfigError`.
    Config(String),
    /// Try again: `CreateContainerError`.
    Create(String),
    /// This attempt has ended before it began: policy and back-off decide.
    Run(String),
    /// Begin again with the sandbox.
    Sandbox(String),
}

impl From<RuntimeError> for Trouble {
    fn from(error: RuntimeError) -> Self {
        let text = chain(&error);
        match error {
            RuntimeError::NoImage(_) => Self::Image,
            RuntimeError::NoSandbox(_) | RuntimeError::Shim { .. } => Self::Sandbox(text),
            RuntimeError::Start(_) => Self::Run(text),
            RuntimeError::Spec(_) => Self::Config(text),
            RuntimeError::NoContainer(_) | RuntimeError::Io { .. } => Self::Create(text),
        }
    }
}

impl Worker {
    /// Starts the next attempt, or takes note why not. Either way the pod looks different now.
    pub(super) async fn start(&mut self, index: usize, attempts: &[Attempt], now: Instant) -> bool {
        let pod = self.pod.clone();
        let Some(it) = pod.all_containers().nth(index) else {
            return false;
        };
        let last = newest(attempts, &it.name);
        let number = self.next_attempt(it, last);
        match self.try_start(it, number).await {
            Ok(()) => {
                self.has_started(it, number, now);
                self.forget_attempts(it, last, attempts);
            }
            Err(trouble) => self.has_not_started(it, number, trouble, now),
        }
        true
    }

    fn next_attempt(&self, it: &Container, last: Option<&Attempt>) -> u32 {
        let before = self
            .status
            .container(&it.name)
            .filter(|status| !status.container_id.is_empty());
        match (last, before) {
            (Some(last), _) => last.attempt.saturating_add(1),
            (None, Some(before)) => before.restart_count.saturating_add(1),
            (None, None) => 0,
        }
    }

    async fn try_start(&mut self, it: &Container, number: u32) -> Result<(), Trouble> {
        let (host, pod) = (self.host.clone(), self.pod.clone());
        if !host.containers.has_image(&it.image).await {
            return Err(Trouble::Image);
        }
        if self.cares.get(&it.name).is_none_or(|care| care.failure.is_none()) {
            let image = &it.image;
            let text = format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
            host.events.normal(About::container(&pod, it), "Pulled", text);
        }
        let env = self.environment(it).await?;
        let mounts = self.mounts(it, number, &env).await?;
        let (logs, memory) = (&host.settings.logs, host.machine.memory);
        let spec = translate::container(&pod, it, number, env, mounts, logs, memory);
        host.containers.start(&pod.meta.uid, &spec).await?;
        Ok(())
    }

    async fn environment(&mut self, it: &Container) -> Result<Vec<(String, String)>, Trouble> {
        let (host, pod) = (self.host.clone(), self.pod.clone());
        let kept = host.kept_objects(&pod.meta.uid);
        let names = of_environment(it);
        let found = fetch(host.api.as_ref(), &pod, &names, &self.objects, &kept).await;
        let objects = found.map_err(|error| Trouble::Config(error.to_string()))?;
        let mut links = vec![("HOSTNAME".to_owned(), files::hostname(&pod, &host.settings.hostname))];
        links.extend(host.links.of(host.api.as_ref(), &pod, self.came).await);
        let addresses = host.addresses(self.ip());
        let env = environment(&pod, it, &objects, &links, &addresses);
        let env = env.map_err(|error| Trouble::Config(error.to_string()))?;
        self.remember(objects);
        Ok(env)
    }

    async fn mounts(&self, it: &Container, number: u32, env: &[(String, String)]) -> Result<Vec<Mount>, Trouble> {
        let (root, pod, it) = (self.host.settings.root.clone(), self.pod.clone(), it.clone());
        let env = env.to_vec();
        let message = message_file(&root, &pod.meta.uid, &it.name, number);
        let made = blocking(move || {
            make_message_file(&message)?;
            let folder = volume::pod_dir(&root, &pod.meta.uid);
            let extras: Extras = vec![
                (folder.join("etc-hosts"), "/etc/hosts"),
                (folder.join("hostname"), "/etc/hostname"),
                (folder.join("resolv.conf"), "/etc/resolv.conf"),
            ];
            let made = mounts(&root, &pod, &it, &env, extras);
            Ok(made.map(|mut all| {
                let target = match it.termination_message_path.as_str() {
                    "" => "/dev/termination-log",
                    path => path,
                };
                all.push(Mount {
                    source: message,
                    target: target.into(),
                    ..Mount::default()
                });
                all
            }))
        });
        let made = made.await.map_err(|error| Trouble::Create(error.to_string()))?;
        made.map_err(Trouble::Config)
    }

    fn has_started(&mut self, it: &Container, number: u32, now: Instant) {
        // These words, and those of "Pulled", are Kubernetes v1.36's: `pkg/kubelet/kuberuntime` `startContainer` and
        // `pkg/kubelet/images` `EnsureImageExists`. Scripts look for them.
        let about = || About::container(&self.pod, it);
        let events = &self.host.events;
        events.normal(about(), "Created", "Container created".to_owned());
        events.normal(about(), "Started", "Container started".to_owned());
        let hook = it.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.clone());
        let care = self.cares.entry(it.name.clone()).or_default();
        care.record.note_start(number, now);
        care.failure = None;
        care.refused = None;
        care.hook = if hook.is_some() {
            Hook::Flying(number)
        } else {
            Hook::Done
        };
        let target = self.target(&it.name);
        if let Some(hook) = hook {
            self.background.spawn(async move {
                let result = act(&target, &hook, HOOK_LIMIT).await;
                Done::Hook(target.container, number, result)
            });
        }
    }

    fn has_not_started(&mut self, it: &Container, number: u32, trouble: Trouble, now: Instant) {
        let waiting = |reason: &str, message: String| Waiting {
            reason: reason.into(),
            message,
        };
        let (events, about) = (&self.host.events, || About::container(&self.pod, it));
        let failed = |reason: &str| events.warning(about(), "Failed", format!("Error: {reason}"));
        let care = self.cares.entry(it.name.clone()).or_default();
        match trouble {
            Trouble::Image if it.image_pull_policy == "Never" => {
                let text = format!(
                    "Container image \"{}\" is not present with pull policy of Never",
                    it.image
                );
                events.warning(about(), "ErrImageNeverPull", text.clone());
                failed("ErrImageNeverPull");
                care.fail(waiting("ErrImageNeverPull", text), None, Patience::Image, now);
            }
            Trouble::Image => {
                let image = &it.image;
                let text = format!(
                    "failed to pull image \"{image}\": this agent does not pull from registries yet; \
                     put an archive of it (docker save) into agent/images of the data directory, which is taken in \
                     within seconds"
                );
                events.warning(about(), "Failed", format!("Failed to pull image \"{image}\": {text}"));
                failed("ErrImagePull");
                let later = format!("Back-off pulling image \"{image}\": ErrImagePull: {text}");
                events.normal(about(), "BackOff", format!("Back-off pulling image \"{image}\""));
                let later = waiting("ImagePullBackOff", later);
                care.fail(waiting("ErrImagePull", text), Some(later), Patience::Image, now);
            }
            Trouble::Config(text) => {
                events.warning(about(), "Failed", format!("Error: {text}"));
                care.fail(waiting("CreateContainerConfigError", text), None, Patience::Config, now);
            }
            Trouble::Create(text) => {
                events.warning(about(), "Failed", format!("Error: {text}"));
                care.fail(waiting("CreateContainerError", text), None, Patience::Config, now);
            }
            Trouble::Sandbox(text) => {
                tracing::warn!(pod = %self.pod.key(), error = text, "the sandbox is lost and made again");
                self.setup.done = false;
                care.fail(waiting("ContainerCreating", String::new()), None, Patience::Config, now);
            }
            Trouble::Run(text) => {
                events.warning(about(), "Failed", format!("Error: {text}"));
                let wall = Some(Timestamp::now());
                care.record.note_start(number, now);
                care.failure = None;
                care.refused = Some(Attempt {
                    container: it.name.clone(),
                    attempt: number,
                    image: it.image.clone(),
                    exit_code: START_ERROR_CODE,
                    started: wall,
                    finished: wall,
                    start_error: Some(text),
                    ..Attempt::default()
                });
            }
        }
    }

    /// Of ended attempts only the last is of interest.
    fn forget_attempts(&mut self, it: &Container, last: Option<&Attempt>, attempts: &[Attempt]) {
        let older = |attempt: &&Attempt| {
            attempt.container == it.name && last.is_some_and(|last| attempt.attempt < last.attempt)
        };
        for old in attempts.iter().filter(older).map(|attempt| attempt.attempt) {
            let (host, pod, name) = (self.host.clone(), self.pod.clone(), it.name.clone());
            self.background.spawn(async move {
                let removed = host.containers.remove(&pod.meta.uid, &name, old).await;
                let log = translate::log_path(&host.settings.logs, &pod, &name, old);
                let file = message_file(&host.settings.root, &pod.meta.uid, &name, old);
                let gone = disk::remove(&log).await.and(disk::remove(&file).await);
                if let (Err(error), _) | (_, Err(error)) = (
                    removed.map_err(|error| error.to_string()),
                    gone.map_err(|error| error.to_string()),
                ) {
                    tracing::debug!(pod = %pod.key(), container = name, error, "an old attempt is not forgotten");
                }
                Done::Nothing
            });
        }
    }
}
