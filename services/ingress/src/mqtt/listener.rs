//! Who may come in? Accepts MQTT connections, up to the node's limit.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection;
use super::session::SessionLimits;
use crate::node::Node;
use crate::tls::Tls;

/// How many devices over the limit are told so at a time; further ones are closed without a word.
const MAX_REFUSALS_AT_ONCE: usize = 256;

/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound port, not yet served.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
}

impl Listener {
    /// Binds `mqtt.listen`, or with `tls` `mqtt.tls_listen`.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub async fn bind(address: SocketAddr, tls: Option<Arc<Tls>>) -> anyhow::Result<Self> {
        let setting = if tls.is_some() { "mqtt.tls_listen" } else { "mqtt.listen" };
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("MQTT cannot listen on {address} (setting {setting})"))?;
        let address = listener.local_addr()?;
        Ok(Listener { listener, address, tls })
    }

    /// Where it listens: the real port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until `stop`; the connections run on in `connections`.
    pub(crate) async fn serve(
        self,
        node: Arc<Node>,
        limits: Arc<SessionLimits>,
        connections: TaskTracker,
        stop: CancellationToken,
    ) {
        let refusals = Arc::new(Semaphore::new(MAX_REFUSALS_AT_ONCE));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (place, full) = match Arc::clone(&node.places).try_acquire_owned() {
                Ok(place) => (place, false),
                Err(_) => match Arc::clone(&refusals).try_acquire_owned() {
                    Ok(place) => (place, true),
                    Err(_) => {
                        node.metrics.limit_hit(rpc::Limit::Connections);
                        continue;
                    }
                },
            };
            let (node, limits) = (Arc::clone(&node), Arc::clone(&limits));
            if prepare(&stream).is_err() {
                continue;
            }
            // A task of its own kind each: one without TLS is not to be as large as one with it.
            match self.tls.clone() {
                None => connections.spawn(async move {
                    connection::serve(stream, node, limits, full).await;
                    drop(place);
                }),
                Some(tls) => connections.spawn(async move {
                    if let Some(stream) = tls.accept(stream).await {
                        connection::serve(stream, node, limits, full).await;
                    }
                    drop(place);
                }),
            };
        }
    }
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    // A call is small and waited for: never held back to be sent with the next.
    stream.set_nodelay(true)
}
