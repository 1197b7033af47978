//! Ends containers: hook, signal, and the kill when time is up. Also their last words.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{fs, io};

use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::timeout_at;

use super::care::{Hook, Parting, role};
use super::{Done, RETRY, Worker};
use crate::kubelet::act::act;
use crate::kubelet::clock;
use crate::kubelet::disk::{self, blocking};
use crate::kubelet::event::About;
use crate::kubelet::log_file;
use crate::kubelet::pod::{Life, Role};
use crate::kubelet::ports::{Attempt, Containers};
use crate::kubelet::status::newest;
use crate::kubelet::translate::log_path;
use crate::kubelet::volume;
use crate::kubelet::volume::mounts::message_file;
use crate::wire::pod::Container;

/// Between signal and kill at least, whatever was asked and however long the `preStop` hook took: a process that heeds the
/// signal is not killed. Source: Kubernetes v1.36, `pkg/kubelet/kuberuntime` `killContainer`, `minimumGracePeriodInSeconds`.
const SHORTEST: Duration = Duration::from_secs(2);
/// Kubernetes' bound on a termination message.
const LONGEST_MESSAGE: u64 = 4096;
/// Kubernetes' bounds on a message taken from the log.
const LONGEST_FROM_LOG: u64 = 2048;
const LINES_FROM_LOG: usize = 80;

impl Worker {
    /// Asks a container to end: `preStop`, then (a sidecar: in its turn, or when the time is up) its stop signal.
    pub(super) fn end(&mut self, index: usize, attempts: &[Attempt], now: Instant) -> bool {
        let pod = self.pod.clone();
        let Some(it) = pod.all_containers().nth(index) else {
            return false;
        };
        let Some(running) = newest(attempts, &it.name) else {
            return false;
        };
        let (grace, message) = self.terms(it, now);
        let stops = matches!(self.life, Life::Stopping { .. });
        let waits = stops && role(&pod, index) == Role::Sidecar;
        self.host.events.normal(About::container(&pod, it), "Killing", message);
        let (target, signal) = (self.target(&it.name), running.stop_signal);
        let hook = it.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.clone());
        let hook = hook.filter(|_| !grace.is_zero());
        let until = now + grace;
        let kill_at = match hook {
            None if !waits => now + grace.max(SHORTEST),
            // No signal comes later than `until`; when it has come, `told` knows better.
            None | Some(_) => until + SHORTEST,
        };
        let Some(care) = self.cares.get_mut(&it.name) else {
            return false;
        };
        let (waits, parting) = (waits && !care.in_turn, care.parting.clone());
        let (events, about, attempt) = (self.host.events.clone(), About::container(&pod, it), running.attempt);
        let note = hook_note(&self.host.settings.root, &pod.meta.uid, &it.name, attempt);
        let asking = self.background.spawn(async move {
            let mut writing = None;
            if let Some(hook) = hook
                && !was_run(&parting, &note).await
            {
                let left = until.saturating_duration_since(clock::now());
                if let Err(why) = act(&target, &hook, left).await {
                    events.warning(about, "FailedPreStopHook", format!("PreStopHook failed: {why}"));
                }
                parting.hook_done.store(true, Ordering::Relaxed);
                writing = Some(write(note));
            }
            if waits {
                // Late or in time: now it is asked.
                let _ = timeout_at(until.into(), parting.turn.notified()).await;
            }
            let (uid, name) = (&target.pod.meta.uid, &target.container);
            if let Err(error) = target.containers.signal(uid, name, signal).await {
                tracing::warn!(pod = %target.pod.key(), container = name, %error, "a container is not told to end");
            }
            if let Some(writing) = writing {
                written(writing.await);
            }
            Done::Told(target.container, attempt, until)
        });
        care.kill_at = Some(kill_at);
        if let Some(before) = care.asking.replace(asking) {
            before.abort(); // it would give the container more time than it now has
        }
        true
    }

    /// Lets a sidecar have its signal.
    pub(super) fn turn_has_come(&mut self, index: usize) -> bool {
        let it = self.pod.all_containers().nth(index);
        if let Some(care) = it.and_then(|it| self.cares.get_mut(&it.name)) {
            care.in_turn = true;
            care.parting.turn.notify_one();
        }
        false
    }

    /// Takes note that a container has its signal: its grace goes on, and is not over at once.
    pub(super) fn told(&mut self, name: &str, attempt: u32, until: Instant, now: Instant) {
        let care = self.cares.get_mut(name).filter(|care| care.attempt == Some(attempt));
        if let Some(care) = care.filter(|care| care.kill_at.is_some()) {
            care.kill_at = Some(until.max(now + SHORTEST));
        }
    }

    /// How long a container gets, and what is said about it.
    fn terms(&self, it: &Container, now: Instant) -> (Duration, String) {
        if let Life::Stopping { deadline } = self.life {
            let text = format!("Stopping container {}", it.name);
            return (deadline.saturating_duration_since(now), text);
        }
        let of_pod = Duration::from_secs(u64::try_from(self.own_grace()).unwrap_or(0));
        let care = self.cares.get(&it.name);
        let name = &it.name;
        match care.and_then(|care| care.probes.given_up()) {
            Some(probe) => {
                let kind = probe.kind.name().to_lowercase();
                let text = format!("Container {name} failed {kind} probe, will be restarted");
                (probe.grace.unwrap_or(of_pod), text)
            }
            None if care.is_some_and(|care| care.hook == Hook::Failed) => (of_pod, "FailedPostStartHook".into()),
            None => (of_pod, format!("Stopping container {name}")),
        }
    }

    /// Kills one container.
    pub(super) async fn kill(&mut self, index: usize) -> bool {
        let pod = self.pod.clone();
        let Some(it) = pod.all_containers().nth(index) else {
            return false;
        };
        if let Some(care) = self.cares.get_mut(&it.name) {
            care.kill_at = Some(clock::now() + RETRY);
        }
        kill(self.host.containers.as_ref(), &pod.meta.uid, &it.name).await;
        false
    }

    /// Reads what ended attempts left behind, once each.
    pub(super) async fn read_messages(&mut self, attempts: &[Attempt]) {
        let pod = self.pod.clone();
        for it in pod.all_containers() {
            let care = self.cares.entry(it.name.clone()).or_default();
            let own = || attempts.iter().filter(|attempt| attempt.container == it.name);
            care.messages
                .retain(|attempt, _| own().any(|known| known.attempt == *attempt));
            for ended in own().filter(|attempt| !attempt.running && attempt.start_error.is_none()) {
                if care.messages.contains_key(&ended.attempt) {
                    continue;
                }
                let settings = &self.host.settings;
                let file = message_file(&settings.root, &pod.meta.uid, &it.name, ended.attempt);
                let from_log = it.termination_message_policy == "FallbackToLogsOnError" && ended.exit_code != 0;
                let log = from_log.then(|| log_path(&settings.logs, &pod, &it.name, ended.attempt));
                care.messages.insert(ended.attempt, last_words(file, log).await);
            }
        }
    }
}

/// Whether the `preStop` hook of this attempt has come to its end: an agent that restarts while a container ends asks it to end
/// once more, and the note on disk tells it what has been done.
async fn was_run(parting: &Parting, note: &Path) -> bool {
    let known = note.to_owned();
    parting.hook_done.load(Ordering::Relaxed) || blocking(move || known.try_exists()).await.unwrap_or(false)
}

/// Begins to write the note. Nobody waits for it before the signal: a slow card would use up the time to heed it.
///
/// The order of the two is free. An agent that dies before the note is durable runs the hook again, as Kubernetes does with one
/// that was cut off; one that dies before the signal sends it when it is back. Either way the grace begins once with each agent,
/// and its end needs no note.
fn write(note: PathBuf) -> JoinHandle<io::Result<()>> {
    spawn_blocking(move || {
        if let Some(folder) = note.parent() {
            fs::create_dir_all(folder)?;
        }
        disk::replace(&note, b"", 0o600)
    })
}

fn written(result: Result<io::Result<()>, JoinError>) {
    if let Err(error) = result.map_err(io::Error::other).flatten() {
        tracing::warn!(%error, "an agent that restarts now runs a preStop hook again");
    }
}

/// The file that is there once the `preStop` hook of an attempt has come to its end.
fn hook_note(root: &Path, uid: &str, container: &str, attempt: u32) -> PathBuf {
    let folder = volume::pod_dir(root, uid).join("hooks");
    folder.join(format!("{container}-{attempt}.pre-stop"))
}

async fn kill(containers: &dyn Containers, uid: &str, container: &str) {
    if let Err(error) = containers.signal(uid, container, libc::SIGKILL).await {
        tracing::warn!(uid, container, %error, "a container is not killed");
    }
}

/// The termination message; from the log where that is wanted and there is none.
async fn last_words(file: PathBuf, log: Option<PathBuf>) -> String {
    let read = blocking(move || {
        use std::io::Read as _;
        let mut text = Vec::new();
        if let Ok(file) = fs::File::open(file) {
            file.take(LONGEST_MESSAGE).read_to_end(&mut text)?;
        }
        match log {
            Some(log) if text.is_empty() => log_file::ending(&log, LINES_FROM_LOG, LONGEST_FROM_LOG),
            _ => Ok(String::from_utf8_lossy(&text).into_owned()),
        }
    });
    read.await.unwrap_or_default()
}
