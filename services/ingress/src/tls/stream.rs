//! How do bytes get through TLS, so that a connection that says nothing keeps no room for any?
//!
//! rustls' usual connection keeps the 4 KB that it reads into for as long as it lives, a third of all that an idle one
//! takes. So its unbuffered one is used, which works on buffers of its caller's: they are let go when they are empty.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::port::linger;

/// Bytes that a client may send until hands are shaken. A greeting has some 2,000 with a key for each exchange there
/// is, and is sent twice where the first guess was wrong; what comes at once behind it counts, 4,096 at most. Without
/// this, a greeting may take 64 KB.
const MAX_HANDSHAKE_BYTES: usize = 12 * 1024;

/// Bytes taken from the socket at once.
const READ_BYTES: usize = 4 * 1024;

/// Bytes that may wait to be opened. A record has 18,437 at most (RFC 5246 §6.2.3), but a message of TLS itself may be
/// spread over any number of them.
const MAX_UNOPENED_BYTES: usize = 20 * 1024;

/// Bytes of the writer that are sealed at once: as many as a record holds (RFC 8446 §5.1).
const MAX_SEALED_BYTES: usize = 16 * 1024;

/// A connection under TLS.
///
/// Written bytes are acknowledged when the socket has them all: a record that waits inside TLS would wait for the next
/// write. Until then, whoever writes must offer the same bytes again, as `write_all`, HTTP and the MQTT loop do.
///
/// The end of what the client sends is the same with TLS' goodbye as without: the protocols above tell by themselves
/// whether all has come.
pub struct Secured<S = TcpStream> {
    socket: S,
    tls: UnbufferedServerConnection,
    /// Came from the socket: the beginning of a record, or of a message that needs more of them.
    unopened: BytesMut,
    /// Was opened, and is not read yet.
    opened: BytesMut,
    /// Was sealed, and is not in the socket yet.
    sealed: BytesMut,
    /// Bytes of the writer that are in `sealed`.
    unacknowledged: usize,
    has_ended: bool,
    /// rustls may not be asked again after it has failed: it would open the same record once more.
    has_failed: bool,
}

/// What is sealed once all that came is opened.
enum Wish<'a> {
    Nothing,
    Bytes(&'a [u8]),
    Goodbye,
}

impl<S> Secured<S> {
    /// The connection below.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// Opens all that came, and seals what rustls has to say and then `wish`.
    ///
    /// # Errors
    /// When the client keeps to no TLS; why is said in `sealed`. Or when nothing can be sealed any more.
    fn proceed(&mut self, wish: Wish<'_>) -> io::Result<()> {
        if self.has_failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        loop {
            let status = self.tls.process_tls_records(&mut self.unopened);
            let mut done = status.discard;
            let state = match status.state {
                Ok(state) => state,
                Err(error) => return Err(self.fail(error)),
            };
            let is_over = match state {
                ConnectionState::ReadTraffic(mut records) => {
                    while let Some(record) = records.next_record() {
                        let record = record.map_err(io::Error::other)?;
                        done += record.discard;
                        self.opened.extend_from_slice(record.payload);
                    }
                    false
                }
                ConnectionState::EncodeTlsData(mut record) => {
                    append(&mut self.sealed, |room| record.encode(room))?;
                    false
                }
                // Nothing overtakes what is in `sealed`.
                ConnectionState::TransmitTlsData(sent) => {
                    sent.done();
                    false
                }
                ConnectionState::PeerClosed => {
                    self.has_ended = true;
                    false
                }
                ConnectionState::WriteTraffic(mut traffic) => {
                    match wish {
                        Wish::Nothing => {}
                        Wish::Bytes(bytes) => append(&mut self.sealed, |room| traffic.encrypt(bytes, room))?,
                        Wish::Goodbye => append(&mut self.sealed, |room| traffic.queue_close_notify(room))?,
                    }
                    true
                }
                // Closed by both, hands not shaken yet, or early data, which is not offered.
                _ if matches!(wish, Wish::Bytes(_)) => return Err(io::ErrorKind::NotConnected.into()),
                _ => true,
            };
            self.unopened.advance(done);
            if is_over {
                break;
            }
        }
        if self.unopened.is_empty() {
            self.unopened = BytesMut::new();
        }
        Ok(())
    }

    /// Seals what rustls tells the client about `error`.
    fn fail(&mut self, error: rustls::Error) -> io::Error {
        (self.has_failed, self.has_ended) = (true, true);
        while self.tls.wants_write() {
            let Ok(ConnectionState::EncodeTlsData(mut alert)) = self.tls.process_tls_records(&mut []).state
            else {
                break;
            };
            if append(&mut self.sealed, |room| alert.encode(room)).is_err() {
                break;
            }
        }
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Secured<S> {
    /// Shakes hands with a client. Boxed: it is large, and handed from one to the other.
    ///
    /// # Errors
    /// When the client goes away or does not keep to TLS. It is told why, as far as TLS goes.
    pub(super) async fn accept(config: Arc<ServerConfig>, socket: S) -> io::Result<Box<Self>> {
        let mut this = Box::new(Secured {
            socket,
            tls: UnbufferedServerConnection::new(config).map_err(io::Error::other)?,
            unopened: BytesMut::new(),
            opened: BytesMut::new(),
            sealed: BytesMut::new(),
            unacknowledged: 0,
            has_ended: false,
            has_failed: false,
        });
        if let Err(error) = this.shake_hands().await {
            if poll_fn(|cx| this.poll_sent(cx)).await.is_ok() {
                linger(&mut this.socket).await;
            }
            return Err(error);
        }
        Ok(this)
    }

    async fn shake_hands(&mut self) -> io::Result<()> {
        let mut may_come = MAX_HANDSHAKE_BYTES;
        while self.tls.is_handshaking() {
            let came = poll_fn(|cx| self.poll_came(cx)).await?;
            if came == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client went away"));
            }
            let rest = may_come.checked_sub(came);
            may_come = rest.ok_or_else(|| io::Error::other("the handshake is longer than it may be"))?;
            self.proceed(Wish::Nothing)?;
            poll_fn(|cx| self.poll_sent(cx)).await?;
        }
        Ok(())
    }

    /// Takes what the socket has; none when it has ended.
    fn poll_came(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.unopened.len() > MAX_UNOPENED_BYTES {
            let why = "a message of TLS is longer than it may be";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        let mut room = [MaybeUninit::uninit(); READ_BYTES];
        let mut came = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut came))?;
        self.unopened.extend_from_slice(came.filled());
        Poll::Ready(Ok(came.filled().len()))
    }

    /// Ready when the socket has all that is sealed.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.sealed))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed.advance(sent);
        }
        self.sealed = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.opened.is_empty() && !this.has_ended {
            if ready!(this.poll_came(cx))? == 0 {
                this.has_ended = true;
            } else if let Err(error) = this.proceed(Wish::Nothing) {
                // A last word that the socket does not take is lost.
                let _ = this.poll_sent(cx);
                return Poll::Ready(Err(error));
            }
        }
        let (read, rest) = this.opened.split_at(this.opened.len().min(buffer.remaining()));
        buffer.put_slice(read);
        if rest.is_empty() {
            this.opened = BytesMut::new();
        } else {
            this.opened.advance(this.opened.len() - rest.len());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.unacknowledged == 0 && !bytes.is_empty() {
            let bytes = bytes.get(..MAX_SEALED_BYTES).unwrap_or(bytes);
            self.proceed(Wish::Bytes(bytes))?;
            self.unacknowledged = bytes.len();
        }
        ready!(self.poll_sent(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.unacknowledged)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_failed {
            self.proceed(Wish::Goodbye)?;
        }
        ready!(self.poll_sent(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Has `seal` write behind what waits already. It is called twice: without room it says how much it needs.
fn append<E>(waiting: &mut BytesMut, mut seal: impl FnMut(&mut [u8]) -> Result<usize, E>) -> io::Result<()>
where
    E: Seal,
{
    let Err(error) = seal(&mut []) else { return Ok(()) };
    let mut room = BytesMut::zeroed(error.needs().ok_or(error).map_err(io::Error::other)?);
    let sealed = seal(&mut room).map_err(io::Error::other)?;
    room.truncate(sealed);
    waiting.unsplit(room);
    Ok(())
}

/// Why nothing was written.
trait Seal: std::error::Error + Send + Sync + 'static {
    /// Bytes of room, when it is for want of them.
    fn needs(&self) -> Option<usize>;
}

impl Seal for EncodeError {
    fn needs(&self) -> Option<usize> {
        match self {
            EncodeError::InsufficientSize(short) => Some(short.required_size),
            EncodeError::AlreadyEncoded => None,
        }
    }
}

impl Seal for EncryptError {
    fn needs(&self) -> Option<usize> {
        match self {
            EncryptError::InsufficientSize(short) => Some(short.required_size),
            EncryptError::EncryptExhausted => None,
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
