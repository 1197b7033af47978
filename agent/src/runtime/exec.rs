//! Commands beside a container, and joining its own streams.
//!
//! The agent makes the pipes and hands their far ends to the shim, which hands them to the process: what a command prints
//! never passes through the shim. A terminal is opened by the process (it must be one of the container's) and handed back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

use super::layout::PodFolder;
use super::link::{self, Link};
use super::message::{Reply, Request, Which};
use super::{ExecSpec, RuntimeError};
use crate::sys::terminal;

/// A command running beside a container's own, or the container's own streams.
pub struct Exec {
    /// Its standard input, unless it has none. Dropping it is end of file (with a terminal: nothing).
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its standard output; with a terminal everything.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error; `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pod_uid: String,
    container: String,
    link: Link,
    terminal: Option<OwnedFd>,
    code: Option<i32>,
}

impl Exec {
    /// Tells its terminal how large it is; nothing without one.
    pub fn resize(&self, width: u16, height: u16) {
        if let Some(terminal) = &self.terminal {
            let _ = terminal::resize(terminal, width, height);
        }
    }

    /// Waits for its end: its exit code, 128 + signal when a signal ended it. Dropping an exec before that kills it.
    ///
    /// May be cancelled and asked again; once it has ended the answer stays.
    pub async fn wait(&mut self) -> Result<i32, RuntimeError> {
        if let Some(code) = self.code {
            return Ok(code);
        }
        loop {
            let reply = self.link.reply().await;
            let (reply, _) = reply.map_err(|error| link::shim_error(&self.pod_uid, error))?;
            match reply {
                Reply::Exited { code } => {
                    self.code = Some(code);
                    return Ok(code);
                }
                Reply::Failed(failure) => return Err(failure.into_error(&self.container)),
                Reply::Done { .. } => {}
            }
        }
    }
}

/// Starts a command.
pub(super) async fn exec(
    folder: &PodFolder,
    pod_uid: &str,
    which: Which,
    spec: ExecSpec,
) -> Result<Exec, RuntimeError> {
    let shim = |error: io::Error| link::shim_error(pod_uid, error);
    let container = which.name.clone();
    if spec.tty {
        let request = Request::Exec { which, spec };
        let mut link = Link::ask(folder, &request, &[]).map_err(shim)?;
        let (_, terminal) = started(&mut link, pod_uid, &container).await?;
        let terminal = terminal.ok_or_else(|| shim(io::Error::other("no terminal came")))?;
        let [stdin, stdout] = [terminal.try_clone(), terminal.try_clone()].map(|copy| copy.and_then(Terminal::new));
        return Ok(Exec {
            stdin: Some(Box::new(stdin.map_err(shim)?)),
            stdout: Box::new(stdout.map_err(shim)?),
            stderr: None,
            pod_uid: pod_uid.into(),
            container,
            link,
            terminal: Some(terminal),
            code: None,
        });
    }
    let null = || Ok(std::fs::File::open("/dev/null")?.into());
    let (stdin, our_stdin): (OwnedFd, _) = if spec.stdin {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| shim(errno.into()))?;
        (theirs, Some(sender(ours).map_err(shim)?))
    } else {
        (null().map_err(shim)?, None)
    };
    let (our_stdout, stdout) = output().map_err(shim)?;
    let (our_stderr, stderr) = output().map_err(shim)?;
    let request = Request::Exec { which, spec };
    let mut link = Link::ask(folder, &request, &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]).map_err(shim)?;
    drop((stdin, stdout, stderr));
    started(&mut link, pod_uid, &container).await?;
    Ok(Exec {
        stdin: our_stdin,
        stdout: Box::new(our_stdout),
        stderr: Some(Box::new(our_stderr)),
        pod_uid: pod_uid.into(),
        container,
        link,
        terminal: None,
        code: None,
    })
}

/// Joins a container's own streams; its input only with `stdin`.
pub(super) async fn attach(folder: &PodFolder, pod_uid: &str, which: Which, stdin: bool) -> Result<Exec, RuntimeError> {
    let shim = |error: io::Error| link::shim_error(pod_uid, error);
    let container = which.name.clone();
    let (our_stdout, stdout) = output().map_err(shim)?;
    let (our_stderr, stderr) = output().map_err(shim)?;
    let request = Request::Attach { which, stdin };
    let mut link = Link::ask(folder, &request, &[stdout.as_fd(), stderr.as_fd()]).map_err(shim)?;
    drop((stdout, stderr));
    let (tty, input) = started(&mut link, pod_uid, &container).await?;
    let (stdin, terminal): (Option<Box<dyn AsyncWrite + Send + Unpin>>, _) = match input {
        Some(input) if tty => {
            let copy = input.try_clone().and_then(Terminal::new).map_err(shim)?;
            (Some(Box::new(copy)), Some(input))
        }
        Some(input) => (Some(sender(input).map_err(shim)?), None),
        None => (None, None),
    };
    Ok(Exec {
        stdin,
        stdout: Box::new(our_stdout),
        stderr: (!tty).then(|| Box::new(our_stderr) as Box<dyn AsyncRead + Send + Unpin>),
        pod_uid: pod_uid.into(),
        container,
        link,
        terminal,
        code: None,
    })
}

/// Waits for the first answer: whether it has a terminal, and the descriptor that came.
async fn started(link: &mut Link, pod_uid: &str, container: &str) -> Result<(bool, Option<OwnedFd>), RuntimeError> {
    let (reply, descriptors) = link::answer(link, pod_uid, link::START_PATIENCE).await?;
    match reply {
        Reply::Failed(failure) => Err(failure.into_error(container)),
        Reply::Done { tty } => Ok((tty, descriptors.into_iter().next())),
        Reply::Exited { .. } => Err(RuntimeError::NoContainer(container.into())),
    }
}

fn output() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}

fn sender(ours: OwnedFd) -> io::Result<Box<dyn AsyncWrite + Send + Unpin>> {
    Ok(Box::new(pipe::Sender::from_owned_fd(ours)?))
}

/// The controlling side of a terminal, as a stream.
struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(Self(terminal::register(descriptor)?))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let room = to.initialize_unfilled();
            match guard.try_io(|terminal| Ok(nix::unistd::read(terminal.get_ref(), room)?)) {
                Ok(Ok(read)) => {
                    to.advance(read);
                    return Poll::Ready(Ok(()));
                }
                // Nobody has its other side open any more: the end.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match guard.try_io(|terminal| Ok(nix::unistd::write(terminal.get_ref(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
