//! Who may come in? Accepts HTTP connections, up to the node's limit.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection;
use super::cors::Cors;
use super::devices::Devices;
use super::metrics::HttpMetrics;
use super::relay;
use super::routes::router;
use super::server::Server;
use crate::mqtt::session::SessionLimits;
use crate::node::Node;
use crate::tls::Tls;

/// How many clients over the limit are told so at a time; further ones are closed without a word.
const MAX_REFUSALS_AT_ONCE: usize = 256;

/// How long such a client may take to read it.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);

/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client over the limit reads.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
    Content-Type: application/json\r\nContent-Length: 53\r\n\r\n\
    {\"error\":\"This node has as many devices as it may!\"}\n";

/// Bound ports, not yet served.
#[derive(Debug)]
pub struct Listener {
    plain: Bound,
    secure: Option<(Bound, Arc<Tls>)>,
}

#[derive(Debug)]
struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `http.listen`, and with `tls` `http.tls_listen` too.
    ///
    /// # Errors
    /// When an address is taken or not this machine's.
    pub async fn bind(settings: &boot::config::Http, tls: Option<Arc<Tls>>) -> anyhow::Result<Self> {
        let plain = bind(settings.listen, "http.listen").await?;
        let secure = match tls {
            Some(tls) => Some((bind(settings.tls_listen, "http.tls_listen").await?, tls)),
            None => None,
        };
        Ok(Listener { plain, secure })
    }

    /// Where HTTP listens: the real port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.plain.address
    }

    /// Where HTTPS listens, if it does.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.secure.as_ref().map(|(bound, _)| bound.address)
    }

    /// Accepts until `stop`, and then for as long as a device may still answer a call that it has taken: its answer
    /// comes on a connection of its own. Connections and devices run on in `tasks`.
    pub(crate) async fn serve(
        self,
        node: Arc<Node>,
        limits: Arc<SessionLimits>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) {
        let devices = Arc::new(Devices::new(Arc::clone(&node), tasks.clone()));
        let (metrics, places) = (HttpMetrics::register(), Arc::clone(&node.places));
        let cors = Cors::new(node.settings.http.cors_origins.as_deref());
        let server = Arc::new(Server { node, limits, devices: Arc::clone(&devices), metrics, cors });
        let acceptor = Acceptor {
            router: router(Arc::clone(&server)),
            server,
            places,
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS_AT_ONCE)),
            tasks,
            closing: CancellationToken::new(),
        };
        let until_drained = async {
            stop.cancelled().await;
            devices.drain();
            devices.drained().await;
        };
        tokio::select! {
            () = until_drained => {}
            () = acceptor.accept_all(&self) => {}
            () = relay::serve(&acceptor.server.node, &devices) => {}
            () = devices.forget_idle() => {}
        }
        acceptor.closing.cancel();
    }
}

struct Acceptor {
    router: Router,
    server: Arc<Server>,
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Connections end with the request that they are answering.
    closing: CancellationToken,
}

impl Acceptor {
    /// Without end.
    async fn accept_all(&self, from: &Listener) {
        let plain = self.accept(&from.plain, None);
        match &from.secure {
            Some((bound, tls)) => {
                tokio::join!(plain, self.accept(bound, Some(tls)));
            }
            None => plain.await,
        }
    }

    async fn accept(&self, bound: &Bound, tls: Option<&Arc<Tls>>) {
        loop {
            match bound.listener.accept().await {
                Ok((stream, _)) => self.begin(stream, tls.cloned()),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn begin(&self, stream: TcpStream, tls: Option<Arc<Tls>>) {
        if stream.set_nodelay(true).is_err() {
            return;
        }
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            let (server, router) = (Arc::clone(&self.server), self.router.clone());
            let closing = self.closing.clone();
            // A task of its own kind each: one without TLS is not to be as large as one with it.
            match tls {
                None => self.tasks.spawn(async move {
                    connection::serve(stream, server, router, closing).await;
                    drop(place);
                }),
                Some(tls) => self.tasks.spawn(async move {
                    if let Some(Some(stream)) = closing.run_until_cancelled(tls.accept(stream)).await {
                        connection::serve(stream, server, router, closing).await;
                    }
                    drop(place);
                }),
            };
            return;
        }
        self.server.node.metrics.limit_hit(rpc::Limit::Connections);
        // Under TLS a refusal would cost more than it is worth.
        if tls.is_none()
            && let Ok(place) = Arc::clone(&self.refusals).try_acquire_owned()
        {
            self.tasks.spawn(refuse(stream, place));
        }
    }
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<Bound> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("HTTP cannot listen on {address} (setting {setting})"))?;
    let address = listener.local_addr()?;
    Ok(Bound { listener, address })
}

async fn refuse(mut stream: TcpStream, place: OwnedSemaphorePermit) {
    // Ends: a client that does not read or close is left after a moment.
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, async {
        stream.write_all(REFUSAL).await?;
        stream.shutdown().await?;
        let mut discarded = [0; 1024];
        while stream.read(&mut discarded).await? > 0 {}
        std::io::Result::Ok(())
    })
    .await;
    drop(place);
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
}
