//! Where do MQTT clients come in? At one port, or under TLS at another.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use boot::panics::set_apart;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection;
use crate::node::Node;
use crate::port::{Door, Place, PlaceOfAddress, Port, REFUSAL_TIMEOUT};
use crate::proxied;
use crate::tls::Tls;

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    port: Port,
    tls: Option<Arc<Tls>>,
}

impl Listener {
    /// Binds `mqtt.listen`, or with `tls` `mqtt.tls_listen`.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub fn bind(address: SocketAddr, tls: Option<Arc<Tls>>) -> anyhow::Result<Self> {
        let setting = if tls.is_some() { "mqtt.tls_listen" } else { "mqtt.listen" };
        Ok(Listener { port: Port::bind(address, ("MQTT", setting))?, tls })
    }

    /// Where it listens: the real port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Lets clients connect from now on.
    ///
    /// # Errors
    /// When another process has begun to listen there meanwhile.
    pub(crate) fn listen(self) -> anyhow::Result<Acceptor> {
        Ok(Acceptor { door: self.port.listen()?, tls: self.tls })
    }
}

/// A port that is listened on.
pub(crate) struct Acceptor {
    door: Door,
    tls: Option<Arc<Tls>>,
}

impl Acceptor {
    /// Accepts until `stop`; the connections run on in `connections`.
    pub(crate) async fn serve(self, node: Arc<Node>, connections: TaskTracker, stop: CancellationToken) {
        while let Some((stream, address)) = stop.run_until_cancelled(self.door.next()).await {
            let Some(place) = node.take_place(rpc::Protocol::Mqtt, address) else { continue };
            let node = Arc::clone(&node);
            // A task of its own kind each: one is not to be as large as another.
            match (place, self.tls.clone()) {
                (Place::Served(place), None) => {
                    connections.spawn(set_apart(serve_plain(stream, address, node, place)))
                }
                (Place::Served(place), Some(tls)) => {
                    connections.spawn(set_apart(serve_secure(stream, address, node, place, tls)))
                }
                (Place::Refused(place), tls) => connections.spawn(set_apart(async move {
                    let mut stream = stream;
                    let refused = async {
                        let Ok((peer, _of_address)) = peer(&mut stream, address, &node).await else { return };
                        match tls {
                            None => connection::refuse(&mut stream, peer, &node).await,
                            Some(tls) => {
                                if let Some(mut stream) = tls.accept(stream).await {
                                    connection::refuse(&mut stream, peer, &node).await;
                                }
                            }
                        }
                    };
                    // Ends: who says nothing is not to keep others from being told.
                    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, refused).await;
                    drop(place);
                })),
            };
        }
    }
}

#[expect(clippy::manual_async_fn, reason = "its future would keep the arguments twice")]
fn serve_plain(
    mut stream: TcpStream,
    address: IpAddr,
    node: Arc<Node>,
    place: OwnedSemaphorePermit,
) -> impl Future<Output = ()> {
    async move {
        // Boxed: it is over when a connection is counted in kilobytes.
        let peer = Box::pin(peer(&mut stream, address, &node)).await;
        if let Ok((peer, _place_of_address)) = &peer {
            connection::serve(&mut stream, peer, &node).await;
        }
        drop(place);
    }
}

#[expect(clippy::manual_async_fn, reason = "its future would keep the arguments twice")]
fn serve_secure(
    mut stream: TcpStream,
    address: IpAddr,
    node: Arc<Node>,
    place: OwnedSemaphorePermit,
    tls: Arc<Tls>,
) -> impl Future<Output = ()> {
    async move {
        let peer = Box::pin(peer(&mut stream, address, &node)).await;
        if let Ok((peer, _place_of_address)) = &peer
            && let Some(mut stream) = Box::pin(tls.accept(stream)).await
        {
            connection::serve(&mut stream, peer, &node).await;
        }
        drop(place);
    }
}

/// Who has connected, be it through a proxy, with a place among the connections of that address.
async fn peer(stream: &mut TcpStream, address: IpAddr, node: &Node) -> io::Result<(IpAddr, PlaceOfAddress)> {
    let wait = Duration::from_millis(node.settings().ingress.connect_timeout_ms);
    let peer = proxied::peer(stream, address, &node.settings().mqtt.trusted_proxies, wait).await?;
    node.take_place_of(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an idle connection keeps of its task. It grows when something rare is awaited without a box.
    #[test]
    fn an_idle_connection_is_small() {
        fn size_of_future<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size_of_future(serve_plain);
        assert!(bytes <= 512, "{bytes} bytes");
    }
}
