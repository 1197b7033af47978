//! The two ends of a connection that carries SPDY, in either coat.

use std::io;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::frame::{Decoder, Heard};
use crate::kubelet::server::exec::{FAREWELL, SILENCE};
use crate::kubelet::server::websocket::{self, Socket};

/// Read at once.
const CHUNK: usize = 16 << 10;
/// Frames that wait for a client to take them, of all streams.
const QUEUE: usize = 8;

/// How the bytes travel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Coat {
    /// As they are.
    Bare,
    /// In messages of a websocket.
    WebSocket,
}

/// What the client sends, frame by frame.
pub struct Source {
    from: From,
    decoder: Decoder,
}

enum From {
    Bare(Box<dyn AsyncRead + Send + Unpin>),
    WebSocket(SplitStream<Socket>),
}

/// What goes to the client.
pub struct Sink {
    to: To,
    queued: mpsc::Receiver<Bytes>,
}

enum To {
    Bare(Box<dyn AsyncWrite + Send + Unpin>),
    WebSocket(SplitSink<Socket, Message>),
}

/// Puts frames in line for the client; it waits when too many wait.
pub type Queue = mpsc::Sender<Bytes>;

/// A connection, taken apart.
pub type Ends = (Source, Sink, Queue);

/// Takes a connection apart.
pub async fn open(coat: Coat, upgraded: Upgraded) -> Ends {
    match coat {
        Coat::Bare => bare(TokioIo::new(upgraded)),
        Coat::WebSocket => {
            let (to, from) = websocket::open(upgraded).await.split();
            ends(From::WebSocket(from), To::WebSocket(to))
        }
    }
}

/// Takes any connection apart that carries SPDY as it is.
pub fn bare(connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Ends {
    let (from, to) = split(connection);
    ends(From::Bare(Box::new(from)), To::Bare(Box::new(to)))
}

fn ends(from: From, to: To) -> Ends {
    let (queue, queued) = mpsc::channel(QUEUE);
    let decoder = Decoder::default();
    (Source { from, decoder }, Sink { to, queued }, queue)
}

impl Source {
    /// The next frame; `None` when the client is gone, or sends what is no SPDY. May be cancelled and asked again.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            match self.decoder.next() {
                Ok(Some(heard)) => return Some(heard),
                Ok(None) => self.more().await?,
                Err(error) => {
                    tracing::debug!(%error, "a client breaks the rules");
                    return None;
                }
            }
        }
    }

    /// Hears a client out that has been told all: drops what still comes until it closes, is silent, or has had its time.
    pub async fn drain(mut self) {
        let hearing = async { while let Ok(Some(_)) = timeout(SILENCE, self.read()).await {} };
        let _ = timeout(FAREWELL, hearing).await;
    }

    async fn more(&mut self) -> Option<()> {
        let bytes = self.read().await?;
        self.decoder.push(&bytes);
        Some(())
    }

    /// What comes next, maybe nothing; `None` at the end.
    async fn read(&mut self) -> Option<Bytes> {
        match &mut self.from {
            From::Bare(from) => {
                let mut chunk = Vec::with_capacity(CHUNK);
                match from.read_buf(&mut chunk).await {
                    Ok(read) if read > 0 => Some(chunk.into()),
                    _ => None,
                }
            }
            From::WebSocket(from) => websocket::next(from).await.map(Option::unwrap_or_default),
        }
    }
}

impl Sink {
    /// Sends what is in line until all queues are dropped, or the client is gone.
    pub async fn run(mut self) {
        while let Some(frame) = self.queued.recv().await {
            if let Err(error) = self.send(frame).await {
                return tracing::debug!(%error, "a client is gone");
            }
        }
        match &mut self.to {
            To::Bare(to) => drop(to.shutdown().await),
            To::WebSocket(to) => websocket::close(to).await,
        }
    }

    async fn send(&mut self, frame: Bytes) -> io::Result<()> {
        match &mut self.to {
            To::Bare(to) => {
                to.write_all(&frame).await?;
                to.flush().await
            }
            To::WebSocket(to) => to.send(Message::Binary(frame)).await.map_err(io::Error::other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use tokio::io::duplex;
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_still_sends_is_heard_out_and_a_silent_one_is_left() {
        let pause = Duration::from_secs(1);
        for (sends, closes, expected) in [
            (60, true, pause * 60),
            (0, false, SILENCE),
            (3, false, pause * 2 + SILENCE),
            (u32::MAX, false, FAREWELL),
        ] {
            let (mut client, node) = duplex(64);
            let (source, _sink, _queue) = bare(node);
            let begun = Instant::now();
            let sending = async move {
                for number in 0..sends {
                    if number > 0 {
                        sleep(pause).await;
                    }
                    client.write_all(b"more").await.unwrap();
                }
                if closes {
                    sleep(pause).await;
                    drop(client);
                }
                pending::<()>().await;
            };
            let took = tokio::select! {
                () = source.drain() => begun.elapsed(),
                () = sending => Duration::ZERO,
            };
            assert!(
                took.abs_diff(expected) < Duration::from_millis(10),
                "{sends} pieces: {took:?}"
            );
        }
    }
}
