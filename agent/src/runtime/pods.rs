//! Pods on disk: found again, told about, cleared away. Everything here blocks.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::cgroup::Cgroups;
use super::layout::{self, PodFolder};
use super::message::Life;
use super::plan::SandboxPlan;
use super::{ContainerState, PodState, Status};

/// How long what was killed may hold on to its cgroup.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a container counts as when nobody saw its end. Source: kubelet's `ContainerStatusUnknown`.
const UNKNOWN: i32 = 137;

/// UIDs of all pods with a folder.
pub(super) fn uids(run: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(run.join("pods")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut uids: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    uids.sort();
    Ok(uids)
}

/// A sandbox's plan; `None` when there is no such pod.
pub(super) fn sandbox(folder: &PodFolder) -> io::Result<Option<SandboxPlan>> {
    layout::read(&folder.sandbox())
}

/// What is known of a pod; `None` when there is no such pod.
pub(super) fn state(folder: &PodFolder, uid: &str, shim_alive: bool) -> io::Result<Option<PodState>> {
    let Some(plan) = sandbox(folder)? else {
        // Half made by a crash: to be removed.
        return Ok(folder.path().exists().then(|| PodState {
            pod_uid: uid.into(),
            ..PodState::default()
        }));
    };
    let mut containers = Vec::new();
    for container in folder.containers()? {
        let Some(state) = layout::read::<ContainerState>(&container.state())? else {
            continue;
        };
        let life = layout::read::<Life>(&container.life())?.unwrap_or_default();
        containers.push(merge(state, life, shim_alive));
    }
    containers.sort_by(|a, b| (&a.name, a.attempt).cmp(&(&b.name, b.attempt)));
    let netns = if plan.spec.host_network {
        "/proc/self/ns/net".into()
    } else {
        folder.netns()
    };
    Ok(Some(PodState {
        pod_uid: uid.into(),
        namespace: plan.spec.namespace,
        name: plan.spec.name,
        created: plan.created,
        netns,
        shim_alive,
        containers,
    }))
}

fn merge(state: ContainerState, life: Life, shim_alive: bool) -> ContainerState {
    let lost = !shim_alive && life.status != Status::Exited;
    ContainerState {
        started: life.started,
        finished: life.finished,
        exit_code: if lost { UNKNOWN } else { life.exit_code },
        signal: life.signal,
        oom_killed: life.oom_killed,
        status: if lost { Status::Unknown } else { life.status },
        pid: life.pid,
        ..state
    }
}

/// Takes away everything of a pod that has no shim any more, its processes first. Logs stay, and the cgroups
/// that all pods share: removing those would race with the next pod.
pub(super) fn clear(folder: &PodFolder, cgroups: &Cgroups, cgroup: &str, data: &Path) -> io::Result<()> {
    cgroups.kill(cgroup);
    cgroups.destroy(cgroup, PATIENCE)?;
    for place in [folder.netns(), folder.shm()] {
        match umount2(&place, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    remove_all(data)?;
    remove_all(folder.path())
}

/// Removes a folder if it is there.
pub(super) fn remove_all(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
