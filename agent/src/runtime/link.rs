//! The agent's end of a shim's socket.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as Socket;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::RuntimeError;
use super::layout::{PodFolder, SOCKET};
use super::message::{MAX_LINE, Reply, Request};
use crate::sys::{passing, tree};

/// How long a shim may take to answer what it does at once. It is longer than a machine that swaps needs.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long starting a container may take: a volume may be slow. Source: kubelet's `runtimeRequestTimeout`.
pub(super) const START_PATIENCE: Duration = Duration::from_secs(120);

/// One request's connection.
pub(super) struct Link {
    socket: UnixStream,
    line: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Link {
    /// Connects and asks. The kernel takes a request without waiting, so this blocks nobody.
    pub fn ask(folder: &PodFolder, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<Self> {
        // Relative to the open folder: a socket's path may have 107 bytes only.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = nix::fcntl::open(folder.path(), flags, Mode::empty())?;
        let socket = Socket::connect(tree::by_descriptor(&open).join(SOCKET))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        if line.len() > MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the request is too long"));
        }
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut rest = line.as_slice();
        let mut with_first = descriptors;
        while !rest.is_empty() {
            let sent = passing::send(&socket, rest, with_first)?;
            with_first = &[];
            rest = rest.get(sent..).unwrap_or_default();
        }
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: UnixStream::from_std(socket)?,
            line: Vec::new(),
            descriptors: Vec::new(),
        })
    }

    /// The next answer and the descriptors that came so far; may be cancelled and asked again.
    pub async fn reply(&mut self) -> io::Result<(Reply, Vec<OwnedFd>)> {
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                return Ok((serde_json::from_slice(&line)?, std::mem::take(&mut self.descriptors)));
            }
            self.socket.readable().await?;
            let mut buffer = [0; 1024];
            let raw = self.socket.as_raw_fd();
            let received = self
                .socket
                .try_io(Interest::READABLE, || passing::receive(&raw, &mut buffer));
            match received {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((read, descriptors)) => {
                    self.line.extend_from_slice(buffer.get(..read).unwrap_or_default());
                    self.descriptors.extend(descriptors);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for a byte of a watch; `false` when the shim has gone.
    pub async fn woken(&mut self) -> bool {
        let mut bytes = [0; 64];
        matches!(self.socket.read(&mut bytes).await, Ok(read) if read > 0)
    }

    /// The shim's process, as the kernel knows it.
    pub fn peer(&self) -> Option<i32> {
        self.socket.peer_cred().ok()?.pid()
    }
}

/// Asks and waits for the one answer.
pub(super) async fn call(
    folder: &PodFolder,
    pod_uid: &str,
    container: &str,
    request: &Request,
    patience: Duration,
) -> Result<(), RuntimeError> {
    let shim = |error: io::Error| shim_error(pod_uid, error);
    let mut link = Link::ask(folder, request, &[]).map_err(shim)?;
    let (reply, _) = answer(&mut link, pod_uid, patience).await?;
    match reply {
        Reply::Done { .. } | Reply::Exited { .. } => Ok(()),
        Reply::Failed(failure) => Err(failure.into_error(container)),
    }
}

/// One answer, in time.
pub(super) async fn answer(
    link: &mut Link,
    pod_uid: &str,
    patience: Duration,
) -> Result<(Reply, Vec<OwnedFd>), RuntimeError> {
    match timeout(patience, link.reply()).await {
        Ok(result) => result.map_err(|error| shim_error(pod_uid, error)),
        Err(_) => Err(shim_error(pod_uid, io::ErrorKind::TimedOut.into())),
    }
}

pub(super) fn shim_error(pod_uid: &str, error: io::Error) -> RuntimeError {
    match error.kind() {
        io::ErrorKind::NotFound => RuntimeError::NoSandbox(pod_uid.into()),
        _ => RuntimeError::Shim {
            pod_uid: pod_uid.into(),
            reason: error.to_string(),
        },
    }
}
