//! A WebSocket as a stream of bytes.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::{self, CloseCode, Decoder, Piece};

/// How much one read takes. On the stack: an idle connection owns no buffer.
const READ_BYTES: usize = 4096;

/// The longest payload of a frame that is written.
const MAX_WRITTEN_BYTES: usize = 64 * 1024;

/// Pings are no longer answered while so many bytes wait to be written (RFC 6455 §5.5.3 asks for the latest alone).
const MAX_WAITING_PONG_BYTES: usize = 4096;

/// The bytes inside a WebSocket's binary frames.
///
/// Written bytes are acknowledged when the socket has them all, frame and all. Until then, whoever writes must offer
/// the same bytes again, as `write_all` and the MQTT loop do.
pub(super) struct WebSocket<S> {
    stream: S,
    decoder: Decoder,
    inbound: BytesMut,
    payload: BytesMut,
    outbound: BytesMut,
    /// Bytes of the writer that are in `outbound`.
    unacknowledged: usize,
    /// How the stream ended, once it has: the code that our last frame says.
    ended: Option<u16>,
    /// Our last frame is written: what still comes is of no interest.
    closed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// After the handshake; `read_ahead` came behind it.
    pub(super) fn new(stream: S, read_ahead: &[u8]) -> Self {
        WebSocket {
            stream,
            decoder: Decoder::default(),
            inbound: BytesMut::from(read_ahead),
            payload: BytesMut::new(),
            outbound: BytesMut::new(),
            unacknowledged: 0,
            ended: None,
            closed: false,
        }
    }

    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbound.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outbound))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbound.advance(written);
        }
        if self.outbound.capacity() > 0 {
            self.outbound = BytesMut::new();
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Takes what the frames at hand hold. False when there is nothing more in them.
    fn take_piece(&mut self) -> bool {
        match self.decoder.next(&mut self.inbound) {
            Ok(Some(Piece::Payload(payload))) => self.payload = payload,
            Ok(Some(Piece::Ping(payload))) => {
                if self.outbound.len() < MAX_WAITING_PONG_BYTES {
                    frame::pong(&payload, &mut self.outbound);
                }
            }
            Ok(Some(Piece::Pong)) => {}
            Ok(Some(Piece::Close(code))) => self.ended = Some(code.unwrap_or(CloseCode::Normal as u16)),
            Ok(None) => return false,
            Err(code) => self.ended = Some(code as u16),
        }
        true
    }

    fn poll_raw(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut storage = [MaybeUninit::<u8>::uninit(); READ_BYTES];
        let mut buffer = ReadBuf::uninit(&mut storage);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        if !self.closed {
            self.inbound.extend_from_slice(buffer.filled());
        }
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closed {
            while ready!(this.poll_raw(cx))? > 0 {}
            return Poll::Ready(Ok(()));
        }
        loop {
            if !this.payload.is_empty() {
                let take = this.payload.len().min(buffer.remaining());
                buffer.put_slice(&this.payload.split_to(take));
                if this.payload.is_empty() {
                    this.payload = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            if this.ended.is_some() {
                return Poll::Ready(Ok(()));
            }
            if this.take_piece() {
                continue;
            }
            if this.inbound.is_empty() {
                this.inbound = BytesMut::new();
            }
            // Pongs go out here, where nothing else may be written for long. A fault shows when reading.
            if !this.outbound.is_empty() {
                let _ = this.poll_outbound(cx);
            }
            if ready!(this.poll_raw(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if this.unacknowledged == 0 {
            let part = bytes.get(..MAX_WRITTEN_BYTES).unwrap_or(bytes);
            frame::binary(part, &mut this.outbound);
            this.unacknowledged = part.len();
        }
        ready!(this.poll_outbound(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut this.unacknowledged)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_outbound(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            frame::close(this.ended.unwrap_or(CloseCode::Normal as u16), &mut this.outbound);
            this.closed = true;
        }
        ready!(this.poll_outbound(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A client's frame, masked with zeros.
    fn from_client(first: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[first, 0x80 | length, 0, 0, 0, 0], payload].concat()
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_pings_are_answered() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut stream = WebSocket::new(ours, &from_client(0x02, b"ab")[..4]);
        let client = async {
            theirs.write_all(&from_client(0x02, b"ab")[4..]).await.unwrap();
            theirs.write_all(&from_client(0x89, b"?")).await.unwrap();
            theirs.write_all(&from_client(0x80, b"cd")).await.unwrap();
            let mut pong = [0; 3];
            theirs.read_exact(&mut pong).await.unwrap();
            assert_eq!(&pong, b"\x8a\x01?");
            let mut binary = vec![0; 204];
            theirs.read_exact(&mut binary).await.unwrap();
            assert_eq!((&binary[..4], &binary[4..]), (&[0x82, 126, 0, 200][..], &[7; 200][..]));
            theirs.write_all(&from_client(0x88, &[3, 0xe9])).await.unwrap();
            let mut close = Vec::new();
            theirs.read_to_end(&mut close).await.unwrap();
            assert_eq!(close, [0x88, 2, 3, 0xe9]);
        };
        let server = async {
            let mut read = [0; 4];
            stream.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"abcd");
            stream.write_all(&[7; 200]).await.unwrap();
            assert_eq!(stream.read(&mut read).await.unwrap(), 0, "the client closed");
            stream.shutdown().await.unwrap();
            drop(stream);
        };
        tokio::join!(client, server);
    }

    #[tokio::test]
    async fn text_ends_the_stream_with_a_code() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let mut stream = WebSocket::new(ours, b"");
        theirs.write_all(&from_client(0x81, b"text")).await.unwrap();
        theirs.write_all(&from_client(0x82, b"more")).await.unwrap();
        assert_eq!(stream.read(&mut [0; 9]).await.unwrap(), 0);
        stream.shutdown().await.unwrap();
        let mut close = [0; 4];
        theirs.read_exact(&mut close).await.unwrap();
        assert_eq!(close, [0x88, 2, 0x03, 0xeb]);
        theirs.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 9]).await.unwrap(), 0, "what came behind is of no interest");
    }
}
