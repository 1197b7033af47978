//! What a forked child does until it is the container's (or a command's) program.
//!
//! Single-threaded, forked from the shim: it may allocate and read files, nothing of it is left after `execve`. It speaks
//! to the shim over a socket: a terminal's descriptor, then why it failed; silence and the end is success.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Uid, access, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, setgroups, setresgid, setresuid, setsid,
};

use super::rootfs;
use crate::runtime::capability;
use crate::runtime::cgroup::Cgroups;
use crate::runtime::message::Failure;
use crate::runtime::plan::Plan;
use crate::runtime::user::{self, Identity};
use crate::sys::{passing, process, terminal};

/// Longer account files are not read to their end: an image must not make us grow.
const MAX_ACCOUNTS: u64 = 1 << 20;

/// What a child has instead of a terminal.
pub(super) struct Pipes {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// What a child is to become.
pub(super) enum Job<'a> {
    /// The first process of a new container.
    Container,
    /// A command beside the first process `pid`.
    Command { pid: i32, args: &'a [String] },
}

/// Runs the child; `pipes: None` gives it a terminal.
pub(super) fn main(job: &Job<'_>, plan: &Path, cgroups: &Cgroups, pipes: Option<Pipes>, status: &OwnedFd) -> ! {
    let failure = match run(job, plan, cgroups, pipes, status) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let text = serde_json::to_vec(&failure).unwrap_or_default();
    let _ = passing::send(status, &text, &[]);
    process::leave(128)
}

fn run(
    job: &Job<'_>,
    plan: &Path,
    cgroups: &Cgroups,
    pipes: Option<Pipes>,
    status: &OwnedFd,
) -> Result<Infallible, Failure> {
    let step = |step: &'static str| move |error: io::Error| Failure::start(format!("cannot {step}: {error}"));
    let os = |step: &'static str| move |errno: Errno| Failure::start(format!("cannot {step}: {errno}"));
    umask(Mode::empty());
    setsid().map_err(os("begin a session"))?;
    // Nobody inside may look at this process while it is still ours: it holds the node's files open.
    let _ = prctl::set_dumpable(false);
    let bytes = fs::read(plan).map_err(step("read the plan"))?;
    let plan: Plan = serde_json::from_slice(&bytes).map_err(|error| Failure::start(format!("the plan: {error}")))?;
    let _ = fs::write("/proc/self/oom_score_adj", plan.oom_score_adj.to_string()); // lowering needs a capability
    let mut terminal = None;
    let args = match job {
        Job::Container => {
            cgroups
                .create(&plan.cgroup, &plan.limits)
                .map_err(step("set its limits"))?;
            if !plan.privileged {
                cgroups
                    .restrict_devices(&plan.cgroup)
                    .map_err(step("restrict its devices"))?;
            }
            cgroups.enter(&plan.cgroup).map_err(step("enter its cgroup"))?;
            if cgroups.is_two() {
                unshare(CloneFlags::CLONE_NEWCGROUP).map_err(os("make a cgroup namespace"))?;
            }
            rootfs::build(&plan, cgroups.is_two())?;
            plan.args.as_slice()
        }
        Job::Command { pid, args } => {
            enter(*pid, &plan, cgroups)?;
            args
        }
    };
    if pipes.is_none() {
        let (master, program) = terminal::open(Path::new("/dev/pts/ptmx")).map_err(step("open a terminal"))?;
        passing::send(status, b" ", &[master.as_fd()]).map_err(step("hand a terminal over"))?;
        terminal::control(&program).map_err(step("take a terminal"))?;
        if matches!(job, Job::Container) {
            rootfs::console(&program).map_err(step("make a console"))?;
        }
        terminal = Some(program);
    }
    let streams = match (&pipes, &terminal) {
        (Some(pipes), _) => [pipes.stdin.as_fd(), pipes.stdout.as_fd(), pipes.stderr.as_fd()],
        (None, Some(terminal)) => [terminal.as_fd(); 3],
        (None, None) => return Err(Failure::start("neither pipes nor a terminal")),
    };
    become_program(&plan, args, streams, terminal.is_some(), cgroups.restricts_devices())
}

/// Enters the namespaces of a running container. The pid namespace is the shim's business: it takes a fork.
fn enter(pid: i32, plan: &Plan, cgroups: &Cgroups) -> Result<(), Failure> {
    let gone = |_| Failure::start("container is not running");
    let open = |name: &str| File::open(format!("/proc/{pid}/ns/{name}")).map_err(gone);
    let mounts = open("mnt")?;
    let cgroup = if cgroups.is_two() { Some(open("cgroup")?) } else { None };
    cgroups.enter(&plan.cgroup).map_err(gone)?;
    if let Some(cgroup) = cgroup {
        setns(cgroup, CloneFlags::CLONE_NEWCGROUP).map_err(|errno| gone(errno.into()))?;
    }
    setns(mounts, CloneFlags::CLONE_NEWNS).map_err(|errno| gone(errno.into()))
}

/// The last steps, with the container's root as ours: who we are, what we may, and the program.
fn become_program(
    plan: &Plan,
    args: &[String],
    streams: [BorrowedFd<'_>; 3],
    has_terminal: bool,
    devices_restricted: bool,
) -> Result<Infallible, Failure> {
    let step = |step: &'static str| move |error: io::Error| Failure::start(format!("cannot {step}: {error}"));
    let identity = user::identify(&plan.user, &accounts("/etc/passwd"), &accounts("/etc/group"))?;
    let env = environment(plan, &identity, has_terminal);
    own(&streams, &identity);
    let [stdin, stdout, stderr] = streams;
    dup2_stdin(stdin)
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr))
        .map_err(|errno| Failure::start(format!("cannot set its streams: {errno}")))?;
    umask(Mode::from_bits_truncate(0o022));
    // The image may lack it, as Docker makes it.
    let _ = fs::create_dir_all(&plan.cwd);
    take_identity(plan, &identity, devices_restricted).map_err(step("become its user"))?;
    chdir(plan.cwd.as_str()).map_err(|errno| Failure::start(format!("chdir to cwd ({:?}): {errno}", plan.cwd)))?;
    if plan.no_new_privileges {
        prctl::set_no_new_privs().map_err(|errno| Failure::start(format!("cannot forbid new privileges: {errno}")))?;
    }
    process::reset_signals();
    process::close_others_on_exec();
    Err(execute(args, &env))
}

/// An image's file, shortened; empty if it is none (a FIFO would block us for ever).
fn accounts(path: &str) -> String {
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path);
    let mut text = Vec::new();
    if let Ok(file) = open
        && file.metadata().is_ok_and(|seen| seen.is_file())
    {
        let _ = file.take(MAX_ACCOUNTS).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn environment(plan: &Plan, identity: &Identity, has_terminal: bool) -> Vec<String> {
    let mut env = plan.env.clone();
    let has = |env: &[String], name: &str| env.iter().any(|entry| entry.starts_with(name));
    if !has(&env, "HOME=") {
        env.push(format!("HOME={}", identity.home));
    }
    if has_terminal && !has(&env, "TERM=") {
        env.push("TERM=xterm".into());
    }
    env
}

/// A program that is not root must be able to open `/dev/stdout` again.
fn own(streams: &[BorrowedFd<'_>; 3], identity: &Identity) {
    for stream in streams {
        let is_null = nix::sys::stat::fstat(stream).is_ok_and(|seen| {
            nix::sys::stat::SFlag::from_bits_truncate(seen.st_mode) & nix::sys::stat::SFlag::S_IFMT
                == nix::sys::stat::SFlag::S_IFCHR
                && seen.st_rdev == nix::sys::stat::makedev(1, 3)
        });
        if !is_null {
            let _ = nix::unistd::fchown(stream, Some(Uid::from_raw(identity.uid)), None);
        }
    }
}

fn take_identity(plan: &Plan, identity: &Identity, devices_restricted: bool) -> io::Result<()> {
    let mut capabilities = plan.capabilities & process::permitted_capabilities()?;
    if !plan.privileged && !devices_restricted {
        // No cgroup stands between a device node and the node's disks.
        capabilities &= !capability::MKNOD;
    }
    process::bound_capabilities(capabilities)?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    setresgid(gid, gid, gid)?;
    // Any other user than root loses its capabilities here, and execve would give it none.
    setresuid(uid, uid, uid)?;
    if identity.uid == 0 {
        process::set_capabilities(capabilities)?;
    }
    Ok(())
}

/// Executes, searching `PATH`; returns only with the reason. Worded as runc does: people search for these texts.
fn execute(args: &[String], env: &[String]) -> Failure {
    let Some(name) = args.first() else {
        return Failure::spec("no command specified");
    };
    let c = |text: &String| CString::new(text.as_str());
    let (Ok(words), Ok(env_words)) = (
        args.iter().map(c).collect::<Result<Vec<_>, _>>(),
        env.iter().map(c).collect::<Result<Vec<_>, _>>(),
    ) else {
        return Failure::spec("a zero byte in the command or the environment");
    };
    let program = match find(name, env) {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    let Ok(path) = CString::new(program.as_os_str().as_encoded_bytes()) else {
        return Failure::spec("a zero byte in the command");
    };
    match execve(&path, &words, &env_words) {
        Ok(never) => match never {},
        Err(Errno::ENOEXEC) => Failure::start(format!("exec {}: exec format error", program.display())),
        // The file is there (we looked): its interpreter is not.
        Err(Errno::ENOENT) => Failure::start(format!("exec {}: no such file or directory", program.display())),
        Err(errno) => Failure::start(format!("exec: {name:?}: {}", errno.desc().to_lowercase())),
    }
}

fn find(name: &str, env: &[String]) -> Result<PathBuf, Failure> {
    use nix::unistd::AccessFlags;
    if name.contains('/') {
        return match fs::metadata(name) {
            Ok(seen) if seen.is_dir() => Err(Failure::start(format!("exec: {name:?}: is a directory"))),
            Ok(_) if access(name, AccessFlags::X_OK).is_err() => {
                Err(Failure::start(format!("exec: {name:?}: permission denied")))
            }
            Ok(_) => Ok(name.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::start(format!(
                "exec: {name:?}: stat {name}: no such file or directory"
            ))),
            Err(error) => Err(Failure::start(format!("exec: {name:?}: {error}"))),
        };
    }
    let path = env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    for folder in path.split(':') {
        let candidate = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        if candidate.is_file() && access(&candidate, AccessFlags::X_OK).is_ok() {
            return Ok(candidate);
        }
    }
    Err(Failure::start(format!(
        "exec: {name:?}: executable file not found in $PATH"
    )))
}

/// A descriptor that reads as empty and swallows what is written.
pub(super) fn null() -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    debug_assert!(file.as_raw_fd() > 2, "standard streams are never closed");
    Ok(file.into())
}
