//! A connection that ends by itself when its peer takes nothing for too long, or when nothing happens on it at all.
//!
//! Wraps any stream; what is above it gets an error of kind `TimedOut`.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How much patience there is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a peer that does not take what is written.
    pub write: Duration,
    /// For a connection on which nothing is read or written.
    pub idle: Duration,
}

/// See the module.
pub struct Patient<S> {
    stream: S,
    patience: Patience,
    /// Runs while a write waits.
    stuck: Option<Pin<Box<Sleep>>>,
    /// Runs always; put off by whatever happens.
    idle: Pin<Box<Sleep>>,
}

impl<S> Patient<S> {
    /// Wraps a stream.
    pub fn new(stream: S, patience: Patience) -> Self {
        Self {
            stream,
            patience,
            stuck: None,
            idle: Box::pin(sleep(patience.idle)),
        }
    }

    fn happened(&mut self) {
        let later = Instant::now() + self.patience.idle;
        // The timer is moved seldom: only when it would fire noticeably too soon.
        if later.duration_since(self.idle.deadline()) > self.patience.idle / 8 {
            self.idle.as_mut().reset(later);
        }
    }

    /// What has become of a write.
    fn judge<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stuck = None;
            self.happened();
            return result;
        }
        let patience = self.patience.write;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(patience)));
        match stuck.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_read(context, to);
        if result.is_ready() {
            this.happened();
            return result;
        }
        match this.idle.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.judge(context, result)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_flush(context);
        // A flush of nothing is no sign of life.
        match (result.is_ready(), this.stuck.is_some()) {
            (true, false) => result,
            _ => this.judge(context, result),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_shutdown(context);
        this.judge(context, result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::advance;

    use super::*;

    const PATIENCE: Patience = Patience {
        write: Duration::from_secs(10),
        idle: Duration::from_secs(100),
    };

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (near, mut far) = duplex(8);
        let mut near = Patient::new(near, PATIENCE);
        near.write_all(b"12345678").await.unwrap();
        let begun = Instant::now();
        let error = near.write_all(b"9").await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed().as_secs()), (ErrorKind::TimedOut, 10));
        let mut taken = [0; 8];
        far.read_exact(&mut taken).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_a_little_now_and_then_is_not() {
        let (near, mut far) = duplex(1);
        let mut near = Patient::new(near, PATIENCE);
        let taking = async {
            for _ in 0..20 {
                sleep(Duration::from_secs(9)).await;
                far.read_u8().await.unwrap();
            }
        };
        let (wrote, ()) = tokio::join!(near.write_all(&[7; 20]), taking);
        wrote.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection_and_words_do_not() {
        let (near, mut far) = duplex(64);
        let mut near = Patient::new(near, PATIENCE);
        for _ in 0..5 {
            advance(Duration::from_secs(80)).await;
            far.write_u8(1).await.unwrap();
            near.read_u8().await.unwrap();
        }
        let begun = Instant::now();
        let error = near.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!((87..=100).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    }
}
