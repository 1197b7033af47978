//! How a shim begins: the pod's namespaces, cgroup and shared memory, then a daemon of its own.
//!
//! The agent waits for the process it started; that one makes everything, forks the shim and ends: success means that the
//! socket answers. The shim lives in the pod's own network, host name and IPC namespaces (its children inherit them) and in
//! the node's mount and pid namespaces.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{Backlog, listen};
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, sethostname, setsid};

use super::child;
use super::serve::Server;
use crate::runtime::Limits;
use crate::runtime::cgroup::Cgroups;
use crate::runtime::layout::{self, PodFolder, SOCKET};
use crate::runtime::plan::SandboxPlan;
use crate::sys::process;

/// What K3s has containerd set in every pod's network: low ports and ping without capabilities.
/// Source: K3s v1.36 `pkg/agent/templates`, `enable_unprivileged_ports`, `enable_unprivileged_icmp`.
const SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// Makes the sandbox described in `folder`, and stays behind as its shim in a process of its own.
pub(super) fn main(folder: &Path) -> io::Result<()> {
    chdir(folder)?;
    let here = PodFolder::here(Path::new("."));
    let missing = || io::Error::new(io::ErrorKind::NotFound, "sandbox.json is missing");
    let plan: SandboxPlan = layout::read(&here.sandbox())?.ok_or_else(missing)?;
    let cgroups = Cgroups::detect()?;
    cgroups
        .create(&plan.cgroup, &plan.spec.limits)
        .map_err(named("the pod's cgroup"))?;
    // Out of the agent's cgroup: stopping its service must not stop the pods.
    let own = cgroups.create(&plan.shims, &Limits::default());
    own.and_then(|()| cgroups.enter(&plan.shims))
        .map_err(named("the shims' cgroup"))?;
    namespaces(&plan, &here)?;
    let listener = UnixListener::bind(SOCKET).map_err(named("the socket"))?;
    listener.set_nonblocking(true)?;
    drop(plan);
    match process::fork(CloneFlags::empty())? {
        Some(_) => Ok(()),
        None => {
            let code = stay(cgroups, listener).map_or(1, |()| 0);
            process::leave(code)
        }
    }
}

fn named(what: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn namespaces(plan: &SandboxPlan, here: &PodFolder) -> io::Result<()> {
    let spec = &plan.spec;
    let mut flags = CloneFlags::empty();
    if !spec.host_network {
        flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if !spec.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(flags)
        .map_err(io::Error::from)
        .map_err(named("new namespaces"))?;
    let none = None::<&str>;
    if !spec.host_network {
        process::loopback_up().map_err(named("the loopback interface"))?;
        sethostname(&spec.hostname)
            .map_err(io::Error::from)
            .map_err(named("the host name"))?;
        // Pinned: whoever connects the pod to the network finds it by path.
        File::create(here.netns())?;
        let pinned = mount(Some("/proc/self/ns/net"), &here.netns(), none, MsFlags::MS_BIND, none);
        pinned
            .map_err(io::Error::from)
            .map_err(named("pinning the network namespace"))?;
        for (name, value) in SYSCTLS {
            let _ = fs::write(sysctl(name), value); // old kernels lack them
        }
    }
    for (name, value) in &spec.sysctls {
        fs::write(sysctl(name), value)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("sysctl {name}={value}: {error}")))?;
    }
    if !spec.host_ipc {
        fs::create_dir_all(here.shm())?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        let made = mount(
            Some("shm"),
            &here.shm(),
            Some("tmpfs"),
            flags,
            Some("mode=1777,size=64m"),
        );
        made.map_err(io::Error::from)
            .map_err(named("the pod's shared memory"))?;
    }
    Ok(())
}

fn sysctl(name: &str) -> PathBuf {
    // `net.ipv4.conf.eth0/1.rp_filter`: a slash stands for a dot in a name.
    let swap = |letter: char| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    Path::new("/proc/sys").join(name.chars().map(swap).collect::<String>())
}

fn stay(cgroups: Cgroups, listener: UnixListener) -> io::Result<()> {
    setsid()?;
    // Again, as this process: the agent asks the kernel who listens, to know whom to kill when nobody answers.
    listen(&listener, Backlog::MAXCONN)?;
    let null = child::null()?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    // The agent reads this until it closes: from here on it goes on.
    dup2_stderr(&null)?;
    drop(null);
    let _ = fs::write("/proc/self/oom_score_adj", "-998"); // lowering needs a capability
    prctl::set_child_subreaper(true)?;
    // A service manager's farewell to everything it knows is not for us: pods end by the kubelet's word.
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGPIPE,
    ] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Server::new(cgroups, listener, &signals)?.run()
}
