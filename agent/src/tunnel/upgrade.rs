//! The handshake of an agent's websocket. It is the crate's; what comes behind it is not, and must not be lost in the crate's
//! buffer: bytes behind the answer's head are kept back.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::link::Socket;

/// Read at once.
const BUFFER: usize = 4 << 10;
/// The end of the answer's head.
const END: &[u8; 4] = b"\r\n\r\n";

/// Asks for a websocket over this connection.
///
/// # Errors
/// [`Error`]; [`Error::Http`] is the server's refusal.
pub async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(url: &str, stream: S) -> Result<Socket<S>, Error> {
    // What the crate would read a websocket with is not used.
    let config = WebSocketConfig::default().read_buffer_size(0);
    let (socket, _) = client_async_with_config(url, Head::of(stream), Some(config)).await?;
    let Head { stream, held, .. } = socket.into_inner();
    Ok(Socket::with(stream, held))
}

/// A connection that is read up to the end of a head, and no further.
struct Head<S> {
    stream: S,
    /// Read, and not asked for yet.
    held: BytesMut,
    /// So many bytes of [`END`] have gone by.
    matched: usize,
}

impl<S> Head<S> {
    fn of(stream: S) -> Self {
        Self {
            stream,
            held: BytesMut::new(),
            matched: 0,
        }
    }

    /// How many of the held bytes belong to the head; at most so many are looked at.
    fn of_head(&mut self, most: usize) -> usize {
        for (at, byte) in self.held.iter().take(most).enumerate() {
            self.matched = match END.get(self.matched) {
                None => return at,
                Some(expected) if expected == byte => self.matched + 1,
                Some(_) => usize::from(*byte == b'\r'),
            };
        }
        most.min(self.held.len())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Head<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.matched == END.len() {
            // The head was all; who goes on has not understood it.
            return Poll::Ready(Ok(()));
        }
        if this.held.is_empty() {
            let mut bytes = [0; BUFFER];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut read))?;
            this.held.extend_from_slice(read.filled());
        }
        let count = this.of_head(out.remaining());
        out.put_slice(&this.held.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Head<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn what_comes_behind_the_answers_head_is_kept_however_it_is_cut() {
        let head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
        let whole = [head.as_slice(), b"\x89\x00\r\n\r\nmore"].concat();
        for pieces in [1, 2, 3, 7, 16, 1000] {
            let (near, mut far) = duplex(pieces);
            let (mut read, mut got) = (Head::of(near), Vec::new());
            let reading = async {
                let mut some = [0; 5];
                // As the crate reads: until the head is there.
                while !got.ends_with(END) {
                    let count = read.read(&mut some).await.unwrap();
                    got.extend_from_slice(&some[..count]);
                }
                let mut rest = read.held.to_vec();
                read.stream.read_to_end(&mut rest).await.unwrap();
                rest
            };
            let writing = async {
                far.write_all(&whole).await.unwrap();
                drop(far);
            };
            let (rest, ()) = tokio::join!(reading, writing);
            assert_eq!(got, head, "{pieces}");
            assert_eq!(rest, b"\x89\x00\r\n\r\nmore", "{pieces}");
        }
    }
}
