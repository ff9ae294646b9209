//! What lies between HTTP and the socket? A stream that says when a call was written, gives up on a client that does
//! not read, and lets the last words arrive before it closes.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::outbox::Outbox;
use crate::tls::Secured;

/// How long a closing connection may take to read our last words and close its end. Without it, closing with unread
/// input resets the connection and can take the last answer with it.
const LINGER: Duration = Duration::from_millis(500);

/// A connection's socket, plain or under TLS.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// True when the client is known to have closed the connection, whatever of its input is yet to be read.
    fn is_gone(&self) -> bool;
}

impl Transport for TcpStream {
    fn is_gone(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let mut peeked = [0; 1];
        match recv(self, &mut peeked, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((received, _)) => received == 0,
            Err(error) => error != rustix::io::Errno::AGAIN,
        }
    }
}

impl Transport for Secured {
    /// Behind what TLS has yet to read, it is not seen.
    fn is_gone(&self) -> bool {
        self.socket().is_gone()
    }
}

/// The stream under one HTTP connection.
pub(super) struct Wire<S> {
    stream: S,
    outbox: Arc<Outbox>,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<S: Transport> Wire<S> {
    /// A client that takes no byte for `write_timeout` is given up.
    pub(super) fn new(stream: S, outbox: Arc<Outbox>, write_timeout: Duration) -> Self {
        Wire { stream, outbox, write_timeout, stalled: None, lingering: None }
    }

    /// The stream itself, for a protocol that takes it over.
    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    fn poll_progress<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match write(Pin::new(&mut self.stream), cx) {
            Poll::Ready(result) => {
                self.stalled = None;
                Poll::Ready(result)
            }
            Poll::Pending => {
                let timeout = self.write_timeout;
                let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                ready!(stalled.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// The kernel takes bytes for a client that has closed its end as long as it has not been told so by a reset.
    fn check_client(&self) -> io::Result<()> {
        if self.outbox.is_writing() && self.stream.is_gone() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }
}

impl<S: Transport> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: Transport> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_client()?;
        self.poll_progress(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_client()?;
        self.poll_progress(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// HTTP flushes once the stream has taken all that was buffered.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_progress(cx, AsyncWrite::poll_flush))?;
        self.outbox.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(this.poll_progress(cx, AsyncWrite::poll_shutdown))?;
        }
        let lingering = this.lingering.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut discarded = [0; 4096];
        loop {
            if lingering.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
