//! What lies between HTTP and the socket? A stream that says when a call was written, gives up on a client that sends
//! or reads too slowly, and lets the last words arrive before it closes.
//!
//! The end of a client's input is not the client's end: it may have sent all that it had to say, and waits for its
//! answer (RFC 9112 §9.6). Only a reset, or bytes that it does not take, tell that it has gone. Of a client that
//! closes its socket altogether TCP tells the same as of one that reads on, until something was sent: the answer to
//! that is a reset. So a call for such a client counts as written only once its end has acknowledged every byte, and
//! goes back when it resets. What cannot be known is whether a client read what its system took before it closed.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, getpeername, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::chunks::Framing;
use super::exchange::Exchange;
use crate::port::LINGER;
use crate::tls::Secured;

/// Between two looks at whether a client that sends no more has acknowledged its call: nothing tells of it.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A connection's socket, plain or under TLS.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The connection below.
    fn socket(&self) -> &TcpStream;
}

impl Transport for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Transport for Box<Secured> {
    fn socket(&self) -> &TcpStream {
        Secured::socket(self)
    }
}

/// How long a connection's client may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For a whole head, from the accepted connection or its first byte.
    pub(super) head: Duration,
    /// From the last answer to the next request's first byte.
    pub(super) idle: Duration,
    /// To take a byte of an answer.
    pub(super) write: Duration,
}

/// The stream under one HTTP connection.
pub(super) struct Wire<S> {
    stream: S,
    /// Read before all else, and no part of what the client sends.
    head_again: &'static [u8],
    /// Came before this did.
    read_ahead: BytesMut,
    exchange: Arc<Exchange>,
    patience: Patience,
    framing: Framing,
    max_body_bytes: usize,
    /// Requests that this has seen begin.
    requests: u64,
    /// Bytes of the next request have come.
    head_begun: bool,
    /// Runs while a head is waited for.
    waiting: Option<Pin<Box<Sleep>>>,
    stalled: Option<Pin<Box<Sleep>>>,
    /// During this request the client was seen to close its sending side, or to have done so.
    input_ended: bool,
    /// A call waits to be acknowledged: until when, and when to look again.
    confirming: Option<(Instant, Pin<Box<Sleep>>)>,
    lingering: Option<Pin<Box<Sleep>>>,
}

/// What a socket tells of its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Sends,
    SendsNoMore,
    HasGone,
}

fn client(socket: &TcpStream) -> Client {
    let mut asked = [PollFd::new(socket, PollFlags::RDHUP)];
    let told = match poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(_) => asked.iter().fold(PollFlags::empty(), |told, it| told | it.revents()),
        Err(_) => PollFlags::ERR,
    };
    // HUP: both directions are closed, and by us none is while this is asked.
    if told.intersects(PollFlags::ERR | PollFlags::HUP) {
        Client::HasGone
    } else if told.contains(PollFlags::RDHUP) {
        Client::SendsNoMore
    } else {
        Client::Sends
    }
}

impl<S: Transport> Wire<S> {
    /// `read_ahead` is what has come already.
    pub(super) fn new(
        stream: S,
        read_ahead: BytesMut,
        exchange: Arc<Exchange>,
        patience: Patience,
        max_body_bytes: usize,
    ) -> Self {
        Wire {
            stream,
            head_again: &[],
            read_ahead,
            exchange,
            patience,
            framing: Framing::default(),
            max_body_bytes,
            requests: 0,
            head_begun: false,
            waiting: None,
            stalled: None,
            input_ended: false,
            confirming: None,
            lingering: None,
        }
    }

    /// The stream itself, for a protocol that takes it over.
    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    /// hyper has gone, to which `read_ahead` had come.
    pub(super) fn take_back(&mut self, read_ahead: &[u8]) {
        let mut read_ahead = BytesMut::from(read_ahead);
        read_ahead.extend_from_slice(&self.read_ahead);
        self.read_ahead = read_ahead;
    }

    /// A new hyper reads this first.
    pub(super) fn read_again(&mut self, head: &'static [u8]) {
        self.head_again = head;
    }

    fn poll_progress<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.exchange.set_unwritten(true);
        match write(Pin::new(&mut self.stream), cx) {
            Poll::Ready(result) => {
                self.stalled = None;
                Poll::Ready(result)
            }
            Poll::Pending => {
                let timeout = self.patience.write;
                let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                ready!(stalled.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// A request that began ends the wait for its head, and is told anew when its client sends no more.
    fn note_requests(&mut self) {
        if self.exchange.requests() != self.requests {
            self.requests = self.exchange.requests();
            (self.head_begun, self.waiting, self.input_ended) = (false, None, false);
        }
    }

    /// Something has come: a head has its own time from its first byte, a connection's first from the beginning. An
    /// error where a chunked body that is being read is not to be waited for.
    fn input_came(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.note_requests();
        if !self.exchange.is_answering() {
            if !std::mem::replace(&mut self.head_begun, true) && self.requests > 0 {
                self.waiting = None;
            }
            if let Some(fault) = self.framing.head(bytes, self.requests, self.max_body_bytes) {
                self.exchange.announce(self.requests, fault);
            }
        } else if let Some(request) = self.requests.checked_sub(1)
            && let Some(fault) = self.framing.body(bytes, request)
            && self.exchange.is_chunked()
        {
            self.exchange.announce(request, fault);
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }

    /// Nothing has come. Ready when a head has taken too long; with the end of input for a client that kept silent.
    fn poll_head_time(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.note_requests();
        if self.exchange.is_answering() {
            return Poll::Pending;
        }
        let idle = self.requests > 0 && !self.head_begun;
        // Only whoever has shown a token may stay.
        let patience = if idle && self.exchange.is_known() { self.patience.idle } else { self.patience.head };
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(if idle { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) })
    }

    /// While a request is being answered nothing is read: looks whether its client has gone, or sends no more.
    pub(super) fn poll_client(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.note_requests();
        if self.input_ended || !self.exchange.is_answering() {
            return Ok(());
        }
        // Ready also with a further request, behind which an end is not seen before something is written.
        if self.stream.socket().poll_read_ready(cx)?.is_ready() {
            match client(self.stream.socket()) {
                Client::Sends => {}
                Client::SendsNoMore => {
                    self.input_ended = true;
                    self.exchange.input_ended();
                }
                Client::HasGone => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
        Ok(())
    }

    /// Whether a call whose bytes the socket has taken is in its client's hands.
    fn poll_taken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.confirming.is_none() {
            match client(self.stream.socket()) {
                Client::Sends => return Poll::Ready(Ok(())),
                Client::SendsNoMore => {}
                Client::HasGone => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
            // Our end goes behind the call, and is acknowledged with it; what was pipelined behind its poll is given
            // up. The socket's end alone: TLS has a message of its own, which a client that has read its call and
            // closed answers with a reset. Already reset, the socket says so below.
            match shutdown(self.stream.socket(), Shutdown::Write) {
                Ok(()) | Err(Errno::NOTCONN) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            self.lingering = Some(Box::pin(tokio::time::sleep(LINGER)));
            let give_up_at = Instant::now() + self.patience.write;
            self.confirming = Some((give_up_at, Box::pin(tokio::time::sleep(LOOK_AGAIN))));
        }
        loop {
            let socket = self.stream.socket();
            // A connection of which both ends are closed, or that was reset, has no peer any more.
            if getpeername(socket).is_err() {
                return Poll::Ready(socket.take_error()?.map_or(Ok(()), Err));
            }
            let Some((give_up_at, look_again)) = &mut self.confirming else { return Poll::Pending };
            ready!(look_again.as_mut().poll(cx));
            if Instant::now() >= *give_up_at {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            look_again.as_mut().reset(Instant::now() + LOOK_AGAIN);
        }
    }
}

impl<S: Transport> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.head_again.is_empty() {
            let (part, rest) = self.head_again.split_at(self.head_again.len().min(buffer.remaining()));
            buffer.put_slice(part);
            self.head_again = rest;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if !self.read_ahead.is_empty() {
            let part = self.read_ahead.len().min(buffer.remaining());
            let part = self.read_ahead.split_to(part);
            buffer.put_slice(&part);
            if self.read_ahead.is_empty() {
                self.read_ahead = BytesMut::new();
            }
            return Poll::Ready(self.input_came(&part));
        }
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => {
                Poll::Ready(self.input_came(buffer.filled().get(before..).unwrap_or_default()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.poll_head_time(cx),
        }
    }
}

impl<S: Transport> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_progress(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_progress(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// HTTP flushes once the stream has taken all that was buffered, and whenever it looks at the connection.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_progress(cx, AsyncWrite::poll_flush))?;
        self.poll_client(cx)?;
        if self.exchange.outbox.is_writing() {
            ready!(self.poll_taken(cx))?;
            self.exchange.outbox.flushed();
        }
        self.exchange.set_unwritten(false);
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
