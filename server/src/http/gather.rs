//! Gathers what HTTP/2 writes frame by frame, so that TLS gets it in large pieces.
//!
//! A data frame is 16 KiB and the nine bytes before it: by itself that makes two TLS records and one system call, and h2
//! flushes after each. What is asked to be flushed right after it was written is therefore kept for one more turn of the
//! connection's task, which is woken for it: whatever else it writes until then goes along.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Four TLS records; what rustls takes at once.
const ROOM: usize = 64 * 1024;

/// A stream whose writes are gathered.
pub struct Gather<S> {
    inner: S,
    /// Not given to `inner` yet; without an allocation while there is nothing.
    kept: Vec<u8>,
    /// Something was written since a flush was asked for last.
    fresh: bool,
}

impl<S> Gather<S> {
    /// Gathers what is written to `inner`.
    pub const fn new(inner: S) -> Self {
        Self {
            inner,
            kept: Vec::new(),
            fresh: false,
        }
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Gives everything to `inner`.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut given = 0;
        let outcome = loop {
            let rest = self.kept.get(given..).unwrap_or_default();
            if rest.is_empty() {
                break Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.inner).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => given += count,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
        };
        match given == self.kept.len() {
            // There will be more.
            true if given >= ROOM => self.kept.clear(),
            // A connection that is idle keeps no room.
            true => self.kept = Vec::new(),
            false => drop(self.kept.drain(..given)),
        }
        outcome
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Should whoever wrote wait for an answer before it flushes again.
        if !self.fresh
            && !self.kept.is_empty()
            && let Poll::Ready(given) = self.drain(context)
        {
            given?;
            let _ = Pin::new(&mut self.inner).poll_flush(context)?;
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.kept.len() >= ROOM {
            ready!(this.drain(context))?;
        }
        let mut taken = 0;
        for slice in slices {
            let room = ROOM.saturating_sub(this.kept.len());
            let part = slice.get(..room).unwrap_or(slice);
            this.kept.extend_from_slice(part);
            taken += part.len();
        }
        this.fresh |= taken > 0;
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.fresh) {
            // The next one is in earnest, and comes at once.
            context.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        ready!(self.drain(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    /// Takes so many bytes each second time it is asked.
    #[derive(Default)]
    struct Slow {
        most: usize,
        busy: bool,
        pieces: Vec<Vec<u8>>,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.busy = !self.busy && self.most < ROOM;
            if self.busy {
                return Poll::Pending;
            }
            let piece = bytes[..bytes.len().min(self.most)].to_vec();
            let count = piece.len();
            self.pieces.push(piece);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn gather(most: usize) -> Gather<Slow> {
        Gather::new(Slow {
            most,
            ..Slow::default()
        })
    }

    #[test]
    fn frames_that_are_flushed_one_by_one_go_out_together_and_nothing_is_kept_for_long() {
        let mut gather = gather(ROOM);
        let context = &mut Context::from_waker(Waker::noop());
        for _ in 0..3 {
            assert!(Pin::new(&mut gather).poll_write(context, &[7; 16_000]).is_ready());
            assert!(Pin::new(&mut gather).poll_flush(context).is_ready());
        }
        assert!(gather.inner.pieces.is_empty());
        assert!(Pin::new(&mut gather).poll_flush(context).is_ready());
        assert_eq!(gather.inner.pieces.iter().map(Vec::len).collect::<Vec<_>>(), [48_000]);
        assert_eq!(gather.kept.capacity(), 0, "an idle connection costs nothing");
    }

    proptest! {
        #[test]
        fn bytes_arrive_whole_and_in_order(
            steps in proptest::collection::vec((0..40_000_usize, any::<bool>()), 1..40), most in 1000..ROOM + 1,
        ) {
            let mut gather = gather(most);
            let context = &mut Context::from_waker(Waker::noop());
            let mut sent = Vec::new();
            for (number, (size, flush)) in steps.into_iter().enumerate() {
                let bytes = vec![number.to_le_bytes()[0]; size];
                let head = io::IoSlice::new(&bytes[..size / 3]);
                let slices = [head, io::IoSlice::new(&bytes[size / 3..])];
                if let Poll::Ready(Ok(taken)) = Pin::new(&mut gather).poll_write_vectored(context, &slices) {
                    prop_assert!(taken > 0 || size == 0);
                    sent.extend_from_slice(&bytes[..taken]);
                }
                prop_assert!(gather.kept.len() <= ROOM);
                if flush {
                    let _ = Pin::new(&mut gather).poll_flush(context);
                }
            }
            while Pin::new(&mut gather).poll_shutdown(context).is_pending() {}
            prop_assert_eq!(gather.inner.pieces.concat(), sent);
        }
    }
}
