//! How does one thread serve thousands of sockets cheaply?
//!
//! All connections of a thread read into one shared buffer, so an idle one holds none; a packet is handled where it
//! lies; and what a batch of packets leads to goes out in a single write. Everything here lives on one thread.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

use crate::frame::{self, Packet};
use crate::framing::Framing;
use crate::nats_frame;

const SHARED_BUFFER_BYTES: usize = 16 * 1024;

/// The buffer that all readers of a thread share.
#[derive(Clone)]
pub struct Scratch(Rc<RefCell<Box<[u8]>>>);

impl Scratch {
    /// One is enough for a thread.
    pub fn new() -> Self {
        Self(Rc::new(RefCell::new(vec![0; SHARED_BUFFER_BYTES].into_boxed_slice())))
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Splits a socket into the side that one task reads and the side that anyone on the thread may write.
///
/// # Errors
/// When TCP_NODELAY cannot be set.
pub fn open(stream: TcpStream, framing: Framing) -> io::Result<(Reader, Rc<Outbox>)> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    let outbox = Rc::new(Outbox { write, unsent: RefCell::default(), reader: RefCell::default() });
    Ok((Reader { read, framing, cut_off: Vec::new(), outbox: Rc::clone(&outbox) }, outbox))
}

/// What is to be written to a socket. Its reader's task sends what others leave behind.
#[derive(Debug)]
pub struct Outbox {
    write: OwnedWriteHalf,
    unsent: RefCell<Vec<u8>>,
    reader: RefCell<Option<Waker>>,
}

impl Outbox {
    /// Queues packets: `write` appends their bytes. They go out when the reader has handled its batch.
    pub fn queue(&self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.unsent.borrow_mut());
    }

    /// Queues packets from outside the reader's task, which is woken to send them together with what else comes up.
    pub fn queue_and_wake(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let idle = self.unsent.borrow().is_empty();
        self.queue(write);
        if idle {
            self.wake();
        }
    }

    /// Sends packets this moment; what the socket does not take is left to the reader's task.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.queue(write);
        if !self.drain()? {
            self.wake();
        }
        Ok(())
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.borrow().as_ref() {
            reader.wake_by_ref();
        }
    }

    /// Writes until nothing is left (true) or the socket takes no more (false).
    fn drain(&self) -> io::Result<bool> {
        let mut unsent = self.unsent.borrow_mut();
        while !unsent.is_empty() {
            match self.write.try_write(&unsent) {
                Ok(count) if count == unsent.len() => unsent.clear(),
                Ok(count) => drop(unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn poll_drain(&self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.drain()? {
            match self.write.as_ref().poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn belongs_to(&self, waker: &Waker) {
        let mut reader = self.reader.borrow_mut();
        if !reader.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *reader = Some(waker.clone());
        }
    }
}

/// The reading side of a socket, owned by its task.
#[derive(Debug)]
pub struct Reader {
    read: OwnedReadHalf,
    framing: Framing,
    cut_off: Vec<u8>,
    outbox: Rc<Outbox>,
}

impl Reader {
    /// Waits for bytes, hands every whole packet among them to `handle`, then sends what is queued.
    /// Meanwhile it sends what others queue.
    ///
    /// # Errors
    /// When the connection ended or broke, on bytes that are no packet, and with any error of `handle`.
    pub async fn batch(
        &mut self,
        scratch: &Scratch,
        mut handle: impl FnMut(Packet<'_>) -> Result<()>,
    ) -> Result<()> {
        poll_fn(|cx| self.poll_batch(cx, scratch, &mut handle)).await
    }

    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &Scratch,
        handle: &mut impl FnMut(Packet<'_>) -> Result<()>,
    ) -> Poll<Result<()>> {
        self.outbox.belongs_to(cx.waker());
        self.outbox.poll_drain(cx)?;
        let mut space = scratch.0.borrow_mut();
        let mut space = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.read).poll_read(cx, &mut space))?;
        if space.filled().is_empty() {
            return Poll::Ready(Err(io::Error::from(ErrorKind::UnexpectedEof).into()));
        }
        self.take(space.filled(), handle)?;
        self.outbox.poll_drain(cx)?;
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, arrived: &[u8], handle: &mut impl FnMut(Packet<'_>) -> Result<()>) -> Result<()> {
        if self.cut_off.is_empty() {
            let used = self.take_whole(arrived, handle)?;
            self.cut_off.extend_from_slice(arrived.get(used..).unwrap_or_default());
        } else {
            self.cut_off.extend_from_slice(arrived);
            let used = self.take_whole(&self.cut_off, handle)?;
            self.cut_off.drain(..used);
        }
        Ok(())
    }

    fn take_whole(&self, bytes: &[u8], handle: &mut impl FnMut(Packet<'_>) -> Result<()>) -> Result<usize> {
        let mut used = 0;
        while let Some((packet, length)) = self.framing.split(bytes.get(used..).unwrap_or_default())? {
            match self.framing.courtesy(&packet) {
                Some(answer) => self.outbox.queue(answer),
                None => handle(packet)?,
            }
            used += length;
        }
        Ok(used)
    }
}

/// Who connects, and what it wants to hear.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Login {
    /// How it talks.
    pub framing: Framing,
    /// The MQTT client id, unique among the devices.
    pub client_id: String,
    /// The user name, empty for none.
    pub username: String,
    /// The password, empty for none.
    pub password: String,
    /// The filter to subscribe.
    pub filter: String,
}

/// Long enough that no run needs a ping.
pub const KEEP_ALIVE_S: u16 = 3600;

/// Connects a device and subscribes its filter: returns when the server has acknowledged both.
///
/// # Errors
/// When the server cannot be reached or refuses either.
pub async fn connect(address: SocketAddr, login: &Login, scratch: &Scratch) -> Result<(Reader, Rc<Outbox>)> {
    connect_from(None, address, login, scratch).await
}

/// The same from an address and a port of one's own choice, for an address has only so many ports.
///
/// # Errors
/// As [`connect`], and when another socket is there.
pub async fn connect_from(
    source: Option<SocketAddr>,
    address: SocketAddr,
    login: &Login,
    scratch: &Scratch,
) -> Result<(Reader, Rc<Outbox>)> {
    let (mut reader, outbox) = open(dial(source, address).await?, login.framing)?;
    let (client_id, filter) = (&login.client_id, &login.filter);
    match login.framing {
        Framing::Mqtt => {
            let names = [login.username.as_str(), &login.password];
            outbox.queue(|out| frame::connect(out, client_id, names, KEEP_ALIVE_S));
            let greeted = |packet: Packet<'_>| match packet {
                Packet::ConnAck { code: 0 } => Ok(true),
                Packet::ConnAck { code } => bail!("{client_id} was refused with CONNACK code {code}"),
                other => bail!("{other:?} instead of a CONNACK"),
            };
            until(&mut reader, scratch, greeted).await?;
            outbox.queue(|out| frame::subscribe(out, 1, filter));
            let answered = |packet: Packet<'_>| match packet {
                Packet::SubAck { code: 0 } => Ok(true),
                Packet::SubAck { code } => bail!("{client_id} may not subscribe {filter}: {code:#x}"),
                other => bail!("{other:?} instead of a SUBACK"),
            };
            until(&mut reader, scratch, answered).await?;
        }
        Framing::Nats => {
            outbox.queue(|out| {
                nats_frame::connect(out, client_id, &login.username, &login.password);
                nats_frame::subscribe(out, filter);
                // Its answer is the acknowledgement of both.
                nats_frame::ping(out);
            });
            let answered = |packet: Packet<'_>| match packet {
                Packet::Greeting => Ok(false),
                Packet::PingResp => Ok(true),
                Packet::Refusal { text } => bail!("{client_id}: {}", String::from_utf8_lossy(text)),
                other => bail!("{other:?} instead of a PONG"),
            };
            until(&mut reader, scratch, answered).await?;
        }
    }
    Ok((reader, outbox))
}

/// A socket alone.
///
/// # Errors
/// As [`connect_from`].
pub async fn dial(source: Option<SocketAddr>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(source) = source {
        // Also while an earlier connection from there is still being forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(source)?;
    }
    socket.connect(address).await
}

/// Reads until a packet is what is waited for.
async fn until(
    reader: &mut Reader,
    scratch: &Scratch,
    mut is_it: impl FnMut(Packet<'_>) -> Result<bool>,
) -> Result<()> {
    let mut came = false;
    while !came {
        reader
            .batch(scratch, |packet| {
                came |= is_it(packet)?;
                Ok(())
            })
            .await?;
    }
    Ok(())
}
