//! A command's client that comes by SPDY (K3s' API server, old kubectl): a stream for each of its channels.
//!
//! Source: Kubernetes v1.36, `cri-streaming/pkg/streaming/remotecommand/httpstream.go` (`createHTTPStreamStreams`, protocol
//! `v4.channel.k8s.io`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use tokio::time::timeout;

use super::Port;
use super::channel::{Heard, Said, resize};
use super::exec::{Joining, run};
use super::route::Streams;
use super::spdy::frame::{self, Encoder};
use super::spdy::header::value;
use super::spdy::wire::{self, Coat, Queue, Source};
use super::stream::{Ear, Mouth};

/// Upstream's `DefaultStreamCreationTimeout`.
const STREAMS_LIMIT: Duration = Duration::from_secs(30);
/// A size is far shorter.
const RESIZE_MAX: usize = 1024;

/// The one protocol spoken; it is the newest over SPDY.
pub const PROTOCOL: &str = "v4.channel.k8s.io";

/// Numbers of the streams; 0 is no stream's.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    error: u32,
    stdin: u32,
    stdout: u32,
    stderr: u32,
    resize: u32,
}

impl Numbers {
    /// Whether all are there that belong to these channels.
    fn complete(&self, streams: Streams) -> bool {
        let there = |wanted: bool, number: u32| !wanted || number != 0;
        self.error != 0
            && there(streams.stdin, self.stdin)
            && there(streams.stdout, self.stdout)
            && there(streams.stderr, self.stderr)
            && there(streams.tty, self.resize)
    }

    fn slot(&mut self, kind: &str) -> Option<&mut u32> {
        let slot = match kind {
            "error" => &mut self.error,
            "stdin" => &mut self.stdin,
            "stdout" => &mut self.stdout,
            "stderr" => &mut self.stderr,
            "resize" => &mut self.resize,
            _ => return None,
        };
        (*slot == 0).then_some(slot)
    }
}

/// Serves a client.
pub async fn serve(port: Arc<Port>, joining: Joining, upgraded: Upgraded) {
    let (mut source, sink, queue) = wire::open(Coat::Bare, upgraded).await;
    let serving = async move {
        let opening = timeout(STREAMS_LIMIT, open(&mut source, &queue, joining.streams()));
        let Ok(Some(numbers)) = opening.await else {
            tracing::debug!("a client did not open the streams it asked for");
            return source;
        };
        let mut ear = Hearing {
            source,
            queue: queue.clone(),
            numbers,
            size: BytesMut::new(),
            said: None,
        };
        run(&port, joining, &mut ear, &mut Speaking { queue, numbers }).await;
        ear.source
    };
    let (source, ()) = tokio::join!(serving, sink.run());
    source.drain().await;
}

/// Waits for the client to open all streams.
async fn open(source: &mut Source, queue: &Queue, streams: Streams) -> Option<Numbers> {
    let (mut numbers, mut encoder) = (Numbers::default(), Encoder::default());
    while !numbers.complete(streams) {
        match source.next().await? {
            frame::Heard::Open { stream, headers, .. } => {
                let slot = numbers.slot(value(&headers, "streamtype"));
                let answer = match slot.filter(|_| stream != 0) {
                    Some(slot) => {
                        *slot = stream;
                        encoder.reply(stream)
                    }
                    None => frame::reset(stream),
                };
                queue.send(answer).await.ok()?;
            }
            frame::Heard::Ping { id } => queue.send(frame::ping(id)).await.ok()?,
            frame::Heard::Data { .. } | frame::Heard::Reset { .. } => {}
            frame::Heard::GoAway => return None,
        }
    }
    Some(numbers)
}

struct Hearing {
    source: Source,
    queue: Queue,
    numbers: Numbers,
    /// A size that has not come whole.
    size: BytesMut,
    /// Bytes that ended their stream: the end is told next.
    said: Option<Heard>,
}

impl Ear for Hearing {
    async fn hear(&mut self) -> Option<Heard> {
        if let Some(said) = self.said.take() {
            return Some(said);
        }
        Some(match self.source.next().await? {
            frame::Heard::Data { stream, bytes, fin } if stream == self.numbers.stdin => {
                match (bytes.is_empty(), fin) {
                    (true, true) => Heard::InputEnd,
                    (true, false) => Heard::Nothing,
                    (false, fin) => {
                        self.said = fin.then_some(Heard::InputEnd);
                        Heard::Input(bytes)
                    }
                }
            }
            frame::Heard::Data { stream, bytes, .. } if stream == self.numbers.resize => self.resize(&bytes),
            frame::Heard::Reset { stream } if stream == self.numbers.stdin => Heard::InputEnd,
            frame::Heard::Ping { id } => {
                // A client that asks and does not read gets no answer: it has one coming anyway.
                let _ = self.queue.try_send(frame::ping(id));
                Heard::Nothing
            }
            frame::Heard::Open { stream, .. } => {
                let _ = self.queue.try_send(frame::reset(stream));
                Heard::Nothing
            }
            frame::Heard::Data { .. } | frame::Heard::Reset { .. } | frame::Heard::GoAway => Heard::Nothing,
        })
    }
}

impl Hearing {
    /// Sizes come one after the other, a line each; the last one that is whole counts.
    fn resize(&mut self, bytes: &[u8]) -> Heard {
        self.size.extend_from_slice(bytes);
        let mut heard = Heard::Nothing;
        while let Some(end) = self.size.iter().position(|byte| *byte == b'}') {
            let size = self.size.split_to(end + 1);
            heard = resize(&size);
        }
        if self.size.len() > RESIZE_MAX {
            self.size.clear();
        }
        heard
    }
}

struct Speaking {
    queue: Queue,
    numbers: Numbers,
}

impl Speaking {
    async fn send(&self, stream: u32, bytes: &[u8], fin: bool) -> io::Result<()> {
        let sent = self.queue.send(frame::data(stream, bytes, fin)).await;
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Mouth for Speaking {
    async fn say(&mut self, said: Said) -> io::Result<()> {
        match said {
            Said::Output(bytes) => self.send(self.numbers.stdout, &bytes, false).await,
            Said::Error(bytes) => self.send(self.numbers.stderr, &bytes, false).await,
            Said::Status(status) => {
                let text: Bytes = serde_json::to_vec(&status).unwrap_or_default().into();
                self.send(self.numbers.error, &text, true).await?;
                let outputs = [self.numbers.stdout, self.numbers.stderr];
                for stream in outputs.into_iter().filter(|number| *number != 0) {
                    self.send(stream, b"", true).await?;
                }
                Ok(())
            }
        }
    }
}
