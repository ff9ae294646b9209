//! Where do HTTP clients come in? At one port, and under TLS at another.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use boot::panics::set_apart;
use rpc::Protocol;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection;
use super::cors::Cors;
use super::devices::Devices;
use super::metrics::HttpMetrics;
use super::routes::router;
use super::server::Server;
use crate::device::relay::{self, Handed};
use crate::node::Node;
use crate::port::{Door, Place, PlaceOfAddress, Port, REFUSAL_TIMEOUT, linger};
use crate::proxied;
use crate::tls::Tls;

/// What a client over the limit reads.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
    Content-Type: application/json\r\nContent-Length: 53\r\n\r\n\
    {\"error\":\"This node has as many devices as it may!\"}\n";

/// Bound ports.
#[derive(Debug)]
pub struct Listener {
    plain: Port,
    secure: Option<(Port, Arc<Tls>)>,
}

impl Listener {
    /// Binds `http.listen`, and with `tls` `http.tls_listen` too.
    ///
    /// # Errors
    /// When an address is taken or not this machine's.
    pub fn bind(settings: &boot::config::Http, tls: Option<Arc<Tls>>) -> anyhow::Result<Self> {
        let plain = Port::bind(settings.listen, ("HTTP", "http.listen"))?;
        let secure = match tls {
            Some(tls) => Some((Port::bind(settings.tls_listen, ("HTTP", "http.tls_listen"))?, tls)),
            None => None,
        };
        Ok(Listener { plain, secure })
    }

    /// Where HTTP listens: the real port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.plain.address()
    }

    /// Where HTTPS listens, if it does.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.secure.as_ref().map(|(port, _)| port.address())
    }

    /// Lets clients connect from now on.
    ///
    /// # Errors
    /// When another process has begun to listen there meanwhile.
    pub(crate) fn listen(self) -> anyhow::Result<Doors> {
        let secure = match self.secure {
            Some((port, tls)) => Some((port.listen()?, tls)),
            None => None,
        };
        Ok(Doors { plain: self.plain.listen()?, secure })
    }
}

/// Ports that are listened on.
pub(crate) struct Doors {
    plain: Door,
    secure: Option<(Door, Arc<Tls>)>,
}

impl Doors {
    /// Accepts until `stop`, and then for as long as a device may still answer a call that it has taken: its answer
    /// comes on a connection of its own. Connections and devices run on in `tasks`.
    pub(crate) async fn serve(self, node: Arc<Node>, tasks: TaskTracker, stop: CancellationToken) {
        let devices = Arc::new(Devices::new(Arc::clone(&node), tasks.clone()));
        let metrics = HttpMetrics::register();
        let cors = Cors::new(node.settings().http.cors_origins.as_deref());
        let server = Arc::new(Server { node, devices: Arc::clone(&devices), metrics, cors });
        let acceptor = Acceptor {
            router: router(Arc::clone(&server)),
            server,
            tasks,
            closing: CancellationToken::new(),
        };
        let until_drained = async {
            stop.cancelled().await;
            devices.drain();
            devices.drained().await;
        };
        let take = |Handed { device, number, body, reply_to }| {
            let taken = devices.of(device).into_iter().map(move |it| it.answer(number, &body));
            relay::tell(&acceptor.server.node, reply_to, taken)
        };
        tokio::select! {
            () = until_drained => {}
            () = acceptor.accept_all(&self) => {}
            () = relay::serve(&acceptor.server.node, Protocol::Http, take) => {}
            () = devices.forget_idle() => {}
        }
        acceptor.closing.cancel();
    }
}

struct Acceptor {
    router: Router,
    server: Arc<Server>,
    tasks: TaskTracker,
    /// Connections end with the request that they are answering.
    closing: CancellationToken,
}

impl Acceptor {
    /// Without end.
    async fn accept_all(&self, from: &Doors) {
        let plain = self.accept(&from.plain, None);
        match &from.secure {
            Some((door, tls)) => {
                tokio::join!(plain, self.accept(door, Some(tls)));
            }
            None => plain.await,
        }
    }

    async fn accept(&self, door: &Door, tls: Option<&Arc<Tls>>) {
        loop {
            let (stream, address) = door.next().await;
            self.begin(stream, address, tls.cloned());
        }
    }

    fn begin(&self, mut stream: TcpStream, address: IpAddr, tls: Option<Arc<Tls>>) {
        let (server, router) = (Arc::clone(&self.server), self.router.clone());
        let closing = self.closing.clone();
        // A task of its own kind each: one is not to be as large as another.
        match (self.server.node.take_place(Protocol::Http, address), tls) {
            (Some(Place::Served(place)), None) => {
                self.tasks.spawn(set_apart(serve_plain(stream, address, server, router, closing, place)))
            }
            (Some(Place::Served(place)), Some(tls)) => self.tasks.spawn(set_apart(async move {
                let peer = Box::pin(closing.run_until_cancelled(peer(&mut stream, address, &server))).await;
                if let Some(Ok((peer, _place_of_address))) = &peer
                    && let Some(Some(stream)) =
                        Box::pin(closing.run_until_cancelled(tls.accept(stream))).await
                {
                    connection::serve(stream, *peer, &server, router, &closing).await;
                }
                drop(place);
            })),
            (Some(Place::Refused(place)), None) => self.tasks.spawn(set_apart(async move {
                refuse(stream).await;
                drop(place);
            })),
            // Under TLS a refusal would cost more than it is worth.
            (Some(Place::Refused(_)), Some(_)) | (None, _) => return,
        };
    }
}

#[expect(clippy::manual_async_fn, reason = "its future would keep the arguments twice")]
fn serve_plain(
    mut stream: TcpStream,
    address: IpAddr,
    server: Arc<Server>,
    router: Router,
    closing: CancellationToken,
    place: OwnedSemaphorePermit,
) -> impl Future<Output = ()> {
    async move {
        // Boxed: it is over when a connection is counted in kilobytes.
        let peer = Box::pin(closing.run_until_cancelled(peer(&mut stream, address, &server))).await;
        if let Some(Ok((peer, _place_of_address))) = &peer {
            connection::serve(stream, *peer, &server, router, &closing).await;
        }
        drop(place);
    }
}

/// Who has connected, be it through a proxy, with a place among the connections of that address.
async fn peer(
    stream: &mut TcpStream,
    address: IpAddr,
    server: &Server,
) -> io::Result<(IpAddr, PlaceOfAddress)> {
    let http = &server.node.settings().http;
    if !http.proxy_protocol {
        return server.node.take_place_of(address);
    }
    let wait = Duration::from_millis(http.header_timeout_ms);
    let peer = proxied::peer(stream, address, &http.trusted_proxies, wait).await?;
    server.node.take_place_of(peer)
}

async fn refuse(mut stream: TcpStream) {
    // Ends: a client that does not read or close is left after a moment.
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, async {
        stream.write_all(REFUSAL).await?;
        linger(stream).await;
        io::Result::Ok(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_as_long_as_it_says() {
        let text = std::str::from_utf8(REFUSAL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{} bytes", body.len());
    }

    /// What a connection keeps of its task, beside what hyper does. It grows when something rare is awaited unboxed.
    #[test]
    fn a_connection_is_small() {
        fn size_of_future<A, B, C, D, E, F, T>(_: fn(A, B, C, D, E, F) -> T) -> usize {
            size_of::<T>()
        }
        let bytes = size_of_future(serve_plain);
        assert!(bytes <= 456, "{bytes} bytes");
    }
}
