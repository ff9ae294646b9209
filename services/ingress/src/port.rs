//! Who may come in over TCP? A port is bound at start, so that one that is taken shows, and listened on once the node
//! can serve: who connects before that is refused at once. Then everybody is accepted, up to the node's limit.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rpc::{Limit, Protocol};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::node::Node;

/// Connections that may wait to be accepted, as when all devices of a node that has died come at once. The system
/// allows fewer (`net.core.somaxconn`, 4,096 unless raised) and takes that; a device beyond it is not refused, but
/// tries again a second later, and then ever more slowly.
const BACKLOG: u32 = 65_535;

/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound port, not yet listened on.
#[derive(Debug)]
pub struct Port {
    socket: TcpSocket,
    address: SocketAddr,
    purpose: Purpose,
}

/// What is spoken at a port, and the setting with its address.
pub type Purpose = (&'static str, &'static str);

impl Port {
    /// Binds the address of that setting.
    ///
    /// # Errors
    /// When the address is taken or not this machine's; the error names the setting.
    pub fn bind(address: SocketAddr, purpose: Purpose) -> anyhow::Result<Self> {
        let bound = || -> io::Result<_> {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // As long as nobody listens, the system would let two processes that say so have one port. Where it
            // chooses the port there is no former process of whose connections it must be freed.
            socket.set_reuseaddr(address.port() != 0)?;
            socket.bind(address)?;
            Ok((socket.local_addr()?, socket))
        };
        let (address, socket) = bound().map_err(|error| refused(error, address, purpose))?;
        Ok(Port { socket, address, purpose })
    }

    /// The real port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets clients connect from now on.
    ///
    /// # Errors
    /// When another process has begun to listen there meanwhile.
    pub fn listen(self) -> anyhow::Result<Door> {
        let Port { socket, address, purpose } = self;
        Ok(Door(socket.listen(BACKLOG).map_err(|error| refused(error, address, purpose))?))
    }
}

fn refused(error: io::Error, address: SocketAddr, (speaks, setting): Purpose) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("{speaks} cannot listen on {address} (setting {setting})"))
}

/// A port that is listened on.
#[derive(Debug)]
pub struct Door(TcpListener);

impl Door {
    /// The next client, and from where it connects. What it is sent is never held back: a call is small and waited for.
    pub async fn next(&self) -> (TcpStream, IpAddr) {
        loop {
            match self.0.accept().await {
                // One that cannot be told so is gone already.
                Ok((stream, address)) if stream.set_nodelay(true).is_ok() => return (stream, address.ip()),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// How long a closing connection may take to read our last words and close its end. Without it, closing with unread
/// input resets the connection and can take the last answer with it.
pub(crate) const LINGER: Duration = Duration::from_millis(500);

/// How many clients over the limit are told so at a time; further ones are closed without a word.
pub const MAX_REFUSALS_AT_ONCE: usize = 32;

/// How long such a client may take to say who it is and to read its refusal.
pub const REFUSAL_TIMEOUT: Duration = Duration::from_millis(1_000);

/// The places that a node has for connections, whatever their protocol.
#[derive(Debug)]
pub struct Places {
    served: Arc<Semaphore>,
    refused: Arc<Semaphore>,
    all: usize,
}

/// Where a connection is, for as long as it lasts.
#[derive(Debug)]
pub enum Place {
    /// Among those that are served.
    Served(OwnedSemaphorePermit),
    /// The node is full: among those that are told so.
    Refused(OwnedSemaphorePermit),
}

impl Places {
    /// So many connections at once.
    pub fn new(all: usize) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Places { served: places(all), refused: places(MAX_REFUSALS_AT_ONCE), all }
    }

    /// A place for one more; none when it is to be closed without a word.
    pub fn take(&self) -> Option<Place> {
        let permit = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_owned().ok();
        permit(&self.served).map(Place::Served).or_else(|| permit(&self.refused).map(Place::Refused))
    }

    /// How many there are, and how many of them are taken.
    pub fn all_and_taken(&self) -> (usize, usize) {
        (self.all, self.all.saturating_sub(self.served.available_permits()))
    }
}

impl Node {
    /// A place for a connection that has just come; none when it is to be closed without a word.
    pub(crate) fn take_place(&self, protocol: Protocol, address: IpAddr) -> Option<Place> {
        let place = self.places.take();
        if !matches!(place, Some(Place::Served(_))) {
            self.metrics.limit_hit(Limit::Connections);
            tracing::info!(%address, %protocol, "a connection over the limit was refused");
        }
        place
    }

    /// A place among the connections of the address that a client has connected from, be it through a proxy.
    pub(crate) fn take_place_of(&self, peer: IpAddr) -> io::Result<(IpAddr, PlaceOfAddress)> {
        match self.shares.connection(peer) {
            Ok(place) => Ok((peer, place.map(Box::new))),
            Err(limit) => {
                self.metrics.limit_hit(limit);
                Err(io::Error::other(limit.as_str()))
            }
        }
    }
}

/// See [`Node::take_place_of`]; none where there is no such limit.
pub(crate) type PlaceOfAddress = Option<Box<rpc::Place<IpAddr>>>;

/// Lets the client read our last words: closes our end, and waits a moment for the client to close its own.
pub(crate) async fn linger<S>(mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _ = tokio::time::timeout(LINGER, async {
        stream.shutdown().await?;
        let mut discarded = [0; 1024];
        while stream.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURPOSE: Purpose = ("MQTT", "mqtt.listen");

    #[tokio::test]
    async fn nobody_is_let_in_before_the_node_can_serve_him() {
        let port = Port::bind("127.0.0.1:0".parse().unwrap(), PURPOSE).unwrap();
        let address = port.address();
        let early = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::ConnectionRefused);
        let door = port.listen().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"x").await.unwrap();
        door.next().await.0.readable().await.unwrap();
    }

    #[tokio::test]
    async fn a_taken_port_is_named_when_it_is_bound_or_at_the_latest_when_it_is_listened_on() {
        let first = Port::bind("127.0.0.1:0".parse().unwrap(), PURPOSE).unwrap();
        let address = first.address();
        let door = first.listen().unwrap();
        let told = |error: anyhow::Error| {
            let text = format!("{error:#}");
            let names_it = text.contains(&format!("MQTT cannot listen on {address} (setting mqtt.listen)"));
            assert!(names_it && text.contains("in use"), "{text}");
        };
        told(Port::bind(address, PURPOSE).unwrap_err());
        drop(door);
        let (second, third) = (Port::bind(address, PURPOSE).unwrap(), Port::bind(address, PURPOSE).unwrap());
        let _door = second.listen().unwrap();
        told(third.listen().unwrap_err());
    }

    #[test]
    fn whoever_is_over_the_limit_is_told_as_long_as_that_is_cheap() {
        let places = Places::new(1);
        let served = places.take();
        assert!(matches!(served, Some(Place::Served(_))));
        let refused: Vec<_> = (0..MAX_REFUSALS_AT_ONCE).map(|_| places.take()).collect();
        assert!(refused.iter().all(|place| matches!(place, Some(Place::Refused(_)))));
        assert!(places.take().is_none());
        assert_eq!(places.all_and_taken(), (1, 1));
        drop(served);
        assert!(matches!(places.take(), Some(Place::Served(_))));
        assert_eq!(places.all_and_taken(), (1, 0));
    }
}
