//! What the pod asks and what the image says become the exact process a shim starts. Pure.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::image::record::{Process, Record};
use super::message::{LogPlan, Start, Which};
use super::user::UserPlan;
use super::{ContainerSpec, Limits, Mount, RuntimeError, SandboxSpec, capability};

/// Kubelet's defaults of `containerLogMaxSize` and `containerLogMaxFiles`.
const LOG_BYTES: u64 = 10 << 20;
const LOG_FILES: usize = 5;
/// What containerd gives a container whose image names no `PATH`.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A sandbox as its shim makes it (`sandbox.json`).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct SandboxPlan {
    pub spec: SandboxSpec,
    #[serde(default, with = "super::spec::stamp")]
    pub created: Option<jiff::Timestamp>,
    /// The pod's cgroup, and the one that holds shims.
    pub cgroup: String,
    pub shims: String,
}

/// A container as its first process makes it (`plan.json`).
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Plan {
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub cwd: String,
    pub user: UserPlan,
    /// Folders below `layers_in`, the highest first.
    pub layers: Vec<String>,
    pub layers_in: PathBuf,
    /// Holds `upper` and `work`.
    pub writable: PathBuf,
    /// Where it is put together.
    pub root: PathBuf,
    /// The pod's shared memory.
    pub shm: PathBuf,
    pub mounts: Vec<Mount>,
    pub limits: Limits,
    pub cgroup: String,
    pub capabilities: u64,
    pub privileged: bool,
    pub no_new_privileges: bool,
    pub read_only_root: bool,
    pub oom_score_adj: i32,
}

/// Where things of one container are.
pub(super) struct Places<'a> {
    pub data: &'a Path,
    pub writable: PathBuf,
    pub root: PathBuf,
    pub shm: PathBuf,
    pub cgroup: String,
}

/// Plans a container.
///
/// # Errors
/// [`RuntimeError::Spec`] for what no runtime can do: nothing to run, an unknown capability, a path that is not absolute.
pub(super) fn plan(
    spec: &ContainerSpec,
    image: &Record,
    sandbox: &SandboxSpec,
    places: Places<'_>,
) -> Result<Plan, RuntimeError> {
    let capabilities = if spec.privileged {
        capability::ALL
    } else {
        capability::set(&spec.add_capabilities, &spec.drop_capabilities)?
    };
    for mount in &spec.mounts {
        if !mount.target.is_absolute() {
            return Err(RuntimeError::Spec(format!(
                "mount path {:?} is not absolute",
                mount.target
            )));
        }
    }
    Ok(Plan {
        args: args(spec, &image.process)?,
        env: env(spec, &image.process, sandbox),
        cwd: cwd(spec, &image.process)?,
        user: UserPlan {
            image: image.process.user.clone(),
            run_as_user: spec.run_as_user,
            run_as_group: spec.run_as_group,
            groups: spec.groups.clone(),
            non_root: spec.run_as_non_root,
        },
        layers: image.layers.iter().rev().map(|layer| format!("{layer}/fs")).collect(),
        layers_in: places.data.join("layers"),
        writable: places.writable,
        root: places.root,
        shm: if sandbox.host_ipc {
            "/dev/shm".into()
        } else {
            places.shm
        },
        mounts: spec.mounts.clone(),
        limits: spec.limits.clone(),
        cgroup: places.cgroup,
        capabilities,
        privileged: spec.privileged,
        no_new_privileges: spec.no_new_privileges,
        read_only_root: spec.read_only_root,
        oom_score_adj: spec.oom_score_adj,
    })
}

/// What the shim is told of it.
pub(super) fn start(spec: &ContainerSpec, cgroup: String, host_pid: bool) -> Start {
    Start {
        which: Which {
            name: spec.name.clone(),
            attempt: spec.attempt,
        },
        cgroup,
        host_pid,
        tty: spec.tty,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        log: LogPlan {
            path: spec.log_path.clone(),
            max_bytes: spec.log_max_bytes.unwrap_or(LOG_BYTES),
            max_files: spec.log_max_files.map_or(LOG_FILES, |files| files.max(1).into()),
        },
    }
}

/// Source: Kubernetes documentation, "Define a Command and Arguments for a Container".
fn args(spec: &ContainerSpec, image: &Process) -> Result<Vec<String>, RuntimeError> {
    let (command, default) = if spec.command.is_empty() {
        (&image.entrypoint, image.cmd.as_slice())
    } else {
        (&spec.command, &[][..])
    };
    let args = if spec.args.is_empty() { default } else { &spec.args };
    let all: Vec<String> = command.iter().chain(args).cloned().collect();
    if all.is_empty() {
        return Err(RuntimeError::Spec("no command specified".into()));
    }
    Ok(all)
}

/// The image's, then the host name, then the pod's; the last of a name wins and keeps the first's place.
fn env(spec: &ContainerSpec, image: &Process, sandbox: &SandboxSpec) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut put = |entry: String| {
        let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        let same = name(&entry);
        match env.iter_mut().find(|known| name(known) == same) {
            Some(known) => *known = entry,
            None => env.push(entry),
        }
    };
    put(PATH.into());
    image.env.iter().for_each(|entry| put(entry.clone()));
    if spec.tty {
        put("TERM=xterm".into());
    }
    if !sandbox.hostname.is_empty() {
        put(format!("HOSTNAME={}", sandbox.hostname));
    }
    spec.env.iter().for_each(|(name, value)| put(format!("{name}={value}")));
    env
}

fn cwd(spec: &ContainerSpec, image: &Process) -> Result<String, RuntimeError> {
    let cwd = spec
        .working_dir
        .as_deref()
        .filter(|text| !text.is_empty())
        .unwrap_or(&image.working_dir);
    match cwd {
        "" => Ok("/".into()),
        cwd if cwd.starts_with('/') => Ok(cwd.into()),
        cwd => Err(RuntimeError::Spec(format!("working directory {cwd:?} is not absolute"))),
    }
}

/// The number of a signal by name or number; SIGTERM for what nobody knows.
pub(super) fn stop_signal(text: &str) -> i32 {
    use nix::sys::signal::Signal;
    let full = if text.starts_with("SIG") {
        text.to_owned()
    } else {
        format!("SIG{text}")
    };
    match (text.parse::<i32>(), full.parse::<Signal>()) {
        (Ok(number), _) if (1..=64).contains(&number) => number,
        (_, Ok(signal)) => signal as i32,
        _ => Signal::SIGTERM as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn command_and_args_replace_entry_point_and_cmd_as_documented() {
        for (command, args, expected) in [
            ("", "", "/ep-1 foo bar"),
            ("/ep-2", "", "/ep-2"),
            ("", "zoo boo", "/ep-1 zoo boo"),
            ("/ep-2", "zoo boo", "/ep-2 zoo boo"),
        ] {
            let image = Process {
                entrypoint: words("/ep-1"),
                cmd: words("foo bar"),
                ..Process::default()
            };
            let spec = ContainerSpec {
                command: words(command),
                args: words(args),
                ..ContainerSpec::default()
            };
            assert_eq!(
                super::args(&spec, &image).unwrap(),
                words(expected),
                "{command:?} {args:?}"
            );
        }
        assert!(args(&ContainerSpec::default(), &Process::default()).is_err());
    }

    #[test]
    fn the_pods_environment_wins_over_the_images() {
        let image = Process {
            env: vec!["PATH=/bin".into(), "A=image".into(), "B=image".into()],
            ..Process::default()
        };
        let spec = ContainerSpec {
            env: vec![("B".into(), "pod".into()), ("C".into(), "x=y".into())],
            ..ContainerSpec::default()
        };
        let sandbox = SandboxSpec {
            hostname: "web-0".into(),
            ..SandboxSpec::default()
        };
        let expected = ["PATH=/bin", "A=image", "B=pod", "HOSTNAME=web-0", "C=x=y"];
        assert_eq!(env(&spec, &image, &sandbox), expected);
    }

    #[test]
    fn stop_signals_are_names_or_numbers() {
        for (text, number) in [
            ("", 15),
            ("SIGQUIT", 3),
            ("QUIT", 3),
            ("9", 9),
            ("SIGWHAT", 15),
            ("99", 15),
        ] {
            assert_eq!(stop_signal(text), number, "{text:?}");
        }
    }
}
