//! A shim's loop: one thread, one `poll`, and the processes of one pod.
//!
//! What happens to a process is in `task`; here is who asks and who is told. Small on purpose: there is a shim for every
//! pod, so nothing is kept that the run directory or the kernel keeps already.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::geteuid;

use super::task::{Container, Task};
use crate::runtime::cgroup::Cgroups;
use crate::runtime::message::{Failure, FailureKind, MAX_LINE, Reply, Request, Start, Which};
use crate::runtime::{ExecSpec, Status};
use crate::sys::passing;

/// More at once are turned away: one agent needs one, and one per running command.
const MAX_CONNECTIONS: usize = 256;

/// One client of the socket.
struct Connection {
    id: u32,
    socket: UnixStream,
    line: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    role: Role,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Role {
    /// Its request has not arrived in full.
    Asking,
    /// Told of every change.
    Watching,
    /// Waits for what became of task n; closing it ends a command.
    Waiting(u32),
    /// Wants to know when all is over.
    Stopping,
}

/// Where something can be read.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Connection(u32),
    Launch(u32),
    Output(u32, usize),
}

/// The shim's state.
pub(super) struct Server {
    cgroups: Cgroups,
    listener: UnixListener,
    signals: SignalFd,
    connections: Vec<Connection>,
    tasks: Vec<Task>,
    last_id: u32,
    stopping: bool,
}

impl Server {
    /// With nothing running.
    pub fn new(cgroups: Cgroups, listener: UnixListener, signals: &SigSet) -> io::Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self {
            cgroups,
            listener,
            signals: SignalFd::with_flags(signals, flags)?,
            connections: Vec::new(),
            tasks: Vec::new(),
            last_id: 0,
            stopping: false,
        })
    }

    /// Serves until it is told to stop and all processes have ended.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            for (source, flags) in self.wait()? {
                match source {
                    Source::Signals => self.reap(),
                    Source::Listener => self.accept(),
                    Source::Connection(id) => self.hear(id),
                    Source::Launch(id) => self.launched(id),
                    Source::Output(id, stream) => self.output(id, stream, flags),
                }
            }
            if self.stopping && self.tasks.iter().all(Task::has_ended) {
                for connection in self.connections.iter().filter(|c| c.role == Role::Stopping) {
                    answer(connection, &Reply::Done { tty: false }, &[]);
                }
                return Ok(());
            }
        }
    }

    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![
            (Source::Signals, self.signals.as_fd()),
            (Source::Listener, self.listener.as_fd()),
        ];
        let connections = self.connections.iter();
        sources.extend(connections.map(|one| (Source::Connection(one.id), one.socket.as_fd())));
        for task in &self.tasks {
            sources.extend(task.launch().map(|launch| (Source::Launch(task.id), launch)));
            let outputs = task.outputs();
            sources.extend(outputs.map(|(n, output)| (Source::Output(task.id, n), output)));
        }
        let mut polled: Vec<_> = sources
            .iter()
            .map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = polled.iter().map(|one| one.revents().unwrap_or(PollFlags::empty()));
        let ready = sources.iter().map(|(source, _)| *source).zip(flags);
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn next_id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            let ours = passing::peer_user(&socket).is_ok_and(|user| user == geteuid().as_raw());
            if ours && self.connections.len() < MAX_CONNECTIONS && socket.set_nonblocking(true).is_ok() {
                let id = self.next_id();
                self.connections.push(Connection {
                    id,
                    socket,
                    line: Vec::new(),
                    descriptors: Vec::new(),
                    role: Role::Asking,
                });
            }
        }
    }

    /// Reads from a connection: its request, or its end.
    fn hear(&mut self, id: u32) {
        let Some(connection) = self.connections.iter_mut().find(|one| one.id == id) else {
            return;
        };
        let mut buffer = [0; 2048];
        let (read, descriptors) = match passing::receive(&connection.socket, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) | Ok((0, _)) => return self.close(id),
            Ok(received) => received,
        };
        if connection.role != Role::Asking {
            return;
        }
        connection
            .line
            .extend_from_slice(buffer.get(..read).unwrap_or_default());
        connection.descriptors.extend(descriptors);
        if connection.line.ends_with(b"\n") {
            let line = std::mem::take(&mut connection.line);
            let descriptors = std::mem::take(&mut connection.descriptors);
            match serde_json::from_slice(&line) {
                Ok(request) => self.serve(id, request, descriptors),
                Err(error) => self.finish(id, &failed(format!("request not understood: {error}"))),
            }
        } else if connection.line.len() > MAX_LINE || connection.descriptors.len() > passing::MAX_DESCRIPTORS {
            self.close(id);
        }
    }

    fn serve(&mut self, id: u32, request: Request, descriptors: Vec<OwnedFd>) {
        match request {
            Request::Watch => self.set_role(id, Role::Watching),
            Request::Start(start) => self.start(id, start),
            Request::Exec { which, spec } => self.exec(id, &which, &spec, descriptors),
            Request::Attach { which, stdin } => self.attach(id, &which, stdin, descriptors),
            Request::Signal { which, signal } => {
                let reply = match self.container(&which) {
                    Some(task) => {
                        task.signal(signal);
                        Reply::Done { tty: false }
                    }
                    None => no_container(),
                };
                self.finish(id, &reply);
            }
            Request::Forget { which } => self.forget(id, &which),
            Request::Stop => {
                self.stopping = true;
                self.set_role(id, Role::Stopping);
                self.tasks.iter().for_each(|task| task.kill(&self.cgroups));
            }
        }
    }

    fn start(&mut self, id: u32, start: Start) {
        if self.stopping || self.container(&start.which).is_some() {
            return self.finish(
                id,
                &failed("this container exists already, or the pod is being removed".into()),
            );
        }
        let task = self.next_id();
        match Task::start(task, start, &self.cgroups) {
            Ok(new) => {
                self.tasks.push(new);
                self.set_role(id, Role::Waiting(task));
            }
            Err(error) => self.finish(id, &failed(format!("cannot start a process: {error}"))),
        }
    }

    fn exec(&mut self, id: u32, which: &Which, spec: &ExecSpec, descriptors: Vec<OwnedFd>) {
        let task = self.next_id();
        let running = |task: &&mut Task| task.container().is_some_and(|one| one.life.status == Status::Running);
        let Some(container) = self.container(which).filter(running) else {
            return self.finish(id, &no_container());
        };
        let pid = container.pid;
        match Task::exec(task, which, pid, spec, descriptors, &self.cgroups) {
            Ok(new) => {
                self.tasks.push(new);
                self.set_role(id, Role::Waiting(task));
            }
            Err(error) => self.finish(id, &failed(format!("cannot start a process: {error}"))),
        }
    }

    fn attach(&mut self, id: u32, which: &Which, stdin: bool, descriptors: Vec<OwnedFd>) {
        let reply = match self.container(which) {
            Some(task) if !task.has_ended() => {
                let role = Role::Waiting(task.id);
                let input = task.attach(id, stdin, descriptors);
                let tty = task.container().is_some_and(|container| container.tty);
                if let Some(connection) = self.connections.iter_mut().find(|one| one.id == id) {
                    connection.role = role;
                    let input: Vec<BorrowedFd<'_>> = input.iter().map(AsFd::as_fd).collect();
                    answer(connection, &Reply::Done { tty }, &input);
                }
                return;
            }
            _ => no_container(),
        };
        self.finish(id, &reply);
    }

    /// Kills a container; whoever asks is answered when it is gone, at once if it is gone already.
    fn forget(&mut self, id: u32, which: &Which) {
        let Some(at) = self.tasks.iter().position(|task| task.is(which)) else {
            return self.finish(id, &Reply::Done { tty: false });
        };
        let Some(task) = self.tasks.get_mut(at) else { return };
        if task.has_ended() {
            let task = self.tasks.swap_remove(at);
            task.clean(&self.cgroups);
            return self.finish(id, &Reply::Done { tty: false });
        }
        task.kill(&self.cgroups);
        if let Some(container) = task.container_mut() {
            container.forgetting.push(id);
        }
    }

    /// A child said something, or has become its program.
    fn launched(&mut self, id: u32) {
        let Some(at) = self.tasks.iter().position(|task| task.id == id) else {
            return;
        };
        let Some(result) = self.tasks.get_mut(at).and_then(Task::hear_launch) else {
            return;
        };
        match result {
            Ok(terminal) => {
                let is_container = self.tasks.get(at).is_some_and(|task| task.container().is_some());
                let terminal = terminal.as_ref().map(AsFd::as_fd);
                let descriptors: Vec<BorrowedFd<'_>> = terminal.into_iter().collect();
                for connection in self.connections.iter().filter(|one| one.role == Role::Waiting(id)) {
                    answer(connection, &Reply::Done { tty: false }, &descriptors);
                }
                if is_container {
                    self.connections.retain(|one| one.role != Role::Waiting(id));
                    self.notify();
                }
            }
            Err(failure) => {
                let task = self.tasks.swap_remove(at);
                task.clean(&self.cgroups);
                let waiting = self.connections.iter().filter(|one| one.role == Role::Waiting(id));
                waiting.for_each(|one| answer(one, &Reply::Failed(failure.clone()), &[]));
                self.connections.retain(|one| one.role != Role::Waiting(id));
                let asked = task.container().map(|container| container.forgetting.clone());
                asked
                    .into_iter()
                    .flatten()
                    .for_each(|id| self.finish(id, &Reply::Done { tty: false }));
            }
        }
    }

    fn output(&mut self, id: u32, stream: usize, flags: PollFlags) {
        if let Some(task) = self.tasks.iter_mut().find(|task| task.id == id) {
            task.read_output(stream, flags, Timestamp::now());
        }
    }

    /// Takes in every child that has ended.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let (pid, code, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code, 0),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32, signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let Some(id) = self
                .tasks
                .iter()
                .find(|task| task.pid == pid.as_raw())
                .map(|task| task.id)
            else {
                continue; // an orphan of a container in the node's pid namespace, or one that never started
            };
            self.launched(id);
            self.ended(id, code, signal);
        }
    }

    fn ended(&mut self, id: u32, code: i32, signal: i32) {
        let Some(at) = self.tasks.iter().position(|task| task.id == id) else {
            return;
        };
        let Some(task) = self.tasks.get_mut(at) else { return };
        task.end(code, signal, &self.cgroups, Timestamp::now());
        let forgetting = match task.container_mut() {
            Some(Container { forgetting, .. }) => Some(std::mem::take(forgetting)),
            None => None,
        };
        for connection in self.connections.iter().filter(|one| one.role == Role::Waiting(id)) {
            answer(connection, &Reply::Exited { code }, &[]);
        }
        self.connections.retain(|one| one.role != Role::Waiting(id));
        match forgetting {
            None => drop(self.tasks.swap_remove(at)),
            Some(ids) => {
                if !ids.is_empty() {
                    let task = self.tasks.swap_remove(at);
                    task.clean(&self.cgroups);
                }
                ids.into_iter()
                    .for_each(|id| self.finish(id, &Reply::Done { tty: false }));
                self.notify();
            }
        }
    }

    /// A client has gone: a command ends with its client, a container does not.
    fn close(&mut self, id: u32) {
        let Some(at) = self.connections.iter().position(|one| one.id == id) else {
            return;
        };
        let connection = self.connections.swap_remove(at);
        let Role::Waiting(task) = connection.role else { return };
        if let Some(task) = self.tasks.iter_mut().find(|one| one.id == task) {
            match task.container_mut() {
                Some(container) => container.detach(id),
                None => task.kill(&self.cgroups),
            }
        }
    }

    fn notify(&self) {
        for connection in self.connections.iter().filter(|one| one.role == Role::Watching) {
            let _ = passing::send(&connection.socket, b".", &[]); // one that lags has wake-ups enough
        }
    }

    fn container(&mut self, which: &Which) -> Option<&mut Task> {
        self.tasks.iter_mut().find(|task| task.is(which))
    }

    fn set_role(&mut self, id: u32, role: Role) {
        if let Some(connection) = self.connections.iter_mut().find(|one| one.id == id) {
            connection.role = role;
        }
    }

    /// Answers and closes.
    fn finish(&mut self, id: u32, reply: &Reply) {
        if let Some(at) = self.connections.iter().position(|one| one.id == id) {
            answer(&self.connections.swap_remove(at), reply, &[]);
        }
    }
}

fn answer(connection: &Connection, reply: &Reply, descriptors: &[BorrowedFd<'_>]) {
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    // A reply is far smaller than a socket's buffer; a client that does not read it has gone.
    let _ = passing::send(&connection.socket, &line, descriptors);
    debug_assert!(connection.socket.as_raw_fd() >= 0);
}

fn failed(message: String) -> Reply {
    Reply::Failed(Failure::start(message))
}

fn no_container() -> Reply {
    Reply::Failed(Failure {
        kind: FailureKind::NoContainer,
        message: "container is not running".into(),
    })
}
