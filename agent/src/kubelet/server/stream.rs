//! A client and a process joined: input one way, output the other, and how it ended.
//!
//! It does not matter over what the client comes: [`Ear`] and [`Mouth`] are its two directions. All waiting is here:
//! a client that does not read holds up its own process and nobody else, and a process that does not read its input
//! neither stops resizes nor the output.

use std::future::pending;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::channel::{Heard, Said, exit, failure, success};
use super::route::Streams;
use crate::kubelet::adapt::chain;
use crate::kubelet::ports::Process;
use crate::runtime::RuntimeError;

/// Pieces of input that wait for the process; with the longest message a few megabytes.
const INPUT_QUEUE: usize = 4;
/// Read at once of what the process prints.
const CHUNK: usize = 16 << 10;
/// What has ended may have left others who hold its output open. All that it wrote itself can be read at once; nothing
/// for so long means that the rest is theirs.
const QUIET: Duration = Duration::from_millis(100);

/// What is heard of a client.
pub trait Ear {
    /// The next thing it says; `None` when it is gone. May be cancelled and asked again.
    fn hear(&mut self) -> impl Future<Output = Option<Heard>> + Send;
}

/// What a client is told.
pub trait Mouth {
    /// Tells it; waits as long as the client does not listen.
    ///
    /// # Errors
    /// The client is gone.
    fn say(&mut self, said: Said) -> impl Future<Output = io::Result<()>> + Send;
}

/// What kind of process it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A command of the client's: its exit code is told, and it ends with its client.
    Command,
    /// A container, which goes on without the client.
    Container,
}

/// Joins client and process until either is gone; dropping the process ends a command.
pub async fn join(process: Process, kind: Kind, streams: Streams, ear: &mut impl Ear, mouth: &mut impl Mouth) {
    if let Some(end) = carry(process, streams, ear, mouth).await {
        let status = match (end, kind) {
            (_, Kind::Container) => success(),
            (Ok(code), Kind::Command) => exit(code),
            (Err(error), Kind::Command) => failure("executing command in", &chain(&error)),
        };
        let _ = mouth.say(Said::Status(Box::new(status))).await;
    }
}

/// How the process ended; `None` when the client was gone before.
async fn carry(
    process: Process,
    streams: Streams,
    ear: &mut impl Ear,
    mouth: &mut impl Mouth,
) -> Option<Result<i32, RuntimeError>> {
    let Process {
        stdin,
        stdout,
        stderr,
        mut control,
    } = process;
    let (queue, queued) = mpsc::channel(INPUT_QUEUE);
    let mut queue = Some(queue);
    let (ended, has_ended) = oneshot::channel();
    let mut ended = Some(ended);
    let feeding = feed(stdin, queued);
    let printing = print(streams, Some(stdout), stderr, has_ended, mouth);
    tokio::pin!(feeding, printing);
    let (mut fed, mut printed) = (false, false);
    let mut waiting: Option<Bytes> = None;
    let mut outcome = None;
    while !printed || outcome.is_none() {
        tokio::select! {
            heard = ear.hear(), if waiting.is_none() => match heard? {
                Heard::Input(bytes) if streams.stdin => waiting = Some(bytes).filter(|_| queue.is_some()),
                Heard::InputEnd => queue = None,
                Heard::Resize(width, height) => control.resize(width, height),
                Heard::Input(_) | Heard::Nothing => {}
            },
            room = room(queue.clone()), if waiting.is_some() => {
                let taken = room.zip(waiting.take()).map(|(room, bytes)| room.send(bytes));
                if taken.is_none() {
                    queue = None; // nobody reads it any more
                }
            }
            () = &mut feeding, if !fed => fed = true,
            told = &mut printing, if !printed => match told {
                Ok(()) => printed = true,
                Err(error) => {
                    tracing::debug!(%error, "a client of a container is gone");
                    return None;
                }
            },
            end = control.wait(), if outcome.is_none() => {
                outcome = Some(end);
                drop(ended.take());
            }
        }
    }
    outcome
}

async fn room(queue: Option<mpsc::Sender<Bytes>>) -> Option<mpsc::OwnedPermit<Bytes>> {
    queue?.reserve_owned().await.ok()
}

/// Writes input until it ends or the process takes no more of it. Dropping the writer at the end is the process' end of
/// input.
async fn feed(stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>, mut queued: mpsc::Receiver<Bytes>) {
    let Some(mut stdin) = stdin else { return };
    while let Some(bytes) = queued.recv().await {
        if stdin.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

type Output = Box<dyn AsyncRead + Send + Unpin>;

/// Tells the client what the process prints, until both streams end, or are quiet after it has ended.
async fn print(
    wanted: Streams,
    mut stdout: Option<Output>,
    mut stderr: Option<Output>,
    mut has_ended: oneshot::Receiver<()>,
    mouth: &mut impl Mouth,
) -> io::Result<()> {
    let mut over = false;
    while stdout.is_some() || stderr.is_some() {
        let said = tokio::select! {
            bytes = piece(&mut stdout) => bytes.map(Said::Output),
            bytes = piece(&mut stderr) => bytes.map(Said::Error),
            _ = &mut has_ended, if !over => {
                over = true;
                continue;
            }
            () = sleep(QUIET), if over => return Ok(()),
        };
        // What nobody wants is read all the same: else the process would wait for ever.
        let said = said.filter(|said| match said {
            Said::Output(_) => wanted.stdout,
            Said::Error(_) => wanted.stderr,
            Said::Status(_) => true,
        });
        if let Some(said) = said {
            mouth.say(said).await?;
        }
    }
    Ok(())
}

/// The next piece of a stream; `None` once, at its end.
async fn piece(stream: &mut Option<Output>) -> Option<Bytes> {
    let Some(open) = stream else { return pending().await };
    let mut buffer = Vec::with_capacity(CHUNK);
    match open.read_buf(&mut buffer).await {
        Ok(read) if read > 0 => Some(buffer.into()),
        _ => {
            *stream = None;
            None
        }
    }
}
