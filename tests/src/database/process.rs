//! A server process and the folder it lives in.

use std::fs;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

/// A server that takes longer to start or to stop than this has a problem.
const PATIENCE: Duration = Duration::from_secs(60);
/// Below are those of services.
const LOWEST_PORT: u64 = 10_000;
/// Database servers refuse to run as root, with reason.
const USER: &str = "nobody";

/// A folder of an unprivileged user, removed at the end.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one. Its path is short: sockets in it must have room.
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).unwrap();
        give_away(&folder);
        Self(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it, for its owner only.
    pub fn write(&self, name: &Path, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        give_away(&path);
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is still written into it, by a process that is about to end, is somebody else's failure.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// To the user who runs servers; only root can, and only root needs to.
fn give_away(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        let user = User::from_name(USER).unwrap().unwrap();
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

/// `program`, to be run as the unprivileged user, and not to outlive the thread that starts it.
pub(super) fn unprivileged(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if nix::unistd::geteuid().is_root() {
        let user = User::from_name(USER).unwrap().unwrap();
        command.args(["--reuid", &user.uid.to_string(), "--regid", &user.gid.to_string()]);
        command.arg("--clear-groups");
    }
    command.arg("--").arg(program).stdin(Stdio::null());
    command
}

/// Runs a program as the unprivileged user, to its end.
pub(super) fn run_unprivileged(program: &Path, arguments: &[&str]) {
    let output = unprivileged(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{} failed: {}{}",
        program.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A port nobody listens on now, and that no connection is given for its near end: those are from a range of their own. A server
/// that was killed finds it free when it comes back.
pub fn free_port() -> u16 {
    port(&hold_port())
}

/// Several.
pub fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..count).map(|_| hold_port()).collect();
    held.iter().map(port).collect()
}

fn hold_port() -> TcpListener {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let given = range.split_whitespace().next().and_then(|first| first.parse().ok());
    let given: u64 = given.unwrap_or(32_768);
    assert!(given > LOWEST_PORT, "no ports are left beside {range}");
    loop {
        // Tests that run at once must not look for theirs in the same order: this is a random number.
        let random = RandomState::new().build_hasher().finish();
        let port = u16::try_from(LOWEST_PORT + random % (given - LOWEST_PORT)).unwrap();
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
            return listener;
        }
    }
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

/// A running server; stopped when it goes out of scope.
///
/// A thread of its own starts the process and waits for it, so that the process lives as long as this and, if the test is
/// killed, no longer.
#[derive(Debug)]
pub struct Server {
    pid: Pid,
    stop: Signal,
    ended: Mutex<Receiver<ExitStatus>>,
    guard: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts `command` as the unprivileged user, its output in `log`. `stop` is the signal that ends it in order.
    pub fn start(program: &Path, arguments: &[&str], log: &Path, stop: Signal) -> Self {
        let file = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = unprivileged(program);
        command.args(arguments).stdout(file.try_clone().unwrap()).stderr(file);
        let (told, started) = channel();
        let (tell, ended) = channel();
        let guard = thread::spawn(move || guard(command, &told, &tell));
        let pid = started.recv().unwrap();
        Self {
            pid: Pid::from_raw(i32::try_from(pid).unwrap()),
            stop,
            ended: Mutex::new(ended),
            guard: Some(guard),
        }
    }

    /// Waits until `ready` says so.
    pub fn wait_until(&mut self, log: &Path, mut ready: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !ready() {
            let ended = self.ended.get_mut().unwrap().try_recv();
            let text = || fs::read_to_string(log).unwrap_or_default();
            assert!(ended.is_err(), "the server ended ({ended:?}):\n{}", text());
            assert!(begun.elapsed() < PATIENCE, "the server does not come up:\n{}", text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a power cut would: it and its children get no chance to do anything.
    pub fn kill(&mut self) {
        // The parent stands still first, so that it neither starts nor warns anybody.
        self.signal(Signal::SIGSTOP);
        for pid in self.family() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        self.join();
    }

    /// Ends it in order.
    pub fn stop(&mut self) {
        self.signal(self.stop);
        self.join();
    }

    /// It and its children stand still.
    pub fn pause(&self) {
        for pid in self.family() {
            let _ = kill(pid, Signal::SIGSTOP);
        }
    }

    /// They go on.
    pub fn resume(&self) {
        for pid in self.family() {
            let _ = kill(pid, Signal::SIGCONT);
        }
    }

    fn signal(&self, signal: Signal) {
        if self.guard.is_some() {
            kill(self.pid, signal).unwrap();
        }
    }

    /// It first, then its children.
    fn family(&self) -> Vec<Pid> {
        let mut family = vec![self.pid];
        for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // `pid (name) state parent …`; the name may hold anything.
            let parent = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.split_whitespace().nth(1));
            if parent == Some(&self.pid.to_string()) {
                let pid = stat.split(' ').next().and_then(|pid| pid.parse().ok());
                family.extend(pid.map(Pid::from_raw));
            }
        }
        family
    }

    fn join(&mut self) {
        let Some(guard) = self.guard.take() else {
            return;
        };
        if self.ended.get_mut().unwrap().recv_timeout(PATIENCE).is_err() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        guard.join().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.guard.is_some() {
            self.resume();
            let _ = kill(self.pid, self.stop);
            self.join();
        }
    }
}

fn guard(mut command: Command, told: &Sender<u32>, tell: &Sender<ExitStatus>) {
    let mut child: Child = command.spawn().unwrap();
    told.send(child.id()).unwrap();
    let status = child.wait().unwrap();
    // Nobody may be listening any more.
    let _ = tell.send(status);
}
