//! One process of a pod, from the fork to its exit: a container's first one, or a command beside it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use jiff::Timestamp;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Pid, pipe2};

use super::child::{self, Job, Pipes};
use super::log::{self, Log};
use crate::runtime::cgroup::Cgroups;
use crate::runtime::layout::{self, PodFolder};
use crate::runtime::message::{Failure, Life, Start, Which};
use crate::runtime::{ExecSpec, Status};
use crate::sys::{passing, process};

/// Read at once; held only while it is handled.
const CHUNK: usize = 32 << 10;
/// How long the kernel may take to let go of a cgroup whose processes are dead.
const PATIENCE: Duration = Duration::from_millis(200);
const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// A child of the shim.
pub(super) struct Task {
    pub id: u32,
    pub pid: i32,
    launch: Option<Launch>,
    container: Option<Box<Container>>,
    ended: bool,
}

/// A child that is not its program yet.
struct Launch {
    status: OwnedFd,
    said: Vec<u8>,
    terminal: Option<OwnedFd>,
}

/// What a container's first process has and a command has not.
pub(super) struct Container {
    pub life: Life,
    pub tty: bool,
    /// Connections to answer when it is gone.
    pub forgetting: Vec<u32>,
    which: Which,
    cgroup: String,
    stdin_once: bool,
    /// The terminal, or the end of a pipe that is its standard input.
    input: Option<OwnedFd>,
    outputs: [Option<Output>; 2],
    log: Log,
    listeners: Vec<Listener>,
}

struct Output {
    from: OwnedFd,
    partial: Vec<u8>,
}

/// An attached client.
struct Listener {
    connection: u32,
    streams: Vec<OwnedFd>,
}

impl Task {
    /// Forks a container's first process.
    pub fn start(id: u32, start: Start, cgroups: &Cgroups) -> io::Result<Self> {
        let folder = PodFolder::here(std::path::Path::new("."));
        let folder = folder
            .container(&start.which.name, start.which.attempt)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let log = Log::open(start.log)?;
        let mut outputs = [None, None];
        let (mut input, mut pipes) = (None, None);
        if !start.tty {
            let stdin = if start.stdin {
                let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
                input = Some(write);
                read
            } else {
                child::null()?
            };
            let ((out, stdout), (err, stderr)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
            outputs = [Some(Output::new(out)?), Some(Output::new(err)?)];
            pipes = Some(Pipes { stdin, stdout, stderr });
        }
        let plan = folder.plan();
        let own_pids = if start.host_pid {
            CloneFlags::empty()
        } else {
            CloneFlags::CLONE_NEWPID
        };
        let (status, theirs) = channel()?;
        let Some(pid) = process::fork(own_pids | CloneFlags::CLONE_NEWNS)? else {
            child::main(&Job::Container, &plan, cgroups, pipes, &theirs)
        };
        Ok(Self {
            id,
            pid: pid.as_raw(),
            launch: Some(Launch::new(status)),
            container: Some(Box::new(Container {
                life: Life {
                    status: Status::Created,
                    pid: pid.as_raw(),
                    ..Life::default()
                },
                tty: start.tty,
                forgetting: Vec::new(),
                which: start.which,
                cgroup: start.cgroup,
                stdin_once: start.stdin_once,
                input,
                outputs,
                log,
                listeners: Vec::new(),
            })),
            ended: false,
        })
    }

    /// Forks a command beside the first process `beside` of a container. `streams`: stdin, stdout, stderr, or none.
    pub fn exec(
        id: u32,
        which: &Which,
        beside: i32,
        spec: &ExecSpec,
        streams: Vec<OwnedFd>,
        cgroups: &Cgroups,
    ) -> io::Result<Self> {
        let folder = PodFolder::here(std::path::Path::new("."));
        let folder = folder
            .container(&which.name, which.attempt)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let pipes = match (spec.tty, <[OwnedFd; 3]>::try_from(streams)) {
            (true, _) => None,
            (false, Ok([stdin, stdout, stderr])) => Some(Pipes { stdin, stdout, stderr }),
            (false, Err(_)) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "three streams are needed")),
        };
        let (status, theirs) = channel()?;
        // A process enters a pid namespace only by being born into it.
        let inside = File::open(format!("/proc/{beside}/ns/pid"))?;
        let own = File::open("/proc/self/ns/pid")?;
        setns(&inside, CloneFlags::CLONE_NEWPID)?;
        let forked = process::fork(CloneFlags::empty());
        if let Ok(None) = forked {
            let job = Job::Command {
                pid: beside,
                args: &spec.command,
            };
            child::main(&job, &folder.plan(), cgroups, pipes, &theirs)
        }
        setns(&own, CloneFlags::CLONE_NEWPID)?;
        let pid = forked?.map_or(0, Pid::as_raw);
        Ok(Self {
            id,
            pid,
            launch: Some(Launch::new(status)),
            container: None,
            ended: false,
        })
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    pub fn is(&self, which: &Which) -> bool {
        self.container
            .as_ref()
            .is_some_and(|container| container.which == *which)
    }

    pub fn container(&self) -> Option<&Container> {
        self.container.as_deref()
    }

    pub fn container_mut(&mut self) -> Option<&mut Container> {
        self.container.as_deref_mut()
    }

    /// Where its child speaks until it is its program.
    pub fn launch(&self) -> Option<BorrowedFd<'_>> {
        self.launch.as_ref().map(|launch| launch.status.as_fd())
    }

    /// What it prints, by number of stream.
    pub fn outputs(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let outputs = self
            .container
            .iter()
            .flat_map(|container| container.outputs.iter().enumerate());
        outputs.filter_map(|(n, output)| Some((n, output.as_ref()?.from.as_fd())))
    }

    /// Listens to the child. `None`: not over yet; else its command's terminal, or why it failed.
    pub fn hear_launch(&mut self) -> Option<Result<Option<OwnedFd>, Failure>> {
        let launch = self.launch.as_mut()?;
        let mut buffer = [0; 1024];
        loop {
            match passing::receive(&launch.status, &mut buffer) {
                Ok((0, _)) => break,
                Ok((read, descriptors)) => {
                    if descriptors.is_empty() {
                        launch.said.extend_from_slice(buffer.get(..read).unwrap_or_default());
                    }
                    launch.terminal = descriptors.into_iter().next().or(launch.terminal.take());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.ended => return None,
                Err(_) => break,
            }
        }
        let Launch { said, terminal, .. } = self.launch.take()?;
        if !said.is_empty() {
            let unclear = |_| Failure::start(String::from_utf8_lossy(&said).into_owned());
            return Some(Err(serde_json::from_slice(&said).unwrap_or_else(unclear)));
        }
        Some(Ok(match &mut self.container {
            None => terminal,
            Some(container) => {
                container.running(terminal);
                None
            }
        }))
    }

    /// Signals the first process, unless it has ended: its number may be another's by then.
    pub fn signal(&self, signal: i32) {
        if let (false, Ok(signal)) = (self.ended, Signal::try_from(signal)) {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Kills it and all that belongs to it.
    pub fn kill(&self, cgroups: &Cgroups) {
        if self.ended {
            return;
        }
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        match &self.container {
            Some(container) => cgroups.kill(&container.cgroup),
            // Its own session, since it began with setsid.
            None => drop(kill(Pid::from_raw(-self.pid), Signal::SIGKILL)),
        }
    }

    /// Passes on and writes down what a container printed.
    pub fn read_output(&mut self, stream: usize, flags: PollFlags, now: Timestamp) {
        if let Some(container) = &mut self.container {
            container.read_output(stream, now);
            // A terminal that nobody has open says so only in the flags.
            if flags.contains(PollFlags::POLLERR) {
                container
                    .outputs
                    .iter_mut()
                    .skip(stream)
                    .take(1)
                    .for_each(|output| *output = None);
            }
        }
    }

    /// Adds a client; returns the container's input if it has one and the client wants it. An input for one client goes
    /// to him for good: where he closes it, it ends.
    pub fn attach(&mut self, connection: u32, stdin: bool, streams: Vec<OwnedFd>) -> Option<OwnedFd> {
        let container = self.container.as_mut()?;
        for stream in &streams {
            let _ = not_waiting(stream);
        }
        container.listeners.push(Listener { connection, streams });
        match container.stdin_once && !container.tty {
            _ if !stdin => None,
            true => container.input.take(),
            false => container.input.as_ref()?.try_clone().ok(),
        }
    }

    /// Writes its end down.
    pub fn end(&mut self, code: i32, signal: i32, cgroups: &Cgroups, now: Timestamp) {
        self.ended = true;
        let Some(container) = &mut self.container else { return };
        // Others of it live on only if it shares the node's pid namespace.
        cgroups.kill(&container.cgroup);
        for stream in 0..STREAMS.len() {
            container.drain(stream, now);
        }
        container.input = None;
        container.listeners.clear();
        container.life.oom_killed = cgroups.memory_kills(&container.cgroup) > 0;
        container.life.status = Status::Exited;
        container.life.finished = Some(now);
        (container.life.exit_code, container.life.signal) = (code, signal);
        container.write_life();
        // Gone now, so that a pod that keeps crashing holds no kernel memory. What is still busy goes with the pod.
        let _ = cgroups.destroy(&container.cgroup, PATIENCE);
    }

    /// Removes what the kernel still has of it.
    pub fn clean(&self, cgroups: &Cgroups) {
        if let Some(container) = &self.container {
            cgroups.kill(&container.cgroup);
            let _ = cgroups.destroy(&container.cgroup, PATIENCE);
        }
    }
}

impl Launch {
    fn new(status: OwnedFd) -> Self {
        Self {
            status,
            said: Vec::new(),
            terminal: None,
        }
    }
}

impl Output {
    fn new(from: OwnedFd) -> io::Result<Self> {
        not_waiting(&from)?;
        Ok(Self {
            from,
            partial: Vec::new(),
        })
    }
}

impl Container {
    fn running(&mut self, terminal: Option<OwnedFd>) {
        if let Some(terminal) = terminal {
            let output = terminal.try_clone().and_then(Output::new).ok();
            self.outputs = [output, None];
            self.input = Some(terminal);
        }
        self.life.status = Status::Running;
        self.life.started = Some(Timestamp::now());
        self.write_life();
    }

    fn write_life(&self) {
        let folder = PodFolder::here(std::path::Path::new("."));
        if let Some(folder) = folder.container(&self.which.name, self.which.attempt) {
            let _ = layout::write(&folder.life(), &self.life); // the folder is gone: so is whoever would read it
        }
    }

    /// A client has gone.
    pub fn detach(&mut self, connection: u32) {
        self.listeners.retain(|listener| listener.connection != connection);
    }

    /// Handles one piece; false when there is no more for now.
    fn read_output(&mut self, stream: usize, now: Timestamp) -> bool {
        let Some(slot) = self.outputs.get_mut(stream) else {
            return false;
        };
        let Some(output) = slot else { return false };
        let mut chunk = vec![0; CHUNK];
        let read = match nix::unistd::read(&output.from, &mut chunk) {
            Ok(0) => None,
            Ok(read) => Some(read),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return false,
            Err(_) => None, // a terminal that nobody has open any more
        };
        let name = STREAMS.get(stream).copied().unwrap_or("stdout");
        let mut lines = Vec::new();
        match read {
            Some(read) => {
                let chunk = chunk.get(..read).unwrap_or_default();
                log::frame(name, now, &mut output.partial, chunk, &mut lines);
                self.listeners
                    .iter_mut()
                    .for_each(|listener| listener.hear(stream, chunk));
            }
            None => {
                log::finish(name, now, &mut output.partial, &mut lines);
                *slot = None;
            }
        }
        if !lines.is_empty() {
            self.log.append(&lines, now);
        }
        read.is_some()
    }

    /// Reads what a dead process has left in a pipe, and ends the last line.
    fn drain(&mut self, stream: usize, now: Timestamp) {
        // A pipe holds far less; only a live writer could fill more.
        for _ in 0..64 {
            if !self.read_output(stream, now) {
                break;
            }
        }
        let Some(mut output) = self.outputs.get_mut(stream).and_then(Option::take) else {
            return;
        };
        let mut lines = Vec::new();
        let name = STREAMS.get(stream).copied().unwrap_or("stdout");
        log::finish(name, now, &mut output.partial, &mut lines);
        if !lines.is_empty() {
            self.log.append(&lines, now);
        }
    }
}

impl Listener {
    /// Hands on; a client that does not keep up loses what its pipe cannot hold.
    fn hear(&mut self, stream: usize, chunk: &[u8]) {
        if let Some(to) = self.streams.get(stream) {
            let _ = nix::unistd::write(to, chunk);
        }
    }
}

/// Two connected sockets: ours does not wait, the child's does.
fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    not_waiting(&ours)?;
    Ok((ours, theirs))
}

fn not_waiting(descriptor: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(descriptor, FcntlArg::F_GETFL)?);
    fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
